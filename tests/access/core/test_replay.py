"""The replay cache: examples by invariant, then a state machine against a list that forgets nothing."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from access.core.replay import ReplayCache, Use


@pytest.fixture
def cache() -> ReplayCache:
    """A cache for two ids in which `a` was used at 0 and expires at 10."""
    cache = ReplayCache(limit=2)
    cache.use("a", expires_at=10, now=0)
    return cache


def test_a_ticket_is_accepted_once():
    """I1."""
    cache = ReplayCache()
    assert cache.use("a", expires_at=10, now=0) is Use.FIRST
    assert cache.use("a", expires_at=10, now=0) is Use.REPEATED


def test_it_is_remembered_through_the_second_of_its_expiry(cache: ReplayCache):
    """I1: in that second it is still accepted elsewhere."""
    assert cache.use("a", expires_at=10, now=10) is Use.REPEATED


def test_it_is_forgotten_afterwards(cache: ReplayCache):
    """Its expiry refuses it from then on."""
    assert cache.use("b", expires_at=20, now=11) is Use.FIRST
    assert len(cache) == 1


def test_tickets_are_forgotten_in_the_order_of_their_expiries(cache: ReplayCache):
    """Whatever the order in which they were used."""
    cache.use("b", expires_at=5, now=0)
    assert cache.use("c", expires_at=30, now=6) is Use.FIRST
    assert cache.use("a", expires_at=10, now=6) is Use.REPEATED


def test_a_full_cache_refuses_new_tickets_and_forgets_no_old_one(cache: ReplayCache):
    """I2: forgetting would let a stolen ticket in."""
    cache.use("b", expires_at=20, now=0)
    assert cache.use("c", expires_at=20, now=10) is Use.FULL
    assert cache.use("a", expires_at=10, now=10) is Use.REPEATED
    assert cache.use("c", expires_at=20, now=11) is Use.FIRST


def test_a_ticket_refused_by_a_full_cache_is_not_used_up():
    """It may try again when others have expired."""
    cache = ReplayCache(limit=1)
    cache.use("a", expires_at=1, now=0)
    assert cache.use("b", expires_at=9, now=0) is Use.FULL
    assert cache.use("b", expires_at=9, now=2) is Use.FIRST


def test_a_forgotten_use_leaves_the_ticket_good_for_another_try(cache: ReplayCache):
    """I1: the use came to nothing by a failure on our side; the next one counts again."""
    cache.forget("a")
    assert cache.use("a", expires_at=10, now=1) is Use.FIRST
    assert cache.use("a", expires_at=10, now=1) is Use.REPEATED


def test_a_forgotten_use_keeps_its_place(cache: ReplayCache):
    """I2: its next try is let in by a full cache, and it goes with its expiry."""
    cache.use("b", expires_at=20, now=0)
    cache.forget("a")
    assert len(cache) == 2
    assert cache.use("c", expires_at=20, now=0) is Use.FULL
    assert cache.use("a", expires_at=10, now=0) is Use.FIRST
    assert cache.use("c", expires_at=20, now=11) is Use.FIRST


def test_forgetting_a_use_that_is_over_changes_nothing(cache: ReplayCache):
    """The ticket expired while its connect failed, or was never seen."""
    cache.use("b", expires_at=20, now=11)
    cache.forget("a")
    cache.forget("z")
    assert len(cache) == 1


def test_an_expired_ticket_that_comes_all_the_same_takes_no_room_for_long():
    """The verifier lets one in for some seconds after its expiry, for clocks that differ."""
    cache = ReplayCache()
    assert cache.use("a", expires_at=5, now=6) is Use.FIRST
    cache.use("b", expires_at=9, now=6)
    assert len(cache) == 1


def test_expiry_comes_by_seconds_whatever_the_number_of_tickets_in_each():
    """I3: a second is dropped whole, and only that."""
    cache = ReplayCache()
    for number in range(300):
        cache.use(f"t{number}", expires_at=10 + number % 3, now=0)
    for now, held in ((10, 300), (11, 200), (12, 100), (13, 0)):
        cache.use("probe", expires_at=0, now=now)
        assert len(cache) == held + 1
    cache.check_invariants()


def test_a_ticket_takes_less_than_a_hundred_bytes():
    """Its id alone would take 85."""
    cache = ReplayCache()
    count = 20_000
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        cache.use(f"00000000-0000-4000-8000-{number:012d}", expires_at=number % 20, now=0)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == count
    assert (after - before) / count < 100


# ---------------------------------------------------------------- the dumb twin

TICKETS = [f"t{number}" for number in range(20)]


class ReplayCacheAgainstList(RuleBasedStateMachine):
    """The twin keeps every ticket ever accepted and every use that came to nothing, and filters by time.

    A ticket has one expiry, drawn when it is first shown; it may be shown again long after.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.limit = 3
        self.cache = ReplayCache(limit=3)
        self.accepted: list[tuple[str, int]] = []
        self.used: set[str] = set()
        self.expiries: dict[str, int] = {}

    @initialize(limit=st.integers(1, 5))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.cache = ReplayCache(limit=limit)

    @rule(ticket=st.sampled_from(TICKETS), lifetime=st.integers(0, 10))
    def use(self, ticket: str, lifetime: int) -> None:
        held = [name for name, expires_at in self.accepted if expires_at >= self.now]
        expires_at = self.expiries.setdefault(ticket, self.now + lifetime)
        outcome = self.cache.use(ticket, expires_at=expires_at, now=self.now)
        if ticket in held:
            assert outcome is (Use.REPEATED if ticket in self.used else Use.FIRST)
        elif len(held) == self.limit:
            assert outcome is Use.FULL
        else:
            assert outcome is Use.FIRST
            self.accepted.append((ticket, expires_at))
        if outcome is Use.FIRST:
            self.used.add(ticket)

    @rule(ticket=st.sampled_from(TICKETS))
    def forget(self, ticket: str) -> None:
        self.cache.forget(ticket)
        self.used.discard(ticket)

    @rule(seconds=st.integers(1, 6))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.cache) <= self.limit
        self.cache.check_invariants()


TestReplayCacheAgainstList = ReplayCacheAgainstList.TestCase
TestReplayCacheAgainstList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
