"""The registry's state: examples by invariant, then a state machine against a twin that keeps lists and scans them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from base.clock import Instant
from base.core.registry import Entry, KeyChange, RegistryState, ServiceInstance, Stale

TTL_MS = 1_000


def at(ms: int) -> Instant:
    return Instant(ms)


def instance(name: str = "a-1", life: int = 1, *, service: str = "access", note: bytes = b"") -> ServiceInstance:
    return ServiceInstance(id=name, service=service, url=f"http://{name}", incarnation=life, note=note)


def applied(state: RegistryState, plan: KeyChange | Stale | None) -> int:
    """Apply a plan that must have worked; return its index."""
    assert isinstance(plan, KeyChange)
    state.apply(plan)
    return plan.index


def put(state: RegistryState, key: str, value: bytes = b"v", expect: int | None = None) -> int:
    return applied(state, state.plan_put(key, value, expect))


@pytest.fixture
def state() -> RegistryState:
    return RegistryState()


@pytest.fixture
def locked(state: RegistryState) -> RegistryState:
    """A state in which session `s` holds `k` as a lock, at index 1."""
    state.open_session(at(0), "s", "leader", TTL_MS)
    applied(state, state.plan_acquire("k", "s", b"mine"))
    return state


# ---------------------------------------------------------------- keys


def test_a_key_reads_as_it_was_put(state: RegistryState):
    """Its index is the change that stored it."""
    assert state.get("k") is None
    assert put(state, "k", b"one") == 1
    assert state.get("k") == Entry("k", b"one", 1)


def test_each_change_takes_the_next_index(state: RegistryState):
    """I1, over keys, deletions and services alike."""
    assert [put(state, "k"), put(state, "j"), put(state, "k")] == [1, 2, 3]
    assert applied(state, state.plan_delete("j", None)) == 4
    state.register(at(0), instance(), TTL_MS)
    assert state.index == 5


def test_compare_and_set_loses_to_whoever_was_first(state: RegistryState):
    """The loser learns the index that is there, 0 for none."""
    assert state.plan_put("k", b"", 3) == Stale(0)
    first = put(state, "k", expect=0)
    assert state.plan_put("k", b"", 0) == Stale(first)
    second = put(state, "k", expect=first)
    assert state.plan_delete("k", first) == Stale(second)
    applied(state, state.plan_delete("k", second))
    assert state.get("k") is None


def test_deleting_nothing_is_no_change(state: RegistryState):
    """Unless an entry was expected."""
    assert state.plan_delete("k", None) is None
    assert state.plan_delete("k", 0) is None
    assert state.plan_delete("k", 1) == Stale(0)


def test_a_plan_changes_nothing_until_it_is_applied(state: RegistryState):
    """What failed to reach the disk was never there."""
    plan = state.plan_put("k", b"", None)
    assert state.get("k") is None
    assert state.index == 0
    applied(state, plan)
    assert state.index == 1


def test_a_plan_is_void_once_anything_else_changed(state: RegistryState):
    """I1: two changes cannot share an index."""
    plan = state.plan_put("k", b"", None)
    put(state, "j")
    assert isinstance(plan, KeyChange)
    with pytest.raises(AssertionError):
        state.apply(plan)


def test_a_scan_returns_a_prefix_in_order_with_its_newest_change(state: RegistryState):
    """A change elsewhere does not move it."""
    put(state, "a/2")
    put(state, "a/1")
    put(state, "b/1")
    index, entries = state.scan("a/")
    assert (index, [entry.key for entry in entries]) == (2, ["a/1", "a/2"])
    assert state.scan("c/") == (0, ())


def test_a_deletion_moves_its_prefix_until_the_key_is_back(state: RegistryState):
    """A watcher must see that something went, though nothing is left to show it."""
    put(state, "a/1")
    applied(state, state.plan_delete("a/1", None))
    assert state.scan("a/") == (2, ())
    put(state, "a/1")
    assert state.scan("a/") == (3, (Entry("a/1", b"v", 3),))


def test_a_restarted_registry_goes_on_above_what_was_stored():
    """I1 over restarts; its locks are free, since their sessions ended with it."""
    state = RegistryState(entries=[Entry("k", b"v", 7, "s"), Entry("j", b"v", 3)])
    assert state.get("k") == Entry("k", b"v", 7)
    assert put(state, "j") == 8


# ---------------------------------------------------------------- services


def test_a_registered_service_is_listed_until_its_time_is_over(state: RegistryState):
    """I3, to the millisecond."""
    assert state.register(at(0), instance(), TTL_MS)
    assert state.next_deadline() == 1_000
    assert not state.expire(at(999))
    assert state.services("access") == (1, (instance(),))
    assert state.expire(at(1_000))
    assert state.services("access") == (2, ())
    assert state.services("status") == (0, ())


def test_a_heartbeat_renews_and_a_new_note_is_a_change(state: RegistryState):
    """The same note again is none: watchers need not wake."""
    state.register(at(0), instance(), TTL_MS)
    assert state.heartbeat(at(900), "a-1", 1, b"busy")
    assert state.heartbeat(at(950), "a-1", 1, b"busy")
    assert state.services("access") == (2, (instance(note=b"busy"),))
    assert not state.expire(at(1_900))


def test_a_heartbeat_without_a_registration_says_so(state: RegistryState):
    """It lapsed, or never was: register anew."""
    assert not state.heartbeat(at(0), "a-1", 1, b"")
    state.register(at(0), instance(), TTL_MS)
    state.expire(at(1_000))
    assert not state.heartbeat(at(1_000), "a-1", 1, b"")


def test_a_newer_life_replaces_the_older_one_for_good(state: RegistryState):
    """The older one's registration is refused, even after the newer one left."""
    state.register(at(0), instance(note=b"old"), TTL_MS)
    assert state.register(at(1), instance(life=2), TTL_MS)
    assert state.services("access") == (2, (instance(life=2),))
    assert not state.register(at(2), instance(), TTL_MS)
    assert not state.deregister(at(2), "a-1", 1)
    assert not state.heartbeat(at(2), "a-1", 1, b"from the past")
    assert state.deregister(at(3), "a-1", 2)
    assert not state.register(at(4), instance(), TTL_MS)


def test_a_newer_life_that_serves_something_else_leaves_its_old_service(state: RegistryState):
    """Both services change, so that whoever follows either one sees it."""
    state.register(at(0), instance(), TTL_MS)
    state.register(at(1), instance(life=2, service="status"), TTL_MS)
    state.expire(at(1))
    assert state.services("access") == (2, ())
    assert state.services("status") == (2, (instance(life=2, service="status"),))


def test_a_deregistered_service_is_gone_at_once(state: RegistryState):
    """Twice is no error."""
    state.register(at(0), instance(), TTL_MS)
    assert state.deregister(at(1), "a-1", 1)
    assert state.services("access") == (2, ())
    assert not state.deregister(at(1), "a-1", 1)


def test_services_come_in_the_order_of_their_ids(state: RegistryState):
    """Whatever the order of their registrations."""
    for name in ("a-2", "a-3", "a-1"):
        state.register(at(0), instance(name), TTL_MS)
    assert [one.id for one in state.services("access")[1]] == ["a-1", "a-2", "a-3"]


# ---------------------------------------------------------------- sessions and locks


def test_a_lock_has_one_holder(locked: RegistryState):
    """I2; its token is the entry's index."""
    locked.open_session(at(0), "t", "rival", TTL_MS)
    assert locked.get("k") == Entry("k", b"mine", 1, "s")
    assert locked.plan_acquire("k", "t", b"") is None
    assert locked.plan_release("k", "t") is None
    assert locked.plan_release("free", "t") is None


def test_a_released_lock_keeps_its_value_and_the_next_token_is_greater(locked: RegistryState):
    """The fencing token of the second holder beats the first one's."""
    applied(locked, locked.plan_release("k", "s"))
    assert locked.get("k") == Entry("k", b"mine", 2)
    locked.open_session(at(0), "t", "rival", TTL_MS)
    assert applied(locked, locked.plan_acquire("k", "t", b"")) == 3


def test_a_holder_may_acquire_again_with_a_new_value(locked: RegistryState):
    """And gets a new token."""
    assert applied(locked, locked.plan_acquire("k", "s", b"new")) == 2
    assert locked.get("k") == Entry("k", b"new", 2, "s")


def test_a_write_to_a_locked_key_does_not_free_it(locked: RegistryState):
    """Locks bind those who ask for them, as in Consul."""
    put(locked, "k", b"other")
    assert locked.get("k") == Entry("k", b"other", 2, "s")


def test_a_session_that_ends_frees_its_locks_and_only_those(locked: RegistryState):
    """I2 and I3: each freed lock is a change of its own."""
    locked.open_session(at(500), "t", "rival", TTL_MS)
    applied(locked, locked.plan_acquire("j", "s", b""))
    applied(locked, locked.plan_acquire("l", "t", b""))
    assert locked.expire(at(1_000))
    assert not locked.is_session_alive("s")
    assert locked.scan("") == (5, (Entry("j", b"", 4), Entry("k", b"mine", 5), Entry("l", b"", 3, "t")))


def test_a_renewed_session_lives_on(locked: RegistryState):
    """Until it is silent for its time."""
    assert locked.renew_session(at(999), "s")
    assert not locked.expire(at(1_998))
    assert locked.expire(at(1_999))
    assert not locked.renew_session(at(1_999), "s")


def test_a_closed_session_frees_its_locks_at_once(locked: RegistryState):
    """Closing it twice is no error."""
    locked.close_session(at(1), "s")
    locked.close_session(at(1), "s")
    assert locked.get("k") == Entry("k", b"mine", 2)
    assert locked.statistics() == {"index": 2, "keys": 1, "services": 0, "sessions": 0}


def test_a_session_is_opened_once(locked: RegistryState):
    """Its id is a fresh one."""
    with pytest.raises(AssertionError):
        locked.open_session(at(1), "s", "again", TTL_MS)


# ---------------------------------------------------------------- what ends between two looks at the clock


def test_what_runs_out_while_something_else_is_renewed_ends_with_the_next_call(locked: RegistryState):
    """I3: the clock moved between `expire` and the renewal, and a lock must not stay with a session that is gone."""
    locked.open_session(at(500), "t", "rival", TTL_MS)
    locked.register(at(500), instance(), TTL_MS)
    assert locked.renew_session(at(1_000), "t")
    assert locked.is_session_alive("s")
    assert locked.expire(at(1_000))
    assert not locked.is_session_alive("s")
    assert locked.get("k") == Entry("k", b"mine", 3)


@pytest.mark.parametrize("renews", [True, False])
def test_no_index_moves_under_a_plan_while_its_disk_is_slow(locked: RegistryState, *, renews: bool):
    """I1: sessions are renewed and opened meanwhile, and what runs out then ends after the plan was applied."""
    locked.open_session(at(500), "t", "rival", TTL_MS)
    plan = locked.plan_put("j", b"", None)
    if renews:
        locked.renew_session(at(1_000), "t")
    else:
        locked.open_session(at(1_000), "u", "third", TTL_MS)
    assert applied(locked, plan) == 2
    assert locked.expire(at(1_000))
    assert locked.get("k") == Entry("k", b"mine", 3)


def test_a_registration_that_ran_out_at_its_own_heartbeat_lapsed(state: RegistryState):
    """It is told so, and is gone with the next call."""
    state.register(at(0), instance(), TTL_MS)
    assert not state.heartbeat(at(1_000), "a-1", 1, b"late")
    assert state.expire(at(1_000))
    assert state.services("access") == (2, ())


def test_a_registration_renewed_by_registering_again_has_not_ended(state: RegistryState):
    """It ran out and was made anew in one call."""
    state.register(at(0), instance(), TTL_MS)
    assert state.register(at(1_000), instance(), TTL_MS)
    assert not state.expire(at(1_000))
    assert state.services("access")[1] == (instance(),)


def test_a_session_that_ran_out_at_its_own_closing_frees_its_locks(locked: RegistryState):
    """Whichever of the two ended it."""
    locked.close_session(at(1_000), "s")
    assert locked.get("k") == Entry("k", b"mine", 2)


# ---------------------------------------------------------------- the dumb twin


class NaiveRegistry:
    """What a registry means, in plain lists: every change is a line of history, every question reads all of it."""

    def __init__(self) -> None:
        self.index = 0
        self.entries: list[Entry] = []
        self.changes: list[tuple[str, int]] = []
        self.services: list[tuple[ServiceInstance, int]] = []
        self.ttls: list[tuple[str, int]] = []
        self.service_changes: list[tuple[str, int]] = []
        self.lives: list[tuple[str, int]] = []
        self.sessions: list[tuple[str, int]] = []

    def put(self, key: str, value: bytes, session: str | None) -> None:
        self.index += 1
        self.entries = [one for one in self.entries if one.key != key] + [Entry(key, value, self.index, session)]
        self.changes.append((key, self.index))

    def delete(self, key: str) -> None:
        self.index += 1
        self.entries = [one for one in self.entries if one.key != key]
        self.changes.append((key, self.index))

    def find(self, key: str) -> Entry | None:
        return next((one for one in self.entries if one.key == key), None)

    def register(self, now: int, instance: ServiceInstance, ttl_ms: int) -> bool:
        if any(name == instance.id and life > instance.incarnation for name, life in self.lives):
            return False
        self.lives.append((instance.id, instance.incarnation))
        self.ttls.append((instance.id, ttl_ms))
        until = now + ttl_ms
        current = next(((one, its_end) for one, its_end in self.services if one.id == instance.id), None)
        is_same_life = current is not None and current[0].incarnation == instance.incarnation
        self.put_service(instance, max(until, current[1]) if current and is_same_life else until)
        return True

    def heartbeat(self, now: int, name: str, life: int, note: bytes) -> bool:
        if not any(one.id == name and one.incarnation == life for one, _ in self.services):
            return False
        ttl_ms = [ttl_ms for one, ttl_ms in self.ttls if one == name][-1:]
        for one, until in [(one, until) for one, until in self.services if one.id == name]:
            renewed = max(until, now + ttl_ms[0])
            if one.note != note:
                self.put_service(msgspec.structs.replace(one, note=note), renewed)
            else:
                self.services = [kept for kept in self.services if kept[0].id != name] + [(one, renewed)]
            return True
        return False

    def put_service(self, instance: ServiceInstance, until: int) -> None:
        self.index += 1
        before = [one.service for one, _ in self.services if one.id == instance.id]
        self.services = [one for one in self.services if one[0].id != instance.id] + [(instance, until)]
        self.service_changes += [(service, self.index) for service in {*before, instance.service}]

    def deregister(self, name: str, life: int) -> bool:
        return any((one.id, one.incarnation) == (name, life) for one, _ in self.services) and self.drop_service(name)

    def drop_service(self, name: str) -> bool:
        gone = [one for one, _ in self.services if one.id == name]
        self.services = [one for one in self.services if one[0].id != name]
        for one in gone:
            self.index += 1
            self.service_changes.append((one.service, self.index))
        return bool(gone)

    def drop_session(self, name: str) -> None:
        self.sessions = [one for one in self.sessions if one[0] != name]
        for entry in sorted(self.entries, key=lambda one: one.key):
            if entry.session == name:
                self.put(entry.key, entry.value, None)

    def expire(self, now: int) -> bool:
        over = [(until, f"service/{one.id}") for one, until in self.services if until <= now]
        over += [(until, f"session/{name}") for name, until in self.sessions if until <= now]
        for _, resource in sorted(over):
            kind, _, name = resource.partition("/")
            if kind == "service":
                self.drop_service(name)
            else:
                self.drop_session(name)
        return bool(over)


KEYS = st.sampled_from(["a", "a/1", "a/2", "b"])
VALUES = st.sampled_from([b"", b"x", b"y"])
NAMES = st.sampled_from(["n-1", "n-2"])
SERVICES = st.sampled_from(["access", "status"])
SESSIONS = st.sampled_from(["s", "t", "u"])
TTLS = st.sampled_from([5, 10, 25])


class RegistryAgainstTwin(RuleBasedStateMachine):
    """Every answer and every index equals the twin's, and the invariants hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.state = RegistryState()
        self.twin = NaiveRegistry()
        self.highest = 0
        self.lapse = 0

    @initialize(indexes=st.lists(st.integers(1, 9), max_size=3, unique=True))
    def begin(self, indexes: list[int]) -> None:
        stored = [Entry(f"old/{index}", b"", index, "dead") for index in indexes]
        self.state = RegistryState(entries=stored)
        self.twin.entries = [replace(entry, session=None) for entry in stored]
        self.twin.changes = [(entry.key, entry.index) for entry in stored]
        self.twin.index = max(indexes, default=0)

    def expire(self) -> None:
        assert self.state.expire(self.now) == self.twin.expire(self.now)

    def plan_and_apply(self, plan: KeyChange | Stale | None, meanwhile: str) -> bool:
        """Apply a plan, perhaps after a session was renewed at a later time, as happens while a disk is slow."""
        if not isinstance(plan, KeyChange):
            return False
        self.now = Instant(self.now + self.lapse)
        its_end = next((until for name, until in self.twin.sessions if name == meanwhile), 0)
        assert self.state.renew_session(self.now, meanwhile) == (its_end > self.now)
        self.twin.sessions = [
            (name, max(until, self.now + 10) if name == meanwhile and until > self.now else until)
            for name, until in self.twin.sessions
        ]
        self.state.apply(plan)
        return True

    @rule(lapse=st.sampled_from([0, 0, 3, 12]))
    def make_the_disk_slow(self, lapse: int) -> None:
        self.lapse = lapse

    @rule(key=KEYS, value=VALUES, expect=st.sampled_from(["none", "any", "right", "wrong"]), meanwhile=SESSIONS)
    def put(self, key: str, value: bytes, expect: str, meanwhile: str) -> None:
        self.expire()
        current = self.twin.find(key)
        index = current.index if current else 0
        wanted = {"none": 0, "any": None, "right": index, "wrong": index + 1}[expect]
        plan = self.state.plan_put(key, value, wanted)
        assert isinstance(plan, Stale) == (wanted is not None and wanted != index)
        if self.plan_and_apply(plan, meanwhile):
            self.twin.put(key, value, current.session if current else None)
        else:
            assert plan == Stale(index)

    @rule(key=KEYS, is_right=st.booleans(), meanwhile=SESSIONS)
    def delete(self, key: str, meanwhile: str, *, is_right: bool) -> None:
        self.expire()
        current = self.twin.find(key)
        index = current.index if current else 0
        plan = self.state.plan_delete(key, None if is_right else index + 1)
        if self.plan_and_apply(plan, meanwhile):
            assert is_right
            self.twin.delete(key)
        else:
            assert plan == (None if is_right else Stale(index))

    @rule(key=KEYS, session=SESSIONS, value=VALUES, meanwhile=SESSIONS)
    def acquire(self, key: str, session: str, value: bytes, meanwhile: str) -> None:
        self.expire()
        if not self.state.is_session_alive(session):
            return
        current = self.twin.find(key)
        is_free = current is None or current.session in (None, session)
        assert self.plan_and_apply(self.state.plan_acquire(key, session, value), meanwhile) == is_free
        if is_free:
            self.twin.put(key, value, session)

    @rule(key=KEYS, session=SESSIONS, meanwhile=SESSIONS)
    def release(self, key: str, session: str, meanwhile: str) -> None:
        self.expire()
        current = self.twin.find(key)
        is_held = current is not None and current.session == session
        assert self.plan_and_apply(self.state.plan_release(key, session), meanwhile) == is_held
        if current is not None and is_held:
            self.twin.put(key, current.value, None)

    @rule(name=NAMES, service=SERVICES, life=st.integers(1, 3), ttl_ms=TTLS)
    def register(self, name: str, service: str, life: int, ttl_ms: int) -> None:
        self.expire()
        made = instance(name, life, service=service)
        assert self.state.register(self.now, made, ttl_ms) == self.twin.register(self.now, made, ttl_ms)

    @rule(name=NAMES, life=st.integers(1, 3), note=VALUES)
    def heartbeat(self, name: str, life: int, note: bytes) -> None:
        self.expire()
        assert self.state.heartbeat(self.now, name, life, note) == self.twin.heartbeat(self.now, name, life, note)

    @rule(name=NAMES, life=st.integers(1, 3))
    def deregister(self, name: str, life: int) -> None:
        self.expire()
        assert self.state.deregister(self.now, name, life) == self.twin.deregister(name, life)

    @rule(session=SESSIONS)
    def open_or_close_session(self, session: str) -> None:
        self.expire()
        if self.state.is_session_alive(session):
            self.state.close_session(self.now, session)
            self.twin.drop_session(session)
        else:
            self.state.open_session(self.now, session, "name", 10)
            self.twin.sessions.append((session, self.now + 10))

    @rule(ms=st.integers(0, 12))
    def pass_time(self, ms: int) -> None:
        self.now = Instant(self.now + ms)

    @invariant()
    def the_state_is_sound(self) -> None:
        self.state.check_invariants()
        assert self.state.index >= self.highest
        self.highest = self.state.index

    @invariant()
    def the_state_says_what_the_twin_says(self) -> None:
        self.expire()
        twin = self.twin
        assert self.state.index == twin.index
        for prefix in ("", "a", "a/", "b", "old/"):
            found = tuple(sorted((one for one in twin.entries if one.key.startswith(prefix)), key=lambda one: one.key))
            newest = max((index for key, index in twin.changes if key.startswith(prefix)), default=0)
            assert self.state.scan(prefix) == (newest, found)
        for service in ("access", "status"):
            live = tuple(sorted((one for one, _ in twin.services if one.service == service), key=lambda one: one.id))
            newest = max((index for name, index in twin.service_changes if name == service), default=0)
            assert self.state.services(service) == (newest, live)
        ends = [until for _, until in twin.services] + [until for _, until in twin.sessions]
        assert self.state.next_deadline() == min(ends, default=None)
        assert all(self.state.is_session_alive(name) == any(name == one for one, _ in twin.sessions) for name in "stu")


TestRegistryAgainstTwin = RegistryAgainstTwin.TestCase
TestRegistryAgainstTwin.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
