"""Which access nodes a client shall try, in which order, and why.

A decision is a pure function of (snapshot, own recent decisions, request, random source): the same four give the same
decision, so that one can be explained and replayed.

Load is compared as connections per capacity, where connections are what a node last reported plus what this scheduler
assigned to it since. Nobody takes the minimum of that: all schedulers and all clients of a second would pick the same
node from the same stale report. Two nodes are drawn at random and the less loaded one wins, which is nearly as even
as the minimum and immune to herding.

Invariants:
    I1  Candidates are distinct, alive and not draining; there are min(k, eligible) of them.
    I2  `why` names every node that was left out and the reason.

Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS, 2001); on stale reports:
M. Mitzenmacher, "How Useful Is Old Information?" (IEEE TPDS, 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from base.ids import NodeId

__all__ = ["AccessNode", "Decision", "LoadEstimate", "assign"]


class _Random(Protocol):
    def sample(self, population: Sequence[int], k: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class AccessNode:
    """An access node as its last report shows it. `capacity` is the most connections it takes."""

    id: NodeId
    url: str
    region: str
    capacity: int
    connections: int
    is_draining: bool
    report: tuple[int, int]
    """(incarnation, number) of the report: it tells which decisions the report already contains."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Candidates in the order to try them, empty when no node takes connections; `why` is for people."""

    candidates: tuple[AccessNode, ...]
    why: tuple[str, ...]


class LoadEstimate:
    """What this scheduler assigned to each node since the node's last report."""

    def __init__(self) -> None:
        self._since: dict[NodeId, tuple[tuple[int, int], int]] = {}

    def connections(self, node: AccessNode) -> int:
        """Return the node's connections, as far as this scheduler can know them."""
        report, assigned = self._since.get(node.id, (node.report, 0))
        return node.connections + (assigned if report == node.report else 0)

    def assigned(self, node: AccessNode) -> None:
        """Take note that a client was sent to the node."""
        report, assigned = self._since.get(node.id, (node.report, 0))
        self._since[node.id] = (node.report, assigned + 1 if report == node.report else 1)

    def forget_all_but(self, nodes: Sequence[AccessNode]) -> None:
        """Drop nodes that left the snapshot."""
        alive = {node.id for node in nodes}
        self._since = {node: since for node, since in self._since.items() if node in alive}


def assign(nodes: Sequence[AccessNode], load: LoadEstimate, random: _Random, *, k: int) -> Decision:
    """Choose up to `k` candidates by power of two choices, without replacement.

    Args:
        nodes: the snapshot.
        load: own decisions since the reports; the caller records this one with `load.assigned`.
        random: the seeded source.
        k: how many candidates; the client falls back along them.
    """
    assert k >= 1
    why: list[str] = []
    pool: list[AccessNode] = []
    for node in nodes:
        if node.is_draining:
            why.append(f"{node.id}: left out, draining")
        elif load.connections(node) >= node.capacity:
            why.append(f"{node.id}: left out, full at {load.connections(node)} of {node.capacity}")
        else:
            pool.append(node)
    chosen: list[AccessNode] = []
    while pool and len(chosen) < k:
        drawn = [pool[index] for index in random.sample(range(len(pool)), min(2, len(pool)))]
        # On a tie the one drawn first: drawing is random, an order by name would favour one node.
        best = min(drawn, key=lambda node: load.connections(node) / node.capacity)
        shown = ", ".join(f"{node.id} {load.connections(node)}/{node.capacity}" for node in drawn)
        why.append(f"{best.id}: chosen as candidate {len(chosen) + 1} from ({shown})")
        chosen.append(best)
        pool.remove(best)
    return Decision(tuple(chosen), tuple(why))
