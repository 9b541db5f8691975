"""Pools: draws against the probabilities of drawing without replacement, slow start against its ramp."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from math import sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.pools import Pool, draw, slow_start
from tests.scheduler.core.fleets import node


def pool(weights: list[float]) -> Pool:
    """Return a pool whose members are 100, 101 and so on."""
    members = range(100, 100 + len(weights))
    return Pool("stable", "east", "", members, weights=weights, capacity=sum(weights), heard_at=0)


@given(st.lists(st.floats(0.001, 1_000), min_size=1, max_size=12), st.integers(1, 14), st.integers(0, 99))
def test_draws_are_distinct_members_and_as_many_as_there_are(weights: list[float], count: int, seed: int) -> None:
    """I1, for any weights."""
    made = pool(weights)
    drawn = draw(made, count, Random(seed))
    assert len(drawn) == len(set(drawn)) == min(count, len(weights))
    assert set(drawn) <= set(made.members)
    assert made.total == pytest.approx(sum(weights))


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [1, 2, 3, 4], [97, 1, 1, 1]], ids=["equal", "unequal", "one"])
@pytest.mark.parametrize("count", [2, 4])
def test_each_order_is_as_likely_as_it_should_be(weights: list[float], count: int) -> None:
    """One after the other by weight, of those that are left: by luck, or when that takes long, of a list."""
    made, dice, total = pool(weights), Random(7), 6_000
    orders = Counter(tuple(draw(made, count, dice)) for _ in range(total))
    for order in permutations(range(4), count):
        chance, left = 1.0, float(sum(weights))
        for place in order:
            chance *= weights[place] / left
            left -= weights[place]
        seen = orders[tuple(100 + place for place in order)]
        assert abs(seen - total * chance) < 4.5 * sqrt(total * chance * (1 - chance)) + 1


class Ones:
    """Dice as far up as rounding may bring them."""

    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3, 0.4, 0.5]])
def test_rounding_leaves_the_last_one(weights: list[float]) -> None:
    """Never nobody."""
    assert draw(pool(weights), 2, Ones()) == [104, 103]
    assert draw(pool(weights[:2]), 2, Ones()) == [101, 100]


def test_a_pool_without_a_limit_has_its_capacity() -> None:
    """And no carriers, and nobody in it as yet."""
    made = pool([2, 2])
    assert (made.limit, made.used, made.step_ms, made.next_at, made.carriers) == (4, 0, 0, 0, {})
    assert made.cumulative is None
    assert pool([2, 3]).cumulative == [2, 5]
    with pytest.raises(AssertionError):
        pool([])


# ---------------------------------------------------------------- slow start


def test_a_young_node_counts_by_its_age() -> None:
    """From the floor to one, also by the time since it reported."""
    view = [node(str(age), uptime_ms=age) for age in (0, 3_000, 30_000, 60_000, 900_000)]
    assert slow_start(view, 0, window_ms=60_000, floor=0.1) == [0.1, 0.1, 0.5, 1, 1]
    later = [node("a", uptime_ms=10_000, reported_at=5_000), node("b")]
    assert slow_start(later, 25_000, window_ms=60_000, floor=0.1) == [0.5, 1]
    assert slow_start(later, 0, window_ms=60_000, floor=0.1) == [pytest.approx(1 / 6), 1]
    assert slow_start(later, 0, window_ms=0, floor=0.1) == [1, 1]


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=9))
def test_where_all_are_young_nobody_is_spared(ages: list[int]) -> None:
    """The oldest counts fully, whatever its age is."""
    ramps = slow_start([node("a", uptime_ms=age) for age in ages], 0, window_ms=60_000, floor=0.1)
    assert max(ramps) == 1
    assert all(0.1 <= ramp <= 1 for ramp in ramps)
    assert [one for _, one in sorted(zip(ages, ramps, strict=True))] == sorted(ramps)


def test_a_pool_of_nobody_has_no_ramps() -> None:
    """It does not come about, and does no harm."""
    assert slow_start([], 0, window_ms=60_000, floor=0.1) == []
