"""What one status node may say about each partition now: its stores, through every table that it reads.

The table says who owns a partition, the serving lease whether this node may act on that, and this core what follows.
It keeps a store for each partition that the node owns, copies to or from, turns *staging* into a served store at the
commit and drops what the node lost. Its answers know three cases, not two: "offline" is a claim, and until it is proven
the answer is "unknown".

```
                 owner without data          every access node told all, or a lease's time passed
    not owned ──────────────────────▶ recovering ─────────────────▶ serving ◀──▶ sealed
        │                                                              ▲
        └─ target of a move: staging ── commit, staging ready ─────────┘
```

A record is shown as online while its access node *vouches* for it: it sent a beat that brought all its news for the
partition, not long ago. A beat counts from the last answer of ours that it echoes, so that one that was long on
its way vouches for as little as it knows. Beats of before the partition came here, or of while it was sealed, do not.

Invariants:
    I1  Answers and acceptance need: owner in the newest table read, a serving lease, no seal, no pending barrier.
    I2  A store is served only if it is complete: kept since the owner epoch in the table, promoted, or recovered.
    I3  Offline is never said of a record before its access node had a lease's time to speak, here or at the last owner.
    I4  A sealed store does not change; after a read abort only new beats vouch for it.

It does not ask for leases (`serving`), nor send or answer pulls (its shell does, with `handoff`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.core.handoff import Chunk, Incoming, Outgoing, Pull, Vouch
from status.core.partitions import Move, PartitionTable, Stage
from status.core.records import Digest, Floor, Item, PartitionRecords, Record

__all__ = ["GRACE_MS", "Answer", "Heard", "Ownership", "Role", "Told"]

GRACE_MS = 3_300
"""An access node's lease of 3 s on any clock: who was not heard for so long has none, whoever granted it."""

FROM_COPY = frozenset({Stage.COPY, Stage.CATCHUP, Stage.SEAL})


class Role(Enum):
    """What the node is to a partition at an instant."""

    NONE = "none"
    FENCED = "fenced"
    """Owner without a serving lease, or before the barrier: says nothing, takes nothing."""
    SEALED = "sealed"
    """Owner in the last moment before the commit: parks."""
    RECOVERING = "recovering"
    """Owner that takes what it is told and does not know all yet: a miss is unknown."""
    SERVING = "serving"


@dataclass(frozen=True, slots=True)
class Told:
    """What an access node's beat says about one partition. With a floor, `records` are all that it has."""

    partition: int
    records: tuple[Record, ...]
    digest: Digest
    floor: Floor | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What to answer: which partitions were refused, and of which everything must be told."""

    refused: tuple[int, ...] = ()
    mismatched: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A user's status: None is unknown, an empty tuple offline, else the records to show."""

    records: tuple[Record, ...] | None


@dataclass(slots=True)
class _Beats:
    """What the beats of one life of an access node prove here."""

    incarnation: Incarnation
    epoch: Epoch
    until: Instant
    convicted_at: Instant


@dataclass(slots=True)
class _Held:
    """One partition's store and what it is for."""

    owned_since: Epoch | None = None
    """The owner epoch at which this store became, or began to become, the served one; None: it never was."""
    records: PartitionRecords = field(default_factory=PartitionRecords)
    awaited: set[NodeId] | None = None
    """Access nodes that did not tell all yet; None before the node began to recover, empty when it is complete."""
    grace_until: Instant = Instant(0)
    vouch_from: Epoch = Epoch(0)
    vouches: dict[NodeId, tuple[Incarnation, Instant]] = field(default_factory=dict)
    outgoing: Outgoing | None = None
    incoming: Incoming | None = None


class Ownership:
    """One status node's partitions. `is_leased` is asked at each step: `ServingLease.is_valid` of the shell."""

    def __init__(
        self,
        node: NodeId,
        incarnation: Incarnation,
        access: Iterable[NodeId],
        *,
        is_leased: Callable[[Instant, PartitionTable], bool],
        new_store: Callable[[], PartitionRecords] = PartitionRecords,
    ) -> None:
        self.table: PartitionTable | None = None
        self._node = node
        self._incarnation = incarnation
        self._access = frozenset(access)
        self._is_leased = is_leased
        self._new_store = new_store
        self._had_lease = False
        self._held: dict[int, _Held] = {}
        self._moves: dict[int, Move] = {}
        self._beats: dict[NodeId, _Beats] = {}

    # ---------------------------------------------------------------- tables

    def adopt(self, now: Instant, table: PartitionTable) -> bool:
        """Read a table; return whether it was newer. To be called for each that comes by."""
        if self.table is not None and table.epoch <= self.table.epoch:
            return False
        self.table = table
        self._moves = table.moves_by_partition()
        for partition in range(len(table.owners)):
            move = self._moves.get(partition)
            if table.owner(partition) == self._node:
                self._own(now, partition, move)
            elif move is not None and self._node == move.target and move.stage in FROM_COPY:
                self._stage(partition, move)
            elif move is None or self._node != move.source or move.stage is not Stage.COMMIT:
                self._held.pop(partition, None)  # of a store that was lost or skipped nothing is trusted later
        return True

    def role(self, now: Instant, partition: int) -> Role:
        """Return what the node is to the partition now (I1)."""
        table = self.table
        if table is None or table.owner(partition) != self._node:
            return Role.NONE
        move = self._moves.get(partition)
        if move is not None and move.stage is Stage.SEAL:
            return Role.SEALED
        if (move is not None and move.stage is Stage.RECOVER) or not self._is_leased(now, table):
            return Role.FENCED
        held = self._held[partition]
        return Role.SERVING if held.awaited is not None and self._is_complete(now, held) else Role.RECOVERING

    def step(self, now: Instant) -> None:
        """Notice the lease's end and return; to be called before anything else that happens at `now`."""
        table = self.table
        has_lease = table is not None and self._is_leased(now, table)
        if has_lease and not self._had_lease:
            # While it had no lease it heard nobody, so nobody is convicted for that silence (I3).
            for held in self._held.values():
                held.grace_until = Instant(now + GRACE_MS)
        self._had_lease = has_lease
        if has_lease:
            for partition, held in self._held.items():
                if held.owned_since is not None:
                    self._recover(now, partition, held)
            for held in self._held.values():
                held.records.expire(now)

    # ---------------------------------------------------------------- beats and lookups

    def heard(
        self,
        now: Instant,
        node: NodeId,
        incarnation: Incarnation,
        *,
        epoch: Epoch,
        until: Instant,
        told: Iterable[Told],
    ) -> Heard:
        """Take in an access node's beat.

        Args:
            now: the instant.
            node: who sent it.
            incarnation: in which life.
            epoch: by which table it routed.
            until: until when this beat vouches: a lease's time after the answer that it echoes.
            told: its news, of all partitions that it routes here.
        """
        told = tuple(told)
        beats = self._beats.get(node)
        is_old = beats is not None and incarnation < beats.incarnation
        if is_old or self.table is None or epoch > self.table.epoch or not self._had_lease:
            return Heard(refused=tuple(part.partition for part in told))  # ahead: read the newer table first
        refused: list[int] = []
        mismatched: list[int] = []
        for part in told:
            if self.role(now, part.partition) not in {Role.RECOVERING, Role.SERVING}:
                refused.append(part.partition)
            elif not self._take(now, node, part):
                mismatched.append(part.partition)
        self._vouched(node, incarnation, epoch, until)
        return Heard(tuple(refused), tuple(mismatched))

    def lookup(self, now: Instant, partition: int, user: str) -> Answer:
        """Return the user's status; the partition must be one that this node is RECOVERING or SERVING."""
        held = self._held[partition]
        shown: list[Record] = []
        is_known = self.role(now, partition) is Role.SERVING
        for record in held.records.of_user(user):
            beats = self._beats.get(record.node)
            if beats is not None and beats.incarnation > record.incarnation:
                continue  # that life is over, and its sockets with it
            if self._is_vouched(now, held, beats, record):
                shown.append(record)
            elif now < held.grace_until or (beats is not None and now < beats.convicted_at):
                is_known = False
        if shown:
            return Answer(tuple(shown))
        return Answer(() if is_known else None)

    def left_ms(self, now: Instant, node: NodeId, incarnation: Incarnation) -> int:
        """Return for how long the access node's beats vouch from now: what an answer to it says of its lease."""
        beats = self._beats.get(node)
        return max(0, beats.until - now) if beats is not None and beats.incarnation == incarnation else 0

    # ---------------------------------------------------------------- moves

    def pulls(self, now: Instant) -> list[tuple[NodeId, Pull]]:
        """Return the next question of each move that copies to this node, with whom to ask."""
        return [
            (self._moves[partition].source, held.incoming.pull(now))
            for partition, held in sorted(self._held.items())
            if held.incoming is not None and not held.incoming.is_ready
        ]

    def pulled(self, now: Instant, pull: Pull) -> Chunk | None:
        """Answer a target's question, None when this node is not the source of such a move, or not complete."""
        held = self._held.get(pull.partition)
        if held is None or held.outgoing is None:
            return None
        vouches = tuple(
            Vouch(node, incarnation, until - now)
            for node, (incarnation, until) in sorted(held.vouches.items())
            if until > now
        )
        return held.outgoing.pulled(pull, vouches)

    def received(self, now: Instant, chunk: Chunk) -> None:
        """Take in an answer to one of this node's questions."""
        held = self._held.get(chunk.partition)
        if held is not None and held.incoming is not None:
            held.incoming.received(now, chunk)

    def incoming(self) -> list[Incoming]:
        """Return the moves that copy to this node, to report how far they are."""
        return [held.incoming for _, held in sorted(self._held.items()) if held.incoming is not None]

    def incomplete(self, now: Instant) -> list[int]:
        """Return the owned partitions whose store is not complete, to report."""
        return [
            partition
            for partition, held in sorted(self._held.items())
            if held.owned_since is not None and not (held.awaited is not None and self._is_complete(now, held))
        ]

    def digest(self, partition: int) -> Digest:
        """Return the digest of the partition's served store."""
        return self._held[partition].records.digest()

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        for held in self._held.values():
            assert held.outgoing is None or held.owned_since is not None, "I2"
            assert held.incoming is None or held.owned_since is None, "I2"
            held.records.check_invariants()

    # ---------------------------------------------------------------- inside

    def _own(self, now: Instant, partition: int, move: Move | None) -> None:
        assert self.table is not None
        since = self.table.owner_epoch(partition)
        held = self._held.get(partition)
        if held is None or held.owned_since != since:
            held = self._held[partition] = self._promoted(held, move) or _Held(records=self._new_store())
            held.owned_since = since
            held.vouch_from = self.table.partition_epoch(partition)
            held.grace_until = Instant(now + GRACE_MS)
        outgoing = held.outgoing
        if outgoing is not None and (move is None or move.move_id != outgoing.move_id):
            # Aborted. What was refused while sealed may have been a close, so older beats vouch no more (I4).
            if outgoing.is_sealed:
                held.vouch_from = self.table.partition_epoch(partition)
            held.outgoing = None
        if move is not None and move.source == self._node and move.stage in FROM_COPY:
            self._send(now, partition, held, move)

    @staticmethod
    def _promoted(held: _Held | None, move: Move | None) -> _Held | None:
        """Return the staging as a served store, if it is that of the very move that made this node the owner."""
        incoming = held.incoming if held is not None else None
        if incoming is None or move is None or move.move_id != incoming.move_id or not incoming.is_ready:
            return None
        return _Held(records=incoming.records, awaited=set(), vouches=incoming.vouches)

    def _send(self, now: Instant, partition: int, held: _Held, move: Move) -> None:
        if held.awaited is None or not self._is_complete(now, held):
            return  # nothing to copy yet; `step` comes back to it
        if held.outgoing is None:
            held.outgoing = Outgoing(partition, move.move_id, self._incarnation, held.records)
        if move.stage is Stage.SEAL and not held.outgoing.is_sealed:
            held.outgoing.seal()
            # From here on beats bring no news of this partition, so none vouches for it any longer than now (I4).
            for node, beats in self._beats.items():
                if beats.epoch >= held.vouch_from:
                    held.vouches[node] = (beats.incarnation, beats.until)

    def _stage(self, partition: int, move: Move) -> None:
        held = self._held.get(partition)
        if held is None or held.incoming is None or held.incoming.move_id != move.move_id:
            held = self._held[partition] = _Held()
            held.incoming = Incoming(partition, move.move_id, self._incarnation, new_store=self._new_store)

    def _recover(self, now: Instant, partition: int, held: _Held) -> None:
        assert self.table is not None
        move = self._moves.get(partition)
        if move is not None and move.stage in {Stage.RECOVER, Stage.SEAL}:
            return
        if held.awaited is None:
            held.awaited = set(self._access)
            held.vouch_from = self.table.partition_epoch(partition)
            held.grace_until = Instant(now + GRACE_MS)
        elif self._is_complete(now, held):
            held.awaited.clear()
            if move is not None and move.source == self._node and move.stage in FROM_COPY:
                self._send(now, partition, held, move)

    @staticmethod
    def _is_complete(now: Instant, held: _Held) -> bool:
        return not held.awaited or now >= held.grace_until

    def _take(self, now: Instant, node: NodeId, part: Told) -> bool:
        held = self._held[part.partition]
        news: Collection[Item]
        if part.floor is None:
            news = [record for record in part.records if held.records.merge(now, record)]
        else:
            news = held.records.replace(now, part.floor, part.records)
            if held.awaited is not None:
                held.awaited.discard(node)
        if held.outgoing is not None:
            for item in news:
                held.outgoing.changed(item)
        is_awaited = held.awaited is None or node in held.awaited
        return not is_awaited and held.records.digest(node) == part.digest

    def _vouched(self, node: NodeId, incarnation: Incarnation, epoch: Epoch, until: Instant) -> None:
        beats = self._beats.get(node)
        if beats is None or incarnation > beats.incarnation:
            self._beats[node] = _Beats(incarnation, epoch, until, until)
            return
        beats.convicted_at = max(beats.convicted_at, until)
        if epoch > beats.epoch:
            beats.epoch, beats.until = epoch, until
        elif epoch == beats.epoch:
            beats.until = max(beats.until, until)

    @staticmethod
    def _is_vouched(now: Instant, held: _Held, beats: _Beats | None, record: Record) -> bool:
        if beats is not None and beats.incarnation == record.incarnation and beats.epoch >= held.vouch_from:
            return now < beats.until and (held.outgoing is None or not held.outgoing.is_sealed)
        incarnation, until = held.vouches.get(record.node, (Incarnation(0), Instant(0)))
        return incarnation == record.incarnation and now < until
