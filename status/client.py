"""How the other services use the status cluster: `StatusClient` asks, `StatusPublisher` reports.

Both route by the partition table, which they follow in the registry, and keep working on the last one they saw when the
registry is away. Neither ever says "offline" for a node that it could not ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from base.clock import Instant
from base.errors import PeerError, RoadsteadError, StaleEpoch
from base.ids import Epoch, NodeId, entropy
from base.log import logger
from base.peer import PeerPool
from base.registry import Entry, View, follow
from base.site import Site
from status.api import (
    BEAT,
    LOOKUP,
    LOOKUP_USERS_MAX,
    SERVICE,
    TABLE_KEY,
    UNKNOWN,
    Beat,
    Closed,
    Lookup,
    Opened,
    UserStatus,
)
from status.core.partitions import PartitionTable
from status.core.publisher import LinkPublisher
from status.ports import SessionReports, StatusLookups

__all__ = ["SessionReports", "StatusClient", "StatusLookups", "StatusPublisher", "TableFollower"]

LOOKUP_DEADLINE_MS = 1_000
BEAT_DEADLINE_MS = 1_000
BEAT_INTERVAL_MS = 1_000
RETRY_MS = 100


class TableFollower:
    """The newest partition table that this process has seen."""

    def __init__(self, site: Site) -> None:
        self.table: PartitionTable | None = None
        self._site = site
        self._changed = asyncio.Event()
        self._log = logger(node=site.name)

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        async for view in follow(self._site.registry.scan, TABLE_KEY, self._site.clock):
            self._take(view)

    async def wait_newer(self, epoch: int) -> PartitionTable:
        """Return a table newer than the epoch, waiting for one."""
        while self.table is None or self.table.epoch <= epoch:
            await self._changed.wait()
        return self.table

    def _take(self, view: View[Entry]) -> None:
        for entry in view.items:
            if entry.key != TABLE_KEY:
                continue
            table = msgspec.msgpack.decode(entry.value, type=PartitionTable)
            if self.table is None or table.epoch > self.table.epoch:
                self.table = table
                self._log.info("table_adopted", epoch=table.epoch, nodes=table.nodes)
                self._changed.set()
                self._changed = asyncio.Event()


class StatusClient:
    """Lookups, batched per owner. `run` keeps the streams and the table."""

    def __init__(self, site: Site) -> None:
        self._table = TableFollower(site)
        self._pool = PeerPool(site, SERVICE)

    async def run(self) -> None:
        """Keep the table and the streams until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._table.run())
            tasks.create_task(self._pool.run())

    async def wait_ready(self) -> None:
        """Return once there is a table to route by."""
        await self._table.wait_newer(0)

    async def lookup(self, users: Sequence[str]) -> dict[str, UserStatus]:
        """Return the status of each user; `unknown` for whoever's owner could not be asked in time."""
        found: dict[str, UserStatus] = dict.fromkeys(users, UNKNOWN)
        table = self._table.table
        if table is None:
            return found
        moved = await self._ask(table, list(found), found)
        if moved:
            # The owner has another table. Ours comes from the same registry, so it is on its way.
            try:
                async with asyncio.timeout(LOOKUP_DEADLINE_MS / 4 / 1000):
                    newer = await self._table.wait_newer(table.epoch)
            except TimeoutError:
                return found
            await self._ask(newer, moved, found)
        return found

    async def _ask(self, table: PartitionTable, users: list[str], found: dict[str, UserStatus]) -> list[str]:
        """Ask each owner for its users, all at once; fill `found` and return the users whose owner refused."""
        moved: list[str] = []

        async def ask(owner: NodeId, batch: list[str]) -> None:
            try:
                request = Lookup(batch, table.epoch)
                reply = await self._pool.get(owner).call(LOOKUP, request, deadline_ms=LOOKUP_DEADLINE_MS)
            except RoadsteadError:
                return  # stays unknown
            for user, status in zip(batch, reply.statuses, strict=True):
                if status is None:
                    moved.append(user)
                else:
                    found[user] = status

        by_owner: dict[NodeId, list[str]] = {}
        for user in users:
            by_owner.setdefault(table.owner_of(user), []).append(user)
        batches = [
            (owner, mine[start : start + LOOKUP_USERS_MAX])
            for owner, mine in sorted(by_owner.items())
            for start in range(0, len(mine), LOOKUP_USERS_MAX)
        ]
        if len(batches) == 1:
            await ask(*batches[0])
        else:
            async with asyncio.TaskGroup() as tasks:
                for owner, batch in batches:
                    tasks.create_task(ask(owner, batch))
        return moved


class StatusPublisher:
    """An access node's reports to all status nodes: a lease and the sessions of each one's partitions.

    `open` returns once the owner knows the session, so that whoever looks the user up afterwards finds it.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._table = TableFollower(site)
        self._pool = PeerPool(site, SERVICE, on_connected=self._reconnected)
        self._links: dict[NodeId, LinkPublisher] = {}
        self._news: dict[NodeId, asyncio.Event] = {}
        self._confirming: dict[str, asyncio.Future[None]] = {}
        self._routed = asyncio.Event()
        # The table that `_links` stands for; the follower's may be newer by one step of the loop.
        self._routed_by: PartitionTable | None = None
        self._random = entropy()
        self._log = logger(node=site.name)

    async def run(self) -> None:
        """Keep streams, table and beats going until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._table.run())
            tasks.create_task(self._pool.run())
            epoch = 0
            beating: dict[NodeId, asyncio.Task[None]] = {}
            while True:
                table = await self._table.wait_newer(epoch)
                epoch = table.epoch
                self._route(table)
                for gone in beating.keys() - self._links.keys():
                    beating.pop(gone).cancel()
                for owner in self._links.keys() - beating.keys():
                    beating[owner] = tasks.create_task(self._beat_forever(owner))

    async def wait_ready(self) -> None:
        """Return once there is a table to route by."""
        await self._routed.wait()

    async def open(self, opened: Opened, *, deadline_ms: int) -> bool:
        """Report a session; True once its owner confirmed it, False if that took too long (it is still reported)."""
        confirmed = asyncio.get_running_loop().create_future()
        self._confirming[opened.session] = confirmed
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await self._routed.wait()
                self.report(opened)
                await confirmed
        except TimeoutError:
            return False
        finally:
            self._confirming.pop(opened.session, None)
        return True

    def report(self, opened: Opened) -> None:
        """Report a session without waiting for its owner; only after `wait_ready`."""
        assert self._routed_by is not None
        owner = self._routed_by.owner_of(opened.user)
        self._links[owner].open(opened)
        self._news[owner].set()

    def close(self, closed: Closed) -> None:
        """Report that a session ended; told with the next beat, which leaves at once."""
        if self._routed_by is not None:
            owner = self._routed_by.owner_of(closed.user)
            self._links[owner].close(closed)
            self._news[owner].set()

    def statistics(self) -> dict[str, dict[str, int]]:
        """Return a snapshot of each link."""
        return {owner: link.statistics() for owner, link in sorted(self._links.items())}

    def _route(self, table: PartitionTable) -> None:
        """Give each session to the link of its owner. A link whose sessions changed hands synchronises anew."""
        sessions = [opened for link in self._links.values() for opened in link.sessions()]
        before = {node: {opened.session for opened in link.sessions()} for node, link in self._links.items()}
        links = {node: LinkPublisher(self._site.name, self._site.incarnation) for node in table.nodes}
        for opened in sessions:
            links[table.owner_of(opened.user)].open(opened)
        for node, link in links.items():
            if node in self._links and before[node] == {opened.session for opened in link.sessions()}:
                links[node] = self._links[node]
        self._links, self._routed_by = links, table
        self._news = {node: self._news.get(node, asyncio.Event()) for node in links}
        for news in self._news.values():
            news.set()
        self._routed.set()

    def _reconnected(self, owner: str) -> None:
        link = self._links.get(NodeId(owner))
        if link is not None:
            link.resync()
            self._news[NodeId(owner)].set()

    async def _beat_forever(self, owner: NodeId) -> None:
        loop = asyncio.get_running_loop()
        while True:
            link = self._links[owner]
            beat = link.next_beat(self._epoch())
            if beat is not None:
                await self._send(owner, link, beat)
            news = self._news[owner]
            news.clear()
            if not link.has_news:
                # +- 10 %, so that a thousand access nodes do not beat in step.
                spread = BEAT_INTERVAL_MS // 10
                wait_ms = BEAT_INTERVAL_MS - spread + self._random.randrange(2 * spread + 1)
                timer = loop.call_later(wait_ms / 1000, news.set)
                await news.wait()
                timer.cancel()

    async def _send(self, owner: NodeId, link: LinkPublisher, beat: Beat) -> None:
        again: Beat | None = beat
        while again is not None:
            try:
                reply = await self._pool.get(owner).call(BEAT, again, deadline_ms=BEAT_DEADLINE_MS)
            except StaleEpoch:
                raise  # a newer life of this node is known: this one must end
            except (PeerError, RoadsteadError) as error:
                self._log.info("beat_failed", owner=owner, error=str(error))
                await self._site.clock.sleep_until(Instant(self._site.clock.monotonic() + RETRY_MS))
                again = link.failed(again) if self._links.get(owner) is link else None
                continue
            for session in link.answered(again, reply):
                confirmed = self._confirming.get(session)
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)
            return

    def _epoch(self) -> Epoch:
        return self._table.table.epoch if self._table.table else Epoch(0)
