"""A status node among others, where it answers what others copy."""

from __future__ import annotations

import asyncio

from base.clock import SystemClock
from base.ids import Epoch, Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from base.site import Site
from bench.status_cluster import bench_site
from status.core.handoff import Pull
from status.core.partitions import Advance, Begin, Members, PartitionTable, Stage, plan_table
from status.leader import Leader
from status.member import Member
from status.peers import Chunks, Pulls
from status.table import TableFollower

A, B = NodeId("a"), NodeId("b")


def copying() -> PartitionTable:
    """Node a is to copy partition 0 to b."""
    return (
        plan_table({A: 1})
        .with_changes([Members(((A, 1), (B, 1)))])
        .with_changes([Begin(0, B)])
        .with_changes([Advance(0, Stage.COPY)])
    )


def member_of(site: Site) -> tuple[Member, TableFollower]:
    table = TableFollower(site)
    leader = Leader(site, table, bootstrap_nodes=1)
    member = Member(site, table, leader, lease_ms=3_000, observe=site.clock.monotonic)

    def adopt(newer: PartitionTable) -> None:
        member.ownership.adopt(site.clock.monotonic(), newer)

    table.on_change(adopt)
    return member, table


async def test_a_pull_by_a_newer_table_waits_for_it() -> None:
    """Else its sender, which knows already that the partition is sealed, would have to ask once more."""
    member, table = member_of(bench_site(MemoryRegistry(SystemClock()), A, Incarnation(1)))
    old = copying()
    table.offer(old)
    pull = Pull(0, old.moves[0].move_id, Incarnation(1), 1, 0, 0)
    at_once = member._pulled(Pulls(old.epoch, [pull]), B)
    assert isinstance(at_once, Chunks)
    newer = old.with_changes([Advance(0, Stage.CATCHUP)])
    later = member._pulled(Pulls(newer.epoch, [pull]), B)
    assert not isinstance(later, Chunks)
    answer = asyncio.ensure_future(later)
    await asyncio.sleep(0)
    assert not answer.done()
    table.offer(newer)
    assert isinstance(await answer, Chunks)


async def test_a_pull_by_a_table_that_does_not_come_is_answered_all_the_same() -> None:
    """By what is known here."""
    member, table = member_of(bench_site(MemoryRegistry(SystemClock()), A, Incarnation(1)))
    table.offer(copying())
    later = member._pulled(Pulls(Epoch(99), []), B)
    assert not isinstance(later, Chunks)
    assert await later == Chunks([], is_cut=False)
