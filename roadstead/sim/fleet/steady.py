"""Scenarios in which a fleet is to stay even: cold, churning and warm, of mixed sizes, with the registry away.

All share the hard circumstances: reports every 10 s, 2 s on average until a client that was sent to a node is there,
a tenth of the clients who never come, and one of the schedulers with half of all clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from roadstead.sim.fleet.figures import Run, percentile
from roadstead.sim.fleet.fleet import Fleet, FleetSettings
from roadstead.sim.fleet.nodes import LONG_AGO_MS, NodeSpec
from roadstead.sim.fleet.scenario import ENGINE, LIMIT, Options, Scenario, fleet_of, shares

__all__ = ["SCENARIOS"]

CAPACITY = 15_000
ARRIVALS_PER_NODE_S = 20.0
ABANDONS = 0.1
POLICIES = (ENGINE, LIMIT, "random", "argmin", "own_increments", "two_choices")
OUTAGE_FROM_S = 120
OUTAGE_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steady:
    """A fleet that clients come to and leave, at a rate at which it holds as many as it has in the end."""

    held: int
    """Connections that a node of capacity 1 holds at the start."""
    lifetime_s: float
    seconds: int
    is_cold: bool = False
    """All nodes have only just been started."""
    capacities: tuple[int, ...] = (1,)
    """Of the nodes in turn, in units."""
    outage: tuple[int, int] | None = None
    """From and until which second nobody reaches the registry."""

    def run(self, policy: str, options: Options) -> Run:
        count = options.nodes or 100
        settings = FleetSettings(
            seed=options.seed,
            seconds=options.seconds or self.seconds,
            nodes=tuple(self._spec(self.capacities[index % len(self.capacities)]) for index in range(count)),
            shares=shares(options.schedulers or 8, 0.5),
            arrivals_per_s=ARRIVALS_PER_NODE_S * count,
            lifetime_s=self.lifetime_s,
            abandons=ABANDONS,
        )
        fleet = fleet_of(policy, settings)
        if self.outage is not None:
            for second, is_up in zip(self.outage, (False, True), strict=True):
                fleet.at(second * 1_000, _switch(fleet, is_up=is_up))
        fleet.run()
        fleet.check_invariants()
        figures = fleet.recorder.balance(count)
        if self.outage is not None:
            figures = self._during(fleet) | figures
        return Run(policy, figures | {"decisions": float(fleet.decisions)}, fleet.recorder.series)

    def _spec(self, capacity: int) -> NodeSpec:
        return NodeSpec(
            capacity=capacity * CAPACITY,
            connections=capacity * self.held,
            started_at=0 if self.is_cold else LONG_AGO_MS,
        )

    def _during(self, fleet: Fleet) -> dict[str, float | None]:
        """Return the balance while the registry was away."""
        assert self.outage is not None
        first, last = self.outage
        series = fleet.recorder.series
        ratios = [
            most / mean
            for second, most, mean in zip(series.second, series.most, series.mean, strict=True)
            if first < second <= last
        ]
        return {"outage_max_over_mean": max(ratios), "outage_max_over_mean_p50": percentile(ratios, 50)}


def _switch(fleet: Fleet, *, is_up: bool) -> Callable[[int], None]:
    """Take the registry away or bring it back."""

    def switch(_now: int) -> None:
        fleet.is_registry_up = is_up

    return switch


SCENARIOS = (
    Scenario(
        name="balance",
        summary="A cold fleet with 500 clients a node fills at 20 a second and node.",
        policies=POLICIES,
        run=_Steady(held=500, lifetime_s=3_600, seconds=90, is_cold=True).run,
    ),
    Scenario(
        name="churn",
        summary="Clients stay for 28 s only: a third of them left since a node's last report.",
        policies=POLICIES,
        run=_Steady(held=500, lifetime_s=500 / (ARRIVALS_PER_NODE_S * (1 - ABANDONS)), seconds=600, is_cold=True).run,
    ),
    Scenario(
        name="warm",
        summary="A fleet with 10,000 clients a node, who stay for nine minutes.",
        policies=POLICIES,
        run=_Steady(held=10_000, lifetime_s=10_000 / (ARRIVALS_PER_NODE_S * (1 - ABANDONS)), seconds=600).run,
    ),
    Scenario(
        name="mixed_capacity",
        summary="Nodes of three sizes, which take 15,000, 30,000 and 60,000 clients.",
        policies=POLICIES,
        run=_Steady(held=3_000, lifetime_s=400, seconds=600, capacities=(1, 2, 4)).run,
    ),
    Scenario(
        name="registry_outage",
        summary="After two minutes nobody reaches the registry for ten.",
        policies=POLICIES,
        run=_Steady(
            held=2_000,
            lifetime_s=2_000 / (ARRIVALS_PER_NODE_S * (1 - ABANDONS)),
            seconds=OUTAGE_FROM_S + OUTAGE_S + 120,
            outage=(OUTAGE_FROM_S, OUTAGE_FROM_S + OUTAGE_S),
        ).run,
        seconds_min=OUTAGE_FROM_S + 60,
    ),
)
