"""A status node and its clients in the benchmark's own process, over real peer streams on loopback.

One process, so that its CPU time is all that a change or lookup costs on both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from base.clock import SystemClock, Timestamp
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from status.api import Opened
from status.client import StatusClient, StatusPublisher
from status.config import StatusConfig
from status.service import StatusNode

__all__ = ["StatusBench", "opened", "status_bench"]


class StatusBench(msgspec.Struct, frozen=True):
    """The clients of one status node: who asks, and the access nodes that report."""

    client: StatusClient
    publishers: tuple[StatusPublisher, ...]

    @property
    def publisher(self) -> StatusPublisher:
        """The first access node's."""
        return self.publishers[0]


@asynccontextmanager
async def status_bench(*, access_nodes: int = 1) -> AsyncIterator[StatusBench]:
    """Run a status node with the publishers of so many access nodes and one lookup client until the block ends."""
    registry, clock = MemoryRegistry(SystemClock()), SystemClock()

    def site(name: str) -> Site:
        return Site(
            name=NodeId(name),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=registry,
            clock=clock,
            trust=Trust.of_key("bench"),
            credentials=Credentials({}),
            config=NodeConfig(),
        )

    node = StatusNode(StatusConfig(bootstrap_nodes=1), site("status-1"))
    publishers = tuple(StatusPublisher(site(f"access-{number}")) for number in range(1, access_nodes + 1))
    bench = StatusBench(StatusClient(site("client-1")), publishers)
    async with asyncio.TaskGroup() as tasks:
        await node.start()
        running = [tasks.create_task(node.run()), tasks.create_task(bench.client.run())]
        running += [tasks.create_task(publisher.run()) for publisher in publishers]
        await bench.client.wait_ready()
        for publisher in publishers:
            await publisher.wait_ready()
        try:
            yield bench
        finally:
            for task in running:
                task.cancel()
            await node.stop()


def opened(number: int) -> Opened:
    """A session as an access node reports it, with ids of the usual length."""
    since = Timestamp(1_700_000_000_000 + number)
    return Opened(f"user-{number:08d}", f"{number:032x}", number + 1, "phone", "ios", "online", since)
