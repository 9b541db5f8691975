"""Who sends clients to nodes in a simulated fleet: the port, and the well-known ways that ours is compared with.

Each of several balancers is told of the nodes' reports and decides alone, as the schedulers of a real fleet do. The
ways to compare with need no more than a report:

    random          any node
    argmin          the node with the fewest connections per capacity in the reports
    own_increments  the same, each balancer adding to a report what it sent there since: goim's way, with its score
    two_choices     two nodes at random, the less loaded one by the reports

`Oracle` is none of them: it sees what no balancer can, and so is the limit of what any of them could do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from roadstead.sim.fleet.chance import Chance
from roadstead.sim.fleet.nodes import SimNode
from scheduler.core.node import AccessNode
from scheduler.core.request import Request

__all__ = ["BASELINES", "ArgMin", "Balancer", "Choice", "Oracle", "OwnIncrements", "RandomChoice", "TwoChoices"]

CANDIDATES = 3


class Choice(NamedTuple):
    """Where to go: ids of nodes in the order to try them, none if nobody takes clients, and how long to wait first."""

    nodes: tuple[str, ...]
    not_before_ms: int = 0
    arm: str = ""


class Balancer(Protocol):
    """One of several that decide without talking to each other. `now` is in ms of simulated time."""

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:
        """Take the registry's view into account."""
        ...

    def decide(self, request: Request, now: int) -> Choice:
        """Send one client somewhere."""
        ...


class _Baseline(ABC):
    """What the four have in common: one node is best, and other ones at random are there to fall back to."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._open: list[AccessNode] = []

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:  # noqa: ARG002 - see Balancer
        """Take the registry's view into account."""
        before = self._open
        self._open = [node for node in nodes if not node.is_draining]
        self._learn(before)

    def decide(self, request: Request, now: int) -> Choice:  # noqa: ARG002 - see Balancer
        """Send one client somewhere."""
        count = len(self._open)
        if not count:
            return Choice(())
        chosen = [self._best()]
        while len(chosen) < min(CANDIDATES, count):
            other = int(self._chance.random() * count)
            if other not in chosen:
                chosen.append(other)
        return Choice(tuple([self._open[index].id for index in chosen]))

    def _learn(self, before: Sequence[AccessNode]) -> None:  # noqa: B027 - some learn nothing
        """The view is a new one."""

    @abstractmethod
    def _best(self) -> int:
        """Return the index of the best node; there is one."""
        ...


class RandomChoice(_Baseline):
    """Any node, with no regard to anything."""

    def _best(self) -> int:
        return int(self._chance.random() * len(self._open))


class ArgMin(_Baseline):
    """The least loaded node by the reports; the first of equal ones."""

    def _learn(self, before: Sequence[AccessNode]) -> None:  # noqa: ARG002 - the reports say it all
        loads = [node.connections / node.capacity for node in self._open]
        self._least = loads.index(min(loads)) if loads else 0

    def _best(self) -> int:
        return self._least


class OwnIncrements(_Baseline):
    """The best score by reports plus own increments, which a node's next report discards.

    The score is goim's: weight ratio less half the connection ratio, times all connections, plus the weight; a node's
    weight is its capacity here, in units of the smallest.
    """

    def __init__(self, chance: Chance) -> None:
        super().__init__(chance)
        self._connections: list[int] = []
        self._weights: list[float] = []

    def _learn(self, before: Sequence[AccessNode]) -> None:
        known = {
            (node.id, node.incarnation, node.report): at for node, at in zip(before, self._connections, strict=True)
        }
        self._connections = [
            known.get((node.id, node.incarnation, node.report), node.connections) for node in self._open
        ]
        smallest = min((node.capacity for node in self._open), default=1)
        self._weights = [node.capacity / smallest for node in self._open]

    def _best(self) -> int:
        # score = (weight / weights - connections / total / 2) * total + weight, and the best one is the greatest
        per_weight = sum(self._connections) / sum(self._weights) + 1.0
        scores = [
            weight * per_weight - 0.5 * count for weight, count in zip(self._weights, self._connections, strict=True)
        ]
        best = scores.index(max(scores))
        self._connections[best] += 1
        return best


class TwoChoices(_Baseline):
    """Two nodes at random, the one with fewer connections per capacity in the reports."""

    def _best(self) -> int:
        nodes = self._open
        if len(nodes) < 2:
            return 0
        one = int(self._chance.random() * len(nodes))
        other = int(self._chance.random() * (len(nodes) - 1))
        other += other >= one
        mine, its = nodes[one], nodes[other]
        return other if its.connections * mine.capacity < mine.connections * its.capacity else one


class Oracle:
    """The node with the fewest connections and clients on their way, as it is this moment."""

    def __init__(self, nodes: Sequence[SimNode]) -> None:
        self._nodes = nodes

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:
        """Need no report."""

    def decide(self, request: Request, now: int) -> Choice:  # noqa: ARG002 - see Balancer
        """Take the least loaded node."""
        loads = [(node.connections + node.coming) / node.spec.capacity for node in self._nodes]
        return Choice((self._nodes[loads.index(min(loads))].id,))


BASELINES: dict[str, Callable[[Chance], Balancer]] = {
    "random": RandomChoice,
    "argmin": ArgMin,
    "own_increments": OwnIncrements,
    "two_choices": TwoChoices,
}
