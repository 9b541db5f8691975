"""Who may answer for its partitions at this instant: serving leases, promises, and the barrier before a taking.

The partition table says who owns what, but a node that is cut off may have an old one. So ownership alone lets nobody
answer: a node also needs a *serving lease*, from either of two granters.

- The **leader** grants each node 2 s, asked for every 500 ms, to a node that has the leader's own table only.
- A **majority of the table's status nodes**, each of them at the same epoch as the asker. A grant is a promise: the
  granter acknowledges no newer epoch until it ends, or the holder itself has read a newer table, under which it does
  not count. So an outage of the registry, which stops the leader, stops nobody.

The leader's own lease is its lock: it grants itself none that outlasts it, and takes none along from before. So who has
the lock after it knows that its lease is over, though not those which it granted to others.

Taking a partition from an owner that did not seal it needs a *barrier* before the taker answers. Either the old owner
itself acknowledged the epoch that names the taker, or both of its sources of leases are dry: every leader's last grant
to it has ended, and majorities of the table's nodes, and of those before the last change of nodes, acknowledged that
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
    I5  While a node leads, and after it, no leader's grant from before keeps its lease valid for longer than its lock.

Sources: C. Gray and D. Cheriton, "Leases" (SOSP 1989); L. Lamport, D. Malkhi, L. Zhou, "Vertical Paxos" (PODC 2009),
for configurations that fence their predecessors; D. Ongaro, "Raft" (2014), 4.3, for the two majorities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import NamedTuple

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
PEERS_MS = 2 * ASK_MS
"""With so much left of the leader's lease the peers are asked too: one of two rounds may be lost."""

assert ASK_MS * 3 < SERVING_MS, "two lost questions must not cost a lease"
assert ASK_MS + PEERS_MS < SERVING_MS - SERVING_MS * DRIFT_PPM // 1_000_000, "while the leader is there nobody is asked"


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
        self._led_from_round = 0
        """Answers of leaders to rounds before it do not count."""
        self._by_peer: dict[NodeId, HeldLease] = {}

    def ask(self, now: Instant) -> int:
        """Begin a round: its number goes with the questions to the leader and to the other nodes of the table."""
        self._round += 1
        self._asked[self._round] = now
        self._asked = {number: at for number, at in self._asked.items() if now < at + SERVING_MS}
        return self._round

    def needs_peers(self, now: Instant) -> bool:
        """Return whether to ask the peers for grants too: the leader's lease is nearly over.

        Not always, because each promise holds up its granter's acknowledgements, and with them every resize.
        """
        return self._led_until is None or self._led_until < now + PEERS_MS

    def granted_by_leader(self, number: int) -> None:
        """Take note of a leader's grant in answer to a question of that round.

        Of which leader does not matter: each waits until all that its predecessors granted must be over. And terms
        begin anew with a registry that started over, so that they could not tell which leader is the later one.
        """
        asked_at = self._asked.get(number)
        if asked_at is not None and number >= self._led_from_round:
            until = Instant(asked_at + SERVING_MS - SERVING_MS * self._drift_ppm // 1_000_000)
            self._led_until = Instant(max(until, self._led_until or until))

    def elected(self, until: Instant) -> None:
        """This node leads, until then if it does not ask again: no grant of another leader lasts longer (I5)."""
        if self._led_until is not None:
            self._led_until = Instant(min(self._led_until, until))
        self._led_from_round = self._round + 1

    def leads(self, until: Instant) -> None:
        """This node leads until then, and has the table by which it may answer."""
        self._led_until = until

    def stepped_down(self) -> None:
        """This node is about to give its lock back: another one may lead at once (I5)."""
        self._led_until = None
        self._led_from_round = self._round + 1

    def granted_by_peer(self, number: int, granter: NodeId, epoch: Epoch) -> None:
        """Take note of another status node's grant at an epoch."""
        asked_at = self._asked.get(number)
        if asked_at is not None:
            held = self._by_peer.setdefault(granter, HeldLease(drift_ppm=self._drift_ppm))
            held.granted(asked_at, epoch, SERVING_MS)

    def outdated(self, now: Instant, epoch: Epoch) -> set[NodeId]:
        """Return who is to be told that this node has read this epoch: a promise at an older one holds them up."""
        self._by_peer = {node: held for node, held in self._by_peer.items() if held.is_valid(now)}
        return {node for node, held in self._by_peer.items() if held.epoch is not None and held.epoch < epoch}

    def told(self, granter: NodeId, epoch: Epoch) -> None:
        """Take note that a granter knows that this node has read the table of this epoch."""
        held = self._by_peer.get(granter)
        if held is not None and held.epoch is not None and held.epoch < epoch:
            del self._by_peer[granter]

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


class _Promise(NamedTuple):
    epoch: Epoch
    until: Instant


class Promises:
    """A status node's side as a granter: what it promised its peers, and so which epoch it may acknowledge."""

    def __init__(self, now: Instant, *, is_first_life: bool = False) -> None:
        """A former life's promises are unknown, so a later life acknowledges nothing until they must have ended."""
        self._epoch = Epoch(0)
        self._acknowledged = Epoch(0)
        self._promised: dict[NodeId, _Promise] = {}
        """To each asker the last one: at the newest epoch that counts there, and the last to end."""
        self._unknown_until = now if is_first_life else Instant(now + SILENCE_MS)

    def adopt(self, epoch: Epoch) -> None:
        """Take note that the node has read the table of this epoch."""
        self._epoch = max(self._epoch, epoch)

    def grant(self, now: Instant, asker: NodeId, asked_at_epoch: Epoch) -> bool:
        """Return whether the asker gets a lease at its epoch: only at the newest that this node has read."""
        if asked_at_epoch != self._epoch:
            return False
        self._promised[asker] = _Promise(asked_at_epoch, Instant(now + SERVING_MS))
        return True

    def has_read(self, asker: NodeId, epoch: Epoch) -> bool:
        """Take note that an asker has read the table of this epoch; return whether that ends a promise to it (I2)."""
        promise = self._promised.get(asker)
        if promise is None or promise.epoch >= epoch:
            return False
        del self._promised[asker]
        return True

    def acknowledged(self, now: Instant) -> Epoch:
        """Return the newest epoch that the node may acknowledge (I3)."""
        if self._acknowledged < self._epoch and now >= self._unknown_until:
            self._promised = {asker: promise for asker, promise in self._promised.items() if now < promise.until}
            if all(promise.epoch == self._epoch for promise in self._promised.values()):
                self._acknowledged = self._epoch
        return self._acknowledged

    def check_invariants(self) -> None:
        """Assert what one state shows of I3."""
        assert self._acknowledged <= self._epoch, "I3"
        assert all(promise.epoch <= self._epoch for promise in self._promised.values()), "I3"


class LeaderGrants:
    """One leader's grants to status nodes. A new leader begins with its predecessor's, unknown, still out."""

    def __init__(self, now: Instant, term: Epoch, predecessor: NodeId | None = None) -> None:
        """`predecessor` is who led last before; None if that is not known for certain."""
        self.term = term
        self._silent_until = Instant(now + SILENCE_MS)
        self._predecessor = predecessor
        self._until: dict[NodeId, Instant] = {}

    def distrust(self, now: Instant) -> None:
        """The registry started over: a predecessor that does not know it yet may grant leases for another while."""
        self._silent_until = Instant(now + LEADER_MS + SILENCE_MS)
        self._predecessor = None

    def grant(self, now: Instant, node: NodeId, asked_at_epoch: Epoch, table: PartitionTable) -> bool:
        """Return whether the node gets 2 s; not with an older table, in which it may own what it lost."""
        if asked_at_epoch != table.epoch:
            return False
        self._until[node] = Instant(now + SERVING_MS)
        return True

    def is_over(self, now: Instant, node: NodeId) -> bool:
        """Return whether no grant of a leader to this node can still count.

        The predecessor's own lease ended before its lock was free (I5); what it granted to others lasts.
        """
        is_known = node == self._predecessor or now >= self._silent_until
        return is_known and now >= self._until.get(node, now)


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
