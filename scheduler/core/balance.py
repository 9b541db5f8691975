"""How many connections should go from where to where, so that all nodes of a group are equally full.

A node's *share* is what it would hold if every node of its group had the same connections per capacity. It is even when
it holds that share within a tolerance. Three rules make the moves as few as they can be:

- the least that makes all nodes even is the larger of two sums: what nodes hold above the upper end of their band, and
  what they lack to its lower end. Each move takes at most one from either sum, and that many moves suffice;
- only nodes above their share give, down to it; only nodes below it take, up to it. So nobody gives what it must get
  back, and nobody takes what it must give away;
- what moves beyond the larger sum's own side is spread over the others in proportion to what they can give or take.

Everything is integers, and the same input gives the same moves: whoever computes them again, from loads that took note
of what is on its way, goes on where the last one stopped.

A draining or a cordoned node neither gives nor takes, and counts in no mean: a drain has its own plan for its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from base.ids import NodeId
from scheduler.core.node import AccessNode

__all__ = ["TOLERANCE", "Shares", "Transfer", "apportion", "even_out", "pair", "shares_by_group"]

K = TypeVar("K", bound=Hashable)

TOLERANCE = 30
"""How far from its share an even node may be, in thousandths of it."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What each node of one group gives or takes: counts above 0, by node, in the order of the nodes."""

    gives: Mapping[NodeId, int]
    takes: Mapping[NodeId, int]

    @property
    def moves(self) -> int:
        """How many connections move in all, as far as takers have room."""
        return min(sum(self.gives.values()), sum(self.takes.values()))


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move `count` connections from the one to the other."""

    source: NodeId
    target: NodeId
    count: int


def shares_by_group(
    nodes: Sequence[AccessNode],
    group_of: Callable[[AccessNode], Hashable],
    *,
    loads: Mapping[NodeId, int],
    tolerance: int = TOLERANCE,
) -> list[Shares]:
    """Return what makes each group even, with the fewest moves; groups that are even are left out.

    Args:
        nodes: the fleet.
        group_of: connections move inside a group only.
        loads: connections of each node, those on their way counted at where they go.
        tolerance: in thousandths of a node's share.
    """
    groups: dict[Hashable, dict[NodeId, tuple[int, int]]] = {}
    for node in nodes:
        if not node.is_draining and not node.is_cordoned and node.capacity > 0:
            groups.setdefault(group_of(node), {})[node.id] = (loads[node.id], node.capacity)
    found = [even_out(group, tolerance) for group in groups.values()]
    return [shares for shares in found if shares.moves]


def even_out(group: Mapping[NodeId, tuple[int, int]], tolerance: int = TOLERANCE) -> Shares:
    """Return the fewest gives and takes after which every node of one group is even.

    If the group holds more than its capacity, nobody takes more than fits, and it is as even as that allows.

    Args:
        group: connections and capacity of each node; no capacity is 0.
        tolerance: in thousandths of a node's share. A band always holds the share rounded up and down.
    """
    held = sum(connections for connections, _ in group.values())
    capacity = sum(most for _, most in group.values())
    surplus, deficit, can_give, can_take = {}, {}, {}, {}
    for node, (connections, most) in group.items():
        floor, ceiling = held * most // capacity, -(-held * most // capacity)
        lowest = min(floor, -(-held * most * (1_000 - tolerance) // (capacity * 1_000)))
        highest = max(ceiling, held * most * (1_000 + tolerance) // (capacity * 1_000))
        surplus[node] = max(connections - highest, 0)
        deficit[node] = max(min(lowest, most) - connections, 0)
        can_give[node] = max(connections - floor, 0)
        can_take[node] = max(min(ceiling, most) - connections, 0)
    moves = max(sum(surplus.values()), sum(deficit.values()))
    moves = min(moves, sum(can_give.values()), sum(can_take.values()))
    return Shares(_fill(moves, surplus, can_give), _fill(moves, deficit, can_take))


def pair(gives: Mapping[NodeId, int], takes: Mapping[NodeId, int]) -> list[Transfer]:
    """Say who gives to whom: at most one transfer fewer than there are nodes, each giver's takers side by side.

    If one side has more than the other, the last ones of it are left without a partner.
    """
    transfers: list[Transfer] = []
    open_takes = [(target, count) for target, count in reversed(list(takes.items())) if count > 0]
    for source, count in gives.items():
        left = count
        while left > 0 and open_takes:
            target, wanted = open_takes.pop()
            moved = min(left, wanted)
            transfers.append(Transfer(source, target, moved))
            left -= moved
            if moved < wanted:
                open_takes.append((target, wanted - moved))
    return transfers


def apportion(total: int, weights: Mapping[K, int]) -> dict[K, int]:
    """Split a total in proportion to the weights, by largest remainder; shares of 0 are left out.

    A total above the sum of the weights is taken as that sum, so that nobody gets more than its weight.
    """
    whole = sum(weights.values())
    total = min(total, whole)
    if total <= 0:
        return {}
    shares = {key: total * weight // whole for key, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda key: -(total * weights[key] % whole))
    for key in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return {key: share for key, share in shares.items() if share}


def _fill(total: int, first: Mapping[NodeId, int], most: Mapping[NodeId, int]) -> dict[NodeId, int]:
    """Spread a total over `first`, then what is left of it over the rest of `most`. No `first` is above its `most`."""
    filled = apportion(total, first)
    rest = {node: most[node] - filled.get(node, 0) for node in most}
    for node, share in apportion(total - sum(filled.values()), rest).items():
        filled[node] = filled.get(node, 0) + share
    return {node: filled[node] for node in most if node in filled}
