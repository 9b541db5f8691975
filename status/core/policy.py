"""How many devices of one user may be connected, and which of them have to go.

The owner of the user decides, since it alone sees all the user's connections, in the same step in which it takes in a
new one: so two that arrive at once cannot both win, nor both lose. The losers are closed with a reason.

The decision depends on the seats alone, never on the order in which they were heard of. `since` comes from the clocks
of several access nodes; if these differ, the order may not be that of real time, but it is the same for every owner, so
that a partition that moves in the middle of it does not close the other device as well.

Invariants:
    I1  Of each platform under "one_per_platform", of all seats under "one", exactly one seat is left.
    I2  The same seats in any order have the same losers, in the same order.
    I3  What is left has no losers: deciding again, here or at another owner, closes nobody else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import msgspec

from base.clock import Timestamp
from base.ids import Incarnation, NodeId

__all__ = ["DevicePolicy", "Seat", "losers"]


class DevicePolicy(msgspec.Struct, frozen=True, array_like=True):
    """How many connections a user may have, and whether the newest or the oldest of too many stays."""

    allows: Literal["all", "one_per_platform", "one"] = "all"
    winner: Literal["newest", "oldest"] = "newest"


class Seat(NamedTuple):
    """One connection of the user: its number in one life of its access node, and since when it is there."""

    node: NodeId
    incarnation: Incarnation
    conn: int
    platform: str
    since: Timestamp


def losers(policy: DevicePolicy, seats: Collection[Seat]) -> tuple[Seat, ...]:
    """Return the seats of one user that the policy does not allow beside the others, the oldest first.

    A platform that a client did not name, the empty one, is a platform like any other. Each connection may be in
    `seats` once.
    """
    if policy.allows == "all" or len(seats) < 2:
        return ()
    ordered = sorted(seats, key=_age)
    assert len({seat[:3] for seat in ordered}) == len(ordered), "a connection has one seat"
    # The last one put under a key stays, so the winner has to come last.
    by_rank = ordered if policy.winner == "newest" else reversed(ordered)
    winners = {seat.platform if policy.allows == "one_per_platform" else "": seat for seat in by_rank}
    return tuple(seat for seat in ordered if seat not in winners.values())


def _age(seat: Seat) -> tuple[int, str, int, int]:
    """Order seats by age; those of the same millisecond by what they are called."""
    return (seat.since, seat.node, seat.incarnation, seat.conn)
