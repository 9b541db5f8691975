"""An access node, as its registration, its last report and the operators' orders show it."""

from __future__ import annotations

from dataclasses import dataclass

from base.ids import NodeId

__all__ = ["AccessNode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessNode:
    """Immutable: the next report makes another one. Times are in ms; `*_at` on the scheduler's monotonic clock."""

    id: NodeId
    url: str
    """Base URL for clients."""
    region: str = ""
    carrier: str = ""
    """Whose network its address is in; "": any carrier's clients reach it equally well."""
    version: str = ""
    capacity: int
    """The most connections it takes."""
    accepts_per_s: float = 0.0
    """New connections a second that it takes; 0: no limit."""
    connections: int = 0
    is_draining: bool = False
    is_cordoned: bool = False
    incarnation: int = 0
    report: int = 0
    """Number of the report within that life; 0: it has not reported yet."""
    reported_at: int = 0
    """When this scheduler saw the report."""
    uptime_ms: int = 0
    """How long it had been running when it reported."""
    admitted: int = 0
    """Connections let in with a ticket of this scheduler, in the node's life."""
    admitted_of_all: int = 0
    """Connections let in with a ticket of any scheduler, in the node's life."""
    accepted: int = 0
    """Connections let in, with whatever credentials, in the node's life."""
