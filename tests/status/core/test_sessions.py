"""The session table: examples by invariant, then a state machine against a flat set with an obviously right rule."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from base.clock import Instant, Timestamp
from base.ids import NodeId
from status.api import OFFLINE, UNKNOWN, Beat, Closed, Delta, Opened, SessionView, State, UserStatus
from status.core.sessions import FORGET_SESSIONS, BeatOutcome, SessionTable

LEASE_MS = 3_000

APPLIED = BeatOutcome()
RESYNC = BeatOutcome(needs_resync=True)
FENCED = BeatOutcome(is_fenced=True)


def at(ms: int) -> Instant:
    return Instant(ms)


def opened(user: str = "u", session: str = "s", conn_seq: int = 1, *, state: State = "online") -> Opened:
    return Opened(user, session, conn_seq, "phone", "ios", state, Timestamp(7))


def closed(user: str = "u", session: str = "s", conn_seq: int = 1) -> Closed:
    return Closed(user, session, conn_seq)


def beat(
    seq: int, *deltas: Delta, node: str = "a", life: int = 1, generation: int = 1, is_complete: bool = True
) -> Beat:
    return Beat(node, life, generation, seq, is_complete, 1, list(deltas))


def view(session: str = "s", *, node: str = "a", state: State = "online") -> SessionView:
    return SessionView(session, "phone", "ios", node, state, Timestamp(7))


def look(table: SessionTable, now: int, user: str = "u") -> UserStatus:
    (status,) = table.lookup(at(now), [user])
    return status


@pytest.fixture
def table() -> SessionTable:
    """A table that knows all of access node `a`: user `u` with session `s`."""
    table = SessionTable(lease_ms=LEASE_MS)
    assert table.beat(at(0), beat(1, opened())) == APPLIED
    return table


# ---------------------------------------------------------------- the dead


def test_a_large_dead_node_is_invisible_at_once_and_forgotten_bit_by_bit():
    """I1 holds at the instant its lease ends, however many sessions there are to drop."""
    table = SessionTable(lease_ms=LEASE_MS)
    many = FORGET_SESSIONS * 2 + 1
    table.beat(at(0), beat(1, *(opened(f"u{n}", f"s{n}", n) for n in range(many))))
    table.beat(at(0), beat(1, opened("u0", "other"), node="b"))
    assert table.statistics()["users"] == many
    table.beat(at(LEASE_MS - 1), beat(2, node="b"))
    assert look(table, LEASE_MS, "u1") == OFFLINE
    table.check_invariants()
    assert table.statistics()["users"] == many - FORGET_SESSIONS + 1  # u0 has another session
    assert look(table, LEASE_MS, "u0") == UserStatus("online", (view("other", node="b"),))
    assert look(table, LEASE_MS, f"u{many - 1}") == OFFLINE
    table.check_invariants()
    assert table.statistics()["users"] == 1


def test_a_dying_session_that_is_opened_elsewhere_lives():
    """It moved to another node before its old one was forgotten; what is left of the old one cannot take it along."""
    table = SessionTable(lease_ms=LEASE_MS)
    many = FORGET_SESSIONS + 2
    table.beat(at(0), beat(1, *(opened(f"u{n}", f"s{n}", n) for n in range(many))))
    table.expire(at(LEASE_MS))
    left = f"u{many - 1}", f"s{many - 1}"
    table.beat(at(LEASE_MS), beat(1, opened(*left), node="b"))
    table.check_invariants()
    table.expire(at(LEASE_MS + 1))
    assert look(table, LEASE_MS + 1, left[0]) == UserStatus("online", (view(left[1], node="b"),))
    table.check_invariants()


def test_two_sessions_of_one_user_die_one_by_one():
    """The other one is still there."""
    table = SessionTable(lease_ms=LEASE_MS)
    table.beat(
        at(0), beat(1, *(opened(f"u{n}", f"s{n}", n) for n in range(FORGET_SESSIONS)), opened("u", "one", 9_999))
    )
    table.beat(at(0), beat(1, opened("u", "two"), node="b"))
    table.beat(at(LEASE_MS - 1), beat(2, node="b"))
    assert look(table, LEASE_MS, "u") == UserStatus("online", (view("two", node="b"),))
    table.check_invariants()


# ---------------------------------------------------------------- who is online


def test_a_reported_session_is_shown(table: SessionTable):
    """With its device, platform, node and times; a user that nobody reported is offline."""
    assert table.lookup(at(1), ["u", "v"]) == [UserStatus("online", (view(),)), OFFLINE]


def test_everybody_is_offline_at_the_instant_the_lease_ends(table: SessionTable):
    """I1, to the millisecond, whatever the number of users."""
    assert look(table, 2_999).state == "online"
    assert look(table, 3_000) == OFFLINE
    assert table.statistics()["users"] == 0


def test_one_empty_beat_keeps_all_of_a_node_online(table: SessionTable):
    """No user is written again."""
    table.beat(at(2_000), beat(2))
    assert look(table, 4_999).state == "online"
    assert look(table, 5_000) == OFFLINE


def test_a_closed_session_is_gone(table: SessionTable):
    """And its user with it, if it was the last one."""
    table.beat(at(1), beat(2, opened(session="t", conn_seq=2)))
    table.beat(at(2), beat(3, closed()))
    assert look(table, 2) == UserStatus("online", (view("t"),))
    table.beat(at(3), beat(4, closed(session="t", conn_seq=2)))
    assert look(table, 3) == OFFLINE


def test_a_user_shows_the_best_state_of_its_sessions_on_all_nodes(table: SessionTable):
    """Busy before online before away before invisible."""
    expected = {"invisible": "online", "away": "online", "busy": "busy"}
    for number, (state, best) in enumerate(expected.items(), start=1):
        # Each from another node, so that one is added at a time.
        delta = opened(session=f"s{number}", state=state)  # type: ignore[arg-type]
        table.beat(at(number), beat(1, delta, node=f"b{number}"))
        assert look(table, number).state == best
    table.beat(at(10), beat(2, closed()))
    table.beat(at(10), beat(2, closed(session="s3"), node="b3"))
    assert look(table, 10).state == "away"
    assert [one.node for one in look(table, 10).sessions] == ["b1", "b2"]


def test_one_dead_node_takes_only_its_own_sessions_along(table: SessionTable):
    """I1 is per access node."""
    table.beat(at(1_000), beat(1, opened(session="t"), node="b"))
    assert len(look(table, 2_999).sessions) == 2
    assert look(table, 3_000) == UserStatus("online", (view("t", node="b"),))


def test_a_session_may_change_its_state(table: SessionTable):
    """The same conn_seq again."""
    table.beat(at(1), beat(2, opened(state="busy")))
    assert look(table, 1) == UserStatus("busy", (view(state="busy"),))


def test_the_greatest_conn_seq_wins(table: SessionTable):
    """I2, for openings and closings."""
    table.beat(at(1), beat(2, opened(conn_seq=5, state="busy"), opened(conn_seq=4, state="away"), closed(conn_seq=3)))
    assert look(table, 1).state == "busy"


def test_closing_what_is_not_open_is_no_error(table: SessionTable):
    """Its opening and its closing met in the sender's queue, or a resync came between."""
    assert table.beat(at(1), beat(2, closed(session="t"), closed(user="v"), closed("v", "t"))) == APPLIED
    assert look(table, 1).state == "online"


def test_the_last_report_decides_whose_a_session_is(table: SessionTable):
    """I4: a session is one user's at one node, and nothing stays behind when its node goes."""
    table.beat(at(0), beat(1, opened(), node="b"))
    assert look(table, 0) == UserStatus("online", (view(node="b"),))
    assert table.beat(at(0), beat(2, closed())) == APPLIED  # no longer this node's to close
    table.check_invariants()
    table.beat(at(1), beat(2, opened("v"), node="b"))
    table.check_invariants()
    assert (look(table, 1), look(table, 1, "v").state) == (OFFLINE, "online")
    assert table.lookup(at(4_000), ["u", "v"]) == [OFFLINE, OFFLINE]
    assert table.statistics()["sessions"] == 0


# ---------------------------------------------------------------- beats: repeats, gaps, generations


def test_a_repeat_changes_nothing_but_renews(table: SessionTable):
    """Its reply was lost, so it comes again as it was."""
    table.beat(at(1), beat(2, closed()))
    assert table.beat(at(1_000), beat(2, closed())) == APPLIED
    assert look(table, 1_000) == OFFLINE
    assert not table.beat(at(3_999), beat(3)).needs_resync


def test_a_gap_asks_for_everything(table: SessionTable):
    """And what is known stays shown meanwhile."""
    assert table.beat(at(1), beat(3, closed())) == RESYNC
    assert look(table, 1).state == "online"


def test_a_beat_of_the_middle_of_an_unknown_generation_asks_for_everything(table: SessionTable):
    """An older one as well: it was on the way for long."""
    table.beat(at(1), beat(1, opened(), generation=3))
    assert table.beat(at(1), beat(2, closed(), generation=2)) == RESYNC
    assert table.beat(at(1), beat(2, closed(), generation=4)) == RESYNC
    assert look(table, 1).state == "online"


def test_a_new_generation_drops_what_it_does_not_mention_when_it_is_complete(table: SessionTable):
    """And not before, so that nobody flickers."""
    table.beat(at(0), beat(2, opened("v", "t", 2)))
    assert table.beat(at(1), beat(1, opened(), generation=2, is_complete=False)) == APPLIED
    assert [status.state for status in table.lookup(at(1), ["u", "v"])] == ["online", "online"]
    assert table.beat(at(2), beat(2, generation=2)) == APPLIED
    assert table.lookup(at(2), ["u", "v"]) == [UserStatus("online", (view(),)), OFFLINE]


def test_a_beat_that_only_carries_many_changes_is_not_a_new_synchronisation(table: SessionTable):
    """Once complete, a generation stays so."""
    assert table.beat(at(1), beat(2, is_complete=False)) == APPLIED
    assert not table.is_recovering


def test_a_sender_that_began_anew_under_old_numbers_is_not_taken_for_a_repeat(table: SessionTable):
    """It forgot its generation, as after a change of routes; it is asked until it has a new one."""
    table.beat(at(1), beat(2))
    assert table.beat(at(2), beat(1, opened("v", "t", 2))) == RESYNC
    assert table.beat(at(2), beat(1, opened("v", "t", 2), generation=2)) == APPLIED
    assert table.lookup(at(2), ["u", "v"]) == [OFFLINE, UserStatus("online", (view("t"),))]


def test_after_its_lease_ended_a_node_must_tell_everything_again(table: SessionTable):
    """Its next beat is in the middle of a generation that is no longer known."""
    assert table.beat(at(3_000), beat(2)) == RESYNC
    assert look(table, 3_000) == UNKNOWN
    assert table.beat(at(3_001), beat(1, opened(), generation=2)) == APPLIED
    assert look(table, 3_001).state == "online"


def test_what_is_left_of_a_generation_after_the_lease_does_not_begin_it_anew(table: SessionTable):
    """I3: a repeat of the first beat, late by more than a lease, would make a liar of the table."""
    table.beat(at(0), beat(2, opened("v", "t", 2)))
    assert table.beat(at(3_000), beat(1, opened())) == RESYNC
    assert table.lookup(at(3_000), ["u", "v"]) == [UNKNOWN, UNKNOWN]


def test_a_newer_life_drops_the_sessions_of_the_older_one_at_once(table: SessionTable):
    """I1; until it told everything, whoever is missing is unknown."""
    table.beat(at(1), beat(1, opened("v", "t"), life=2, is_complete=False))
    assert [status.state for status in table.lookup(at(1), ["u", "v"])] == ["unknown", "online"]
    table.beat(at(2), beat(2, life=2))
    assert look(table, 2) == OFFLINE


def test_an_older_life_is_fenced_for_good(table: SessionTable):
    """What it still has on the way changes nothing, even after the newer one's lease."""
    table.beat(at(1), beat(1, life=2))
    assert table.beat(at(2), beat(2, opened())) == FENCED
    assert table.beat(at(9_000), beat(3, opened())) == FENCED
    assert look(table, 9_000) == OFFLINE


# ---------------------------------------------------------------- I3: unknown is not offline


def test_nobody_is_offline_while_an_awaited_node_may_know_better():
    """I3 after a restart of the table: for a lease's time, then the node is gone for good."""
    table = SessionTable(lease_ms=LEASE_MS)
    table.await_nodes(at(0), [NodeId("a"), NodeId("b")])
    table.beat(at(1), beat(1, opened()))
    assert table.is_recovering
    assert table.lookup(at(2_999), ["u", "v"]) == [UserStatus("online", (view(),)), UNKNOWN]
    assert table.lookup(at(3_000), ["v"]) == [OFFLINE]
    assert not table.is_recovering


def test_the_wait_is_over_when_the_awaited_nodes_told_everything():
    """I3: each of them, in however many beats."""
    table = SessionTable(lease_ms=LEASE_MS)
    table.await_nodes(at(0), [NodeId("a")])
    table.beat(at(1), beat(1, is_complete=False))
    assert look(table, 1) == UNKNOWN
    table.beat(at(2), beat(2))
    assert look(table, 2) == OFFLINE


def test_a_node_that_is_known_is_not_awaited(table: SessionTable):
    """It has told everything already."""
    table.await_nodes(at(1), [NodeId("a")])
    assert not table.is_recovering


def test_nobody_is_offline_while_a_node_is_in_the_middle_of_telling(table: SessionTable):
    """I3, and when that node dies half-way it knows nobody any more."""
    table.beat(at(1_000), beat(1, node="b", is_complete=False))
    assert look(table, 1_001, "v") == UNKNOWN
    assert table.statistics() == {"users": 1, "sessions": 1, "access_nodes": 2, "awaited": 0, "unfinished": 1}
    assert look(table, 4_000, "v") == OFFLINE
    assert table.statistics() == {"users": 0, "sessions": 0, "access_nodes": 0, "awaited": 0, "unfinished": 0}


def test_a_table_that_stalled_convicts_nobody_of_its_own_silence(table: SessionTable):
    """Leases and waits alike last longer by what it lost."""
    table.await_nodes(at(0), [NodeId("b")])
    table.stalled(5_000)
    assert look(table, 7_999).state == "online"
    assert look(table, 7_999, "v") == UNKNOWN
    assert table.lookup(at(8_000), ["u", "v"]) == [OFFLINE, OFFLINE]


# ---------------------------------------------------------------- the dumb twin


@dataclass(frozen=True)
class Row:
    user: str
    session: str
    node: str
    life: int
    generation: int
    conn_seq: int


class NaiveTable:
    """One flat set of rows. A row is shown iff its node's lease is valid for its life; nothing is ever indexed."""

    def __init__(self) -> None:
        self.rows: set[Row] = set()
        self.leases: dict[str, tuple[int, int]] = {}
        self.applied: dict[str, list[Beat]] = {}
        """By node, all that was applied in the lease's time."""
        self.newest: dict[tuple[str, int], int] = {}
        self.awaited: dict[str, int] = {}

    def expire(self, now: int) -> None:
        self.leases = {node: lease for node, lease in self.leases.items() if lease[1] > now}
        self.awaited = {node: until for node, until in self.awaited.items() if until > now}
        self.rows = {row for row in self.rows if self.leases.get(row.node, (0, 0))[0] == row.life}

    def beat(self, now: int, beat: Beat) -> BeatOutcome:
        self.expire(now)
        if any(node == beat.node and life > beat.incarnation for node, life in self.newest):
            return FENCED
        if self.leases.get(beat.node, (0, 0))[0] != beat.incarnation:
            self.applied[beat.node] = []
        self.leases[beat.node] = (beat.incarnation, now + LEASE_MS)
        self.expire(now)
        before = self.applied[beat.node]
        newest = self.newest.setdefault((beat.node, beat.incarnation), 0)
        is_first = beat.generation > newest and beat.seq == 1
        is_next = before and (beat.generation, beat.seq) == (before[-1].generation, before[-1].seq + 1)
        if not is_first and not is_next:
            return APPLIED if before and beat == before[-1] else RESYNC
        before.append(beat)
        self.newest[beat.node, beat.incarnation] = beat.generation
        for delta in beat.deltas:
            self.rows = {row for row in self.rows if (row.node, row.session) != (beat.node, delta.session)}
            if isinstance(delta, Opened):
                where = (beat.node, beat.incarnation, beat.generation)
                self.rows.add(Row(delta.user, delta.session, *where, delta.conn_seq))
        if beat.is_complete:
            self.rows = {row for row in self.rows if row.node != beat.node or row.generation == beat.generation}
            self.awaited.pop(beat.node, None)
        return APPLIED

    def is_complete(self, node: str) -> bool:
        """Whether some beat of the node's generation said so."""
        beats = self.applied[node]
        return any(one.is_complete for one in beats if one.generation == beats[-1].generation)

    def lookup(self, now: int, user: str) -> tuple[str, set[tuple[str, str]]]:
        self.expire(now)
        found = {(row.node, row.session) for row in self.rows if row.user == user}
        is_unknown = self.awaited or not all(self.is_complete(node) for node in self.leases)
        return ("online" if found else "unknown" if is_unknown else "offline", found)


@dataclass
class AccessNode:
    """A sender as dumb as can be: it sends all or the one change that came, and believes what it is answered."""

    name: str
    life: int = 1
    generation: int = 0
    seq: int = 0
    open: dict[str, Opened] = field(default_factory=dict)
    news: list[Delta] = field(default_factory=list)
    inflight: Beat | None = None
    confirmed: set[str] = field(default_factory=set)

    def next_beat(self, most: int) -> Beat:
        """The beat in flight again, or one with at most so many changes."""
        if self.inflight is None:
            if self.generation == 0 or self.seq == 0:
                self.generation += 1
                self.news = list(self.open.values())
            self.seq += 1
            deltas, self.news = self.news[:most], self.news[most:]
            self.inflight = Beat(self.name, self.life, self.generation, self.seq, not self.news, 1, deltas)
        return self.inflight

    def answered(self, beat: Beat, outcome: BeatOutcome) -> None:
        if beat != self.inflight:
            return
        self.inflight = None
        if outcome.needs_resync:
            self.resync()
        else:
            self.confirmed |= {delta.session for delta in beat.deltas if delta.session in self.open}

    def resync(self) -> None:
        self.inflight, self.seq = None, 0


USERS = ("u", "v", "w")
NODES = st.sampled_from(["a", "b"])


class SessionTableAgainstTwin(RuleBasedStateMachine):
    """Access nodes come, restart and stall behind a wire that loses, repeats and reorders without bound."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.table = SessionTable(lease_ms=LEASE_MS)
        self.twin = NaiveTable()
        self.nodes = {name: AccessNode(name) for name in ("a", "b")}
        self.sent: list[Beat] = []
        self.conn_seq = 0

    def arrive(self, beat: Beat) -> BeatOutcome:
        outcome = self.table.beat(self.now, beat)
        assert outcome == self.twin.beat(self.now, beat)
        return outcome

    @rule(name=NODES, users=st.lists(st.sampled_from(USERS), min_size=1, max_size=3))
    def open(self, name: str, users: list[str]) -> None:
        node = self.nodes[name]
        for user in users:
            self.conn_seq += 1
            delta = opened(user, f"s{self.conn_seq}", self.conn_seq)
            node.open[delta.session] = delta
            node.news.append(delta)

    @rule(name=NODES, data=st.data())
    def close(self, name: str, data: st.DataObject) -> None:
        node = self.nodes[name]
        if node.open:
            delta = node.open.pop(data.draw(st.sampled_from(sorted(node.open))))
            node.confirmed.discard(delta.session)
            node.news.append(Closed(delta.user, delta.session, delta.conn_seq))

    @rule(name=NODES, most=st.integers(1, 2), reply_is_lost=st.booleans())
    def beat(self, name: str, most: int, *, reply_is_lost: bool) -> None:
        node = self.nodes[name]
        beat = node.next_beat(most)
        self.sent.append(beat)
        outcome = self.arrive(beat)
        assert not outcome.is_fenced
        if not reply_is_lost:
            node.answered(beat, outcome)

    @rule(name=NODES, most=st.integers(1, 2))
    def beat_in_vain(self, name: str, most: int) -> None:
        """It is lost, or comes at any later time."""
        self.sent.append(self.nodes[name].next_beat(most))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Anything that was ever sent comes again."""
        self.arrive(data.draw(st.sampled_from(self.sent)))

    @rule(name=NODES)
    def resync(self, name: str) -> None:
        self.nodes[name].resync()

    @rule(name=NODES)
    def restart(self, name: str) -> None:
        self.nodes[name] = AccessNode(name, life=self.nodes[name].life + 1)

    @rule(names=st.sets(st.sampled_from(["a", "b", "c"])))
    def await_nodes(self, names: set[str]) -> None:
        self.table.await_nodes(self.now, [NodeId(name) for name in sorted(names)])
        awaited = names - set(self.twin.leases)
        self.twin.awaited |= dict.fromkeys(awaited, self.now + LEASE_MS)

    @rule(ms=st.sampled_from([1, 500, 1_000, 2_999, 3_000]))
    def pass_time(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        self.table.expire(self.now)
        self.twin.expire(self.now)

    @rule(lag_ms=st.sampled_from([10, 4_000]))
    def stall(self, lag_ms: int) -> None:
        self.now = Instant(self.now + lag_ms)
        self.table.stalled(lag_ms)
        self.twin.leases = {node: (life, until + lag_ms) for node, (life, until) in self.twin.leases.items()}
        self.twin.awaited = {node: until + lag_ms for node, until in self.twin.awaited.items()}

    @invariant()
    def the_table_is_sound(self) -> None:
        self.table.check_invariants()

    @invariant()
    def the_table_says_what_the_twin_says(self) -> None:
        for user, status in zip(USERS, self.table.lookup(self.now, USERS), strict=True):
            found = {(one.node, one.session) for one in status.sessions}
            assert (status.state, found) == self.twin.lookup(self.now, user)

    @invariant()
    def nobody_is_offline_whom_an_access_node_was_told_to_be_online(self) -> None:
        """I3 as the access nodes see it: a session that was confirmed and is open, while the lease of its life runs."""
        for node in self.nodes.values():
            if self.twin.leases.get(node.name, (0, 0))[0] == node.life:
                for session in node.confirmed:
                    assert look(self.table, self.now, node.open[session].user) != OFFLINE

    @invariant()
    def nobody_is_online_after_the_lease(self) -> None:
        """I1 as readers see it."""
        for status in self.table.lookup(self.now, USERS):
            assert all(self.twin.leases[one.node][1] > self.now for one in status.sessions)


TestSessionTableAgainstTwin = SessionTableAgainstTwin.TestCase
TestSessionTableAgainstTwin.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
