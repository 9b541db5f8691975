"""Who may answer for its partitions at this instant: serving leases, promises, and the barrier before a taking.

The partition table says who owns what, but a node that is cut off may have an old one. So ownership alone lets nobody
answer: a node also needs a *serving lease*, from either of two granters.

- The **leader** grants each node 2 s, asked for every 500 ms, to a node that has the leader's own table only.
- A **majority of the table's status nodes**, each of them at the same epoch as the asker. A grant is a promise: the
  granter acknowledges no newer epoch until it ends. So an outage of the registry, which stops the leader, stops nobody.

Taking a partition from an owner that did not seal it needs a *barrier* before the taker answers. Either the old owner
itself acknowledged the epoch that names the taker, or both of its sources of leases are dry: the leader's last grant to
it has ended, and majorities of the table's nodes, and of those before the last change of nodes, acknowledged that
epoch. A majority of acknowledgements and a majority of grants have a node in common, and that node's promise had ended
before it acknowledged. (If it is the old owner itself, it has read that it lost the partition.)

```
    asked ─▶ granted ─▶ valid until asked + ttl - drift   (holder: stops first)
                 └────▶ promised until granted + ttl      (granter: acknowledges nothing newer before)
```

Invariants:
    I1  A holder's lease ends before the promise of whoever granted it, whatever their clocks (within the drift).
    I2  A majority lease holds at one epoch: grants of other epochs do not add up.
    I3  No epoch is acknowledged while a promise made at an older one, also by a former life, may still count.
    I4  The barrier passes only when nobody can grant the old owner a lease under which it still owns the partition.

Sources: C. Gray and D. Cheriton, "Leases" (SOSP 1989); L. Lamport, D. Malkhi, L. Zhou, "Vertical Paxos" (PODC 2009),
for configurations that fence their predecessors; D. Ongaro, "Raft" (2014), 4.3, for the two majorities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum

from base.clock import Instant
from base.core.lease import HeldLease
from base.ids import Epoch, NodeId
from status.core.partitions import PartitionTable

__all__ = [
    "ASK_MS",
    "LEADER_MS",
    "SERVING_MS",
    "SILENCE_MS",
    "Granter",
    "LeaderGrants",
    "Promises",
    "ServingLease",
    "is_fenced",
    "is_majority",
]

ASK_MS = 400
SERVING_MS = 2_000
DRIFT_PPM = 100_000
SILENCE_MS = SERVING_MS + SERVING_MS * DRIFT_PPM // 1_000_000
"""Longer than any grant lasts, on any clock: what a new granter waits for its predecessor's grants to end."""
LEADER_MS = 1_500
"""How long a leader leads, counted from its last asking, while the registry does not answer."""

assert ASK_MS * 3 < SERVING_MS, "two lost questions must not cost a lease"


def is_majority(nodes: Collection[NodeId], some: Collection[NodeId]) -> bool:
    """Return whether more than half of `nodes` are among `some`; of no nodes, none is needed."""
    return not nodes or 2 * sum(node in some for node in nodes) > len(nodes)


class Granter(IntEnum):
    """On whose grant a node may answer; the greater, the worse."""

    LEADER = 0
    PEERS = 1
    """Only a majority of the table's nodes: the leader or the registry is out of reach, and no table can be written."""
    NOBODY = 2
    """It answers nothing."""


class ServingLease:
    """The holder's side. `ask` numbers a round of questions; answers count from when their round was asked."""

    def __init__(self, node: NodeId, *, drift_ppm: int = DRIFT_PPM) -> None:
        self._node = node
        self._drift_ppm = drift_ppm
        self._round = 0
        self._asked: dict[int, Instant] = {}
        self._led_until: Instant | None = None
        self._by_peer: dict[NodeId, HeldLease] = {}

    def ask(self, now: Instant) -> int:
        """Begin a round: its number goes with the questions to the leader and to the other nodes of the table."""
        self._round += 1
        self._asked[self._round] = now
        self._asked = {number: at for number, at in self._asked.items() if now < at + SERVING_MS}
        return self._round

    def needs_peers(self, now: Instant) -> bool:
        """Return whether to ask the peers for grants too: half of the leader's lease is over.

        Not always, because each promise holds up its granter's acknowledgements, and with them every resize.
        """
        return self._led_until is None or self._led_until < now + SERVING_MS // 2

    def granted_by_leader(self, number: int) -> None:
        """Take note of a leader's grant in answer to a question of that round.

        Of which leader does not matter: each waits until all that its predecessors granted must be over. And terms
        begin anew with a registry that started over, so that they could not tell which leader is the later one.
        """
        asked_at = self._asked.get(number)
        if asked_at is not None:
            until = Instant(asked_at + SERVING_MS - SERVING_MS * self._drift_ppm // 1_000_000)
            self._led_until = Instant(max(until, self._led_until or until))

    def granted_by_peer(self, number: int, granter: NodeId, epoch: Epoch) -> None:
        """Take note of another status node's grant at an epoch."""
        asked_at = self._asked.get(number)
        if asked_at is not None:
            held = self._by_peer.setdefault(granter, HeldLease(drift_ppm=self._drift_ppm))
            held.granted(asked_at, epoch, SERVING_MS)

    def is_valid(self, now: Instant, table: PartitionTable) -> bool:
        """Return whether the node may answer, under this table, for what it owns in it (I1, I2)."""
        return self._is_led(now) or self.is_by_majority(now, table)

    def granter(self, now: Instant, table: PartitionTable | None) -> Granter:
        """Return on whose grant the node may answer under this table; without one, on nobody's."""
        if table is None or not self.is_valid(now, table):
            return Granter.NOBODY
        return Granter.LEADER if self._is_led(now) else Granter.PEERS

    def is_by_majority(self, now: Instant, table: PartitionTable) -> bool:
        """Return whether a majority of the table's nodes, this one included, granted a lease at its epoch."""
        granters = {node for node, held in self._by_peer.items() if held.epoch == table.epoch and held.is_valid(now)}
        granters.add(self._node)
        return self._node in table.nodes and is_majority(table.nodes, granters)

    def _is_led(self, now: Instant) -> bool:
        return self._led_until is not None and now < self._led_until


class Promises:
    """A status node's side as a granter: what it promised its peers, and so which epoch it may acknowledge."""

    def __init__(self, now: Instant, *, is_first_life: bool = False) -> None:
        """A former life's promises are unknown, so a later life acknowledges nothing until they must have ended."""
        self._epoch = Epoch(0)
        self._acknowledged = Epoch(0)
        self._promised_until = now
        self._older_until = now if is_first_life else Instant(now + SILENCE_MS)

    def adopt(self, epoch: Epoch) -> None:
        """Take note that the node has read the table of this epoch."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._older_until = Instant(max(self._older_until, self._promised_until))

    def grant(self, now: Instant, asked_at_epoch: Epoch) -> bool:
        """Return whether the asker gets a lease at its epoch: only at the newest that this node has read."""
        if asked_at_epoch != self._epoch:
            return False
        self._promised_until = Instant(now + SERVING_MS)
        return True

    def acknowledged(self, now: Instant) -> Epoch:
        """Return the newest epoch that the node may acknowledge (I3)."""
        if now >= self._older_until:
            self._acknowledged = self._epoch
        return self._acknowledged

    def check_invariants(self) -> None:
        """Assert what one state shows of I3."""
        assert self._acknowledged <= self._epoch, "I3"


class LeaderGrants:
    """One leader's grants to status nodes. A new leader begins with its predecessor's, unknown, still out."""

    def __init__(self, now: Instant, term: Epoch) -> None:
        self.term = term
        self._silent_until = Instant(now + SILENCE_MS)
        self._until: dict[NodeId, Instant] = {}

    def distrust(self, now: Instant) -> None:
        """The registry started over: a predecessor that does not know it yet may grant leases for another while."""
        self._silent_until = Instant(now + LEADER_MS + SILENCE_MS)

    def grant(self, now: Instant, node: NodeId, asked_at_epoch: Epoch, table: PartitionTable) -> bool:
        """Return whether the node gets 2 s; not with an older table, in which it may own what it lost."""
        if asked_at_epoch != table.epoch:
            return False
        self._until[node] = Instant(now + SERVING_MS)
        return True

    def is_over(self, now: Instant, node: NodeId) -> bool:
        """Return whether no grant of a leader to this node can still count."""
        return now >= self._silent_until and now >= self._until.get(node, now)


def is_fenced(
    table: PartitionTable, partition: int, *, source: NodeId, grants_over: bool, acknowledged: Mapping[NodeId, Epoch]
) -> bool:
    """Return whether the source can no longer answer for a partition that was taken from it: the barrier (I4).

    Args:
        table: the table in which another node owns the partition.
        partition: what was taken.
        source: whom it was taken from.
        grants_over: `LeaderGrants.is_over` of the source.
        acknowledged: the newest epoch that each status node acknowledged.
    """
    epoch = table.partition_epoch(partition)
    aware = {node for node, seen in acknowledged.items() if seen >= epoch}
    if source in aware:
        return True
    return grants_over and is_majority(table.nodes, aware) and is_majority(table.former, aware)
