"""Panic: what the registry takes away at once is not believed; histories hold the guard against its promise."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.core.node import AccessNode
from scheduler.core.panic import REMEMBER_MS, PanicGuard
from tests.scheduler.core.fleets import node, nodes

HOLD = 600_000


def guard(percent: int = 50) -> PanicGuard:
    return PanicGuard(percent=percent, hold_ms=HOLD)


def seen(made: PanicGuard, view: list[AccessNode], now: int) -> set[str]:
    shown = made.sees(view, now)
    made.check_invariants()
    assert len({one.id for one in shown}) == len(shown)
    return {str(one.id) for one in shown}


ALL = {one.id for one in nodes(10)}


def test_a_few_that_vanish_are_dead_and_most_of_them_are_not() -> None:
    """Half may go at once; when more go nothing changes, until enough are back."""
    made = guard()
    assert seen(made, nodes(10), 0) == ALL
    assert seen(made, nodes(5), 1_000) == {one.id for one in nodes(5)}
    assert not made.is_panic
    assert seen(made, nodes(4), 2_000) == ALL
    assert made.is_panic
    assert seen(made, [], 3_000) == ALL
    assert seen(made, nodes(5), 4_000) == {one.id for one in nodes(5)}
    assert not made.is_panic


def test_registrations_that_run_out_one_after_the_other_are_no_better() -> None:
    """No view takes away half, and all of them together do."""
    made = guard()
    for now, left in enumerate((10, 7, 5)):
        assert len(seen(made, nodes(left), now * 1_000)) == left
    assert seen(made, nodes(3), 3_000) == ALL


def test_a_fleet_that_shrinks_over_minutes_is_believed() -> None:
    """And a registry that was away for long is not: it is counted from the view before."""
    made = guard()
    for minute, left in enumerate((10, 6, 4, 2)):
        assert len(seen(made, nodes(left), minute * (REMEMBER_MS + 1))) == left
    other = guard()
    seen(other, nodes(10), 0)
    assert seen(other, nodes(2), 10 * REMEMBER_MS) == ALL


def test_after_the_hold_it_is_the_truth() -> None:
    """Clients are not sent to dead nodes for ever; the next loss is a new one."""
    made = guard()
    seen(made, nodes(10), 0)
    assert seen(made, nodes(2), 1_000) == ALL
    assert seen(made, nodes(2), 1_000 + HOLD - 1) == ALL
    assert seen(made, nodes(2), 1_000 + HOLD) == {"n000", "n001"}
    assert not made.is_panic
    assert seen(made, [], 1_000 + HOLD) == {"n000", "n001"}


def test_an_operator_may_know_better() -> None:
    """The next view is the truth."""
    made = guard()
    seen(made, nodes(10), 0)
    seen(made, nodes(1), 0)
    made.accept()
    assert not made.is_panic
    assert seen(made, nodes(1), 0) == {"n000"}


def test_what_is_reported_now_counts_in_panic_too() -> None:
    """I2; and flapping keeps everybody as they were seen last."""
    made = guard()
    seen(made, nodes(10), 0)
    (fresh,) = (one for one in made.sees([node("n000", connections=7)], 1) if one.id == "n000")
    assert fresh.connections == 7
    assert seen(made, nodes(10), 2) == ALL
    made.sees([node("n001", connections=9)], 3)
    assert {one.id: one.connections for one in made.sees([], 4)}["n001"] == 9


def test_who_was_to_leave_is_not_missed() -> None:
    """A fleet that is drained or cordoned and then goes is no loss, nor is one that is replaced."""
    made = guard()
    seen(made, [*nodes(6, is_draining=True), *(node(f"c{n}", is_cordoned=True) for n in range(6)), node("x")], 0)
    assert seen(made, [node("x")], 1) == {"x"}
    assert seen(made, [node("y")], 2) == {"y"}
    assert not made.is_panic


def test_who_comes_in_panic_is_not_waited_for() -> None:
    """New nodes are used, and are no part of what has to come back."""
    made = guard()
    seen(made, nodes(10), 0)
    new = [node(f"new{number}") for number in range(4)]
    assert seen(made, new, 1) == ALL | {"new0", "new1", "new2", "new3"}
    assert seen(made, new[:1], 2) == ALL | {"new0"} | set(seen(made, [], 3))
    assert seen(made, nodes(5), 4) == {one.id for one in nodes(5)}


def test_without_a_threshold_every_view_is_believed() -> None:
    """0 percent turns it off."""
    made = guard(0)
    seen(made, nodes(10), 0)
    assert seen(made, [], 1) == set()


class Histories(RuleBasedStateMachine):
    """Registries that lose and find again, at any pace."""

    @initialize(percent=st.sampled_from((0, 30, 50, 100)))
    def begin(self, percent: int) -> None:
        self.percent = percent
        self.guard = PanicGuard(percent=percent, hold_ms=5_000)
        self.now = 0
        self.views: list[tuple[int, set[str]]] = []

    @rule(
        ids=st.sets(st.sampled_from("abcdefghij")),
        ms=st.sampled_from((0, 1_000, REMEMBER_MS // 2, REMEMBER_MS + 1)),
    )
    def view(self, ids: set[str], ms: int) -> None:
        self.now += ms
        was_panic = self.guard.is_panic
        shown = seen(self.guard, [node(name) for name in sorted(ids)], self.now)
        assert ids <= shown, "I2"
        before = self.views[-1][0] if self.views else 0
        minute = set().union(*(view for at, view in self.views if at >= before - REMEMBER_MS))
        if self.guard.is_panic:
            assert len(ids) * 100 < 10 * self.percent
            if not was_panic:
                assert shown == ids | minute, "I1"
        else:
            assert shown == ids
            if not was_panic:
                assert len(ids) * 100 >= len(minute) * self.percent, "I1"
        if self.guard.is_panic == was_panic:
            self.views.append((self.now, ids))
        else:  # what is remembered begins anew, or with panic
            self.views = [*(self.views if self.guard.is_panic else ()), (self.now, ids)]

    @rule()
    def accept(self) -> None:
        self.guard.accept()
        self.views.clear()

    @invariant()
    def holds(self) -> None:
        self.guard.check_invariants()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
