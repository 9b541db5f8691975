"""A lookup of many users is answered for those who can be answered, and only the others wait: see `StatusNode`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from base.clock import SystemClock
from base.ids import Epoch, Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from bench.status_cluster import bench_site
from status.api import REFUSED, Lookup, LookupReply, Shown, pack_partitions
from status.config import StatusConfig
from status.core.handoff import PARK_MS
from status.core.partitions import Advance, Begin, End, PartitionTable, Stage, plan_table
from status.core.visibility import Presence
from status.service import NEWER_TABLE_MS, StatusNode

A, B = NodeId("status-1"), NodeId("status-2")
WAIT_S = 5.0
OFFLINE = None


class Alone:
    """The first node of two, with tables from the test's hands; nobody is online."""

    def __init__(self) -> None:
        self.node = StatusNode(StatusConfig(), bench_site(MemoryRegistry(SystemClock()), A, Incarnation(1)))
        self.node._ownership._is_leased = lambda *_: True
        self.table: PartitionTable = plan_table({A: 1, B: 1})
        self.mine = [partition for partition in range(len(self.table.owners)) if self.table.owner(partition) == A]
        self.other = next(partition for partition in range(len(self.table.owners)) if self.table.owner(partition) == B)
        self.node._table.offer(self.table)
        self.node._observe()

    def changed(self, *changes: Begin | Advance | End, is_told: bool = True) -> PartitionTable:
        """Make each change a table of its own; the node gets the last one."""
        for change in changes:
            self.table = self.table.with_changes([change])
        if is_told:
            self.node._table.offer(self.table)
        return self.table

    def sealed(self, partition: int) -> PartitionTable:
        """Seal a partition, of which the target has taken this node's place."""
        stages = [Advance(partition, stage) for stage in (Stage.COPY, Stage.CATCHUP, Stage.SEAL)]
        sealed = self.changed(Begin(partition, B), *stages)
        self.node._ownership.cease(partition, sealed.moves_by_partition()[partition].move_id)
        return sealed

    def look(self, *partitions: int, epoch: Epoch | None = None, viewer: str | None = None) -> Awaitable[LookupReply]:
        users = [f"u{partition}" for partition in partitions]
        asked = Lookup(epoch or self.table.epoch, pack_partitions(partitions), users, viewer)
        answer = self.node._lookup(asked, "access-1")
        return asyncio.ensure_future(answer) if isinstance(answer, Awaitable) else _done(answer)


def _done(reply: LookupReply) -> Awaitable[LookupReply]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(reply)
    return future


@pytest.fixture
async def alone() -> AsyncIterator[Alone]:
    made = Alone()
    yield made
    await made.node.stop()


async def shown(answer: Awaitable[LookupReply]) -> list[Shown]:
    return (await asyncio.wait_for(answer, WAIT_S)).shown


async def test_who_is_not_sealed_waits_for_nobody(alone: Alone) -> None:
    """Nor does somebody whose partition is sealed while others are waited for: that one was answered before."""
    first, second, third = alone.mine[:3]
    alone.sealed(first)
    looking = asyncio.ensure_future(alone.look(first, second, third))
    await asyncio.sleep(0)
    alone.sealed(second)
    alone.changed(End(first))
    assert await shown(looking) == [OFFLINE] * 3
    assert await shown(alone.look(third)) == [OFFLINE]


async def test_what_has_moved_meanwhile_is_refused_with_the_table_that_says_so(alone: Alone) -> None:
    """The others keep their answers, though the node has them no more by then."""
    first, second = alone.mine[:2]
    asked = alone.sealed(first).epoch
    looking = asyncio.ensure_future(alone.look(first, second))
    await asyncio.sleep(0)
    newer = alone.changed(Advance(first, Stage.COMMIT))
    reply = await asyncio.wait_for(looking, WAIT_S)
    assert (reply.shown, reply.epoch) == ([REFUSED, OFFLINE], newer.epoch)
    assert reply.table is not None
    assert (reply.table.since, reply.table.epoch) == (asked, newer.epoch)


async def test_a_seal_that_lasts_is_not_waited_for_for_ever(alone: Alone) -> None:
    """The asker comes again."""
    alone.sealed(alone.mine[0])
    began = asyncio.get_running_loop().time()
    assert await shown(alone.look(alone.mine[0])) == [REFUSED]
    assert asyncio.get_running_loop().time() - began >= PARK_MS / 1000


async def test_only_for_what_is_not_here_yet_a_newer_table_is_awaited(alone: Alone) -> None:
    """By which it may be; whether it is here or not, what is here is so by each table that is known."""
    ahead = alone.changed(Begin(alone.other, A), is_told=False)
    assert await shown(alone.look(alone.mine[0], epoch=ahead.epoch)) == [OFFLINE]
    looking = asyncio.ensure_future(alone.look(alone.mine[0], alone.other, epoch=ahead.epoch))
    await asyncio.sleep(NEWER_TABLE_MS / 4_000)
    assert not looking.done()
    alone.changed()
    assert await shown(looking) == [OFFLINE, REFUSED]


async def test_a_viewer_is_answered_late_as_well(alone: Alone) -> None:
    """With what may be seen, in the order asked."""
    first, second = alone.mine[:2]
    alone.sealed(first)
    looking = asyncio.ensure_future(alone.look(first, second, viewer="v"))
    await asyncio.sleep(0)
    alone.changed(End(first))
    reply = await asyncio.wait_for(looking, WAIT_S)
    assert (reply.shown, reply.seen) == ([None, None], [Presence("offline"), Presence("offline")])
