"""The figures: percentiles beside a dumb twin, and series that neither lose nor invent anything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from roadstead.replay.core.figures import PARTS_MAX, Happened, Sample, percentile, series

timed = st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 9_000)), max_size=60)


def test_nothing_has_no_percentile() -> None:
    """And one value is every percentile of itself."""
    assert percentile([], 99) is None
    assert {percentile([7], percent) for percent in (0, 1, 50, 100)} == {7}


@given(st.lists(st.integers(0, 100), min_size=1).map(sorted), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[int], percent: int) -> None:
    """By the definition, counted."""
    expected = next(value for value in values if sum(one <= value for one in values) * 100 >= percent * len(values))
    assert percentile(values, percent) == expected


def test_nothing_that_happened_is_one_empty_part() -> None:
    """As of a replay of nothing."""
    made = series(Happened(), [])
    assert (made.messages_per_s, made.send_p50_ms, made.delivery_p99_ms, made.connections) == ([0], [None], [None], {})


@settings(max_examples=30, deadline=None)
@given(timed, timed, st.lists(st.tuples(st.integers(0, 400_000), st.sampled_from([1, -1])), max_size=60))
def test_every_event_is_in_the_part_of_its_time(
    sends: list[tuple[int, int]], deliveries: list[tuple[int, int]], presence: list[tuple[int, int]]
) -> None:
    """Rates times lengths are counts, and parts are few."""
    made = series(Happened(sends=sends, deliveries=deliveries, presence=presence), [])
    parts = len(made.at_s)
    assert parts <= PARTS_MAX
    seconds = made.part_ms / 1_000
    assert round(sum(made.messages_per_s) * seconds) == len(sends)
    assert round(sum(made.came_per_s) * seconds) == sum(change > 0 for _, change in presence)
    assert round(sum(made.left_per_s) * seconds) == sum(change < 0 for _, change in presence)
    for number in range(parts):
        took = sorted(value for at, value in deliveries if at // made.part_ms == number)
        assert made.delivery_p50_ms[number] == percentile(took, 50)
        assert made.delivery_p99_ms[number] == percentile(took, 99)


def test_connections_are_what_was_reported_last() -> None:
    """Also for a node that is not there any more, or not yet."""
    samples = [Sample(100, {"a": 3}), Sample(900, {"a": 4}), Sample(3_500, {"b": 1})]
    made = series(Happened(sends=[(4_200, 1)]), samples)
    assert made.connections == {"a": [4, 4, 4, 0, 0], "b": [0, 0, 0, 1, 1]}


def test_what_two_processes_noted_is_put_together() -> None:
    """Everything of both."""
    one = Happened([(1, 2)], [(3, 4)], [(5, 1)], 6, 7)
    one.add(Happened([(10, 20)], [(30, 40)], [(50, -1)], 60, 70))
    assert one == Happened([(1, 2), (10, 20)], [(3, 4), (30, 40)], [(5, 1), (50, -1)], 66, 77)
