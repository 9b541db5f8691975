"""A status node that is told to stop hands its partitions over, if there is somebody to hand them to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from base.clock import SystemClock
from base.ids import Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from bench.status_cluster import bench_site
from status.config import StatusConfig
from status.core.partitions import PartitionTable
from status.service import StatusNode
from status.table import TABLE_KEY, decode_table

NAMES = [NodeId("status-1"), NodeId("status-2")]
AT_ONCE_S = 0.5
SETTLE_S = 20.0


@asynccontextmanager
async def running(names: list[NodeId]) -> AsyncIterator[tuple[MemoryRegistry, list[StatusNode]]]:
    """Run status nodes, which own everything together, until the block ends."""
    registry = MemoryRegistry(SystemClock())
    config = StatusConfig(bootstrap_nodes=len(names))
    nodes = [StatusNode(config, bench_site(registry, name, Incarnation(1))) for name in names]
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            await node.start()
        running = [tasks.create_task(node.run()) for node in nodes]
        async with asyncio.timeout(SETTLE_S):
            while any(not node.statistics()["partitions"] for node in nodes):  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.02)
        yield registry, nodes
        for task in running:
            task.cancel()
    for node in nodes:
        await node.stop()


async def table_of(registry: MemoryRegistry) -> PartitionTable:
    entry = await registry.get(TABLE_KEY)
    assert entry is not None
    return decode_table(entry.value)


async def test_others_have_all_that_it_had_before_it_stops() -> None:
    """Each partition by a move, be it that the others were started just now and acknowledge nothing yet."""
    async with running(NAMES) as (registry, (first, _)):
        size = len((await table_of(registry)).owners)
        await asyncio.wait_for(first.drain(), SETTLE_S)
        table = await table_of(registry)
        assert (table.counts()[NAMES[1]], table.moves) == (size, ())
        assert set(table.wanted()) == set(NAMES), "it is wanted back"


async def test_all_that_stop_together_do_not_wait_for_each_other() -> None:
    """Nor does the only one."""
    for names in (NAMES, NAMES[:1]):
        async with running(names) as (_, nodes):
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for node in nodes:
                    tasks.create_task(node.drain())
            assert time.monotonic() - began < (SETTLE_S / 4 if len(names) > 1 else AT_ONCE_S)
