"""Which named points of a resize a node crosses when it reads a table."""

from __future__ import annotations

from base.ids import Epoch, NodeId
from status.core.faultpoints import POINTS, crossed_by_all, crossed_by_node
from status.core.partitions import Advance, Begin, PartitionTable, Stage, Take

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
TABLE = PartitionTable(Epoch(1), (A, B, C), (1, 1, 1), (0, 0, 1))


def test_each_role_crosses_the_stage_that_a_move_of_its_own_entered() -> None:
    """Once, however many moves did."""
    begun = TABLE.with_changes([Begin(0, B), Begin(1, B)])
    assert crossed_by_node(Epoch(1), begun, A) == ["source.prepare"]
    assert crossed_by_node(Epoch(1), begun, B) == ["target.prepare"]
    assert crossed_by_node(Epoch(1), begun, C) == []
    assert crossed_by_all("leader", Epoch(1), begun) == ["leader.prepare"]


def test_what_was_crossed_before_is_not_crossed_again() -> None:
    """Only what is newer than the table that the node had."""
    begun = TABLE.with_changes([Begin(0, B), Begin(2, A)])
    copying = begun.with_changes([Advance(0, Stage.COPY)])
    assert crossed_by_node(begun.epoch, copying, A) == ["source.copy"]
    assert crossed_by_node(Epoch(1), copying, A) == ["source.copy", "target.prepare"], "it skipped a table"
    assert crossed_by_all("access", begun.epoch, copying) == ["access.copy"]
    assert crossed_by_all("access", copying.epoch, copying) == []


def test_every_role_has_a_point_for_every_stage() -> None:
    """As tests name them."""
    assert len(POINTS) == len(set(POINTS)) == 4 * len(Stage)
    taken = TABLE.with_changes([Take(0, B)])
    assert {*crossed_by_node(Epoch(1), taken, B), *crossed_by_node(Epoch(1), taken, A)} <= set(POINTS)
    assert crossed_by_node(Epoch(1), taken, B) == ["target.recover"]
