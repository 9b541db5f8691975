"""How access nodes use the message services."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from base.core.registry import ServiceInstance
from base.errors import PeerUnavailable, RoadsteadError
from base.log import logger
from base.peer import PeerClient, PeerPool
from base.peer.stream import Done
from base.site import Site
from im.api import (
    CONVERSATION,
    CONVERSATION_HEADS,
    CONVERSATIONS_MAX,
    FOLLOW,
    HEADS,
    HEADS_USERS_MAX,
    RPC,
    SERVICE,
    TIMELINE,
    UNPROVEN,
    Conversation,
    ConversationHeads,
    ConversationReply,
    Follow,
    FollowReply,
    Heads,
    Rpc,
    Timeline,
    TimelinePage,
    Unproven,
)
from im.core.arguments import cid_of
from im.core.following import Following, Told

__all__ = ["Ends", "ImClient"]

DEADLINE_MS = 5_000


class Ends(NamedTuple):
    """What users could have been told: the newest timeline offset of each, and the sync version of those who need one.

    A version that is not known yet is left out.
    """

    offsets: dict[str, int]
    versions: dict[str, int]


class ImClient:
    """Calls to the message services. `run` keeps the streams, and the services told what this node follows."""

    def __init__(self, site: Site) -> None:
        self._clock = site.clock
        self._pool = PeerPool(site, SERVICE, on_change=self._changed, on_connected=self._connected)
        self._following = Following()
        self._is_due = asyncio.Event()
        self._log = logger(node=site.name)

    async def run(self) -> None:
        """Keep the streams until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pool.run())
            tasks.create_task(self._restate())

    async def wait_ready(self) -> None:
        """Return once the registry was read."""
        await self._pool.wait_ready()

    async def rpc(self, user: str, device: str, method: str, data: bytes) -> bytes:
        """Carry out a client's call and return its JSON result. Calls leave in the order they are made."""
        reply = await self._stream().call(RPC, Rpc(user, device, method, data), deadline_ms=DEADLINE_MS)
        return reply.data

    def ask(self, user: str, device: str, method: str, data: bytes, *, done: Done) -> None:
        """As `rpc`, without a task: `done` gets an `RpcReply`, or the RoadsteadError that stands for it.

        Raises PeerUnavailable when no stream is up: this never waits for one.
        """
        self._stream().ask(RPC, Rpc(user, device, method, data), deadline_ms=DEADLINE_MS, done=done)

    # ---------------------------------------------------------------- timelines

    async def timeline(self, user: str, *, since: int, limit: int, bytes_max: int) -> TimelinePage:
        """Read a user's timeline after `since`."""
        request = Timeline(user, since, limit, bytes_max)
        return await self._stream().call(TIMELINE, request, deadline_ms=DEADLINE_MS)

    async def heads(self, users: Sequence[str]) -> Ends:
        """Return how far each user's timeline goes, and what stands for everything else that is told."""
        heads: dict[str, int] = {}
        versions: dict[str, int] = {}
        for start in range(0, len(users), HEADS_USERS_MAX):
            batch = list(users[start : start + HEADS_USERS_MAX])
            reply = await self._stream().call(HEADS, Heads(batch), deadline_ms=DEADLINE_MS)
            heads.update(zip(batch, reply.heads, strict=True))
            versions.update(pair for pair in zip(batch, reply.versions, strict=bool(reply.versions)) if pair[1])
            await asyncio.sleep(0)  # a long audit gives way to messages between its pages
        return Ends(heads, versions)

    async def unproven(self, sessions: Sequence[tuple[str, int]]) -> None:
        """Tell of sessions that ended in silence: user, and offset up to which the session had everything.

        At most 1,000 of them.
        """
        await self._stream().call(UNPROVEN, Unproven(list(sessions)), deadline_ms=DEADLINE_MS)

    # ---------------------------------------------------------------- conversations

    async def conversation(self, cid: str, *, user: str, since: int, limit: int, bytes_max: int) -> ConversationReply:
        """Read a conversation after `since` for one of its members; see `im.api.Conversation`.

        Raises:
            PermissionDenied: the user is no member of it, or there is no such conversation.
            BadRequest: `cid` or a number is malformed.
        """
        request = Conversation(cid, user, since, limit, bytes_max)
        return await self._stream().call(CONVERSATION, request, deadline_ms=DEADLINE_MS)

    async def conversation_heads(self, cids: Sequence[str]) -> dict[str, int]:
        """Return the newest seq of each conversation, 0 where there is none. Raises BadRequest for a malformed cid."""
        heads: dict[str, int] = {}
        for start in range(0, len(cids), CONVERSATIONS_MAX):
            batch = list(cids[start : start + CONVERSATIONS_MAX])
            request = ConversationHeads(batch)
            reply = await self._stream().call(CONVERSATION_HEADS, request, deadline_ms=DEADLINE_MS)
            heads.update(zip(batch, reply.heads, strict=True))
            await asyncio.sleep(0)  # as in `heads`
        return heads

    def follow(self, cids: Iterable[str]) -> None:
        """Have the messages of these conversations pushed to this node (`access.deliver_conversation`).

        It does not wait: whoever calls `conversation` next is pushed what is stored after that read, but for a push
        that is lost, which `conversation_heads` shows. Following twice is following once.

        Raises:
            BadRequest: a cid is malformed. None of them is followed then.
        """
        cids = tuple(cids)
        for cid in cids:
            cid_of(cid)
        self._tell(self._following.follow(cids))

    def unfollow(self, cids: Iterable[str]) -> None:
        """Take `follow` back. What was under way may still come."""
        self._tell(self._following.unfollow(cids))

    # ---------------------------------------------------------------- inside

    def _stream(self) -> PeerClient:
        nodes = self._pool.nodes()
        if not nodes:
            raise PeerUnavailable("no message service is registered", retry_after_ms=500)
        return self._pool.get(nodes[0])

    def _changed(self, instances: tuple[ServiceInstance, ...]) -> None:
        self._following.keep({instance.id for instance in instances})

    def _connected(self, service: str) -> None:
        # At once, so that no call that waited for the stream overtakes it: see `follow`.
        now = self._clock.monotonic()
        self._following.connected(now, service)
        while pages := self._following.restate(now):
            self._tell(pages)
        self._is_due.set()

    async def _restate(self) -> None:
        """Say anew what is followed, whenever that is due."""
        while True:
            self._is_due.clear()
            while pages := self._following.restate(self._clock.monotonic()):
                self._tell(pages)
                await asyncio.sleep(0)  # as in `heads`
            due = self._following.due
            wait_s = None if due is None else (due - self._clock.monotonic()) / 1000
            try:
                async with asyncio.timeout(wait_s):
                    await self._is_due.wait()
            except TimeoutError:
                pass

    def _tell(self, told: Told) -> None:
        for service, message in told:
            try:
                self._tell_one(service, message)
            except RoadsteadError as error:
                self._answered(service, message, error)

    def _tell_one(self, service: str, message: Follow) -> None:
        def answered(reply: FollowReply | RoadsteadError) -> None:
            self._answered(service, message, reply)

        self._pool.get(service).ask(FOLLOW, message, deadline_ms=DEADLINE_MS, done=answered)

    def _answered(self, service: str, message: Follow, reply: FollowReply | RoadsteadError) -> None:
        if isinstance(reply, RoadsteadError):
            self._log.info("follow_failed", service=service, error=str(reply))
        elif reply.is_whole:
            return
        self._following.failed(self._clock.monotonic(), service, message.number)
        self._is_due.set()
