"""A target of moves takes its sources' place: it has them cease to answer, and then has the partitions alone.

A sealed source answers lookups until then (`core.handoff`), so that nobody waits while a commit is written. This only
makes it quick: if the source cannot be told, it ceases by itself after `ANSWER_MS`, and the target waits for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from base.clock import Instant
from base.errors import RoadsteadError
from base.ids import NodeId
from base.log import logger
from base.peer import PeerPool
from base.peer.server import PeerServer
from status.core.handoff import ANSWER_MS
from status.core.ownership import Ownership
from status.core.partitions import Move
from status.peers import CEASE, Cease, Ceased

__all__ = ["TakingOver"]

CEASE_DEADLINE_MS = ANSWER_MS
"""Then it has ceased by itself, or nearly."""
PATIENCE_MS = 2 * ANSWER_MS
"""How long news wait for partitions that are not here alone yet: longer than that can last."""


class TakingOver:
    """See the module. `begin` is called with each table, `done` with each partition that is here alone."""

    def __init__(self, ownership: Ownership, pool: PeerPool, *, catch_up: Callable[[], Instant]) -> None:
        """`pool` is run by somebody else; `catch_up` steps `ownership`, and tells whoever listens what changed."""
        self._ownership = ownership
        self._pool = pool
        self._catch_up = catch_up
        self._asked: set[Move] = set()
        self._changed = asyncio.Event()
        self._log = logger()

    def serve(self, peers: PeerServer) -> None:
        """Cease, where this node is the source."""
        peers.serve(CEASE, self._cease)

    def begin(self) -> None:
        """Ask the sources of what came here, each once."""
        shared = self._ownership.shared()
        by_source: dict[NodeId, list[Move]] = {}
        for move in shared:
            if move not in self._asked:
                by_source.setdefault(move.source, []).append(move)
        self._asked = set(shared)
        for source, moves in by_source.items():
            self._ask(source, moves)

    def done(self) -> None:
        """Partitions are here alone."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, partitions: Collection[int]) -> None:
        """Return when this node has those of the partitions alone that it owns; at once if it has."""
        try:
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while self._ownership.shares(partitions):
                    await self._changed.wait()
        except TimeoutError:
            pass  # what is told of them is refused, and told again

    def _ask(self, source: NodeId, moves: list[Move]) -> None:
        def done(reply: Ceased | RoadsteadError) -> None:
            if isinstance(reply, RoadsteadError):
                self._log.info("source_not_ceased", peer=source, error=str(reply))
                return
            self._ownership.ceased(self._catch_up(), moves)
            self._catch_up()

        asked = Cease([(move.partition, move.move_id) for move in moves])
        try:
            self._pool.get(source).ask(CEASE, asked, deadline_ms=CEASE_DEADLINE_MS, done=done)
        except RoadsteadError as error:
            done(error)

    def _cease(self, asked: Cease, _peer: str) -> Ceased:
        for partition, move_id in asked.moves:
            self._ownership.cease(partition, move_id)
        return Ceased()
