"""Accounts of a plan's nodes: the pace against a list of every move, the others against clients by name."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Instant
from scheduler.core.move_accounts import Pace, SourceAccount, TargetAccount, Totals

STEPS = st.lists(st.tuples(st.integers(0, 1_500), st.integers(0, 100), st.integers(0, 100)), max_size=40)

# ---------------------------------------------------------------- pace


def test_a_pace_is_even_from_its_beginning():
    """10 a second are five each half second; nothing is there at once."""
    pace = Pace(Instant(0))
    given_out = []
    for at in range(0, 3_001, 500):
        given_out.append(pace.room(Instant(at), 10))
        pace.take(Instant(at), given_out[-1]) if given_out[-1] else None
    assert given_out == [0, 5, 5, 5, 5, 5, 5]


def test_a_late_step_makes_up_for_a_little():
    """Not for a minute in which nobody was told."""
    assert Pace(Instant(0)).room(Instant(60_000), 10) == 6


def test_less_than_one_a_second_is_one_after_a_while():
    """And not two at once."""
    pace = Pace(Instant(0))
    assert [pace.room(Instant(at), 0.5) for at in (0, 1_999, 2_000, 60_000)] == [0, 0, 1, 1]
    pace.take(Instant(60_000), 1)
    assert [pace.room(Instant(at), 0.5) for at in (61_999, 62_000)] == [0, 1]


def test_what_is_taken_back_may_be_given_again():
    """The source had nobody to tell: the pace is for another."""
    pace = Pace(Instant(0))
    assert pace.room(Instant(500), 10) == 5
    pace.take(Instant(500), 5)
    pace.take(Instant(500), -4)
    assert (pace.room(Instant(500), 10), pace.in_window) == (4, 1)


def test_nothing_is_taken_back_that_was_not_taken_just_now():
    """Our own bug."""
    with pytest.raises(AssertionError):
        Pace(Instant(0)).take(Instant(0), -1)


@given(st.integers(100, 200_000), STEPS)
def test_no_second_has_more_than_the_rate(thousandths: int, steps: list[tuple[int, int, int]]):
    """A1: against a list of every move; and the sum of all stays below the rate's line."""
    rate = Fraction(thousandths, 1_000)
    pace = Pace(Instant(0))
    now, moves = 0, []
    for ms, percent, percent_back in steps:
        now += ms
        count = pace.room(Instant(now), float(rate)) * percent // 100
        if count:
            pace.take(Instant(now), count)
            back = count * percent_back // 100
            if back:
                pace.take(Instant(now), -back)
            moves.append((now, count - back))
        in_second = sum(count for at, count in moves if at > now - 1_000)
        assert in_second <= max(1, rate)
        assert sum(count for _, count in moves) <= max(1, rate * Fraction(6, 10)) + rate * now / 1_000


# ---------------------------------------------------------------- sources


def test_an_order_counts_until_the_source_says_what_became_of_it():
    """Then its totals count, which may have fewer."""
    source = SourceAccount(is_exhausted=True)
    source.order(Instant(1_000), 8)
    assert (source.waiting, source.is_exhausted, source.totals.told) == (8, False, 0)
    source.answer(Instant(1_100), Totals(told=7, arrived=2, closed=1))
    assert source.waiting == 4


def test_a_report_counts_those_who_left_since():
    """Its connections less those who left after it, and less those who will."""
    source = SourceAccount()
    assert source.leaving(0) == 0
    source.order(Instant(1_000), 10)
    for at, arrived in ((1_100, 0), (2_000, 4), (2_500, 4), (3_000, 7)):
        source.answer(Instant(at), Totals(told=10, arrived=arrived))
    assert [source.leaving(at) for at in (900, 1_100, 1_999, 2_000, 2_999, 3_000, 9_000)] == [10, 10, 10, 6, 6, 3, 3]
    assert list(source.gone) == [(3_000, 7)]


def test_answers_without_news_are_not_kept():
    """A3: a source whose reports do not come costs nothing for it."""
    source = SourceAccount()
    for at in range(100):
        source.answer(Instant(at), Totals())
    assert list(source.gone) == [(0, 0)]


def test_who_was_ordered_long_ago_was_never_told():
    """The call was lost: nobody waits for them for ever."""
    source = SourceAccount()
    source.order(Instant(1_000), 10)
    source.answer(Instant(1_100), Totals(told=10, arrived=3))
    source.give_up(1_000)
    assert source.waiting == 7
    source.give_up(1_001)
    assert source.waiting == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=30))
def test_what_is_left_of_a_report_is_who_was_not_told(acts: list[tuple[int, int, bool]]):
    """The twin counts those who were never told, by looking at the node."""
    source = SourceAccount()
    untold, waiting, gone, told, report, reported_at = 200, 0, 0, 0, 200, 0
    for number, (order, leave_max, is_report) in enumerate(acts, 1):
        now = Instant(number * 500)
        source.order(now, order)
        untold, waiting, told = untold - order, waiting + order, told + order
        leave = min(leave_max, waiting)
        waiting, gone = waiting - leave, gone + leave
        source.answer(now, Totals(told, gone - gone // 3, gone // 3))
        if is_report:
            report, reported_at = untold + waiting, now
        assert report - source.leaving(reported_at) == untold
        assert source.waiting == waiting
        assert len(source.gone) <= number


# ---------------------------------------------------------------- targets


def target() -> TargetAccount:
    return TargetAccount(Pace(Instant(0)), turned_away=7, admitted=1)


def test_who_arrives_is_not_expected_any_more():
    """The oldest first; more arrivals than were expected are no error, fewer are no departure."""
    one = target()
    one.send(Instant(1_000), 4)
    one.send(Instant(1_000), 1)
    one.send(Instant(2_000), 3)
    assert one.on_their_way == 8
    assert one.look(7, 9) == (6, 2)
    assert list(one.coming) == [[2_000, 2]]
    assert one.look(7, 8) == (0, 0)
    assert one.look(20, 9) == (13, 0)
    assert one.on_their_way == 0


def test_who_was_not_sent_is_not_expected():
    """A2: and an entry of nobody is no entry."""
    one = target()
    one.send(Instant(1_000), 2)
    one.send(Instant(1_500), 5)
    one.take_back(Instant(1_500), 3)
    assert one.on_their_way == 4
    one.take_back(Instant(1_500), 2)
    assert list(one.coming) == [[1_000, 2]]
    assert one.pace.in_window == 2
    with pytest.raises(AssertionError):
        one.take_back(Instant(1_500), 1)


def test_who_does_not_come_is_given_up():
    """Whoever was sent before that."""
    one = target()
    one.send(Instant(1_000), 2)
    one.send(Instant(2_000), 5)
    one.give_up(2_000)
    assert list(one.coming) == [[2_000, 5]]
    one.give_up(9_000)
    assert one.on_their_way == 0
