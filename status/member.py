"""A status node among status nodes: its serving lease, its reports, and the partitions that it copies.

It asks the leader for a lease every `ASK_MS`, and at once when it has something to report, such as a copy that caught
up; it asks all others too when the leader's lease runs out. While partitions move to it, it asks their sources for what
it lacks, again and again, without pause as long as there is more; each source in a task of its own, so that one out of
reach holds up no other. Everything is decided in the cores: `serving` says who may answer, `ownership` what,
`migration` (the leader's) what moves next.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from base.clock import Instant
from base.errors import RoadsteadError
from base.ids import Epoch, NodeId
from base.log import logger
from base.peer.server import PeerServer
from base.site import Site
from status.asking import wait_for
from status.core.handoff import Pull, answered
from status.core.migration import NodeReport, Progress
from status.core.ownership import NEWS_MS, Ownership
from status.core.partitions import AFTER_COMMIT, PartitionTable
from status.core.serving import ASK_MS, SILENCE_MS, Promises, ServingLease
from status.leader import Leader
from status.peers import ASK, KNOWN, PULL, Ask, Chunks, Given, Known, KnownAsk, Pulls
from status.table import TableFollower, encode_table

__all__ = ["Member"]

ASK_DEADLINE_MS = 500
PULL_DEADLINE_MS = 1_000
ASKS_MAX = 3
"""Questions to one node that may wait for their answers: what is ready to be committed must not wait for an answer."""
LEFT_LOOK_MS = 20
BEGIN_PATIENCE_MS = 1_500
"""A few questions for a lease, by which the leader is told, and a decision."""
MOVING_PATIENCE_MS = SILENCE_MS + BEGIN_PATIENCE_MS
"""A node that was started just now acknowledges nothing for as long as promises of its former life may last."""
REPORT_PAUSE_MS = 2
"""Between two reports: what happens in this time is told together."""
NEWER_TABLE_MS = 200
"""How long a pull by a newer table than ours waits for it."""
PULL_PAUSE_MS = 10
"""Between two pulls of what has caught up: only the news of that time is left to copy."""


class _Left(NamedTuple):
    """What a node that is about to stop has still to hand over, as the table of an epoch says."""

    partitions: int
    moves: int
    epoch: Epoch


class Member:
    """See the module. `ownership` is the node's state; whoever serves requests steps it first."""

    def __init__(
        self, site: Site, table: TableFollower, leader: Leader, *, lease_ms: int, observe: Callable[[], Instant]
    ) -> None:
        """`observe` reads the clock and steps `ownership`, before anything that depends on it."""
        self.lease = ServingLease(site.name)
        self.ownership = Ownership(site.name, site.incarnation, (), is_leased=self.lease.is_valid, lease_ms=lease_ms)
        self.access_epochs: dict[NodeId, tuple[Instant, Epoch]] = {}
        """Until when each access node that was heard here counts as live, and the newest epoch that it knows."""
        leader.on_turn(elected=self.lease.elected, stepped_down=self.lease.stepped_down)
        self.pool = leader.pool
        """Streams to all status nodes, kept while this runs."""
        self._node = site.name
        self._incarnation = site.incarnation
        self._observe = observe
        self._table = table
        self._leader = leader
        self._promises = Promises(site.clock.monotonic())
        self._expects_first_table = False
        self._is_leaving = False
        self._reported: NodeReport | None = None
        self._news = asyncio.Event()
        self._adopted = asyncio.Event()
        """Set, and another one put in its place, with each newer table."""
        self._copying: set[NodeId] = set()
        """The sources from which a task copies."""
        self._asking: Counter[NodeId] = Counter()
        self._told: dict[NodeId, NodeReport] = {}
        """The newest report that each node was sent."""
        # Answers with copies, by source. That there are more of them is told along, and is no news by itself.
        self._answers: dict[NodeId, int] = {}
        self._answers_told: dict[NodeId, int] = {}
        self._log = logger(node=site.name)

    def serve(self, peers: PeerServer) -> None:
        """Answer the other status nodes."""
        peers.serve(ASK, self._asked)
        peers.serve(PULL, self._pulled)
        peers.serve(KNOWN, self._known)

    async def run(self) -> None:
        """Ask, report and copy until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.pool.run())
            tasks.create_task(self._ask_forever(tasks))
            tasks.create_task(self._copy_forever(tasks))

    def expect_first_table(self) -> None:
        """Take note that the registry has no table yet.

        If the first one of a system is what comes, then no node that lives knew any table. So none has a lease by
        a promise of this node's former life, if it had one, and there is nothing to wait for.
        """
        self._expects_first_table = True

    def adopted(self, table: PartitionTable) -> None:
        """Take note that `ownership` adopted a newer table."""
        if self._expects_first_table and table.epoch == 1:
            self._promises = Promises(self._observe(), is_first_life=True)
        self._expects_first_table = False
        self._promises.adopt(table.epoch)
        self._adopted.set()
        self._adopted = asyncio.Event()
        self._news.set()

    async def leave(self) -> bool:
        """Have others take this node's partitions; return whether they have all, and nobody asks for them here.

        It gives up when nothing of it happens: there is nobody else, all leave at once, the operator has paused what
        moves, or a node does not answer.
        """
        self._is_leaving = True
        self._news.set()
        loop = asyncio.get_running_loop()
        left, since = self._left(), loop.time()
        while left.partitions or left.moves:
            if loop.time() > since + (MOVING_PATIENCE_MS if left.moves else BEGIN_PATIENCE_MS) / 1000:
                return False
            await asyncio.sleep(LEFT_LOOK_MS / 1000)
            now_left = self._left()
            if now_left != left:
                left, since = now_left, loop.time()
        return True

    def _left(self) -> _Left:
        """Return what is left to be handed over; nothing where there is nobody to hand it to."""
        table = self._table.table
        if table is None or set(table.wanted()) <= {self._node}:
            return _Left(0, 0, Epoch(0))
        moves = sum(move.source == self._node for move in table.moves)
        return _Left(table.counts().get(self._node, 0), moves, table.epoch)

    def report_soon(self) -> None:
        """Take note that there may be something to report."""
        self._news.set()

    # ---------------------------------------------------------------- asking and answering

    async def _ask_forever(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            now = self._observe()
            report = self._report(now)
            if loop.time() >= due or report != self._reported:
                self._answers_told = dict(self._answers)
                report = msgspec.structs.replace(report, answers=self._answers_told)
                due = loop.time() + ASK_MS / 1000
                self._reported = report
                self._ask(now, report, tasks)
            await asyncio.sleep(REPORT_PAUSE_MS / 1000)
            timer = loop.call_at(due, self._news.set)
            await self._news.wait()
            timer.cancel()
            self._news.clear()

    def _ask(self, now: Instant, report: NodeReport, tasks: asyncio.TaskGroup) -> None:
        table = self._table.table
        if table is None:
            return
        number = self.lease.ask(now)
        leads_until = self._leader.leads_until
        if leads_until is not None and self._leader.asked(now, Ask(table.epoch, False, report)) is not None:
            self.lease.leads(leads_until)
        ask = Ask(table.epoch, self.lease.needs_peers(now), report)
        asked = {self._table.leader} if self._table.leader else set[NodeId]()
        asked |= self.lease.outdated(now, table.epoch)
        if ask.needs_peers:
            asked |= {*table.nodes, *table.former}
        for node in asked - {self._node}:
            if self._asking[node] < ASKS_MAX:
                self._asking[node] += 1
                self._told[node] = report
                tasks.create_task(self._ask_node(node, number, ask))

    async def _ask_node(self, node: NodeId, number: int, ask: Ask) -> None:
        try:
            given = await self.pool.get(node).call(ASK, ask, deadline_ms=ASK_DEADLINE_MS)
        except RoadsteadError as error:
            self._log.debug("ask_failed", peer=node, error=str(error))
            return
        finally:
            self._asking[node] -= 1
        self.lease.told(node, ask.epoch)
        if given.is_granted:
            self.lease.granted_by_peer(number, node, given.epoch)
        if given.term is not None:
            self.lease.granted_by_leader(number)
        if self._promises.has_read(node, given.epoch):
            self._news.set()
        self._table.offer_diff(given.table)
        self._observe()
        if self._told[node] is not self._reported:
            self._reported = None  # there was more to say while all questions were on their way
            self._news.set()

    def _asked(self, ask: Ask, peer: str) -> Given:
        now = self._observe()
        table = self._table.table
        epoch = table.epoch if table is not None else Epoch(0)
        term = self._leader.asked(now, ask)
        if self._promises.has_read(ask.report.node, ask.epoch):
            self._news.set()
        is_granted = ask.needs_peers and self._promises.grant(now, ask.report.node, ask.epoch)
        del peer
        return Given(epoch, is_granted, term, self._table.diff_from(ask.epoch) if ask.epoch < epoch else None)

    def _known(self, ask: KnownAsk, _peer: str) -> Known:
        table = self._table.table
        if table is None:
            return Known(Epoch(0), None)
        return Known(table.epoch, encode_table(table) if table.epoch > ask.epoch else None)

    def _report(self, now: Instant) -> NodeReport:
        progress: dict[tuple[int, Epoch], Progress] = {}
        for move in self.ownership.incoming():
            key = (move.partition, move.move_id)
            if move.is_ready:
                progress[key] = Progress.READY
            elif move.is_caught_up:
                progress[key] = Progress.CAUGHT_UP
            elif move.is_copied:
                progress[key] = Progress.COPIED
        return NodeReport(
            self._node,
            self._incarnation,
            self._promises.acknowledged(now),
            progress,
            frozenset(self.ownership.incomplete(now)),
            {node: epoch for node, (until, epoch) in self.access_epochs.items() if now < until},
            self._answers_told,
            self._is_leaving,
        )

    # ---------------------------------------------------------------- copying

    async def _copy_forever(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            adopted = self._adopted
            for source in self._sources() - self._copying:
                self._copying.add(source)
                tasks.create_task(self._copy_from(source))
            await adopted.wait()

    def _sources(self) -> set[NodeId]:
        """Return from whom partitions move to this node, and are not committed."""
        moves = self._table.table.moves if self._table.table is not None else ()
        return {move.source for move in moves if move.target == self._node and move.stage not in AFTER_COMMIT}

    async def _copy_from(self, source: NodeId) -> None:
        """Copy from one source until no move of it is left. A newer table is looked into at once."""
        while source in self._sources():
            adopted = self._adopted
            pulls = [pull for _, pull in self.ownership.pulls(self._observe(), source)]
            if pulls and await self._pull(source, pulls):
                continue
            try:
                async with asyncio.timeout((PULL_PAUSE_MS if pulls else NEWS_MS) / 1000):
                    await adopted.wait()
            except TimeoutError:
                pass  # there may be news of what has caught up
        self._copying.discard(source)

    async def _pull(self, source: NodeId, pulls: list[Pull]) -> bool:
        """Copy the next part of each move from one source; return whether there is more."""
        try:
            asked = Pulls(self._table.table.epoch if self._table.table else Epoch(0), pulls)
            reply = await self.pool.get(source).call(PULL, asked, deadline_ms=PULL_DEADLINE_MS)
        except RoadsteadError as error:
            self._log.debug("pull_failed", peer=source, error=str(error))
            return False
        now = self._observe()
        if any(chunk is not None for chunk in reply.chunks):
            self._answers[source] = self._answers.get(source, 0) + 1
        has_more = reply.is_cut
        for chunk in reply.chunks:
            if chunk is not None:
                self.ownership.received(now, chunk)
                has_more = has_more or chunk.first + len(chunk.users) <= chunk.head
        self._news.set()
        return has_more

    def _pulled(self, pulls: Pulls, _peer: str) -> Chunks | Awaitable[Chunks]:
        table = self._table.table
        if table is None or pulls.epoch > table.epoch:
            return self._pulled_later(pulls)
        return self._answer(pulls)

    async def _pulled_later(self, pulls: Pulls) -> Chunks:
        """Answer by the table of the question: if that seals, its sender would only have to ask again."""
        await wait_for(self._table, pulls.epoch, NEWER_TABLE_MS)
        return self._answer(pulls)

    def _answer(self, pulls: Pulls) -> Chunks:
        now = self._observe()
        return Chunks(*answered(pulls.pulls, lambda pull: self.ownership.pulled(now, pull)))
