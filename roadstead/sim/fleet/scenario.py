"""What a scenario is, and what of it can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from roadstead.sim.fleet.balancers import BASELINES, Balancer, Oracle
from roadstead.sim.fleet.chance import stream
from roadstead.sim.fleet.engines import EngineBalancer
from roadstead.sim.fleet.figures import Run
from roadstead.sim.fleet.fleet import Fleet, FleetSettings

__all__ = ["ENGINE", "LIMIT", "Options", "Scenario", "fleet_of", "shares"]

ENGINE = "engine"
"""The policy that is ours."""
LIMIT = "oracle"
"""The policy that no balancer can follow, for it knows everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What can be asked for; None: the scenario's own."""

    seed: int = 1
    nodes: int | None = None
    schedulers: int | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A story about a fleet, told once for each policy."""

    name: str
    summary: str
    policies: tuple[str, ...]
    """In the order to show them, ours first."""
    run: Callable[[str, Options], Run]
    """Run it under one policy."""
    nodes_min: int = 2
    """With fewer, or in less time, the story cannot be told."""
    seconds_min: int = 10


def shares(schedulers: int, first: float | None = None) -> tuple[float, ...]:
    """Return the part of the clients that each scheduler is asked by: the `first` so much, the others alike."""
    if first is None or schedulers == 1:
        return (1.0 / schedulers,) * schedulers
    return (first,) + ((1.0 - first) / (schedulers - 1),) * (schedulers - 1)


def fleet_of(policy: str, settings: FleetSettings) -> Fleet:
    """Make a fleet whose balancers all follow the policy."""
    fleet = Fleet(settings)
    schedulers = len(settings.shares)
    streams = [stream(settings.seed, f"{policy} {index}") for index in range(schedulers)]
    balancers: Sequence[Balancer]
    if policy == ENGINE:
        balancers = [EngineBalancer(chance, schedulers=schedulers) for chance in streams]
    elif policy == LIMIT:
        balancers = [Oracle(fleet.nodes)] * schedulers
    else:
        balancers = [BASELINES[policy](chance) for chance in streams]
    fleet.balancers = list(balancers)
    return fleet
