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

An entry is shown while its access node *vouches* for it (`vouching`), by a beat that brought all its news for the
partition. Beats of before the partition came here, or of while it was sealed, do not. What nobody vouches for any more
is swept out (`sweeping`).

Nearly always all lives with entries here vouch for them. Then a partition is *clean*: a lookup is one dictionary look.

Invariants:
    I1  Answers and acceptance need: owner in the newest table read, a serving lease, no seal, no pending barrier, and
        that the owner before answers no more. Sealed, it answers as long as nobody else does (`handoff`).
    I2  A store is served only if it is complete: kept since the owner epoch in the table, promoted, or recovered.
    I3  Offline is never said of an entry before its access node had a lease's time to speak, here or at the last owner;
        and of nobody while most access nodes seem to have died at once.
    I4  A sealed store does not change; after a read abort only new beats vouch for it.
    I5  A clean partition is served, complete, and each life with entries in it vouches by its beats.

It does not ask for leases (`serving`), nor send pulls (its shell does, with `handoff`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import REFUSED, Beat, Shown, Stamp, unpack_partitions
from status.core.handoff import Chunk, Incoming, Outgoing, Pull, Vouch
from status.core.holding import Heard, Held, Role, census, is_as_told, promoted
from status.core.partitions import Move, PartitionTable, Stage, changed_since
from status.core.records import NEVER, Digest, Found, Full, Item, Kind, Life, Merged, PartitionRecords, Sources
from status.core.showing import Showing
from status.core.sweeping import SEEN_MS, Sweep
from status.core.vouching import LEASE_MS, Beats, Vouching

__all__ = ["NEWS_MS", "Change", "Heard", "Ownership", "Turn"]

NEWS_MS = 100
"""How often a copy that has caught up is kept up to date until it is sealed."""
ROUND_MS = 100
"""How often `step` does what depends on time alone."""

# Looking a member up costs as much as comparing it, and a million changes do so.
_CLOSED, _STALE, _NOTED = int(Kind.CLOSED), Merged.STALE, Merged.NOTED

FROM_COPY = frozenset({Stage.COPY, Stage.CATCHUP, Stage.SEAL})
_UNLISTED = NodeId("")
"""Stands for access nodes that live, and that a registry which started over does not list yet: their beats will tell
of them, if there are any. Nobody is called so, and so it is awaited until silence is proof."""
WHOLE = frozenset({Role.SERVING, Role.ANSWERING})
ANSWERS = WHOLE | {Role.RECOVERING}
CLOSED_STAGES = frozenset({Stage.SEAL, Stage.RECOVER})
"""The owner takes nothing: it is about to lose the partition, or must wait until nobody else can answer."""


Change = tuple[int, str, bytes, Merged]
"""A connection that opened, changed or closed here: partition, user, its open entry, what happened."""


class Turn(NamedTuple):
    """This node began to know all of a partition that it owns, or lost it. `owner_epoch` as of the table then."""

    partition: int
    owner_epoch: Epoch
    is_served: bool


class Ownership:
    """One status node's partitions. `is_leased` is asked at each step: `ServingLease.is_valid` of the shell."""

    vouching_kind: ClassVar[type[Vouching]] = Vouching

    def __init__(
        self,
        node: NodeId,
        incarnation: Incarnation,
        access: Iterable[NodeId],
        *,
        is_leased: Callable[[Instant, PartitionTable], bool],
        new_store: Callable[[], PartitionRecords] = PartitionRecords,
        lease_ms: int = LEASE_MS,
        seen_ms: int = SEEN_MS,
    ) -> None:
        """Start with no table and no store.

        Args:
            node: this node.
            incarnation: its life.
            access: the access nodes that may have sessions.
            is_leased: whether the node may act on a table now.
            new_store: makes an empty store.
            lease_ms: how long an access node's sessions are shown without a beat. The same on all status nodes.
            seen_ms: for how long it is known when a user was last seen.
        """
        self.table: PartitionTable | None = None
        self.access = frozenset(access)
        """The access nodes that may have sessions: whom a recovery waits for."""
        self.sources = Sources()
        self._node = node
        self._incarnation = incarnation
        self._is_leased = is_leased
        self._new_store = new_store
        self._vouching = self.vouching_kind(incarnation, self.sources, lease_ms)
        self._showing = Showing(self.sources, self._vouching)
        self._sweep = Sweep(self.sources, self._vouching, seen_ms)
        self._had_lease = False
        self._listened_at = Instant(0)
        self.is_in_doubt = False
        """Whether most access nodes seem to have died at once, as of the last round: rather it is this node's fault."""
        self._round_at = Instant(0)
        self._held: dict[int, Held] = {}
        self._moves: dict[int, Move] = {}
        # Indexes of `_held`: owned partitions, and of those the ones whose news are taken, the lease given (I1).
        self._owned: set[int] = set()
        self._accepting: dict[int, Held] = {}
        self._sealed: set[int] = set()
        self._shared: set[int] = set()
        self._clean: dict[int, dict[str, Found]] = {}
        self._unclean: set[int] = set()
        self._recovering: set[int] = set()
        self._staging: set[int] = set()
        self._changes: list[Change] = []
        self._served: set[int] = set()
        self._turns: list[Turn] = []

    # ---------------------------------------------------------------- tables

    def adopt(self, now: Instant, table: PartitionTable) -> bool:
        """Read a table; return whether it was newer. To be called for each that comes by."""
        old = self.table
        if old is not None and table.epoch <= old.epoch:
            return False
        self.table = table
        self._round_at = now
        self._moves = table.moves_by_partition()
        for partition in range(len(table.owners)) if old is None else changed_since(table, old.epoch):
            move = self._moves.get(partition)
            self._forget_indexes(partition)
            if partition in self._served and (
                table.owner(partition) != self._node
                or table.owner_epoch(partition) != self._held[partition].owned_since
            ):
                self._served.remove(partition)
                self._turns.append(Turn(partition, table.owner_epoch(partition), is_served=False))
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
        if partition in self._sealed:
            may_answer = self._held[partition].may_answer(now) and self._is_leased(now, table)
            return Role.ANSWERING if may_answer else Role.SEALED
        if (move is not None and move.stage is Stage.RECOVER) or not self._is_leased(now, table):
            return Role.FENCED
        held = self._held[partition]
        return Role.SERVING if held.awaited is not None and self._is_complete(now, held) else Role.RECOVERING

    def step(self, now: Instant, at: Timestamp = NEVER) -> None:
        """Notice the lease's end and return; to be called before anything else that happens at `now`.

        `at` is what readers are told as the end of what is swept out.
        """
        table = self.table
        has_lease = table is not None and self._is_leased(now, table)
        if has_lease:
            if not self._had_lease:
                # While it had no lease it heard nobody, so nobody is convicted for that silence (I3).
                self.stalled(now - self._listened_at)
            self._listened_at = now
        self._had_lease = has_lease
        for partition in [one for one in self._shared if now >= self._held[one].alone_from]:
            self._take_over(now, partition)
        if has_lease and now >= self._round_at:
            self._round_at = Instant(now + ROUND_MS)
            for partition in tuple(self._recovering):
                self._recover(now, partition, self._held[partition])
            self.is_in_doubt = self._vouching.is_in_doubt(now, self.access)
            for beats in self._vouching.convict(now, self.access):
                self._sweep.begin(beats.source, self._held)
            self._sweep_out(now, at)

    def stalled(self, lag_ms: int) -> None:
        """This node did not run for so long: the silence was its own, so nobody is convicted for it (I3)."""
        self._listened_at = Instant(self._listened_at + lag_ms)
        self._vouching.stalled(self._listened_at, lag_ms)

    # ---------------------------------------------------------------- beats and lookups

    def heard(self, now: Instant, node: NodeId, beat: Beat, at: Timestamp = NEVER) -> Heard:
        """Take in an access node's beat.

        Args:
            now: the instant.
            node: who sent it.
            beat: its news, of all partitions that it routes here by the table of its epoch.
            at: the end of sessions that it does not name any more.
        """
        if self._vouching.is_over(Life(node, beat.incarnation)):
            return Heard(is_heard=False, is_fenced=True)
        if self.table is None or beat.epoch > self.table.epoch or not self._had_lease:
            return Heard(is_heard=False)  # ahead of us: read the newer table first
        beats = self._vouched(now, node, beat)
        refused: set[int] = set()
        full: dict[int, list[Item]] = {}
        for partition in unpack_partitions(beat.floors):
            if self._accepts(partition, beat.epoch):
                full[partition] = []
            else:
                refused.add(partition)
        refused |= self._take_in(now, beats.source, beat, full)
        for partition, items in full.items():
            self._replace(now, partition, beats, Full(beat.floor, items, at))
        return Heard(refused=sorted(refused), mismatched=self._audited(node, beats.source, beat))

    def lookup(self, now: Instant, partitions: Sequence[int], users: Sequence[str]) -> list[Shown]:
        """Return what to show of each user, REFUSED if it may not answer; `partitions` are theirs, in their order."""
        if self.is_clean(now):
            try:
                clean = self._clean
                # Each object on the way to an entry is a cache miss, and there is nothing else that costs here.
                return [clean[partition].get(user) for partition, user in zip(partitions, users, strict=True)]
            except KeyError:
                pass  # one of them is not
        roles = {partition: self.role(now, partition) for partition in set(partitions)}
        is_in_doubt = self._vouching.is_in_doubt(now, self.access)
        return [
            self._showing.show(
                now, self._held[partition], user, is_serving=roles[partition] in WHOLE and not is_in_doubt
            )
            if roles[partition] in ANSWERS
            else REFUSED
            for partition, user in zip(partitions, users, strict=True)
        ]

    def is_clean(self, now: Instant) -> bool:
        """Return whether clean partitions may be answered from as they are (I5)."""
        table = self.table
        if table is None or self._sweep or not self._is_leased(now, table):
            return False
        return self._vouching.all_vouch(now)

    def silent(self, now: Instant) -> frozenset[NodeId]:
        """Return the access nodes whose beats vouch for nothing now: their sessions are not shown."""
        return self._vouching.silent(now)

    def has_sealed(self, partitions: Iterable[int]) -> bool:
        """Return whether one of these is sealed here, or not here alone: requests that are refused are parked."""
        return bool(self._sealed) and not self._sealed.isdisjoint(partitions)

    def stamp(self, now: Instant, node: NodeId) -> Stamp:
        """Return what an answer to the access node is stamped with, to be echoed."""
        return self._vouching.stamp(now, node)

    def left_ms(self, now: Instant, node: NodeId, incarnation: Incarnation, epoch: Epoch) -> int:
        """Return for how long the access node's beats vouch from now: what an answer to it says of its lease.

        Nothing is promised to a sender with another table: it may rely on partitions that are not here.
        """
        beats = self._vouching.of(node)
        if beats is None or beats.life.incarnation != incarnation or self.table is None or self.table.epoch != epoch:
            return 0
        return max(0, beats.until - now) if self._had_lease else 0

    def take_changes(self) -> list[Change]:
        """Return what opened, changed and closed since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def take_turns(self) -> list[Turn]:
        """Return which partitions began or ceased to be served since the last call, in order."""
        turns, self._turns = self._turns, []
        return turns

    def store(self, partition: int) -> PartitionRecords | None:
        """Return the served store of a partition that this node owns, None for any other."""
        return self._held[partition].records if partition in self._owned else None

    # ---------------------------------------------------------------- moves

    def pulls(self, now: Instant, source: NodeId | None = None) -> list[tuple[NodeId, Pull]]:
        """Return the next question of each move that copies to this node, with whom to ask; of one source, if given.

        What has caught up and is not sealed is asked for its news only now and then.
        """
        pulls: list[tuple[NodeId, Pull]] = []
        for incoming in self.incoming():
            move = self._moves[incoming.partition]
            is_idle = incoming.is_caught_up and move.stage is not Stage.SEAL and now < incoming.asked_at + NEWS_MS
            if source in (None, move.source) and not incoming.is_ready and not is_idle:
                pulls.append((move.source, incoming.pull(now)))
        return pulls

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
        lives = map(self.sources.life, held.records.sources())
        gone = frozenset(life for life in lives if not self._vouching.is_alive(now, life))
        chunk = held.outgoing.pulled(pull, vouches, gone)
        if chunk is not None and chunk.is_sealed:
            held.outgoing.sealed_told(now)
        return chunk

    def received(self, now: Instant, chunk: Chunk) -> None:
        """Take in an answer to one of this node's questions."""
        held = self._held.get(chunk.partition)
        if held is not None and held.incoming is not None:
            held.incoming.received(now, chunk)

    def shares(self, partitions: Iterable[int]) -> bool:
        """Return whether somebody else may still answer for one of these partitions, which this node owns."""
        return bool(self._shared) and not self._shared.isdisjoint(partitions)

    def shared(self) -> list[Move]:
        """Return the moves by which this node owns partitions whose sources are to cease."""
        return [self._moves[partition] for partition in sorted(self._shared) if partition in self._moves]

    def cease(self, partition: int, move_id: Epoch) -> None:
        """The target of a move takes this node's place: from now on this one answers nothing (`handoff`, I8)."""
        held = self._held.get(partition)
        if held is not None and held.outgoing is not None and held.outgoing.move_id == move_id:
            held.outgoing.cease()

    def ceased(self, now: Instant, moves: Iterable[Move]) -> None:
        """The sources of these moves answer no more: this node has their partitions alone."""
        for move in moves:
            known = self._moves.get(move.partition)
            if move.partition in self._shared and known is not None and known.move_id == move.move_id:
                self._take_over(now, move.partition)

    def incoming(self) -> list[Incoming]:
        """Return the moves that copy to this node, to report how far they are."""
        found = (self._held[partition].incoming for partition in sorted(self._staging))
        return [incoming for incoming in found if incoming is not None]

    def incomplete(self, now: Instant) -> list[int]:
        """Return the owned partitions whose store is not complete, to report."""
        return sorted(
            partition
            for partition in self._recovering
            if not ((held := self._held[partition]).awaited is not None and self._is_complete(now, held))
        )

    def census(self) -> tuple[dict[int, int], dict[Life, Digest]]:
        """Return how many open entries each owned partition has, and the digest of each life over all of them.

        Costs a pass over the partitions owned.
        """
        return census(((partition, self._held[partition].records) for partition in sorted(self._owned)), self.sources)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes. Costs a pass over the partitions held."""
        owned = [self._held[partition].records.statistics() for partition in self._owned]
        return {
            "partitions": len(owned),
            "users": sum(one["users"] for one in owned),
            "sessions": sum(one["entries"] for one in owned),
            "tombstones": sum(one["tombstones"] for one in owned),
            "staging": len(self._staging),
            "recovering": len(self._recovering),
            "access_nodes": len(self._vouching),
            "sweeping": len(self._sweep),
            "in_doubt": int(self.is_in_doubt),
        }

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        for partition, held in self._held.items():
            assert held.outgoing is None or held.owned_since is not None, "I2"
            assert held.incoming is None or held.owned_since is None, "I2"
            assert (held.incoming is not None) == (partition in self._staging), "I2"
            held.records.check_invariants()
        assert self._recovering.isdisjoint(self._clean), "I5"
        assert self._shared <= self._owned & self._sealed, "I1"
        assert self._sealed.isdisjoint(self._accepting), "I1"
        for partition in self._clean:
            held = self._held[partition]
            assert held.awaited is not None, "I5"
            assert self._showing.is_vouched_by_beats(held) or self._sweep, "I5"
        self._vouching.check_invariants()

    # ---------------------------------------------------------------- owning, sending, staging

    def _forget_indexes(self, partition: int) -> None:
        self._clean.pop(partition, None)
        self._accepting.pop(partition, None)
        for index in (self._owned, self._sealed, self._shared, self._unclean, self._recovering, self._staging):
            index.discard(partition)

    def _take_over(self, now: Instant, partition: int) -> None:
        self._held[partition].alone_from = Instant(0)
        self._forget_indexes(partition)
        self._own(now, partition, self._moves.get(partition))

    def _own(self, now: Instant, partition: int, move: Move | None) -> None:
        assert self.table is not None
        self._owned.add(partition)
        is_closed = move is not None and move.stage in CLOSED_STAGES
        if move is not None and move.stage is Stage.SEAL:
            self._sealed.add(partition)
        since = self.table.owner_epoch(partition)
        held = self._held.get(partition)
        if held is None or held.owned_since != since:
            held = self._held[partition] = promoted(held, move) or Held(self._new_store())
            held.owned_since = since
            held.vouch_from = self.table.partition_epoch(partition)
            held.grace_until = self._vouching.grace_from(now)
        if now < held.alone_from:
            self._shared.add(partition)
            self._sealed.add(partition)
            return
        if not is_closed:
            self._accepting[partition] = held
        outgoing = held.outgoing
        if outgoing is not None and (move is None or move.move_id != outgoing.move_id):
            # Aborted. What was refused while sealed may have been a close, so older beats vouch no more (I4).
            if outgoing.is_sealed:
                held.vouch_from = self.table.partition_epoch(partition)
            held.outgoing = None
        if move is not None and move.source == self._node and move.stage in FROM_COPY:
            self._send(now, partition, held, move)
        if held.awaited is None or held.awaited:
            self._recovering.add(partition)
            return
        self._serve(partition, since)
        if not is_closed:
            self._try_clean(partition)

    def _serve(self, partition: int, owner_epoch: Epoch) -> None:
        if partition not in self._served:
            self._served.add(partition)
            self._turns.append(Turn(partition, owner_epoch, is_served=True))

    def _send(self, now: Instant, partition: int, held: Held, move: Move) -> None:
        if held.awaited is None or not self._is_complete(now, held):
            return  # nothing to copy yet; `step` comes back to it
        if held.outgoing is None:
            held.outgoing = Outgoing(partition, move.move_id, self._incarnation, held.records, self.sources)
        if move.stage is Stage.SEAL and not held.outgoing.is_sealed:
            held.outgoing.seal()
            # From here on beats bring no news of this partition, so none vouches for it any longer than now (I4).
            held.vouches.update(self._vouching.vouches(held.vouch_from))

    def _stage(self, partition: int, move: Move) -> None:
        held = self._held.get(partition)
        if held is None or held.incoming is None or held.incoming.move_id != move.move_id:
            held = self._held[partition] = Held(self._new_store())
            held.incoming = Incoming(
                partition, move.move_id, self._incarnation, self.sources, new_store=self._new_store
            )
        self._staging.add(partition)

    def _recover(self, now: Instant, partition: int, held: Held) -> None:
        assert self.table is not None
        move = self._moves.get(partition)
        if move is not None and move.stage in CLOSED_STAGES:
            return
        if held.awaited is None:
            # Also whom the registry does not list: a registration may lapse while its process lives.
            held.awaited = {*self.access, *self._vouching.nodes()}
            if self.table.is_filling:
                held.awaited.add(_UNLISTED)
            held.vouch_from = self.table.partition_epoch(partition)
            held.grace_until = self._vouching.grace_from(now)
        elif self._is_complete(now, held):
            held.awaited.clear()
            self._recovering.discard(partition)
            self._serve(partition, self.table.owner_epoch(partition))
            if move is not None and move.source == self._node and move.stage in FROM_COPY:
                self._send(now, partition, held, move)
            self._try_clean(partition)

    def _is_complete(self, now: Instant, held: Held) -> bool:
        return not any(self._vouching.is_awaited(now, node, held.grace_until) for node in held.awaited or ())

    # ---------------------------------------------------------------- taking in

    def _accepts(self, partition: int, epoch: Epoch) -> bool:
        """Return whether news of the partition are taken, the lease given; not those of before it came here (I1)."""
        return partition in self._accepting and epoch >= self._held[partition].vouch_from

    def _take_in(self, now: Instant, source: bytes, beat: Beat, full: Mapping[int, list[Item]]) -> set[int]:
        """Merge the changes of a beat, but for those that belong to full lists; return the refused partitions."""
        assert self.table is not None
        refused: set[int] = set()
        partitions = unpack_partitions(beat.partitions)
        takes = self._accepting
        if beat.epoch != self.table.epoch:
            takes = {one: self._held[one] for one in set(partitions) if self._accepts(one, beat.epoch)}
        append = self._changes.append
        for partition, user, packed in zip(partitions, beat.users, beat.entries, strict=True):
            entry = source + packed
            held = takes.get(partition)
            if held is None:
                refused.add(partition)
            elif full and partition in full:
                full[partition].append((user, entry))
            else:
                # What follows is most of what a status node does, so it is written out.
                records = held.records
                before = records.find(user, entry) if entry[14] == _CLOSED else entry
                merged = records.merge(now, user, entry)
                if merged is not _STALE:
                    if held.outgoing is not None:
                        held.outgoing.changed(user, entry)
                    if merged is not _NOTED:
                        append((partition, user, before, merged))
        return refused

    def _replace(self, now: Instant, partition: int, beats: Beats, full: Full) -> None:
        held = self._held[partition]
        for user, entry, merged, shown in held.records.replace(now, beats.source, full):
            if held.outgoing is not None:
                held.outgoing.changed(user, entry)
            if merged is not _NOTED:
                self._changes.append((partition, user, shown, merged))
        if held.awaited:
            held.awaited.discard(beats.life.node)
        if partition in self._recovering:
            self._recover(now, partition, held)

    def _audited(self, node: NodeId, source: bytes, beat: Beat) -> list[int]:
        """Return the partitions of which the sender has something else than we have from it."""
        mismatched: list[int] = []
        for audit in beat.audits:
            partitions = unpack_partitions(audit.partitions)
            owned = (self._held[partition] for partition in partitions if partition in self._owned)
            if not is_as_told(owned, node, source, audit):
                mismatched.extend(partitions)
        return mismatched

    # ---------------------------------------------------------------- vouching

    def _vouched(self, now: Instant, node: NodeId, beat: Beat) -> Beats:
        noted = self._vouching.heard(now, node, beat)
        if noted.replaced is not None:
            self._sweep.begin(noted.replaced.source, self._held)
        if noted.is_new:
            self._sweep.end(noted.beats.source)  # back from the dead: it will tell all again
            self._recheck()
        elif noted.has_newer_table:
            for partition in tuple(self._unclean):
                self._try_clean(partition)
        return noted.beats

    # ---------------------------------------------------------------- clean partitions

    def _try_clean(self, partition: int) -> None:
        """Make the partition clean if it can be (I5). To be asked again until it is."""
        held = self._held[partition]
        if self._showing.is_vouched_by_beats(held):
            self._unclean.discard(partition)
            self._clean[partition] = held.records.users
        else:
            self._unclean.add(partition)

    def _recheck(self) -> None:
        """Who vouches for what has changed everywhere: a life of an access node began, or was forgotten."""
        for partition in (*self._clean, *self._unclean):
            self._clean.pop(partition, None)
            self._try_clean(partition)

    # ---------------------------------------------------------------- forgetting

    def _sweep_out(self, now: Instant, at: Timestamp) -> None:
        self._sweep.expire(now, at, self._held)
        gone, is_over = self._sweep.step(now, at, self._held)
        self._changes += [(partition, *item, Merged.CLOSED) for partition, item in gone if partition in self._owned]
        if is_over:
            self._recheck()
