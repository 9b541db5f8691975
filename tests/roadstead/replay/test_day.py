"""Which conversations are replayed, and when: tables, and what holds for any recording."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from roadstead.replay.core.day import DAY_S, FOLD_S, Choice, Conversation, Said, chosen, renamed

HOUR = 3_600


def conversation(name: str, *at: int) -> Conversation:
    return Conversation(name, tuple(Said(one, "ann", f"at {one}") for one in at))


def seconds(choice: Choice, *at: int) -> list[int]:
    return [row[1] for one in chosen([conversation("a", *at)], choice) for row in one.said]


def test_other_people_say_the_same() -> None:
    """In the same conversations at the same times."""
    (one,) = renamed([Conversation("x", (Said(5, "a", "hi"), Said(9, "b", "yes")))], "new-")
    assert one == Conversation("x", (Said(5, "new-a", "hi"), Said(9, "new-b", "yes")))


def test_a_folded_message_is_at_its_time_of_day_whatever_the_date() -> None:
    """The day begins at 10:00 UTC."""
    assert seconds(Choice(), 10 * HOUR) == [0]
    assert seconds(Choice(), 7 * DAY_S + 9 * HOUR) == [23 * HOUR]
    assert seconds(Choice(), 11 * HOUR, 2 * DAY_S + 12 * HOUR) == [HOUR, 2 * HOUR]


def test_what_goes_over_the_border_follows_as_soon_as_it_did_but_within_a_minute() -> None:
    """So that no conversation waits a whole day for its next message."""
    end = 10 * HOUR + DAY_S
    assert seconds(Choice(), end - 5, end + 2, end + 4) == [DAY_S - 5, DAY_S + 2, DAY_S + 4]
    assert seconds(Choice(), end - 5, end + HOUR, end + HOUR + 1) == [DAY_S - 5, DAY_S + 55, DAY_S + 56]


def test_a_real_day_has_what_was_written_on_it_at_its_time() -> None:
    """From midnight to midnight; each message keeps its place in its conversation."""
    found = chosen([conversation("a", DAY_S - 1, DAY_S, 2 * DAY_S - 1, 2 * DAY_S)], Choice(date=1))
    assert [(place, second) for place, second, _ in found[0].said] == [(1, 0), (2, DAY_S - 1)]
    assert chosen([conversation("a", 5)], Choice(date=1)) == []


def hours_of(choice: Choice) -> list[int]:
    """Which hours are taken of somebody who says one thing each hour, in a conversation of its own."""
    recorded = [conversation(f"{hour:02}", hour * HOUR) for hour in range(24)]
    return [int(one.name) for one in chosen(recorded, choice)]


def test_a_window_is_in_utc_and_may_go_over_a_border() -> None:
    """Of folded days and of real ones; its end is not in it."""
    for date in (None, 0):
        assert hours_of(Choice(date, 9 * HOUR, 12 * HOUR)) == [9, 10, 11]
        assert hours_of(Choice(date, 23 * HOUR, 2 * HOUR)) == [0, 1, 23]
        assert hours_of(Choice(date, 11 * HOUR, 13 * HOUR)) == [11, 12]
        assert hours_of(Choice(date, 5, 5)) == list(range(24))


def test_the_first_ones_by_name_are_taken_of_those_that_have_something() -> None:
    """Names are random: so are those."""
    recorded = [conversation("c", DAY_S), conversation("b", 0), conversation("a", DAY_S)]
    assert [one.name for one in chosen(recorded, Choice())] == ["a", "b", "c"]
    assert [one.name for one in chosen(recorded, Choice(date=1, most=1))] == ["a"]


@given(st.lists(st.integers(0, 5 * DAY_S), min_size=1, max_size=8).map(sorted))
def test_a_folded_conversation_keeps_its_order_and_never_waits_longer_than_it_did(at: list[int]) -> None:
    """And loses no message; where the day is not left, gaps are as they were."""
    found = seconds(Choice(), *at)
    assert len(found) == len(at)
    for (before, after), (was, now) in zip(pairwise(at), pairwise(found), strict=True):
        assert 0 <= now - was <= after - before
        if (before - FOLD_S) // DAY_S == (after - FOLD_S) // DAY_S and was < DAY_S and before == at[0]:
            assert now - was == after - before
