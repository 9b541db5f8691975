"""What another policy would do with the same requests: evaluated beside the one in force, and never acted on.

The shadow has an engine of its own, which is told all that the real one is told and counts its own assignments as if
they were made. But clients go where the real one sends them, and the nodes' reports show those. So the shadow's loads
drift from what they would be if it were in force: what it says of arms and regions is exact, its balance an estimate.
"""

from __future__ import annotations

import msgspec

from scheduler.core.engine import Decision, Engine
from scheduler.core.snapshot import Snapshot

__all__ = ["Comparison", "Difference"]


class Difference(msgspec.Struct, frozen=True):
    """Counts of decisions, and by how much the fullest node is above the mean of assignments, for each of the two."""

    decisions: int
    other_arm: int
    other_region: int
    other_first: int
    other_candidates: int
    """Not the same nodes in the same order."""
    nobody: int
    """The shadow found nobody, the real one did."""
    somebody: int
    """The other way round."""
    max_to_mean: float
    shadow_max_to_mean: float
    waited_ms: int
    """Sum of the waits for a slot."""
    shadow_waited_ms: int


class Comparison:
    """Compares two engines, decision by decision."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(
            ("decisions", "other_arm", "other_region", "other_first", "other_candidates", "nobody", "somebody"), 0
        )
        self._waits = [0, 0]
        self._assigned: tuple[dict[str, int], dict[str, int]] = ({}, {})

    def add(self, real: Engine, decision: Decision, shadow: Engine, other: Decision) -> None:
        """Compare what both decided on the same request."""
        counts = self._counts
        counts["decisions"] += 1
        self._waits[0] += decision.not_before_ms
        self._waits[1] += other.not_before_ms
        names = [
            self._count(place, engine.snapshot, made)
            for place, engine, made in ((0, real, decision), (1, shadow, other))
        ]
        if names[0] == names[1]:
            return
        if not names[1]:
            counts["nobody"] += 1
        elif not names[0]:
            counts["somebody"] += 1
        else:
            counts["other_candidates"] += 1
            counts["other_first"] += names[0][0] != names[1][0]
            counts["other_arm"] += decision.arm != other.arm
            counts["other_region"] += decision.region != other.region

    def difference(self) -> Difference:
        """Return the sums so far."""
        real, shadow = (_max_to_mean(assigned) for assigned in self._assigned)
        return Difference(
            **self._counts,
            max_to_mean=real,
            shadow_max_to_mean=shadow,
            waited_ms=self._waits[0],
            shadow_waited_ms=self._waits[1],
        )

    def _count(self, place: int, snapshot: Snapshot, decision: Decision) -> tuple[str, ...]:
        names = tuple(snapshot.nodes[index].id for index in decision.candidates)
        if names:
            assigned = self._assigned[place]
            assigned[names[0]] = assigned.get(names[0], 0) + 1
        return names


def _max_to_mean(assigned: dict[str, int]) -> float:
    return round(max(assigned.values()) * len(assigned) / sum(assigned.values()), 4) if assigned else 0.0
