"""A status node among others, where it answers what others copy, and copies from them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from base.clock import SystemClock
from base.errors import PeerUnavailable
from base.ids import Epoch, Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from base.site import Site
from bench.status_cluster import bench_site
from status.core.handoff import Chunk, Pull
from status.core.ownership import NEWS_MS
from status.core.partitions import Advance, Begin, Members, PartitionTable, Stage, plan_table
from status.core.records import Digest
from status.leader import Leader
from status.member import Member
from status.peers import PULL, Chunks, Pulls
from status.table import TableFollower

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


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
        member.adopted(newer)

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


class Sources:
    """In the place of the streams to others: sources of empty partitions, which count what they are asked."""

    def __init__(self, *, silent: NodeId | None = None) -> None:
        self.asked: Counter[NodeId] = Counter()
        self._silent = silent

    async def run(self) -> None:
        await asyncio.Event().wait()

    def get(self, node: NodeId) -> Any:
        return _Source(self, node, is_silent=node == self._silent)


class _Source:
    def __init__(self, sources: Sources, node: NodeId, *, is_silent: bool) -> None:
        self._sources, self._node, self._is_silent = sources, node, is_silent

    async def call(self, method: object, asked: Pulls, *, deadline_ms: int) -> Chunks:
        if method is not PULL:
            raise PeerUnavailable("it only answers pulls", peer=self._node)
        self._sources.asked[self._node] += 1
        if self._is_silent:
            await asyncio.sleep(deadline_ms / 1000)
            raise PeerUnavailable("it did not answer", peer=self._node)
        return Chunks([_caught_up(pull) for pull in asked.pulls], is_cut=False)


def _caught_up(pull: Pull) -> Chunk:
    """Nothing is in the partition, and that is all."""
    digest = Digest(0, 0)
    return Chunk(pull.partition, pull.move_id, Incarnation(1), pull.number, 1, 1, [], [], [], 0, digest, [], False, ())


async def copied_until(table: PartitionTable, sources: Sources, is_enough: Callable[[], bool]) -> None:
    """Have b copy what that table says, until that is so."""
    member, follower = member_of(bench_site(MemoryRegistry(SystemClock()), B, Incarnation(1)))
    member.pool = sources  # type: ignore[assignment]
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(member.run())
        follower.offer(table)
        while not is_enough():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)
        running.cancel()


async def test_what_has_caught_up_is_kept_up_to_date_though_no_newer_table_comes() -> None:
    """So it is while a resize is paused: a leader that saw no answer for long would end the moves."""
    loop = asyncio.get_running_loop()
    sources = Sources()
    began = loop.time()
    await copied_until(copying().with_changes([Advance(0, Stage.CATCHUP)]), sources, lambda: sources.asked[A] >= 4)
    assert loop.time() - began >= 2 * NEWS_MS / 1000, "it asks for news only now and then"


async def test_a_source_that_does_not_answer_holds_up_no_other() -> None:
    """What is sealed elsewhere waits for nothing but its own source."""
    table = plan_table({A: 1, C: 1}).with_changes([Members(((A, 1), (B, 1), (C, 1)))])
    mine = {node: table.owners.index(table.nodes.index(node)) for node in (A, C)}
    for stage in (Stage.COPY, Stage.CATCHUP, Stage.SEAL):
        changes = [Begin(one, B) for one in mine.values()] if stage is Stage.COPY else []
        table = table.with_changes(changes) if changes else table
        table = table.with_changes([Advance(one, stage) for one in mine.values()])
    sources = Sources(silent=A)
    await copied_until(table, sources, lambda: sources.asked[C] >= 3)
    assert sources.asked[A] == 1
