"""What a status node is to a partition, and what it keeps of it.

A store begins as one of three: empty, at an owner that must ask the access nodes; staging, at the target of a move; or
the staging that a commit made the owner's. It is complete when nobody is awaited any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.core.handoff import Incoming, Outgoing
from status.core.records import PartitionRecords

__all__ = ["Held", "Role"]


class Role(Enum):
    """What the node is to a partition at an instant."""

    NONE = "none"
    FENCED = "fenced"
    """Owner without a serving lease, or before the barrier: says nothing, takes nothing."""
    SEALED = "sealed"
    """Owner in the last moment before the commit: parks."""
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
