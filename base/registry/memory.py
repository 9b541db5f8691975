"""The registry in this process's memory: for one process, for tests, for the simulator's shells.

The state and its rules are `base.core.registry`; this adds waiting. Whatever ran out of time ends at the next call, or
by the one timer that runs while anybody waits. A change wakes those who wait for what it changed, and nobody else: a
heartbeat without news wakes no one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from base.clock import Clock, Instant
from base.core.registry import Entry, KeyChange, RegistryState, ServiceInstance, Stale
from base.errors import CasConflict, LimitExceeded, SessionLost
from base.ids import new_uuid
from base.registry.ports import View

__all__ = ["MemoryRegistry"]

VALUE_BYTES_MAX = 512 * 1024
NOTE_BYTES_MAX = 4 * 1024

T = TypeVar("T")

_Topic = tuple[Literal["scan", "services"], str]
"""What a blocking read waits for: a key prefix, or a service."""


class MemoryRegistry:
    """Implements `Registry`. Use it from one event loop."""

    def __init__(self, clock: Clock, *, entries: list[Entry] | None = None, index: int = 0) -> None:
        self._clock = clock
        self._state = RegistryState(entries=entries, index=index)
        self._waiting: dict[_Topic, asyncio.Event] = {}
        self._expiring: asyncio.TimerHandle | None = None
        self._expires_at = Instant(0)
        # Keeps "plan, persist, apply" of one change whole while an adapter below awaits its disk.
        self._write_lock = asyncio.Lock()
        self._committing = False

    async def get(self, key: str) -> Entry | None:
        """See the port."""
        return self._now().get(key)

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        """See the port."""
        return await self._wait(("scan", prefix), lambda: View(*self._now().scan(prefix)), after, wait_ms)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """See the port."""
        if len(value) > VALUE_BYTES_MAX:
            raise LimitExceeded(f"the value of {key} is over {VALUE_BYTES_MAX} bytes", what="value_bytes")
        async with self._write_lock:
            plan = self._now().plan_put(key, value, expect)
            if isinstance(plan, Stale):
                raise CasConflict(f"{key} was changed by somebody else", index=plan.index)
            await self._commit(plan)
            return plan.index

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        """See the port."""
        async with self._write_lock:
            plan = self._now().plan_delete(key, expect)
            if isinstance(plan, Stale):
                raise CasConflict(f"{key} was changed by somebody else", index=plan.index)
            if plan is not None:
                await self._commit(plan)
            return plan is not None

    async def register(self, instance: ServiceInstance, *, ttl_ms: int) -> None:
        """See the port."""
        async with self._write_lock:
            if not self._now().register(self._clock.monotonic(), instance, ttl_ms):
                raise SessionLost(f"a newer life of {instance.id} is registered", instance=instance.id)
            self._wake()
            self._expire_in_time()

    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes = b"") -> None:
        """See the port."""
        if len(note) > NOTE_BYTES_MAX:
            raise LimitExceeded(f"the note of {instance_id} is over {NOTE_BYTES_MAX} bytes", what="note_bytes")
        async with self._write_lock:
            state = self._now()
            index = state.index
            if not state.heartbeat(self._clock.monotonic(), instance_id, incarnation, note):
                raise SessionLost(f"the registration of {instance_id} lapsed", instance=instance_id)
            if state.index != index:
                self._wake([("services", state.service_of(instance_id))])

    async def deregister(self, instance_id: str, incarnation: int) -> None:
        """See the port."""
        async with self._write_lock:
            if self._now().deregister(self._clock.monotonic(), instance_id, incarnation):
                self._wake()

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        """See the port."""
        return await self._wait(("services", service), lambda: View(*self._now().services(service)), after, wait_ms)

    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        """See the port."""
        session = new_uuid()
        self._now().open_session(self._clock.monotonic(), session, name, ttl_ms)
        self._expire_in_time()
        return session

    async def renew_session(self, session: str) -> None:
        """See the port."""
        if not self._now().renew_session(self._clock.monotonic(), session):
            raise SessionLost(f"session {session} ended", session=session)

    async def close_session(self, session: str) -> None:
        """See the port."""
        async with self._write_lock:
            self._now().close_session(self._clock.monotonic(), session)
            self._wake()

    async def acquire(self, key: str, session: str, value: bytes) -> int | None:
        """See the port."""
        async with self._write_lock:
            state = self._now()
            if not state.is_session_alive(session):
                raise SessionLost(f"session {session} ended", session=session)
            plan = state.plan_acquire(key, session, value)
            if plan is not None:
                await self._commit(plan)
            return plan.index if plan is not None else None

    async def release(self, key: str, session: str) -> bool:
        """See the port."""
        async with self._write_lock:
            plan = self._now().plan_release(key, session)
            if plan is not None:
                await self._commit(plan)
            return plan is not None

    async def close(self) -> None:
        """See the port; memory needs none."""

    def _persist(self, change: KeyChange) -> asyncio.Future[None] | None:
        """Begin to make a change durable, before it is seen. An adapter with a disk overrides this."""

    async def _commit(self, change: KeyChange) -> None:
        """Persist and apply, both or neither: a caller that is cancelled meanwhile learns it afterwards."""
        self._committing = True
        cancelled: asyncio.CancelledError | None = None
        try:
            persisted = self._persist(change)
            while persisted is not None and not persisted.done():
                try:
                    await asyncio.wait([persisted])
                except asyncio.CancelledError as error:
                    cancelled = error
            failure = persisted.exception() if persisted is not None else None
            if failure is None:
                self._state.apply(change)
        finally:
            self._committing = False
        self._wake([topic for topic in self._waiting if topic[0] == "scan" and change.key.startswith(topic[1])])
        ended_by = cancelled or failure
        if ended_by is not None:
            raise ended_by

    def _now(self) -> RegistryState:
        """The state as of now. While a change is being persisted nothing may end, or its plan would be void."""
        if not self._committing and self._state.expire(self._clock.monotonic()):
            self._wake()
        return self._state

    def _wake(self, topics: Iterable[_Topic] | None = None) -> None:
        """Let those who wait for these topics look again; None is everybody."""
        for topic in tuple(self._waiting) if topics is None else topics:
            event = self._waiting.pop(topic, None)
            if event is not None:
                event.set()

    def _expire_in_time(self) -> None:
        """See to it that whatever ends first ends on time while somebody waits."""
        deadline = self._state.next_deadline()
        if deadline is None or not self._waiting or (self._expiring is not None and deadline >= self._expires_at):
            return
        if self._expiring is not None:
            self._expiring.cancel()
        self._expires_at = deadline
        wait_ms = max(1, deadline - self._clock.monotonic())
        self._expiring = asyncio.get_running_loop().call_later(wait_ms / 1000, self._expire)

    def _expire(self) -> None:
        self._expiring = None
        self._now()
        self._expire_in_time()

    async def _wait(self, topic: _Topic, read: Callable[[], View[T]], after: int, wait_ms: int) -> View[T]:
        give_up = self._clock.monotonic() + wait_ms
        while (view := read()).index == after:
            left_ms = give_up - self._clock.monotonic()
            if left_ms <= 0:
                break
            event = self._waiting.setdefault(topic, asyncio.Event())
            self._expire_in_time()
            try:
                async with asyncio.timeout(left_ms / 1000):
                    await event.wait()
            except TimeoutError:
                continue
        return view
