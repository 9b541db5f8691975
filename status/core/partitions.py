"""Which status node owns which part of the key space: the partition table, its changes and its planner.

The key space is cut into 4,096 fixed partitions by the top 12 bits of a user's hash; a table gives each partition one
owner. The table is an immutable value with an epoch; a lookup is one hash and one index. A consistent-hash ring with
virtual nodes *proposes* owners, since it keeps proposals stable when nodes come and go; a repair then makes the shares
exact, because a ring alone leaves the hottest of ten nodes a tenth or more above the mean.

The table also says what is on its way: a *move* takes one partition from its source to its target through stages, each
of them one write of the table. All that a resize needs to go on is in the table, so that any leader can.

```
    Begin      Advance                                 flips the owner
    ──▶ PREPARE ──▶ COPY ──▶ CATCHUP ──▶ SEAL ──────────▶ COMMIT ──▶ CLEANUP ──▶ End
           └──────────┴─────────┴─────────┴─▶ End: aborted, the owner stays
    Take: flips the owner without the old one's seal ──▶ RECOVER ──▶ End: nobody else can answer any more
```

Invariants:
    I1  Every partition has exactly one owner, a node of the table.
    I2  A node owns floor or ceil of its weighted share: hottest / mean is below 1 + nodes / 4,096 at equal weights.
    I3  From a previous table no more partitions move than the new shares force.
    I4  The same nodes, weights and previous table give the same table, on every machine.
    I5  A partition has at most one move, between two nodes; its owner is the source before COMMIT, then the target.
    I6  The epoch grows by one a write; a partition's is the table's at which its owner or stage last changed.

I2 is a promise of a plan; while partitions move there, the shares are on their way.

Sources: D. Karger et al., "Consistent Hashing and Random Trees" (STOC 1997); the fixed partitions follow Riak and
Couchbase, the stages ScyllaDB's tablets, the epoch a partition Hazelcast 4.1; the repair is the largest-remainder
method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import assert_never

import msgspec
from uhashring import HashRing
from xxhash import xxh3_64_intdigest

from base.ids import Epoch, NodeId

__all__ = ["PARTITIONS", "Change", "Move", "PartitionTable", "Stage", "partition_of", "plan_table"]
__all__ += [
    "Advance",
    "Begin",
    "End",
    "Members",
    "Pause",
    "Registered",
    "Settle",
    "TableDiff",
    "Take",
    "changed_since",
    "diff",
    "patched",
    "restored",
]

PARTITIONS = 4096
_SHIFT = 64 - 12
assert PARTITIONS == 1 << 12

_VNODES = 160


def partition_of(user: str) -> int:
    """Return the partition (0 to 4,095) of a user id."""
    return xxh3_64_intdigest(user.encode()) >> _SHIFT


class Stage(Enum):
    """How far a move is. Each stage is written only when what the one before it prepares is true."""

    PREPARE = "prepare"
    COPY = "copy"
    CATCHUP = "catchup"
    SEAL = "seal"
    COMMIT = "commit"
    CLEANUP = "cleanup"
    RECOVER = "recover"
    """Taken from a source that did not seal: the target waits until the source can no longer answer."""


AFTER_COMMIT = frozenset({Stage.COMMIT, Stage.CLEANUP, Stage.RECOVER})


class Move(msgspec.Struct, frozen=True, array_like=True):
    """One partition on its way. `move_id` is the epoch at which it began: with the partition, a name used once."""

    partition: int
    move_id: Epoch
    source: NodeId
    target: NodeId
    stage: Stage


# ---------------------------------------------------------------- changes


@dataclass(frozen=True, slots=True)
class Begin:
    """Start to move a partition that does not move yet."""

    partition: int
    target: NodeId


@dataclass(frozen=True, slots=True)
class Advance:
    """Bring a move to its next stage. COMMIT flips the owner."""

    partition: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class End:
    """Forget a move: done after CLEANUP or RECOVER, aborted before COMMIT."""

    partition: int


@dataclass(frozen=True, slots=True)
class Take:
    """Give a partition to another owner without the old one's seal, whatever move it is in."""

    partition: int
    target: NodeId


@dataclass(frozen=True, slots=True)
class Members:
    """Replace nodes and weights. A node that leaves has weight 0 until it owns nothing."""

    weights: tuple[tuple[NodeId, int], ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Forget the former nodes: a majority of them acknowledged the table of the nodes that are."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Start no moves and seal nothing more, or go on."""

    is_paused: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """Whoever lives is registered again, in a registry that started over."""


Change = Begin | Advance | End | Take | Members | Settle | Pause | Registered


class TableDiff(msgspec.Struct, frozen=True, array_like=True):
    """What turns the table of epoch `since` into that of `epoch`.

    `owners` has (partition, owner, partition epoch, owner epoch).
    """

    since: Epoch
    epoch: Epoch
    nodes: tuple[NodeId, ...]
    weights: tuple[int, ...]
    owners: tuple[tuple[int, int, Epoch, Epoch], ...]
    moves: tuple[Move, ...]
    former: tuple[NodeId, ...]
    is_paused: bool
    restored: Epoch = Epoch(0)
    is_filling: bool = False


class PartitionTable(msgspec.Struct, frozen=True):
    """Who owns what at one epoch. `owners[p]` indexes `nodes`; `weights` are in the order of `nodes`."""

    epoch: Epoch
    nodes: tuple[NodeId, ...]
    weights: tuple[int, ...]
    owners: tuple[int, ...]
    partition_epochs: tuple[Epoch, ...] = ()
    """Empty while none changed since the first table."""
    owned_since: tuple[Epoch, ...] = ()
    """The epoch at which each partition's owner last changed: who skipped epochs sees what it missed."""
    moves: tuple[Move, ...] = ()
    """In the order of their partitions."""
    former: tuple[NodeId, ...] = ()
    """The nodes before the last change of nodes: a majority of them may not know of it yet."""
    is_paused: bool = False
    restored: Epoch = Epoch(0)
    """The epoch with which this table came into a registry that had lost it: whoever knows an older one may know things
    that never were. 0: the registry never lost a table."""
    is_filling: bool = False
    """The registry started over, and does not list everybody yet who lives."""

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

    def partition_epoch(self, partition: int) -> Epoch:
        """Return the table epoch at which the partition's owner or stage last changed."""
        return self.partition_epochs[partition] if self.partition_epochs else Epoch(1)

    def owner_epoch(self, partition: int) -> Epoch:
        """Return the table epoch at which the partition's owner last changed."""
        return self.owned_since[partition] if self.owned_since else Epoch(1)

    def moves_by_partition(self) -> dict[int, Move]:
        """Return the moves by partition. Costs a pass: keep it beside the table."""
        return {move.partition: move for move in self.moves}

    def wanted(self) -> dict[NodeId, int]:
        """Return the nodes that shall own partitions, with their weights."""
        return {node: weight for node, weight in zip(self.nodes, self.weights, strict=True) if weight > 0}

    def with_changes(self, changes: Iterable[Change]) -> PartitionTable:
        """Return the table of the next epoch, with the changes made in their order."""
        draft = _Draft(self)
        for change in changes:
            draft.make(change)
        return draft.table()

    def check_structure(self) -> None:
        """Assert what holds while partitions move too: I1, I5 and what one table shows of I6."""
        assert min(self.owners) >= 0, "I1"
        assert max(self.owners) < len(self.nodes), "I1"
        assert len(self.partition_epochs) == len(self.owned_since) in {0, len(self.owners)}, "I6"
        assert min(self.partition_epochs, default=self.epoch) > 0, "I6"
        assert max(self.partition_epochs, default=self.epoch) <= self.epoch, "I6"
        assert self.restored <= self.epoch, "I6"
        partitions = [move.partition for move in self.moves]
        assert partitions == sorted(set(partitions)), "I5"
        for move in self.moves:
            is_flipped = move.stage in AFTER_COMMIT
            assert move.source != move.target, "I5"
            assert self.owner(move.partition) == (move.target if is_flipped else move.source), "I5"
            assert move.move_id <= self.partition_epoch(move.partition), "I6"

    def check_invariants(self) -> None:
        """Assert I1 and I2, of a table as planned, and I5."""
        assert len(self.owners) == PARTITIONS, "I1"
        self.check_structure()
        total = sum(self.weights)
        for node, weight in zip(self.nodes, self.weights, strict=True):
            exact = PARTITIONS * weight / total
            assert int(exact) <= self.counts()[node] <= int(exact) + 1, "I2"


class _Draft:
    """The next table while changes are made to it."""

    def __init__(self, table: PartitionTable) -> None:
        self._before = table
        self._epoch = Epoch(table.epoch + 1)
        self._nodes = list(table.nodes)
        self._weights = table.weights
        self._owners = list(table.owners)
        self._epochs = list(table.partition_epochs) or [Epoch(1)] * len(table.owners)
        self._since = list(table.owned_since) or [Epoch(1)] * len(table.owners)
        self._moves = table.moves_by_partition()
        self._former = table.former
        self._is_paused = table.is_paused
        self._is_filling = table.is_filling

    def make(self, change: Change) -> None:
        match change:
            case Begin(partition, target):
                assert partition not in self._moves, "I5"
                source = self._nodes[self._owners[partition]]
                self._put(Move(partition, self._epoch, source, target, Stage.PREPARE))
            case Advance(partition, stage):
                move = self._moves[partition]
                if stage is Stage.COMMIT:
                    self._give(partition, move.target)
                self._put(msgspec.structs.replace(move, stage=stage))
            case End(partition):
                del self._moves[partition]
                self._epochs[partition] = self._epoch
            case Take(partition, target):
                self._take(partition, target)
            case Members(weights):
                self._set_members(dict(weights))
            case Settle():
                self._former = ()
            case Pause(is_paused):
                self._is_paused = is_paused
            case Registered():
                self._is_filling = False
            case _:
                assert_never(change)

    def table(self) -> PartitionTable:
        return PartitionTable(
            epoch=self._epoch,
            nodes=tuple(self._nodes),
            weights=self._weights,
            owners=tuple(self._owners),
            partition_epochs=tuple(self._epochs),
            owned_since=tuple(self._since),
            moves=tuple(self._moves[partition] for partition in sorted(self._moves)),
            former=self._former,
            is_paused=self._is_paused,
            restored=self._before.restored,
            is_filling=self._is_filling,
        )

    def _put(self, move: Move) -> None:
        assert move.source != move.target, "I5"
        self._moves[move.partition] = move
        self._epochs[move.partition] = self._epoch

    def _give(self, partition: int, target: NodeId) -> None:
        self._owners[partition] = self._nodes.index(target)
        self._epochs[partition] = self._since[partition] = self._epoch

    def _take(self, partition: int, target: NodeId) -> None:
        last = self._moves.pop(partition, None)
        source = self._nodes[self._owners[partition]]
        if last is not None and last.stage is Stage.RECOVER:
            source = last.source  # the taker before this one never answered: whom to fence is still the same
        self._give(partition, target)
        if source != target:
            self._put(Move(partition, self._epoch, source, target, Stage.RECOVER))

    def _set_members(self, weights: dict[NodeId, int]) -> None:
        nodes = sorted(weights)
        self._owners = [nodes.index(self._nodes[owner]) for owner in self._owners]
        if set(nodes) != set(self._nodes):
            self._former = tuple(self._nodes)
        self._nodes, self._weights = nodes, tuple(weights[node] for node in nodes)


def changed_since(table: PartitionTable, epoch: Epoch) -> list[int]:
    """Return the partitions whose owner or stage changed after the epoch."""
    return [partition for partition, changed in enumerate(table.partition_epochs) if changed > epoch]


def diff(old: PartitionTable, new: PartitionTable) -> TableDiff:
    """Return what to send to whoever has the old table: a few entries rather than thousands."""
    if old.nodes == new.nodes:
        changed: Iterable[int] = changed_since(new, old.epoch)
    else:
        changed = range(len(new.owners))  # owners are numbers of nodes
    owners = tuple(
        (partition, new.owners[partition], new.partition_epoch(partition), new.owner_epoch(partition))
        for partition in changed
    )
    return TableDiff(
        old.epoch,
        new.epoch,
        new.nodes,
        new.weights,
        owners,
        new.moves,
        new.former,
        new.is_paused,
        new.restored,
        new.is_filling,
    )


def patched(old: PartitionTable, change: TableDiff) -> PartitionTable | None:
    """Return the newer table, None when the difference is to another table than this."""
    if change.since != old.epoch:
        return None
    owners = list(old.owners)
    epochs = list(old.partition_epochs) or [Epoch(1)] * len(owners)
    since = list(old.owned_since) or [Epoch(1)] * len(owners)
    for partition, owner, epoch, owned_since in change.owners:
        owners[partition], epochs[partition], since[partition] = owner, epoch, owned_since
    return PartitionTable(
        change.epoch,
        change.nodes,
        change.weights,
        tuple(owners),
        tuple(epochs),
        tuple(since),
        change.moves,
        change.former,
        change.is_paused,
        change.restored,
        change.is_filling,
    )


def restored(table: PartitionTable, epoch: Epoch, *, is_refilled: bool) -> PartitionTable:
    """Return the table for a registry that lost it, at an epoch far above all that anybody may know.

    Args:
        table: the newest that is known.
        epoch: of the table to be.
        is_refilled: there may have been newer ones, so each owner asks the access nodes anew; but for those that wait
            for what fences the last owner, moves are forgotten.
    """
    assert epoch > table.epoch
    size = len(table.owners)
    moves = tuple(move for move in table.moves if not is_refilled or move.stage is Stage.RECOVER)
    return msgspec.structs.replace(
        table,
        epoch=epoch,
        partition_epochs=(epoch,) * size,
        owned_since=(epoch,) * size if is_refilled else table.owned_since or (Epoch(1),) * size,
        moves=moves,
        restored=epoch,
        is_filling=True,
    )


def plan_table(
    weights: Mapping[NodeId, int], previous: PartitionTable | None = None, *, partitions: int = PARTITIONS
) -> PartitionTable:
    """Return the table for these nodes, at the epoch after the previous table's.

    Args:
        weights: node -> weight, whole numbers of at least 1; a node of weight 2 owns twice as much.
        previous: the table to move away from as little as possible, None for the first one.
        partitions: how many the first table has; later ones have as many as their previous.
    """
    assert weights
    assert all(weight >= 1 for weight in weights.values())
    nodes = tuple(sorted(weights))
    size = len(previous.owners) if previous else partitions
    proposed = _proposed(tuple((node, weights[node]) for node in nodes), size)
    before = _owners_before(nodes, previous, size)
    quotas = _quotas([weights[node] for node in nodes], Counter(owner for owner in before if owner is not None), size)
    owners = _keep_within(before, proposed, quotas)
    _place(owners, proposed, quotas)
    epoch = Epoch(previous.epoch + 1 if previous else 1)
    since = tuple(
        previous.partition_epoch(partition) if previous and owner == before[partition] else epoch
        for partition, owner in enumerate(owners)
    )
    return PartitionTable(
        epoch=epoch,
        nodes=nodes,
        weights=tuple(weights[node] for node in nodes),
        owners=tuple(owner for owner in owners if owner is not None),
        partition_epochs=since,
        owned_since=since,
    )


@lru_cache(maxsize=64)
def _proposed(weights: tuple[tuple[NodeId, int], ...], size: int) -> tuple[int, ...]:
    """What the ring proposes: each partition's owner as an index of the nodes."""
    index = {node: position for position, (node, _) in enumerate(weights)}
    ring = HashRing(nodes=dict(weights), vnodes=_VNODES)
    return tuple(index[ring.get_node(f"p{partition}")] for partition in range(size))


def _owners_before(nodes: tuple[NodeId, ...], previous: PartitionTable | None, size: int) -> list[int | None]:
    """Each partition's owner in the previous table as an index of `nodes`, None where that node is gone."""
    if previous is None:
        return [None] * size
    index = {node: position for position, node in enumerate(nodes)}
    return [index.get(previous.nodes[owner]) for owner in previous.owners]


def _quotas(weights: list[int], owned: Mapping[int, int], size: int) -> list[int]:
    """How many partitions each node shall own: the floor of its share, and one more for the largest remainders.

    Among equal remainders whoever owns more than its floor already gets the one more, which saves a move (I3).
    """
    total = sum(weights)
    quotas = [size * weight // total for weight in weights]
    spare = size - sum(quotas)
    order = sorted(
        range(len(weights)),
        key=lambda node: (-(size * weights[node] % total), owned.get(node, 0) <= quotas[node], node),
    )
    for node in order[:spare]:
        quotas[node] += 1
    return quotas


def _keep_within(before: list[int | None], proposed: tuple[int, ...], quotas: list[int]) -> list[int | None]:
    """Let each node keep what it owned up to its quota, giving up first what the ring would not give it."""
    owners: list[int | None] = [None] * len(before)
    room = list(quotas)
    for wants_proposed in (True, False):
        for partition, owner in enumerate(before):
            if owner is not None and (proposed[partition] == owner) is wants_proposed and room[owner] > 0:
                owners[partition] = owner
                room[owner] -= 1
    return owners


def _place(owners: list[int | None], proposed: tuple[int, ...], quotas: list[int]) -> None:
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
