"""One shard: a store, and all that works on it. A process has several, which share what is the process' (`Shared`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from base.clock import Clock
from base.errors import BadRequest, LimitExceeded, RoadsteadError
from base.log import logger
from im.admitting import Admission
from im.api import (
    CONVERSATION_ENTRIES_MAX,
    Conversation,
    ConversationHeads,
    ConversationReply,
    Heads,
    HeadsReply,
    RpcReply,
    Timeline,
    TimelinePage,
)
from im.config import ImConfig
from im.core.arguments import cid_of
from im.core.commands import Appended, KeyConflict, Outcome, Outgoing, Receive, Received
from im.core.grouping import removed_by
from im.core.ids import MessageIds
from im.core.model import Form, Message, Overlay
from im.core.overload import Work
from im.core.publications import publication
from im.core.quotas import Quotas
from im.core.sending import BUSY
from im.core.versions import Versions
from im.counting import Counting
from im.gathering import Gathered, Shards
from im.methods import Caller, Methods
from im.metrics import ImMetrics
from im.outbox import Outbox
from im.outlet import Outlet
from im.ports import MessageStore
from im.pusher import Pusher
from im.reading import Reading, overlays_told, sync_version
from im.search.search import Search
from im.trimming import Trimming
from im.writer import Commit, GroupCommit
from im.writing import Writing

__all__ = ["Shard", "Shared"]

OFFSET_MAX = 2**63 - 1
UNPROVEN_ENTRIES_MAX = 100
"""Entries after a proven position that are looked at: who misses more has been told already."""
VERSIONS_LOADED_MAX = 100
"""Sync versions that one call reads from the store; the others are told by a later one."""
SETTLE_MS = 2_000
TAKE_OVER_MAX = 1_000
"""Entries of another shard in one call."""


class Shared(NamedTuple):
    """What the shards of a process have in common."""

    config: ImConfig
    node: str
    clock: Clock
    ids: MessageIds
    outlet: Outlet
    metrics: ImMetrics
    quotas: Quotas
    shards: Shards
    on_missed: Callable[[str, Message], None]
    """Told of each message that its receiver missed, as far as can be told."""


class Shard:
    """See the module. `run` belongs into the service's TaskGroup; `drain`, then `close`, in this order."""

    def __init__(self, shared: Shared, number: int, count: int, *, store: MessageStore, search: Search) -> None:
        """`store` and `search` are open, and closed here; there are `count` shards."""
        config, metrics, self._clock = shared.config, shared.metrics, shared.clock
        self.store = store
        self._number = number
        self._search = search
        self._metrics = metrics
        self._log = logger(node=shared.node, shard=number)
        self._on_missed = shared.on_missed
        self._versions = Versions(is_on=count == 1 and config.has_small_read_fan_out)
        self._pusher = Pusher(
            config,
            shared.outlet,
            node=shared.node,
            epoch=store.epoch,
            metrics=metrics,
            versions=self._versions,
            on_offline=shared.on_missed,
            on_unheard=self._unheard,
        )
        self._writer = GroupCommit(
            store,
            self._clock,
            on_committed=self._committed,
            on_unsure=self._unsure,
            lane_key=config.ingress_key,
            waiting_max=config.append_queue_max,
            lane_max=config.append_lane_max,
        )
        self._outbox = Outbox(
            store,
            self._writer,
            self._clock,
            others=[other for other in range(count) if other != number],
            take_over=lambda target, entries: shared.shards.take_over(number, target, entries),
        )
        self._admission = Admission(config, self._clock, self._writer, metrics, quotas=shared.quotas)
        seen = store if count == 1 else Gathered(store, shared.shards)
        self._counting = Counting(
            seen,
            metrics,
            settle=self._writer.settle,
            interval_ms=config.unread_compare_ms,
            is_caching=count == 1,
        )
        self._reading = Reading(
            seen,
            search,
            self._counting,
            sync_entries_max=config.sync_entries_max,
            has_previews=self.has_previews,
            has_direct=config.ledger_settings(number, count).has_direct,
        )
        self._writing = Writing(self._clock, shared.ids, self._writer, body_bytes_max=config.body_bytes_max)
        self._methods = Methods(
            self._reading,
            self._writing,
            admit=self._admission.admit,
            in_turn=self._admission.in_turn,
            type_to=self._admission.shedding(self._pusher.tell, Work.TYPING),
            receipt_to=self._admission.shedding(self._pusher.tell, Work.RECEIPTS),
        )
        self._trimming = Trimming(self._writer, keep=config.timeline_keep)
        self._gauges = [
            metrics.search_lag.add(lambda: search.lag),
            metrics.behind.add(lambda: self._pusher.behind),
            metrics.outgoing.add(lambda: len(self._outbox)),
            self._counting.forget,
            self._admission.forget,
        ]

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run())
            tasks.create_task(self._pusher.run())
            tasks.create_task(self._outbox.run())
            tasks.create_task(self._trimming.run())
            tasks.create_task(self._counting.run())
            tasks.create_task(self._admission.run())
            tasks.create_task(self._search.run(lambda: not self._admission.does(Work.TYPING)))

    async def drain(self) -> None:
        """Refuse new commands and commit what waits."""
        self._writing.is_draining = True
        await self._writer.close()

    async def settle(self) -> None:
        """Let other processes have what is for their users, as far as they answer, for a while at most."""
        await self._outbox.settle(at_most_ms=SETTLE_MS)

    async def close(self) -> None:
        """Close the files."""
        for forget in self._gauges:
            forget()
        await self._search.close()
        await self.store.close()

    def has_previews(self) -> bool:
        """Whether lists show what messages say just now."""
        return self._admission.does(Work.PREVIEWS)

    def statistics(self) -> Mapping[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "epoch": self.store.epoch,
            "is_draining": self._writing.is_draining,
            "push_behind": self._pusher.behind,
            "outgoing": len(self._outbox),
            "sync_versions": len(self._versions),
        }

    # ------------------------------------------------------------ calls

    def send(self, caller: Caller, data: bytes) -> asyncio.Future[RpcReply]:
        """Carry out an `im.send`, which is what most calls are: without a task."""
        reply: asyncio.Future[RpcReply] = asyncio.get_running_loop().create_future()
        started = self._clock.stopwatch()

        def told(outcome: Outcome | RoadsteadError) -> None:
            if reply.done():
                return  # nobody waits any more
            try:
                reply.set_result(RpcReply(self._methods.sent(outcome)))
            except RoadsteadError as error:
                reply.set_exception(error)
            else:
                self._metrics.sends.observe(self._clock.stopwatch() - started)

        self._writer.enqueue(self._methods.draft(caller, data), told)
        return reply

    def call(self, caller: Caller, name: str, data: bytes) -> Awaitable[bytes]:
        """Begin a call; what is awaited is its result as JSON. Raises as `Methods.call`."""
        return self._timed(self._methods.call(caller, name, data))

    async def _timed(self, call: Awaitable[bytes]) -> bytes:
        started = self._clock.stopwatch()
        result = await call
        self._metrics.calls.observe(self._clock.stopwatch() - started)
        return result

    async def take_over(self, source: int, entries: tuple[Outgoing, ...]) -> int:
        """Put entries of another shard's logs into timelines here, durably; see `im.gathering.Here`."""
        if len(entries) > TAKE_OVER_MAX:
            raise LimitExceeded("too many entries in one call", what="entries", limit=TAKE_OVER_MAX)
        outcome = await self._writer.submit(Receive(source, entries))
        assert isinstance(outcome, Received)
        self._metrics.taken_over.inc(len(entries))
        return outcome.through

    # ------------------------------------------------------------ for access nodes

    async def timeline(self, request: Timeline) -> TimelinePage:
        """Read a user's timeline."""
        _require_range(request)
        if request.limit == 0:
            (head,) = await self.store.heads([request.user])
            return TimelinePage(self.store.epoch, head, [])
        page = await self.store.timeline(request.user, since=request.since, limit=request.limit)
        if request.since < page.floor:
            return TimelinePage(self.store.epoch, page.head, [])  # what would follow was trimmed: not recovered
        numbered = ((entry.offset, entry.message) for entry in page.entries)
        overlays = await self._reading.overlays_for(request.user, page.overlays)
        return TimelinePage(self.store.epoch, page.head, _encoded(numbered, overlays, request.bytes_max))

    async def heads(self, request: Heads) -> HeadsReply:
        """Return where timelines end."""
        heads = await self.store.heads(request.users)
        return HeadsReply(self.store.epoch, heads, await self._known_versions(request.users))

    async def _known_versions(self, users: list[str]) -> list[int]:
        """Return sync versions, 0 for those that are not known yet; some of them are read for the next call."""
        if not self._versions.is_on:
            return []
        versions = {user: self._versions.known(user) for user in users}
        read: dict[str, tuple[int, int]] = {}
        for user in [user for user, version in versions.items() if version is None][:VERSIONS_LOADED_MAX]:
            ticket = self._versions.begin(user)
            (head,) = await self.store.heads([user])
            read[user] = (sync_version(head, await self.store.conversations(user)), ticket)
        if read:
            await self._writer.settle()  # whatever was read has been told to the versions then
            versions.update({user: self._versions.loaded(user, *loaded) for user, loaded in read.items()})
        return [versions[user] or 0 for user in users]

    async def conversation(self, request: Conversation) -> ConversationReply:
        """Read a conversation for one of its members."""
        cid = cid_of(request.cid)
        _require_range(request)
        visible = await self._reading.visible(cid, request.user)
        since = max(request.since, visible.first_seq - 1)
        if request.limit == 0:
            (head,) = await self.store.conversation_heads([cid])
            visible = await self._reading.visible_still(cid, request.user, visible)
            return ConversationReply(self.store.epoch, min(head, visible.last_seq or head), [], visible.last_seq)
        limit = min(request.limit, CONVERSATION_ENTRIES_MAX)
        page = await self.store.conversation(cid, since=since, limit=limit)
        visible = await self._reading.visible_still(cid, request.user, visible)
        head = min(page.head, visible.last_seq or page.head)
        seen = range(visible.first_seq, head + 1)
        numbered = ((message.seq, message) for message in page.messages if message.seq in seen)
        entries = _encoded(numbered, overlays_told(page.overlays, visible), request.bytes_max)
        told = {seq for seq, _ in entries}
        removed = [(one.seq, users) for one in page.messages if one.seq in told and (users := removed_by(one))]
        return ConversationReply(self.store.epoch, head, entries, visible.last_seq, removed)

    async def conversation_heads(self, request: ConversationHeads) -> HeadsReply:
        """Return where conversations end."""
        heads = await self.store.conversation_heads([cid_of(cid) for cid in request.cids])
        return HeadsReply(self.store.epoch, heads)

    async def missed_from(self, user: str, first: int, last: int = OFFSET_MAX) -> None:
        """Hold that the user missed what is in the timeline from an offset on, and up to another one."""
        limit = min(UNPROVEN_ENTRIES_MAX, last - first + 1)
        page = await self.store.timeline(user, since=max(0, first - 1), limit=limit)
        for entry in page.entries:
            message = entry.message
            if entry.offset <= last and message.form == Form.MESSAGE and message.sender != user:
                self._on_missed(user, message)

    async def _unheard(self, user: str, first: int, last: int) -> None:
        try:
            await self.missed_from(user, first, last)
        except RoadsteadError as error:
            self._log.info("missed_not_told", user=user, error=str(error))

    # ------------------------------------------------------------ commits

    def _unsure(self) -> None:
        self._outbox.unsure()

    def _committed(self, commit: Commit) -> bool:
        executed = commit.executed
        deliveries = executed.deliveries
        if commit.commands:
            self._metrics.batches.observe(commit.commands)
            self._metrics.repeats.inc(sum(isinstance(one, Appended) and not one.is_new for one in executed.outcomes))
            self._metrics.conflicts.inc(sum(isinstance(one, KeyConflict) for one in executed.outcomes))
            self._metrics.crowded.inc(sum(one == BUSY for one in executed.outcomes))
        self._admission.committed(commit.took_ms)
        self._counting.committed(executed)
        self._pusher.committed(deliveries, commit.tell)
        if executed.outgoing:
            self._outbox.committed(executed.outgoing)
        self._trimming.committed(deliveries)
        stored = 0
        for delivery in deliveries:
            form = delivery.message.form
            if form == Form.MESSAGE:
                stored += delivery.is_first
            elif form == Form.EVENT:
                for user, _ in delivery.positions:
                    self._versions.forget(user)
        self._metrics.stored.inc(stored)
        return True  # by the pusher


def _require_range(request: Timeline | Conversation) -> None:
    if not 0 <= request.since <= OFFSET_MAX or request.limit < 0:
        raise BadRequest("since or limit is out of range")


def _encoded(
    numbered: Iterable[tuple[int, Message]], overlays: Mapping[tuple[int, int], Overlay], bytes_max: int
) -> list[tuple[int, bytes]]:
    """Return the publications that fit, with their numbers: one at least if there is any."""
    entries: list[tuple[int, bytes]] = []
    size = 0
    for number, message in numbered:
        data = publication(message, overlays.get((message.cid, message.seq)) if overlays else None)
        size += len(data)
        if size > bytes_max and entries:
            break
        entries.append((number, data))
    return entries
