"""The registry in this process's memory: for one process, for tests, for the simulator's shells.

The state and its rules are `base.core.registry`; this adds waiting. Nothing runs in the background: whatever ran out of
time ends at the next call, and a blocking read wakes itself for the next deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from base.clock import Clock
from base.core.registry import Entry, KeyChange, RegistryState, ServiceInstance, Stale
from base.errors import CasConflict, LimitExceeded, SessionLost
from base.ids import new_uuid
from base.registry.ports import View

__all__ = ["MemoryRegistry"]

VALUE_BYTES_MAX = 512 * 1024
NOTE_BYTES_MAX = 4 * 1024

T = TypeVar("T")


class MemoryRegistry:
    """Implements `Registry`. Use it from one event loop."""

    def __init__(self, clock: Clock, *, entries: list[Entry] | None = None, index: int = 0) -> None:
        self._clock = clock
        self._state = RegistryState(entries=entries, index=index)
        self._changed = asyncio.Event()
        # Keeps "plan, persist, apply" of one change whole while an adapter below awaits its disk.
        self._write_lock = asyncio.Lock()
        self._committing = False

    async def get(self, key: str) -> Entry | None:
        """See the port."""
        return self._now().get(key)

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        """See the port."""
        return await self._wait(lambda: View(*self._now().scan(prefix)), after, wait_ms)

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

    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes = b"") -> None:
        """See the port."""
        if len(note) > NOTE_BYTES_MAX:
            raise LimitExceeded(f"the note of {instance_id} is over {NOTE_BYTES_MAX} bytes", what="note_bytes")
        async with self._write_lock:
            if not self._now().heartbeat(self._clock.monotonic(), instance_id, incarnation, note):
                raise SessionLost(f"the registration of {instance_id} lapsed", instance=instance_id)
            self._wake()

    async def deregister(self, instance_id: str, incarnation: int) -> None:
        """See the port."""
        async with self._write_lock:
            if self._now().deregister(self._clock.monotonic(), instance_id, incarnation):
                self._wake()

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        """See the port."""
        return await self._wait(lambda: View(*self._now().services(service)), after, wait_ms)

    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        """See the port."""
        session = new_uuid()
        self._now().open_session(self._clock.monotonic(), session, name, ttl_ms)
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
        self._wake()
        ended_by = cancelled or failure
        if ended_by is not None:
            raise ended_by

    def _now(self) -> RegistryState:
        """The state as of now. While a change is being persisted nothing may end, or its plan would be void."""
        if not self._committing and self._state.expire(self._clock.monotonic()):
            self._wake()
        return self._state

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, read: Callable[[], View[T]], after: int, wait_ms: int) -> View[T]:
        give_up = self._clock.monotonic() + wait_ms
        while (view := read()).index == after:
            now = self._clock.monotonic()
            if now >= give_up:
                break
            next_deadline = self._state.next_deadline()
            wake_at = give_up if next_deadline is None else min(give_up, next_deadline)
            try:
                async with asyncio.timeout(max(wake_at - now, 1) / 1000):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return view
