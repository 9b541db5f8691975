"""Plans of moves: each client is in one place, is closed in time and not before, and each plan's totals add up."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from access.core.moves import SPARE, MovePlans, MoveTotals
from base.clock import Instant

PLANS_MAX = 3
PLANS = st.sampled_from("abcde")


def at(ms: int) -> Instant:
    return Instant(ms)


class Told:
    """A client of the twin, which remembers all of them and looks through all of them."""

    def __init__(self, plan: str, life: int, client: str, deadline: int) -> None:
        self.plan = plan
        self.life = life
        """A plan that was forgotten and comes again is another one."""
        self.client = client
        self.deadline = deadline
        self.place = "waiting"


class Machine(RuleBasedStateMachine):
    """`MovePlans` beside the twin."""

    def __init__(self) -> None:
        super().__init__()
        self.plans = MovePlans(plans_max=PLANS_MAX)
        self.now = 0
        self.all: list[Told] = []
        self.lives: dict[str, int] = {}
        self.orders: list[str] = []
        """Plans by their latest order, those that are known."""

    def waiting(self) -> list[Told]:
        return [told for told in self.all if told.place == "waiting"]

    @rule(plan=PLANS, grace=st.integers(0, 50), count=st.integers(1, 4))
    def tell(self, plan: str, grace: int, count: int) -> None:
        for _ in range(count):
            client = f"client-{len(self.all)}"
            self.plans.told(plan, client, at(self.now + grace))
            if plan in self.orders:
                self.orders.remove(plan)
            else:
                self.lives[plan] = self.lives.get(plan, 0) + 1
            self.orders = [*self.orders, plan][-PLANS_MAX:]
            self.all.append(Told(plan, self.lives[plan], client, self.now + grace))

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        told = data.draw(st.sampled_from(self.waiting()))
        assert told.client in self.plans
        assert self.plans.gone(told.client)
        assert not self.plans.gone(told.client)
        told.place = "arrived"

    @rule(ms=st.integers(0, 30))
    def pass_time(self, ms: int) -> None:
        self.now += ms
        closed = self.plans.expire(at(self.now))
        due = [told for told in self.waiting() if told.deadline <= self.now]
        assert sorted(closed) == sorted(told.client for told in due)
        for told in due:
            told.place = "closed"

    @rule()
    def drain(self) -> None:
        self.plans.release()
        for told in self.waiting():
            told.place = "released"

    @invariant()
    def totals_are_those_of_the_twin(self) -> None:
        self.plans.check_invariants()
        assert len(self.plans) == len(self.waiting())
        for plan in "abcde":
            mine = [told for told in self.all if told.plan == plan and told.life == self.lives[plan]]
            counts = [sum(told.place == place for told in mine) for place in PLACES] if plan in self.orders else [0] * 4
            assert astuple(self.plans.totals(plan)) == (sum(counts), *counts)


PLACES = ("waiting", "arrived", "closed", "released")
Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_plans_are_those_of_a_twin_that_forgets_nothing = Machine.TestCase


def test_a_client_that_was_released_and_told_again_has_its_new_deadline():
    """The drain that took it over was aborted; the old deadline is nobody's."""
    plans = MovePlans()
    plans.told("a", "ann", at(10))
    plans.release()
    plans.told("b", "ann", at(50))
    assert plans.expire(at(49)) == []
    assert plans.expire(at(50)) == ["ann"]
    assert plans.totals("a") == MoveTotals(told=1, released=1)
    assert plans.totals("b") == MoveTotals(told=1, closed=1)


def test_a_connection_is_told_once():
    """Its second deadline would be another one than it was told."""
    plans = MovePlans()
    plans.told("a", "ann", at(10))
    with pytest.raises(AssertionError):
        plans.told("b", "ann", at(20))
    with pytest.raises(AssertionError):
        MovePlans(plans_max=0)


def test_who_went_long_before_the_deadline_leaves_little_behind():
    """A plan that moves a hundred thousand clients in an hour does not keep them all for the hour."""
    plans = MovePlans()
    for number in range(10_000):
        plans.told("a", f"client-{number}", at(3_600_000))
        if number >= 100:
            plans.gone(f"client-{number - 100}")
        if number % 500 == 0:
            plans.check_invariants()
    assert len(plans._deadlines) <= 2 * 100 + SPARE
    assert len(plans.expire(at(3_600_000))) == 100


def test_stale_deadlines_are_passed_over():
    """Of who went, while few such are kept."""
    plans = MovePlans()
    plans.told("a", "ann", at(10))
    plans.told("a", "ben", at(10))
    plans.gone("ann")
    assert plans.expire(at(10)) == ["ben"]
    assert not plans.gone("nobody")
