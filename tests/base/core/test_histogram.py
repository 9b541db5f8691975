"""Histograms: the boundaries, then everything against a plain list of durations."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.core.histogram import BOUNDARIES, Histogram

DURATIONS = st.lists(
    st.one_of(
        st.sampled_from(BOUNDARIES),
        st.integers(-1, 70_000),
        st.floats(0, 100, allow_nan=False),
        st.just(math.inf),
    ),
    max_size=60,
)
COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, (1 << 63) - 1)), max_size=113)


def histogram(durations: list[float]) -> Histogram:
    made = Histogram()
    for ms in durations:
        made.observe(ms)
    return made


# ---------------------------------------------------------------- boundaries


def test_buckets_are_a_millisecond_or_an_eighth_of_a_doubling_wide():
    """Up to 65,536 ms; the relative width is never more than 12.5 % from 8 ms on."""
    assert BOUNDARIES[:8] == (1, 2, 3, 4, 5, 6, 7, 8)
    assert BOUNDARIES[-1] == 65_536
    assert [boundary for boundary in BOUNDARIES if 256 <= boundary <= 512] == [
        256, 288, 320, 352, 384, 416, 448, 480, 512,
    ]  # fmt: skip
    assert all(8 * (upper - lower) <= max(lower, 8) for lower, upper in pairwise(BOUNDARIES))


# ---------------------------------------------------------------- counting


@given(DURATIONS)
def test_each_duration_is_counted_once_below_its_boundary(durations: list[float]):
    """A boundary itself belongs to the bucket above it; nothing is above infinity."""
    counted = histogram(durations)
    assert counted.total == len(durations)
    above = [counted.count_above(boundary) for boundary in BOUNDARIES]
    assert above == [sum(ms >= boundary for ms in durations) for boundary in BOUNDARIES]
    assert counted.count_above(math.inf) == 0


@given(DURATIONS, st.integers(0, 70_000))
def test_between_two_boundaries_only_what_is_surely_above_counts(durations: list[float], ms: int):
    """Never more than there are, and all from the next boundary on."""
    above = histogram(durations).count_above(ms)
    assert above <= sum(1 for duration in durations if duration >= ms)
    assert above == histogram(durations).count_above(
        next(boundary for boundary in (*BOUNDARIES, math.inf) if boundary >= ms)
    )


@given(DURATIONS.filter(bool), st.integers(1, 64))
def test_a_quantile_is_the_lowest_boundary_that_enough_are_below(durations: list[float], sixty_fourths: int):
    """At least the part asked for; below the boundary before it there were fewer."""
    needed = sorted(durations)[math.ceil(Fraction(sixty_fourths, 64) * len(durations)) - 1]
    expected = next((boundary for boundary in BOUNDARIES if needed < boundary), math.inf)
    assert histogram(durations).quantile(sixty_fourths / 64) == expected


def test_quantiles_of_known_durations():
    """Upper boundaries; none without durations."""
    assert Histogram().quantile(0.99) is None
    uniform = histogram(list(range(100)))
    assert [uniform.quantile(p) for p in (0.01, 0.5, 0.99, 1)] == [1, 52, 104, 104]
    assert histogram([5] * 99 + [70_000]).quantile(0.99) == 6
    assert histogram([5] * 98 + [70_000] * 2).quantile(0.99) == math.inf


# ---------------------------------------------------------------- sums, windows


@given(DURATIONS, DURATIONS)
def test_merging_is_counting_both(first: list[float], second: list[float]):
    """And taking the first away again leaves the second."""
    merged = histogram(first)
    merged.merge(histogram(second))
    assert merged == histogram(first + second)
    assert merged.minus(histogram(first)) == histogram(second)


def test_a_counter_that_fell_began_anew():
    """Then all of it is since: no window is negative."""
    assert histogram([5, 9]).minus(histogram([5, 5])) == histogram([5, 9])
    assert histogram([5]).minus(histogram([5])) == Histogram()


def test_a_window_is_a_copy():
    """What is counted later does not change it."""
    counted = histogram([5])
    window = counted.minus(Histogram([1]))
    counted.observe(6)
    assert window == histogram([5])
    assert window != counted
    assert window != "Histogram"


# ---------------------------------------------------------------- the wire form


@given(COUNTS)
def test_the_wire_form_brings_every_histogram_back(counts: list[int]):
    """Whatever the counts."""
    sent = Histogram(counts)
    assert sent.counts == (*counts, *[0] * (113 - len(counts)))
    assert Histogram.decode(sent.encode()) == sent


def test_a_typical_histogram_is_small():
    """A million durations of about 5 to 500 ms in 250 bytes; nothing in none."""
    rng = random.Random(1)
    counts = Histogram()
    for _ in range(10_000):
        counts.observe(rng.lognormvariate(3.2, 0.8))
    assert len(Histogram([100 * count for count in counts.counts]).encode()) <= 250
    assert Histogram().encode() == b""


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=40).map(lambda tail: b"\x01" + tail)))
@settings(max_examples=200)
def test_any_bytes_decode_to_a_histogram(garbage: bytes):
    """One that could have been sent."""
    decoded = Histogram.decode(garbage)
    assert Histogram.decode(decoded.encode()) == decoded


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x02\x00\x01",
        b"\x01\x00",
        b"\x01\x00\x81",
        b"\x01\x71\x01",
        b"\x01\x00\x00",
        b"\x01\x00" + b"\xff" * 9 + b"\x01",
    ],
    ids=["other buckets", "no count", "cut off", "no such bucket", "count of 0", "count of 64 bits"],
)
def test_what_is_no_wire_form_decodes_to_nothing(encoded: bytes):
    """A reader loses one report by it, not more."""
    assert Histogram.decode(encoded) == Histogram()


def test_the_wire_form_is_what_it_says():
    """Two in [3, 4), 200 in the overflow: a change of these bytes is a change for every node."""
    sent = Histogram([0, 0, 0, 2, *[0] * 108, 200])
    assert sent.encode() == bytes((1, 3, 2, 108, 0xC8, 0x01))
    assert repr(sent) == "Histogram({4: 2, inf: 200})"
