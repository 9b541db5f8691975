"""Balancing: the fewest moves against a search of all outcomes, then pairs and shares against what they promise."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.ids import NodeId
from scheduler.core.balance import Shares, Transfer, apportion, even_out, pair, shares_by_group
from scheduler.core.node import AccessNode


def node(name: str, connections: int, **fields: object) -> AccessNode:
    return AccessNode(**{"id": NodeId(name), "url": "", "capacity": 100, "connections": connections} | fields)  # type: ignore[arg-type]


def named(counts: list[int]) -> dict[NodeId, int]:
    return {NodeId(f"n{number}"): count for number, count in enumerate(counts)}


def group(loads: list[int], capacities: list[int]) -> dict[NodeId, tuple[int, int]]:
    return {NodeId(f"n{n}"): pair for n, pair in enumerate(zip(loads, capacities, strict=True))}


def band(held: int, most: int, capacity: int, tolerance: int) -> tuple[int, int]:
    """Every whole number of connections with which the node is even."""
    exact = held * most * 1_000
    even = [
        count
        for count in range(held * most + 2)
        if exact * (1_000 - tolerance) <= count * capacity * 1_000_000 <= exact * (1_000 + tolerance)
        or abs(count * capacity - held * most) < capacity
    ]
    return even[0], even[-1]


def fewest_moves(loads: list[int], capacities: list[int], tolerance: int) -> int:
    """Look at every way to spread the same connections; the moves are half the sum of the differences."""
    held, capacity = sum(loads), sum(capacities)
    bands = [band(held, most, capacity, tolerance) for most in capacities]
    outcomes = product(*(range(low, min(high, held) + 1) for low, high in bands))
    return min(
        sum(abs(after - before) for after, before in zip(outcome, loads, strict=True)) // 2
        for outcome in outcomes
        if sum(outcome) == held
    )


def after(loads: dict[NodeId, tuple[int, int]], shares: Shares) -> dict[NodeId, int]:
    return {n: held - shares.gives.get(n, 0) + shares.takes.get(n, 0) for n, (held, _) in loads.items()}


# ---------------------------------------------------------------- one group


def test_surplus_moves_to_who_lacks_it():
    """In proportion to what each has above and below its share; the tolerance is what nobody need move for."""
    shares = even_out(group([130, 110, 60, 100], [200] * 4), tolerance=0)
    assert shares == Shares({NodeId("n0"): 30, NodeId("n1"): 10}, {NodeId("n2"): 40})
    assert shares.moves == 40
    assert even_out(group([130, 110, 60, 100], [200] * 4), tolerance=100).moves == 30


def test_a_large_node_has_a_large_share():
    """Loads compare per capacity."""
    assert even_out(group([30, 30], [100, 300])) == Shares({NodeId("n0"): 15}, {NodeId("n1"): 15})
    assert even_out(group([25, 75], [100, 300])).moves == 0


def test_an_added_node_takes_from_all_others_alike():
    """Though those are only a little above their share, and within the tolerance of it."""
    shares = even_out(group([1_000] * 40 + [0], [2_000] * 41))
    assert sum(shares.takes.values()) == shares.moves == 947
    assert set(shares.gives.values()) == {23, 24}


@pytest.mark.parametrize("tolerance", [0, 30, 200, 500])
def test_no_other_moves_would_be_fewer(tolerance: int):
    """All loads of three nodes of three sizes, against a search of every outcome."""
    for loads in product(range(6), repeat=3):
        for capacities in ([5, 5, 5], [5, 9, 6], [20, 7, 6]):
            found = even_out(group(list(loads), capacities), tolerance)
            assert found.moves == fewest_moves(list(loads), capacities, tolerance), (loads, capacities)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 400)), min_size=1, max_size=8),
    st.sampled_from([0, 30, 250]),
)
def test_who_is_above_gives_and_who_is_below_takes(nodes: list[tuple[int, int]], tolerance: int):
    """Down and up to the share and no further, what fits; and after the moves there is nothing to move."""
    before = group([held for held, _ in nodes], [most for _, most in nodes])
    held, capacity = sum(load for load, _ in nodes), sum(most for _, most in nodes)
    shares = even_out(before, tolerance)
    moved = after(before, shares)
    assert sum(shares.gives.values()) == sum(shares.takes.values()) == shares.moves
    assert shares.gives.keys().isdisjoint(shares.takes)
    for n, (load, most) in before.items():
        floor, ceiling = held * most // capacity, -(-held * most // capacity)
        assert moved[n] >= floor or n not in shares.gives
        assert moved[n] <= min(ceiling, most) or n not in shares.takes
        assert (load > floor) or n not in shares.gives
        assert (load < ceiling) or n not in shares.takes
    assert even_out({n: (moved[n], most) for n, (_, most) in before.items()}, tolerance).moves == 0


def test_a_group_over_its_capacity_fills_what_there_is():
    """Nobody is sent where there is no room."""
    assert even_out(group([30, 8], [10, 10])) == Shares({NodeId("n0"): 2}, {NodeId("n1"): 2})


def test_an_empty_group_moves_nobody():
    """Whoever has none has its share."""
    assert even_out(group([0, 0], [10, 20])).moves == 0


# ---------------------------------------------------------------- groups


def test_connections_stay_in_their_group():
    """And who drains, is cordoned or has no capacity is left alone, and counts in no mean."""
    fleet = [
        node("a1", 90, region="a"),
        node("a2", 10, region="a"),
        node("b1", 40, region="b"),
        node("b2", 40, region="b"),
        node("a3", 99, region="a", is_draining=True),
        node("a4", 0, region="a", is_cordoned=True),
        node("a5", 0, region="a", capacity=0),
    ]
    loads = {one.id: one.connections for one in fleet}
    found = shares_by_group(fleet, lambda one: one.region, loads=loads, tolerance=0)
    assert found == [Shares({NodeId("a1"): 40}, {NodeId("a2"): 40})]
    loads |= {NodeId("a1"): 50, NodeId("a2"): 50}
    assert shares_by_group(fleet, lambda one: one.region, loads=loads) == []


# ---------------------------------------------------------------- pairs and portions


def test_givers_are_paired_with_takers_in_their_order():
    """What is left of the longer side has no partner."""
    gives, takes = named([3, 0, 4]), {NodeId("x"): 5, NodeId("y"): 0, NodeId("z"): 1}
    assert pair(gives, takes) == [
        Transfer(NodeId("n0"), NodeId("x"), 3),
        Transfer(NodeId("n2"), NodeId("x"), 2),
        Transfer(NodeId("n2"), NodeId("z"), 1),
    ]


@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), max_size=6))
def test_pairs_give_and_take_what_they_should(gives: list[int], takes: list[int]):
    """And are few."""
    targets = {NodeId(f"t{n}"): count for n, count in enumerate(takes)}
    transfers = pair(named(gives), targets)
    given_away: Counter[NodeId] = Counter()
    taken: Counter[NodeId] = Counter()
    for one in transfers:
        assert one.count > 0
        given_away[one.source] += one.count
        taken[one.target] += one.count
    assert sum(given_away.values()) == min(sum(gives), sum(takes))
    assert given_away <= Counter(named(gives))
    assert taken <= Counter(targets)
    assert len(transfers) <= max(len(gives) + len(takes) - 1, 0)


@given(st.integers(-3, 60), st.lists(st.integers(0, 20), max_size=6))
def test_a_portion_is_proportional_to_within_one(total: int, weights: list[int]):
    """The portions add up to the total, or to all there is."""
    portions = apportion(total, named(weights))
    whole = sum(weights)
    total = max(min(total, whole), 0)
    assert sum(portions.values()) == total
    for n, weight in named(weights).items():
        assert abs(portions.get(n, 0) * whole - total * weight) < max(whole, 1)
        assert portions.get(n, 0) <= weight
    assert 0 not in portions.values()
