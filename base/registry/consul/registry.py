"""The registry port on Consul. Layout of keys: `codec`; what ends with its process: `lives`.

Every write is a transaction, whose answer has the new index. One whose answer was lost, and which the HTTP client sent
again, is told from somebody else's by its mark, so that a conflict always means that another one was first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from base.clock import Clock
from base.core.registry import Entry, ServiceInstance
from base.errors import CasConflict, LimitExceeded, SessionLost, StoreUnavailable
from base.log import logger
from base.registry.config import RegistryConfig
from base.registry.consul.client import IN_TRANSACTION_MAX, ConsulClient, Item, KeyWrite, Refused, Seen, bounded
from base.registry.consul.codec import Keys, ViewIndex, decode_instance, entry_of, told_index
from base.registry.consul.lives import Life, Lives
from base.registry.consul.metrics import ConsulMetrics
from base.registry.consul.registrations import Registrations
from base.registry.memory import NOTE_BYTES_MAX, VALUE_BYTES_MAX
from base.registry.ports import View

__all__ = ["ConsulRegistry"]

WAITING_MAX = 32
POLL_MS = 1_000
WAIT_MS_MAX = 60_000
TRIES = 5
"""Of what others can make fail again and again; each time one of them was served."""


@dataclass(slots=True)
class _Session:
    """A session of this process, and what it may hold."""

    life: Life
    keys: set[str] = field(default_factory=set)


class ConsulRegistry:
    """Implements `Registry`, over the Consul agent of this machine.

    How long things last here: a registration or session ends when its TTL is over, to some milliseconds, if its process
    died (up to 3 s later in the first seconds of a Consul server, when agents tell of no check), and within 20 s, or
    twice its TTL where that is longer, if the agent died too (a session as soon as the agents see that, which takes
    them seconds). A lock whose session *ended*, whatever ended it, can be taken after another TTL of that session; one
    that was released, or whose session was closed, can be taken at once.
    """

    def __init__(
        self, config: RegistryConfig, clock: Clock, *, node: str, waiting_max: int = WAITING_MAX, poll_ms: int = POLL_MS
    ) -> None:
        """Nothing is opened yet. Raises ConfigError when files that the configuration names cannot be used.

        Args:
            config: where Consul is, and what to ask with.
            clock: to renew and look again by.
            node: who asks, for the log and for people who look at Consul.
            waiting_max: how many reads may wait in Consul at once. An agent takes 200 connections from one machine.
            poll_ms: how often the reads beyond that look (ms).
        """
        self._keys = Keys(config.prefix)
        self._log = logger(node=node)
        self._client = ConsulClient(config, clock, node=node, waiting_max=waiting_max)
        self._lives = Lives(self._client, clock, self._log)
        self._registrations = Registrations(self._client, self._lives, self._keys)
        self._waiting_max = waiting_max
        self._poll_ms = poll_ms
        self._waiting = 0
        self._sessions: dict[str, _Session] = {}

    def count_in(self, metrics: ConsulMetrics) -> None:
        """Count each request from now on."""
        self._client.metrics = metrics

    async def close(self) -> None:
        """See the port. What was registered and not taken back ends with its TTL."""
        await self._client.close()

    # ---------------------------------------------------------------- keys

    async def get(self, key: str) -> Entry | None:
        """See the port."""
        item = await self._client.get(self._keys.full(key))
        return entry_of(item, key) if item is not None else None

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        """See the port. While there is nothing under the prefix, its index is that of all keys."""
        index, items = await self._read(self._keys.full(prefix), after, wait_ms)
        ours = [item for item in items if self._keys.is_ours(item["Key"])]
        return View(index, tuple(entry_of(item, self._keys.short(item["Key"])) for item in ours), index.seen)

    @bounded
    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """See the port."""
        if len(value) > VALUE_BYTES_MAX:
            raise LimitExceeded(f"the value of {key} is over {VALUE_BYTES_MAX} bytes", what="value_bytes")
        full, reasons = self._keys.full(key), ""
        for _ in range(TRIES):
            verb = "set" if expect is None else "cas"
            write = KeyWrite(verb=verb, key=full, value=value, mark=self._client.mark(), index=expect)
            if len(value) > IN_TRANSACTION_MAX:
                return await self._put_long(write)
            done = await self._client.transact(write)
            if not isinstance(done, Refused):
                return done[0]
            reasons = done.reasons
            entry = await self._client.get(full)
            if entry is not None and entry["Flags"] == write.mark:
                return int(entry["ModifyIndex"])
            present = entry["ModifyIndex"] if entry is not None else 0
            if expect not in {None, present}:
                raise CasConflict(f"{key} was changed by somebody else", index=present)
        raise StoreUnavailable(f"{key} is not written: {reasons}")

    @bounded
    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """See the port."""
        full = self._keys.full(key)
        for _ in range(TRIES):
            item = await self._client.get(full)
            present = item["ModifyIndex"] if item is not None else 0
            if expect not in {None, present}:
                raise CasConflict(f"{key} was changed by somebody else", index=present)
            if item is None:
                return False
            # A second one, sent since the answer to the first was lost, finds nothing, which is no failure.
            done = await self._client.transact(KeyWrite(verb="delete-cas", key=full, index=present))
            if not isinstance(done, Refused):
                return True
        raise StoreUnavailable(f"{key} is not deleted: it changes all the time")

    # ---------------------------------------------------------------- services

    async def register(self, instance: ServiceInstance, *, ttl_ms: int) -> None:
        """See the port. Others find it in Consul too, as a service `PREFIX-SERVICE` with a TTL check."""
        await self._registrations.register(instance, ttl_ms)

    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes = b"") -> None:
        """See the port. A note is written when it changed."""
        if len(note) > NOTE_BYTES_MAX:
            raise LimitExceeded(f"the note of {instance_id} is over {NOTE_BYTES_MAX} bytes", what="note_bytes")
        await self._registrations.heartbeat(instance_id, incarnation, note)

    async def deregister(self, instance_id: str, incarnation: int) -> None:
        """See the port."""
        await self._registrations.deregister(instance_id, incarnation)

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        """See the port."""
        index, items = await self._read(self._keys.instances(service), after, wait_ms)
        found = [(item["Key"], decode_instance(item["Value"])) for item in items]
        for key in [key for key, instance in found if instance is None]:
            self._log.warning("consul_key_not_ours", key=key)
        return View(index, tuple(instance for _, instance in found if instance is not None), index.seen)

    # ---------------------------------------------------------------- sessions and locks

    @bounded
    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        """See the port.

        Consul ends a session before its time when its agent leaves or is replaced, or an operator says so. The holder
        of a lock relies on having it until its TTL is over, counted from its last asking: so what such a session held
        can be taken only after another TTL (Consul's lock-delay).
        """
        life = await self._lives.begin(
            self._keys.consul_name("session"),
            self._keys.consul_name(f"session-{name}"),
            ttl_ms=ttl_ms,
            behavior="release",
            lock_delay_ms=ttl_ms,
            ends_with_machine=True,
        )
        self._sessions[life.session] = _Session(life)
        return life.session

    async def renew_session(self, session: str) -> None:
        """See the port."""
        try:
            await self._lives.renew(self._session(session).life)
        except SessionLost:
            self._sessions.pop(session, None)
            raise

    @bounded
    async def close_session(self, session: str) -> None:
        """See the port. What it holds is released first: then nobody has to wait for it."""
        mine = self._sessions.pop(session, None)
        if mine is None:
            return
        for key in sorted(mine.keys):
            await self.release(key, session)
        await self._lives.end(mine.life)

    @bounded
    async def acquire(self, key: str, session: str, value: bytes) -> int | None:
        """See the port. Nobody gets a lock whose holder's session ended, for the TTL of that session."""
        if len(value) > IN_TRANSACTION_MAX:
            raise LimitExceeded(f"the value of {key} is over {IN_TRANSACTION_MAX} bytes", what="value_bytes")
        full, mine = self._keys.full(key), self._session(session)
        # Most who ask do not get it: looking first spares Consul's log their vain writes.
        item = await self._client.get(full)
        if item is None or item.get("Session") in {None, session}:
            mine.keys.add(key)
            done = await self._client.transact(self._client.lock(full, session, value))
            if not isinstance(done, Refused):
                return done[0]
        if not await self._client.is_alive(session):
            raise SessionLost(f"session {session} ended", session=session)
        return None

    @bounded
    async def release(self, key: str, session: str) -> bool:
        """See the port."""
        full = self._keys.full(key)
        for _ in range(TRIES):
            item = await self._client.get(full)
            if item is None or item.get("Session") != session:
                return False
            index, value = item["ModifyIndex"], item["Value"] or b""
            done = await self._client.transact(
                KeyWrite(verb="check-index", key=full, index=index),
                KeyWrite(verb="unlock", key=full, value=value, mark=self._client.mark(), session=session),
            )
            if not isinstance(done, Refused):
                return True
        raise StoreUnavailable(f"{key} is not released: it changes all the time")

    def _session(self, session: str) -> _Session:
        mine = self._sessions.get(session)
        if mine is None:
            raise SessionLost(f"session {session} ended", session=session)
        return mine

    # ---------------------------------------------------------------- how

    async def _put_long(self, write: KeyWrite) -> int:
        is_written = await self._client.put(write)
        entry = await self._client.get(write.key)
        if entry is not None and entry["Flags"] == write.mark:
            return int(entry["ModifyIndex"])
        if is_written:
            raise StoreUnavailable(f"{write.key} was written, and again by somebody else")
        raise CasConflict(
            f"{write.key} was changed by somebody else", index=entry["ModifyIndex"] if entry is not None else 0
        )

    async def _read(self, prefix: str, after: int, wait_ms: int) -> tuple[ViewIndex, list[Item]]:
        """Read a prefix. What was known before an outage is read anew, since Consul may have started over."""
        life = self._client.life
        is_stale = isinstance(after, ViewIndex) and after.life is not life
        if wait_ms > 0 and after >= 0 and not is_stale:
            index = after.seen if isinstance(after, ViewIndex) else after
            seen = await self._wait(prefix, index, min(wait_ms, WAIT_MS_MAX))
        else:
            seen = await self._client.scan(prefix)
        told = told_index(seen.index, after, life)
        if after >= 0 and life is not self._client.life:
            # Others were not answered while this one waited: an outage that its reader has to know of, as they do.
            told = ViewIndex.of(min(seen.index, after - 1), seen.index, life)
        return told, sorted(seen.items, key=lambda item: str(item["Key"]))

    async def _wait(self, prefix: str, index: int, wait_ms: int) -> Seen:
        if self._waiting >= self._waiting_max:
            await asyncio.sleep(min(wait_ms, self._poll_ms) / 1000)
            return await self._client.scan(prefix)
        self._waiting += 1
        try:
            return await self._client.wait(prefix, index, wait_ms)
        finally:
            self._waiting -= 1
