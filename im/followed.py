"""Pushes messages to the access nodes that follow their conversations.

A push is a courtesy here too: what cannot be delivered is neither kept nor told again. The access node misses it when
the next message of the conversation comes, or when it compares its positions with the heads of the conversations.

Per access node entries leave in the order of their commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from access.api import DELIVER_CONVERSATION, ConversationEntry, DeliverConversations
from base.errors import LimitExceeded, RoadsteadError
from base.log import logger
from base.peer import PeerPool, PeerServer
from base.site import Site
from im.api import CONVERSATIONS_MAX, FOLLOW, Follow, FollowReply
from im.core.arguments import cid_of
from im.core.commands import Delivery
from im.core.followers import Followers
from im.metrics import ImMetrics

__all__ = ["Followed", "parts"]

DELIVER_DEADLINE_MS = 2_000
ENTRIES_PER_PUSH = 1_000
BYTES_PER_PUSH = 1_048_576


class Followed:
    """Who follows what, and the pushes to them."""

    def __init__(self, site: Site, pool: PeerPool, *, peers: PeerServer, pairs_max: int, metrics: ImMetrics) -> None:
        """Serve `im.follow`.

        Args:
            site: this node.
            pool: streams to the access nodes, run by the caller.
            peers: where access nodes say what they follow; who has no stream there any more follows nothing.
            pairs_max: pairs of an access node and a conversation that it follows; more are refused.
            metrics: what is counted.
        """
        self._clock = site.clock
        self._pool = pool
        self._peers = peers
        self._metrics = metrics
        self._followers = Followers(pairs_max=pairs_max)
        self._log = logger(node=site.name)
        metrics.followed.set_function(lambda: len(self._followers))
        peers.serve(FOLLOW, self._follow)

    def __len__(self) -> int:
        """Return the number of pairs of an access node and a conversation that it follows."""
        return len(self._followers)

    def forget_gone(self) -> None:
        """Forget access nodes that fell silent or whose stream ended. Cheap: a step for each access node."""
        for node in self._followers.expire(self._clock.monotonic()):
            self._log.info("follower_silent", peer=node)
        for node in self._followers.nodes():
            if self._peers.stream_of(node) is None:
                self._followers.forget(node)

    def push(self, deliveries: Iterable[tuple[Delivery, bytes]], tasks: asyncio.TaskGroup, *, epoch: str) -> None:
        """Push committed entries of one store, each with its publication, to the nodes that follow their conversations.

        `epoch`: the store's, which is told with them.
        """
        self.forget_gone()
        if not self._followers:
            return
        by_node: dict[str, list[ConversationEntry]] = {}
        for delivery, data in deliveries:
            message = delivery.message
            nodes = self._followers.of(message.cid) if delivery.is_first and message.seq else ()
            if nodes:
                entry = ConversationEntry(str(message.cid), message.seq, data, list(delivery.removed))
                for node in nodes:
                    by_node.setdefault(node, []).append(entry)
        for node, entries in by_node.items():
            for part in parts(entries):
                # A task each, whose first step queues the call: a slow node delays nobody, and order is kept.
                tasks.create_task(self._deliver(node, epoch, part))

    async def _deliver(self, node: str, epoch: str, entries: list[ConversationEntry]) -> None:
        request = DeliverConversations(epoch, entries)
        try:
            await self._pool.get(node).call(DELIVER_CONVERSATION, request, deadline_ms=DELIVER_DEADLINE_MS)
        except RoadsteadError as error:
            self._log.info("conversation_push_failed", to=node, entries=len(entries), error=str(error))
            self._metrics.conversation_push_failures.inc(len(entries))
        else:
            self._metrics.conversation_pushes.inc(len(entries))

    def _follow(self, request: Follow, peer: str) -> FollowReply:
        """Take what an access node follows (peer method)."""
        if len(request.added) + len(request.removed) > CONVERSATIONS_MAX:
            raise LimitExceeded("too many conversations in one call", what="conversations", limit=CONVERSATIONS_MAX)
        taken = self._followers.told(
            self._clock.monotonic(),
            peer,
            request.number,
            [cid_of(cid) for cid in request.added],
            [cid_of(cid) for cid in request.removed],
            is_first=request.is_first,
            is_last=request.is_last,
        )
        if taken.refused:
            self._metrics.follows_refused.inc(taken.refused)
            self._log.warning("follows_refused", peer=peer, conversations=taken.refused)
        return FollowReply(taken.is_whole)


class _WithData(Protocol):
    @property
    def data(self) -> bytes: ...


Entry = TypeVar("Entry", bound=_WithData)


def parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Cut a delivery into parts that one message may carry, in order; nothing is one empty part."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and (len(part) == ENTRIES_PER_PUSH or size + len(entry.data) > BYTES_PER_PUSH):
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.data)
    yield part
