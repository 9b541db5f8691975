"""The points of a resize at which a crash is tested: one for each role and each stage of a move.

A node crosses a point when it has just read the table in which a move entered that stage, before it acts on it; the
leader when its write of that table has succeeded, before it tells anybody. What must hold after a crash at any of them
is what always holds (see `ownership` and `migration`): no wrong answer, and the resize goes on or is rolled back.
"""

from __future__ import annotations

from base.ids import Epoch, NodeId
from status.core.partitions import PartitionTable, Stage

__all__ = ["POINTS", "crossed_by_all", "crossed_by_node"]

POINTS = tuple(f"{role}.{stage.value}" for role in ("leader", "source", "target", "access") for stage in Stage)


def crossed_by_node(since: Epoch, table: PartitionTable, node: NodeId) -> list[str]:
    """Return the points that a status node crosses that had the table of epoch `since`, each once."""
    points = {
        f"{role}.{move.stage.value}": None
        for move in table.moves
        if table.partition_epoch(move.partition) > since
        for role, holder in (("source", move.source), ("target", move.target))
        if holder == node
    }
    return list(points)


def crossed_by_all(role: str, since: Epoch, table: PartitionTable) -> list[str]:
    """Return the points that a leader or an access node crosses that had the table of epoch `since`, each once."""
    stages = {move.stage: None for move in table.moves if table.partition_epoch(move.partition) > since}
    return [f"{role}.{stage.value}" for stage in stages]
