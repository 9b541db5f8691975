"""A registry that comes back without what it knew: who follows it, and how lives are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from base.clock import SystemClock
from base.ids import Incarnation
from base.node import Node, began_to_count, next_incarnation
from base.registry import ServiceInstance, follow_services
from bench.status_cluster import bench_site
from tests.support.wiped_registry import WipedRegistry

SETTLE_S = 5.0
KEEP_MS = 150


def instance(name: str) -> ServiceInstance:
    return ServiceInstance(id=name, service="access", url=f"http://{name}", incarnation=1)


@asynccontextmanager
async def followed(registry: WipedRegistry) -> AsyncIterator[asyncio.Queue[str]]:
    """What is taken for live, one letter an instance, as it changes."""
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def follow() -> None:
        async for instances in follow_services(registry, "access", SystemClock(), keep_ms=KEEP_MS):
            seen.put_nowait("".join(one.id for one in instances))

    following = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(SETTLE_S):
            yield seen
    finally:
        following.cancel()
        await asyncio.wait([following])


async def test_whom_a_registry_lost_is_kept_until_its_registration_would_be_over() -> None:
    """And who registers again is there as before."""
    registry = WipedRegistry(SystemClock())
    for name in "ab":
        await registry.register(instance(name), ttl_ms=60_000)
    async with followed(registry) as seen:
        assert await seen.get() == "ab"
        await registry.start_over()
        assert await seen.get() == "ab"
        await registry.register(instance("b"), ttl_ms=60_000)
        assert await seen.get() == "ab"
        assert await seen.get() == "b"
        await registry.register(instance("c"), ttl_ms=60_000)
        assert await seen.get() == "bc"
        await registry.deregister("b", 1)
        assert await seen.get() == "c", "the registry was there all the time"


async def test_a_count_begins_with_the_clock_and_goes_on_by_one() -> None:
    """Two starts of one name at a time get two numbers."""
    registry, clock = WipedRegistry(SystemClock()), SystemClock()
    before_s = clock.realtime() // 1000
    first = await next_incarnation(registry, "access-1", clock)
    assert first >= before_s
    assert began_to_count(first, clock.realtime())
    assert sorted(await asyncio.gather(*(next_incarnation(registry, "access-1", clock) for _ in range(3)))) == [
        first + 1,
        first + 2,
        first + 3,
    ]
    await registry.put("incarnation/access-2", b"41")
    assert await next_incarnation(registry, "access-2", clock) == 42
    assert not began_to_count(Incarnation(42), clock.realtime())


@pytest.mark.parametrize("life", [7, 9_000_000_000])
async def test_a_life_that_a_registry_lost_is_counted_again(life: int) -> None:
    """Whether it was counted from one or is far ahead of the clock: the next life is a later one."""
    registry = WipedRegistry(SystemClock())
    node = Node(bench_site(registry, "access-1", Incarnation(life)), "access", statistics=dict)
    await node.listen()
    try:
        await node.join()
        await registry.start_over()
        await node.heartbeat()
        assert [one.incarnation for one in (await registry.services("access")).items] == [life]
        assert await next_incarnation(registry, "access-1", SystemClock()) == life + 1
    finally:
        await node.close()
