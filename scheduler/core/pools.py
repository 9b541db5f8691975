"""A pool: the nodes of one arm in one region, and how to draw from them.

Draws are weighted by what a node may take, capacity times slow start, and without replacement. A node that just
started draws little at first (slow start), unless all of the pool are as young: then there is nobody to spare it for.

A pool and each node keep the time at which they take the next newcomer (a generic cell rate algorithm, GCRA): an
assignment moves it on by one over the rate, so that a burst is let through and what is beyond it queues evenly. The
rate of a pool is the sum of its nodes' rates. Nodes may be in two pools, the region's and a carrier's: each assignment
counts in both.

Invariants:
    I1  Drawn nodes are distinct members of the pool; `draw` finds as many as there are.
    I2  In any window of w ms at most (w + burst) * rate + 1 newcomers get a slot of a node, so that a pool gets at most
        (w + burst) * rate and one for each of its nodes.

Sources: Envoy's slow start mode; HAProxy's slowstart, which ramps the limit as well as the weight; ITU-T I.371 (GCRA).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from scheduler.core.node import AccessNode

__all__ = ["Dice", "Pool", "draw", "slow_start"]

TRIES = 8
"""How often those who were drawn twice are drawn anew by luck."""


class Dice(Protocol):
    """A seeded source of numbers in [0, 1): `random.Random`."""

    def random(self) -> float:
        """Return the next one."""
        ...


class Pool:
    """See the module. `used` and `next_at` are kept by the engine between two views."""

    __slots__ = (
        "arm",
        "capacity",
        "carrier",
        "carriers",
        "cumulative",
        "heard_at",
        "limit",
        "members",
        "next_at",
        "region",
        "seeds",
        "step_ms",
        "total",
        "used",
    )

    def __init__(
        self,
        arm: str,
        region: str,
        carrier: str,
        members: Sequence[int],
        *,
        weights: Sequence[float],
        capacity: float,
        heard_at: int,
    ) -> None:
        """Make it.

        Args:
            arm: "stable", or the name of a rollout.
            region: whose nodes they are.
            carrier: in whose network they are; "" for all nodes of the region.
            members: indexes of nodes in the snapshot.
            weights: of each member, positive.
            capacity: connections that all members take together.
            heard_at: when the newest report of any member came.
        """
        assert members
        self.arm = arm
        self.region = region
        self.carrier = carrier
        self.members = tuple(members)
        self.cumulative = None if min(weights) == max(weights) else list(accumulate(weights))
        """Sums of the weights, None if all are equal."""
        self.total = float(sum(weights))
        self.capacity = capacity
        self.limit = capacity
        """Beyond so many connections clients go to another pool as long as one is better."""
        self.used = 0.0
        """Connections of all members, as estimated."""
        self.heard_at = heard_at
        self.step_ms = 0.0
        """Time between two newcomers; 0: no limit."""
        self.next_at = 0.0
        """When it takes the next newcomer; 0 without a limit."""
        self.seeds: tuple[int, ...] = ()
        """A hash of each member's id, for rendezvous hashing; made when it is needed."""
        self.carriers: dict[str, Pool] = {}
        """The parts of it in each carrier's network."""


def draw(pool: Pool, count: int, dice: Dice) -> list[int]:
    """Return up to `count` different members, drawn one after the other at random by weight; all if there are fewer."""
    members, cumulative, size, random = pool.members, pool.cumulative, len(pool.members), dice.random
    drawn: list[int] = []
    if size > count:
        for _ in range(count + TRIES):
            if cumulative is None:
                node = members[int(random() * size)]
            else:
                node = members[min(bisect_right(cumulative, random() * pool.total), size - 1)]
            if node not in drawn:
                drawn.append(node)
                if len(drawn) == count:
                    return drawn
    # A few that are left, or some that hold most of the weight: drawing those again and again would take long.
    return drawn + _draw_rest(pool, drawn, min(count, size) - len(drawn), dice)


def _draw_rest(pool: Pool, taken: Sequence[int], count: int, dice: Dice) -> list[int]:
    sums = pool.cumulative
    left = {
        node: 1.0 if sums is None else sums[place] - (sums[place - 1] if place else 0.0)
        for place, node in enumerate(pool.members)
        if node not in taken
    }
    drawn = []
    for _ in range(count):
        at = dice.random() * sum(left.values())
        for node, weight in left.items():  # noqa: B007 - the last one it is, where rounding leaves a little
            at -= weight
            if at < 0:
                break
        del left[node]
        drawn.append(node)
    return drawn


def slow_start(nodes: Sequence[AccessNode], now: int, *, window_ms: int, floor: float) -> list[float]:
    """Return by which factor of its weight each node of a pool counts, from `floor` to 1."""
    if not window_ms:
        return [1.0] * len(nodes)
    ages = [node.uptime_ms + max(0, now - node.reported_at) for node in nodes]
    ramps = [min(1.0, max(floor, age / window_ms)) for age in ages]
    best = max(ramps, default=1.0)
    return [ramp / best for ramp in ramps]
