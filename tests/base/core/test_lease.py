"""The lease core: examples by invariant, then a state machine against a twin that scans lists.

The pattern for the tests of every core: sentences first, then random histories against an implementation too simple
to be wrong, with `check_invariants` after each step.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from base.clock import Instant, SimClock
from base.core.lease import (
    Acquire,
    Ended,
    Granted,
    HeldLease,
    Lease,
    LeaseTable,
    Reason,
    Refused,
    Release,
    Renew,
    Stalled,
    Tick,
)
from base.ids import Epoch, Incarnation

TTL_MS = 1_000


def at(ms: int) -> Instant:
    return Instant(ms)


def acquire(holder: str = "a", incarnation: int = 1, *, resource: str = "r", given_up: int = 0) -> Acquire:
    return Acquire(resource, holder, Incarnation(incarnation), TTL_MS, Epoch(given_up))


def renew(holder: str = "a", incarnation: int = 1, *, epoch: int = 1, resource: str = "r") -> Renew:
    return Renew(resource, holder, Incarnation(incarnation), Epoch(epoch))


def release(holder: str = "a", incarnation: int = 1, *, epoch: int = 1, resource: str = "r") -> Release:
    return Release(resource, holder, Incarnation(incarnation), Epoch(epoch))


def lease(
    holder: str = "a", incarnation: int = 1, *, epoch: int = 1, until: int = TTL_MS, resource: str = "r"
) -> Lease:
    return Lease(resource, holder, Incarnation(incarnation), Epoch(epoch), TTL_MS, Instant(until))


@pytest.fixture
def table() -> LeaseTable:
    """A table in which `a` acquired `r` at 0, at epoch 1."""
    table = LeaseTable()
    table.step(at(0), acquire())
    return table


# ---------------------------------------------------------------- granting


def test_a_free_resource_is_granted_at_epoch_one():
    """The lease ends a ttl after the answer."""
    assert LeaseTable().step(at(5), acquire()) == [Granted(lease(until=1_005), is_new=True)]


def test_a_restarted_table_grants_above_every_epoch_of_its_former_life():
    """I2 over a crash: `first_epoch` is the floor."""
    assert LeaseTable(first_epoch=Epoch(7)).step(at(0), acquire()) == [Granted(lease(epoch=8), is_new=True)]


def test_a_held_resource_is_refused_to_others_and_they_learn_who_has_it(table: LeaseTable):
    """I1."""
    assert table.step(at(999), acquire("b")) == [Refused("r", "b", Reason.HELD, lease())]


def test_resources_do_not_know_of_each_other(table: LeaseTable):
    """Each has its own holder and its own epochs."""
    granted = table.step(at(0), acquire("b", resource="s"))
    assert granted == [Granted(lease("b", resource="s"), is_new=True)]


def test_asking_twice_gives_the_same_epoch_and_a_later_end(table: LeaseTable):
    """A holder that lost our answer asks again, and both ends agree on the epoch."""
    assert table.step(at(400), acquire()) == [Granted(lease(until=1_400), is_new=False)]


def test_a_renewal_never_shortens_a_lease(table: LeaseTable):
    """I5: the holder may count on what it was told first."""
    shorter = replace(acquire(), ttl_ms=10)
    assert table.step(at(0), shorter) == [Granted(replace(lease(), ttl_ms=10), is_new=False)]


# ---------------------------------------------------------------- renewing and ending


def test_a_renewal_counts_from_its_answer(table: LeaseTable):
    """The granter's half of I4."""
    assert table.step(at(999), renew()) == [Granted(lease(until=1_999), is_new=False)]


def test_a_lease_ends_at_its_end_and_not_before(table: LeaseTable):
    """I5, to the millisecond."""
    assert table.step(at(999), Tick()) == []
    assert table.step(at(1_000), Tick()) == [Ended(lease(), expired=True)]


def test_a_lease_ends_before_the_event_that_comes_after_its_end(table: LeaseTable):
    """No event meets a lease past its end, though nobody ticked."""
    effects = table.step(at(1_000), acquire("b"))
    assert effects == [Ended(lease(), expired=True), Granted(lease("b", epoch=2, until=2_000), is_new=True)]


def test_leases_end_in_the_order_of_their_ends(table: LeaseTable):
    """The earlier end is told first, though the later lease was granted first."""
    table.step(at(100), acquire("b", resource="s"))
    table.step(at(200), renew())
    ended = table.step(at(5_000), Tick())
    assert [effect.lease.resource for effect in ended if isinstance(effect, Ended)] == ["s", "r"]


def test_a_renewal_after_the_end_is_refused(table: LeaseTable):
    """Silence ended it; the holder must acquire anew."""
    effects = table.step(at(1_000), renew())
    assert effects == [Ended(lease(), expired=True), Refused("r", "a", Reason.NOT_HELD, None)]


def test_a_released_resource_is_free_at_once(table: LeaseTable):
    """And its next grant has a greater epoch (I2)."""
    assert table.step(at(1), release()) == [Ended(lease(), expired=False)]
    assert table.step(at(1), acquire("b")) == [Granted(lease("b", epoch=2, until=1_001), is_new=True)]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (renew("b"), Reason.HELD),
        (renew("a", 2), Reason.STALE_INCARNATION),
        (renew(epoch=2), Reason.STALE_EPOCH),
        (release("b"), Reason.HELD),
        (release("a", 2), Reason.STALE_INCARNATION),
        (release(epoch=0), Reason.STALE_EPOCH),
    ],
)
def test_only_the_very_holder_renews_or_releases(table: LeaseTable, event: Renew | Release, reason: Reason):
    """Holder, life and epoch must all be the lease's; whatever else comes changes nothing."""
    assert table.step(at(1), event) == [Refused("r", event.holder, reason, lease())]
    assert table.leases() == (lease(),)


# ---------------------------------------------------------------- I3: older lives and epochs


def test_a_newer_life_takes_over_at_once(table: LeaseTable):
    """The older life is gone, since its successor speaks."""
    effects = table.step(at(1), acquire("a", 2))
    assert effects == [Ended(lease(), expired=False), Granted(lease("a", 2, epoch=2, until=1_001), is_new=True)]


@pytest.mark.parametrize("event", [acquire(), renew(epoch=2), release(epoch=2)])
def test_what_an_older_life_left_in_flight_changes_nothing(table: LeaseTable, event: Acquire | Renew | Release):
    """I3, while the newer life holds the resource."""
    table.step(at(1), acquire("a", 2))
    current = lease("a", 2, epoch=2, until=1_001)
    assert table.step(at(2), event) == [Refused("r", "a", Reason.STALE_INCARNATION, current)]


def test_an_older_life_gets_nothing_after_the_newer_one_released(table: LeaseTable):
    """I3 outlives the lease: a late Acquire of a dead life must not block the resource for a ttl."""
    table.step(at(1), acquire("a", 2))
    table.step(at(2), release("a", 2, epoch=2))
    assert table.step(at(3), acquire("a", 1)) == [Refused("r", "a", Reason.STALE_INCARNATION, None)]


def test_an_older_life_can_not_renew_once_the_newer_one_was_heard_of_elsewhere(table: LeaseTable):
    """I3 is about the holder, not about one resource."""
    table.step(at(1), acquire("a", 2, resource="s"))
    assert table.step(at(2), renew("a", 1)) == [Refused("r", "a", Reason.STALE_INCARNATION, lease())]


# ---------------------------------------------------------------- I6: giving up


def test_asking_again_after_giving_up_gives_a_new_epoch(table: LeaseTable):
    """I6: the Release is late or lost, and the same epoch must not come back."""
    effects = table.step(at(1), acquire(given_up=1))
    assert effects == [Ended(lease(), expired=False), Granted(lease(epoch=2, until=1_001), is_new=True)]


def test_a_release_that_arrives_after_the_next_acquire_ends_nothing(table: LeaseTable):
    """I6: the scenario that makes the rule, a Release overtaken by the Acquire that followed it."""
    table.step(at(1), acquire(given_up=1))
    current = lease(epoch=2, until=1_001)
    assert table.step(at(2), release(epoch=1)) == [Refused("r", "a", Reason.STALE_EPOCH, current)]


def test_a_late_acquire_from_before_the_giving_up_does_no_harm(table: LeaseTable):
    """It renews the newer lease of the same life, and the epoch stays."""
    table.step(at(1), acquire(given_up=1))
    assert table.step(at(2), acquire()) == [Granted(lease(epoch=2, until=1_002), is_new=False)]


# ---------------------------------------------------------------- the table: stalls, deadlines, questions


def test_a_stalled_granter_gives_everybody_the_time_it_lost(table: LeaseTable):
    """I5: silence that the granter caused itself convicts nobody."""
    assert table.step(at(4_000), Stalled(3_500)) == []
    assert table.next_deadline() == 4_500
    assert table.step(at(4_000), renew()) == [Granted(lease(until=5_000), is_new=False)]


def test_the_next_deadline_is_the_earliest_end_of_what_is_still_held(table: LeaseTable):
    """Neither a renewed nor a released lease leaves its old deadline behind."""
    table.step(at(100), acquire("b", resource="s"))
    table.step(at(200), renew())
    assert table.next_deadline() == 1_100
    table.step(at(200), release("b", resource="s"))
    assert table.next_deadline() == 1_200
    table.step(at(200), release())
    assert table.next_deadline() is None


def test_validity_is_of_one_life_and_ends_with_the_lease(table: LeaseTable):
    """Even when nobody ticked."""
    assert table.is_valid(at(999), "r", Incarnation(1))
    assert not table.is_valid(at(1_000), "r", Incarnation(1))
    assert not table.is_valid(at(0), "r", Incarnation(2))
    assert not table.is_valid(at(0), "s", Incarnation(1))


def test_an_epoch_stays_current_until_the_next_grant(table: LeaseTable):
    """The fence outlives the lease: the last holder may finish until somebody else is there."""
    table.step(at(1), release())
    assert table.is_current("r", Epoch(1))
    table.step(at(2), acquire("b"))
    assert not table.is_current("r", Epoch(1))
    assert table.is_current("r", Epoch(2))
    assert not table.is_current("s", Epoch(1))


def test_leases_come_in_the_order_of_their_resources(table: LeaseTable):
    """Whatever the order of grants, so that effects made from them are deterministic."""
    table.step(at(0), acquire("b", resource="a"))
    assert table.leases() == (lease("b", resource="a"), lease())
    assert table.get("r") == lease()
    assert table.get("z") is None


# ---------------------------------------------------------------- the holder's side


def test_nothing_is_held_before_the_first_grant():
    """Neither an epoch nor an end."""
    held = HeldLease()
    assert not held.is_valid(at(0))
    assert (held.epoch, held.valid_until(), held.given_up) == (None, None, 0)


def test_a_grant_counts_from_the_question_less_the_margin():
    """The holder's half of I4."""
    held = HeldLease(drift_ppm=100_000)
    held.granted(at(50), Epoch(1), TTL_MS)
    assert held.valid_until() == 950
    assert held.is_valid(at(949))
    assert not held.is_valid(at(950))


def test_a_renewal_extends_what_is_held():
    """From its own question."""
    held = HeldLease(drift_ppm=0)
    held.granted(at(0), Epoch(1), TTL_MS)
    held.granted(at(400), Epoch(1), TTL_MS)
    assert (held.epoch, held.valid_until()) == (1, 1_400)


def test_a_late_answer_to_an_early_question_does_not_shorten_the_lease():
    """Answers may overtake each other."""
    held = HeldLease(drift_ppm=0)
    held.granted(at(500), Epoch(1), TTL_MS)
    held.granted(at(50), Epoch(1), TTL_MS)
    assert held.valid_until() == 1_500


def test_an_answer_from_before_the_last_grant_is_ignored():
    """An older epoch is over for certain."""
    held = HeldLease(drift_ppm=0)
    held.granted(at(500), Epoch(2), TTL_MS)
    held.granted(at(900), Epoch(1), TTL_MS)
    assert (held.epoch, held.valid_until()) == (2, 1_500)


def test_a_newer_grant_replaces_the_older_even_if_it_ends_earlier():
    """The older lease is over, so its later end is worth nothing."""
    held = HeldLease(drift_ppm=0)
    held.granted(at(500), Epoch(1), TTL_MS)
    held.granted(at(50), Epoch(2), TTL_MS)
    assert (held.epoch, held.valid_until()) == (2, 1_050)


def test_a_late_renewal_does_not_bring_back_what_was_given_up():
    """I6: the holder released, and the answer to an earlier renewal comes after that."""
    held = HeldLease()
    held.granted(at(0), Epoch(3), TTL_MS)
    held.lost()
    held.granted(at(5), Epoch(3), TTL_MS)
    assert not held.is_valid(at(6))
    assert (held.epoch, held.given_up) == (None, 3)


def test_losing_nothing_gives_up_nothing():
    """A refusal that meets no lease leaves the newest given-up epoch as it is."""
    held = HeldLease()
    held.granted(at(0), Epoch(3), TTL_MS)
    held.lost()
    held.lost()
    assert held.given_up == 3


@given(
    drifts_ppm=st.tuples(*[st.integers(-50_000, 50_000)] * 2),
    delays_ms=st.tuples(*[st.integers(0, 3_000)] * 3),
    start_ms=st.integers(0, 1_000_000_000),
)
def test_the_holder_stops_before_the_granter_whatever_the_delays_and_the_drift(
    drifts_ppm: tuple[int, int], delays_ms: tuple[int, int, int], start_ms: int
):
    """I4 on two real clocks that drift apart by up to a tenth, long after boot."""
    granters, holders = (SimClock(drift_ppm=drift_ppm) for drift_ppm in drifts_ppm)
    table, held = LeaseTable(), HeldLease()

    def pass_time(ms: int) -> None:
        granters.advance(ms)
        holders.advance(ms)

    pass_time(start_ms)
    asked_at = holders.monotonic()
    pass_time(delays_ms[0])
    table.step(granters.monotonic(), acquire())
    pass_time(delays_ms[1])
    held.granted(asked_at, Epoch(1), TTL_MS)
    pass_time(delays_ms[2])
    if held.is_valid(holders.monotonic()):
        assert table.is_valid(granters.monotonic(), "r", Incarnation(1))


# ---------------------------------------------------------------- the dumb twin


class NaiveTable:
    """What the lease table means, by scanning lists. It forgets nothing and orders everything by sorting."""

    def __init__(self, first_epoch: int) -> None:
        self.first_epoch = first_epoch
        self.held: list[Lease] = []
        self.granted: list[tuple[str, int]] = []
        self.lives: list[tuple[str, int]] = []

    def step(self, now: int, event: Acquire | Renew | Release | Tick | Stalled) -> list[object]:
        if isinstance(event, Stalled):
            self.held = [replace(one, expires_at=Instant(one.expires_at + event.lag_ms)) for one in self.held]
            return []
        over = [one for one in self.held if one.expires_at <= now]
        self.held = [one for one in self.held if one.expires_at > now]
        over.sort(key=lambda one: (one.expires_at, one.resource))
        told: list[object] = [Ended(one, expired=True) for one in over]
        return told if isinstance(event, Tick) else told + self.answer(now, event)

    def answer(self, now: int, event: Acquire | Renew | Release) -> list[object]:
        current = next((one for one in self.held if one.resource == event.resource), None)
        is_old = any(who == event.holder and life > event.incarnation for who, life in self.lives)
        if isinstance(event, Acquire) and not is_old:
            self.lives.append((event.holder, event.incarnation))
        reason = self.reason(event, current, is_old=is_old)
        if reason is not None:
            return [Refused(event.resource, event.holder, reason, current)]
        if current is None:
            assert isinstance(event, Acquire)
            return [self.grant(now, event)]
        self.held.remove(current)
        if isinstance(event, Release):
            return [Ended(current, expired=False)]
        if isinstance(event, Acquire) and (event.incarnation != current.incarnation or event.given_up >= current.epoch):
            return [Ended(current, expired=False), self.grant(now, event)]
        ttl_ms = event.ttl_ms if isinstance(event, Acquire) else current.ttl_ms
        later = Instant(max(current.expires_at, now + ttl_ms))
        self.held.append(replace(current, ttl_ms=ttl_ms, expires_at=later))
        return [Granted(self.held[-1], is_new=False)]

    def reason(self, event: Acquire | Renew | Release, current: Lease | None, *, is_old: bool) -> Reason | None:
        if isinstance(event, Acquire):
            others = current is not None and current.holder != event.holder
            faults = [(is_old, Reason.STALE_INCARNATION), (others, Reason.HELD)]
        elif current is None:
            faults = [(True, Reason.NOT_HELD)]
        else:
            faults = [
                (current.holder != event.holder, Reason.HELD),
                (is_old or current.incarnation != event.incarnation, Reason.STALE_INCARNATION),
                (current.epoch != event.epoch, Reason.STALE_EPOCH),
            ]
        return next((reason for is_so, reason in faults if is_so), None)

    def grant(self, now: int, event: Acquire) -> Granted:
        epochs = [epoch for resource, epoch in self.granted if resource == event.resource]
        epoch = max(epochs, default=self.first_epoch) + 1
        self.granted.append((event.resource, epoch))
        until = Instant(now + event.ttl_ms)
        self.held.append(Lease(event.resource, event.holder, event.incarnation, Epoch(epoch), event.ttl_ms, until))
        return Granted(self.held[-1], is_new=True)


RESOURCES = st.sampled_from(["r", "s"])
HOLDERS = st.sampled_from(["a", "b"])
LIVES = st.integers(1, 3).map(Incarnation)
EPOCHS = st.integers(0, 8).map(Epoch)
TTLS = st.sampled_from([1, 10, 10, 25])


class LeaseTableAgainstTwin(RuleBasedStateMachine):
    """Every effect, lease and deadline equals the twin's, and the invariants hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.table = LeaseTable()
        self.twin = NaiveTable(0)

    @initialize(first_epoch=st.integers(0, 3))
    def begin(self, first_epoch: int) -> None:
        self.table = LeaseTable(first_epoch=Epoch(first_epoch))
        self.twin = NaiveTable(first_epoch)

    def both(self, event: Acquire | Renew | Release | Tick | Stalled) -> None:
        expected = self.twin.step(self.now, event)
        assert self.table.step(self.now, event) == expected

    @rule(resource=RESOURCES, holder=HOLDERS, incarnation=LIVES, ttl_ms=TTLS, given_up=EPOCHS)
    def acquire(self, resource: str, holder: str, incarnation: Incarnation, ttl_ms: int, given_up: Epoch) -> None:
        self.both(Acquire(resource, holder, incarnation, ttl_ms, given_up))

    @rule(resource=RESOURCES, holder=HOLDERS, incarnation=LIVES, epoch=EPOCHS, gives_back=st.booleans())
    def renew_or_release(
        self, resource: str, holder: str, incarnation: Incarnation, epoch: Epoch, *, gives_back: bool
    ) -> None:
        kind = Release if gives_back else Renew
        self.both(kind(resource, holder, incarnation, epoch))

    @rule(resource=RESOURCES, gives_back=st.booleans())
    def renew_or_release_what_is_held(self, resource: str, *, gives_back: bool) -> None:
        """Random fields seldom name a real lease."""
        current = self.table.get(resource)
        if current is not None:
            kind = Release if gives_back else Renew
            self.both(kind(resource, current.holder, current.incarnation, current.epoch))

    @rule(ms=st.integers(0, 12))
    def pass_time(self, ms: int) -> None:
        self.now = Instant(self.now + ms)

    @rule()
    def tick(self) -> None:
        self.both(Tick())

    @rule(lag_ms=st.integers(0, 30))
    def stall(self, lag_ms: int) -> None:
        self.now = Instant(self.now + lag_ms)
        self.both(Stalled(lag_ms))

    @invariant()
    def the_table_is_sound(self) -> None:
        self.table.check_invariants()

    @invariant()
    def the_table_says_what_the_twin_says(self) -> None:
        held = sorted(self.twin.held, key=lambda one: one.resource)
        assert list(self.table.leases()) == held
        assert self.table.next_deadline() == min((one.expires_at for one in held), default=None)
        for one in held:
            is_running = self.now < one.expires_at
            assert self.table.is_valid(self.now, one.resource, one.incarnation) == is_running
            assert self.table.is_current(one.resource, one.epoch)


TestLeaseTableAgainstTwin = LeaseTableAgainstTwin.TestCase
TestLeaseTableAgainstTwin.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
