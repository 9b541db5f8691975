"""A leader that could not renew for a while: it leads again, as its session outlived that, or another one leads.

In both cases nobody is taken for gone who is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from base.clock import SystemClock
from base.ids import Incarnation
from base.registry.memory import MemoryRegistry
from base.registry.ports import Registry
from bench.status_cluster import bench_site
from status.config import StatusConfig
from status.core.migration import GONE_MS
from status.core.partitions import PartitionTable
from status.core.serving import LEADER_MS
from status.service import StatusNode
from status.table import TableFollower
from tests.support.wiped_registry import WipedRegistry

NAMES = ("status-1", "status-2", "status-3")
TIMEOUT_S = 20.0
AWAY_S = (GONE_MS + LEADER_MS) / 1000
"""Longer than a node may be silent, and than a leader leads without the registry."""


class Forgiving(WipedRegistry):
    """No session ends by an outage: as with Consul, which gives each its whole time again when it starts."""

    async def open_session(self, name: str, *, ttl_ms: int) -> str:
        return await super().open_session(name, ttl_ms=60_000 + ttl_ms)


@asynccontextmanager
async def cluster(registry_of: Callable[[str], Registry]) -> AsyncIterator[tuple[TableFollower, PartitionTable]]:
    """Three nodes that serve, each with its way to the registry, and one who follows the table, with its first one."""
    sites = [bench_site(registry_of(name), name, Incarnation(1)) for name in NAMES]
    nodes = [StatusNode(StatusConfig(bootstrap_nodes=3), site) for site in sites]
    table = TableFollower(bench_site(registry_of("client-1"), "client-1", Incarnation(1)))
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        for node in nodes:
            await node.start()
        running = [tasks.create_task(work) for work in (*(node.run() for node in nodes), table.run())]
        before = await table.wait_newer(0)
        while table.leader is None or table.is_vacant:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.05)
        yield table, before
        for task in running:
            task.cancel()
        for node in nodes:
            await node.stop()


async def test_a_leader_that_leads_again_takes_nobody_for_gone_whom_it_could_not_hear() -> None:
    """Reports are for a leader only: it has none of the time in which it was none, and waits for new ones."""
    registry = Forgiving(SystemClock())
    async with cluster(lambda _: registry) as (table, before):
        leader = table.leader
        registry.go_away()
        await asyncio.sleep(AWAY_S)
        registry.come_back(is_empty=False)
        await asyncio.sleep(GONE_MS / 1000)
        assert table.leader == leader
        assert table.table == before, "partitions were taken from nodes that are there"


async def test_a_leader_that_lost_only_the_registry_keeps_its_partitions() -> None:
    """Another node leads, and hears soon that it is there: without its lock it needs a lease, and asks everybody."""
    clock = SystemClock()
    inner = MemoryRegistry(clock)
    doors = {name: WipedRegistry(clock, inner) for name in (*NAMES, "client-1")}
    async with cluster(lambda name: doors[name]) as (table, before):
        leader = table.leader
        assert leader is not None
        doors[leader].go_away()
        while table.leader == leader:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.05)
        await asyncio.sleep(GONE_MS / 1000)
        assert table.table is not None
        assert table.table.counts() == before.counts(), "partitions were taken from a node that is there"
        doors[leader].come_back(is_empty=False)
