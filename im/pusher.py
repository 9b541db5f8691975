"""Tells online receivers what was stored: one status lookup a batch, one delivery an access node.

A push is a courtesy, the timeline is the truth. What cannot be pushed now (the status is unknown, a node does not
answer, a queue is full) marks its user as *behind*: a while later the user's access nodes are told how far the
timeline goes, and fetch what they miss. So nothing is sent twice in full, and nothing here needs to be durable.

Per access node entries leave in the order of their commits, because batches are looked up one after the other. Access
nodes that follow a conversation need no lookup and do not wait for one: `followed` tells them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from access.api import DELIVER, Deliver, InboxEntry
from access.api import SERVICE as ACCESS_SERVICE
from base.errors import RoadsteadError
from base.log import logger
from base.peer import PeerPool, PeerServer
from base.site import Site
from im.config import ImConfig
from im.core.message import publication
from im.followed import Followed
from im.metrics import ImMetrics
from im.ports import Appended
from status.api import UserStatus
from status.client import StatusLookups

__all__ = ["Pusher"]

DELIVER_DEADLINE_MS = 2_000
QUEUE_MAX = 50_000
"""Messages that may wait to be encoded, and timeline entries that may wait for a lookup."""
RETRY_BATCH = 5_000


class Pusher:
    """The outgoing side of one message service."""

    def __init__(
        self,
        config: ImConfig,
        site: Site,
        *,
        epoch: str,
        statuses: StatusLookups,
        peers: PeerServer,
        metrics: ImMetrics,
    ) -> None:
        """`epoch`: the store's, told with each delivery; `statuses`: run by this pusher; `peers`: serve `im.follow`."""
        self._config = config
        self._epoch = epoch
        self._metrics = metrics
        self._statuses = statuses
        self._pool = PeerPool(site, ACCESS_SERVICE)
        self._followed = Followed(
            site, self._pool, peers=peers, epoch=epoch, pairs_max=config.followed_max, metrics=metrics
        )
        self._queue: list[Appended] = []
        self._wake = asyncio.Event()
        self._entries: list[InboxEntry] = []
        self._has_entries = asyncio.Event()
        self._behind: dict[str, int] = {}
        self._log = logger(node=site.name)

    @property
    def behind(self) -> int:
        """How many users wait to be told again."""
        return len(self._behind)

    @property
    def followed(self) -> int:
        """How many conversations access nodes follow, each counted once a node."""
        return len(self._followed)

    def committed(self, batch: Iterable[Appended]) -> None:
        """Take what was just made durable, in order of commit. Never waits."""
        for appended in batch:
            if len(self._queue) < QUEUE_MAX:
                self._queue.append(appended)
            else:
                self._mark_behind(appended.positions)
        self._wake.set()

    async def run(self) -> None:
        """Push until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._statuses.run())
            tasks.create_task(self._pool.run())
            tasks.create_task(self._push_entries(tasks))
            tasks.create_task(self._retry(tasks))
            while True:
                await self._wake.wait()
                self._wake.clear()
                batch, self._queue = self._queue, []
                # Encoded once, for the timelines and for whoever follows the conversation.
                encoded = [(appended, publication(appended.message)) for appended in batch]
                self._followed.push([(appended.message, data) for appended, data in encoded], tasks)
                for appended, data in encoded:
                    self._add_entries(appended, data)

    async def wait_ready(self) -> None:
        """Return once statuses can be looked up."""
        await self._statuses.wait_ready()
        await self._pool.wait_ready()

    def _add_entries(self, appended: Appended, data: bytes) -> None:
        if len(self._entries) < QUEUE_MAX:
            self._entries.extend(InboxEntry(user, offset, data) for user, offset in appended.positions)
            self._has_entries.set()
        else:
            self._mark_behind(appended.positions)

    async def _push_entries(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._has_entries.wait()
            self._has_entries.clear()
            entries, self._entries = self._entries, []
            await self._push(entries, tasks)

    async def _push(self, entries: list[InboxEntry], tasks: asyncio.TaskGroup) -> None:
        statuses = await self._statuses.lookup(list({entry.user for entry in entries}))
        for node, mine in self._by_node(entries, statuses).items():
            # A task, so that a slow node delays nobody; its first step queues the call, so order is kept.
            tasks.create_task(self._deliver(node, mine))

    def _by_node(
        self, entries: Iterable[InboxEntry], statuses: Mapping[str, UserStatus]
    ) -> dict[str, list[InboxEntry]]:
        by_node: dict[str, list[InboxEntry]] = {}
        for entry in entries:
            status = statuses[entry.user]
            if status.state == "unknown":
                self._mark_behind([(entry.user, entry.offset)])
            for node in {view.node for view in status.sessions}:
                by_node.setdefault(node, []).append(entry)
        return by_node

    async def _deliver(self, node: str, entries: list[InboxEntry]) -> None:
        try:
            reply = await self._pool.get(node).call(
                DELIVER, Deliver(self._epoch, entries), deadline_ms=DELIVER_DEADLINE_MS
            )
        except RoadsteadError as error:
            self._log.info("push_failed", to=node, entries=len(entries), error=str(error))
            self._metrics.push_failures.inc(len(entries))
            self._mark_behind((entry.user, entry.offset) for entry in entries)
            return
        self._metrics.pushes.inc(len(entries))
        self._metrics.absent.inc(len(reply.absent))

    def _mark_behind(self, positions: Iterable[tuple[str, int]]) -> None:
        for user, offset in positions:
            if user in self._behind or len(self._behind) < self._config.push_behind_max:
                self._behind[user] = max(offset, self._behind.get(user, 0))

    async def _retry(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self._config.push_retry_ms / 1000)
            self._followed.forget_gone()
            users = list(self._behind)[:RETRY_BATCH]
            if users:
                # Only how far the timeline goes: the access node fetches what its sessions miss.
                await self._push([InboxEntry(user, self._behind.pop(user), b"") for user in users], tasks)
