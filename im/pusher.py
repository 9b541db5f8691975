"""Tells online receivers what was stored: one status lookup a batch, one delivery an access node.

A push is a courtesy, the timeline is the truth. What cannot be pushed now (the status is unknown, a node does not
answer, a queue is full) marks its user as *behind*: a while later the user's access nodes are told how far the
timeline goes, and fetch what they miss. So nothing is sent twice in full, and nothing here needs to be durable.

Of messages that find their receiver offline the offline feed is told. If the user is behind, they wait with the others,
so that the feed is told of each once, and of these in order.

What has no entry in a timeline is pushed with the offset 0: messages of small conversations with read fan-out, typing,
receipts, hints. It is not told again; a message that is lost this way is missed when the next one of its conversation
comes, or when the sync version differs.

Per access node entries leave in the order of their commits, because batches are looked up one after the other. Access
nodes that follow a conversation need no lookup and do not wait for one: `followed` tells them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from access.api import DELIVER, Deliver, InboxEntry
from base.errors import RoadsteadError
from base.log import logger
from im.config import ImConfig
from im.core.commands import Delivery
from im.core.model import Form, Message
from im.core.publications import publication, with_version
from im.core.versions import Versions
from im.followed import parts
from im.metrics import ImMetrics
from im.outlet import Outlet
from status.api import UserStatus

__all__ = ["Pusher"]

DELIVER_DEADLINE_MS = 2_000
TELL_MS = 50
QUEUE_MAX = 50_000
"""Deliveries that may wait to be encoded, and entries that may wait for a lookup."""
RETRY_BATCH = 5_000
NO_HINTS: Mapping[str, int] = {}


class Pusher:
    """The outgoing side of one shard."""

    def __init__(
        self,
        config: ImConfig,
        outlet: Outlet,
        *,
        node: str,
        epoch: str,
        metrics: ImMetrics,
        versions: Versions,
        on_offline: Callable[[str, Message], None],
        on_unheard: Callable[[str, int, int], Coroutine[Any, Any, None]],
    ) -> None:
        """Take what is needed; `run` runs it.

        Args:
            config: bounds and intervals.
            outlet: where pushes leave; run by its owner.
            node: this node.
            epoch: the store's, told with each delivery.
            metrics: what is counted.
            versions: the sync versions of users, which this pusher counts on.
            on_offline: told of each message of another user that finds its receiver offline, who is not behind.
            on_unheard: told of who was behind and is found offline, and the first and last offset of what waited.
        """
        self._config = config
        self._epoch = epoch
        self._metrics = metrics
        self._statuses = outlet.statuses
        self._versions = versions
        self._on_offline = on_offline
        self._on_unheard = on_unheard
        self._pool = outlet.pool
        self._followed = outlet.followed
        self._queue: list[tuple[Delivery, Sequence[int | None]]] = []
        """With the sync versions of its members."""
        self._wake = asyncio.Event()
        self._entries: list[InboxEntry] = []
        self._news: list[Message | None] = []
        """For each of the entries its message, if its user should hear of it even when offline."""
        self._untold: list[Callable[[], None]] = []
        """Whom to tell of the commits in the queue; `_telling`: of those whose entries wait."""
        self._telling: list[Callable[[], None]] = []
        self._has_entries = asyncio.Event()
        self._behind: dict[str, tuple[int, int]] = {}
        """Of who is to be told how far the timeline goes: the first and the last offset that could not be pushed."""
        self._log = logger(node=node)

    @property
    def behind(self) -> int:
        """How many users wait to be told again."""
        return len(self._behind)

    def committed(self, deliveries: Iterable[Delivery], tell: Callable[[], None] | None = None) -> None:
        """Take what was just made durable, in order of commit. Never waits.

        `tell` is called when the pushes have been handed to the streams, or `TELL_MS` later if they have not: a sender
        has its acknowledgement in one piece with what is pushed to it.
        """
        if tell is not None:
            self._untold.append(tell)
            asyncio.get_running_loop().call_later(TELL_MS / 1000, tell)
        for delivery in deliveries:
            versions = self._versions_after(delivery)
            if len(self._queue) < QUEUE_MAX:
                self._queue.append((delivery, versions))
            else:
                self._mark_behind(delivery.positions)
        self._wake.set()

    def _versions_after(self, delivery: Delivery) -> Sequence[int | None]:
        """Count the delivery in the versions of all whom it concerns; return those of its `members`."""
        if delivery.members:
            self._versions.is_on = True  # there is a small conversation with read fan-out, whatever new ones get
        elif not self._versions.is_on:
            return ()
        self._versions.changed(user for user, _ in delivery.positions)
        return [self._versions.changed_one(user) for user in delivery.members]

    def tell(self, users: Iterable[str], data: bytes) -> None:
        """Push something of the moment to the users who are online. It is lost where that fails."""
        if len(self._entries) < QUEUE_MAX:
            told = [InboxEntry(user, 0, data) for user in users]
            self._entries += told
            self._news += [None] * len(told)
            self._has_entries.set()

    async def run(self) -> None:
        """Push until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._push_entries(tasks))
            tasks.create_task(self._retry(tasks))
            while True:
                await self._wake.wait()
                self._wake.clear()
                batch, self._queue = self._queue, []
                untold, self._untold = self._untold, []
                # Encoded once, for the timelines and for whoever follows the conversation.
                encoded = [(delivery, publication(delivery.message)) for delivery, _ in batch]
                self._followed.push(encoded, tasks, epoch=self._epoch)
                for (delivery, data), (_, versions) in zip(encoded, batch, strict=True):
                    self._add_entries(delivery, data, versions)
                self._telling += untold
                self._has_entries.set()

    # ------------------------------------------------------------ inside

    def _add_entries(self, delivery: Delivery, data: bytes, versions: Sequence[int | None]) -> None:
        if len(self._entries) >= QUEUE_MAX:
            self._mark_behind(delivery.positions)
            return
        message, entries, news = delivery.message, self._entries, self._news
        heard = message if message.form == Form.MESSAGE else None
        sender = message.sender
        for user, offset in delivery.positions:
            entries.append(InboxEntry(user, offset, data))
            news.append(heard if user != sender else None)
        for user, version in zip(delivery.members, versions, strict=True):
            entries.append(InboxEntry(user, 0, data if version is None else with_version(data, version)))
            news.append(heard if user != sender else None)

    async def _push_entries(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._has_entries.wait()
            self._has_entries.clear()
            entries, self._entries = self._entries, []
            news, self._news = self._news, []
            telling, self._telling = self._telling, []
            await self._push(entries, news, tasks)
            for tell in telling:
                tell()

    async def _push(
        self, entries: Sequence[InboxEntry], news: Sequence[Message | None], tasks: asyncio.TaskGroup
    ) -> None:
        statuses = await self._statuses.lookup(list({entry.user for entry in entries}))
        by_node: dict[str, list[InboxEntry]] = {}
        for entry, message in zip(entries, news, strict=True):
            status = statuses[entry.user]
            if status.state == "unknown":
                self._mark_behind([(entry.user, entry.offset)])
            elif status.state == "offline" and message is not None:
                if entry.offset and entry.user in self._behind:
                    self._mark_behind([(entry.user, entry.offset)])
                else:
                    self._on_offline(entry.user, message)
            _sort(entry, status, by_node)
        self._send(by_node, tasks)

    async def _hint(self, users: Sequence[str], tasks: asyncio.TaskGroup) -> None:
        """Tell users who are behind how far their timelines go: the access nodes fetch what their sessions miss."""
        statuses = await self._statuses.lookup(users)
        by_node: dict[str, list[InboxEntry]] = {}
        firsts: dict[str, int] = {}
        for user in users:
            first, end = self._behind.pop(user)  # not before: what could not be pushed meanwhile belongs to it
            status = statuses[user]
            if status.state == "unknown":
                self._behind[user] = first, end  # after the others
            elif status.state == "offline":
                tasks.create_task(self._on_unheard(user, first, end))
            else:
                firsts[user] = first
            _sort(InboxEntry(user, end, b""), status, by_node)
        self._send(by_node, tasks, firsts)

    def _send(
        self, by_node: Mapping[str, list[InboxEntry]], tasks: asyncio.TaskGroup, firsts: Mapping[str, int] = NO_HINTS
    ) -> None:
        """Send entries, or hints: `firsts` has of the users of these the first offset that was not pushed."""
        for node, mine in by_node.items():
            for part in parts(mine):
                # A task, so that a slow node delays nobody; its first step queues the call, so order is kept.
                tasks.create_task(self._deliver(node, part, firsts))

    async def _deliver(self, node: str, entries: list[InboxEntry], firsts: Mapping[str, int]) -> None:
        try:
            reply = await self._pool.get(node).call(
                DELIVER, Deliver(self._epoch, entries), deadline_ms=DELIVER_DEADLINE_MS
            )
        except RoadsteadError as error:
            self._log.info("push_failed", to=node, entries=len(entries), error=str(error))
            self._metrics.push_failures.inc(len(entries))
            self._mark_behind(((entry.user, entry.offset) for entry in entries), firsts)
            return
        self._metrics.pushes.inc(len(entries))
        self._metrics.absent.inc(len(reply.absent))

    def _mark_behind(self, positions: Iterable[tuple[str, int]], firsts: Mapping[str, int] = NO_HINTS) -> None:
        """Have the users told again. `firsts`: as in `_send`, of a hint that failed."""
        for user, offset in positions:
            known = self._behind.get(user)
            if not offset or (known is None and len(self._behind) >= self._config.push_behind_max):
                continue
            first, end = known or (offset, offset)
            self._behind[user] = min(first, firsts.get(user, offset)), max(end, offset)

    async def _retry(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self._config.push_retry_ms / 1000)
            self._followed.forget_gone()
            if self._behind:
                await self._hint(list(self._behind)[:RETRY_BATCH], tasks)


def _sort(entry: InboxEntry, status: UserStatus, by_node: dict[str, list[InboxEntry]]) -> None:
    """Put an entry with the others for each access node that has sessions of its user, once."""
    sessions = status.sessions
    for node in (sessions[0].node,) if len(sessions) == 1 else {view.node for view in sessions}:
        mine = by_node.get(node)
        if mine is None:
            by_node[node] = [entry]
        else:
            mine.append(entry)
