"""One status node leads: it alone writes the partition table.

Whoever holds the registry lock `status/leader` leads, for as long as its session was renewed in time, counted from when
it *asked*. A leader that cannot renew stops leading by itself before the registry lets another one in. Before it leads
it writes its name beside the lock, where it finds who led last. If that one has died, others have its partitions at
once: its own lease was its lock (ADR 28).

A registry that has no table, or an older one than somebody knows, is new or started over. Then the leader asks all
status nodes what they know, and begins with the table that `status.core.restoring` decides on. Until then it gives no
serving leases: nodes have them from each other. From then on it does what `status.core.migration` decides from the
nodes' reports and the operators' wish, one write at a time, and gives serving leases. A registry may start over, from
a snapshot, without anybody's losing the lock. So the leader reads it again each time it was seen with an older table,
or a node speaks of a newer one than all that are known.

What a leader knows and has in mind belongs to one term. An answer of the registry that comes after the next election
is one to the term that asked: the new term reads for itself before it writes or gives a lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from base.clock import Instant
from base.core.lease import HeldLease
from base.errors import CasConflict, RoadsteadError, SessionLost, StoreError
from base.faultpoint import reach
from base.ids import Epoch, NodeId
from base.log import logger
from base.peer import PeerPool
from base.site import REGISTERED_AGAIN_MS, Site
from status.api import SERVICE
from status.core.faultpoints import crossed_by_all
from status.core.migration import (
    Event,
    Migration,
    Progress,
    Reported,
    TableRead,
    Wished,
    WriteTable,
)
from status.core.partitions import PartitionTable, Stage
from status.core.restoring import Answers, begun
from status.core.serving import LEADER_MS, LeaderGrants
from status.peers import KNOWN, Ask, KnownAsk
from status.table import LAST_KEY, LEADER_KEY, TABLE_KEY, WISH_KEY, TableFollower, Wish, decode_table, encode_table

__all__ = ["Leader"]

RENEW_MS = 300
SESSION_TTL_MS = LEADER_MS
"""How long the lock outlives its holder: part of the time for which a dead leader's partitions are unknown."""
TICK_MS = 100
IDLE_TICK_MS = 400
"""The same while nothing moves: then only a report, a wish or the silence of a node is news."""
DECIDE_PAUSE_MS = 25
"""Between two decisions: the reports of this time are decided on together. Commits do not wait."""
RETRY_MS = 100
FIRST_MS = 20
"""How often it is looked for a first table, without which nobody can be looked up."""
VACANT_MS = 100
"""How often the lock is tried while nobody has it."""
KNOWN_DEADLINE_MS = 500
LATER_ROLES = ("access", "im")
"""They start when there is a table."""
assert RENEW_MS * 3 < SESSION_TTL_MS


@dataclass(slots=True)
class _Term:
    """What a leader knows and has in mind, from one election to the next."""

    grants: LeaderGrants
    migration: Migration
    table_index: int = 0
    to_write: WriteTable | None = None
    doubts: int = 1
    """How often the registry came to be able to have another table than the one that was read or written last."""
    settled: int = 0
    """So many of these are over: what the registry has was found out since."""
    is_current: bool = False
    """Whether it is known that the registry has the newest table."""
    lost_at: Instant | None = None
    """Since when it is known that it has not."""

    @property
    def is_unread(self) -> bool:
        """Whether what the registry has may be another table than the one that was read or written last."""
        return self.settled < self.doubts


class Leader:
    """A status node's standing candidacy. `run` campaigns, renews and acts."""

    def __init__(self, site: Site, table: TableFollower, *, bootstrap_nodes: int) -> None:
        """`bootstrap_nodes`: how many status nodes the first table has, first by name."""
        self._registry = site.registry
        self._clock = site.clock
        self._node = site.name
        self._table = table
        self._bootstrap_nodes = bootstrap_nodes
        # The nodes of `up`, which have no configured names, and their registry are one process.
        self._look_ms = REGISTERED_AGAIN_MS if site.config.name else 0
        self.pool = PeerPool(site, SERVICE)
        """Streams to all status nodes, which the owner of the leader runs."""
        self._held = HeldLease()
        self._session: str | None = None
        self._term: _Term | None = None
        self._spoken_of = Epoch(0)  # the greatest epoch that was heard of
        self._work = asyncio.Event()
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        table.on_wish(self._news.set)
        self._vacant = asyncio.Event()
        table.on_vacancy(self._vacant.set)
        table.on_older(self._doubt)
        self._when_elected: Callable[[Instant], None]
        self._when_stepping_down: Callable[[], None]
        self._log = logger(node=site.name)

    @property
    def is_leading(self) -> bool:
        """Whether this node may write the table at this instant."""
        return self.leads_until is not None

    @property
    def leads_until(self) -> Instant | None:
        """Until when this node may write the table if the registry says nothing more; None when it does not lead."""
        return self._held.valid_until() if self._held.is_valid(self._clock.monotonic()) else None

    def on_turn(self, *, elected: Callable[[Instant], None], stepped_down: Callable[[], None]) -> None:
        """Before `run`: call these when this node has the lock, with until when, and before it gives it back."""
        self._when_elected, self._when_stepping_down = elected, stepped_down

    def asked(self, now: Instant, ask: Ask) -> Epoch | None:
        """Take a node's report; return the term of the serving lease that it gets, None if it gets none here."""
        table, term = self._table.table, self._term
        if term is None or table is None or not self.is_leading:
            return None
        self._hear_of(max([ask.epoch, *ask.report.access.values()]), table)
        is_granted = term.is_current and term.grants.grant(now, ask.report.node, ask.epoch, table)
        self._step(now, Reported(ask.report))
        ready = {move for move, progress in ask.report.progress.items() if progress is Progress.READY}
        if any(move.stage is Stage.SEAL and (move.partition, move.move_id) in ready for move in table.moves if ready):
            self._urgent.set()  # requests are parked until the commit
        self._news.set()
        return term.grants.term if is_granted else None

    async def run(self) -> None:
        """Campaign until cancelled; give the lock back at the end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._campaign_forever())
                tasks.create_task(self._tick_forever())
                tasks.create_task(self._write_forever())
        finally:
            await self._step_down()

    # ---------------------------------------------------------------- the lock

    async def _campaign_forever(self) -> None:
        while True:
            try:
                await self._campaign()
            except StoreError as error:
                self._log.debug("leader_round_failed", error=str(error))
            await _wait(self._vacant, self._pause_ms())
            self._vacant.clear()

    def _pause_ms(self) -> int:
        if self._table.table is None:
            return FIRST_MS  # nobody can be looked up
        return VACANT_MS if self._table.is_vacant and not self.is_leading else RENEW_MS

    async def _campaign(self) -> None:
        asked_at = self._clock.monotonic()
        if self._session is None:
            self._session = await self._registry.open_session(self._node, ttl_ms=SESSION_TTL_MS)
        else:
            try:
                await self._registry.renew_session(self._session)
            except SessionLost:
                self._lost()
                raise
        if self._held.epoch is not None:
            was_leading = self.is_leading
            self._held.granted(asked_at, self._held.epoch, SESSION_TTL_MS)
            if not was_leading:
                # It heard nobody while it could not lead, and would take all for gone: it begins as a successor does.
                self._elected(self._held, None)
        else:
            token = await self._registry.acquire(LEADER_KEY, self._session, self._node.encode())
            if token is not None:
                held = HeldLease()
                held.granted(asked_at, Epoch(token), SESSION_TTL_MS)
                self._when_elected(held.valid_until() or asked_at)  # before anybody may find its name
                self._elected(held, await self._sign())

    async def _sign(self) -> NodeId | None:
        """Write down that this node leads, and return who did before. Only who is written there ever led."""
        last = await self._registry.get(LAST_KEY)
        if last is not None and last.value == self._node.encode():
            return None
        await self._registry.put(LAST_KEY, self._node.encode(), expect=last.index if last is not None else 0)
        return NodeId(last.value.decode()) if last is not None else None

    def _elected(self, held: HeldLease, predecessor: NodeId | None) -> None:
        now = self._clock.monotonic()
        assert held.epoch is not None
        self._held = held
        grants = LeaderGrants(now, held.epoch, predecessor)
        self._term = _Term(grants, Migration(now, grants_over=grants.is_over, predecessor=predecessor))
        self._work.set()
        self._log.info("leader_elected", term=held.epoch, predecessor=predecessor)

    def _lost(self) -> None:
        if self._held.epoch is not None:
            self._log.warning("leader_deposed")
        self._session = self._term = None
        self._held = HeldLease()  # a registry that started over counts its tokens from the beginning

    async def _step_down(self) -> None:
        session, self._session = self._session, None
        self._term = None
        self._held.lost()
        self._when_stepping_down()
        if session is not None:
            try:
                await self._registry.close_session(session)
            except StoreError as error:  # it ends by itself
                self._log.debug("leader_session_left_open", error=str(error))

    # ---------------------------------------------------------------- the table

    def _step(self, now: Instant, event: Event) -> None:
        term = self._term
        if term is None or not self._held.is_valid(now):
            return
        for write in term.migration.step(now, event):
            for source, target in write.stalled:
                self._log.warning("moves_stalled", source=source, target=target)
            term.to_write = write
            self._work.set()

    async def _tick_forever(self) -> None:
        while True:
            now = self._clock.monotonic()
            table, term = self._table.table, self._term
            if table is not None and term is not None:
                wish = self._table.wish
                self._step(now, Wished(wish.weights, wish.is_paused, wish.abort))
            is_idle = table is None or not (table.moves or (term is not None and term.is_unread))
            await _wait(self._news, IDLE_TICK_MS if is_idle else TICK_MS)
            if not is_idle:
                await _wait(self._urgent, DECIDE_PAUSE_MS)
            self._news.clear()
            self._urgent.clear()

    async def _write_forever(self) -> None:
        """Write what was decided, one table at a time; read what is there whenever that is not known for certain."""
        while True:
            await self._work.wait()
            self._work.clear()
            term = self._term
            if term is None:
                continue
            try:
                if term.is_unread:
                    await self._read(term)
                elif term.to_write is not None and self.is_leading:
                    write, term.to_write = term.to_write, None
                    await self._write(term, write)
            except StoreError as error:
                self._log.warning("table_write_failed", error=str(error))
                self._work.set()
                await asyncio.sleep(RETRY_MS / 1000)

    async def _write(self, term: _Term, write: WriteTable) -> None:
        term.doubts += 1  # until the answer is here, whether it was written is not known
        doubts = term.doubts
        try:
            term.table_index = await self._registry.put(TABLE_KEY, encode_table(write.table), expect=term.table_index)
        except CasConflict:
            self._work.set()
            return
        for point in crossed_by_all("leader", write.expect, write.table):
            reach(point)
        term.settled = doubts
        self._known(term, write.table)

    async def _read(self, term: _Term) -> None:
        doubts = term.doubts
        entry = await self._registry.get(TABLE_KEY)
        table = decode_table(entry.value) if entry is not None else None
        index = entry.index if entry is not None else 0
        mine = self._table.table
        known = max(self._spoken_of, mine.epoch if mine is not None else 0)
        if table is None or table.epoch < known:
            term.is_current = False
            if self._is_in(term):
                await self._begin_anew(term, index, doubts)
            return
        self._has_table(term, table, index, doubts)

    def _is_in(self, term: _Term) -> bool:
        """Whether this node leads, and in that term."""
        return self._term is term and self.is_leading

    def _hear_of(self, epoch: Epoch, table: PartitionTable) -> None:
        """Take note of an epoch that a node spoke of: if it is newer than all tables, the registry lost one."""
        if epoch > max(table.epoch, self._spoken_of):
            self._spoken_of = epoch
            self._doubt()

    def _doubt(self) -> None:
        """Read what the registry has, once more if that is under way: it may have lost the newest table since."""
        if self._term is not None:
            self._term.doubts += 1
            self._work.set()

    def _has_table(self, term: _Term, table: PartitionTable, index: int, doubts: int) -> None:
        """Go on from what the registry has at this index, which was asked after so many doubts."""
        term.table_index, term.to_write = index, None
        term.settled, term.is_current, term.lost_at = doubts, True, None
        self._known(term, table)

    # ---------------------------------------------------------------- a registry without the newest table

    async def _begin_anew(self, term: _Term, index: int, doubts: int) -> None:
        """Ask who knows which table, and begin with one once that may be; `index` is what the registry has there."""
        now = self._clock.monotonic()
        if term.lost_at is None:
            term.lost_at = now
            if self._table.table is not None or index:
                self._log.error("table_lost", spoken_of=self._spoken_of)
        term.grants.distrust(term.lost_at)
        answers = await self._ask_all()
        table = begun(
            answers,
            at_s=self._clock.realtime() // 1000,
            waited_ms=now - term.lost_at,
            bootstrap_nodes=self._bootstrap_nodes,
            look_ms=self._look_ms,
        )
        if table is None or not self._is_in(term):
            await asyncio.sleep((RETRY_MS if answers.table is not None else FIRST_MS) / 1000)
            self._work.set()
            return
        await self._put_wish_back(table, was_older=index > 0)
        try:
            index = await self._registry.put(TABLE_KEY, encode_table(table), expect=index)
        except CasConflict:
            self._work.set()  # another leader was first; its table is as good
            return
        self._log.info("table_written", epoch=table.epoch, nodes=table.nodes, restored=table.restored > 0)
        self._has_table(term, table, index, doubts)

    async def _ask_all(self) -> Answers:
        """Ask all status nodes, those of the newest table and those that are registered, what they know."""
        registered = {NodeId(instance.id) for instance in (await self._registry.services(SERVICE)).items}
        table = self._table.table
        members = {*table.nodes, *table.former} if table is not None else set[NodeId]()
        heard = {self._node}
        async with asyncio.TaskGroup() as tasks:
            for node in (members | registered) - heard:
                tasks.create_task(self._ask_node(node, heard))
        is_running = False
        if self._table.table is None and self._look_ms:
            is_running = any([(await self._registry.services(role)).items for role in LATER_ROLES])
        return Answers(self._table.table, heard, registered, self._spoken_of, is_running)

    async def _ask_node(self, node: NodeId, heard: set[NodeId]) -> None:
        mine = self._table.table
        ask = KnownAsk(mine.epoch if mine is not None else Epoch(0))
        try:
            known = await self.pool.get(node).call(KNOWN, ask, deadline_ms=KNOWN_DEADLINE_MS)
        except RoadsteadError as error:
            self._log.debug("known_not_told", peer=node, error=str(error))
            return
        if known.table is not None:
            self._table.offer(decode_table(known.table))
        self._spoken_of = max(self._spoken_of, known.epoch)
        heard.add(node)

    async def _put_wish_back(self, table: PartitionTable, *, was_older: bool) -> None:
        """See to it that the registry has what operators want now, before anything is decided by that.

        In an empty one that is what was read last; what lies beside an older table is as old as that, and the newest
        one has what came of it.
        """
        entry = await self._registry.get(WISH_KEY)
        if entry is not None and not was_older:
            return  # somebody gave an order since
        remembered = self._table.wish if self._table.wish != Wish() else Wish(is_paused=table.is_paused)
        wish = Wish(is_paused=table.is_paused) if entry is not None else remembered
        if entry is not None or wish != Wish():
            try:
                await self._registry.put(
                    WISH_KEY, msgspec.msgpack.encode(wish), expect=entry.index if entry is not None else 0
                )
            except CasConflict:
                self._log.info("wish_given_meanwhile")
        await self._table.read()

    def _known(self, term: _Term, table: PartitionTable) -> None:
        self._table.offer(table)
        if self._term is term:
            self._step(self._clock.monotonic(), TableRead(table))


async def _wait(event: asyncio.Event, wait_ms: int) -> None:
    """Return when the event is set, or that time has passed."""
    try:
        async with asyncio.timeout(wait_ms / 1000):
            await event.wait()
    except TimeoutError:
        pass
