"""Asks the owner of each partition about it, and of those that were refused, the next owner.

While partitions move, the table by which one asks may be older than the owner's, or a partition be sealed for a moment.
Such partitions are refused, and asked about again by the next table, a few times. A node that does not answer is not
asked again: its partitions are missing, and it is named, since nobody else can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from base.errors import NotReady, RoadsteadError
from base.ids import Epoch, NodeId
from base.log import logger
from status.api import unpack_partitions
from status.core.partitions import PartitionTable
from status.table import TableFollower

__all__ = ["Asked", "ask_owners", "wait_for"]

NEWER_TABLE_MS = 250
"""How long refused partitions wait for the table by which they were refused."""
ROUNDS_MAX = 5
"""A partition may be sealed for longer than a round takes, and then be committed while it is asked for once more."""
RETRY_AFTER_MS = 500


class Refusing(Protocol):
    """An answer, with the partitions (packed) that it is not about although they were asked for."""

    @property
    def refused(self) -> bytes:
        """Those partitions."""
        ...


Rep = TypeVar("Rep", bound=Refusing)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Rep]):
    """All answers, the partitions that none of them is about, the nodes that did not answer, the last table's epoch."""

    answers: list[Rep]
    missing: set[int]
    unknown: list[NodeId]
    epoch: Epoch


async def ask_owners(
    follower: TableFollower, first: int, ask: Callable[[NodeId, list[int], PartitionTable], Awaitable[Rep]]
) -> Asked[Rep]:
    """Ask about all partitions from `first` on: each owner at once for its own, in ascending order.

    `ask` asks one node by a table, and raises RoadsteadError if it does not answer in time.

    Raises:
        NotReady: this node has no partition table yet.
    """
    table = follower.table
    if table is None:
        raise NotReady("no partition table yet", retry_after_ms=RETRY_AFTER_MS)
    answers: list[Rep] = []
    unknown: set[NodeId] = set()
    missing: set[int] = set()
    left: Iterable[int] = range(first, len(table.owners))
    for _ in range(ROUNDS_MAX):
        by_owner: dict[NodeId, list[int]] = {}
        for partition in left:
            by_owner.setdefault(table.owner(partition), []).append(partition)
        for node in unknown & by_owner.keys():
            missing.update(by_owner.pop(node))
        told = await _ask_all(table, by_owner, ask)
        unknown.update(by_owner.keys() - told.keys())
        missing.update(one for node in by_owner.keys() - told.keys() for one in by_owner[node])
        answers.extend(told.values())
        left = sorted(one for answer in told.values() for one in unpack_partitions(answer.refused))
        if not left:
            break
        table = await wait_for(follower, Epoch(table.epoch + 1), NEWER_TABLE_MS) or table
    return Asked(answers, missing.union(left), sorted(unknown), table.epoch)


async def wait_for(follower: TableFollower, epoch: Epoch, wait_ms: int) -> PartitionTable | None:
    """Return the table once it is of that epoch or a newer one; as it is, if at all, after the time."""
    try:
        async with asyncio.timeout(wait_ms / 1000):
            return await follower.wait_newer(epoch - 1)
    except TimeoutError:
        return follower.table


async def _ask_all(
    table: PartitionTable,
    by_owner: dict[NodeId, list[int]],
    ask: Callable[[NodeId, list[int], PartitionTable], Awaitable[Rep]],
) -> dict[NodeId, Rep]:
    """Return the answers of those that answered."""
    told: dict[NodeId, Rep] = {}

    async def ask_one(node: NodeId, partitions: list[int]) -> None:
        try:
            told[node] = await ask(node, partitions, table)
        except RoadsteadError as error:
            logger(peer=node).info("owner_did_not_answer", error=str(error))

    async with asyncio.TaskGroup() as tasks:
        for node, partitions in by_owner.items():
            tasks.create_task(ask_one(node, partitions))
    return told
