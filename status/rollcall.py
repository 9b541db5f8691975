"""How many are online in the whole cluster, and who is behind one access node: each status node tells its part.

What a node tells is decided in `core.rollcall`, in many turns of the event loop, so that beats and lookups wait no
longer than one of them takes. Nothing is unpacked before a reader has it, so the states of sessions are not counted.

Limits, each with its meaning:
    PAGE_MAX           most sessions of a page that may be asked for; the user who brings it there is told completely
    TURN_USERS         how many users one turn looks at: about a millisecond
    COUNT_DEADLINE_MS  after that a node is unknown to the count
    PAGE_DEADLINE_MS   after that a node's partitions are gaps of the page
    CONNECT_MS         the same for a node to which there is no stream
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import msgspec

from base.clock import Instant
from base.errors import BadRequest
from base.ids import Epoch, NodeId
from base.peer import Method, PeerPool
from base.peer.server import PeerServer
from base.site import Site
from status.api import pack_partitions, plain, unpack_partitions
from status.asking import ask_owners, wait_for
from status.core.events import share_of
from status.core.ownership import Ownership
from status.core.partitions import PARTITIONS, PartitionTable
from status.core.rollcall import Bookmark, Listing, Page, Tally, page_of
from status.peers import COUNT, SESSIONS, Count, CountAsk, NodeCount, SessionsAsk, SessionsPart
from status.table import TableFollower

__all__ = ["PAGE_MAX", "RollCall", "TotalCount"]

PAGE_MAX = 1_000
TURN_USERS = 2_000
COUNT_DEADLINE_MS = 3_000
PAGE_DEADLINE_MS = 1_000
CONNECT_MS = 100
NEWER_TABLE_MS = 200
"""How long a question by a newer table than ours waits for it."""

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class TotalCount(msgspec.Struct, frozen=True):
    """What the nodes that answered counted, by the table of `epoch`.

    `partitions`: of how many everything is known. `nodes` has each access node that is registered or has sessions.
    """

    epoch: Epoch
    unknown: list[NodeId]
    partitions: int
    users: int
    nodes: list[NodeCount]

    @property
    def is_exact(self) -> bool:
        """Whether every partition was counted, by an owner that knew all of it."""
        return self.partitions == PARTITIONS


class RollCall:
    """Tells what this node knows, and asks all of them."""

    def __init__(
        self, site: Site, ownership: Ownership, table: TableFollower, pool: PeerPool, *, observe: Callable[[], Instant]
    ) -> None:
        """`pool` is run by somebody else; `observe` reads the clock and steps `ownership`."""
        self._node = site.name
        self._ownership = ownership
        self._table = table
        self._pool = pool
        self._observe = observe

    def serve(self, peers: PeerServer) -> None:
        """Answer the other status nodes."""
        peers.serve(COUNT, self._count_part)
        peers.serve(SESSIONS, self._sessions_part)

    def is_registered(self, node: NodeId) -> bool:
        """Return whether there is an access node of that name now, as far as this node knows."""
        return node in self._ownership.access

    async def count(self) -> TotalCount:
        """Count everybody who is online. Raises NotReady without a partition table."""

        async def ask(node: NodeId, partitions: list[int], table: PartitionTable) -> Count:
            asked = CountAsk(table.epoch, pack_partitions(partitions))
            if node == self._node:
                return await self._count_part(asked, node)
            return await self._call(node, COUNT, asked, COUNT_DEADLINE_MS)

        asked = await ask_owners(self._table, 0, ask)
        users, sessions = Counter[NodeId](), Counter[NodeId]()
        unsure: set[int] = set()
        for part in asked.answers:
            unsure.update(unpack_partitions(part.unsure))
            users.update({one.node: one.users for one in part.nodes})
            sessions.update({one.node: one.sessions for one in part.nodes})
        return TotalCount(
            epoch=asked.epoch,
            unknown=asked.unknown,
            partitions=PARTITIONS - len(asked.missing | unsure),
            users=sum(part.users for part in asked.answers),
            nodes=[NodeCount(node, users[node], sessions[node]) for node in self._ownership.access | sessions.keys()],
        )

    async def page(self, node: NodeId, begin: Bookmark, limit: int) -> tuple[Page, list[NodeId]]:
        """List the sessions behind an access node from a bookmark on, up to about `limit`.

        Returns the page, and the status nodes that did not answer. It may be short, or empty, before the end.

        Raises:
            NotReady: this node has no partition table yet.
        """

        async def ask(owner: NodeId, partitions: list[int], table: PartitionTable) -> SessionsPart:
            share = share_of(limit, len(table.nodes))
            asked = SessionsAsk(table.epoch, pack_partitions(partitions), node, begin, share)
            if owner == self._node:
                return await self._sessions_part(asked, owner)
            return await self._call(owner, SESSIONS, asked, PAGE_DEADLINE_MS)

        asked = await ask_owners(self._table, begin.partition, ask)
        unsure = {one for part in asked.answers for one in unpack_partitions(part.unsure)}
        return page_of(asked.answers, asked.missing | unsure), asked.unknown

    # ---------------------------------------------------------------- this node's part

    async def _count_part(self, ask: CountAsk, _peer: str) -> Count:
        tally = Tally(self._ownership)
        await self._walk(ask.epoch, ask.partitions, tally.take)
        return Count(
            pack_partitions(tally.refused),
            pack_partitions(tally.unsure),
            tally.users,
            [NodeCount(node, tally.users_of[node], sessions) for node, sessions in tally.sessions_of.items()],
        )

    async def _sessions_part(self, ask: SessionsAsk, _peer: str) -> SessionsPart:
        if not 1 <= ask.limit <= PAGE_MAX:
            raise BadRequest(f"a page has 1 to {PAGE_MAX} sessions, not {ask.limit}")
        listing = Listing(self._ownership, ask.node, ask.begin, ask.limit)
        await self._walk(ask.epoch, ask.partitions, listing.take)
        items = [item._replace(entries=tuple(map(plain, item.entries))) for item in listing.items]
        return SessionsPart(pack_partitions(listing.refused), pack_partitions(listing.unsure), items, listing.reached)

    async def _walk(self, epoch: Epoch, packed: bytes, take: Callable[[Instant, int], int]) -> None:
        """Take the partitions one after the other, some in each turn."""
        try:
            partitions = sorted(unpack_partitions(packed))
        except ValueError as error:
            raise BadRequest(f"bad partitions: {error}") from error
        table = await wait_for(self._table, epoch, NEWER_TABLE_MS)
        if table is not None and max(partitions, default=0) >= len(table.owners):
            raise BadRequest(f"there are {len(table.owners)} partitions")
        now = self._observe()
        looked = 0
        for partition in partitions:
            looked += take(now, partition)
            if looked >= TURN_USERS:
                await asyncio.sleep(0)
                now = self._observe()
                looked = 0

    async def _call(self, node: NodeId, method: Method[Req, Rep], request: Req, deadline_ms: int) -> Rep:
        peer = self._pool.get(node)
        return await peer.call(method, request, deadline_ms=deadline_ms if peer.is_connected else CONNECT_MS)
