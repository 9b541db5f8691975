"""An access node's watches at the status nodes: the shell around `core.watcher`.

The listener is told in order and at once, on the stream's own reading; nothing is queued here. Only "offline" may wait
a grace, where this node had to ask anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from base.clock import Timestamp
from base.errors import LimitExceeded, NotReady, RoadsteadError
from base.ids import NodeId
from base.log import logger
from base.peer import Method
from base.site import Site
from status.api import NOTICE, WATCH, WATCHED, Notices, Watch, WatchedReply, WatchReply
from status.core.partitions import PartitionTable
from status.core.visibility import Presence
from status.core.watcher import Request, Told, Watcher
from status.core.watches import GRACE_MS
from status.link import StatusLink

__all__ = ["StatusWatches"]

DEADLINE_MS = 2_000
RETRY_AFTER_MS = 500


class StatusWatches:
    """See the module. `run` asks; the link is run by whoever owns it."""

    def __init__(self, site: Site, link: StatusLink, *, users_max: int, grace_ms: int = GRACE_MS) -> None:
        """Watch nobody yet.

        Args:
            site: this node.
            link: its streams to status nodes.
            users_max: how many users this node may watch.
            grace_ms: how long the news that somebody went offline waits here, if this node had to ask anew.
        """
        self._clock = site.clock
        self._table = link.table
        self._pool = link.pool
        self._core = Watcher(users_max=users_max, grace_ms=grace_ms)
        self._news = asyncio.Event()
        self._waiting: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        self._listener: Callable[[str, str, str, Timestamp | None], None] | None = None
        self._log = logger(node=site.name)
        link.table.on_change(self._adopt)
        link.on_connected(self._connected)
        link.pool.serve(NOTICE, self._noticed)

    def on_told(self, listener: Callable[[str, str, str, Timestamp | None], None]) -> None:
        """Call the listener with user, viewer, and what the viewer sees from now on: a state, and when last seen."""
        self._listener = listener

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._news.clear()
                self._tell(self._core.due(self._clock.monotonic()))
                for node, request in self._core.requests(self._clock.monotonic()):
                    tasks.create_task(self._ask(node, request))
                await self._wait()

    async def watch(self, user: str, viewer: str, *, deadline_ms: int) -> Presence:
        """Return what the viewer sees of the user; it is told of changes until `unwatch`, also if this fails.

        Raises:
            LimitExceeded: too many users are watched here, or too many look at this one.
            NotReady: the owner did not answer in time, or cannot tell now.
        """
        seen = self._core.watch(user, viewer)
        if seen is None:
            await self._wait_told(user, viewer, deadline_ms)
            seen = self._core.told(user, viewer)
        if seen is None or seen.state == "unknown":
            raise NotReady("it is not known now whether the user is online", retry_after_ms=RETRY_AFTER_MS)
        return seen

    def unwatch(self, user: str, viewer: str) -> None:
        """Stop telling the viewer."""
        self._core.unwatch(user, viewer)
        self._news.set()

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return self._core.statistics()

    # ---------------------------------------------------------------- inside

    async def _wait_told(self, user: str, viewer: str, deadline_ms: int) -> None:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault((user, viewer), [])
        waiting.append(told)
        self._news.set()
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await told
        except TimeoutError:
            pass  # nothing is known then
        finally:
            waiting.remove(told)
            if not waiting and self._waiting.get((user, viewer)) is waiting:
                del self._waiting[user, viewer]

    async def _wait(self) -> None:
        due = self._core.next_deadline()
        timer = None
        if due is not None:
            wait_ms = max(0, due - self._clock.monotonic())
            timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._news.set)
        await self._news.wait()
        if timer is not None:
            timer.cancel()

    async def _ask(self, node: NodeId, request: Request) -> None:
        method: Method[Request, WatchReply | WatchedReply] = WATCH if isinstance(request, Watch) else WATCHED  # type: ignore[assignment]
        try:
            reply = await self._pool.get(node).call(method, request, deadline_ms=DEADLINE_MS)
        except RoadsteadError as error:
            self._log.info("watch_failed", peer=node, error=str(error))
            self._core.failed(self._clock.monotonic(), node, request)
        else:
            for pair in self._core.answered(self._clock.monotonic(), node, request, reply):
                for waiting in self._waiting.get(pair, ()):
                    if not waiting.done():
                        waiting.set_exception(LimitExceeded("too many look at this user", what="viewers"))
            self._table.offer_diff(reply.table)
        self._news.set()

    def _noticed(self, notices: Notices, node: str) -> None:
        self._tell(self._core.noticed(self._clock.monotonic(), NodeId(node), notices.notices))
        if self._core.has_waiting:
            self._news.set()

    def _tell(self, news: Iterable[Told]) -> None:
        for told in news:
            for waiting in self._waiting.get((told.user, told.viewer), ()):
                if not waiting.done():
                    waiting.set_result(None)
            if self._listener is not None:
                self._listener(told.user, told.viewer, told.presence.state, told.presence.last_seen)

    def _adopt(self, table: PartitionTable) -> None:
        self._core.adopt(table)
        self._news.set()

    def _connected(self, node: NodeId) -> None:
        self._core.connected(node)
        self._news.set()
