"""The backoff: its ceiling doubles to a bound, and its delays use the whole room below it."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.core.backoff import Backoff


class Ceilings:
    """A source that draws the greatest number allowed, so that a delay is its ceiling."""

    def randrange(self, stop: int, /) -> int:
        return stop - 1


def ceilings(backoff: Backoff, count: int) -> list[int]:
    return [backoff.next_ms() for _ in range(count)]


def test_the_ceiling_doubles_up_to_its_bound():
    """The bound need not be a power of two times the base."""
    assert ceilings(Backoff(Ceilings(), base_ms=50, ceiling_ms=300), 5) == [50, 100, 200, 300, 300]


def test_after_a_reset_the_ceiling_starts_over():
    """The last try worked, so the next failure is a new one."""
    backoff = Backoff(Ceilings(), base_ms=50, ceiling_ms=300)
    ceilings(backoff, 3)
    backoff.reset()
    assert ceilings(backoff, 2) == [50, 100]


def test_a_retrier_that_never_gives_up_stays_at_the_bound():
    """Ten thousand tries later the doubling has not made a number of a thousand digits."""
    assert ceilings(Backoff(Ceilings(), base_ms=1, ceiling_ms=5_000), 10_000)[-1] == 5_000


@pytest.mark.parametrize(("base_ms", "ceiling_ms"), [(0, 10), (-1, 10), (11, 10)])
def test_a_base_outside_of_its_bound_is_a_bug(base_ms: int, ceiling_ms: int):
    """The caller's configuration was checked before."""
    with pytest.raises(AssertionError):
        Backoff(Ceilings(), base_ms=base_ms, ceiling_ms=ceiling_ms)


@given(
    seed=st.integers(0, 2**32), base_ms=st.integers(1, 1_000), more_ms=st.integers(0, 100_000), tries=st.integers(1, 40)
)
def test_a_delay_is_at_least_one_ms_and_never_above_the_ceiling(seed: int, base_ms: int, more_ms: int, tries: int):
    """Nobody retries in a busy loop, and nobody waits longer than promised."""
    ceiling_ms = base_ms + more_ms
    random = Backoff(Random(seed), base_ms=base_ms, ceiling_ms=ceiling_ms)
    highest = ceilings(Backoff(Ceilings(), base_ms=base_ms, ceiling_ms=ceiling_ms), tries)
    assert all(1 <= random.next_ms() <= most <= ceiling_ms for most in highest)


def test_a_crowd_spreads_over_the_whole_interval():
    """Full jitter: of 10,000 retriers every tenth of the interval gets about a tenth."""
    tenths = Counter((Backoff(Random(seed), base_ms=1_000).next_ms() - 1) // 100 for seed in range(10_000))
    assert sorted(tenths) == list(range(10))
    assert all(800 <= count <= 1_200 for count in tenths.values())


def test_the_same_source_gives_the_same_delays():
    """Seeded, a run can be replayed."""
    first, second = (Backoff(Random(7)) for _ in range(2))
    assert ceilings(first, 20) == ceilings(second, 20)
