"""The partition table: shares, moves compared with brute force, and the same table on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_hexdigest

from base.ids import Epoch, NodeId
from status.core.partitions import PARTITIONS, PartitionTable, partition_of, plan_table


def equal(count: int) -> dict[NodeId, int]:
    return {NodeId(f"status-{number}"): 1 for number in range(1, count + 1)}


def named(**weights: int) -> dict[NodeId, int]:
    return {NodeId(name): weight for name, weight in weights.items()}


def moved(before: PartitionTable, after: PartitionTable) -> list[int]:
    return [partition for partition in range(PARTITIONS) if before.owner(partition) != after.owner(partition)]


def fewest_moves(before: PartitionTable, weights: Mapping[NodeId, int]) -> int:
    """Try every way to round the shares by largest remainder, and count what each node could keep."""
    total = sum(weights.values())
    shares = {node: Fraction(PARTITIONS * weight, total) for node, weight in weights.items()}
    floors = {node: int(share) for node, share in shares.items()}
    spare = PARTITIONS - sum(floors.values())
    owned = {node: before.counts().get(node, 0) for node in weights}
    kept = []
    for rounded_up in combinations(weights, spare):
        left_out = set(weights) - set(rounded_up)
        largest = min((shares[node] % 1 for node in rounded_up), default=Fraction(1))
        if all(shares[node] % 1 <= largest for node in left_out):
            kept.append(sum(min(owned[node], floors[node] + (node in rounded_up)) for node in weights))
    return PARTITIONS - max(kept)


# ---------------------------------------------------------------- users to partitions to nodes


@pytest.mark.spec("PR-03")
@pytest.mark.parametrize(
    ("user", "partition"), [("alice", 1242), ("bob", 320), ("\u6f22\u5b57", 3141), ("u" * 128, 2522)]
)
def test_a_user_is_in_the_same_partition_forever(user: str, partition: int):
    """Clients and servers of all versions must agree: the hash is part of the wire contract."""
    assert partition_of(user) == partition


@given(user=st.text(max_size=128))
def test_every_user_is_in_a_partition(user: str):
    """Whatever the id is made of."""
    assert 0 <= partition_of(user) < PARTITIONS


def test_users_spread_over_all_partitions():
    """100,000 users leave no partition empty, and none has three times its share."""
    counts = [0] * PARTITIONS
    for number in range(100_000):
        counts[partition_of(f"user-{number}")] += 1
    mean = 100_000 / PARTITIONS
    assert min(counts) > 0
    assert max(counts) < 3 * mean


@pytest.mark.spec("PR-03")
def test_a_user_belongs_to_the_owner_of_its_partition():
    """One hash and one index."""
    table = plan_table(equal(3))
    assert table.owner_of("alice") == table.owner(partition_of("alice")) == table.nodes[table.owners[1242]]


def test_the_counts_of_all_nodes_make_up_all_partitions():
    """I1, a node without a partition included."""
    table = PartitionTable(Epoch(1), (NodeId("a"), NodeId("b")), (1, 1), (1,) * PARTITIONS)
    assert table.counts() == {"a": 0, "b": PARTITIONS}


# ---------------------------------------------------------------- shares


@pytest.mark.spec("PR-05")
@pytest.mark.parametrize("count", range(1, 33))
def test_equal_nodes_own_equal_shares(count: int):
    """I1 and I2 for each size of cluster; the hottest of 3 to 32 nodes is within 1 % of the mean."""
    table = plan_table(equal(count))
    table.check_invariants()
    hottest = max(table.counts().values())
    assert hottest - min(table.counts().values()) <= 1
    assert hottest / (PARTITIONS / count) <= 1.01


def test_a_node_of_twice_the_weight_owns_twice_as_much():
    """I2."""
    assert plan_table(named(a=1, b=2, c=1)).counts() == {"a": 1024, "b": 2048, "c": 1024}


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 1, "b": -1}])
def test_weights_are_whole_numbers_of_at_least_one(weights: dict[NodeId, int]):
    """A node of weight 0 is one to leave out; the caller's bug otherwise."""
    with pytest.raises(AssertionError):
        plan_table(weights)


@pytest.mark.parametrize(
    ("owners", "name"),
    [
        ((0, 1) * 2047, "I1"),
        ((0, 1) * 2047 + (0, 2), "I1"),
        ((0, 1) * 2047 + (0, -1), "I1"),
        ((0, 1) * 2047 + (0, 0), "I2"),
    ],
)
def test_a_wrong_table_is_found_out(owners: tuple[int, ...], name: str):
    """I1 and I2 are checked, not assumed."""
    table = PartitionTable(Epoch(1), (NodeId("a"), NodeId("b")), (1, 1), owners)
    with pytest.raises(AssertionError, match=name):
        table.check_invariants()


# ---------------------------------------------------------------- moves


def test_each_table_has_the_next_epoch():
    """Readers adopt the greater one."""
    first = plan_table(equal(2))
    assert (first.epoch, plan_table(equal(2), first).epoch) == (1, 2)


def test_planning_the_same_nodes_again_moves_nothing():
    """I3 with nothing forced."""
    table = plan_table(named(a=3, b=1, c=2))
    assert plan_table(named(a=3, b=1, c=2), table).owners == table.owners


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 15, 31])
def test_a_new_node_takes_its_share_and_nothing_else_moves(count: int):
    """I3: the floor of its share, and each partition goes straight to it."""
    before = plan_table(equal(count))
    after = plan_table(equal(count + 1), before)
    after.check_invariants()
    new = NodeId(f"status-{count + 1}")
    moves = moved(before, after)
    assert len(moves) == PARTITIONS // (count + 1)
    assert {after.owner(partition) for partition in moves} == {new}


@pytest.mark.parametrize("count", [2, 3, 4, 6, 9, 16, 32])
def test_only_the_partitions_of_a_node_that_left_move(count: int):
    """I3: the others just grow."""
    before = plan_table(equal(count))
    gone = NodeId("status-1")
    after = plan_table({node: 1 for node in equal(count) if node != gone}, before)
    after.check_invariants()
    assert moved(before, after) == [partition for partition in range(PARTITIONS) if before.owner(partition) == gone]


def test_a_node_replaced_by_another_hands_over_everything_it_had():
    """I3 with one leaving and one coming in the same step."""
    before = plan_table(named(a=1, b=1, c=1))
    after = plan_table(named(a=1, b=1, d=1), before)
    assert {before.owner(partition) for partition in moved(before, after)} == {"c"}
    assert {after.owner(partition) for partition in moved(before, after)} == {"d"}


def test_of_equal_remainders_the_one_that_saves_a_move_is_rounded_up():
    """I3: all three have the remainder 2/3 and two are rounded up; b, which must grow anyway, gains nothing by it."""
    before = plan_table(named(a=1, b=1, c=1))
    after = plan_table(named(a=1, b=4, c=1), before)
    assert after.counts() == {"a": 683, "b": 2730, "c": 683}
    assert len(moved(before, after)) == 1365


WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6), min_size=1, max_size=6)


@pytest.mark.spec("PR-05")
@given(steps=st.lists(WEIGHTS, min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_whatever_changes_no_more_partitions_move_than_must(steps: list[dict[NodeId, int]]):
    """I1 to I3 over several changes of nodes and weights, compared with brute force."""
    table = plan_table(steps[0])
    for weights in steps[1:]:
        after = plan_table(weights, table)
        after.check_invariants()
        assert len(moved(table, after)) == fewest_moves(table, weights)
        table = after


# ---------------------------------------------------------------- determinism


def test_the_order_of_the_nodes_does_not_matter():
    """I4: two machines read the registry in different orders."""
    weights = named(a=1, b=2, c=3)
    before = plan_table(named(b=1, c=1, d=1))
    tables = [plan_table(dict(order), before) for order in permutations(weights.items())]
    assert all(table == tables[0] for table in tables)


@pytest.mark.spec("PR-03")
def test_the_table_is_the_same_on_every_machine_and_version():
    """I4, pinned: a change of the ring or the hash under us must not pass unseen."""
    first = plan_table(equal(5))
    second = plan_table({**equal(7), NodeId("status-2"): 3}, first)
    assert [xxh3_64_hexdigest(bytes(table.owners)) for table in (first, second)] == [
        "7ec045ec7818e649",
        "cec32188051768f7",
    ]
