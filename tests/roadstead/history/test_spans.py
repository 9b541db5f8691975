"""What came before what: every pair compared, as a twin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from roadstead.history.spans import Span, Stamp, inversions


def spans_of(drawn: list[tuple[int, str, bool, int]]) -> list[Span[int]]:
    """From steps (ms passed, process, whether a span begins or the oldest ends, position)."""
    at = 0
    spans: list[Span[int]] = []
    for order, (passed, process, is_begin, position) in enumerate(drawn):
        at += passed
        stamp = Stamp(at, process, order)
        still_open = [place for place, span in enumerate(spans) if span.end is None]
        if is_begin or not still_open:
            end = stamp if position % 5 == 0 else None
            spans.append(Span(stamp, end, position, order))
        else:
            spans[still_open[0]] = spans[still_open[0]]._replace(end=stamp)
    return spans


STEPS = st.tuples(st.integers(0, 2), st.sampled_from("pq"), st.booleans(), st.integers(0, 12))


@given(st.lists(STEPS, max_size=30))
def test_inversions_are_those_that_comparing_all_pairs_finds(drawn: list[tuple[int, str, bool, int]]):
    """The same late ones, each with the highest of the positions that are certainly before it."""
    spans = spans_of(drawn)
    expected = {}
    for later in spans:
        before = [one.position for one in spans if one.end is not None and one.end.is_before(later.begin)]
        if before and max(before) > later.position:
            expected[later.what] = max(before)
    assert {later.what: earlier.position for earlier, later in inversions(spans)} == expected


def test_events_of_two_processes_in_the_same_ms_are_in_no_order():
    """Of one process they are."""
    one, other, same = Stamp(5, "p", 0), Stamp(5, "q", 1), Stamp(5, "p", 2)
    assert not one.is_before(other)
    assert not other.is_before(one)
    assert one.is_before(same)
    assert not same.is_before(one)
    assert one.is_before(Stamp(6, "q", 3))
