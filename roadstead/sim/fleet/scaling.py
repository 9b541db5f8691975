"""Scenario: nodes are added to a full fleet, whose clients stay for hours."""

from __future__ import annotations

from roadstead.sim.fleet.figures import Run
from roadstead.sim.fleet.fleet import Fleet, FleetSettings
from roadstead.sim.fleet.movers import DirectedMover, Shedder
from roadstead.sim.fleet.nodes import NodeSpec
from roadstead.sim.fleet.scenario import ENGINE, Options, Scenario, fleet_of, shares
from scheduler.core.moving import MoveRequest
from scheduler.core.snapshot import STABLE

__all__ = ["DIRECTED", "SCENARIOS"]

DIRECTED, NATURAL, SHEDDING = "directed_moves", "arrivals_only", "threshold_shedding"
HELD = 10_000
LIFETIME_S = 7_200
NEW_PART = 10
"""One node of so many is new."""
JOIN_AT_MS = 60_000
LOW, HIGH = 0.9, 1.05
"""Between which parts of the mean all nodes are when the fleet is balanced."""
SHED_THRESHOLD, SHED_RATE = 0.02, 0.001
MOVES = MoveRequest(id="scaleout", kind="rebalance", rate_per_s=300.0, accept_per_s=20.0)


class _Watch:
    """Finds out when the fleet is balanced, and how many moves that took."""

    def __init__(self, fleet: Fleet, moves: Shedder | DirectedMover | None) -> None:
        self._fleet = fleet
        self._moves = moves
        self.minimum = 0.0
        """The fewest moves that would balance the fleet as it is when the nodes join."""
        self.balanced_at: int | None = None
        self.moves_then = 0

    def begin(self, _now: int) -> None:
        counts = [node.connections for node in self._fleet.nodes]
        mean = sum(counts) / len(counts)
        self.minimum = max(
            sum(max(0.0, LOW * mean - count) for count in counts),
            sum(max(0.0, count - HIGH * mean) for count in counts),
        )

    def look(self, now: int) -> None:
        counts = [node.connections for node in self._fleet.nodes]
        mean = sum(counts) / len(counts)
        if self.balanced_at is None and LOW * mean <= min(counts) and max(counts) <= HIGH * mean:
            self.balanced_at = now
            self.moves_then = self._moves.moves if self._moves else 0


def _scale_out(policy: str, options: Options) -> Run:
    count = options.nodes or 100
    fresh = count // NEW_PART
    old = (NodeSpec(capacity=20_000, connections=HELD, accepts_per_s=50.0),) * (count - fresh)
    new = (NodeSpec(capacity=20_000, accepts_per_s=50.0, started_at=JOIN_AT_MS, joins_at=JOIN_AT_MS),) * fresh
    settings = FleetSettings(
        seed=options.seed,
        seconds=options.seconds or 1_260,
        nodes=old + new,
        shares=shares(options.schedulers or 8, 0.5),
        arrivals_per_s=HELD * (count - fresh) / LIFETIME_S,
        lifetime_s=LIFETIME_S,
        report_ms=1_000,
    )
    fleet = fleet_of(ENGINE, settings)
    moves: Shedder | DirectedMover | None = None
    if policy == DIRECTED:
        moves = DirectedMover(fleet, MOVES, arm_of=lambda _node: STABLE)
    elif policy == SHEDDING:
        moves = Shedder(fleet, threshold=SHED_THRESHOLD, rate=SHED_RATE)
    watch = _Watch(fleet, moves)
    fleet.at(JOIN_AT_MS, watch.begin)
    # The new nodes are in the registry before anybody acts on them.
    if moves is not None:
        fleet.at(JOIN_AT_MS + 1_000, moves.begin)
    fleet.every(1_000, watch.look, since=JOIN_AT_MS + 1_000)
    fleet.run()
    fleet.check_invariants()
    counts = [node.connections for node in fleet.nodes]
    mean = sum(counts) / len(counts)
    told = moves.moves if moves else 0
    is_balanced = watch.balanced_at is not None
    over_at = moves.over_at if isinstance(moves, DirectedMover) else None
    return Run(
        policy,
        {
            "balanced_s": (watch.balanced_at - JOIN_AT_MS) / 1_000 if watch.balanced_at is not None else None,
            "moves_over_minimum": watch.moves_then / watch.minimum if is_balanced else None,
            "moves_when_balanced": float(watch.moves_then) if is_balanced else None,
            "moves": float(told),
            "minimum": watch.minimum,
            "complete_s": (over_at - JOIN_AT_MS) / 1_000 if over_at is not None else None,
            "min_over_mean_at_end": min(counts) / mean,
            "max_over_mean_at_end": max(counts) / mean,
            "node_accepts_peak_per_s": float(max(fleet.recorder.series.accepts_most)),
            "refused": float(fleet.recorder.refused),
        },
        fleet.recorder.series,
    )


SCENARIOS = (
    Scenario(
        name="scaleout",
        summary="Ten empty nodes join ninety with 10,000 clients each, who stay for two hours.",
        policies=(DIRECTED, NATURAL, SHEDDING),
        run=_scale_out,
        nodes_min=NEW_PART,
        seconds_min=JOIN_AT_MS // 1_000 + 60,
    ),
)
