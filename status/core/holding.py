"""What a status node is to a partition, and what it keeps of it.

A store begins as one of three: empty, at an owner that must ask the access nodes; staging, at the target of a move; or
the staging that a commit made the owner's. It is complete when nobody is awaited any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.api import Audit
from status.core.handoff import Incoming, Outgoing
from status.core.partitions import Move
from status.core.records import Digest, Life, PartitionRecords, Sources

__all__ = ["Heard", "Held", "Role", "census", "is_as_told", "promoted"]


@dataclass(frozen=True, slots=True)
class Heard:
    """What to answer: which partitions were refused, and of which everything must be told.

    `is_heard` False: nothing was taken. `is_fenced`: a newer life of the access node is known, so the sender must stop.
    """

    is_heard: bool = True
    is_fenced: bool = False
    refused: Sequence[int] = ()
    mismatched: Sequence[int] = ()


class Role(Enum):
    """What the node is to a partition at an instant."""

    NONE = "none"
    FENCED = "fenced"
    """Owner without a serving lease, or before the barrier: says nothing, takes nothing."""
    SEALED = "sealed"
    """Owner that somebody else may have taken the place of, or that may not have it alone yet: parks."""
    ANSWERING = "answering"
    """Owner in the last moment before the commit: takes nothing, but what it has is still true."""
    RECOVERING = "recovering"
    """Owner that takes what it is told and does not know all yet: a miss is unknown."""
    SERVING = "serving"


@dataclass(slots=True)
class Held:
    """One partition's store and what it is for."""

    records: PartitionRecords
    owned_since: Epoch | None = None
    """The owner epoch at which this store became, or began to become, the served one; None: it never was."""
    awaited: set[NodeId] | None = None
    """Access nodes that did not tell all yet; None before the node began to recover, empty when it is complete."""
    grace_until: Instant = Instant(0)
    """Until when silence is no proof here, in listened time: who is silent may have vouched at the last owner."""
    alone_from: Instant = Instant(0)
    """Until then the owner before this one may answer lookups: see `handoff`."""
    vouch_from: Epoch = Epoch(0)
    vouches: dict[NodeId, tuple[Incarnation, Instant]] = field(default_factory=dict)
    outgoing: Outgoing | None = None
    incoming: Incoming | None = None

    def is_moving(self) -> bool:
        """Return whether it has another copy, or is one."""
        return self.outgoing is not None or self.incoming is not None

    def knows(self, source: bytes) -> bool:
        """Return whether it has anything of the life of an access node."""
        return (self.records if self.incoming is None else self.incoming.records).knows(source)

    def is_sealed(self) -> bool:
        """Return whether it changes no more, so that beats say nothing of it any more."""
        return self.outgoing is not None and self.outgoing.is_sealed

    def may_answer(self, now: Instant) -> bool:
        """Return whether this, sealed, may still answer: it is complete, and nobody else does."""
        return self.outgoing is not None and now >= self.alone_from and self.outgoing.may_answer(now)


def promoted(held: Held | None, move: Move | None) -> Held | None:
    """Return a staging as a served store, if it is that of the very move that made this node the owner."""
    incoming = held.incoming if held is not None else None
    if incoming is None or move is None or move.move_id != incoming.move_id or not incoming.is_ready:
        return None
    return Held(incoming.records, awaited=set(), vouches=incoming.vouches, alone_from=incoming.alone_from)


def census(
    stores: Iterable[tuple[int, PartitionRecords]], sources: Sources
) -> tuple[dict[int, int], dict[Life, Digest]]:
    """Return how many open entries each of these partitions has, and the digest of each life over all of them."""
    sizes: dict[int, int] = {}
    lives: dict[Life, Digest] = {}
    for partition, records in stores:
        sizes[partition] = 0
        for source in records.sources():
            entries, hashes = records.digest(source)
            sizes[partition] += entries
            known = lives.get(sources.life(source), Digest(0, 0))
            lives[sources.life(source)] = Digest(known.entries + entries, known.xor ^ hashes)
    return sizes, lives


def is_as_told(held: Iterable[Held], node: NodeId, source: bytes, audit: Audit) -> bool:
    """Return whether these stores have of an access node's life what its audit says, and were told all of it."""
    count = xor = 0
    is_told = True
    for one in held:
        told = one.records.told(source)
        if told is not None:
            count += told.entries
            xor ^= told.xor
        if one.awaited is None or node in one.awaited:
            is_told = False
    return is_told and (count, xor) == (audit.entries, audit.xor)
