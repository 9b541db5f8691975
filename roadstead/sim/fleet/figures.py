"""What is told of a run: a series of what was seen each second, and the figures that sum it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from roadstead.sim.fleet.nodes import SimNode

__all__ = ["Recorder", "Run", "Series", "percentile"]

SECOND_MS = 1_000
POINTS_MAX = 240
WARM_UP = 1 / 3
"""Part of a run that the figures on balance leave out."""


def percentile(values: Sequence[float], p: float) -> float:
    """Return the p-th percentile (0 to 100) by the nearest rank; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * p // 100).__int__() - 1)]


@dataclass(slots=True)
class Series:
    """One value a second of each. Connections are per node of mean capacity, over the nodes that take clients."""

    second: list[int] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    accepts: list[int] = field(default_factory=list)
    """Let in by all nodes in that second."""
    accepts_mean: list[float] = field(default_factory=list)
    """The same, per node that takes clients."""
    accepts_most: list[int] = field(default_factory=list)
    """Let in by the node that let in most."""
    attempts: list[int] = field(default_factory=list)
    """Let in or refused by all nodes in that second, dead ones included."""
    waiting: list[int] = field(default_factory=list)
    """Clients that want a connection and have none."""

    def thinned(self) -> dict[str, list[float]]:
        """Return at most 240 evenly spaced points of each, for programs."""
        step = max(1, -(-len(self.second) // POINTS_MAX))
        return {name: [round(value, 2) for value in getattr(self, name)[::step]] for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's run of one scenario."""

    policy: str
    figures: dict[str, float | None]
    """By name, in the order to show them. None: it did not come to that."""
    series: Series


class Recorder:
    """Looks at the nodes once a second."""

    def __init__(self) -> None:
        self.series = Series()
        self.refused = 0
        self._peak = 0.0
        """The most a node let in during a second, per share of the capacity."""
        self._accepts = 0

    def look(self, nodes: Sequence[SimNode], now: int, waiting: int) -> None:
        """Take down the second that ended now."""
        live = [node for node in nodes if node.is_up and not node.is_draining and node.is_registered(now)]
        capacity = sum(node.spec.capacity for node in live)
        mean_capacity = capacity / len(live) if live else 0.0
        loads = [node.connections / node.spec.capacity * mean_capacity for node in live]
        most = total = refused = 0
        for node in nodes:
            count = node.accepts
            total += count
            most = max(most, count)
            if count and mean_capacity:
                self._peak = max(self._peak, count / node.spec.capacity * mean_capacity)
            refused += node.refusals
            node.accepts = node.refusals = 0
        self._accepts += total
        self.refused += refused
        series = self.series
        series.second.append(now // SECOND_MS)
        series.least.append(min(loads, default=0.0))
        series.mean.append(sum(node.connections for node in live) / len(live) if live else 0.0)
        series.most.append(max(loads, default=0.0))
        series.accepts.append(total)
        series.accepts_mean.append(total / len(live) if live else 0.0)
        series.accepts_most.append(most)
        series.attempts.append(total + refused)
        series.waiting.append(waiting)

    def balance(self, nodes: int) -> dict[str, float | None]:
        """Return the figures that every run has: `nodes` is how many there are at the end."""
        series = self.series
        first = int(len(series.second) * WARM_UP)
        ratios = [most / mean for most, mean in zip(series.most[first:], series.mean[first:], strict=True) if mean > 0]
        lowest = [
            least / mean for least, mean in zip(series.least[first:], series.mean[first:], strict=True) if mean > 0
        ]
        usual = self._accepts / max(1, len(series.second)) / max(1, nodes)
        return {
            "max_over_mean": sum(ratios) / len(ratios) if ratios else None,
            "max_over_mean_p99": percentile(ratios, 99) if ratios else None,
            "min_over_mean": sum(lowest) / len(lowest) if lowest else None,
            "accept_peak_over_mean": self._peak / usual if usual else None,
            "refused": float(self.refused),
        }
