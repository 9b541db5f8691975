"""The real thing in the simulated fleet: each balancer is an engine of its own, as each scheduler has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from roadstead.sim.fleet.balancers import Choice
from roadstead.sim.fleet.chance import Chance
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.engine import Decision, Engine
from scheduler.core.node import AccessNode
from scheduler.core.policy import DEFAULT_POLICY
from scheduler.core.regions import Regions
from scheduler.core.request import Request
from scheduler.core.snapshot import Settings

__all__ = ["EngineBalancer"]


class EngineBalancer:
    """An engine that is told what the registry says and how many schedulers are registered, and nothing else."""

    def __init__(self, chance: Chance, *, schedulers: int, settings: Settings | None = None) -> None:
        self.engine = Engine(settings or Settings(), chance)
        self._schedulers = schedulers
        self._ids: list[str] = []

    def configure(self, rollouts: Iterable[ActiveRollout], now: int) -> None:
        """Go by these rollouts."""
        self.engine.configure(rollouts=rollouts, policy=DEFAULT_POLICY, lists={}, regions=Regions(), now=now)
        self._name()

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:
        """Take the registry's view into account."""
        self.engine.observe(nodes, now, schedulers=self._schedulers)
        self._name()

    def decide(self, request: Request, now: int) -> Choice:
        """Decide as a scheduler does."""
        decision: Decision = self.engine.decide(request, now)
        ids = self._ids
        return Choice(tuple([ids[index] for index in decision.candidates]), decision.not_before_ms, decision.arm)

    def _name(self) -> None:
        self._ids = [str(node.id) for node in self.engine.snapshot.nodes]
