"""Two status nodes, two access nodes, and a referee who knows what everybody believes."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import REFUSED, UNKNOWN_SHOWN, Beat, BeatReply, Closed, Opened, SessionView, Shown
from status.api import pack_partitions as pack
from status.core.ownership import Ownership
from status.core.partitions import Advance, Begin, Change, End, PartitionTable, Stage, Take, diff, partition_of
from status.core.publisher import Publisher
from status.core.records import body_of
from tests.status.core.status_node import (
    GATE,
    GRACE_MS,
    OTHER,
    SEEN,
    A,
    B,
    at,
    slow,
)

FIRST = PartitionTable(Epoch(1), (A, B), (1, 1), (0, 1, 0))
GATES = (GATE, OTHER)
USERS = [
    next(user for user in (f"u{number}" for number in range(1_000)) if partition_of(user) % 3 == partition)
    for partition in (0, 0, 1, 2)
]
NEXT = {
    Stage.PREPARE: Stage.COPY,
    Stage.COPY: Stage.CATCHUP,
    Stage.CATCHUP: Stage.SEAL,
    Stage.SEAL: Stage.COMMIT,
    Stage.COMMIT: Stage.CLEANUP,
}


class Cluster(RuleBasedStateMachine):
    """Beats get lost, owners change, sleep and restart, access nodes restart; lawful tables, read by who has a lease.

    Nobody is offline whom the access node believes to be shown, and nobody is shown whose end was confirmed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = at(0)
        self.table = FIRST
        self.asleep: set[NodeId] = set()
        self.lives = dict.fromkeys((A, B, *GATES), 1)
        self.number = 0
        self.nodes: dict[NodeId, Ownership] = {}
        self.publishers: dict[NodeId, Publisher] = {}
        self.open: dict[NodeId, dict[str, Opened]] = {}
        self.confirmed: dict[NodeId, set[str]] = {}
        self.believed: dict[NodeId, dict[int, Instant]] = {}
        self.ended: set[str] = set()
        self.late: list[tuple[NodeId, NodeId, Beat]] = []
        for node in (A, B):
            self.start_node(node)
        for gate in GATES:
            self.start_gate(gate)

    def start_node(self, node: NodeId) -> None:
        self.nodes[node] = Ownership(
            node, Incarnation(self.lives[node]), GATES, is_leased=lambda *_: node not in self.asleep
        )
        self.nodes[node].adopt(self.now, self.table)
        self.nodes[node].step(self.now)

    def start_gate(self, gate: NodeId) -> None:
        self.publishers[gate] = Publisher(gate, Incarnation(self.lives[gate]), Random(1), partitions=3)
        self.publishers[gate].adopt(self.now, self.table)
        self.open[gate], self.confirmed[gate], self.believed[gate] = {}, set(), {}

    def write(self, *made: Change) -> None:
        self.table = self.table.with_changes(made)
        for node in self.nodes.keys() - self.asleep:
            self.nodes[node].adopt(self.now, self.table)

    def awake(self) -> list[tuple[NodeId, Ownership]]:
        return [(node, core) for node, core in self.nodes.items() if node not in self.asleep]

    # ------------------------------------------------------------ access nodes

    @rule(gate=st.sampled_from(GATES), user=st.sampled_from(USERS))
    def opens(self, gate: NodeId, user: str) -> None:
        self.number += 1
        one = Opened(user, f"s{self.number}", self.number, "phone", "ios", "online", Timestamp(7))
        self.open[gate][one.session] = one
        self.publishers[gate].open(one)

    @rule(gate=st.sampled_from(GATES), data=st.data())
    def closes(self, gate: NodeId, data: st.DataObject) -> None:
        if self.open[gate]:
            one = self.open[gate].pop(data.draw(st.sampled_from(sorted(self.open[gate]))))
            self.confirmed[gate].discard(one.session)
            self.publishers[gate].close(Closed(one.user, one.session, one.conn_seq), SEEN)

    @rule(gate=st.sampled_from(GATES), fate=st.sampled_from(["well", "well", "well", "lost", "answer lost"]))
    def talks(self, gate: NodeId, fate: str) -> None:
        publisher = self.publishers[gate]
        for node, beat in publisher.beats(self.now):
            self.late.append((gate, node, beat))
            answer = self.arrive(gate, node, beat) if fate != "lost" and node not in self.asleep else None
            if answer is None or fate == "answer lost":
                publisher.failed(self.now, node, beat)
                continue
            answered = publisher.answered(self.now, node, beat, answer)
            if answered.table is not None:
                publisher.adopt(self.now, answered.table)
            assert set(answered.opened) <= set(self.open[gate])
            self.confirmed[gate].update(answered.opened)
            self.ended.update(answered.closed)
            for partition in publisher.relies_on(node) if answered.until > self.now else ():
                self.believed[gate][partition] = max(self.believed[gate].get(partition, self.now), answered.until)
        publisher.check_invariants()

    def arrive(self, gate: NodeId, node: NodeId, beat: Beat) -> BeatReply:
        core = self.nodes[node]
        core.step(self.now)
        heard = core.heard(self.now, gate, beat)
        core.check_invariants()
        publisher_table = self.publishers[gate].table
        assert publisher_table is not None
        return BeatReply(
            heard.is_heard,
            core.stamp(self.now, gate),
            self.table.epoch,
            core.left_ms(self.now, gate, beat.incarnation, beat.epoch),
            pack(heard.refused),
            pack(heard.mismatched),
            diff(publisher_table, self.table) if publisher_table.epoch < self.table.epoch else None,
        )

    @rule(data=st.data())
    def a_late_beat_comes(self, data: st.DataObject) -> None:
        if self.late:
            gate, node, beat = self.late[-1 - data.draw(st.integers(0, min(9, len(self.late) - 1)))]
            if node not in self.asleep and beat.incarnation == self.lives[gate]:
                self.arrive(gate, node, beat)

    @rule(gate=st.sampled_from(GATES))
    def gate_restarts(self, gate: NodeId) -> None:
        self.lives[gate] += 1
        self.start_gate(gate)

    # ------------------------------------------------------------ status nodes

    @rule(ms=st.sampled_from([10, 60, 400, 1_000, GRACE_MS]))
    def time_passes(self, ms: int) -> None:
        self.now = Instant(self.now + ms)

    @rule(partition=st.integers(0, 2), what=st.sampled_from(["on", "on", "on", "on", "abort", "take"]))
    def partition_moves(self, partition: int, what: str) -> None:
        move = self.table.moves_by_partition().get(partition)
        target = B if self.table.owner(partition) == A else A
        if what == "take":
            self.write(Take(partition, target))
        elif move is None:
            self.write(Begin(partition, target))
        elif move.stage in {Stage.CLEANUP, Stage.RECOVER} or (what == "abort" and move.stage is not Stage.COMMIT):
            self.write(End(partition))
        elif self.is_ready_for(partition, NEXT[move.stage], move.target):
            self.write(Advance(partition, NEXT[move.stage]))

    def is_ready_for(self, partition: int, stage: Stage, target: NodeId) -> bool:
        if stage not in {Stage.CATCHUP, Stage.SEAL, Stage.COMMIT}:
            return True
        found = [move for move in self.nodes[target].incoming() if move.partition == partition]
        said = {Stage.CATCHUP: "is_copied", Stage.SEAL: "is_caught_up", Stage.COMMIT: "is_ready"}
        return target not in self.asleep and all(getattr(move, said[stage]) for move in found) and bool(found)

    @rule()
    def copies(self) -> None:
        for _, core in self.awake():
            core.step(self.now)
            for source, pull in core.pulls(self.now):
                chunk = self.nodes[source].pulled(self.now, pull) if source not in self.asleep else None
                if chunk is not None:
                    core.received(self.now, chunk)

    @rule(node=st.sampled_from([A, B]))
    def node_sleeps_or_wakes(self, node: NodeId) -> None:
        """Without a lease it reads nothing either."""
        if node in self.asleep:
            self.asleep.remove(node)
            self.nodes[node].adopt(self.now, self.table)
        else:
            self.asleep.add(node)
            self.nodes[node].step(self.now)

    @rule(node=st.sampled_from([A, B]))
    def node_restarts(self, node: NodeId) -> None:
        self.lives[node] += 1
        self.asleep.discard(node)
        self.start_node(node)

    # ------------------------------------------------------------ what holds

    @invariant()
    def the_referee_agrees(self) -> None:
        for node, core in self.nodes.items():
            core.step(self.now)
            core.check_invariants()
            for user in USERS:
                partition = partition_of(user) % 3
                (shown,) = core.lookup(self.now, [partition], [user])
                assert shown == slow(core, self.now, partition, user), "I5"
                if shown is not REFUSED:
                    assert node == self.table.owner(partition), "I1"
                    self.judge(user, partition, shown)

    def judge(self, user: str, partition: int, shown: Shown) -> None:
        entries = shown if isinstance(shown, tuple) else (shown,) if isinstance(shown, bytes) else ()
        names = {msgspec.msgpack.decode(body_of(one), type=SessionView).session for one in entries}
        assert not names & self.ended
        if shown is UNKNOWN_SHOWN:
            return
        for gate in GATES:
            if self.now < self.believed[gate].get(partition, self.now):
                expected = {name for name in self.confirmed[gate] if self.open[gate][name].user == user}
                assert not expected or names, "I3"

    @rule()
    def calm_down(self) -> None:
        self.asleep.clear()
        for partition in [move.partition for move in self.table.moves if move.stage is not Stage.COMMIT]:
            self.write(End(partition))
        for core in self.nodes.values():
            core.adopt(self.now, self.table)
        for _ in range(24):
            self.time_passes(500)
            for gate in GATES:
                self.talks(gate, "well")
            self.the_referee_agrees()
        for user in USERS:
            partition = partition_of(user) % 3
            core = self.nodes[self.table.owner(partition)]
            assert partition in core._clean
            (shown,) = core.lookup(self.now, [partition], [user])
            entries = shown if isinstance(shown, tuple) else (shown,) if isinstance(shown, bytes) else ()
            names = [msgspec.msgpack.decode(body_of(one), type=SessionView).session for one in entries]
            is_open = [one for gate in GATES for one in self.open[gate].values() if one.user == user]
            assert sorted(names) == sorted(one.session for one in is_open)
        assert all(set(self.open[gate]) == self.confirmed[gate] for gate in GATES)

    def teardown(self) -> None:
        self.calm_down()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
