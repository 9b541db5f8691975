"""Assignment: who is left out and why, power of two choices, and no herd on stale reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.ids import NodeId
from scheduler.core.assignment import AccessNode, Decision, LoadEstimate, assign


def node(name: str, connections: int = 0, *, capacity: int = 100, drains: bool = False, report: int = 1) -> AccessNode:
    return AccessNode(NodeId(name), f"http://{name}", "eu", capacity, connections, drains, report)


def ids(decision: Decision) -> list[str]:
    return [one.id for one in decision.candidates]


class Draws:
    """A source that draws the positions it is told to, pair by pair; then the first ones."""

    def __init__(self, *pairs: tuple[int, int]) -> None:
        self.pairs = list(pairs)

    def sample(self, population: Sequence[int], k: int) -> list[int]:
        drawn = self.pairs.pop(0) if self.pairs and k == 2 else tuple(population)
        return list(drawn[:k])


# ---------------------------------------------------------------- choosing


def test_of_two_nodes_drawn_the_less_loaded_one_is_tried_first():
    """And the next candidate comes from a new draw among the others."""
    nodes = [node("a", 50), node("b", 20), node("c", 0)]
    decision = assign(nodes, LoadEstimate(), Draws((0, 1), (1, 0)), k=2)
    assert ids(decision) == ["b", "c"]
    assert decision.why == (
        "b: chosen as candidate 1 from (a 50/100, b 20/100)",
        "c: chosen as candidate 2 from (c 0/100, a 50/100)",
    )


def test_load_is_compared_per_capacity():
    """A big node with more connections may be the emptier one."""
    nodes = [node("small", 5, capacity=10), node("big", 400, capacity=1_000)]
    assert ids(assign(nodes, LoadEstimate(), Draws(), k=1)) == ["big"]


@pytest.mark.parametrize(("pair", "first"), [((0, 1), "a"), ((1, 0), "b")])
def test_a_tie_goes_to_the_one_drawn_first(pair: tuple[int, int], first: str):
    """An order by name would favour one node everywhere."""
    assert ids(assign([node("a"), node("b")], LoadEstimate(), Draws(pair), k=1)) == [first]


def test_the_last_one_left_is_a_candidate_too():
    """I1: there are min(k, eligible) of them."""
    decision = assign([node("a"), node("b")], LoadEstimate(), Draws(), k=5)
    assert sorted(ids(decision)) == ["a", "b"]
    assert decision.why[-1] == "b: chosen as candidate 2 from (b 0/100)"


def test_nobody_to_choose_from_is_an_empty_decision():
    """The caller refuses, with the reasons."""
    assert assign([], LoadEstimate(), Draws(), k=3) == Decision((), ())


def test_at_least_one_candidate_is_asked_for():
    """Zero is the caller's bug."""
    with pytest.raises(AssertionError):
        assign([node("a")], LoadEstimate(), Draws(), k=0)


# ---------------------------------------------------------------- leaving out


def test_draining_and_full_nodes_are_left_out_with_the_reason():
    """I1 and I2."""
    nodes = [node("a", drains=True), node("b", 100), node("c", 99), node("d", capacity=0)]
    decision = assign(nodes, LoadEstimate(), Draws(), k=3)
    assert ids(decision) == ["c"]
    assert decision.why[:3] == (
        "a: left out, draining",
        "b: left out, full at 100 of 100",
        "d: left out, full at 0 of 0",
    )


def test_a_node_is_full_once_what_was_assigned_since_its_report_fills_it():
    """The report alone would let in everybody until the next one."""
    load = LoadEstimate()
    load.assigned(node("a", 98))
    load.assigned(node("a", 98))
    decision = assign([node("a", 98)], load, Draws(), k=1)
    assert decision == Decision((), ("a: left out, full at 100 of 100",))


# ---------------------------------------------------------------- the estimate


def test_own_assignments_count_until_the_next_report():
    """That one contains them."""
    load = LoadEstimate()
    first, second = node("a", 10, report=1), node("a", 12, report=2)
    assert load.connections(first) == 10
    load.assigned(first)
    load.assigned(first)
    assert load.connections(first) == 12
    assert load.connections(second) == 12
    load.assigned(second)
    assert load.connections(second) == 13


def test_an_estimate_forgets_nodes_that_left_and_no_others():
    """A node that comes back starts from its report."""
    load = LoadEstimate()
    for name in ("a", "b"):
        load.assigned(node(name))
    load.forget_all_but([node("b"), node("c")])
    assert (load.connections(node("a")), load.connections(node("b"))) == (0, 1)


# ---------------------------------------------------------------- properties

NODES = st.lists(
    st.builds(
        node,
        st.uuids().map(str),
        st.integers(0, 12),
        capacity=st.integers(0, 10),
        drains=st.booleans(),
        report=st.integers(1, 2),
    ),
    max_size=8,
)


@given(nodes=NODES, seed=st.integers(0, 2**32), k=st.integers(1, 10), assigned=st.lists(st.integers(0, 7), max_size=20))
def test_whatever_the_nodes_the_decision_is_sound_and_explained(
    nodes: list[AccessNode], seed: int, k: int, assigned: list[int]
):
    """I1, I2, and the same inputs give the same decision."""
    load = LoadEstimate()
    for number in assigned:
        if number < len(nodes):
            load.assigned(nodes[number])
    decision = assign(nodes, load, Random(seed), k=k)
    eligible = {one.id for one in nodes if not one.is_draining and load.connections(one) < one.capacity}
    chosen = ids(decision)
    assert len(set(chosen)) == len(chosen) == min(k, len(eligible))
    assert set(chosen) <= eligible
    named = [line.partition(":")[0] for line in decision.why]
    assert named == [one.id for one in nodes if one.id not in eligible] + chosen
    assert decision == assign(nodes, load, Random(seed), k=k)


def test_stale_reports_make_no_herd():
    """A hundred schedulers decide on one old report that shows one node empty.

    The least loaded node would get all of them at once. Of two drawn at random it is chosen whenever it is drawn,
    which is in one decision of ten.
    """
    nodes = [node(f"n{number}", 50 if number else 0) for number in range(20)]
    to_empty = sum(ids(assign(nodes, LoadEstimate(), Random(seed), k=1)) == ["n0"] for seed in range(2_000))
    assert 140 <= to_empty <= 260


@pytest.mark.parametrize("decisions_per_report", [1, 100, 1_000])
def test_clients_spread_evenly_though_reports_are_late(decisions_per_report: int):
    """Four schedulers that know only their own decisions since the last report send 20,000 clients to ten nodes."""
    random = Random(3)
    nodes = [node(f"n{number}", capacity=100_000) for number in range(10)]
    schedulers = [LoadEstimate() for _ in range(4)]
    truth = Counter({one.id: 0 for one in nodes})
    for number in range(20_000):
        if number % decisions_per_report == 0:
            nodes = [replace(one, connections=truth[one.id], report=one.report + 1) for one in nodes]
        load = random.choice(schedulers)
        first = assign(nodes, load, random, k=2).candidates[0]
        load.assigned(first)
        truth[first.id] += 1
    assert max(truth.values()) <= 1.05 * 2_000
    assert min(truth.values()) >= 0.95 * 2_000


def test_big_nodes_get_more_in_the_end():
    """Per capacity, all nodes fill alike."""
    random, load = Random(5), LoadEstimate()
    nodes = [node("small", capacity=1_000), node("middle", capacity=2_000), node("big", capacity=4_000)]
    for _ in range(3_500):
        load.assigned(assign(nodes, load, random, k=1).candidates[0])
    shares = [load.connections(one) / one.capacity for one in nodes]
    assert all(0.4 <= share <= 0.6 for share in shares)
