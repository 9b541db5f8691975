"""What a registry knows: keys with compare-and-set, live services, sessions and the locks they hold.

The state behind the memory and SQLite registries, in the terms of Consul, so that the three behave alike. Every change
takes the next **index**; an entry's index is that of its last change, which makes it both the token of compare-and-set
and, at the moment a lock is taken, its fencing token: indexes never repeat and never fall, over restarts too.

Changes of keys are made in two steps, `plan_*` and `apply`, so that an adapter can write a planned change to disk
before anybody sees it.

Invariants:
    I1  The index strictly increases with each change.
    I2  An entry is locked by at most one session, and that session is alive.
    I3  A registration or session that is not renewed for its TTL is gone at the next call.

Source: HashiCorp, Consul documentation, "Sessions and distributed locks"; "KV store".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from base.clock import Instant
from base.core import lease
from base.ids import Incarnation

__all__ = ["Entry", "KeyChange", "RegistryState", "ServiceInstance"]

_ANY_LIFE = Incarnation(0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value; `index` is its last change, `session` who holds it as a lock."""

    key: str
    value: bytes
    index: int
    session: str | None = None


class ServiceInstance(msgspec.Struct, frozen=True, kw_only=True):
    """A live process of a service. `note` is its latest report, replaced by each heartbeat."""

    id: str
    service: str
    url: str
    incarnation: int
    meta: dict[str, str] = {}
    note: bytes = b""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A planned change: the entry to store, or None to delete the key. Valid until any other change is applied."""

    key: str
    entry: Entry | None
    index: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The compare-and-set lost: `index` is the entry's current one, 0 when there is none."""

    index: int


class RegistryState:
    """The whole registry, in memory. Call `expire(now)` before each use."""

    def __init__(self, *, entries: list[Entry] | None = None, index: int = 0) -> None:
        """Go on from what an earlier life stored: its entries, whose locks are free now, and its newest index."""
        self._entries = {entry.key: replace(entry, session=None) for entry in entries or []}
        self._services: dict[str, ServiceInstance] = {}
        self._sessions: dict[str, str] = {}
        self._ttls = lease.LeaseTable()
        # What ran out of time while something else was stepped. It ends with the next `expire` and not at once, since
        # no index may move under a planned change.
        self._over: list[str] = []
        self.index = max([index, *(entry.index for entry in self._entries.values())])
        # The newest index of what is gone: a watcher of a prefix must see that something was deleted under it.
        self._deleted: dict[str, int] = {}
        self._services_changed: dict[str, int] = {}

    # ---------------------------------------------------------------- keys

    def get(self, key: str) -> Entry | None:
        """Return the entry, None when there is none."""
        return self._entries.get(key)

    def scan(self, prefix: str) -> tuple[int, tuple[Entry, ...]]:
        """Return the prefix's index (its newest change, deletions included) and its entries by key."""
        found = tuple(self._entries[key] for key in sorted(self._entries) if key.startswith(prefix))
        newest = max((entry.index for entry in found), default=0)
        gone = max((index for key, index in self._deleted.items() if key.startswith(prefix)), default=0)
        return max(newest, gone), found

    def plan_put(self, key: str, value: bytes, expect: int | None) -> KeyChange | Stale:
        """Plan to store the value, if the entry's index is `expect` (None: whatever it is, 0: no entry)."""
        current = self._entries.get(key)
        index = current.index if current else 0
        if expect is not None and expect != index:
            return Stale(index)
        return KeyChange(key, Entry(key, value, self.index + 1, current.session if current else None), self.index + 1)

    def plan_delete(self, key: str, expect: int | None) -> KeyChange | Stale | None:
        """Plan to remove the key; None when there is nothing to remove."""
        current = self._entries.get(key)
        if expect is not None and expect != (current.index if current else 0):
            return Stale(current.index if current else 0)
        return KeyChange(key, None, self.index + 1) if current else None

    def plan_acquire(self, key: str, session: str, value: bytes) -> KeyChange | None:
        """Plan to take the key as a lock; None when another session holds it (I2)."""
        current = self._entries.get(key)
        if current is not None and current.session not in (None, session):
            return None
        return KeyChange(key, Entry(key, value, self.index + 1, session), self.index + 1)

    def plan_release(self, key: str, session: str) -> KeyChange | None:
        """Plan to free the lock, keeping its value; None when the session does not hold it."""
        current = self._entries.get(key)
        if current is None or current.session != session:
            return None
        return KeyChange(key, replace(current, session=None, index=self.index + 1), self.index + 1)

    def apply(self, change: KeyChange) -> None:
        """Make a planned change visible."""
        assert change.index == self.index + 1, "a plan is applied before anything else changes (I1)"
        self.index = change.index
        if change.entry is None:
            del self._entries[change.key]
            self._deleted[change.key] = change.index
        else:
            self._entries[change.key] = change.entry
            self._deleted.pop(change.key, None)

    # ---------------------------------------------------------------- services

    def register(self, now: Instant, instance: ServiceInstance, ttl_ms: int) -> bool:
        """Add or replace a registration; False when a newer life of the same id was registered."""
        life = Incarnation(instance.incarnation)
        if not self._step(now, lease.Acquire(f"service/{instance.id}", instance.id, life, ttl_ms)):
            return False
        self._put_service(instance)
        return True

    def heartbeat(self, now: Instant, instance_id: str, incarnation: int, note: bytes) -> bool:
        """Renew this life's registration and replace its note; False when it lapsed or another life has it."""
        if not self._renew(now, f"service/{instance_id}", Incarnation(incarnation)):
            return False
        instance = self._services[instance_id]
        if note != instance.note:
            self._put_service(msgspec.structs.replace(instance, note=note))
        return True

    def deregister(self, now: Instant, instance_id: str, incarnation: int) -> bool:
        """Remove this life's registration; False when there is none."""
        return self._release(now, f"service/{instance_id}", Incarnation(incarnation))

    def services(self, service: str) -> tuple[int, tuple[ServiceInstance, ...]]:
        """Return the service's index and its live instances by id."""
        found = tuple(self._services[key] for key in sorted(self._services) if self._services[key].service == service)
        return self._services_changed.get(service, 0), found

    def service_of(self, instance_id: str) -> str:
        """Return the service of a live instance."""
        return self._services[instance_id].service

    # ---------------------------------------------------------------- sessions

    def open_session(self, now: Instant, session: str, name: str, ttl_ms: int) -> None:
        """Start a session under a fresh id that the caller drew."""
        assert session not in self._sessions
        self._sessions[session] = name
        self._step(now, lease.Acquire(f"session/{session}", session, _ANY_LIFE, ttl_ms))

    def renew_session(self, now: Instant, session: str) -> bool:
        """Keep the session alive; False when it ended."""
        return self._renew(now, f"session/{session}", _ANY_LIFE)

    def close_session(self, now: Instant, session: str) -> None:
        """End the session and free its locks. Closing an ended session is no error."""
        self._release(now, f"session/{session}", _ANY_LIFE)

    def is_session_alive(self, session: str) -> bool:
        """Return whether the session was opened and has not ended."""
        return session in self._sessions

    # ---------------------------------------------------------------- time

    def expire(self, now: Instant) -> bool:
        """End what was not renewed in time (I3); return whether anything ended."""
        self._step(now, lease.Tick())
        # A resource that was taken again since has not ended.
        over = [resource for resource in dict.fromkeys(self._over) if self._ttls.get(resource) is None]
        self._over = []
        for resource in over:
            self._end(resource)
        return bool(over)

    def next_deadline(self) -> Instant | None:
        """Return when the next registration or session ends if nobody renews it."""
        return self._ttls.next_deadline()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot of sizes."""
        return {
            "index": self.index,
            "keys": len(self._entries),
            "services": len(self._services),
            "sessions": len(self._sessions),
        }

    def check_invariants(self) -> None:
        """Assert I1 and I2 on one state, and of I3 that nothing lives without a TTL."""
        assert all(entry.index <= self.index for entry in self._entries.values()), "I1"
        held = [entry.session for entry in self._entries.values() if entry.session is not None]
        assert all(session in self._sessions for session in held), "I2"
        alive = {f"service/{service}" for service in self._services} | {f"session/{name}" for name in self._sessions}
        assert alive == {held.resource for held in self._ttls.leases()} | set(self._over), "I3"
        self._ttls.check_invariants()

    def _put_service(self, instance: ServiceInstance) -> None:
        self.index += 1
        before = self._services.get(instance.id)
        if before is not None:
            self._services_changed[before.service] = self.index  # a new life may serve something else
        self._services[instance.id] = instance
        self._services_changed[instance.service] = self.index

    def _step(self, now: Instant, event: lease.Event) -> bool:
        """Step the TTLs; return whether the event was granted."""
        effects = self._ttls.step(now, event)
        self._over.extend(effect.lease.resource for effect in effects if isinstance(effect, lease.Ended))
        return any(isinstance(effect, lease.Granted) for effect in effects)

    def _renew(self, now: Instant, resource: str, life: Incarnation) -> bool:
        held = self._ttls.get(resource)
        return held is not None and self._step(now, lease.Renew(held.resource, held.holder, life, held.epoch))

    def _release(self, now: Instant, resource: str, life: Incarnation) -> bool:
        held = self._ttls.get(resource)
        if held is None or held.incarnation != life:
            return False
        self._step(now, lease.Release(held.resource, held.holder, life, held.epoch))
        self.expire(now)
        return True

    def _end(self, resource: str) -> None:
        kind, _, name = resource.partition("/")
        if kind == "service":
            self.index += 1
            self._services_changed[self._services.pop(name).service] = self.index
        else:
            self._end_session(name)

    def _end_session(self, session: str) -> None:
        del self._sessions[session]
        for key in sorted(self._entries):
            entry = self._entries[key]
            if entry.session == session:
                self.index += 1
                self._entries[key] = replace(entry, session=None, index=self.index)
