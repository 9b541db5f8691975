"""The message services of one process: the shell around a store.

A send is acknowledged when it is durable, never before; pushes come after and may fail without harm. Start: open the
store, listen, register. Run: commit in groups, push, heartbeat. Drain: not ready, refuse new sends, commit what
waits. Stop: deregister, close the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from base.errors import (
    BadRequest,
    Conflict,
    Draining,
    LimitExceeded,
    PermissionDenied,
    Unavailable,
    UnknownMethod,
)
from base.http import Role, json_body, query_param
from base.ids import checked_id
from base.node import Node
from base.site import Site
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
    Conversation,
    ConversationHeads,
    ConversationReply,
    Heads,
    HeadsReply,
    Rpc,
    RpcReply,
    Timeline,
    TimelinePage,
)
from im.config import ImConfig
from im.core.message import Send, cid_of, draft_of, publication, send_result
from im.core.snowflake import ClockWentBack, Snowflake
from im.metrics import ImMetrics
from im.ports import Appended, KeyConflict, Message, MessageStore
from im.pusher import Pusher
from im.writer import GroupCommit
from status.client import StatusLookups

__all__ = ["MessageService"]

OFFSET_MAX = 2**63 - 1

T = TypeVar("T")


class SyncRequest(msgspec.Struct, frozen=True):
    """The arguments of `im.sync`: the entries after `since`, at most `limit` of them."""

    since: int = 0
    limit: int = 100


class ServerSend(msgspec.Struct, frozen=True):
    """The body of `POST /v1/messages`: a backend sends for a user."""

    sender: str = msgspec.field(name="from")
    to: str
    client_msg_id: str
    body: msgspec.Raw
    type: str = "text"


class MessageService:
    """One process of the message services on its HTTP port."""

    def __init__(
        self,
        config: ImConfig,
        site: Site,
        *,
        store: MessageStore,
        worker: int,
        statuses: StatusLookups,
    ) -> None:
        """`store` is open, and closed by `stop`; `worker` is this process's number in message ids, 0 to 1023;
        `statuses` finds the receivers' access nodes, and is run by this service.
        """
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._config = config
        self._clock = site.clock
        self._credentials = site.credentials
        self._store = store
        self._snowflake = Snowflake(worker)
        self._is_draining = False
        self._metrics = ImMetrics(self.node.metrics, behind=lambda: self._pusher.behind)
        self._pusher = Pusher(
            config, site, epoch=store.epoch, statuses=statuses, peers=self.node.peers, metrics=self._metrics
        )
        self._writer = GroupCommit(store, on_committed=self._committed, waiting_max=config.append_queue_max)
        self.node.peers.serve(RPC, self._rpc)
        self.node.peers.serve(TIMELINE, self._timeline)
        self.node.peers.serve(HEADS, self._heads)
        self.node.peers.serve(CONVERSATION, self._conversation)
        self.node.peers.serve(CONVERSATION_HEADS, self._conversation_heads)
        self.node.http.app.router.add_post("/v1/messages", self._post_message)
        self.node.http.app.router.add_get("/v1/users/{user}/timeline", self._get_timeline)

    async def start(self) -> None:
        """Listen, join, and wait until receivers can be looked up."""
        await self.node.listen()
        await self._pusher.wait_ready()
        await self.node.join()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run())
            tasks.create_task(self._pusher.run())
            tasks.create_task(self.node.run())

    async def drain(self) -> None:
        """Refuse new sends and commit what waits."""
        self.node.http.is_ready = False
        self._is_draining = True
        await self._writer.close()

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()
        await self._store.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "epoch": self._store.epoch,
            "is_draining": self._is_draining,
            "push_behind": self._pusher.behind,
            "followed": self._pusher.followed,
            "streams": self.node.peers.statistics(),
        }

    # ---------------------------------------------------------------- sending

    async def _send(self, send: Send, *, sender: str, device: str) -> bytes:
        """Store a message and return its acknowledgement as JSON."""
        if self._is_draining:
            raise Draining("this node takes no new messages", retry_after_ms=500)
        started = self._clock.stopwatch()
        now = self._clock.realtime()
        mid = self._snowflake.next(now)
        if isinstance(mid, ClockWentBack):
            raise Unavailable(f"the clock went back by {mid.by_ms} ms; waiting for it", retry_after_ms=mid.by_ms)
        draft = draft_of(
            send, sender=sender, device=device, mid=mid, at=now, body_bytes_max=self._config.body_bytes_max
        )
        outcome = await self._writer.submit(draft)
        if isinstance(outcome, KeyConflict):
            self._metrics.conflicts.inc()
            raise Conflict(f"client_msg_id {send.client_msg_id} was used for another message")
        if not outcome.is_new:
            self._metrics.repeats.inc()
        self._metrics.sends.observe(self._clock.stopwatch() - started)
        return send_result(outcome)

    def _committed(self, batch: list[Appended]) -> None:
        new = [appended for appended in batch if appended.is_new]
        self._metrics.stored.inc(len(new))
        self._metrics.batches.observe(len(batch))
        self._pusher.committed(new)

    # ---------------------------------------------------------------- peer methods

    async def _rpc(self, rpc: Rpc, _peer: str) -> RpcReply:
        match rpc.method:
            case "im.send":
                send = _decode(rpc.data, Send)
                return RpcReply(await self._send(send, sender=rpc.user, device=rpc.device))
            case "im.sync":
                sync = _decode(rpc.data, SyncRequest)
                return RpcReply(await self._sync(rpc.user, sync.since, sync.limit))
            case _:
                raise UnknownMethod(f"there is no method {rpc.method}; there are im.send and im.sync")

    async def _timeline(self, request: Timeline, _peer: str) -> TimelinePage:
        _require_range(request)
        if request.limit == 0:
            (head,) = await self._store.heads([request.user])
            return TimelinePage(self._store.epoch, head, [])
        page = await self._store.timeline(request.user, since=request.since, limit=request.limit)
        entries = _encoded(((entry.offset, entry.message) for entry in page.entries), request.bytes_max)
        return TimelinePage(self._store.epoch, page.head, entries)

    async def _heads(self, request: Heads, _peer: str) -> HeadsReply:
        if len(request.users) > HEADS_USERS_MAX:
            raise LimitExceeded("too many users in one call", what="users", limit=HEADS_USERS_MAX)
        return HeadsReply(self._store.epoch, await self._store.heads(request.users))

    async def _conversation(self, request: Conversation, _peer: str) -> ConversationReply:
        cid = cid_of(request.cid)
        _require_range(request)
        if not await self._store.is_member(cid, request.user):
            # In the same words when it does not exist: nobody can find out by asking.
            raise PermissionDenied("you are no member of such a conversation")
        if request.limit == 0:
            (head,) = await self._store.conversation_heads([cid])
            return ConversationReply(self._store.epoch, head, [])
        limit = min(request.limit, CONVERSATION_ENTRIES_MAX)
        page = await self._store.conversation(cid, since=request.since, limit=limit)
        entries = _encoded(((message.seq, message) for message in page.messages), request.bytes_max)
        return ConversationReply(self._store.epoch, page.head, entries)

    async def _conversation_heads(self, request: ConversationHeads, _peer: str) -> HeadsReply:
        if len(request.cids) > CONVERSATIONS_MAX:
            raise LimitExceeded("too many conversations in one call", what="conversations", limit=CONVERSATIONS_MAX)
        heads = await self._store.conversation_heads([cid_of(cid) for cid in request.cids])
        return HeadsReply(self._store.epoch, heads)

    async def _sync(self, user: str, since: int, limit: int) -> bytes:
        if not 0 <= since <= OFFSET_MAX or not 1 <= limit <= self._config.sync_entries_max:
            raise BadRequest(
                f"since must be from 0 to {OFFSET_MAX} and limit from 1 to {self._config.sync_entries_max}"
            )
        page = await self._store.timeline(user, since=since, limit=limit)
        entries = [{"offset": e.offset, "data": msgspec.Raw(publication(e.message))} for e in page.entries]
        reached = page.entries[-1].offset if page.entries else max(since, page.head)
        return msgspec.json.encode(
            {"epoch": self._store.epoch, "head": page.head, "has_more": reached < page.head, "entries": entries}
        )

    # ---------------------------------------------------------------- HTTP

    async def _post_message(self, request: web.Request) -> web.Response:
        """Answer `POST /v1/messages`: a backend sends for a user."""
        self._credentials.require(request, Role.BACKEND)
        body = await json_body(request, ServerSend)
        send = Send(body.to, body.client_msg_id, body.body, body.type)
        result = await self._send(send, sender=checked_id(body.sender, "from"), device="server")
        return web.Response(body=result, content_type="application/json")

    async def _get_timeline(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/users/{user}/timeline?since=&limit=`: what `im.sync` gives the user, for backends."""
        self._credentials.require(request, Role.BACKEND)
        user = checked_id(request.match_info["user"], "user")
        since = _decode(query_param(request, "since", "0").encode(), int)
        limit = _decode(query_param(request, "limit", "100").encode(), int)
        return web.Response(body=await self._sync(user, since, limit), content_type="application/json")


def _require_range(request: Timeline | Conversation) -> None:
    if not 0 <= request.since <= OFFSET_MAX or request.limit < 0:
        raise BadRequest("since or limit is out of range")


def _encoded(numbered: Iterable[tuple[int, Message]], bytes_max: int) -> list[tuple[int, bytes]]:
    """Return the publications that fit, with their numbers: one at least if there is any."""
    entries: list[tuple[int, bytes]] = []
    size = 0
    for number, message in numbered:
        data = publication(message)
        size += len(data)
        if size > bytes_max and entries:
            break
        entries.append((number, data))
    return entries


def _decode(data: bytes, kind: type[T]) -> T:
    """Decode a call's JSON argument. Raises BadRequest naming the field that is wrong."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"bad argument: {error}") from error
