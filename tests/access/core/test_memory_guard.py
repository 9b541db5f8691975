"""The memory guard: every answer around its marks, then whom it lets go against a sort."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.memory_guard import Guard


def test_newcomers_are_refused_above_one_mark_and_let_in_below_the_other():
    """I1, up and down through every percent."""
    guard = Guard(limit=100, queued_max=1)
    rising = [guard.accepts(resident) for resident in range(101)]
    falling = [guard.accepts(resident) for resident in range(100, -1, -1)]
    assert rising == [True] * 91 + [False] * 10
    assert falling == [False] * 16 + [True] * 85


@pytest.mark.parametrize(("first", "answer"), [(0, True), (91, False)])
def test_between_the_marks_the_answer_stands(first: int, *, answer: bool):
    """I1: a node at its limit does not flap."""
    guard = Guard(limit=100, queued_max=1)
    assert guard.accepts(first) is answer
    for resident in (85, 90, 86, 89, 85, 90):
        assert guard.accepts(resident) is answer


def test_marks_are_exact_for_limits_that_have_no_whole_percent():
    """90 % of 7 bytes are 6.3."""
    guard = Guard(limit=7, queued_max=1)
    assert guard.accepts(6)
    assert not guard.accepts(7)
    assert not guard.accepts(6)
    assert guard.accepts(5)


def test_without_a_limit_everybody_is_let_in():
    """The machine's own bound is then all there is."""
    assert Guard(limit=0, queued_max=1).accepts(10**15)


@given(st.integers(1, 1_000), st.lists(st.integers(0, 1_200), max_size=30))
def test_answers_are_those_of_the_words(limit: int, resident: list[int]):
    """The twin keeps the last answer and compares fractions."""
    guard = Guard(limit=limit, queued_max=1)
    answer = True
    for used in resident:
        if used / limit > 0.9:
            answer = False
        elif used / limit < 0.85:
            answer = True
        assert guard.accepts(used) is answer


# ---------------------------------------------------------------- queues


def test_nobody_is_let_go_while_the_sum_is_within_its_bound():
    """I2, however unfair the share of one."""
    guard = Guard(limit=0, queued_max=100)
    assert guard.shed({}) == ()
    assert guard.shed({"a": 100}) == ()
    assert guard.shed({"a": 99, "b": 1}) == ()


def test_the_longest_queues_go_until_four_fifths_are_left():
    """I2, I3."""
    guard = Guard(limit=0, queued_max=100)
    assert guard.shed({"a": 10, "b": 30, "c": 21, "d": 40}) == ("d",)
    assert guard.shed({"a": 50, "b": 51, "c": 52}) == ("c", "b")
    assert guard.shed({"a": 60, "b": 20, "c": 20, "d": 1}) == ("a",)
    assert guard.shed({"a": 1_000}) == ("a",)


def test_of_equal_queues_the_first_named_goes_first():
    """The handles need no order of their own."""
    guard = Guard(limit=0, queued_max=100)
    first, second, third = object(), object(), object()
    assert guard.shed({first: 40, second: 40, third: 40}) == (first,)


@given(st.integers(1, 200), st.lists(st.integers(0, 60), max_size=20))
def test_who_goes_is_the_head_of_a_sort(queued_max: int, sizes: list[int]):
    """I2, I3: the shortest head of the list, longest first, that leaves four fifths or less."""
    chosen = Guard(limit=0, queued_max=queued_max).shed(dict(enumerate(sizes)))
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    if sum(sizes) <= queued_max:
        assert chosen == ()
    else:
        enough = (
            count for count in range(len(sizes) + 1) if sum(sizes[n] for n in order[count:]) <= queued_max * 4 / 5
        )
        assert chosen == tuple(order[: next(enough)])
