"""The timer wheel: examples by invariant, then a state machine against a plain dict of due ticks."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Instant
from base.core.wheel import TimerWheel

TICK_MS = 10
SLOTS = 4
TURN_MS = TICK_MS * SLOTS


def wheel() -> TimerWheel[str]:
    return TimerWheel(Instant(0), tick_ms=TICK_MS, slots=SLOTS)


def test_a_timer_fires_once_at_the_first_tick_at_or_after_its_deadline():
    """I2, never early."""
    timers = wheel()
    timers.set("a", Instant(11))
    assert timers.advance(Instant(19)) == []
    assert timers.advance(Instant(20)) == ["a"]
    assert timers.advance(Instant(1_000)) == []
    assert len(timers) == 0


def test_a_deadline_on_a_tick_fires_at_that_tick():
    """Rounding up does not add a tick to what is on one."""
    timers = wheel()
    timers.set("a", Instant(20))
    assert timers.advance(Instant(20)) == ["a"]


def test_a_deadline_that_has_passed_fires_at_the_next_tick():
    """Never at one that has gone by, which would be a turn too late."""
    timers = wheel()
    timers.advance(Instant(30))
    timers.set("a", Instant(5))
    assert timers.advance(Instant(40)) == ["a"]


def test_moving_a_timer_leaves_only_the_new_deadline():
    """I1, later and earlier."""
    timers = wheel()
    timers.set("a", Instant(10))
    timers.set("b", Instant(30))
    timers.set("a", Instant(30))
    timers.set("b", Instant(10))
    assert len(timers) == 2
    assert timers.advance(Instant(10)) == ["b"]
    assert timers.advance(Instant(30)) == ["a"]


def test_a_timer_moved_away_and_back_fires_once():
    """I1: its slot then has two entries of it."""
    timers = wheel()
    timers.set("a", Instant(10))
    timers.set("a", Instant(20))
    timers.set("a", Instant(10))
    assert timers.advance(Instant(1_000)) == ["a"]


def test_setting_the_same_deadline_again_costs_no_entry():
    """A heartbeat in the same tick must not fill the slot."""
    timers = wheel()
    for _ in range(100):
        timers.set("a", Instant(10))
    assert [len(slot) for slot in timers._slots] == [0, 1, 0, 0]


def test_a_cancelled_timer_does_not_fire():
    """And cancelling what is not there is no error."""
    timers = wheel()
    timers.set("a", Instant(10))
    timers.cancel("a")
    timers.cancel("b")
    assert timers.advance(Instant(1_000)) == []


def test_a_timer_longer_than_a_turn_waits_in_its_slot():
    """The wheel comes by and leaves it, with one entry only."""
    timers = wheel()
    timers.set("a", Instant(10))
    timers.cancel("a")
    timers.set("a", Instant(10 + 2 * TURN_MS))
    assert timers.advance(Instant(10)) == []
    assert [len(slot) for slot in timers._slots] == [0, 1, 0, 0]
    assert timers.advance(Instant(9 + 2 * TURN_MS)) == []
    assert timers.advance(Instant(10 + 2 * TURN_MS)) == ["a"]


def test_after_a_stall_everything_due_comes_earliest_first():
    """I2: more than one turn at once, slots out of order."""
    timers = wheel()
    for key, at in (("d", 95), ("b", 30), ("a", 10), ("c", 50), ("e", 500)):
        timers.set(key, Instant(at))
    assert timers.advance(Instant(499)) == ["a", "b", "c", "d"]
    assert timers.advance(Instant(500)) == ["e"]


def test_a_wheel_may_begin_at_any_time():
    """Its clock's zero is somebody's boot."""
    timers: TimerWheel[str] = TimerWheel(Instant(1_234_567), tick_ms=TICK_MS, slots=SLOTS)
    timers.set("a", Instant(1_234_600))
    assert timers.advance(Instant(1_234_599)) == []
    assert timers.advance(Instant(1_234_600)) == ["a"]


def test_time_that_does_not_move_fires_nothing():
    """Nor does a call with an earlier instant."""
    timers = wheel()
    timers.advance(Instant(100))
    timers.set("a", Instant(110))
    assert timers.advance(Instant(100)) == []
    assert timers.advance(Instant(50)) == []
    assert timers.advance(Instant(110)) == ["a"]


KEYS = st.sampled_from("abcd")


class TimerWheelAgainstDict(RuleBasedStateMachine):
    """What fires, and when, is what a dict from key to due tick says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.timers = wheel()
        self.due: dict[str, int] = {}
        self.deadlines: dict[str, int] = {}

    @rule(key=KEYS, in_ms=st.integers(-50, 2 * TURN_MS))
    def set(self, key: str, in_ms: int) -> None:
        at = Instant(self.now + in_ms)
        self.timers.set(key, at)
        ticks = range(self.now // TICK_MS + 1, 10**9)
        self.due[key] = next(tick for tick in ticks if tick * TICK_MS >= at)
        self.deadlines[key] = max(at, self.now)

    @rule(key=KEYS)
    def cancel(self, key: str) -> None:
        self.timers.cancel(key)
        self.due.pop(key, None)

    @rule(ms=st.one_of(st.integers(0, TICK_MS), st.integers(0, 3 * TURN_MS)))
    def advance(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        fired = self.timers.advance(self.now)
        expected = sorted(key for key, tick in self.due.items() if tick <= self.now // TICK_MS)
        assert sorted(fired) == expected, "I2"
        assert [self.due[key] for key in fired] == sorted(self.due[key] for key in fired), "earliest first"
        for key in fired:
            assert self.due[key] * TICK_MS - self.deadlines[key] <= TICK_MS, "late by a tick at most"
            assert self.deadlines[key] <= self.now, "never early"
            del self.due[key]

    @invariant()
    def every_key_has_one_timer(self) -> None:
        assert len(self.timers) == len(self.due), "I1"


TestTimerWheelAgainstDict = TimerWheelAgainstDict.TestCase
TestTimerWheelAgainstDict.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
