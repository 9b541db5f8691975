"""Who is taken for live when a registry comes back that had nobody's heartbeats for too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from base.clock import SystemClock
from base.errors import StoreUnavailable
from base.registry import Registry, ServiceInstance, View, follow_services
from base.registry.memory import MemoryRegistry
from tests.support.wiped_registry import WipedRegistry

KEEP_MS = 200
TIMEOUT_S = 5.0


def instance(name: str) -> ServiceInstance:
    return ServiceInstance(id=name, service="im", url=f"http://{name}", incarnation=1)


@pytest.fixture
async def registry() -> WipedRegistry:
    made = WipedRegistry(SystemClock())
    for name in "ab":
        await made.register(instance(name), ttl_ms=60_000)
    return made


@asynccontextmanager
async def followed(registry: Registry) -> AsyncIterator[asyncio.Queue[str]]:
    """Whom to take for live, one letter an instance, after each look."""
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def follow() -> None:
        async for instances in follow_services(registry, "im", SystemClock(), keep_ms=KEEP_MS):
            seen.put_nowait("".join(one.id for one in instances))

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        yield seen
        following.cancel()


async def test_who_is_found_to_have_been_silent_after_an_outage_is_kept_until_it_registers_again(
    registry: WipedRegistry,
) -> None:
    """One after the other: the first view after the outage may still have everybody."""
    async with followed(registry) as seen:
        assert await seen.get() == "ab"
        registry.go_away()
        await asyncio.sleep(0.01)
        registry.come_back(is_empty=False)
        await registry.deregister("a", 1)
        assert await seen.get() == "ab"
        await registry.deregister("b", 1)
        assert await seen.get() == "ab"
        await registry.register(instance("b"), ttl_ms=60_000)
        assert await seen.get() == "ab"
        assert await seen.get() == "b", "nobody heard of it in all of the time"
        await registry.deregister("b", 1)
        assert await seen.get() == "", "the registry is believed again"


class _Unchanged(MemoryRegistry):
    """Fails at the second look, and answers the third at once that nothing has changed."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self._looks = 0

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        self._looks += 1
        if self._looks == 2:
            raise StoreUnavailable("away")
        return await super().services(service, after=after, wait_ms=0 if self._looks == 3 else wait_ms)


async def test_the_doubt_begins_with_a_view_that_tells_nothing_new() -> None:
    """As the silence of all is found out later."""
    unchanged = _Unchanged()
    for name in "ab":
        await unchanged.register(instance(name), ttl_ms=60_000)
    async with followed(unchanged) as seen:
        assert await seen.get() == "ab"
        assert await seen.get() == "ab"
        await unchanged.deregister("a", 1)
        assert await seen.get() == "ab"
        assert await seen.get() == "b"
