"""An access node of a simulated fleet: counts in place of connections, the real accept limit in front of them.

Lifetimes are exponential, so a connection's age says nothing about its end: who leaves next is as likely any, and a
count is all that need be kept.

Invariants:
    I1  0 <= connections <= capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from base.clock import Instant
from base.core.limits import TokenBucket
from base.ids import NodeId
from scheduler.core.node import AccessNode

__all__ = ["LONG_AGO_MS", "PLAN_ISSUERS", "NodeSpec", "Report", "SimNode"]

ACCEPT_BURST_S = 2
"""An access node lets in up to so many seconds' worth of newcomers at once."""
PLAN_ISSUERS = 1
"""Beside the schedulers, a plan of moves issues tickets: its number comes after theirs."""
LONG_AGO_MS = -86_400_000
"""When nodes were started that are no newcomers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What a node is at the start. `accepts_per_s` 0: no limit. `started_at` in ms of simulated time, < 0: before."""

    capacity: int
    region: str = ""
    version: str = "1.0.0"
    accepts_per_s: float = 0.0
    connections: int = 0
    started_at: int = LONG_AGO_MS
    joins_at: int = 0
    """When it registers."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the node said last, as the registry keeps it."""

    number: int
    connections: int
    is_draining: bool
    uptime_ms: int
    admitted: tuple[int, ...]
    """By issuer: connections let in by a ticket of each scheduler."""
    admitted_of_all: int
    accepted: int = 0


@dataclass(slots=True, kw_only=True)
class SimNode:
    """One node. `accepts` and `refusals` count since the recorder last looked."""

    index: int
    spec: NodeSpec
    issuers: int
    """Schedulers, and the plan of moves after them."""
    connections: int = 0
    is_up: bool = True
    is_draining: bool = False
    incarnation: int = 1
    expires_at: int | None = None
    """When its registration lapses, for a node that is down."""
    coming: int = 0
    """Clients on their way to it."""
    accepts: int = 0
    refusals: int = 0
    vain: int = 0
    """Clients who came while it was down or draining, and when the last of them did."""
    vain_at: int = 0
    report: Report = field(init=False)
    _started_at: int = field(init=False)
    _bucket: TokenBucket = field(init=False)
    _admitted: list[int] = field(init=False)
    _accepted: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.connections = self.spec.connections
        self._started_at = self.spec.started_at
        rate = self.spec.accepts_per_s
        self._bucket = TokenBucket(rate, max(1, int(rate * ACCEPT_BURST_S)))
        self._admitted = [0] * self.issuers
        self.report = Report(0, 0, False, 0, tuple(self._admitted), 0)

    @property
    def id(self) -> NodeId:
        """Its name."""
        return NodeId(f"access-{self.index}")

    def is_registered(self, now: int) -> bool:
        """Whether the registry lists it."""
        return now >= self.spec.joins_at and (self.expires_at is None or now < self.expires_at)

    def admit(self, now: int, issuer: int) -> bool:
        """Let a newcomer in, or not: down, draining, full, or too many of late. `issuer` -1: without a ticket."""
        if not self.is_up or self.is_draining:
            self.vain += 1
            self.vain_at = now
            self.refusals += 1
            return False
        if self.connections >= self.spec.capacity or self._bucket.take(Instant(now)):
            self.refusals += 1
            return False
        self.connections += 1
        self.accepts += 1
        self._accepted += 1
        if issuer >= 0:
            self._admitted[issuer] += 1
        return True

    def start(self, now: int) -> None:
        """Begin another life, empty."""
        assert not self.connections
        self.incarnation += 1
        self.is_up, self.is_draining, self.expires_at = True, False, None
        self._started_at = now
        self._admitted = [0] * self.issuers
        self._accepted = 0
        self.report = Report(0, 0, False, 0, tuple(self._admitted), 0)

    def make_report(self, now: int) -> None:
        """Say how things stand."""
        self.report = Report(
            self.report.number + 1,
            self.connections,
            self.is_draining,
            now - self._started_at,
            tuple(self._admitted),
            sum(self._admitted[: self.issuers - PLAN_ISSUERS]),
            self._accepted,
        )

    def seen_by(self, issuer: int, now: int) -> AccessNode:
        """Return the node as its last report shows it to one scheduler that reads it now."""
        report = self.report
        return AccessNode(
            id=self.id,
            url=f"http://{self.id}.example",
            region=self.spec.region,
            version=self.spec.version,
            capacity=self.spec.capacity,
            accepts_per_s=self.spec.accepts_per_s,
            connections=report.connections,
            is_draining=report.is_draining,
            incarnation=self.incarnation,
            report=report.number,
            reported_at=now,
            uptime_ms=report.uptime_ms,
            admitted=report.admitted[issuer],
            admitted_of_all=report.admitted_of_all,
            accepted=report.accepted,
        )
