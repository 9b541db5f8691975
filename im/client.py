"""How access nodes use the message services."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from base.core.registry import ServiceInstance
from base.errors import Retry, RoadsteadError
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
    UNPROVEN_MAX,
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
from im.core.shards import shard_of_call, shard_of_text, shard_of_user
from im.tables import ShardTables

__all__ = ["Ends", "ImClient"]

DEADLINE_MS = 5_000

Item = TypeVar("Item")


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
        self._tables = ShardTables(site)
        self._following = Following()
        self._is_due = asyncio.Event()
        self._when_connected: list[Callable[[], None]] = []
        self._log = logger(node=site.name)

    def on_connected(self, listener: Callable[[], None]) -> None:
        """Call this whenever a stream to a process is up. What it pushed before may be lost."""
        self._when_connected.append(listener)

    async def run(self) -> None:
        """Keep the streams until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pool.run())
            tasks.create_task(self._tables.run())
            tasks.create_task(self._restate())

    async def wait_ready(self) -> None:
        """Return once the registry was read."""
        await self._pool.wait_ready()
        await self._tables.wait_looked()

    async def rpc(self, user: str, device: str, method: str, data: bytes) -> bytes:
        """Carry out a client's call and return its JSON result. Calls leave in the order they are made."""
        stream = self._stream_of_call(user, method, data)
        reply = await stream.call(RPC, Rpc(user, device, method, data), deadline_ms=DEADLINE_MS)
        return reply.data

    def ask(self, user: str, device: str, method: str, data: bytes, *, done: Done) -> None:
        """As `rpc`, without a task: `done` gets an `RpcReply`, or the RoadsteadError that stands for it.

        Raises PeerUnavailable when no stream is up: this never waits for one.
        """
        self._stream_of_call(user, method, data).ask(
            RPC, Rpc(user, device, method, data), deadline_ms=DEADLINE_MS, done=done
        )

    # ---------------------------------------------------------------- timelines

    def shard_of(self, user: str) -> int:
        """Return which shard the user's timeline is in: all timelines of a shard have the same epoch."""
        return shard_of_user(user, self._tables.known.shards)

    async def timeline(self, user: str, *, since: int, limit: int, bytes_max: int) -> TimelinePage:
        """Read a user's timeline after `since`."""
        request = Timeline(user, since, limit, bytes_max)
        return await self._stream(shard_of_user(user, self._tables.known.shards)).call(
            TIMELINE, request, deadline_ms=DEADLINE_MS
        )

    async def heads(self, users: Sequence[str]) -> Ends:
        """Return how far each user's timeline goes, and what stands for everything else that is told.

        Users whose shards do not answer are left out; it raises what the first one raised if none does.
        """
        heads: dict[str, int] = {}
        versions: dict[str, int] = {}

        async def ask(stream: PeerClient, batch: list[str]) -> None:
            reply = await stream.call(HEADS, Heads(batch), deadline_ms=DEADLINE_MS)
            heads.update(zip(batch, reply.heads, strict=True))
            versions.update(pair for pair in zip(batch, reply.versions, strict=bool(reply.versions)) if pair[1])

        shards = self._tables.known.shards
        await self._ask_each(_pages(users, lambda user: shard_of_user(user, shards), HEADS_USERS_MAX), ask)
        return Ends(heads, versions)

    async def unproven(self, sessions: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Tell of sessions that ended in silence: user, and offset up to which the session had everything.

        Return those whose shards do not answer, to be told again; it raises what the first one raised if none does.
        """

        async def tell(stream: PeerClient, batch: list[tuple[str, int]]) -> None:
            await stream.call(UNPROVEN, Unproven(batch), deadline_ms=DEADLINE_MS)

        shards = self._tables.known.shards
        return await self._ask_each(_pages(sessions, lambda one: shard_of_user(one[0], shards), UNPROVEN_MAX), tell)

    # ---------------------------------------------------------------- conversations

    async def conversation(self, cid: str, *, user: str, since: int, limit: int, bytes_max: int) -> ConversationReply:
        """Read a conversation after `since` for one of its members; see `im.api.Conversation`.

        Raises:
            PermissionDenied: the user is no member of it, or there is no such conversation.
            BadRequest: `cid` or a number is malformed.
        """
        request = Conversation(cid, user, since, limit, bytes_max)
        return await self._stream(shard_of_text(cid, self._tables.known.shards)).call(
            CONVERSATION, request, deadline_ms=DEADLINE_MS
        )

    def shard_of_conversation(self, cid: str) -> int:
        """Return which shard has the conversation."""
        return shard_of_text(cid, self._tables.known.shards)

    async def conversation_heads(self, cids: Sequence[str]) -> dict[str, int]:
        """Return the newest seq of each conversation, 0 where there is none. Raises BadRequest for a malformed cid.

        Those whose shards do not answer are left out, as in `heads`.
        """
        heads: dict[str, int] = {}

        async def ask(stream: PeerClient, batch: list[str]) -> None:
            reply = await stream.call(CONVERSATION_HEADS, ConversationHeads(batch), deadline_ms=DEADLINE_MS)
            heads.update(zip(batch, reply.heads, strict=True))

        shards = self._tables.known.shards
        await self._ask_each(_pages(cids, lambda cid: shard_of_text(cid, shards), CONVERSATIONS_MAX), ask)
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

    async def _ask_each(
        self, pages: Iterable[tuple[int, list[Item]]], ask: Callable[[PeerClient, list[Item]], Awaitable[None]]
    ) -> list[Item]:
        """Ask page after page, and return what was not answered.

        A process that does not answer is asked once, and holds up the shards of no other one. Raises what the first one
        raised if nobody answered, or if asking again would not help.
        """
        failures: dict[str, RoadsteadError] = {}
        unanswered: list[Item] = []
        is_any_answered = False
        for shard, page in pages:
            owner = self._tables.known.owners[shard]
            if owner in failures:
                unanswered += page
                continue
            try:
                await ask(self._pool.get(owner), page)
            except RoadsteadError as failure:
                if failure.retry is Retry.NEVER:
                    raise
                failures[owner] = failure
                unanswered += page
            else:
                is_any_answered = True
            await asyncio.sleep(0)  # a long audit gives way to messages between its pages
        if failures and not is_any_answered:
            raise next(iter(failures.values()))
        for owner, why in failures.items():
            self._log.info("service_does_not_answer", service=owner, error=str(why))
        return unanswered

    def _stream_of_call(self, user: str, method: str, data: bytes) -> PeerClient:
        shards = self._tables.known.shards
        return self._stream(shard_of_call(user, method.partition(".")[2], data, shards) if shards > 1 else 0)

    def _stream(self, shard: int) -> PeerClient:
        """Return the stream to the process that has a shard. Raises Unavailable, PeerUnavailable."""
        return self._pool.get(self._tables.known.owners[shard])

    def _changed(self, instances: tuple[ServiceInstance, ...]) -> None:
        self._following.keep({instance.id for instance in instances})

    def _connected(self, service: str) -> None:
        # At once, so that no call that waited for the stream overtakes it: see `follow`.
        now = self._clock.monotonic()
        self._following.connected(now, service)
        while pages := self._following.restate(now):
            self._tell(pages)
        self._is_due.set()
        for listener in self._when_connected:
            listener()

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


def _pages(items: Iterable[Item], shard_of: Callable[[Item], int], page_max: int) -> Iterator[tuple[int, list[Item]]]:
    """Sort items by shard; yield them in pages, each of one shard."""
    by_shard: dict[int, list[Item]] = {}
    for item in items:
        by_shard.setdefault(shard_of(item), []).append(item)
    for shard, found in by_shard.items():
        for start in range(0, len(found), page_max):
            yield shard, found[start : start + page_max]
