"""What a user's shard has not itself: the user's conversations are wherever their logs are.

`Shards` asks all of them, those of this process directly, the others over peer streams, one call a process. `Gathered`
is a shard's store for the methods that read: a user's timeline is there, the rest wherever it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from base.errors import RoadsteadError, Unavailable
from base.peer import Method, PeerPool
from im.core.commands import Command, Executed, Outgoing
from im.core.model import Member, Message, View
from im.core.shards import shard_of_cid
from im.ports import ConversationPage, Listed, MessageStore, Page, Visible
from im.shards_api import (
    CONVERSATIONS_OF,
    LISTED,
    MEMBERSHIP,
    MESSAGES,
    TAKE_OVER,
    ConversationsOf,
    ListedOf,
    ListedReply,
    MembershipOf,
    MessagesOf,
    TakeOver,
)
from im.tables import ShardTables

__all__ = ["Gathered", "Here", "Shards", "elsewhere"]

Req = TypeVar("Req")
Rep = TypeVar("Rep")

READ_DEADLINE_MS = 3_000
TAKE_OVER_DEADLINE_MS = 3_000
LISTED_BYTES_MAX = 2_097_152
"""Of a page of conversations between processes."""


class Here(Protocol):
    """A shard of this process."""

    store: MessageStore

    async def take_over(self, source: int, entries: tuple[Outgoing, ...]) -> int:
        """Put entries into timelines; return the position up to which that is done."""
        ...


def elsewhere(shard: int) -> Unavailable:
    """Return what is raised by a process that has not the shard."""
    return Unavailable(f"shard {shard} is not here, or not yet", retry_after_ms=200)


class Shards:
    """All shards of the system. Everything raises RoadsteadError when the shard's process does not answer."""

    def __init__(self, node: str, pool: PeerPool, tables: ShardTables, here: Mapping[int, Here]) -> None:
        """`pool`: streams to the other processes; `here`: the shards of this one, as they are at each time."""
        self._node = node
        self._pool = pool
        self._tables = tables
        self._here = here

    @property
    def count(self) -> int:
        """How many there are."""
        return self._tables.known.shards

    async def call(self, shard: int, method: Method[Req, Rep], request: Req, *, deadline_ms: int) -> Rep:
        """Call the process that has a shard, which is not this one."""
        owner = self._tables.known.owners[shard]
        if owner == self._node:
            raise elsewhere(shard)  # it is being opened, or given away
        return await self._pool.get(owner).call(method, request, deadline_ms=deadline_ms)

    async def take_over(self, source: int, target: int, entries: Sequence[Outgoing]) -> int:
        """Bring entries of one shard to another one; return the position up to which it has taken over."""
        here = self._here.get(target)
        if here is not None:
            return await here.take_over(source, tuple(entries))
        request = TakeOver(source, target, tuple(entries))
        return (await self.call(target, TAKE_OVER, request, deadline_ms=TAKE_OVER_DEADLINE_MS)).through

    # ------------------------------------------------------------ reading

    async def conversations(self, user: str) -> list[Listed]:
        """Return all conversations of the user."""
        by_owner: dict[str, list[int]] = {}
        for shard, owner in enumerate(self._tables.known.owners):
            by_owner.setdefault(self._node if shard in self._here else owner, []).append(shard)
        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(self._conversations_or_error(user, owner, tuple(shards)))
                for owner, shards in by_owner.items()
            ]
        found: list[Listed] = []
        for part in parts:
            result = part.result()
            if isinstance(result, RoadsteadError):
                raise result  # nobody is told a part for the whole
            found += result
        return found

    async def _conversations_or_error(
        self, user: str, owner: str, shards: tuple[int, ...]
    ) -> list[Listed] | RoadsteadError:
        try:
            return await self._conversations_of(user, owner, shards)
        except RoadsteadError as error:
            return error

    async def _conversations_of(self, user: str, owner: str, shards: tuple[int, ...]) -> list[Listed]:
        if owner == self._node:
            return await self.conversations_here(user, shards)
        stream = self._pool.get(owner)
        request = ConversationsOf(user, shards, after=0)
        reply = await stream.call(CONVERSATIONS_OF, request, deadline_ms=READ_DEADLINE_MS)
        found = reply.listed
        while reply.has_more:
            request = ConversationsOf(user, shards, after=found[-1].conversation.cid)
            reply = await stream.call(CONVERSATIONS_OF, request, deadline_ms=READ_DEADLINE_MS)
            found += reply.listed
        return found

    async def page_here(self, request: ConversationsOf) -> ListedReply:
        """Answer another process: a list may be longer than a message between processes."""
        listed = await self.conversations_here(request.user, request.shards)
        listed.sort(key=lambda one: one.conversation.cid)
        left = LISTED_BYTES_MAX
        page: list[Listed] = []
        for one in listed:
            if one.conversation.cid <= request.after:
                continue
            left -= _size(one)
            if left < 0 and page:
                return ListedReply(page, has_more=True)
            page.append(one)
        return ListedReply(page)

    async def conversations_here(self, user: str, shards: Sequence[int]) -> list[Listed]:
        """Return the user's conversations in shards of this process. Raises Unavailable for one that is not."""
        found: list[Listed] = []
        for shard in shards:
            found += await self.store_of(shard).conversations(user)
        return found

    async def listed(self, user: str, cids: Sequence[int]) -> list[Listed]:
        """Return these conversations, if the user is or was in them."""
        by_shard: dict[int, list[int]] = {}
        for cid in cids:
            by_shard.setdefault(shard_of_cid(cid, self.count), []).append(cid)
        found: list[Listed] = []
        for shard, some in by_shard.items():
            if shard in self._here:
                found += await self.store_of(shard).listed(user, some)
            else:
                request = ListedOf(user, tuple(some))
                found += (await self.call(shard, LISTED, request, deadline_ms=READ_DEADLINE_MS)).listed
        return found

    async def membership(self, cid: int, user: str) -> Visible | None:
        """Return what of the conversation the user may see."""
        shard = shard_of_cid(cid, self.count)
        if shard in self._here:
            return await self.store_of(shard).membership(cid, user)
        return (await self.call(shard, MEMBERSHIP, MembershipOf(cid, user), deadline_ms=READ_DEADLINE_MS)).visible

    async def messages(self, cid: int, seqs: Sequence[int]) -> ConversationPage:
        """Return those of the entries that there are, ascending."""
        shard = shard_of_cid(cid, self.count)
        if shard in self._here:
            return await self.store_of(shard).messages(cid, seqs)
        reply = await self.call(shard, MESSAGES, MessagesOf(cid, tuple(seqs)), deadline_ms=READ_DEADLINE_MS)
        return ConversationPage(reply.head, reply.messages, {(one.cid, one.seq): one for one in reply.overlays})

    def store_of(self, shard: int) -> MessageStore:
        """Return the store of a shard of this process. Raises Unavailable if it is not here."""
        here = self._here.get(shard)
        if here is None:
            raise elsewhere(shard)
        return here.store


class Gathered:
    """Implements `MessageStore`: a shard's store, and of its users what the other shards have."""

    def __init__(self, store: MessageStore, shards: Shards) -> None:
        self._store = store
        self._shards = shards

    @property
    def epoch(self) -> str:
        """The store's."""
        return self._store.epoch

    @property
    def has_work(self) -> bool:
        """The store's."""
        return self._store.has_work

    async def execute(self, commands: Sequence[Command]) -> Executed:
        """The store's."""
        return await self._store.execute(commands)

    async def timeline(self, user: str, *, since: int, limit: int) -> Page:
        """The store's."""
        return await self._store.timeline(user, since=since, limit=limit)

    async def heads(self, users: Sequence[str]) -> list[int]:
        """The store's."""
        return await self._store.heads(users)

    async def conversation(self, cid: int, *, since: int, limit: int) -> ConversationPage:
        """The store's."""
        return await self._store.conversation(cid, since=since, limit=limit)

    async def conversation_before(self, cid: int, *, before: int, limit: int) -> ConversationPage:
        """The store's."""
        return await self._store.conversation_before(cid, before=before, limit=limit)

    async def messages(self, cid: int, seqs: Sequence[int]) -> ConversationPage:
        """Wherever the conversation is."""
        return await self._shards.messages(cid, seqs)

    async def conversation_heads(self, cids: Sequence[int]) -> list[int]:
        """The store's."""
        return await self._store.conversation_heads(cids)

    async def membership(self, cid: int, user: str) -> Visible | None:
        """Wherever the conversation is."""
        return await self._shards.membership(cid, user)

    async def conversations(self, user: str) -> list[Listed]:
        """Of all shards."""
        return await self._shards.conversations(user)

    async def listed(self, user: str, cids: Sequence[int]) -> list[Listed]:
        """Wherever the conversations are."""
        return await self._shards.listed(user, cids)

    async def members(self, cid: int, *, after: str, limit: int) -> list[Member]:
        """The store's."""
        return await self._store.members(cid, after=after, limit=limit)

    async def users(self, cid: int, *, at_most: int) -> Sequence[str]:
        """The store's."""
        return await self._store.users(cid, at_most=at_most)

    async def views(self, cid: int, *, read_from: int, limit: int) -> list[View]:
        """The store's."""
        return await self._store.views(cid, read_from=read_from, limit=limit)

    async def log(self, *, after: int, limit: int) -> list[Message]:
        """The store's."""
        return await self._store.log(after=after, limit=limit)

    async def outgoing(self, shard: int, *, after: int, limit: int) -> list[Outgoing]:
        """The store's."""
        return await self._store.outgoing(shard, after=after, limit=limit)

    async def close(self) -> None:
        """The store's."""
        await self._store.close()


def _size(one: Listed) -> int:
    """Return about how many bytes a conversation in a list has."""
    head, overlay = one.head, one.head_overlay
    size = 1_000  # with the names of the group and its members
    if head is not None:
        size += len(head.body) + len(head.mentions)
    return size + len(overlay.body) + len(overlay.mentions) if overlay is not None else size
