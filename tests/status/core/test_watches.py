"""Watches: snapshots, notices, grace, coalescing, limits and digests; then a machine against a dumb twin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from base.clock import Instant, Timestamp
from base.errors import LimitExceeded
from base.ids import NodeId
from status.core.subscription import Shown
from status.core.visibility import OFFLINE, UNKNOWN, Presence, Sight
from status.core.watches import COALESCE_MS, GRACE_MS, JITTER_MS, Notice, WatchDigest, WatchTable, digest_of

ONLINE, AWAY, BUSY = Presence("online"), Presence("away"), Presence("busy")
GONE = Presence("offline", Timestamp(7))
A, B = NodeId("a"), NodeId("b")
JITTER = 900


class Always:
    """A source that always draws the same, or the greatest that there is."""

    def __init__(self, value: int = JITTER) -> None:
        self.value = value

    def randrange(self, stop: int, /) -> int:
        return min(self.value, stop - 1)


def at(ms: int) -> Instant:
    return Instant(ms)


def table(*, watches_max: int = 3, viewers_max: int = 3) -> WatchTable:
    return WatchTable(Always(), watches_max=watches_max, viewers_max=viewers_max)


def watching(sight: Sight = ONLINE, *nodes: NodeId) -> WatchTable:
    """Viewer v on each node looks at user u."""
    watches = table()
    for node in nodes or (A,):
        watches.watch(node, "u", ["v"], sight)
    return watches


def told(watches: WatchTable, now: int) -> list[tuple[str, int, Presence]]:
    """What comes of `due` where everybody sees the same: node, version, presence."""
    notices = watches.due(at(now))
    watches.check_invariants()
    assert all(notice.user == "u" and notice.shown[0].viewers is None for notice in notices)
    return [(notice.node, notice.version, notice.shown[0].presence) for notice in notices]


# ---------------------------------------------------------------- watching


def test_the_answer_to_a_watch_is_what_is_now():
    """With the version that later notices go on from."""
    watches = table()
    assert watches.watch(A, "u", ["w", "v"], ONLINE) == Notice(A, "u", 0, (Shown(ONLINE, ("v", "w")),))
    assert watches.is_watched("u")
    assert list(watches.watched()) == ["u"]
    assert not watches.is_watched("v")
    assert watches.next_deadline() is None
    assert watches.statistics() == {"users": 1, "watches": 1, "viewers": 2, "deadlines": 0}
    watches.check_invariants()


def test_a_snapshot_has_no_grace_and_may_be_asked_for_again():
    """Reads tell the truth, also of a viewer who is there already."""
    watches = watching()
    watches.changed(at(0), "u", OFFLINE)
    assert watches.watch(A, "u", ["v"], OFFLINE).shown == (Shown(OFFLINE, ("v",)),)
    assert told(watches, GRACE_MS + JITTER) == []
    assert watches.digest(A).pairs == 1


def test_what_is_not_watched_is_not_kept():
    """Neither a change of somebody whom nobody watches, nor anybody whom nobody watches any more."""
    watches = watching()
    watches.changed(at(0), "x", ONLINE)
    watches.changed(at(0), "u", AWAY)
    watches.unwatch(A, "u", ["v"])
    watches.unwatch(A, "u", ["v"])
    assert (watches.next_deadline(), watches.due(at(0))) == (None, [])
    assert watches.statistics() == {"users": 0, "watches": 0, "viewers": 0, "deadlines": 0}
    assert watches.digest(A) == WatchDigest(0, 0)
    watches.check_invariants()


def test_an_unwatch_of_what_is_not_there_does_nothing():
    """Another viewer, another node."""
    watches = watching()
    watches.unwatch(A, "u", ["w"])
    watches.unwatch(B, "u", ["v"])
    assert watches.digest(A) == digest_of({"u": ["v"]})
    watches.watch(A, "x", ["v"], ONLINE)
    watches.unwatch(A, "u", ["v"])
    assert watches.digest(A) == digest_of({"x": ["v"]})
    watches.check_invariants()


def test_an_access_node_or_a_user_that_is_gone_takes_its_watches_along():
    """And nothing is said."""
    watches = watching(ONLINE, A, B)
    watches.watch(A, "x", ["v"], ONLINE)
    watches.changed(at(0), "u", AWAY)
    watches.forget_node(A)
    watches.forget_node(A)
    watches.check_invariants()
    assert list(watches.watched()) == ["u"]
    assert told(watches, 0) == [(B, 1, AWAY)]
    watches.forget_users(["u", "x"])
    assert not watches.watched()
    watches.check_invariants()


def test_an_access_node_may_not_have_more_than_its_share():
    """Refused as a whole, and what is there may still be asked for."""
    watches = table(watches_max=2, viewers_max=2)
    watches.watch(A, "u", ["v", "w", "w"], ONLINE)
    watches.watch(A, "x", ["v"], ONLINE)
    before = watches.digest(A)
    with pytest.raises(LimitExceeded) as caught:
        watches.watch(A, "y", ["v"], ONLINE)
    assert caught.value.detail == {"what": "watches", "limit": 2, "seen": 3}
    with pytest.raises(LimitExceeded) as caught:
        watches.watch(A, "u", ["w", "z"], ONLINE)
    assert caught.value.detail == {"what": "viewers", "limit": 2, "seen": 3}
    assert watches.digest(A) == before
    watches.watch(A, "u", ["v", "w"], ONLINE)
    watches.watch(B, "y", ["v"], ONLINE)
    watches.check_invariants()


def test_digests_tell_watches_apart():
    """Who watches whom, not in which order; and the ends of names do not flow together."""
    assert digest_of({}) == WatchDigest(0, 0)
    assert digest_of({"u": ["v", "w"], "x": ["v"]}) == digest_of({"x": ["v"], "u": ["w", "v"]})
    assert digest_of({"u": ["v"]}) != digest_of({"v": ["u"]})
    assert digest_of({"ab": ["c"]}) != digest_of({"a": ["bc"]})


def test_a_sight_that_fails_leaves_the_table_as_it_was():
    """Nobody is a viewer who was shown nothing."""

    def fail(viewer: str) -> Presence:
        raise KeyError(viewer)

    watches = table()
    with pytest.raises(KeyError):
        watches.watch(A, "u", ["v"], fail)
    assert not watches.watched()
    watches.check_invariants()


# ---------------------------------------------------------------- telling


def test_the_first_change_after_quiet_leaves_at_once_and_the_next_ones_together():
    """I2: the last state wins, one notice in 200 ms, the same version on every node."""
    watches = watching(OFFLINE, A, B)
    watches.changed(at(0), "u", ONLINE)
    assert watches.next_deadline() == 0
    assert told(watches, 0) == [(A, 1, ONLINE), (B, 1, ONLINE)]
    watches.changed(at(10), "u", AWAY)
    watches.changed(at(20), "u", BUSY)
    assert watches.next_deadline() == COALESCE_MS
    assert told(watches, COALESCE_MS - 1) == []
    assert told(watches, COALESCE_MS) == [(A, 2, BUSY), (B, 2, BUSY)]
    assert watches.next_deadline() is None


def test_who_changes_back_in_time_did_not_change():
    """I1: the deadline finds nothing to say."""
    watches = watching()
    watches.changed(at(0), "u", AWAY)
    watches.changed(at(0), "u", ONLINE)
    assert told(watches, 0) == []
    assert watches.next_deadline() is None


def test_offline_is_told_after_the_grace_and_the_jitter():
    """And not at all when the user is back before."""
    watches = watching()
    watches.changed(at(0), "u", OFFLINE)
    watches.changed(at(5_000), "u", ONLINE)
    watches.changed(at(6_000), "u", GONE)
    assert told(watches, GRACE_MS + JITTER) == []
    assert watches.next_deadline() == 6_000 + GRACE_MS + JITTER
    assert told(watches, 5_999 + GRACE_MS + JITTER) == []
    assert told(watches, 6_000 + GRACE_MS + JITTER) == [(A, 1, GONE)]


def test_the_jitter_spreads_the_users_of_a_dead_access_node():
    """Over its whole range, never under the grace."""
    watches = WatchTable(Random(1))
    for number in range(1_000):
        watches.watch(A, f"u{number}", ["v"], ONLINE)
        watches.changed(at(0), f"u{number}", OFFLINE)
    assert watches.due(at(GRACE_MS - 1)) == []
    half = len(watches.due(at(GRACE_MS + JITTER_MS // 2)))
    assert 400 < half < 600
    assert half + len(watches.due(at(GRACE_MS + JITTER_MS))) == 1_000


def test_offline_waits_for_the_interval_too():
    """I2, when a change was told just before the end of the grace of another viewer."""
    watches = watching()
    watches.watch(A, "u", ["w"], ONLINE)
    end = GRACE_MS + JITTER
    watches.changed(at(0), "u", lambda viewer: ONLINE if viewer == "w" else OFFLINE)
    watches.changed(at(end - 50), "u", lambda viewer: AWAY if viewer == "w" else OFFLINE)
    assert watches.due(at(end - 50)) == [Notice(A, "u", 1, (Shown(AWAY, ("w",)),))]
    assert watches.due(at(end)) == []
    watches.check_invariants()
    assert watches.next_deadline() == end - 50 + COALESCE_MS
    assert watches.due(at(end + 150)) == [Notice(A, "u", 2, (Shown(OFFLINE, ("v",)),))]


def test_a_viewer_who_is_denied_sees_the_user_go_like_anybody_else():
    """After a grace, and while others are told other things."""
    watches = watching(ONLINE, A, B)
    watches.changed(at(0), "u", lambda _: OFFLINE)
    assert told(watches, 0) == []
    assert told(watches, GRACE_MS + JITTER) == [(A, 1, OFFLINE), (B, 1, OFFLINE)]


def test_while_the_owner_cannot_tell_viewers_keep_what_they_know():
    """I3."""
    watches = watching()
    watches.changed(at(0), "u", UNKNOWN)
    assert watches.next_deadline() is None
    watches.changed(at(10), "u", ONLINE)
    assert watches.next_deadline() is None


def test_what_is_due_comes_in_the_order_of_its_deadlines():
    """Users whose grace ended first are told first."""
    watches = watching()
    watches.watch(A, "x", ["v"], ONLINE)
    watches.changed(at(1), "u", OFFLINE)
    watches.changed(at(0), "x", OFFLINE)
    assert [notice.user for notice in watches.due(at(99_999))] == ["x", "u"]


def test_versions_do_not_fall_when_a_user_was_forgotten():
    """I4, at the price of a gap."""
    watches = watching()
    watches.changed(at(0), "u", AWAY)
    watches.due(at(0))
    watches.unwatch(A, "u", ["v"])
    assert watches.watch(A, "u", ["v"], AWAY).version == 1
    assert watches.watch(A, "x", ["v"], AWAY).version == 1


# ---------------------------------------------------------------- the dumb twin


@dataclass
class Row:
    """One viewer of one user on one node: what it was told, what it sees, and since when it sees nobody."""

    node: NodeId
    user: str
    viewer: str
    told: Presence
    sees: Presence
    gone_at: int | None = None


class NaiveWatches:
    """What the table means, a row a viewer, by looking at all of them each time."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.told_at: dict[str, int] = {}

    def watch(self, node: NodeId, user: str, viewers: Collection[str], sees: Mapping[str, Presence]) -> None:
        others = [row for row in self.rows if (row.node, row.user) != (node, user) or row.viewer not in viewers]
        self.rows = others + [Row(node, user, viewer, sees[viewer], sees[viewer]) for viewer in viewers]

    def unwatch(self, node: NodeId, user: str, viewers: Collection[str]) -> None:
        self.keep(lambda row: (row.node, row.user) != (node, user) or row.viewer not in viewers)

    def keep(self, is_kept: object) -> None:
        assert callable(is_kept)
        self.rows = [row for row in self.rows if is_kept(row)]
        self.told_at = {user: at for user, at in self.told_at.items() if any(row.user == user for row in self.rows)}

    def changed(self, now: int, user: str, sees: Mapping[str, Presence]) -> None:
        for row in self.rows:
            if row.user == user:
                row.sees = sees[row.viewer]
                is_gone = row.sees.state == "offline"
                row.gone_at = (now if row.gone_at is None else row.gone_at) if is_gone else None

    def is_due(self, now: int, row: Row) -> bool:
        if row.sees in (row.told, UNKNOWN):
            return False
        if row.gone_at is not None and row.told.state not in ("offline", "unknown"):
            return now >= row.gone_at + GRACE_MS + JITTER
        return True

    def due(self, now: int) -> set[tuple[NodeId, str, str, Presence]]:
        users = {row.user for row in self.rows if now >= self.told_at.get(row.user, 0) + COALESCE_MS}
        due = [row for row in self.rows if row.user in users and self.is_due(now, row)]
        for row in due:
            row.told = row.sees
            self.told_at[row.user] = now
        return {(row.node, row.user, row.viewer, row.told) for row in due}


NODES = st.sampled_from([A, B])
USERS = st.sampled_from(["u", "x"])
VIEWERS = st.sets(st.sampled_from("vw"), min_size=1)
PRESENCES = st.sampled_from([ONLINE, ONLINE, AWAY, OFFLINE, OFFLINE, GONE, UNKNOWN])
SEEN = st.one_of(
    PRESENCES.map(lambda presence: {"v": presence, "w": presence}),
    st.fixed_dictionaries({"v": PRESENCES, "w": PRESENCES}),
)


def sight_of(sees: Mapping[str, Presence]) -> Sight:
    return sees["v"] if sees["v"] == sees["w"] else sees.__getitem__


class WatchTableAgainstTwin(RuleBasedStateMachine):
    """Access nodes come and go, users change; every viewer is told what the twin tells it, at the same instant."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(1_000)
        self.table = WatchTable(Always())
        self.twin = NaiveWatches()
        self.sees = {user: {"v": OFFLINE, "w": OFFLINE} for user in "ux"}
        self.versions: dict[str, int] = {}

    def hear(self, notice: Notice, *, is_snapshot: bool) -> set[tuple[NodeId, str, str, Presence]]:
        """What a notice says to whom. Checks the version of a snapshot (I4)."""
        if is_snapshot:
            assert notice.version >= self.versions.get(notice.user, 0)
            self.versions[notice.user] = notice.version
        heard = set()
        for shown in notice.shown:
            rows = [row.viewer for row in self.twin.rows if (row.node, row.user) == (notice.node, notice.user)]
            viewers = shown.viewers if shown.viewers is not None else rows
            heard |= {(notice.node, notice.user, viewer, shown.presence) for viewer in viewers}
        return heard

    @rule(node=NODES, user=USERS, viewers=VIEWERS)
    def watch(self, node: NodeId, user: str, viewers: set[str]) -> None:
        sees = self.sees[user]
        snapshot = self.table.watch(node, user, viewers, sight_of(sees))
        self.twin.watch(node, user, viewers, sees)
        assert self.hear(snapshot, is_snapshot=True) == {(node, user, viewer, sees[viewer]) for viewer in viewers}

    @rule(node=NODES, user=USERS, viewers=VIEWERS)
    def unwatch(self, node: NodeId, user: str, viewers: set[str]) -> None:
        self.table.unwatch(node, user, viewers)
        self.twin.unwatch(node, user, viewers)

    @rule(node=NODES)
    def forget_node(self, node: NodeId) -> None:
        self.table.forget_node(node)
        self.twin.keep(lambda row: row.node != node)

    @rule(user=USERS)
    def forget_user(self, user: str) -> None:
        self.table.forget_users([user])
        self.twin.keep(lambda row: row.user != user)

    @rule(user=USERS, sees=SEEN)
    def change(self, user: str, sees: dict[str, Presence]) -> None:
        self.sees[user] = sees
        self.table.changed(self.now, user, sight_of(sees))
        self.twin.changed(self.now, user, sees)

    @rule(ms=st.sampled_from([0, 1, COALESCE_MS - 1, COALESCE_MS, 5_000, GRACE_MS + JITTER]))
    def pass_time(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        self.tell()

    @rule()
    def pass_time_to_the_next_deadline(self) -> None:
        """Nothing is due before it (I6)."""
        deadline = self.table.next_deadline()
        self.now = Instant(max(self.now, (deadline or 0) - 1))
        self.tell()
        self.now = Instant(max(self.now, deadline or 0))
        self.tell()

    def tell(self) -> None:
        notices = self.table.due(self.now)
        for user in {notice.user for notice in notices}:
            self.versions[user] += 1
        assert all(notice.version == self.versions[notice.user] for notice in notices), "I4"
        heard = [self.hear(notice, is_snapshot=False) for notice in notices]
        assert sum(map(len, heard)) == len(set().union(*heard)), "each viewer is told once"
        assert set().union(*heard) == self.twin.due(self.now)

    @invariant()
    def the_table_is_sound(self) -> None:
        self.table.check_invariants()
        assert set(self.table.watched()) == {row.user for row in self.twin.rows}


TestWatchTableAgainstTwin = WatchTableAgainstTwin.TestCase
TestWatchTableAgainstTwin.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
