"""The load generator's histogram against sorted values."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bench.load.histogram import Histogram
from bench.result import percentile

values = st.lists(st.integers(0, 2**40) | st.integers(0, 300), min_size=1)


@given(values, st.floats(0, 100))
def test_a_percentile_is_at_most_a_bit_too_high(seen: list[int], p: float) -> None:
    """Never below the exact one, and by less than 0.8 % above it."""
    histogram = Histogram()
    for value in seen:
        histogram.record(value)
    exact = percentile(sorted(seen), p)
    assert exact <= histogram.percentile(p) <= exact * (1 + 1 / 128)


@given(values, values)
def test_sent_and_added_up_it_is_as_if_recorded_in_one_place(one: list[int], other: list[int]) -> None:
    """The pairs go as JSON."""
    together, first, second = Histogram(), Histogram(), Histogram()
    for histogram, seen in ((first, one), (second, other), (together, one + other)):
        for value in seen:
            histogram.record(value)
    first.add(msgspec.json.decode(msgspec.json.encode(second.pairs()), type=list[tuple[int, int]]))
    assert first.pairs() == together.pairs()
    assert len(first) == len(one) + len(other)


def test_nothing_recorded_and_clocks_that_differ_are_zero() -> None:
    """Rather than an error in the middle of a measurement."""
    histogram = Histogram()
    assert histogram.summary() == {"count": 0, "p50": 0, "p90": 0, "p99": 0, "p99.9": 0, "p100": 0}
    histogram.record(-5)
    assert histogram.pairs() == [(0, 1)]
