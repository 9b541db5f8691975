"""Device policy: who stays, who goes, and that every owner decides alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from random import Random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Timestamp
from base.ids import Incarnation, NodeId
from status.core.policy import DevicePolicy, Seat, losers

Winner = Literal["newest", "oldest"]


def seat(conn: int, since: int, platform: str = "ios", *, node: str = "a", life: int = 1) -> Seat:
    return Seat(NodeId(node), Incarnation(life), conn, platform, Timestamp(since))


PHONE, NEW_PHONE, DESK = seat(1, 10), seat(2, 30), seat(3, 20, "desktop")


@pytest.mark.spec("CC-05")
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (DevicePolicy(), ()),
        (DevicePolicy("all", "oldest"), ()),
        (DevicePolicy("one_per_platform", "newest"), (PHONE,)),
        (DevicePolicy("one_per_platform", "oldest"), (NEW_PHONE,)),
        (DevicePolicy("one", "newest"), (PHONE, DESK)),
        (DevicePolicy("one", "oldest"), (DESK, NEW_PHONE)),
    ],
)
def test_who_has_to_go(policy: DevicePolicy, expected: tuple[Seat, ...]):
    """I1 and I2: the oldest first, in whatever order the seats are given."""
    for seats in permutations([PHONE, NEW_PHONE, DESK]):
        assert losers(policy, seats) == expected


@pytest.mark.parametrize("seats", [[], [PHONE]])
def test_who_is_alone_stays(seats: list[Seat]):
    """Under every policy."""
    assert losers(DevicePolicy("one"), seats) == ()


def test_the_same_millisecond_is_decided_by_the_names():
    """I2: node, life, connection."""
    tied = [seat(2, 5), seat(1, 5, node="b"), seat(1, 5, life=2), seat(1, 5)]
    assert losers(DevicePolicy("one"), tied) == (seat(1, 5), seat(2, 5), seat(1, 5, life=2))


def test_a_connection_has_one_seat():
    """Two would mean that the owner merged them wrong."""
    with pytest.raises(AssertionError):
        losers(DevicePolicy("one"), [seat(1, 5), seat(1, 6, "desktop")])


SEATS = st.lists(
    st.builds(
        seat,
        st.integers(1, 4),
        st.integers(0, 3),
        st.sampled_from(["", "ios", "web"]),
        node=st.sampled_from("ab"),
        life=st.integers(1, 2),
    ),
    max_size=8,
    unique_by=lambda one: one[:3],
)


@given(
    allows=st.sampled_from(["one_per_platform", "one"]),
    winner=st.sampled_from(["newest", "oldest"]),
    seats=SEATS,
    order=st.randoms(use_true_random=False),
)
def test_what_is_left_is_allowed_and_has_no_losers(
    allows: Literal["one_per_platform", "one"], winner: Winner, seats: Sequence[Seat], order: Random
):
    """I1, I2 and I3, and that no loser would have been the better choice."""
    policy = DevicePolicy(allows, winner)
    gone = losers(policy, seats)
    left = [one for one in seats if one not in gone]
    ranks = [one.platform if allows == "one_per_platform" else "" for one in seats]
    assert len(left) == len(set(ranks))
    assert losers(policy, left) == ()
    shuffled = list(seats)
    order.shuffle(shuffled)
    assert losers(policy, shuffled) == gone
    for one in gone:
        rivals = [other for other in left if allows == "one" or other.platform == one.platform]
        assert all(one.since <= rival.since if winner == "newest" else one.since >= rival.since for rival in rivals)
