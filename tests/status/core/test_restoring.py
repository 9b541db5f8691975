"""Restoring: which table a leader begins with, in a registry that lost it or never had one."""

from __future__ import annotations

from itertools import combinations, product

from base.ids import Epoch, NodeId
from status.core.partitions import Advance, Begin, Members, PartitionTable, Registered, Stage, Take, diff, patched
from status.core.restoring import GIVE_UP_MS, JUMP, QUIET_MS, Answers, begun
from status.core.serving import is_majority

A, B, C, D, E = (NodeId(name) for name in "abcde")
AT_S = 1_000_000
TABLE = PartitionTable(Epoch(1), (A, B, C), (1, 1, 1), (0, 1, 2, 0))
MOVING = TABLE.with_changes([Begin(0, B), Begin(1, C)]).with_changes([Advance(0, Stage.COPY)])


def test_a_table_of_which_all_say_that_it_is_the_newest_goes_on_as_it_is() -> None:
    """Far above, so that whoever reads it later looks at every partition; and nobody loses what it has."""
    table = begun(Answers(MOVING, {A, B, C}, {A, B, C, D}, MOVING.epoch), at_s=AT_S, waited_ms=0, bootstrap_nodes=3)
    assert table is not None
    table.check_structure()
    assert table.epoch == table.restored == MOVING.epoch + JUMP
    assert table.is_filling
    assert (table.owners, table.moves, table.nodes) == (MOVING.owners, MOVING.moves, MOVING.nodes)
    assert {table.partition_epoch(partition) for partition in range(4)} == {table.epoch}
    assert {table.owner_epoch(partition) for partition in range(4)} == {1}


def test_what_only_access_nodes_know_is_lost_and_owners_refill() -> None:
    """They route by a table that no status node has any more."""
    table = begun(Answers(TABLE, {A, B, C}, {A, B, C}, Epoch(50)), at_s=AT_S, waited_ms=0, bootstrap_nodes=3)
    assert table is not None
    assert table.epoch == 50 + JUMP
    assert {table.owner_epoch(partition) for partition in range(4)} == {table.epoch}


def test_who_does_not_answer_is_waited_for_and_then_owners_refill() -> None:
    """All that can be heard or not, of the nodes that are and of those before: a majority of both, or a long time."""
    table = TABLE.with_changes([Members(((A, 1), (D, 1), (E, 1), (B, 0), (C, 0)))])
    assert table.former == (A, B, C)
    members = sorted({*table.nodes, *table.former})
    for count in range(len(members) + 1):
        for heard in combinations(members, count):
            is_quorum = is_majority(table.nodes, heard) and is_majority(table.former, heard)
            for waited_ms in (0, QUIET_MS - 1, QUIET_MS, GIVE_UP_MS - 1, GIVE_UP_MS):
                found = begun(Answers(table, heard, heard), at_s=AT_S, waited_ms=waited_ms, bootstrap_nodes=1)
                is_all = len(heard) == len(members)
                may_begin = is_all or waited_ms >= GIVE_UP_MS or (is_quorum and waited_ms >= QUIET_MS)
                assert (found is not None) == may_begin
                if found is not None:
                    assert (found.owned_since == (found.epoch,) * 4) == (not is_all), "I2"


def test_with_a_refill_no_move_goes_on_but_what_waits_for_the_fence() -> None:
    """Its source may still have a lease, and it is not known whether it will be heard of."""
    taken = MOVING.with_changes([Take(2, A)])
    table = begun(Answers(taken, {A, B}, {A, B}), at_s=AT_S, waited_ms=QUIET_MS, bootstrap_nodes=1)
    assert table is not None
    table.check_structure()
    assert [(move.partition, move.stage) for move in table.moves] == [(2, Stage.RECOVER)]
    assert table.owners == taken.owners


def test_a_new_system_begins_with_the_first_table_once_enough_are_there() -> None:
    """First by name as people count; and nobody who is there is overlooked: it may know a table."""
    first, second, tenth = NodeId("s-1"), NodeId("s-2"), NodeId("s-10")
    all_nodes = {first, second, tenth}
    assert begun(Answers(None, {first}, {first}), at_s=AT_S, waited_ms=GIVE_UP_MS, bootstrap_nodes=2) is None
    assert begun(Answers(None, {first, second}, all_nodes), at_s=AT_S, waited_ms=GIVE_UP_MS, bootstrap_nodes=2) is None
    table = begun(Answers(None, all_nodes, all_nodes), at_s=AT_S, waited_ms=0, bootstrap_nodes=2)
    assert table is not None
    table.check_invariants()
    assert (table.epoch, table.nodes, table.restored, table.is_filling) == (1, (first, second), 0, False)


def test_a_system_whose_status_nodes_all_forgot_begins_above_what_its_access_nodes_know() -> None:
    """They would take no notice of it otherwise, and their users would not be found."""
    table = begun(Answers(None, {A}, {A}, Epoch(50)), at_s=AT_S, waited_ms=0, bootstrap_nodes=1)
    assert table is not None
    assert (table.epoch, table.restored, table.is_filling) == (AT_S, AT_S, True)
    table = begun(Answers(None, {A}, {A}, Epoch(AT_S)), at_s=AT_S, waited_ms=0, bootstrap_nodes=1)
    assert table is not None
    assert table.epoch == AT_S + JUMP


def test_a_system_that_runs_is_not_new_though_nobody_knows_a_table() -> None:
    """Who starts after the first table only is there, or will be, once it has registered again: it is looked for."""
    new, running = Answers(None, {A}, {A}), Answers(None, {A}, {A}, is_running=True)
    assert begun(new, at_s=AT_S, waited_ms=99, bootstrap_nodes=1, look_ms=100) is None
    first = begun(new, at_s=AT_S, waited_ms=100, bootstrap_nodes=1, look_ms=100)
    assert first is not None
    assert not first.is_filling
    again = begun(running, at_s=AT_S, waited_ms=0, bootstrap_nodes=1, look_ms=100)
    assert again is not None
    assert (again.epoch, again.is_filling) == (AT_S, True)


def test_a_table_is_always_above_all_that_was_heard_of() -> None:
    """I1."""
    for epoch, known in product((1, 7, 50_000), (0, 7, 60_000)):
        table = PartitionTable(Epoch(epoch), (A,), (1,), (0,))
        found = begun(Answers(table, {A}, {A}, Epoch(known)), at_s=AT_S, waited_ms=0, bootstrap_nodes=1)
        assert found is not None
        assert found.epoch > max(epoch, known)


def test_a_restored_table_travels_as_a_difference_until_everybody_is_registered() -> None:
    """To whoever is behind it."""
    table = begun(Answers(TABLE, {A, B, C}, set()), at_s=AT_S, waited_ms=0, bootstrap_nodes=1)
    assert table is not None
    assert patched(TABLE, diff(TABLE, table)) == table
    later = table.with_changes([Registered()])
    later.check_structure()
    assert (later.is_filling, later.restored) == (False, table.restored)
    assert patched(table, diff(table, later)) == later
