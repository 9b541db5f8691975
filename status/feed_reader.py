"""Reads the session events of all status nodes as one feed, for whoever asks this node.

A read asks every node of the table at once for its share of the page; a node that does not answer in time keeps its
place and is said to be missing. Nobody polls: while readers wait here, this node holds one question open at each node
of the table, "tell me when your log has another end than this" (`status.events_end`). What is kept is the ends that
were answered. A reader waits until one of them is not where it has read to, so that a wake-up cannot be lost between
reading and waiting, and however many readers come and go, a node is asked by each other one only once.

Limits, each with its meaning:
    READERS_MAX        readers that may wait here, streams included; one more is refused with Overloaded
    READ_DEADLINE_MS   after that a node is missing from the page
    CONNECT_MS         after that one is to which there is no stream: a dead node must not make each page take a second
    RETRY_MS           how long a waiting reader does without the nodes that were missing
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from base.errors import NotReady, Overloaded, RoadsteadError
from base.ids import NodeId
from base.log import logger
from base.peer import PeerPool
from base.site import Site
from status.core.events import START, Cursor, MergedPage, Page, Place, merged, share_of
from status.core.partitions import PartitionTable
from status.feed import BUSY_MS, WAIT_MS_MAX, EventFeed
from status.metrics import FeedMetrics
from status.peers import EVENTS, EVENTS_END, EventsAsk, EventsEndAsk, Told
from status.table import TableFollower

__all__ = ["READERS_MAX", "FeedReader"]

READERS_MAX = 1_000
READ_DEADLINE_MS = 1_000
CONNECT_MS = 100
RETRY_MS = 1_000
GATHER_MS = 10
"""What happens in this time is told together, or each event of a busy cluster would cost every reader a round."""


class FeedReader:
    """See the module. `run` keeps the questions."""

    def __init__(self, site: Site, table: TableFollower, feed: EventFeed, pool: PeerPool, metrics: FeedMetrics) -> None:
        """`feed` is this node's own, `pool` has streams to the others and is run by somebody else."""
        self.is_closing = False
        self._node = site.name
        self._table = table
        self._feed = feed
        self._pool = pool
        self._readers = 0
        self._ends: dict[NodeId, Place] = {}
        """The end of each log as last answered; none of a node that is not asked or does not answer."""
        self._watched: set[NodeId] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._moved = asyncio.Event()
        self._log = logger(node=site.name)
        table.on_change(self._watch_all)
        metrics.show_readers(lambda: self._readers)

    async def run(self) -> None:
        """Keep a question open at each node while somebody waits; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def close(self) -> None:
        """Let nobody wait here from now on: whoever does gets what there is."""
        self.is_closing = True
        self._wake()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Be one of the readers that may wait. Raises Overloaded when there are too many."""
        if self._readers >= READERS_MAX:
            raise Overloaded("too many readers wait for events here", what="event_readers", retry_after_ms=BUSY_MS)
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    async def poll(self, cursor: Cursor, limit: int, wait_ms: int) -> MergedPage[Told]:
        """Return the page after a cursor; an empty one only if nothing happened for `wait_ms`.

        Raises:
            NotReady: this node has no partition table yet.
            Overloaded: it would have to wait, and too many do.
        """
        page = await self.read(cursor, limit)
        if wait_ms and _is_dry(page):
            with self.waiting():
                return await self.read_on(page, limit, wait_ms)
        return page

    async def read(self, cursor: Cursor, limit: int) -> MergedPage[Told]:
        """Return the page after a cursor, be it empty. Raises NotReady without a partition table."""
        table = self._table.table
        if table is None:
            raise NotReady("no partition table yet", retry_after_ms=BUSY_MS)
        pages: dict[NodeId, Page[Told]] = {}
        share = share_of(limit, len(table.nodes))
        async with asyncio.TaskGroup() as tasks:
            for node in table.nodes:
                tasks.create_task(self._read_node(node, EventsAsk(cursor.place(node), share), pages))
        return merged(cursor, table.nodes, pages)

    async def read_on(self, page: MergedPage[Told], limit: int, wait_ms: int) -> MergedPage[Told]:
        """Wait until there is something after an empty page, at most for `wait_ms`; within `waiting`."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + wait_ms / 1000
        while _is_dry(page) and not self.is_closing and (left_s := give_up - loop.time()) > 0:
            await self._wait_for_news(page.cursor, min(left_s, RETRY_MS / 1000) if page.missing else left_s)
            page = await self.read(page.cursor, limit)
        return page

    # ---------------------------------------------------------------- reading

    async def _read_node(self, node: NodeId, ask: EventsAsk, pages: dict[NodeId, Page[Told]]) -> None:
        if node == self._node:
            pages[node] = self._feed.read(ask.place, ask.limit)
            return
        try:
            peer = self._pool.get(node)
            deadline_ms = READ_DEADLINE_MS if peer.is_connected else CONNECT_MS
            pages[node] = await peer.call(EVENTS, ask, deadline_ms=deadline_ms)
        except RoadsteadError as error:
            self._log.debug("events_read_failed", peer=node, error=str(error))
            self._ends.pop(node, None)  # that it has more to say must not make readers ask again at once

    # ---------------------------------------------------------------- waiting

    async def _wait_for_news(self, cursor: Cursor, wait_s: float) -> None:
        table = self._table.table
        if table is not None:
            self._watch_all(table)
        try:
            async with asyncio.timeout(wait_s):
                while not self.is_closing and not self._has_news(cursor):
                    await self._moved.wait()
                # Ends lag behind what is read: where they differ for long, they must not be read at full speed.
                await asyncio.sleep(GATHER_MS / 1000)
        except TimeoutError:
            pass

    def _has_news(self, cursor: Cursor) -> bool:
        nodes = self._table.table.nodes if self._table.table is not None else ()
        return any(_is_beyond(self._ends[node], cursor.places.get(node)) for node in nodes if node in self._ends)

    def _watch_all(self, table: PartitionTable) -> None:
        """Ask each node of the table that is not asked yet, if anybody waits."""
        if self._tasks is not None and self._readers:
            for node in table.nodes:
                if node not in self._watched:
                    self._watched.add(node)
                    self._tasks.create_task(self._watch(node))

    async def _watch(self, node: NodeId) -> None:
        try:
            while self._readers and not self.is_closing and self._is_in_table(node):
                try:
                    end = await self._ask_end(node, self._ends.get(node, START))
                except RoadsteadError as error:
                    self._log.debug("events_wait_failed", peer=node, error=str(error))
                    self._ends.pop(node, None)
                    await asyncio.sleep(RETRY_MS / 1000)
                    continue
                if end != self._ends.get(node):
                    self._ends[node] = end
                    self._wake()
                await asyncio.sleep(GATHER_MS / 1000)
        finally:
            self._watched.discard(node)
            self._ends.pop(node, None)

    async def _ask_end(self, node: NodeId, known: Place) -> Place:
        if node == self._node:
            return await self._feed.wait_beyond(known, WAIT_MS_MAX)
        ask = EventsEndAsk(known, WAIT_MS_MAX)
        return await self._pool.get(node).call(EVENTS_END, ask, deadline_ms=WAIT_MS_MAX + READ_DEADLINE_MS)

    def _is_in_table(self, node: NodeId) -> bool:
        return self._table.table is not None and node in self._table.table.nodes

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _is_dry(page: MergedPage[Told]) -> bool:
    return page.is_at_end and not page.items


def _is_beyond(end: Place, place: Place | None) -> bool:
    """Return whether there may be something to read up to an end; it may be older than the place."""
    return place is None or end.feed != place.feed or end.after > place.after
