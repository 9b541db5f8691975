"""A registry that can be out of reach, and come back without anything that it knew."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from base.clock import Clock
from base.core.registry import Entry, ServiceInstance
from base.errors import StoreUnavailable
from base.registry.memory import MemoryRegistry
from base.registry.ports import View

__all__ = ["WipedRegistry"]

T = TypeVar("T")


class _Index(int):
    """A view's index, with the registry that gave it."""

    given_by: MemoryRegistry


class WipedRegistry:
    """Implements `Registry`. While it `is_away` every call fails; `come_back` ends that, with or without its data."""

    def __init__(self, clock: Clock, inner: MemoryRegistry | None = None) -> None:
        """`inner`: what several of these have in common, each of which can be away for its own user alone."""
        self._clock = clock
        self._inner = inner or MemoryRegistry(clock)
        self._gone = asyncio.Event()

    @property
    def is_away(self) -> bool:
        return self._gone.is_set()

    def go_away(self) -> None:
        """Fail all calls from now on, also those that wait."""
        self._gone.set()

    def come_back(self, *, is_empty: bool, entries: list[Entry] | None = None) -> None:
        """Answer again. `is_empty`: what it knew is lost, all but `entries`, and it counts from the beginning."""
        if is_empty:
            self._inner = MemoryRegistry(self._clock, entries=entries)
        self._gone = asyncio.Event()

    async def start_over(self) -> None:
        """Lose everything at once: nobody sees more of it than a call that failed."""
        self.go_away()
        await asyncio.sleep(0.01)
        self.come_back(is_empty=True)

    async def get(self, key: str) -> Entry | None:
        return await self._answer(self._inner.get(key))

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        inner, known = self._inner, self._known(after)
        view = await self._answer(inner.scan(prefix, after=known, wait_ms=wait_ms))
        return View(self._told(view.index, after, inner), view.items)

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        return await self._answer(self._inner.put(key, value, expect=expect))

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        return await self._answer(self._inner.delete(key, expect=expect))

    async def register(self, instance: ServiceInstance, *, ttl_ms: int) -> None:
        await self._answer(self._inner.register(instance, ttl_ms=ttl_ms))

    async def heartbeat(self, instance_id: str, incarnation: int, note: bytes = b"") -> None:
        await self._answer(self._inner.heartbeat(instance_id, incarnation, note))

    async def deregister(self, instance_id: str, incarnation: int) -> None:
        await self._answer(self._inner.deregister(instance_id, incarnation))

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        inner, known = self._inner, self._known(after)
        view = await self._answer(inner.services(service, after=known, wait_ms=wait_ms))
        return View(self._told(view.index, after, inner), view.items)

    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        return await self._answer(self._inner.open_session(name, ttl_ms=ttl_ms))

    async def renew_session(self, session: str) -> None:
        await self._answer(self._inner.renew_session(session))

    async def close_session(self, session: str) -> None:
        await self._answer(self._inner.close_session(session))

    async def acquire(self, key: str, session: str, value: bytes) -> int | None:
        return await self._answer(self._inner.acquire(key, session, value))

    async def release(self, key: str, session: str) -> bool:
        return await self._answer(self._inner.release(key, session))

    async def close(self) -> None:
        await self._inner.close()

    def _known(self, after: int) -> int:
        """Nobody waits for news by an index that a former registry gave."""
        is_old = isinstance(after, _Index) and after.given_by is not self._inner
        return -1 if is_old else after

    def _told(self, index: int, after: int, inner: MemoryRegistry) -> int:
        """An index of a registry that started over is told as a smaller one, whatever it is."""
        if isinstance(after, _Index) and after.given_by is not inner:
            index = min(index, after - 1)
        told = _Index(index)
        told.given_by = inner
        return told

    async def _answer(self, asked: Coroutine[object, object, T]) -> T:
        if self.is_away:
            asked.close()  # what is asked while it is away does not reach it
            raise StoreUnavailable("the registry is away")
        answer, gone = asyncio.ensure_future(asked), asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise StoreUnavailable("the registry is away")
            return answer.result()
        finally:
            gone.cancel()
            if not answer.done():
                answer.cancel()
            await asyncio.wait([answer, gone])
            if not answer.cancelled():
                answer.exception()
