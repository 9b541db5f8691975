"""Deadlines on one timer: who is told late and when, and how often the process is woken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.peer.deadlines import OFTEN, STEP_S, Deadlines

DEADLINE_S = 1.0


class Loop:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wakes = 0
        self.timers_made = 0
        self._timers: list[tuple[float, Callable[[], None], Timer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None], /) -> asyncio.TimerHandle:
        timer = Timer()
        self.timers_made += 1
        self._timers.append((when, callback, timer))
        return cast("asyncio.TimerHandle", timer)

    @property
    def timers(self) -> int:
        return sum(not timer.is_cancelled for _, _, timer in self._timers)

    def pass_to(self, until: float) -> None:
        while True:
            left = [one for one in self._timers if not one[2].is_cancelled and one[0] <= until]
            if not left:
                break
            first = min(left, key=lambda one: one[0])
            self._timers.remove(first)
            self.now = max(self.now, first[0])
            self.wakes += 1
            first[1]()
        self.now = until


class Timer:
    """What `call_at` returns."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5), st.floats(0, 2)),
        st.tuples(st.just("met"), st.integers(0, 5), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(OPS)
def test_whatever_is_not_met_is_told_once_and_soon_and_nothing_else_is(ops: list[tuple[str, int, float]]) -> None:
    """A twin keeps the deadlines in a dictionary and knows when each is over."""
    loop = Loop()
    told: list[tuple[int, float]] = []
    deadlines: Deadlines[int] = Deadlines(loop, lambda key: told.append((key, loop.now)))
    due: dict[int, float] = {}
    for kind, key, seconds in ops:
        if kind == "add":
            due[key] = loop.now + seconds
            deadlines.add(key, seconds)
        elif kind == "met":
            due.pop(key, None)
            deadlines.met(key)
        else:
            told.clear()
            until = loop.now + seconds
            loop.pass_to(until)
            for one, at in told:
                assert due.pop(one) <= at
            assert all(when + 2 * STEP_S > until for when in due.values()), "somebody should have been told"
    loop.pass_to(loop.now + 10)
    assert loop.timers == 0


def test_what_comes_once_in_a_while_and_is_met_wakes_nobody() -> None:
    """A beat a second with a deadline of a second."""
    loop = Loop()
    deadlines: Deadlines[int] = Deadlines(loop, lambda _: pytest.fail("it was met"))
    for number in range(10):
        deadlines.add(number, DEADLINE_S)
        loop.pass_to(number + 0.01)
        deadlines.met(number)
        assert loop.timers == 0
        loop.pass_to(number + 1.0)
    assert loop.wakes == 0


def test_what_comes_often_and_is_met_sets_a_timer_once_a_deadline() -> None:
    """A hundred calls a second, each answered before the next one: ten seconds, a thousand calls."""
    loop = Loop()
    deadlines: Deadlines[int] = Deadlines(loop, lambda _: pytest.fail("it was met"))
    for number in range(1_000):
        deadlines.add(number, DEADLINE_S)
        loop.pass_to(number / 100 + 0.005)
        deadlines.met(number)
        loop.pass_to((number + 1) / 100)
    assert loop.timers_made < 15
    assert loop.wakes < 15


@pytest.mark.parametrize(("gap_s", "timers"), [(DEADLINE_S / OFTEN - 0.01, 1), (DEADLINE_S / OFTEN + 0.01, 0)])
def test_often_is_several_times_a_deadline(gap_s: float, timers: int) -> None:
    """A little more rarely, and the timer goes with the last call."""
    loop = Loop()
    deadlines: Deadlines[int] = Deadlines(loop, lambda _: None)
    for number in range(2):
        loop.pass_to(number * gap_s)
        deadlines.add(number, DEADLINE_S)
        deadlines.met(number)
    assert loop.timers == timers


def test_many_that_are_over_one_after_the_other_are_looked_at_in_steps() -> None:
    """A thousand deadlines within a tenth of a second are not a thousand looks at all of them."""
    loop = Loop()
    told: list[int] = []
    deadlines: Deadlines[int] = Deadlines(loop, told.append)
    for number in range(1_000):
        deadlines.add(number, 1.0 + number / 10_000)
    loop.pass_to(1.2)
    assert told == list(range(1_000))
    assert loop.wakes <= 0.1 / STEP_S + 2


def test_whoever_is_told_may_meet_others_and_add_new_ones() -> None:
    """The failure of one call ends others, and begins some."""
    loop = Loop()
    told: list[str] = []

    def late(key: str) -> None:
        told.append(key)
        if key == "first":
            deadlines.met("second")
            deadlines.add("third", 0.5)

    deadlines: Deadlines[str] = Deadlines(loop, late)
    for key in ("first", "second"):
        deadlines.add(key, 1.0)
    loop.pass_to(1.4)
    assert told == ["first"]
    loop.pass_to(1.6)
    assert told == ["first", "third"]


def test_after_clear_nobody_is_told_and_no_timer_is_left() -> None:
    """The stream has ended."""
    loop = Loop()
    deadlines: Deadlines[int] = Deadlines(loop, lambda _: pytest.fail("it was forgotten"))
    for number in range(3):
        deadlines.add(number, 1.0)
    deadlines.clear()
    assert loop.timers == 0
    deadlines.clear()
    loop.pass_to(5.0)
