"""The message services of one process: the shell around a store.

A send is acknowledged when it is durable, never before; pushes come after and may fail without harm. Start: open the
store, listen, register. Run: commit in groups, push, heartbeat. Drain: not ready, refuse new sends, commit what
waits. Stop: deregister, close the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from base.errors import BadRequest, LimitExceeded, RoadsteadError, UnknownMethod
from base.ids import entropy, new_epoch
from base.log import logger
from base.node import Node
from base.site import Site
from im.admitting import Admission
from im.api import (
    CONVERSATION,
    CONVERSATION_ENTRIES_MAX,
    CONVERSATION_HEADS,
    CONVERSATIONS_MAX,
    HEADS,
    HEADS_USERS_MAX,
    RPC,
    SERVICE,
    TIMELINE,
    UNPROVEN,
    UNPROVEN_MAX,
    Conversation,
    ConversationHeads,
    ConversationReply,
    Heads,
    HeadsReply,
    Rpc,
    RpcReply,
    Taken,
    Timeline,
    TimelinePage,
    Unproven,
)
from im.config import ImConfig
from im.core.arguments import cid_of
from im.core.commands import Appended, KeyConflict, Outcome
from im.core.model import Form, Message, Overlay
from im.core.offline import OfflineFeed
from im.core.overload import Work
from im.core.publications import publication
from im.core.versions import Versions
from im.counting import Counting
from im.http import ImApi
from im.methods import Caller, Methods
from im.metrics import ImMetrics
from im.ports import MessageStore
from im.pusher import Pusher
from im.reading import Reading, overlays_told, sync_version
from im.search.search import Search
from im.trimming import Trimming
from im.workers import MessageNumbers
from im.writer import Commit, GroupCommit
from im.writing import Writing
from status.client import StatusLookups

__all__ = ["MessageService"]

OFFSET_MAX = 2**63 - 1
UNPROVEN_ENTRIES_MAX = 100
"""Entries after a proven position that are looked at: who misses more has been told already."""
VERSIONS_LOADED_MAX = 100
"""Sync versions that one call reads from the store; the others are told by a later one."""


class MessageService:
    """One process of the message services on its HTTP port."""

    def __init__(
        self, config: ImConfig, site: Site, *, store: MessageStore, search: Search, statuses: StatusLookups
    ) -> None:
        """`store` and `search` are open, and closed by `stop`; `search` finds in the store; `statuses` finds the
        receivers' access nodes, and is run by this service.
        """
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._clock = site.clock
        self._log = logger(node=site.name)
        self._store = store
        self._search = search
        self._metrics = metrics = ImMetrics(self.node.metrics, behind=lambda: self._pusher.behind)
        metrics.search_lag.set_function(lambda: search.lag)
        self._versions = Versions(is_on=config.has_small_read_fan_out)
        self._offline = OfflineFeed(new_epoch(), items_max=config.offline_items_max)
        self._ids = MessageNumbers(config.message_ids, site, entropy=entropy())
        peers = self.node.peers
        self._pusher = Pusher(
            config,
            site,
            epoch=store.epoch,
            statuses=statuses,
            peers=peers,
            metrics=metrics,
            versions=self._versions,
            on_offline=self._missed,
            on_unheard=self._unheard,
        )
        self._writer = GroupCommit(
            store,
            self._clock,
            on_committed=self._committed,
            lane_key=config.ingress_key,
            waiting_max=config.append_queue_max,
            lane_max=config.append_lane_max,
        )
        self._admission = Admission(config, self._clock, self._writer, metrics)
        self._counting = Counting(store, metrics, settle=self._writer.settle, interval_ms=config.unread_compare_ms)

        def has_previews() -> bool:
            return self._admission.does(Work.PREVIEWS)

        self._reading = Reading(
            store, search, self._counting, sync_entries_max=config.sync_entries_max, has_previews=has_previews
        )
        self._writing = Writing(self._clock, self._ids, self._writer, body_bytes_max=config.body_bytes_max)
        self._methods = Methods(
            self._reading,
            self._writing,
            admit=self._admission.admit,
            type_to=self._admission.shedding(self._pusher.tell, Work.TYPING),
            receipt_to=self._admission.shedding(self._pusher.tell, Work.RECEIPTS),
        )
        self._trimming = Trimming(self._writer, keep=config.timeline_keep)
        self._api = ImApi(
            self._methods, offline=self._offline, store=store, credentials=site.credentials, has_previews=has_previews
        )
        self._api.add_to(self.node.http.app.router)
        peers.serve(RPC, self._rpc)
        peers.serve(TIMELINE, self._timeline)
        peers.serve(HEADS, self._heads)
        peers.serve(CONVERSATION, self._conversation)
        peers.serve(CONVERSATION_HEADS, self._conversation_heads)
        peers.serve(UNPROVEN, self._unproven)

    async def start(self) -> None:
        """Listen, join, and wait until receivers can be looked up."""
        await self.node.listen()
        await self._pusher.wait_ready()
        await self._ids.acquire()
        await self.node.join()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run())
            tasks.create_task(self._pusher.run())
            tasks.create_task(self._trimming.run())
            tasks.create_task(self._counting.run())
            tasks.create_task(self._admission.run())
            tasks.create_task(self._search.run(lambda: not self._admission.does(Work.TYPING)))
            tasks.create_task(self._ids.run())
            tasks.create_task(self.node.run())

    async def drain(self) -> None:
        """Refuse new commands and commit what waits."""
        self.node.http.is_ready = False
        self._writing.is_draining = True
        await self._writer.close()

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()
        await self._ids.release()
        await self._search.close()
        await self._store.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "epoch": self._store.epoch,
            "is_draining": self._writing.is_draining,
            "push_behind": self._pusher.behind,
            "followed": self._pusher.followed,
            "offline_items": len(self._offline),
            "sync_versions": len(self._versions),
            "streams": self.node.peers.statistics(),
        }

    def _committed(self, commit: Commit) -> bool:
        executed = commit.executed
        deliveries = executed.deliveries
        if commit.commands:
            self._metrics.batches.observe(commit.commands)
            self._metrics.repeats.inc(sum(isinstance(one, Appended) and not one.is_new for one in executed.outcomes))
            self._metrics.conflicts.inc(sum(isinstance(one, KeyConflict) for one in executed.outcomes))
        self._admission.committed(commit.took_ms)
        self._counting.committed(executed)
        self._pusher.committed(deliveries, commit.tell)
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

    def _missed(self, user: str, message: Message) -> None:
        self._offline.add(user, message)
        self._metrics.missed.inc()
        self._api.offline_grew()

    async def _unheard(self, user: str, first: int) -> None:
        try:
            await self._missed_from(user, first)
        except RoadsteadError as error:
            self._log.info("missed_not_told", user=user, error=str(error))

    async def _missed_from(self, user: str, first: int) -> None:
        """Hold that the user missed what is in the timeline from an offset on."""
        page = await self._store.timeline(user, since=max(0, first - 1), limit=UNPROVEN_ENTRIES_MAX)
        for entry in page.entries:
            message = entry.message
            if message.form == Form.MESSAGE and message.sender != user:
                self._missed(user, message)

    # ---------------------------------------------------------------- peer methods

    def _rpc(self, rpc: Rpc, _peer: str) -> Awaitable[RpcReply]:
        service, _, name = rpc.method.partition(".")
        if service != SERVICE:
            raise UnknownMethod(f"there is no method {rpc.method}")
        caller = Caller(rpc.user, rpc.device)
        if name == "send":
            return self._send(caller, rpc.data)
        return self._answer(self._methods.call(caller, name, rpc.data))

    def _send(self, caller: Caller, data: bytes) -> asyncio.Future[RpcReply]:
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

    async def _answer(self, call: Awaitable[bytes]) -> RpcReply:
        started = self._clock.stopwatch()
        result = await call
        self._metrics.calls.observe(self._clock.stopwatch() - started)
        return RpcReply(result)

    async def _timeline(self, request: Timeline, _peer: str) -> TimelinePage:
        _require_range(request)
        if request.limit == 0:
            (head,) = await self._store.heads([request.user])
            return TimelinePage(self._store.epoch, head, [])
        page = await self._store.timeline(request.user, since=request.since, limit=request.limit)
        if request.since < page.floor:
            return TimelinePage(self._store.epoch, page.head, [])  # what would follow was trimmed: not recovered
        numbered = ((entry.offset, entry.message) for entry in page.entries)
        overlays = await self._reading.overlays_for(request.user, page.overlays)
        return TimelinePage(self._store.epoch, page.head, _encoded(numbered, overlays, request.bytes_max))

    async def _heads(self, request: Heads, _peer: str) -> HeadsReply:
        if len(request.users) > HEADS_USERS_MAX:
            raise LimitExceeded("too many users in one call", what="users", limit=HEADS_USERS_MAX)
        heads = await self._store.heads(request.users)
        return HeadsReply(self._store.epoch, heads, await self._known_versions(request.users))

    async def _known_versions(self, users: list[str]) -> list[int]:
        """Return sync versions, 0 for those that are not known yet; some of them are read for the next call."""
        if not self._versions.is_on:
            return []
        versions = {user: self._versions.known(user) for user in users}
        read: dict[str, tuple[int, int]] = {}
        for user in [user for user, version in versions.items() if version is None][:VERSIONS_LOADED_MAX]:
            ticket = self._versions.begin(user)
            (head,) = await self._store.heads([user])
            read[user] = (sync_version(head, await self._store.conversations(user)), ticket)
        if read:
            await self._writer.settle()  # whatever was read has been told to the versions then
            versions.update({user: self._versions.loaded(user, *loaded) for user, loaded in read.items()})
        return [versions[user] or 0 for user in users]

    async def _conversation(self, request: Conversation, _peer: str) -> ConversationReply:
        cid = cid_of(request.cid)
        _require_range(request)
        visible = await self._reading.visible(cid, request.user)
        since = max(request.since, visible.first_seq - 1)
        if request.limit == 0:
            (head,) = await self._store.conversation_heads([cid])
            return ConversationReply(self._store.epoch, min(head, visible.last_seq or head), [], visible.last_seq)
        limit = min(request.limit, CONVERSATION_ENTRIES_MAX)
        page = await self._store.conversation(cid, since=since, limit=limit)
        visible = await self._reading.visible_still(cid, request.user, visible)
        head = min(page.head, visible.last_seq or page.head)
        seen = range(visible.first_seq, head + 1)
        numbered = ((message.seq, message) for message in page.messages if message.seq in seen)
        entries = _encoded(numbered, overlays_told(page.overlays, visible.last_seq), request.bytes_max)
        return ConversationReply(self._store.epoch, head, entries, visible.last_seq)

    async def _conversation_heads(self, request: ConversationHeads, _peer: str) -> HeadsReply:
        if len(request.cids) > CONVERSATIONS_MAX:
            raise LimitExceeded("too many conversations in one call", what="conversations", limit=CONVERSATIONS_MAX)
        heads = await self._store.conversation_heads([cid_of(cid) for cid in request.cids])
        return HeadsReply(self._store.epoch, heads)

    async def _unproven(self, request: Unproven, _peer: str) -> Taken:
        """Hold that users missed what was written to them after their last sign of life."""
        if len(request.sessions) > UNPROVEN_MAX:
            raise LimitExceeded("too many sessions in one call", what="sessions", limit=UNPROVEN_MAX)
        for user, offset in request.sessions:
            await self._missed_from(user, offset + 1)
        return Taken()


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
