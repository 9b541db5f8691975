"""Tables while partitions move: each change, what it does to epochs, differences, and the size on the wire."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from base.ids import Epoch, NodeId
from status.core.partitions import (
    PARTITIONS,
    Advance,
    Begin,
    Change,
    End,
    Members,
    Move,
    PartitionTable,
    Pause,
    Registered,
    Settle,
    Stage,
    Take,
    diff,
    patched,
    plan_table,
    restored,
)

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
TABLE = PartitionTable(Epoch(1), (A, B, C), (1, 1, 1), (0, 1, 2, 0))
STAGES = (Stage.COPY, Stage.CATCHUP, Stage.SEAL, Stage.COMMIT, Stage.CLEANUP)


def changed(table: PartitionTable, *changes: Change) -> PartitionTable:
    after = table.with_changes(changes)
    after.check_structure()
    return after


def test_a_move_goes_through_its_stages_with_an_epoch_each():
    """I5 and I6: the owner flips at COMMIT, and at no other stage."""
    table = changed(TABLE, Begin(0, B))
    assert table.moves == (Move(0, Epoch(2), A, B, Stage.PREPARE),)
    for stage in STAGES:
        table = changed(table, Advance(0, stage))
        assert table.moves_by_partition()[0].stage is stage
        assert table.owner(0) == (B if stage in {Stage.COMMIT, Stage.CLEANUP} else A)
        assert table.partition_epoch(0) == table.epoch
    assert table.owner_epoch(0) == 6
    table = changed(table, End(0))
    assert (table.epoch, table.partition_epoch(0), table.owner_epoch(0), table.moves) == (8, 8, 6, ())
    assert (table.partition_epoch(1), table.owner_epoch(1)) == (1, 1)


@pytest.mark.parametrize("is_refilled", [False, True])
def test_a_table_that_is_put_back_has_its_owners_at_an_epoch_of_its_own(*, is_refilled: bool) -> None:
    """All look at every partition then. With a refill owners count as new, and only fences are still waited for."""
    moving = changed(TABLE, Begin(0, B), Begin(1, C), Take(2, A))
    for old in (TABLE, moving):
        table = restored(old, Epoch(99), is_refilled=is_refilled)
        table.check_structure()
        assert (table.epoch, table.restored, table.is_filling) == (99, 99, True)
        assert (table.nodes, table.weights, table.owners) == (old.nodes, old.weights, old.owners)
        assert table.partition_epochs == (99,) * 4
        assert table.owned_since == ((99,) * 4 if is_refilled else tuple(map(old.owner_epoch, range(4))))
        assert set(table.moves) == {move for move in old.moves if not is_refilled or move.stage is Stage.RECOVER}
        assert patched(old, diff(old, table)) == table
        assert changed(table, Registered()) == msgspec.structs.replace(table, epoch=100, is_filling=False) or old.moves


def test_several_changes_are_one_write():
    """Commits of a pair are batched."""
    table = changed(changed(TABLE, Begin(0, B), Begin(3, B)), Advance(3, Stage.COPY), End(0), Pause(is_paused=True))
    assert table.epoch == 3
    assert [(move.partition, move.stage) for move in table.moves] == [(3, Stage.COPY)]
    assert table.is_paused


def test_a_partition_taken_without_a_seal_recovers():
    """The move says whom to fence."""
    table = changed(TABLE, Begin(0, B), Take(0, C))
    assert table.moves == (Move(0, Epoch(2), A, C, Stage.RECOVER),)
    assert table.owner(0) == C


def test_taking_from_a_taker_still_fences_the_first_owner():
    """The one in between never answered."""
    table = changed(changed(TABLE, Take(0, B)), Take(0, C))
    assert table.moves == (Move(0, Epoch(3), A, C, Stage.RECOVER),)
    back = changed(table, Take(0, A))
    assert (back.moves, back.owner(0), back.owner_epoch(0)) == ((), A, 4)


def test_nodes_that_change_leave_the_former_set_behind():
    """Weights alone do not."""
    table = changed(TABLE, Members(((A, 2), (B, 1), (C, 0))))
    assert (table.weights, table.former, table.wanted()) == ((2, 1, 0), (), {A: 2, B: 1})
    table = changed(table, Members(((NodeId("_"), 1), (A, 1), (B, 1), (C, 1))))
    assert table.former == (A, B, C)
    assert changed(table, Settle()).former == ()
    assert [table.owner(partition) for partition in range(4)] == [A, B, C, A]


@pytest.mark.parametrize("changes", [[Begin(0, B), Begin(0, C)], [Begin(0, A)]])
def test_a_partition_has_one_move_between_two_nodes(changes: list[Change]):
    """I5."""
    with pytest.raises(AssertionError, match="I5"):
        TABLE.with_changes(changes)


MOVE = Move(0, Epoch(1), A, B, Stage.COPY)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"owners": (3, 0, 0, 0)}, "I1"),
        ({"partition_epochs": (1,), "owned_since": (1,)}, "I6"),
        ({"partition_epochs": (2, 1, 1, 1), "owned_since": (1, 1, 1, 1)}, "I6"),
        ({"moves": (MOVE, MOVE)}, "I5"),
        ({"moves": (Move(0, Epoch(1), A, A, Stage.COPY),)}, "I5"),
        ({"moves": (Move(0, Epoch(1), A, B, Stage.COMMIT),)}, "I5"),
        ({"moves": (Move(0, Epoch(9), A, B, Stage.COPY),)}, "I6"),
    ],
)
def test_a_wrong_structure_is_found_out(fields: dict[str, object], name: str):
    """Checked, not assumed."""
    with pytest.raises(AssertionError, match=name):
        msgspec.structs.replace(TABLE, **fields).check_structure()


CHANGES: list[Change] = [
    Begin(0, B),
    Take(1, C),
    Members(((A, 1), (B, 1), (C, 1), (NodeId("d"), 3))),
    Members(((A, 3), (B, 1), (C, 1))),
    Pause(is_paused=True),
]


@pytest.mark.parametrize(("first", "second"), list(product(CHANGES, CHANGES)))
def test_a_difference_turns_the_old_table_into_the_new_one(first: Change, second: Change):
    """Over one write and over two, also from a table without epochs."""
    middle = changed(TABLE, first)
    try:
        new = changed(middle, second)
    except AssertionError:
        new = middle  # the same partition twice
    except ValueError:
        new = middle  # a node with partitions can't leave
    for old in (TABLE, middle):
        change = msgspec.msgpack.decode(msgspec.msgpack.encode(diff(old, new)), type=type(diff(old, new)))
        assert patched(old, change) == (new if old is not new else msgspec.structs.replace(new))
    assert patched(new, diff(TABLE, new)) is None or new.epoch == TABLE.epoch


def test_a_small_change_is_a_small_difference():
    """A few bytes rather than a table."""
    table = plan_table({A: 1, B: 1, C: 1})
    new = table.with_changes([Begin(7, next(node for node in table.nodes if node != table.owner(7)))])
    assert len(msgspec.msgpack.encode(diff(table, new))) < 150


def test_a_table_fits_the_registry_by_far():
    """The registry takes 512 kB; here half of all partitions move, at great epochs, between 32 nodes."""
    table = plan_table({NodeId(f"status-{number}.example"): 1 for number in range(32)})
    table = msgspec.structs.replace(table, epoch=Epoch(1 << 40))
    table = table.with_changes(
        [Begin(partition, table.nodes[(table.owners[partition] + 1) % 32]) for partition in range(0, PARTITIONS, 2)]
    )
    encoded = msgspec.msgpack.encode(table)
    assert len(encoded) < 256_000
    assert msgspec.msgpack.decode(encoded, type=PartitionTable) == table


def test_a_table_of_before_these_fields_is_read():
    """Of the first format, without moves and epochs."""
    old = msgspec.msgpack.encode({"epoch": 1, "nodes": ["a"], "weights": [1], "owners": [0, 0]})
    table = msgspec.msgpack.decode(old, type=PartitionTable)
    assert (table.partition_epoch(1), table.owner_epoch(1), table.moves) == (1, 1, ())


def test_planning_keeps_the_epochs_of_what_stays():
    """I6, in a plan that is written as it is."""
    before = plan_table({A: 1, B: 1}, partitions=8)
    after = plan_table({A: 1, B: 1, C: 1}, before)
    for partition in range(8):
        stays = before.owner(partition) == after.owner(partition)
        assert after.owner_epoch(partition) == (1 if stays else 2)
