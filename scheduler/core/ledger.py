"""What the canary's nodes and stable's counted since an epoch of evidence began, by region.

Nodes report totals since they started. A ledger turns them into totals of the epoch: it goes on over the restarts of
nodes, over nodes that come and go, over reports that are lost, late or damaged.

A node that dies takes its connections with it. When its next life begins, and it was not draining, those of its last
report count as ended abnormally. A node that only left the registry's view may come back with all its connections: it
counts nothing.

Invariants:
    I1  What a node counted since the epoch began, or since it was first seen, is counted once, over all its lives.
    I2  Within an epoch no total falls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from base.core.histogram import Histogram

__all__ = ["Arm", "ArmTotals", "Ledger", "NodeTotals"]

Arm: TypeAlias = Literal["canary", "stable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTotals:
    """What one report of a node says. Counts are since that life of the node began."""

    node: str
    incarnation: int
    report: int
    """Number of the report within that life."""
    version: str
    region: str = ""
    is_draining: bool = False
    connections: int = 0
    """How many there are now."""
    accepted: int = 0
    rejected: int = 0
    abnormal: int = 0
    handshakes: Histogram = field(default_factory=Histogram)
    pushes: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class ArmTotals:
    """What the nodes of one arm in one region counted together."""

    accepted: int = 0
    """Newcomers that were let in."""
    rejected: int = 0
    """Connect commands that failed."""
    abnormal: int = 0
    """Connections that ended without a close code, those of nodes that died among them."""
    handshakes: Histogram = field(default_factory=Histogram)
    """From connect command to reply: one for each that got its reply."""
    pushes: Histogram = field(default_factory=Histogram)

    @property
    def connects(self) -> int:
        """Connect commands that were decided."""
        return self.handshakes.total + self.rejected

    def gain(self, base: NodeTotals, last: NodeTotals) -> None:
        """Add what a node counted from one report to a later one of the same life."""
        self.accepted += last.accepted - base.accepted
        self.rejected += last.rejected - base.rejected
        self.abnormal += last.abnormal - base.abnormal
        self.handshakes.merge(last.handshakes.minus(base.handshakes))
        self.pushes.merge(last.pushes.minus(base.pushes))


@dataclass(slots=True)
class _Life:
    """One life of a node within the epoch: what it had counted when the epoch began, and its last report."""

    base: NodeTotals
    last: NodeTotals


class Ledger:
    """See the module. Feed it with every view of the registry; only `totals` and `begin` cost more than a look-up."""

    def __init__(self, canary: str, *, epoch: int = 1) -> None:
        """`canary`: the version whose nodes are the canary; all others are stable."""
        self.epoch = epoch
        self._canary = canary
        self._lives: dict[str, _Life] = {}
        self._present: set[str] = set()
        self._ended: dict[tuple[Arm, str], ArmTotals] = {}
        """Of lives that ended within the epoch, by arm and region."""

    def begin(self, epoch: int) -> None:
        """Start anew: what was counted so far is no evidence any more."""
        self.epoch = epoch
        self._lives = {node: _Life(self._lives[node].last, self._lives[node].last) for node in sorted(self._present)}
        self._ended = {}

    def observe(self, view: Iterable[NodeTotals]) -> None:
        """Take the last report of every node that there is. Reports that are not newer change nothing."""
        self._present = set()
        for report in view:
            self._present.add(report.node)
            life = self._lives.get(report.node)
            if life is None:
                # What it counted before cannot be told from what it counted before the epoch.
                self._lives[report.node] = _Life(report, report)
            elif report.incarnation > life.last.incarnation:
                self._end(life)
                zero = NodeTotals(node=report.node, incarnation=report.incarnation, report=0, version=report.version)
                self._lives[report.node] = _Life(zero, report)
            elif report.incarnation == life.last.incarnation and report.report > life.last.report:
                life.last = _readable(life.last, report)

    def totals(self, arm: Arm) -> dict[str, ArmTotals]:
        """Return what the arm's nodes counted since the epoch began, by region."""
        summed: dict[str, ArmTotals] = {}
        for (of, region), ended in self._ended.items():
            if of == arm:
                summed[region] = ArmTotals(ended.accepted, ended.rejected, ended.abnormal)
                summed[region].handshakes.merge(ended.handshakes)
                summed[region].pushes.merge(ended.pushes)
        for life in self._lives.values():
            if self._arm(life) == arm:
                summed.setdefault(life.last.region, ArmTotals()).gain(life.base, life.last)
        return summed

    def check_invariants(self) -> None:
        """Assert what I1 and I2 rest on: within a life no count is below where it began."""
        for node, life in self._lives.items():
            assert node == life.base.node == life.last.node, "I1"
            assert life.base.incarnation == life.last.incarnation, "I1"
            for name in ("accepted", "rejected", "abnormal"):
                assert getattr(life.last, name) >= getattr(life.base, name), "I2"
            assert life.last.handshakes.total >= life.base.handshakes.total, "I2"
            assert life.last.pushes.total >= life.base.pushes.total, "I2"
        assert self._present <= self._lives.keys(), "I1"

    def _arm(self, life: _Life) -> Arm:
        return "canary" if life.last.version == self._canary else "stable"

    def _end(self, life: _Life) -> None:
        ended = self._ended.setdefault((self._arm(life), life.last.region), ArmTotals())
        ended.gain(life.base, life.last)
        if not life.last.is_draining:
            ended.abnormal += life.last.connections


def _readable(last: NodeTotals, report: NodeTotals) -> NodeTotals:
    """Return the report, with the last value of what fell: within one life that is not a count but damage."""
    handshakes, pushes = report.handshakes.total, report.pushes.total
    if (
        min(report.accepted - last.accepted, report.rejected - last.rejected, report.abnormal - last.abnormal) >= 0
        and handshakes >= last.handshakes.total
        and pushes >= last.pushes.total
    ):
        return report
    return replace(
        report,
        accepted=max(last.accepted, report.accepted),
        rejected=max(last.rejected, report.rejected),
        abnormal=max(last.abnormal, report.abnormal),
        handshakes=report.handshakes if handshakes >= last.handshakes.total else last.handshakes,
        pushes=report.pushes if pushes >= last.pushes.total else last.pushes,
    )
