"""What a resize request means, what its plan says, and when a resize is done."""

from __future__ import annotations

from typing import Any

import pytest

from base.errors import BadRequest
from base.ids import NodeId
from status.census import Total
from status.core.partitions import PARTITIONS, Advance, Begin, End, Members, PartitionTable, Settle, Stage, plan_table
from status.resize import ResizeRequest, plan_of, progress_of, uncommitted, wanted_by, weights_asked
from status.table import Wish

ONE, TWO, THREE, FOUR, TEN = (NodeId(f"status-{number}") for number in (1, 2, 3, 4, 10))
PRESENT = {ONE: 1, TWO: 2, THREE: 1}
THERE = [ONE, TWO, THREE, TEN, FOUR]
EMPTY = Total({}, {}, {}, (), is_exact=True)


def table_of(*nodes: NodeId) -> PartitionTable:
    return plan_table(dict.fromkeys(nodes, 1))


@pytest.mark.parametrize(
    ("asked", "weights"),
    [
        ({"to": 4}, {ONE: 1, TWO: 2, THREE: 1, FOUR: 1}),
        ({"to": 5}, {ONE: 1, TWO: 2, THREE: 1, FOUR: 1, TEN: 1}),
        ({"to": 2}, {ONE: 1, TWO: 2}),
        ({"to": 4, "weight": {FOUR: 3}}, {ONE: 1, TWO: 2, THREE: 1, FOUR: 3}),
        ({"weights": {FOUR: 7, ONE: 1}}, {FOUR: 7, ONE: 1}),
        ({"add": [TEN], "remove": [TWO]}, {ONE: 1, THREE: 1, TEN: 1}),
        ({"add": [TWO]}, PRESENT),
        ({"remove": [TEN]}, PRESENT),
        ({"weight": {TWO: 1_000}}, {ONE: 1, TWO: 1_000, THREE: 1}),
    ],
)
def test_what_is_asked_for(asked: dict[str, Any], weights: dict[NodeId, int]) -> None:
    """Present nodes keep their weights; spares come in by name, as people count, with weight 1."""
    assert weights_asked(ResizeRequest(**asked), PRESENT, THERE) == weights


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing is asked for"),
        ({"to": 0}, "at least one status node"),
        ({"to": 6}, "to is 6, but 5 status nodes are there"),
        ({"to": 3, "add": [FOUR]}, "to chooses the nodes"),
        ({"to": 3, "weights": {ONE: 1}}, "does not go together with to"),
        ({"add": [FOUR], "remove": [FOUR]}, "status-4: both added and removed"),
        (
            {"add": ["nobody"]},
            "no such status node: nobody; there are: status-1, status-2, status-3, status-4, status-10",
        ),
        ({"remove": ["x", "a"]}, "no such status node: a, x"),
        ({"weight": {"nobody": 1}}, "no such status node: nobody"),
        ({"weights": {"nobody": 1}}, "no such status node: nobody"),
        ({"weight": {FOUR: 2}}, "owns no partitions after this"),
        ({"weight": {ONE: 0}}, "the weight of status-1 is 0"),
        ({"weights": {ONE: 1_001}}, "from 1 to 1000"),
        ({"remove": [ONE, TWO, THREE]}, "no status node would be left"),
        ({"weights": {}}, "no status node would be left"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], message: str) -> None:
    """With words that say what to mend."""
    with pytest.raises(BadRequest, match=message):
        weights_asked(ResizeRequest(**asked), PRESENT, THERE)


def test_a_node_that_died_can_be_removed_and_is_not_chosen() -> None:
    """It is not registered any more, and still in the table."""
    there = [ONE, TWO, FOUR]
    assert weights_asked(ResizeRequest(remove=[THREE]), PRESENT, there) == {ONE: 1, TWO: 2}
    assert weights_asked(ResizeRequest(to=3), PRESENT, there) == {ONE: 1, TWO: 2, FOUR: 1}


def test_a_plan_moves_no_more_than_it_must() -> None:
    """Per pair and in total, with what there is to copy; a source that did not tell is unknown, not empty."""
    table = table_of(ONE, TWO)
    held = Total(dict.fromkeys(range(PARTITIONS), 2), {ONE: 100}, {}, (TWO,), is_exact=False)
    plan = plan_of(table, {ONE: 1, TWO: 1, THREE: 2}, held)
    assert plan["partitions"] == plan["minimum"] == PARTITIONS // 2
    assert [node["wanted_partitions"] for node in plan["nodes"]] == [1_024, 1_024, 2_048]
    first, second = plan["moves"]
    assert (first["source"], first["target"], second["source"]) == (ONE, THREE, TWO)
    assert (first["partitions"], first["sessions"], first["bytes"]) == (1_024, 2_048, 204_800)
    assert (second["partitions"], second["sessions"], second["bytes"]) == (1_024, None, None)
    assert (plan["sessions"], plan["bytes"], plan["unknown"]) == (2_048, 204_800, (TWO,))
    assert plan["expected_s"] > 2_048 / 1_500
    nothing = plan_of(table, {ONE: 1, TWO: 1}, EMPTY)
    assert (nothing["moves"], nothing["partitions"], nothing["expected_s"]) == ([], 0, 0)


def test_progress_ends_when_everybody_knows_the_nodes() -> None:
    """Neither while the table does not show the wish, nor with moves, nor before the majority of former nodes knows."""
    table = table_of(ONE, TWO)
    assert progress_of(table, Wish(), [ONE, TWO, TEN, FOUR], ONE)["is_done"]
    assert progress_of(table, Wish(), [ONE, TWO, TEN, FOUR], ONE)["spares"] == [FOUR, TEN]
    wish = Wish(weights={ONE: 1}, is_paused=True)
    assert wanted_by(wish, table) == {ONE: 1}
    seen = progress_of(table, wish, [ONE], None)
    assert (seen["is_done"], seen["is_paused"], seen["leader"], seen["left"]) == (False, True, None, 2_048)
    assert [node["is_registered"] for node in seen["nodes"]] == [True, False]

    table = table.with_changes([Members(((ONE, 1), (TWO, 0)))])
    mine = [partition for partition in range(PARTITIONS) if table.owner(partition) == TWO]
    table = table.with_changes([Begin(partition, ONE) for partition in mine])
    assert progress_of(table, wish, [ONE], ONE)["moves"]["prepare"] == uncommitted(table) == 2_048
    table = table.with_changes([Advance(partition, Stage.COMMIT) for partition in mine])
    seen = progress_of(table, wish, [ONE], ONE)
    assert (seen["left"], seen["is_done"], uncommitted(table)) == (0, False, 0)
    table = table.with_changes([End(partition) for partition in mine])
    assert not progress_of(table, wish, [ONE], ONE)["is_done"]
    table = table.with_changes([Members(((ONE, 1),))])
    assert table.former
    assert not progress_of(table, wish, [ONE], ONE)["is_done"]
    assert progress_of(table.with_changes([Settle()]), wish, [ONE], ONE)["is_done"]
