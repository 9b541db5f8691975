"""What all status nodes together hold: each tells of its own partitions, and whoever wants to know adds it up.

A node that does not answer is named, never taken for an empty one. While partitions move, two nodes may both tell of
one, or none may: the sum says whether every partition was counted once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import msgspec

from base.errors import NotReady, RoadsteadError
from base.ids import Epoch, NodeId
from base.log import logger
from base.peer import PeerPool
from base.peer.server import PeerServer
from status.api import pack_partitions, unpack_partitions
from status.asking import wait_for
from status.core.ownership import Ownership
from status.core.partitions import PartitionTable
from status.core.records import Digest, Life
from status.peers import CENSUS, Census, CensusAsk, LifeDigest
from status.table import TableFollower

__all__ = ["CensusTaker", "Total"]

ASK_DEADLINE_MS = 1_000
NEWER_TABLE_MS = 200
"""How long a question by a newer table than ours waits for it."""
SAMPLED_PARTITIONS = 64
SAMPLED_USERS = 4


class Total(msgspec.Struct, frozen=True):
    """What the nodes that answered hold together. `is_exact`: every partition was counted, and once."""

    sessions: dict[int, int]
    session_bytes: dict[NodeId, int]
    lives: dict[Life, Digest]
    unknown: tuple[NodeId, ...]
    is_exact: bool


class CensusTaker:
    """Tells what this node holds, and asks all of them."""

    def __init__(self, ownership: Ownership, table: TableFollower, pool: PeerPool) -> None:
        """`pool` is run by somebody else."""
        self._ownership = ownership
        self._table = table
        self._pool = pool

    def serve(self, peers: PeerServer) -> None:
        """Answer the other status nodes."""
        peers.serve(CENSUS, self._asked)

    async def take(self, table: PartitionTable) -> Total:
        """Ask every node of the table."""
        answers: dict[NodeId, Census] = {}
        async with asyncio.TaskGroup() as tasks:
            for node in table.nodes:
                tasks.create_task(self._ask(node, table.epoch, answers))
        unknown = tuple(node for node in table.nodes if node not in answers)
        counted: Counter[int] = Counter()
        sessions: dict[int, int] = {}
        lives: dict[Life, Digest] = {}
        for census in answers.values():
            partitions = unpack_partitions(census.partitions)
            counted.update(partitions)
            sessions.update(zip(partitions, census.entries, strict=True))
            for told in census.lives:
                life = Life(told.node, told.incarnation)
                known = lives.get(life, Digest(0, 0))
                lives[life] = Digest(known.entries + told.entries, known.xor ^ told.xor)
        is_exact = len(counted) == len(table.owners) and set(counted.values()) == {1}
        bytes_each = {node: census.session_bytes for node, census in answers.items()}
        return Total(sessions, bytes_each, lives, unknown, is_exact)

    async def _ask(self, node: NodeId, epoch: Epoch, answers: dict[NodeId, Census]) -> None:
        try:
            answers[node] = await self._pool.get(node).call(CENSUS, CensusAsk(epoch), deadline_ms=ASK_DEADLINE_MS)
        except RoadsteadError as error:
            logger(peer=node).info("census_failed", error=str(error))

    async def _asked(self, ask: CensusAsk, _peer: str) -> Census:
        table = await wait_for(self._table, ask.epoch, NEWER_TABLE_MS)
        if table is None:
            raise NotReady("no partition table yet")
        sizes, lives = self._ownership.census()
        return Census(
            table.epoch,
            pack_partitions(sizes),
            list(sizes.values()),
            self._session_bytes(partition for partition, size in sizes.items() if size),
            [LifeDigest(life.node, life.incarnation, digest.entries, digest.xor) for life, digest in lives.items()],
        )

    def _session_bytes(self, partitions: Iterable[int]) -> int:
        """Return how many bytes a session takes in a copy, on average over a few of them."""
        sizes: list[int] = []
        for partition in islice(partitions, SAMPLED_PARTITIONS):
            store = self._ownership.store(partition)
            assert store is not None
            for user in islice(store.users, SAMPLED_USERS):
                sizes.extend(len(user.encode()) + len(entry) for entry in store.open_of(user))
        return sum(sizes) // len(sizes) if sizes else 0
