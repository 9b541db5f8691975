"""A leader that has reason to doubt what the registry has: it reads that, whatever it was about when it heard so.

The lock stays where it is: nobody is deposed, and no election brings it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from base.clock import SystemClock
from base.ids import Epoch, Incarnation, NodeId
from status.core.migration import NodeReport
from status.core.partitions import PartitionTable
from status.leader import Leader
from status.peers import Ask
from status.table import TABLE_KEY, WISH_KEY, TableFollower, Wish, decode_table
from tests.status.test_leader_again import Holding, is_given_a_lease, lone_leader

SPOKEN_OF = Epoch(500)


@asynccontextmanager
async def settled(registry: Holding) -> AsyncIterator[tuple[Leader, TableFollower]]:
    """A leader that knows what the registry has."""
    async with lone_leader(registry) as (leader, table):
        await table.wait_newer(0)
        while not is_given_a_lease(leader, table):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        yield leader, table


async def order_pause(registry: Holding) -> None:
    """Let the leader write a table."""
    await registry.put(WISH_KEY, msgspec.msgpack.encode(Wish(is_paused=True)), expect=0)


async def restore(registry: Holding, value: bytes | None) -> None:
    """Put an older table, or none, in the place of the newest: under the same lock, as a snapshot has it."""
    if value is None:
        await registry.delete(TABLE_KEY)
    else:
        await registry.put(TABLE_KEY, value)


async def written(registry: Holding, *, above: Epoch) -> PartitionTable:
    """Return what the registry has, once that is newer."""
    while (entry := await registry.get(TABLE_KEY)) is None or decode_table(entry.value).epoch <= above:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return decode_table(entry.value)


def speak(leader: Leader, table: TableFollower, of: Epoch) -> None:
    """Report, as the one node of the cluster, what an access node told it."""
    assert table.table is not None
    known = table.table.epoch
    report = NodeReport(NodeId("status-1"), Incarnation(1), known, access={NodeId("access-1"): of})
    assert leader.is_leading
    leader.asked(SystemClock().monotonic(), Ask(known, needs_peers=False, report=report))


@pytest.mark.parametrize("is_older", [True, False], ids=["an older one", "none"])
async def test_a_table_that_a_running_leaders_registry_lost_is_put_back(is_older: bool) -> None:  # noqa: FBT001
    """Whoever starts meanwhile would route by what is there."""
    registry = Holding(SystemClock())
    async with settled(registry) as (_, table):
        older = await registry.get(TABLE_KEY)
        assert older is not None
        await order_pause(registry)
        lost = await table.wait_newer(1)
        await restore(registry, older.value if is_older else None)
        assert (await written(registry, above=lost.epoch)).is_paused


async def test_an_epoch_that_is_heard_of_while_a_table_is_written_is_not_forgotten() -> None:
    """That the write succeeded tells nothing of it."""
    registry = Holding(SystemClock())
    async with settled(registry) as (leader, table):
        registry.hold(f"put {TABLE_KEY}")
        await order_pause(registry)
        await registry.is_holding.wait()
        speak(leader, table, SPOKEN_OF)
        registry.let_go()
        await written(registry, above=SPOKEN_OF)


async def test_an_epoch_that_is_heard_of_while_a_table_is_put_back_is_not_forgotten() -> None:
    """Nor is it when what was decided on before is written."""
    registry = Holding(SystemClock())
    async with settled(registry) as (leader, table):
        registry.hold(f"put {TABLE_KEY}")
        await restore(registry, None)
        await registry.is_holding.wait()
        far = Epoch(10**9)
        speak(leader, table, far)
        registry.let_go()
        await written(registry, above=far)
