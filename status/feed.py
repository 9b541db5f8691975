"""One status node's session events: what it logs, and how other nodes read that.

The log is told of each partition that this node begins or ceases to serve, and of each session that opened, changed or
closed in between. It is read by whichever node a reader asks (`feed_reader`), over two peer methods: `status.events`
reads on from a place, `status.events_end` answers when there is something to read. All of a page is read in one turn,
so that a resync holds what is open as of its `user_seq`. Long audiences are left out: readers do not get them, and with
them neither the log would fit in memory nor a page in a message.

Limits, each with its meaning:
    EVENTS_MAX    events in the log (`core.events`); who is further behind gets everything that is open anew
    PAGE_MAX      the greatest size of a page that may be asked for; the item that reaches it may be a whole partition
    WAITS_MAX     nodes that may wait for the log's end to move at once; one more is refused with Overloaded
    WAIT_MS_MAX   how long one of them may wait
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from base.clock import Instant
from base.errors import BadRequest, Draining, Overloaded
from base.peer.server import PeerServer
from base.site import Site
from status.api import PLAIN_BYTES_MAX, plain
from status.core.events import CURSOR_NODES_MAX, EventLog, Page, Place, Resync
from status.core.ownership import Change, Ownership, Turn
from status.metrics import FeedMetrics
from status.peers import EVENTS, EVENTS_END, EventsAsk, EventsEndAsk, Snapshot, Told

__all__ = ["PAGE_MAX", "WAIT_MS_MAX", "EventFeed"]

PAGE_MAX = 1_000
WAITS_MAX = CURSOR_NODES_MAX
WAIT_MS_MAX = 25_000
BUSY_MS = 1_000


class EventFeed:
    """The log of this life of the node. `listen` is a listener of the node."""

    def __init__(
        self, site: Site, ownership: Ownership, metrics: FeedMetrics, *, catch_up: Callable[[], object]
    ) -> None:
        """`catch_up` steps `ownership` and tells its listeners what happened: a log that is read must be up to date."""
        self._log = EventLog(site.name, site.incarnation)
        self._clock = site.clock
        self._ownership = ownership
        self._metrics = metrics
        self._catch_up = catch_up
        self._moved = asyncio.Event()
        self._waits = 0
        self._is_closing = False
        metrics.show_log(self._log.statistics)

    def serve(self, peers: PeerServer) -> None:
        """Answer the other status nodes."""
        peers.serve(EVENTS, self._read)
        peers.serve(EVENTS_END, self._await_end)

    def listen(self, _now: Instant, turns: Sequence[Turn], changes: Sequence[Change]) -> None:
        """Log what happened. Hardly anything is unpacked here: most events are never read."""
        for turn in turns:
            if turn.is_served:
                self._log.owned(turn.partition, turn.owner_epoch)
            else:
                self._log.released(turn.partition)
        self._log.extend(_plain(changes), self._clock.realtime())
        if self._waits:
            self._wake()

    def read(self, place: Place | None, limit: int) -> Page[Told]:
        """Return what comes after a place, as `EventLog.read`; each resync with what is open."""
        self._catch_up()
        page = self._log.read(place, limit, self._open_sessions)
        items = [self._expanded(item) if isinstance(item, Resync) else item for item in page.items]
        if items:
            self._metrics.read.inc(len(items))
        return Page(items, page.next, page.is_at_end)

    async def wait_beyond(self, place: Place, wait_ms: int) -> Place:
        """Return the end of the log: once it is another than `place`, or as it is after `wait_ms`.

        Raises:
            Overloaded: too many wait already.
            Draining: nobody may wait here any more.
        """
        if self._log.head != place:
            return self._log.head
        if self._waits >= WAITS_MAX:
            raise Overloaded("too many nodes wait for events here", what="event_waits", retry_after_ms=BUSY_MS)
        self._waits += 1
        try:
            async with asyncio.timeout(wait_ms / 1000):
                while self._log.head == place and not self._is_closing:
                    await self._moved.wait()
        except TimeoutError:
            pass  # the same end is an answer, too
        finally:
            self._waits -= 1
        if self._is_closing:
            raise Draining("this node ends")
        return self._log.head

    def close(self) -> None:
        """Let nobody wait here from now on."""
        self._is_closing = True
        self._wake()

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {**self._log.statistics(), "waits": self._waits}

    # ---------------------------------------------------------------- inside

    def _read(self, ask: EventsAsk, _peer: str) -> Page[Told]:
        if not 1 <= ask.limit <= PAGE_MAX:
            raise BadRequest(f"a page has 1 to {PAGE_MAX} events, not {ask.limit}")
        return self.read(ask.place, ask.limit)

    async def _await_end(self, ask: EventsEndAsk, _peer: str) -> Place:
        if not 0 <= ask.wait_ms <= WAIT_MS_MAX:
            raise BadRequest(f"one may wait 0 to {WAIT_MS_MAX} ms, not {ask.wait_ms}")
        return await self.wait_beyond(ask.place, ask.wait_ms)

    def _open_sessions(self, partition: int) -> int:
        store = self._ownership.store(partition)
        assert store is not None, "the log speaks for partitions that are served here, and for no others"
        return store.statistics()["entries"]

    def _expanded(self, resync: Resync) -> Snapshot:
        store = self._ownership.store(resync.partition)
        assert store is not None, "see _open_sessions"
        self._metrics.resyncs.inc()
        sessions = [(user, plain(entry)) for user, entry in store.entries()]
        return Snapshot(resync.partition, resync.user_seq, sessions)

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _plain(changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes without long audiences; as they are where there is none, as nearly always."""
    for change in changes:
        if len(change[2]) > PLAIN_BYTES_MAX:
            return [(partition, user, plain(entry), merged) for partition, user, entry, merged in changes]
    return changes
