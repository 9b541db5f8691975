"""The backlog: examples by invariant, then random histories against a list that is searched."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from access.core.backlog import Backlog

BYTES_MAX = 20


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(BYTES_MAX)


def test_what_waits_is_taken_once_and_in_order(backlog: Backlog):
    """I1; an empty one is false."""
    assert not backlog
    for frame in (b"a", b"b", b"a"):
        assert backlog.put(frame)
    assert backlog
    assert backlog.take() == [b"a", b"b", b"a"]
    assert not backlog
    assert backlog.take() == []
    assert backlog.size == 0


def test_of_states_only_the_last_one_waits(backlog: Backlog):
    """I1 and I3: at the place of the one that it replaced; others, of other slots and of none, stay."""
    for frame, replaces in ((b"x1", 1), (b"m", None), (b"y1", 0), (b"x2+", 1), (b"n", None), (b"y2", 0)):
        assert backlog.put(frame, replaces)
    assert backlog.size == 7
    assert backlog.take() == [b"x2+", b"m", b"y2", b"n"]


def test_a_state_that_was_taken_is_not_replaced(backlog: Backlog):
    """The next one is a frame of its own, at its own place."""
    backlog.put(b"x1", 1)
    backlog.take()
    backlog.put(b"m")
    backlog.put(b"x2", 1)
    assert backlog.take() == [b"m", b"x2"]


def test_what_does_not_fit_changes_nothing(backlog: Backlog):
    """I2: to the byte; a state that has grown keeps the older one waiting."""
    assert backlog.put(b"x" * 5, 1)
    assert backlog.put(b"m" * 14)
    assert not backlog.put(b"mm")
    assert not backlog.put(b"x" * 7, 1)
    assert not backlog.put(b"yy", 2)
    assert backlog.put(b"X" * 6, 1)
    assert backlog.put(b"")
    assert not backlog.put(b"m")
    assert backlog.size == BYTES_MAX
    assert backlog.take() == [b"X" * 6, b"m" * 14, b""]
    assert backlog.put(b"z" * BYTES_MAX)
    assert not Backlog(BYTES_MAX).put(b"z" * (BYTES_MAX + 1))


def test_a_slot_that_did_not_fit_is_none(backlog: Backlog):
    """Its next frame must not take the place of another one."""
    backlog.put(b"m" * 19)
    assert not backlog.put(b"xx", 1)
    assert backlog.put(b"x", 1)
    assert backlog.take() == [b"m" * 19, b"x"]


class BacklogAgainstList(RuleBasedStateMachine):
    """The twin is a list of pairs, searched for the slot."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog(BYTES_MAX)
        self.twin: list[tuple[int | None, bytes]] = []

    @rule(frame=st.binary(max_size=9), slot=st.none() | st.integers(0, 3))
    def put(self, frame: bytes, slot: int | None) -> None:
        changed = list(self.twin)
        places = [at for at, (other, _) in enumerate(changed) if slot is not None and other == slot]
        if places:
            changed[places[0]] = (slot, frame)
        else:
            changed.append((slot, frame))
        fits = sum(len(one) for _, one in changed) <= BYTES_MAX
        assert self.backlog.put(frame, slot) is fits
        if fits:
            self.twin = changed

    @rule()
    def take(self) -> None:
        assert self.backlog.take() == [frame for _, frame in self.twin]
        self.twin = []

    @invariant()
    def both_hold_the_same(self) -> None:
        self.backlog.check_invariants()
        assert self.backlog.size == sum(len(frame) for _, frame in self.twin)
        assert bool(self.backlog) is bool(self.twin)


TestBacklogAgainstList = BacklogAgainstList.TestCase
TestBacklogAgainstList.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
