"""The hottest status node owns at most 1 % more partitions than the mean, worst over 3 to 32 nodes.

`details` has what growing and shrinking moves against the minimum that the new shares force, and the same for a plain
consistent-hash ring without the table's repair, in the same run.
"""

from __future__ import annotations

from collections import Counter

from uhashring import HashRing

from base.ids import NodeId
from bench.result import Comparison, Options, Result
from status.core.partitions import PARTITIONS, PartitionTable, plan_table

__all__ = ["run"]

SPEC = ("PR-05",)  # rows of docs/spec-coverage.md


def run(options: Options) -> Result:
    """Measure, see the module."""
    sizes = range(3, 9 if options.quick else 33)
    worst, worst_ring, moved, least = 0.0, 0.0, 0, 0
    for size in sizes:
        table = plan_table(_nodes(size))
        worst = max(worst, max(table.counts().values()) * size / PARTITIONS)
        worst_ring = max(worst_ring, _ring_hottest(size))
        for other in (size - 1, size + 1):
            resized = plan_table(_nodes(other), table)
            moved += _moved(table, resized)
            least += _minimum(table, resized)
    return Result(
        name="status_balance",
        value=round(worst, 4),
        unit="hottest / mean partitions, worst over sizes",
        goal=1.01,
        better="lower",
        details={
            "sizes": f"{sizes.start}..{sizes.stop - 1}",
            "moved_over_minimum": round(moved / least, 4),
            "plain_ring_hottest_over_mean": round(worst_ring, 4),
        },
        comparison=Comparison(
            unit="hottest / mean partitions, worst over sizes",
            better="lower",
            ours=round(worst, 4),
            others={"plain consistent-hash ring": round(worst_ring, 4)},
        ),
    )


def _nodes(size: int) -> dict[NodeId, int]:
    return {NodeId(f"status-{number}"): 1 for number in range(1, size + 1)}


def _moved(before: PartitionTable, after: PartitionTable) -> int:
    return sum(before.owner(p) != after.owner(p) for p in range(PARTITIONS))


def _minimum(before: PartitionTable, after: PartitionTable) -> int:
    """What must move whoever plans it: all that a node has above its new share."""
    had = before.counts()
    return sum(max(0, count - after.counts().get(node, 0)) for node, count in had.items())


def _ring_hottest(size: int) -> float:
    ring = HashRing(nodes=list(_nodes(size)), vnodes=160)
    owned = Counter(ring.get_node(f"p{partition}") for partition in range(PARTITIONS))
    return max(owned.values()) * size / PARTITIONS
