"""The publisher of an access node and owners that merge, over a channel that does its worst."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import Audit, Beat, BeatReply, SessionView, Stamp, pack_partitions, unpack_partitions
from status.core.partitions import PartitionTable, Take, diff
from status.core.publisher import BEAT_MS, RETRY_MS, Publisher
from status.core.records import Kind, conn_of, digest_of, kind_of, seq_of
from tests.status.core.test_publisher import GATE, LIFE, NOW, A, B, closed, opened, user_in

LEASE_MS = 2_700
NODES = (A, B, NodeId("c"))
FIRST = PartitionTable(Epoch(1), NODES, (1, 1, 1), (0, 1, 2, 0, 1))
USERS = [user_in(partition, of=5) for partition in (0, 0, 1, 2, 3, 4)]
SESSIONS = {f"s{number}": user for number, user in enumerate(USERS)}
Has = dict[int, dict[int, bytes]]


class Known:
    """What an owner knows of one partition, by connection."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.floor = -1

    def merge(self, entry: bytes) -> None:
        conn = conn_of(bytes(2) + entry)
        if kind_of(bytes(2) + entry) is Kind.CLOSED:
            self.ended.add(conn)
            self.entries.pop(conn, None)
        elif conn not in self.ended and (conn in self.entries or number_of(entry) > self.floor):
            self.entries[conn] = max(entry, self.entries.get(conn, b""))

    def replace(self, floor: int, entries: list[bytes]) -> None:
        for entry in entries:
            self.merge(entry)
        named = {conn_of(bytes(2) + entry) for entry in entries}
        for conn in [conn for conn, entry in self.entries.items() if conn not in named and number_of(entry) <= floor]:
            del self.entries[conn]
            self.ended.add(conn)
        self.floor = max(self.floor, floor)


def number_of(entry: bytes) -> int:
    return seq_of(bytes(2) + entry)


class Owner:
    """A status node, as dumb as can be: it merges what it is told of what it owns."""

    def __init__(self, node: NodeId, incarnation: int, table: PartitionTable) -> None:
        self.node = node
        self.incarnation = Incarnation(incarnation)
        self.table = table
        self.since: Instant | None = None
        self.known: dict[int, Known] = {}
        self.closed: set[int] = set()

    def heard(self, now: Instant, beat: Beat, tables: dict[Epoch, PartitionTable]) -> tuple[BeatReply, Has]:
        if beat.epoch > self.table.epoch:
            return BeatReply(False, Stamp(self.incarnation, now), self.table.epoch, 0), {}
        if self.since is None:
            self.since = now
        full = {partition: list[bytes]() for partition in unpack_partitions(beat.floors)}
        refused = {partition for partition in full if not self.takes(partition, beat.epoch)}
        for partition, entry in zip(unpack_partitions(beat.partitions), beat.entries, strict=True):
            if not self.takes(partition, beat.epoch):
                refused.add(partition)
            elif partition in full:
                full[partition].append(entry)
            else:
                self.known.setdefault(partition, Known()).merge(entry)
        for partition in full.keys() - refused:
            self.known.setdefault(partition, Known()).replace(beat.floor, full[partition])
        mismatched = [partition for audit in beat.audits for partition in self.differing(audit)]
        is_current = (beat.echo.incarnation, beat.echo.since) == (self.incarnation, self.since)
        is_current = is_current and beat.epoch == self.table.epoch
        answer = BeatReply(
            True,
            Stamp(self.incarnation, now, self.since),
            self.table.epoch,
            LEASE_MS if is_current else 0,
            pack_partitions(sorted(refused)),
            pack_partitions(mismatched),
            diff(tables[beat.epoch], self.table) if beat.epoch < self.table.epoch else None,
        )
        return answer, {partition: dict(known.entries) for partition, known in self.known.items()}

    def takes(self, partition: int, epoch: Epoch) -> bool:
        is_owner = self.table.owner(partition) == self.node and epoch >= self.table.owner_epoch(partition)
        return is_owner and partition not in self.closed

    def differing(self, audit: Audit) -> list[int]:
        partitions = unpack_partitions(audit.partitions).tolist()
        owned = [partition for partition in partitions if self.table.owner(partition) == self.node]
        has = [entry for one in owned if one in self.known for entry in self.known[one].entries.values()]
        return partitions if digest_of(has) != (audit.entries, audit.xor) else []


class OwnersOverBadChannel(RuleBasedStateMachine):
    """Beats and answers are lost, doubled and late; owners change, restart, forget and refuse.

    After quiet the owners have exactly what is open, and each session's newest change was confirmed. Before it, nothing
    is confirmed that its owner did not have, and where a partition is relied on, it had all of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.tables = {FIRST.epoch: FIRST}
        self.owners = {node: Owner(node, 1, FIRST) for node in NODES}
        self.publisher = Publisher(GATE, LIFE, Random(1), partitions=5)
        self.number = 0
        self.conns: dict[str, int] = {}
        self.ended: dict[str, set[int]] = {name: set() for name in SESSIONS}
        self.unconfirmed: set[str] = set()
        self.unconfirmed_ends: set[str] = set()
        self.in_flight: dict[NodeId, Beat] = {}
        self.sent: list[tuple[NodeId, Beat]] = []
        self.answers: list[tuple[NodeId, Beat, BeatReply, Has]] = []

    @property
    def table(self) -> PartitionTable:
        return self.tables[max(self.tables)]

    def open_now(self) -> dict[str, tuple[int, bytes]]:
        """What the publisher has, by session: partition and entry."""
        return {
            msgspec.msgpack.decode(entry[13:], type=SessionView).session: (partition, entry)
            for partition in range(5)
            for entry in self.publisher.sessions(partition)
        }

    # ------------------------------------------------------------ sessions

    @rule(name=st.sampled_from(sorted(SESSIONS)))
    def opens_or_changes(self, name: str) -> None:
        self.number += 1
        self.publisher.open(opened(name, self.number, user=SESSIONS[name]))
        conn = conn_of(bytes(2) + self.open_now()[name][1])
        assert self.conns.get(name, conn) == conn
        self.conns[name] = conn
        self.unconfirmed.add(name)

    @precondition(lambda self: self.conns)
    @rule(data=st.data())
    def closes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.conns)))
        self.ended[name].add(self.conns.pop(name))
        self.unconfirmed.discard(name)
        if self.publisher.table is not None:
            self.unconfirmed_ends.add(name)
        self.publisher.close(closed(name, self.number, user=SESSIONS[name]), Timestamp(1))

    # ------------------------------------------------------------ beats

    @rule(ms=st.sampled_from([0, 0, RETRY_MS, BEAT_MS]))
    def send(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        for node, beat in self.publisher.beats(self.now):
            assert node not in self.in_flight, "I1"
            self.in_flight[node] = beat
            self.sent.append((node, beat))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def deliver_beat(self, data: st.DataObject) -> None:
        """Any that was ever sent, the late ones too."""
        node, beat = self.sent[data.draw(st.integers(0, len(self.sent) - 1))]
        self.arrive(node, beat)

    @precondition(lambda self: self.sent)
    @rule()
    def deliver_newest(self) -> None:
        self.arrive(*self.sent[-1])

    def arrive(self, node: NodeId, beat: Beat) -> None:
        self.answers.append((node, beat, *self.owners[node].heard(self.now, beat, self.tables)))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def deliver_answer(self, data: st.DataObject) -> None:
        self.answer(*self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1))))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.publisher.failed(self.now, node, self.in_flight.pop(node))

    def answer(self, node: NodeId, beat: Beat, answer: BeatReply, has: Has) -> None:
        if self.in_flight.get(node) is beat:
            del self.in_flight[node]
        answered = self.publisher.answered(self.now, node, beat, answer)
        held = {entry for entries in has.values() for entry in entries.values()}
        conns = {conn_of(bytes(2) + entry) for entry in held}
        is_open = self.open_now()
        assert len(set(answered.opened)) == len(answered.opened)
        for name in answered.opened:
            assert is_open[name][1] in held, "I2"
            self.unconfirmed.discard(name)
        for name in answered.closed:
            self.unconfirmed_ends.discard(name)
            assert len(conns & self.ended[name]) < len(self.ended[name]), "I2"
        if answered.table is not None:
            self.publisher.adopt(self.now, answered.table)
        if answered.until > self.now:
            for partition in self.publisher.relies_on(node):
                assert set(has.get(partition, {}).values()) == set(self.publisher.sessions(partition)), "I3"

    # ------------------------------------------------------------ owners

    @rule(partition=st.integers(0, 4), node=st.sampled_from(NODES), is_copied=st.booleans())
    def partition_moves(self, partition: int, node: NodeId, *, is_copied: bool) -> None:
        source = self.owners[self.table.owner(partition)]
        newer = self.table.with_changes([Take(partition, node)])
        newer = newer if source.node == node else msgspec.structs.replace(newer, moves=())
        self.tables[newer.epoch] = newer
        known = source.known.pop(partition, Known())
        if is_copied:
            self.owners[node].known[partition] = known
        for owner in self.owners.values():
            owner.table = newer

    @rule()
    def publisher_reads_the_table(self) -> None:
        self.publisher.adopt(self.now, self.table)

    @rule(node=st.sampled_from(NODES))
    def owner_restarts(self, node: NodeId) -> None:
        old = self.owners[node]
        self.owners[node] = Owner(node, old.incarnation + 1, old.table)

    @rule(node=st.sampled_from(NODES))
    def owner_gives_us_up(self, node: NodeId) -> None:
        self.now = Instant(self.now + 1)
        self.owners[node].known.clear()
        self.owners[node].since = None

    @rule(node=st.sampled_from(NODES), closed=st.sets(st.integers(0, 4), max_size=2))
    def owner_refuses(self, node: NodeId, closed: set[int]) -> None:
        self.owners[node].closed = closed

    # ------------------------------------------------------------ what holds

    @rule()
    def calm_down(self) -> None:
        self.publisher_reads_the_table()
        for owner in self.owners.values():
            owner.closed = set()
        for node, beat in self.in_flight.items():
            self.publisher.failed(self.now, node, beat)
        self.in_flight.clear()
        for _ in range(12):
            self.send(2 * BEAT_MS)
            for node, beat in list(self.in_flight.items()):
                self.arrive(node, beat)
                self.answer(*self.answers.pop())
            self.publisher.check_invariants()
        assert self.publisher.table == self.table
        for partition in range(5):
            owner = self.owners[self.table.owner(partition)]
            has = owner.known.get(partition, Known()).entries.values()
            assert sorted(has) == sorted(self.publisher.sessions(partition))
            assert partition in self.publisher.relies_on(owner.node)
        assert not self.unconfirmed, "I2"
        assert not self.unconfirmed_ends, "I2"

    @invariant()
    def the_publisher_is_sound(self) -> None:
        self.publisher.check_invariants()
        assert set(self.open_now()) == set(self.conns)

    def teardown(self) -> None:
        self.calm_down()


TestOwnersOverBadChannel = OwnersOverBadChannel.TestCase
TestOwnersOverBadChannel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
