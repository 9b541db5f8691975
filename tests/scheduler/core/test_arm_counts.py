"""Counts by arm against a twin that keeps every assignment."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.arm_counts import ArmCounts

steps = st.lists(st.tuples(st.sampled_from(("stable", "fast", "slow")), st.integers(0, 45_000)), max_size=60)


@given(steps, st.integers(0, 200_000))
def test_the_counts_are_those_of_whoever_keeps_them_all(steps: list[tuple[str, int]], later: int) -> None:
    """Whatever time lies between two assignments, and however long after the last one it is asked."""
    counts, kept, now = ArmCounts(), [], 0
    for arm, wait in steps:
        now += wait
        counts.add(arm, now)
        kept.append((arm, now))
        counts.check_invariants()
    asked = now + later
    assert counts.totals == Counter(arm for arm, _ in kept)
    assert counts.last_minute(asked) == Counter(arm for arm, at in kept if asked // 1_000 - 60 < at // 1_000)


def test_a_time_that_is_behind_counts_where_it_belongs() -> None:
    """It does not bring a second back that was forgotten."""
    counts = ArmCounts()
    counts.add("stable", 61_000)
    counts.add("stable", 60_500)
    counts.add("stable", 61_999)
    assert counts.last_minute(60_999) == {"stable": 1}
    assert counts.last_minute(61_999) == {"stable": 3}
    counts.check_invariants()
