"""Which status node owns which part of the key space: the partition table and its planner.

The key space is cut into 4,096 fixed partitions by the top 12 bits of a user's hash; a table gives each partition one
owner. The table is an immutable value with an epoch; a lookup is one hash and one index. A consistent-hash ring with
virtual nodes *proposes* owners, since it keeps proposals stable when nodes come and go; a repair then makes the shares
exact, because a ring alone leaves the hottest of ten nodes a tenth or more above the mean.

Invariants:
    I1  Every partition has exactly one owner, a node of the table.
    I2  A node owns floor or ceil of its weighted share: hottest / mean is below 1 + nodes / 4,096 at equal weights.
    I3  From a previous table no more partitions move than the new shares force.
    I4  The same nodes, weights and previous table give the same table, on every machine.

Sources: D. Karger et al., "Consistent Hashing and Random Trees" (STOC 1997); the fixed partitions follow Riak and
Couchbase; the repair is the largest-remainder method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
from uhashring import HashRing
from xxhash import xxh3_64_intdigest

from base.ids import Epoch, NodeId

__all__ = ["PARTITIONS", "PartitionTable", "partition_of", "plan_table"]

PARTITIONS = 4096
_SHIFT = 64 - 12
assert PARTITIONS == 1 << 12

_VNODES = 160


def partition_of(user: str) -> int:
    """Return the partition (0 to 4,095) of a user id."""
    return xxh3_64_intdigest(user.encode()) >> _SHIFT


class PartitionTable(msgspec.Struct, frozen=True):
    """Who owns what at one epoch. `owners[p]` indexes `nodes`; `weights` are in the order of `nodes`."""

    epoch: Epoch
    nodes: tuple[NodeId, ...]
    weights: tuple[int, ...]
    owners: tuple[int, ...]

    def owner(self, partition: int) -> NodeId:
        """Return the node that owns the partition."""
        return self.nodes[self.owners[partition]]

    def owner_of(self, user: str) -> NodeId:
        """Return the node that owns the user."""
        return self.nodes[self.owners[partition_of(user)]]

    def counts(self) -> dict[NodeId, int]:
        """Return how many partitions each node owns."""
        counted = Counter(self.owners)
        return {node: counted[index] for index, node in enumerate(self.nodes)}

    def check_invariants(self) -> None:
        """Assert I1 and I2."""
        assert len(self.owners) == PARTITIONS, "I1"
        assert all(0 <= owner < len(self.nodes) for owner in self.owners), "I1"
        total = sum(self.weights)
        for node, weight in zip(self.nodes, self.weights, strict=True):
            exact = PARTITIONS * weight / total
            assert int(exact) <= self.counts()[node] <= int(exact) + 1, "I2"


def plan_table(weights: Mapping[NodeId, int], previous: PartitionTable | None = None) -> PartitionTable:
    """Return the table for these nodes, at the epoch after the previous table's.

    Args:
        weights: node -> weight, whole numbers of at least 1; a node of weight 2 owns twice as much.
        previous: the table to move away from as little as possible, None for the first one.
    """
    assert weights
    assert all(weight >= 1 for weight in weights.values())
    nodes = tuple(sorted(weights))
    ring = HashRing(nodes={node: weights[node] for node in nodes}, vnodes=_VNODES)
    proposed = [nodes.index(ring.get_node(f"p{partition}")) for partition in range(PARTITIONS)]
    before = _owners_before(nodes, previous)
    quotas = _quotas([weights[node] for node in nodes], Counter(owner for owner in before if owner is not None))
    owners = _keep_within(before, proposed, quotas)
    _place(owners, proposed, quotas)
    return PartitionTable(
        epoch=Epoch(previous.epoch + 1 if previous else 1),
        nodes=nodes,
        weights=tuple(weights[node] for node in nodes),
        owners=tuple(owner for owner in owners if owner is not None),
    )


def _owners_before(nodes: tuple[NodeId, ...], previous: PartitionTable | None) -> list[int | None]:
    """Each partition's owner in the previous table as an index of `nodes`, None where that node is gone."""
    if previous is None:
        return [None] * PARTITIONS
    index = {node: position for position, node in enumerate(nodes)}
    return [index.get(previous.nodes[owner]) for owner in previous.owners]


def _quotas(weights: list[int], owned: Mapping[int, int]) -> list[int]:
    """How many partitions each node shall own: the floor of its share, and one more for the largest remainders.

    Among equal remainders whoever owns more than its floor already gets the one more, which saves a move (I3).
    """
    total = sum(weights)
    quotas = [PARTITIONS * weight // total for weight in weights]
    spare = PARTITIONS - sum(quotas)
    order = sorted(
        range(len(weights)),
        key=lambda node: (-(PARTITIONS * weights[node] % total), owned.get(node, 0) <= quotas[node], node),
    )
    for node in order[:spare]:
        quotas[node] += 1
    return quotas


def _keep_within(before: list[int | None], proposed: list[int], quotas: list[int]) -> list[int | None]:
    """Let each node keep what it owned up to its quota, giving up first what the ring would not give it."""
    owners: list[int | None] = [None] * PARTITIONS
    room = list(quotas)
    for wants_proposed in (True, False):
        for partition, owner in enumerate(before):
            if owner is not None and (proposed[partition] == owner) is wants_proposed and room[owner] > 0:
                owners[partition] = owner
                room[owner] -= 1
    return owners


def _place(owners: list[int | None], proposed: list[int], quotas: list[int]) -> None:
    """Give every partition without an owner to the node that the ring proposes, or to the one with most room."""
    kept = Counter(owner for owner in owners if owner is not None)
    room = [quota - kept[node] for node, quota in enumerate(quotas)]
    for follows_ring in (True, False):
        for partition, owner in enumerate(owners):
            if owner is not None:
                continue
            chosen = (
                proposed[partition] if follows_ring else max(range(len(room)), key=lambda node: (room[node], -node))
            )
            if room[chosen] > 0:
                owners[partition] = chosen
                room[chosen] -= 1
