"""A leader that could not renew for a while: it leads again, as its session outlived that, or another one leads.

In both cases nobody is taken for gone who is there. What it was about to do in its former term is over with that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from base.clock import SystemClock
from base.ids import Epoch, Incarnation, NodeId
from base.registry import ServiceInstance, View
from base.registry.memory import MemoryRegistry
from base.registry.ports import Registry
from bench.status_cluster import bench_site
from status.config import StatusConfig
from status.core.migration import GONE_MS, NodeReport
from status.core.partitions import PartitionTable
from status.core.serving import LEADER_MS
from status.leader import Leader
from status.peers import Ask
from status.service import StatusNode
from status.table import TABLE_KEY, WISH_KEY, TableFollower, Wish
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


class Holding(MemoryRegistry):
    """Answers one call late: `hold` names which one, and what it does when it is let go is done then."""

    def __init__(self, clock: SystemClock) -> None:
        super().__init__(clock)
        self._held = ""
        self.is_holding = asyncio.Event()
        self._let_go = asyncio.Event()

    def hold(self, call: str) -> None:
        self._held = call
        self.is_holding.clear()
        self._let_go.clear()

    def let_go(self) -> None:
        self._let_go.set()

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        await self._pass(f"put {key}")
        return await super().put(key, value, expect=expect)

    async def services(self, service: str, *, after: int = -1, wait_ms: int = 0) -> View[ServiceInstance]:
        await self._pass("services")
        return await super().services(service, after=after, wait_ms=wait_ms)

    async def _pass(self, call: str) -> None:
        if call == self._held:
            self._held = ""
            self.is_holding.set()
            await self._let_go.wait()


@asynccontextmanager
async def lone_leader(registry: Holding) -> AsyncIterator[tuple[Leader, TableFollower]]:
    """A leader of a cluster of one node."""
    site = bench_site(registry, "status-1", Incarnation(1))
    table = TableFollower(site)
    leader = Leader(site, table, bootstrap_nodes=1)
    leader.on_turn(elected=lambda _: None, stepped_down=lambda: None)
    await registry.register(
        ServiceInstance(id="status-1", service="status", url="http://127.0.0.1:1", incarnation=1), ttl_ms=60_000
    )
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(leader.run()), tasks.create_task(table.run())]
        yield leader, table
        for task in running:
            task.cancel()


async def elected_anew(registry: Holding, leader: Leader) -> None:
    """The registry ends the leader's session, and the same node leads again: it has a greater term."""
    session, term = leader._session, leader._held.epoch
    assert session is not None
    assert term is not None
    await registry.close_session(session)
    while not leader.is_leading or (leader._held.epoch or 0) <= term:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)


def is_given_a_lease(leader: Leader, table: TableFollower) -> bool:
    """Report as the one node of the cluster; return whether it gets a lease."""
    epoch = table.table.epoch if table.table is not None else Epoch(0)
    ask = Ask(epoch, needs_peers=False, report=NodeReport(NodeId("status-1"), Incarnation(1), epoch))
    return leader.asked(SystemClock().monotonic(), ask) is not None


async def test_a_leader_that_is_elected_anew_while_it_asks_around_asks_again() -> None:
    """How long it waits for those who may know a table counts from when it began to lead this time."""
    registry = Holding(SystemClock())
    registry.hold("services")
    async with lone_leader(registry) as (leader, table):
        await registry.is_holding.wait()
        await elected_anew(registry, leader)
        registry.let_go()
        await table.wait_newer(0)
        while not is_given_a_lease(leader, table):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


async def test_a_leader_that_is_elected_anew_while_it_writes_reads_before_it_gives_leases() -> None:
    """That the write of its former term succeeded tells nothing of what was written since."""
    registry = Holding(SystemClock())
    async with lone_leader(registry) as (leader, table):
        first = await table.wait_newer(0)
        while not is_given_a_lease(leader, table):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        registry.hold(f"put {TABLE_KEY}")
        await registry.put(WISH_KEY, msgspec.msgpack.encode(Wish(is_paused=True)), expect=0)
        await registry.is_holding.wait()
        await elected_anew(registry, leader)
        registry.let_go()
        assert (await table.wait_newer(first.epoch)).is_paused
        while not is_given_a_lease(leader, table):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
