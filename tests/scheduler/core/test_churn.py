"""How fast connections end, and what that says of older reports."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from base.ids import NodeId
from scheduler.core.churn import Churn
from scheduler.core.node import AccessNode


def node(
    name: str = "a", *, connections: int, accepted: int = 0, reported_at: int = 0, incarnation: int = 1
) -> AccessNode:
    return AccessNode(
        id=NodeId(name),
        url="http://a",
        capacity=10_000,
        connections=connections,
        accepted=accepted,
        reported_at=reported_at,
        incarnation=incarnation,
    )


def test_a_report_counts_as_it_is_until_anybody_was_seen_to_leave() -> None:
    """And one that is new counts as it is anyway."""
    churn = Churn()
    churn.observe([node(connections=100)], 0)
    assert churn.left(node(connections=100), 60_000) == 100
    churn.observe([node(connections=100, accepted=0, reported_at=1_000)], 1_000)
    assert churn.left(node(connections=100, reported_at=1_000), 60_000) == 100


def test_the_rate_is_that_of_newcomers_less_the_rise() -> None:
    """1,000 connections of which 10 end a second, and as many come: 1 % a second, whoever they are."""
    churn = Churn()
    for second in range(30):
        churn.observe([node(connections=1_000, accepted=10 * second, reported_at=1_000 * second)], 1_000 * second)
    left = churn.left(node("b", connections=500, reported_at=19_000), 29_000)
    assert math.isclose(left, 500 * math.exp(-0.1), rel_tol=0.001)


def test_the_same_report_seen_again_is_no_evidence() -> None:
    """Nor is the first one of a node's next life: nobody knows how the last one ended."""
    churn = Churn()
    churn.observe([node(connections=100)], 0)
    churn.observe([node(connections=100)], 1_000)
    churn.observe([node(connections=0, reported_at=2_000, incarnation=2)], 2_000)
    churn.observe([], 3_000)
    churn.observe([node(connections=0, reported_at=4_000, incarnation=2)], 4_000)
    assert churn.left(node(connections=100, reported_at=0), 60_000) == 100


def test_what_was_long_ago_fades() -> None:
    """Everybody left in one second; ten minutes without an end later that hardly counts."""
    churn = Churn()
    churn.observe([node(connections=1_000)], 0)
    churn.observe([node(connections=500, reported_at=1_000)], 1_000)
    soon = churn.left(node(connections=500, reported_at=1_000), 2_000)
    for second in range(2, 600):
        churn.observe([node(connections=500, reported_at=1_000 * second)], 1_000 * second)
    late = churn.left(node(connections=500, reported_at=599_000), 600_000)
    assert math.isclose(soon, 500 * math.exp(-1 / 20))  # no quicker than this
    assert late > 499


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 5_000)), max_size=20),
    st.integers(0, 10_000),
    st.integers(0, 10**9),
)
def test_what_is_left_is_part_of_what_was_reported(
    reports: list[tuple[int, int, int]], connections: int, later: int
) -> None:
    """I1, for reports that make no sense together too."""
    churn, now = Churn(), 0
    for held, accepted, elapsed in reports:
        now += elapsed
        churn.observe([node(connections=held, accepted=accepted, reported_at=now)], now)
    assert 0 <= churn.left(node(connections=connections, reported_at=now), now + later) <= connections
    assert churn.left(node(connections=connections, reported_at=now + 1), now) == connections
