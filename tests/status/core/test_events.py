"""The event log: positions, resyncs, readers that fall behind, cursors; then a cluster of logs and a reader."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from base.ids import Epoch, Incarnation, NodeId
from status.core.events import (
    CURSOR_CHARS_MAX,
    CURSOR_NODES_MAX,
    START,
    Cursor,
    EventKind,
    EventLog,
    MergedPage,
    Page,
    Place,
    Resync,
    SessionEvent,
    merged,
    share_of,
)
from status.core.records import Merged

NODE, FEED = NodeId("s1"), "s1.1"
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def tell(log: EventLog, session: str, partition: int = 7, merged_as: Merged = Merged.OPENED) -> None:
    """Log one event; its packed session is nothing but a name."""
    log.extend([(partition, "u", session.encode(), merged_as)], Timestamp(5))


def seq(epoch: int, counter: int, life: int = 1) -> str:
    return f"{epoch:08x}{life:08x}{counter:012x}"


def log_of(*sessions: str, partitions: Sequence[int] = (7,), capacity: int = 100) -> EventLog:
    """A log that owns partitions at epoch 1, with events of the first one."""
    log = EventLog(NODE, Incarnation(1), capacity=capacity)
    for partition in partitions:
        log.owned(partition, Epoch(1))
    for session in sessions:
        tell(log, session, partitions[0])
    log.check_invariants()
    return log


def names(page: Page[SessionEvent | Resync]) -> list[str | int]:
    """Sessions of events, numbers of resyncs."""
    return [item.entry.decode() if isinstance(item, SessionEvent) else item.partition for item in page.items]


# ---------------------------------------------------------------- the log


def test_a_reader_goes_on_where_it_ended():
    """I1: each once, in order, to the end and beyond."""
    log = log_of("s", "t", "v")
    first = log.read(Place(FEED, 0), 2)
    assert (names(first), first.next, first.is_at_end) == ([7, "s"], Place(FEED, 2), False)
    second = log.read(first.next, 2)
    assert (names(second), second.next, second.is_at_end) == (["t", "v"], Place(FEED, 4), True)
    assert log.read(second.next, 2) == Page((), Place(FEED, 4), is_at_end=True)
    tell(log, "w")
    assert names(log.read(second.next, 2)) == ["w"]
    assert log.statistics() == {"head": 5, "events": 5, "partitions": 1}


def test_from_now_on_is_a_place():
    """What was before is not told."""
    log = log_of("s")
    assert log.read(None, 10) == Page((), Place(FEED, 2), is_at_end=True)
    assert log.head == Place(FEED, 2)


def test_sequences_grow_with_the_owner_and_with_each_event():
    """I2: by position, and a resync has that of the end of the log as it is read."""
    log = log_of("s", "t", partitions=(7, 8))
    tell(log, "x", 8)
    page = log.read(START, 10)
    assert page.items == (Resync(7, seq(1, 5)), Resync(8, seq(1, 5)))
    told = log.read(Place(FEED, 2), 10).items
    assert [item.user_seq for item in told] == [seq(1, 3), seq(1, 4), seq(1, 5)]
    log.owned(7, Epoch(4))
    tell(log, "v")
    assert [item.user_seq for item in log.read(Place(FEED, 5), 10).items] == [seq(4, 7), seq(4, 7)]


def test_an_owner_that_speaks_again_at_its_epoch_goes_on_counting():
    """It lost the right to answer for a moment, and nobody else had it."""
    log = log_of("s")
    log.released(7)
    log.owned(7, Epoch(1))
    tell(log, "t")
    log.check_invariants()
    assert log.read(Place(FEED, 3), 10).items[0].user_seq == seq(1, 4)


def test_a_life_goes_before_the_count_and_the_owner_before_both():
    """A node that restarts and keeps its partitions counts from the start, and its events are newer all the same."""
    found = []
    for epoch, life, events in ((1, 1, 40), (1, 2, 3), (2, 1, 1)):
        log = EventLog(NODE, Incarnation(life))
        log.owned(7, Epoch(epoch))
        for number in range(events):
            tell(log, f"s{number}")
        found += [item.user_seq for item in log.read(Place(log.feed, 1), 100).items]
    assert found == sorted(found)
    assert (found[39], found[-1]) == (seq(1, 41), seq(2, 2))


def test_an_epoch_that_falls_is_found_out():
    """It is the caller's bug."""
    log = EventLog(NODE, Incarnation(1))
    log.owned(7, Epoch(3))
    with pytest.raises(AssertionError, match="never falls"):
        log.owned(7, Epoch(2))


def test_only_the_owner_speaks_for_a_partition():
    """What happens where it does not is in the resync of whoever does, be it later here."""
    log = log_of()
    log.released(8)
    tell(log, "s", 8)
    log.released(7)
    tell(log, "t")
    assert log.read(Place(FEED, 0), 10) == Page((), Place(FEED, 1), is_at_end=True)
    log.owned(7, Epoch(1))
    assert log.read(Place(FEED, 1), 10).items == (Resync(7, seq(1, 2)),)


@pytest.mark.parametrize(
    ("merged_as", "kind"), [(Merged.OPENED, "connect"), (Merged.CHANGED, "state"), (Merged.CLOSED, "disconnect")]
)
def test_an_event_says_what_happened(merged_as: Merged, kind: EventKind):
    """With the session as it came, packed."""
    log = log_of()
    tell(log, "s", 7, merged_as)
    told = SessionEvent(7, seq(1, 2), kind, Timestamp(5), "u", b"s")
    assert log.read(Place(FEED, 1), 10).items == (told,)


def test_what_nobody_can_see_is_not_told():
    """A tombstone that came ahead of its session is no event."""
    log = log_of()
    tell(log, "s", 7, Merged.NOTED)
    with pytest.raises(AssertionError, match="nobody can see"):
        log.read(Place(FEED, 1), 10)


def test_a_later_resync_makes_an_earlier_one_void():
    """I4: all that is open is told once, at the later place."""
    log = log_of("s")
    log.owned(7, Epoch(2))
    log.check_invariants()
    assert names(log.read(Place(FEED, 0), 10)) == ["s", 7]


def test_a_partition_of_another_owner_is_not_resynced():
    """What happened here while it was ours is still told."""
    log = log_of("s", partitions=(7, 8))
    log.released(7)
    log.check_invariants()
    assert names(log.read(Place(FEED, 0), 10)) == [8, "s"]
    assert names(log.read(START, 10)) == [8]


@pytest.mark.parametrize("place", [START, Place("s1.0", 5), Place(FEED, 99), Place(FEED, 0), Place(FEED, 0, 8)])
def test_a_reader_without_a_place_gets_everything_anew(place: Place):
    """I3: of no log, of another life, ahead of the log, too far behind, too far behind in the middle of that."""
    log = log_of("s", "t", "v", partitions=(7, 8), capacity=3)
    page = log.read(place, 10)
    assert (names(page), page.next, page.is_at_end) == ([7, 8], Place(FEED, 5), True)
    tell(log, "w")
    assert names(log.read(page.next, 10)) == ["w"]


def test_the_oldest_place_that_is_held_needs_no_resync():
    """The ring has just what comes after it."""
    log = log_of("s", "t", "v", capacity=2)
    assert names(log.read(Place(FEED, 2), 10)) == ["t", "v"]
    log.check_invariants()


def test_getting_everything_anew_may_take_several_pages():
    """From the head at which it began; a partition that went meanwhile is left out, one that came is told twice."""
    log = log_of(partitions=(9, 7, 8))
    first = log.read(START, 1)
    assert (names(first), first.next, first.is_at_end) == ([7], Place(FEED, 3, 8), False)
    log.released(8)
    log.owned(10, Epoch(1))
    tell(log, "s", 10)
    second = log.read(first.next, 1)
    assert (names(second), second.next, second.is_at_end) == ([9], Place(FEED, 3, 10), False)
    third = log.read(second.next, 2)
    assert (names(third), third.next, third.is_at_end) == ([10, 10], Place(FEED, 4), False)
    assert names(log.read(third.next, 2)) == ["s"]


def test_a_resync_counts_with_what_is_open():
    """A page of few items may stand for many sessions."""
    log = log_of("s", partitions=(7, 8))
    open_sessions = {7: 5, 8: 0}.__getitem__
    assert names(log.read(START, 6, open_sessions)) == [7]
    assert names(log.read(START, 7, open_sessions)) == [7, 8]
    assert names(log.read(Place(FEED, 0), 6, open_sessions)) == [7]
    assert names(log.read(Place(FEED, 0), 8, open_sessions)) == [7, 8, "s"]


# ---------------------------------------------------------------- cursors


def test_a_cursor_survives_its_text():
    """Which needs no escaping in a URL."""
    cursor = Cursor({A: Place("a.1", 5), NodeId("é/?"): Place("b.2", 1 << 40, 4095)})
    text = cursor.encode()
    assert Cursor.decode(text) == cursor
    assert text.replace("-", "").replace("_", "").isalnum()
    assert Cursor.decode(Cursor({}).encode()) == Cursor({})


def test_a_reader_may_begin_now_or_with_everything():
    """After that, a node without a place is read from its start."""
    assert Cursor.decode("").place(A) is None
    assert Cursor.decode("start").place(A) == START
    cursor = Cursor({A: Place("a.1", 5)})
    assert (cursor.place(A), cursor.place(B)) == (Place("a.1", 5), START)


def encoded(*fields: object) -> str:
    return urlsafe_b64encode(msgspec.msgpack.encode(fields)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("é", "not one that was given out"),
        ("a", "not one that was given out"),
        ("a b=", "not one that was given out"),
        ("AAAA", "not one that was given out"),
        (encoded(2, {}), "not one that was given out"),
        (encoded(1, {"a": ["f", -1, None]}), "not one that was given out"),
        (encoded(1, {"a": ["f", 1, "x"]}), "not one that was given out"),
        (encoded(1, {"a": None}), "not one that was given out"),
        ("A" * (CURSOR_CHARS_MAX + 1), "8001 characters"),
        (encoded(1, {str(n): ["f", 1] for n in range(CURSOR_NODES_MAX + 1)}), "257 nodes"),
    ],
)
def test_a_bad_cursor_is_refused(text: str, message: str):
    """With a sentence that says what to do."""
    with pytest.raises(BadRequest, match=message):
        Cursor.decode(text)


@pytest.mark.parametrize(("nodes", "name"), [(CURSOR_NODES_MAX + 1, ""), (80, "x" * 100)])
def test_a_cursor_that_would_not_be_taken_back_is_not_given_out(nodes: int, name: str):
    """Too many nodes, or names too long."""
    with pytest.raises(LimitExceeded):
        Cursor({NodeId(f"{name}{number}"): START for number in range(nodes)}).encode()


# ---------------------------------------------------------------- several nodes


def test_pages_of_several_nodes_make_one():
    """In the order of the nodes; who did not answer keeps its place, who is gone has none, and it is said who."""
    cursor = Cursor({A: Place("a.1", 5), B: Place("b.1", 5), C: Place("c.1", 5)})
    pages = {A: Page(["x", "y"], Place("a.1", 7), is_at_end=True)}
    page = merged(cursor, [B, A], pages)
    places = {B: Place("b.1", 5), A: Place("a.1", 7)}
    assert page == MergedPage(["x", "y"], Cursor(places), is_at_end=True, missing=(B,))


def test_more_is_there_while_one_node_has_more():
    """From now on, a node that did not answer at once is read from its start."""
    pages = {
        A: Page(["x"], Place("a.1", 7), is_at_end=True),
        B: Page(["z"], Place("b.1", 2), is_at_end=False),
    }
    page = merged(Cursor.decode(""), [A, B, C], pages)
    assert (page.items, page.is_at_end, page.missing) == (["x", "z"], False, (C,))
    assert page.cursor.place(C) == START


@pytest.mark.parametrize(("limit", "nodes", "share"), [(10, 3, 3), (2, 3, 1), (10, 0, 10)])
def test_a_limit_is_shared(limit: int, nodes: int, share: int):
    """One item a node at least, so that none is left behind."""
    assert share_of(limit, nodes) == share


# ---------------------------------------------------------------- a cluster and its reader


class Reader:
    """Keeps the one rule that readers need, and nothing else."""

    def __init__(self, cursor: str) -> None:
        self.cursor = cursor
        self.open: dict[int, set[str]] = {}
        self.newest: dict[int, str] = {}

    def take(self, item: SessionEvent | tuple[Resync, frozenset[str]]) -> None:
        if isinstance(item, tuple):
            resync, sessions = item
            if resync.user_seq >= self.newest.get(resync.partition, ""):
                self.open[resync.partition] = set(sessions)
                self.newest[resync.partition] = resync.user_seq
        elif item.user_seq > self.newest.get(item.partition, ""):
            sessions_now = self.open.setdefault(item.partition, set())
            session = item.entry.decode()
            sessions_now.discard(session)
            if item.kind != "disconnect":
                sessions_now.add(session)
            self.newest[item.partition] = item.user_seq


class ClusterOfLogs(RuleBasedStateMachine):
    """Partitions move, nodes restart, rings overflow, answers get lost: at rest the reader knows what is open (I3)."""

    PARTITIONS = (0, 1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.lives = dict.fromkeys((A, B), 1)
        self.logs = {node: EventLog(node, Incarnation(1), capacity=5) for node in (A, B)}
        self.owner: dict[int, NodeId] = {}
        self.owner_epochs: dict[int, Epoch] = {}
        self.epoch = 0
        self.open: dict[int, set[str]] = {partition: set() for partition in self.PARTITIONS}
        self.named = 0
        for partition in self.PARTITIONS:
            self.own(partition, A)
        self.reader = Reader("start")

    def own(self, partition: int, node: NodeId) -> None:
        self.epoch += 1
        self.owner[partition] = node
        self.owner_epochs[partition] = Epoch(self.epoch)
        self.logs[node].owned(partition, Epoch(self.epoch))

    def tell(self, partition: int, session: str, merged_as: Merged) -> None:
        tell(self.logs[self.owner[partition]], session, partition, merged_as)

    @rule(partition=st.sampled_from(PARTITIONS))
    def connect(self, partition: int) -> None:
        self.named += 1
        self.open[partition].add(f"s{self.named}")
        self.tell(partition, f"s{self.named}", Merged.OPENED)

    @rule(partition=st.sampled_from(PARTITIONS), data=st.data())
    def change(self, partition: int, data: st.DataObject) -> None:
        if self.open[partition]:
            session = data.draw(st.sampled_from(sorted(self.open[partition])))
            self.tell(partition, session, Merged.CHANGED)

    @rule(partition=st.sampled_from(PARTITIONS), data=st.data())
    def disconnect(self, partition: int, data: st.DataObject) -> None:
        if self.open[partition]:
            session = data.draw(st.sampled_from(sorted(self.open[partition])))
            self.open[partition].remove(session)
            self.tell(partition, session, Merged.CLOSED)

    @rule(partition=st.sampled_from(PARTITIONS), node=st.sampled_from([A, B]))
    def move(self, partition: int, node: NodeId) -> None:
        """To another owner, or to the same one, which lost it for a while; some sessions end unheard."""
        self.logs[self.owner[partition]].released(partition)
        self.open[partition] = {session for session in self.open[partition] if int(session[1:]) % 2}
        self.own(partition, node)

    @rule(node=st.sampled_from([A, B]))
    def restart(self, node: NodeId) -> None:
        """All that was in the log is gone, and what was not read will never be. The table stays as it is."""
        self.lives[node] += 1
        self.logs[node] = EventLog(node, Incarnation(self.lives[node]), capacity=5)
        for partition, owner in self.owner.items():
            if owner == node:
                self.logs[node].owned(partition, self.owner_epochs[partition])

    @rule(limit=st.integers(1, 4), away=st.sets(st.sampled_from([A, B])), is_lost=st.booleans())
    def read(self, limit: int, away: set[NodeId], *, is_lost: bool) -> None:
        """Some nodes do not answer; or the answer is lost, and the reader asks again with its old cursor."""
        cursor = Cursor.decode(self.reader.cursor)
        pages = {}
        for node in sorted({A, B} - away):
            log = self.logs[node]
            page = log.read(cursor.place(node), limit, lambda partition: len(self.open[partition]))
            items = [
                (item, frozenset(self.open[item.partition])) if isinstance(item, Resync) else item
                for item in page.items
            ]
            pages[node] = Page(items, page.next, page.is_at_end)
        read = merged(cursor, [A, B], pages)
        for item in read.items:
            self.reader.take(item)
        if not is_lost:
            self.reader.cursor = read.cursor.encode()

    @rule()
    def come_to_rest(self) -> None:
        for _ in range(100):
            before = self.reader.cursor
            self.read(limit=2, away=set(), is_lost=False)
            if self.reader.cursor == before:
                break
        assert self.reader.open == self.open

    @invariant()
    def the_logs_are_sound(self) -> None:
        for log in self.logs.values():
            log.check_invariants()


TestClusterOfLogs = ClusterOfLogs.TestCase
TestClusterOfLogs.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
