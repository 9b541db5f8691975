"""The actors of the resize history: a registry, status nodes that also lead, access nodes, and readers.

Each is the shell that a real service puts around the cores of the status cluster, without asyncio:

- the registry keeps one table, writes it by compare-and-set, a lock with a lease, and what operators want;
- a status node reads the registry before it does anything, asks all others for its serving lease, reports with that,
  pulls what moves to it, and leads while it holds the lock;
- an access node holds sessions, sends beats, and believes in its lease as it was told;
- a reader looks users up by the newest table that somebody showed to it.

`Guards` takes away one of the things that keep the answers right, to show that the referee would notice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import msgspec

from base.clock import Instant, Timestamp
from base.core.lease import HeldLease
from base.ids import Epoch, Incarnation, NodeId
from roadstead.sim.host import Host
from roadstead.sim.resize_messages import (
    Answering,
    Ask,
    Beating,
    Campaign,
    Elected,
    Given,
    Lookup,
    Operate,
    Read,
    Sign,
    Signed,
    TableIs,
    Wish,
    Write,
)
from status.api import REFUSED, Beat, BeatReply, Shown, pack_partitions
from status.core.faultpoints import crossed_by_all, crossed_by_node
from status.core.handoff import Chunk, Parking, Pull
from status.core.holding import Held, Role
from status.core.migration import Event, Migration, NodeReport, Progress, Reported, TableRead, View, Wished
from status.core.ownership import Ownership
from status.core.partitions import Move, PartitionTable, Stage, diff
from status.core.records import PartitionRecords
from status.core.serving import LeaderGrants, Promises, ServingLease
from status.core.vouching import LEASE_MS, Beats, Vouching

__all__ = ["Guards", "Registry", "StatusNode", "Watcher"]

TICK_MS = 100
ASK_MS = 400
LOCK_MS = 2_000


@dataclass(frozen=True, slots=True)
class Guards:
    """What keeps the answers right. All hold, but for the sensitivity test, which removes one at a time."""

    seal: bool = True
    """The source answers nothing and takes in nothing between its final digest and the commit."""
    epoch_check: bool = True
    """A node never goes back to an older table."""
    serving_lease: bool = True
    """An owner answers only with a serving lease."""
    tombstones: bool = True
    """Closed connections are remembered."""
    promise: bool = True
    """A node acknowledges no epoch while its grants at older ones last."""
    recovery_barrier: bool = True
    """Whoever takes a partition without a seal waits until the old owner can't answer."""
    recovery: bool = True
    """An owner without data says nothing of absent users before every access node told all."""
    echo: bool = True
    """A beat vouches from the answer that it echoes, not from when it arrived."""
    lock_is_lease: bool = True
    """A leader's own lease ends with its lock."""
    alone: bool = True
    """A target takes a partition's news when its source, which answers while it is sealed, can do so no more."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the name of each guard."""
        return tuple(guard.name for guard in fields(cls))

    def without(self, *names: str) -> Guards:
        """Return the guards with these removed."""
        return replace(self, **dict.fromkeys(names, False))


class Watcher(Protocol):
    """The referee, as a status node sees it."""

    def answered(self, node: StatusNode, partition: int, user: str, shown: Shown) -> None:
        """Check an answer at the instant at which it is given."""
        ...

    def acted(self, node: StatusNode) -> None:
        """Look at what the node serves after each of its calls."""
        ...

    def ran_ms(self, node: StatusNode) -> int:
        """Measure: how long the node ran so far, stalls not counted."""
        ...

    def unparked(self, waited_ms: int) -> None:
        """Check how long a request was parked."""
        ...

    def wrote(self, table: PartitionTable) -> None:
        """Take note of a table written to the registry."""
        ...


# ---------------------------------------------------------------- actors


@dataclass(slots=True)
class RegistryState:
    """What survives a registry's crash."""

    table: PartitionTable
    term: Epoch = Epoch(0)
    signed: tuple[Epoch, str] = (Epoch(0), "")
    """In which term somebody signed last that it leads, and who."""
    before: str = ""
    """Who did in the term before that one, if it was another one."""
    holder: tuple[str, Incarnation] = ("", Incarnation(0))
    held_until: Instant = Instant(0)
    wish: Wish = field(default_factory=Wish)

    def operate(self, order: Operate) -> None:
        """Take an operator's order into the wish."""
        before = self.wish.wished
        wished = Wished(
            before.weights if order.weights is None else dict(order.weights),
            before.is_paused if order.is_paused is None else order.is_paused,
            self.table.epoch if order.is_abort else before.abort,
        )
        if wished != before:
            self.wish = Wish(self.wish.number + 1, wished)


class Registry:
    """A linearizable register and a lock."""

    def __init__(self, host: Host, state: RegistryState, watcher: Watcher) -> None:
        self._host = host
        self._state = state
        self._watcher = watcher

    def start(self, now: Instant) -> None:
        """Count the lock's lease anew: how much of it was left is not known."""
        self._state.held_until = Instant(now + LOCK_MS)

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Answer; a write answers with what is in the register then, whose it may be."""
        state = self._state
        match message:
            case Campaign(number, incarnation):
                caller = (source, incarnation)
                if state.holder != caller:
                    if now < state.held_until:
                        return
                    state.holder, state.term = caller, Epoch(state.term + 1)
                state.held_until = Instant(now + LOCK_MS)
                self._host.send(source, Elected(number, incarnation, state.term))
            case Sign(number, incarnation, term):
                if (state.holder, state.term) == ((source, incarnation), term):
                    if state.signed != (term, source):
                        state.before = state.signed[1] if state.signed[1] != source else ""
                        state.signed = (term, source)
                    self._host.send(source, Signed(number, incarnation, term, state.before, state.table))
            case Write(expect, table):
                if state.table.epoch == expect:
                    table.check_structure()
                    state.table = table
                    self._watcher.wrote(table)
                self._host.send(source, TableIs(state.table, state.holder[0], state.wish))
            case Operate():
                state.operate(message)
            case _:
                self._host.send(source, TableIs(state.table, state.holder[0], state.wish))

    def wake(self, now: Instant) -> None:
        """Nothing is ever due."""

    def next_deadline(self) -> Instant | None:
        """Return None: a registry only answers."""
        return None


class _BlindMigration(Migration):
    """A leader that does not wait for the barrier: for the sensitivity test."""

    def _view(self, now: Instant, table: PartitionTable) -> View:
        view = super()._view(now, table)
        return replace(view, acknowledged=dict.fromkeys(view.acknowledged, Epoch(1 << 40)), grants_over=lambda _: True)


class _UnsealedOwnership(Ownership):
    """A source that goes on as if nothing were sealed: for the sensitivity test."""

    def role(self, now: Instant, partition: int) -> Role:
        role = super().role(now, partition)
        return Role.SERVING if role is Role.SEALED else role

    def _send(self, now: Instant, partition: int, held: Held, move: Move) -> None:
        stage = Stage.CATCHUP if move.stage is Stage.SEAL else move.stage
        super()._send(now, partition, held, msgspec.structs.replace(move, stage=stage))


class _CredulousVouching(Vouching):
    """A beat vouches from when it arrived: for the sensitivity test."""

    def vouches_until(self, beats: Beats, beat: Beat) -> Instant:
        del beat
        return Instant(beats.heard_at + self._deaf_ms + self.vouch_ms)


class _CredulousOwnership(Ownership):
    vouching_kind = _CredulousVouching


_KINDS = {(True, True): Ownership, (False, True): _UnsealedOwnership, (True, False): _CredulousOwnership}


class StatusNode:
    """A status node's shell."""

    def __init__(self, host: Host, guards: Guards, access: tuple[NodeId, ...], watcher: Watcher) -> None:
        self._host = host
        self._guards = guards
        self._access = access
        self._watcher = watcher
        self._due = self._ask_at = Instant(0)
        self.node = NodeId(host.name)
        self.lease = ServingLease(self.node)
        self.ownership: Ownership
        self._promises: Promises
        self._parking: dict[int, Parking[tuple[int, str, Lookup]]] = {}
        self._is_registered = False
        self._leader = ""
        self._wish = Wish()
        self._answers: dict[NodeId, int] = {}
        self._lock = HeldLease()
        self._campaigns: dict[int, Instant] = {}
        self._grants: LeaderGrants | None = None
        self._migration: Migration | None = None
        self._heard_access: dict[NodeId, tuple[Instant, Epoch]] = {}
        self._tables: dict[Epoch, PartitionTable] = {}

    def start(self, now: Instant) -> None:
        """Read the registry first: what a node finds out otherwise may be older than its former life's promises."""
        self._due = self._ask_at = now
        self._promises = Promises(now, is_first_life=self._host.incarnation == 1)
        keeps = self._guards.tombstones
        self.ownership = _KINDS[self._guards.seal, self._guards.echo](
            self.node,
            self._host.incarnation,
            self._access if self._guards.recovery else (),
            is_leased=lambda at, table: not self._guards.serving_lease or self.lease.is_valid(at, table),
            new_store=lambda: PartitionRecords(keeps_tombstones=keeps),
        )
        self._host.send("registry", Read())

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Step the cores with what came."""
        self.ownership.step(now)
        if isinstance(message, TableIs):
            self._is_registered = self._is_registered or source == "registry"
            self._leader = message.leader or self._leader
            self._wish = max(self._wish, message.wish, key=lambda wish: wish.number)
            if self._is_registered:
                self._adopt(now, message.table, is_registered=source == "registry")
        elif self._is_registered:
            self._received(now, source, message)
        self._watcher.acted(self)

    def wake(self, now: Instant) -> None:
        """Do what is done regularly."""
        self._due = Instant(now + TICK_MS)
        self.ownership.step(now)
        if not self._is_registered:
            self._host.send("registry", Read())
            return
        for parking in self._parking.values():
            for parked_at, _, _ in parking.expire(now):
                self._watcher.unparked(self._watcher.ran_ms(self) - parked_at)
        for target, pull in self.ownership.pulls(now):
            self._host.send(target, pull)
        if now >= self._ask_at:
            self._ask_at = Instant(now + ASK_MS)
            self._ask(now)
        self._lead(now)
        self._watcher.acted(self)

    def next_deadline(self) -> Instant | None:
        """Return the next tick, or when somebody has been parked long enough."""
        deadlines = [parking.next_deadline() for parking in self._parking.values()]
        return min([self._due, *(deadline for deadline in deadlines if deadline is not None)])

    def _received(self, now: Instant, source: str, message: object) -> None:
        match message:
            case Ask():
                self._asked(now, source, message)
            case Given():
                self._given(now, source, message)
            case Elected() | Signed() if message.incarnation == self._host.incarnation:
                self._campaigned(now, message)
            case Beating():
                self._beat(now, source, message)
            case Lookup():
                self._lookup(now, source, message, parked_at=None)
            case Pull():
                chunk = self.ownership.pulled(now, message)
                if chunk is not None:
                    self._host.send(source, chunk)
            case Chunk():
                self._answers[NodeId(source)] = self._answers.get(NodeId(source), 0) + 1
                self.ownership.received(now, message)
                for move in self.ownership.incoming() if not self._guards.alone else ():
                    move.alone_from = Instant(0)
            case _:
                pass

    # ------------------------------------------------------------ tables and leases

    def _adopt(self, now: Instant, table: PartitionTable, *, is_registered: bool) -> None:
        if not self._guards.epoch_check:
            self.ownership.table = None
        since = self.ownership.table.epoch if self.ownership.table is not None else Epoch(0)
        if table.epoch > since:
            for point in crossed_by_node(since, table, self.node):
                self._host.reach(point)
            if is_registered and self._migration is not None:
                for point in crossed_by_all("leader", since, table):
                    self._host.reach(point)
        if self.ownership.adopt(now, table):
            self._tables[table.epoch] = table
            self._promises.adopt(table.epoch)
            for parking in self._parking.values():
                for parked_at, source, lookup in parking.release(lambda _: False):
                    self._lookup(now, source, lookup, parked_at=parked_at)
            self._ask_at = now
            if is_registered and self._migration is not None:
                for node in table.nodes:
                    if node != self.node:
                        self._host.send(node, TableIs(table))
        if is_registered and self._migration is not None:
            self._run(now, TableRead(table))

    def _ask(self, now: Instant) -> None:
        assert self.ownership.table is not None
        self._host.send("registry", Read())
        number = self.lease.ask(now)
        self._campaigns[number] = now
        self._host.send("registry", Campaign(number, self._host.incarnation))
        report, needs_peers = self._report(now), self.lease.needs_peers(now)
        others = {*self.ownership.table.nodes, *self.ownership.table.former, self._leader} - {self.node, ""}
        for node in sorted(others):
            self._host.send(node, Ask(number, self.ownership.table.epoch, report, needs_peers))

    def _report(self, now: Instant) -> NodeReport:
        progress: dict[tuple[int, Epoch], Progress] = {}
        for move in self.ownership.incoming():
            if not self._guards.seal and move.is_caught_up:
                move.is_ready = True
            key = (move.partition, move.move_id)
            if move.is_ready:
                progress[key] = Progress.READY
            elif move.is_caught_up:
                progress[key] = Progress.CAUGHT_UP
            elif move.is_copied:
                progress[key] = Progress.COPIED
        table = self.ownership.table
        assert table is not None
        return NodeReport(
            self.node,
            self._host.incarnation,
            self._promises.acknowledged(now) if self._guards.promise else table.epoch,
            progress,
            frozenset(self.ownership.incomplete(now)),
            {node: epoch for node, (until, epoch) in self._heard_access.items() if now < until},
            dict(self._answers),
        )

    def _asked(self, now: Instant, source: str, ask: Ask) -> None:
        table = self.ownership.table
        assert table is not None
        term = None
        if self._grants is not None and self._lock.is_valid(now):
            if self._grants.grant(now, NodeId(source), ask.epoch, table):
                term = self._grants.term
            self._run(now, Reported(ask.report))
            self._run(now, self._wish.wished)
        newer = table if ask.epoch < table.epoch else None
        self._promises.has_read(NodeId(source), ask.epoch)
        is_granted = ask.needs_peers and self._promises.grant(now, NodeId(source), ask.epoch)
        self._host.send(source, Given(ask.number, ask.report.incarnation, table.epoch, is_granted, term, newer))

    def _given(self, now: Instant, source: str, given: Given) -> None:
        if given.incarnation != self._host.incarnation:
            return
        self._promises.has_read(NodeId(source), given.epoch)
        if given.is_granted:
            self.lease.granted_by_peer(given.number, NodeId(source), given.epoch)
        if given.term is not None:
            self.lease.granted_by_leader(given.number)
        if given.table is not None:
            self._adopt(now, given.table, is_registered=False)

    # ------------------------------------------------------------ leading

    def _campaigned(self, now: Instant, message: Elected | Signed) -> None:
        match message:
            case Elected(number, _, term):
                self._elected(number, term)
            case Signed(number, _, term, last, table):
                self._signed(now, number, term, NodeId(last))
                self._adopt(now, table, is_registered=True)  # by an older one it could grant what another node has

    def _elected(self, number: int, term: Epoch) -> None:
        asked_at = self._campaigns.get(number)
        if asked_at is None:
            return
        if term != self._lock.epoch:
            if self._guards.lock_is_lease:
                held = HeldLease()
                held.granted(asked_at, term, LOCK_MS)
                self.lease.elected(held.valid_until() or asked_at)
            self._host.send("registry", Sign(number, self._host.incarnation, term))
        else:
            self._lock.granted(asked_at, term, LOCK_MS)

    def _signed(self, now: Instant, number: int, term: Epoch, last: NodeId) -> None:
        asked_at = self._campaigns.get(number)
        if asked_at is None or term == self._lock.epoch:
            return
        self._lock.granted(asked_at, term, LOCK_MS)
        if self._lock.epoch != term:
            return  # a late answer
        self._grants = LeaderGrants(now, term, last or None)
        over = self._grants.is_over
        blind = not self._guards.recovery_barrier
        self._migration = (_BlindMigration if blind else Migration)(now, grants_over=over, predecessor=last or None)

    def _lead(self, now: Instant) -> None:
        self._campaigns = {number: at for number, at in self._campaigns.items() if now < at + LOCK_MS}
        if self._grants is None or self._migration is None or not self._lock.is_valid(now):
            return
        table = self.ownership.table
        assert table is not None
        if self._grants.grant(now, self.node, table.epoch, table):
            if self._guards.lock_is_lease:
                self.lease.leads(self._lock.valid_until() or now)
            else:
                self.lease.granted_by_leader(self.lease.ask(now))
        self._run(now, Reported(self._report(now)))
        self._run(now, self._wish.wished)

    def _run(self, now: Instant, event: Event) -> None:
        if self._migration is None or not self._lock.is_valid(now):
            return
        for write in self._migration.step(now, event):
            self._host.send("registry", Write(write.expect, write.table))

    # ------------------------------------------------------------ beats and lookups

    def _beat(self, now: Instant, source: str, beating: Beating) -> None:
        table = self.ownership.table
        assert table is not None
        beat, node = beating.beat, NodeId(source)
        heard = self.ownership.heard(now, node, beat, Timestamp(1))
        if beat.epoch > table.epoch:
            self._host.send("registry", Read())
        self._heard_access[node] = (Instant(now + LEASE_MS), beat.epoch)
        reply = BeatReply(
            heard.is_heard,
            self.ownership.stamp(now, node),
            table.epoch,
            self.ownership.left_ms(now, node, beat.incarnation, beat.epoch),
            pack_partitions(heard.refused),
            pack_partitions(heard.mismatched),
            diff(self._tables[beat.epoch], table) if beat.epoch < table.epoch and beat.epoch in self._tables else None,
        )
        self._host.send(source, Answering(beating.number, beat.incarnation, reply))

    def _lookup(self, now: Instant, source: str, lookup: Lookup, *, parked_at: int | None) -> None:
        if parked_at is not None:
            self._watcher.unparked(self._watcher.ran_ms(self) - parked_at)
        table = self.ownership.table
        assert table is not None
        if lookup.epoch > table.epoch:
            self._host.send("registry", Read())
            return  # ahead: read the newer table before answering; the reader asks again
        role = self.ownership.role(now, lookup.partition)
        if role is Role.SEALED and parked_at is None:
            self._parking.setdefault(lookup.partition, Parking()).park(
                now, (self._watcher.ran_ms(self), source, lookup)
            )
        else:
            (shown,) = self.ownership.lookup(now, [lookup.partition], [lookup.user])
            if shown is not REFUSED:
                self._watcher.answered(self, lookup.partition, lookup.user, shown)
        if table.epoch > lookup.epoch:
            self._host.send(source, TableIs(table))
