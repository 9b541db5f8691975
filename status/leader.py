"""One status node leads: it alone writes the partition table.

Whoever holds the registry lock `status/leader` leads, for as long as its session was renewed in time, counted from when
it *asked*. A leader that cannot renew stops leading by itself before the registry lets another one in.

The leader writes the first table, once enough nodes are there. From then on it does what `status.core.migration`
decides from the nodes' reports and the operators' wish, one write at a time, and gives serving leases.
"""

from __future__ import annotations

import asyncio

from base.clock import Instant
from base.core.lease import HeldLease
from base.errors import CasConflict, SessionLost, StoreError
from base.faultpoint import reach
from base.ids import Epoch, NodeId, name_order
from base.log import logger
from base.site import Site
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
from status.core.partitions import PartitionTable, Stage, plan_table
from status.core.serving import LeaderGrants
from status.peers import Ask
from status.table import LEADER_KEY, TABLE_KEY, TableFollower, decode_table, encode_table

__all__ = ["Leader"]

RENEW_MS = 300
SESSION_TTL_MS = 1_500
"""How long the lock outlives its holder: part of the time for which a dead leader's partitions are unknown."""
TICK_MS = 100
IDLE_TICK_MS = 400
"""The same while nothing moves: then only a report, a wish or the silence of a node is news."""
DECIDE_PAUSE_MS = 25
"""Between two decisions: the reports of this time are decided on together. Commits do not wait."""
RETRY_MS = 100
assert RENEW_MS * 3 < SESSION_TTL_MS


class Leader:
    """A status node's standing candidacy. `run` campaigns, renews and acts."""

    def __init__(self, site: Site, table: TableFollower, *, bootstrap_nodes: int) -> None:
        """`bootstrap_nodes`: how many status nodes the first table has, first by name."""
        self._registry = site.registry
        self._clock = site.clock
        self._node = site.name
        self._table = table
        self._bootstrap_nodes = bootstrap_nodes
        self._held = HeldLease()
        self._session: str | None = None
        self._grants: LeaderGrants | None = None
        self._migration: Migration | None = None
        self._table_index = 0
        self._to_write: WriteTable | None = None
        self._is_unread = False
        self._work = asyncio.Event()
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        table.on_wish(self._news.set)
        self._vacant = asyncio.Event()
        table.on_vacancy(self._vacant.set)
        self._log = logger(node=site.name)

    @property
    def is_leading(self) -> bool:
        """Whether this node may write the table at this instant."""
        return self._held.is_valid(self._clock.monotonic())

    def asked(self, now: Instant, ask: Ask) -> Epoch | None:
        """Take a node's report; return the term of the serving lease that it gets, None if it gets none here."""
        table = self._table.table
        if self._grants is None or table is None or not self.is_leading:
            return None
        is_granted = self._grants.grant(now, ask.report.node, ask.epoch, table)
        self._step(now, Reported(ask.report))
        ready = {move for move, progress in ask.report.progress.items() if progress is Progress.READY}
        if any(move.stage is Stage.SEAL and (move.partition, move.move_id) in ready for move in table.moves if ready):
            self._urgent.set()  # requests are parked until the commit
        self._news.set()
        return self._grants.term if is_granted else None

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
                self._log.warning("leader_round_failed", error=str(error))
            # While there is no table nobody can be looked up, so look again soon.
            await _wait(self._vacant, RENEW_MS if self._table.table is not None else 20)
            self._vacant.clear()

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
            self._held.granted(asked_at, self._held.epoch, SESSION_TTL_MS)
        else:
            token = await self._registry.acquire(LEADER_KEY, self._session, self._node.encode())
            if token is not None:
                self._elected(asked_at, Epoch(token))
        if self.is_leading and self._table.table is None:
            await self._write_first_table()

    def _elected(self, asked_at: Instant, term: Epoch) -> None:
        now = self._clock.monotonic()
        self._grants = LeaderGrants(now, term)
        self._migration = Migration(now, grants_over=self._grants.is_over)
        self._to_write, self._is_unread = None, True
        self._held.granted(asked_at, term, SESSION_TTL_MS)
        self._work.set()
        self._log.info("leader_elected", term=term)

    def _lost(self) -> None:
        if self._held.epoch is not None:
            self._log.warning("leader_deposed")
        self._session = None
        self._grants = self._migration = None
        self._held.lost()

    async def _step_down(self) -> None:
        session, self._session = self._session, None
        self._grants = self._migration = None
        self._held.lost()
        if session is not None:
            try:
                await self._registry.close_session(session)
            except StoreError as error:  # it ends by itself
                self._log.debug("leader_session_left_open", error=str(error))

    # ---------------------------------------------------------------- the table

    async def _write_first_table(self) -> None:
        if await self._registry.get(TABLE_KEY) is not None:
            await self._table.read()
            return
        there = [NodeId(instance.id) for instance in (await self._registry.services(SERVICE)).items]
        nodes = sorted(there, key=name_order)
        if len(nodes) < self._bootstrap_nodes:
            return
        table = plan_table(dict.fromkeys(nodes[: self._bootstrap_nodes], 1))
        try:
            await self._registry.put(TABLE_KEY, encode_table(table), expect=0)
        except CasConflict:
            return  # another leader was first; its table is as good
        self._table.offer(table)
        self._log.info("table_written", epoch=table.epoch, nodes=table.nodes)

    def _step(self, now: Instant, event: Event) -> None:
        if self._migration is None or not self._held.is_valid(now):
            return
        for write in self._migration.step(now, event):
            for source, target in write.stalled:
                self._log.warning("moves_stalled", source=source, target=target)
            self._to_write = write
            self._work.set()

    async def _tick_forever(self) -> None:
        while True:
            now = self._clock.monotonic()
            table = self._table.table
            if table is not None and self._migration is not None:
                wish = self._table.wish
                self._step(now, Wished(wish.weights, wish.is_paused, wish.abort))
            is_idle = table is None or not (table.moves or self._is_unread)
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
            try:
                if self._is_unread:
                    await self._read()
                elif self._to_write is not None and self.is_leading:
                    write, self._to_write = self._to_write, None
                    self._is_unread = True  # until the answer is here, whether it was written is not known
                    await self._write(write)
            except StoreError as error:
                self._log.warning("table_write_failed", error=str(error))
                self._work.set()
                await asyncio.sleep(RETRY_MS / 1000)

    async def _write(self, write: WriteTable) -> None:
        try:
            self._table_index = await self._registry.put(TABLE_KEY, encode_table(write.table), expect=self._table_index)
        except CasConflict:
            self._work.set()
            return
        for point in crossed_by_all("leader", write.expect, write.table):
            reach(point)
        self._is_unread = False
        self._known(write.table)

    async def _read(self) -> None:
        entry = await self._registry.get(TABLE_KEY)
        if entry is None:
            await asyncio.sleep(RETRY_MS / 1000)
            self._work.set()
            return
        self._table_index = entry.index
        self._is_unread = False
        self._known(decode_table(entry.value))

    def _known(self, table: PartitionTable) -> None:
        self._table.offer(table)
        self._step(self._clock.monotonic(), TableRead(table))


async def _wait(event: asyncio.Event, wait_ms: int) -> None:
    """Return when the event is set, or that time has passed."""
    try:
        async with asyncio.timeout(wait_ms / 1000):
            await event.wait()
    except TimeoutError:
        pass
