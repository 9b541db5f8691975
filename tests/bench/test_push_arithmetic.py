"""The arithmetic of telling members one by one: the formula against virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base import loop
from bench.push_arithmetic import needed, pushes, slept_ms, virtual_ms, waited_ms


@pytest.mark.spec("RT-02", "RT-03")
def test_the_articles_figures() -> None:
    """One worker: 20 s. Within 10 ms: 2,000 of them."""
    assert virtual_ms(10_000, 1, 2) == 20_000
    assert needed(10_000, 10, 2) == 2_000
    assert virtual_ms(10_000, 2_000, 2) == 10


def test_a_push_that_does_not_fit_cannot_be_made_up_for_by_workers() -> None:
    """However many there are; and a part of a push is none."""
    with pytest.raises(ValueError, match="more than 1 ms"):
        needed(10_000, 1, 2)
    assert needed(10, 10, 3) == 4
    assert needed(3, 0.3, 0.1) == 1


@pytest.mark.spec("RT-03")
@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 60))
def test_so_many_workers_are_enough_and_one_less_is_not(n: int, t_total: int, t_one: int) -> None:
    """By virtual time."""
    if t_one > t_total:
        return
    workers = needed(n, t_total, t_one)
    assert virtual_ms(n, workers, t_one) <= t_total
    assert workers == 1 or virtual_ms(n, workers - 1, t_one) > t_total


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 50))
def test_calls_are_those_that_dealing_out_needs(n: int, nodes: int, batch_max: int) -> None:
    """Members dealt out one by one, and each node's cut into batches."""
    shares = [len(range(node, n, nodes)) for node in range(nodes)]
    wanted = sum(len(range(0, share, batch_max)) for share in shares)
    assert pushes(n, nodes, batch_max=batch_max) == wanted


def test_real_waits_take_no_less() -> None:
    """A machine adds to the arithmetic and takes nothing away."""
    assert slept_ms(5, 1) >= 5
    assert loop.run(waited_ms(20, 4, 5)) >= 20
