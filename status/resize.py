"""What a resize request asks for, what it costs, and how far a resize is: plain functions on tables and weights.

A request changes the wanted nodes and weights, counted from the last wish, whether or not the table shows it already.
What a plan says is what the leader will do as long as no node comes or goes: both ask `status.core.migration.planned`.

The expected time is a rough one: `PARTITIONS_PER_S` and `SESSIONS_PER_S` are what all nodes in one process on two cores
get done beside light traffic. Nodes on machines of their own are faster, busy ones slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from base.errors import BadRequest
from base.ids import NodeId, name_order
from status.census import Total
from status.core.migration import planned
from status.core.partitions import AFTER_COMMIT, PartitionTable, Stage
from status.table import Wish

__all__ = ["WEIGHT_MAX", "ResizeRequest", "nodes_of", "plan_of", "progress_of", "uncommitted", "wanted_by"]
__all__ += ["weights_asked"]

WEIGHT_MAX = 1_000
PARTITIONS_PER_S = 1_500
SESSIONS_PER_S = 150_000


class ResizeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/admin/status/resize`. `plan`: say what would be done, and do nothing."""

    to: int | None = None
    weights: dict[NodeId, int] | None = None
    add: list[NodeId] = []
    remove: list[NodeId] = []
    weight: dict[NodeId, int] = {}
    plan: bool = False


# ---------------------------------------------------------------- what is asked for


def wanted_by(wish: Wish, table: PartitionTable) -> dict[NodeId, int]:
    """Return the nodes that shall own partitions, with their weights: as wished, or as the table has it."""
    return dict(wish.weights) if wish.weights is not None else table.wanted()


def weights_asked(
    request: ResizeRequest, present: Mapping[NodeId, int], registered: Collection[NodeId]
) -> dict[NodeId, int]:
    """Return the weights that the request asks for.

    Args:
        request: the request.
        present: the weights that are wanted already.
        registered: the status nodes that are there.

    Raises:
        BadRequest: nothing or a contradiction is asked for, a node is not there, a weight or number is out of bounds.
    """
    _check_kinds(request)
    weights = dict(present)
    if request.weights is not None:
        _check_known(request.weights, {*present, *registered}, registered)
        weights = dict(request.weights)
    if request.to is not None:
        weights = _chosen(request.to, present, registered)
    _check_known(request.add, {*present, *registered}, registered)
    _check_known(request.remove, {*present, *registered}, registered)
    weights.update({node: present.get(node, 1) for node in request.add})
    for node in request.remove:
        weights.pop(node, None)
    _check_known(request.weight, {*present, *registered}, registered)
    for node, weight in request.weight.items():
        if node not in weights:
            raise BadRequest(f"{node} gets a weight, but owns no partitions after this; add it as well")
        weights[node] = weight
    for node, weight in weights.items():
        if not 1 <= weight <= WEIGHT_MAX:
            raise BadRequest(f"the weight of {node} is {weight}; it must be a whole number from 1 to {WEIGHT_MAX}")
    if not weights:
        raise BadRequest("no status node would be left to own the partitions")
    return weights


def _check_kinds(request: ResizeRequest) -> None:
    others = [name for name in ("to", "add", "remove", "weight") if getattr(request, name) not in (None, [], {})]
    if request.weights is not None and others:
        raise BadRequest(f"weights names all nodes, so it does not go together with {', '.join(others)}")
    if request.weights is None and not others:
        raise BadRequest("nothing is asked for; name one of to, weights, add, remove, weight")
    if request.to is not None and (request.add or request.remove):
        raise BadRequest("to chooses the nodes, so it does not go together with add or remove")
    both = sorted(set(request.add) & set(request.remove), key=name_order)
    if both:
        raise BadRequest(f"{', '.join(both)}: both added and removed")


def _check_known(named: Iterable[NodeId], known: Collection[NodeId], registered: Collection[NodeId]) -> None:
    strangers = sorted(set(named) - set(known), key=name_order)
    if strangers:
        there = ", ".join(sorted(registered, key=name_order))
        raise BadRequest(f"no such status node: {', '.join(strangers)}; there are: {there}")


def _chosen(to: int, present: Mapping[NodeId, int], registered: Collection[NodeId]) -> dict[NodeId, int]:
    """Return so many of the nodes that are there: those that own partitions first, then spares, both by name."""
    if to < 1:
        raise BadRequest(f"to is {to}; at least one status node must own the partitions")
    if to > len(registered):
        raise BadRequest(f"to is {to}, but {len(registered)} status nodes are there; start more of them first")
    order = sorted(registered, key=lambda node: (node not in present, name_order(node)))
    return {node: present.get(node, 1) for node in order[:to]}


# ---------------------------------------------------------------- what it costs


def plan_of(table: PartitionTable, weights: Mapping[NodeId, int], held: Total) -> dict[str, Any]:
    """Return the moves that lead from the table to these weights: how many, between whom, how much there is to copy."""
    moves: dict[tuple[NodeId, NodeId], list[int]] = {}
    plan = planned(table, weights)
    for partition, target in enumerate(plan):
        source = table.owner(partition)
        if source != target:
            moves.setdefault((source, target), []).append(partition)
    rows = [
        _pair(source, target, partitions, held)
        for (source, target), partitions in sorted(moves.items(), key=lambda item: tuple(map(name_order, item[0])))
    ]
    nodes = nodes_of(table, weights, plan)
    sessions = sum(row["sessions"] or 0 for row in rows)
    partitions = sum(row["partitions"] for row in rows)
    return {
        "epoch": table.epoch,
        "weights": weights,
        "nodes": nodes,
        "moves": rows,
        "partitions": partitions,
        "minimum": sum(max(0, node["wanted_partitions"] - node["partitions"]) for node in nodes),
        "sessions": sessions,
        "bytes": sum(row["bytes"] or 0 for row in rows),
        "unknown": held.unknown,
        "expected_s": round(partitions / PARTITIONS_PER_S + sessions / SESSIONS_PER_S, 1),
    }


def _pair(source: NodeId, target: NodeId, partitions: list[int], held: Total) -> dict[str, Any]:
    sessions = sum(held.sessions.get(partition, 0) for partition in partitions)
    is_known = source not in held.unknown
    return {
        "source": source,
        "target": target,
        "partitions": len(partitions),
        "sessions": sessions if is_known else None,
        "bytes": sessions * held.session_bytes.get(source, 0) if is_known else None,
    }


def nodes_of(table: PartitionTable, weights: Mapping[NodeId, int], plan: Iterable[NodeId]) -> list[dict[str, Any]]:
    """Return each node that owns or shall own partitions: its weight to be, how many it has and shall have."""
    present, wanted = table.counts(), Counter(plan)
    return [
        {
            "node": node,
            "weight": weights.get(node, 0),
            "partitions": present.get(node, 0),
            "wanted_partitions": wanted[node],
        }
        for node in sorted({*present, *weights}, key=name_order)
    ]


# ---------------------------------------------------------------- how far it is


def is_done(table: PartitionTable, weights: Mapping[NodeId, int], left: int) -> bool:
    """Return whether nothing is left to do: no move, and every node knows who belongs to the cluster.

    Nodes that left may be stopped then: before, they count in the majorities that give serving leases.
    """
    return not (left or table.moves or table.former) and dict(zip(table.nodes, table.weights, strict=True)) == weights


def progress_of(
    table: PartitionTable, wish: Wish, registered: Collection[NodeId], leader: NodeId | None
) -> dict[str, Any]:
    """Return how far the table is from what is wanted."""
    weights = wanted_by(wish, table)
    plan = planned(table, weights)
    left = sum(table.owner(partition) != target for partition, target in enumerate(plan))
    stages = Counter(move.stage for move in table.moves)
    nodes = nodes_of(table, weights, plan)
    return {
        "epoch": table.epoch,
        "leader": leader,
        "is_paused": wish.is_paused,
        "is_done": is_done(table, weights, left),
        "weights": weights,
        "nodes": [{**node, "is_registered": node["node"] in registered} for node in nodes],
        "moves": {stage.value: stages[stage] for stage in Stage},
        "left": left,
        "spares": sorted(set(registered) - set(weights), key=name_order),
    }


def uncommitted(table: PartitionTable) -> int:
    """Return how many moves can still be rolled back."""
    return sum(move.stage not in AFTER_COMMIT for move in table.moves)
