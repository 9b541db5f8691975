"""The asking side of watches, by example. Histories are in `test_watcher_histories`."""

from __future__ import annotations

import pytest

from base.clock import Instant, Timestamp
from base.errors import LimitExceeded
from base.ids import Epoch, NodeId
from status.api import Watch, Watched, WatchedReply, WatchReply
from status.core.partitions import Pause, plan_table
from status.core.subscription import Shown
from status.core.visibility import OFFLINE, UNKNOWN, Presence
from status.core.watcher import ASSERT_MS, PAIRS_PER_REQUEST, RETRY_MS, Request, Told, Watcher
from status.core.watches import GRACE_MS, Notice, WatchDigest, digest_of

ONLINE, AWAY, GONE = Presence("online"), Presence("away"), Presence("offline", Timestamp(7))
A, B = NodeId("status-1"), NodeId("status-2")
ME = NodeId("access-1")
PARTITIONS = 4
TABLE = plan_table({A: 1}, partitions=PARTITIONS)
DONE = WatchReply([], [])


def at(ms: int) -> Instant:
    return Instant(ms)


def watcher(*pairs: tuple[str, str], users_max: int = 3) -> Watcher:
    made = Watcher(users_max=users_max, partitions=PARTITIONS)
    made.adopt(TABLE)
    for user, viewer in pairs:
        assert made.watch(user, viewer) is None
    return made


def ask(core: Watcher, now: int = 0) -> Request:
    ((node, request),) = core.requests(at(now))
    assert node == A
    core.check_invariants()
    return request


def asked(core: Watcher, now: int = 0) -> Watch:
    """Ask, and have it answered."""
    request = ask(core, now)
    assert isinstance(request, Watch)
    assert core.answered(at(now), A, request, DONE) == []
    core.check_invariants()
    return request


def notice(presence: Presence, *viewers: str, user: str = "u", version: int = 1) -> Notice:
    return Notice(ME, user, version, (Shown(presence, viewers or None),))


# ---------------------------------------------------------------- asking


def test_one_request_asks_for_all_and_the_next_for_the_difference():
    """The first one anew, since the owner may know what a former life wanted."""
    core = watcher(("u", "v"), ("u", "w"), ("x", "v"))
    assert asked(core) == Watch(TABLE.epoch, is_anew=True, added={"u": ["v", "w"], "x": ["v"]}, removed={})
    core.unwatch("u", "v")
    core.unwatch("x", "v")
    core.watch("y", "v")
    assert asked(core) == Watch(TABLE.epoch, is_anew=False, added={"y": ["v"]}, removed={"u": ["v"], "x": ["v"]})
    assert core.statistics() == {"users": 2, "asked": 2, "pending": 0, "owners": 1}


def test_one_request_is_under_way_at_a_time():
    """I2: what comes meanwhile goes into the next one."""
    core = watcher(("u", "v"))
    request = ask(core)
    core.watch("x", "v")
    assert core.requests(at(1)) == []
    assert core.next_deadline() is None
    core.answered(at(1), A, request, DONE)
    assert asked(core).added == {"x": ["v"]}


def test_a_request_is_bounded():
    """The rest goes into the next one, and not anew."""
    core = watcher(*((f"u{n}", "v") for n in range(PAIRS_PER_REQUEST + 1)), users_max=PAIRS_PER_REQUEST + 1)
    first, second = asked(core), asked(core)
    assert (len(first.added), first.is_anew) == (PAIRS_PER_REQUEST, True)
    assert (len(second.added), second.is_anew) == (1, False)


def test_what_was_taken_back_before_it_was_asked_is_not_asked():
    """Nobody need know."""
    core = watcher(("u", "v"))
    core.unwatch("u", "v")
    core.unwatch("u", "v")
    core.unwatch("nobody", "v")
    assert core.requests(at(0)) == []
    core.watch("u", "w")
    core.watch("u", "v")
    core.unwatch("u", "v")
    assert asked(core).added == {"u": ["w"]}


def test_who_comes_back_before_the_removal_was_asked_is_asked_for_again():
    """It is told nothing before a snapshot, which only asking brings."""
    core = watcher(("u", "v"))
    asked(core)
    core.noticed(at(0), A, [notice(ONLINE, "v")])
    core.unwatch("u", "v")
    assert core.watch("u", "v") is None
    assert asked(core).added == {"u": ["v"]}
    assert core.noticed(at(0), A, [notice(ONLINE, "v")]) == [Told("u", "v", ONLINE)]


def test_nothing_is_asked_without_a_table():
    """And all of it when there is one."""
    core = Watcher(users_max=2, partitions=PARTITIONS)
    core.watch("u", "v")
    core.watch("x", "v")
    core.unwatch("x", "v")
    core.check_invariants()
    assert core.requests(at(0)) == []
    core.adopt(TABLE)
    assert asked(core).added == {"u": ["v"]}


def test_watched_users_are_bounded():
    """One more is refused, and another viewer of the same is not."""
    core = watcher(("u", "v"), users_max=1)
    with pytest.raises(LimitExceeded):
        core.watch("x", "v")
    assert core.watch("u", "w") is None


# ---------------------------------------------------------------- assertions


def test_every_five_seconds_the_owner_is_asked_whether_it_knows_the_same():
    """By digest; if it does not, everything is asked anew."""
    core = watcher(("u", "v"))
    asked(core)
    assert core.next_deadline() == ASSERT_MS
    assert core.requests(at(ASSERT_MS - 1)) == []
    request = ask(core, ASSERT_MS)
    assert request == Watched(TABLE.epoch, digest_of({"u": ["v"]}))
    core.answered(at(ASSERT_MS), A, request, WatchedReply(is_right=True))
    assert core.next_deadline() == 2 * ASSERT_MS
    core.answered(at(2 * ASSERT_MS), A, ask(core, 2 * ASSERT_MS), WatchedReply(is_right=False))
    assert asked(core, 2 * ASSERT_MS) == Watch(TABLE.epoch, is_anew=True, added={"u": ["v"]}, removed={})


def test_who_watches_nothing_asserts_nothing():
    """The owner forgets by itself."""
    core = watcher(("u", "v"))
    asked(core)
    core.unwatch("u", "v")
    asked(core)
    assert core.next_deadline() is None


def test_after_a_failure_everything_is_asked_anew():
    """What became of the request is not known. Not at once, and what is not wanted any more is not asked."""
    core = watcher(("u", "v"), ("x", "v"))
    request = ask(core)
    core.unwatch("x", "v")
    core.failed(at(0), A, request)
    assert core.requests(at(RETRY_MS - 1)) == []
    assert asked(core, RETRY_MS) == Watch(TABLE.epoch, is_anew=True, added={"u": ["v"]}, removed={})


def test_an_owner_that_forgot_is_told_everything_anew():
    """It took nothing, so that what it says to all can mean nobody else."""
    core = watcher(("u", "v"))
    asked(core)
    core.watch("u", "w")
    assert core.answered(at(0), A, ask(core), WatchReply([], [], is_known=False)) == []
    assert asked(core) == Watch(TABLE.epoch, is_anew=True, added={"u": ["v", "w"]}, removed={})


def test_after_a_new_stream_everything_is_asked_anew():
    """What was pushed on the old one may be lost; snapshots that say nothing new tell nobody anything."""
    core = watcher(("u", "v"))
    asked(core)
    core.noticed(at(0), A, [notice(ONLINE, "v")])
    core.connected(A)
    core.connected(B)
    assert asked(core).is_anew
    assert core.noticed(at(0), A, [notice(ONLINE, "v")]) == []
    assert core.noticed(at(0), A, [notice(AWAY)]) == [Told("u", "v", AWAY)]


def test_an_answer_to_another_request_means_nothing():
    """Late, or of an owner that is none any more."""
    core = watcher(("u", "v"))
    asked(core)
    other = Watched(Epoch(1), WatchDigest(0, 0))
    assert core.answered(at(1), A, other, WatchedReply(is_right=False)) == []
    assert core.answered(at(1), B, other, WatchedReply(is_right=False)) == []
    core.failed(at(1), A, other)
    core.failed(at(1), B, other)
    assert core.requests(at(1)) == []


# ---------------------------------------------------------------- refusals and moves


def test_what_an_owner_refuses_is_asked_again_soon():
    """It, or this node, does not know the newest table yet. What was taken back meanwhile is not asked."""
    core = watcher(("u", "v"), ("x", "v"), ("y", "v"))
    request = ask(core)
    core.unwatch("x", "v")
    core.unwatch("y", "v")
    core.requests(at(0))
    assert core.answered(at(0), A, request, WatchReply(["u", "x"], [])) == []
    core.check_invariants()
    assert core.next_deadline() == RETRY_MS
    assert asked(core, RETRY_MS) == Watch(TABLE.epoch, is_anew=False, added={"u": ["v"]}, removed={"y": ["v"]})


def test_what_is_too_much_for_an_owner_is_given_back():
    """It is not asked again, and is gone when it is not wanted any more."""
    core = watcher(("u", "v"), ("u", "w"), ("x", "v"))
    request = ask(core)
    core.unwatch("x", "v")
    core.unwatch("u", "w")
    assert core.answered(at(0), A, request, WatchReply([], ["u", "x"])) == [("u", "v"), ("u", "w"), ("x", "v")]
    core.check_invariants()
    assert asked(core).added == {}
    core.unwatch("u", "v")
    assert core.statistics()["users"] == 0


def test_watches_follow_their_partitions():
    """Each owner is asked for what it owns by the newest table; nothing is said to the one that lost it."""
    core = watcher(("u", "v"), ("x", "v"))
    asked(core)
    core.noticed(at(0), A, [notice(ONLINE, "v")])
    core.unwatch("x", "v")
    moved = plan_table({B: 1}, TABLE)
    assert core.adopt(moved)
    core.check_invariants()
    assert not core.adopt(TABLE)
    ((node, request),) = core.requests(at(0))
    assert (node, request) == (B, Watch(moved.epoch, is_anew=True, added={"u": ["v"]}, removed={}))
    assert core.noticed(at(0), A, [notice(AWAY, "v")]) == []
    assert core.noticed(at(0), B, [notice(ONLINE, "v")]) == []
    assert core.noticed(at(0), B, [notice(AWAY)]) == [Told("u", "v", AWAY)]
    assert core.statistics()["owners"] == 1


def test_a_table_that_moves_nothing_asks_for_nothing():
    """Only who has another owner is asked for anew."""
    core = watcher(("u", "v"))
    asked(core)
    assert core.adopt(TABLE.with_changes([Pause(is_paused=True)]))
    assert core.requests(at(0)) == []
    core.check_invariants()


def test_an_answer_of_a_former_owner_changes_nothing():
    """Its users are elsewhere; the owner itself is forgotten with the answer."""
    core = watcher(("u", "v"))
    request = ask(core)
    core.adopt(plan_table({B: 1}, TABLE))
    assert core.statistics()["owners"] == 2
    assert core.answered(at(0), A, request, WatchReply(["u"], ["u"])) == []
    core.check_invariants()
    assert core.statistics()["owners"] == 1


def test_a_dead_owner_is_not_asked_for_ever():
    """I6: its partitions went elsewhere while a request to it was under way."""
    core = watcher(("u", "v"))
    request = ask(core)
    moved = plan_table({B: 1}, TABLE)
    core.adopt(moved)
    core.failed(at(0), A, request)
    core.check_invariants()
    assert core.statistics()["owners"] == 1
    ((node, _),) = core.requests(at(10 * RETRY_MS))
    assert node == B


def test_an_owner_of_whom_nothing_is_wanted_any_more_is_forgotten():
    """I6: with the answer to the removal, without one, and before it was asked for anything."""
    core = watcher(("u", "v"))
    core.unwatch("u", "v")
    assert core.statistics()["owners"] == 0
    for is_answered in (True, False):
        core.watch("u", "v")
        asked(core)
        core.unwatch("u", "v")
        removal = ask(core)
        if is_answered:
            core.answered(at(0), A, removal, DONE)
        else:
            core.failed(at(0), A, removal)
        core.check_invariants()
        assert core.statistics()["owners"] == 0
        core.connected(A)
        assert core.next_deadline() is None


# ---------------------------------------------------------------- what is told


def test_a_viewer_is_told_what_is_news():
    """I4: not what it was told last, nor unknown after anything else."""
    core = watcher(("u", "v"))
    asked(core)
    assert core.noticed(at(0), A, [notice(UNKNOWN, "v")]) == [Told("u", "v", UNKNOWN)]
    assert core.told("u", "v") == UNKNOWN
    news = core.noticed(at(0), A, [notice(ONLINE), notice(ONLINE), notice(UNKNOWN, "v"), notice(OFFLINE, "v")])
    assert news == [Told("u", "v", ONLINE), Told("u", "v", OFFLINE)]
    assert core.watch("u", "v") == OFFLINE
    assert core.told("u", "w") is core.told("x", "v") is None


def test_all_means_those_who_were_named():
    """I3: whoever was not may be denied what the others see."""
    core = watcher(("u", "v"))
    asked(core)
    core.noticed(at(0), A, [notice(ONLINE, "v")])
    core.watch("u", "w")
    assert core.noticed(at(0), A, [notice(AWAY)]) == [Told("u", "v", AWAY)]
    asked(core)
    assert core.noticed(at(0), A, [notice(ONLINE)]) == [Told("u", "v", ONLINE)]
    assert core.noticed(at(0), A, [notice(OFFLINE, "w"), notice(AWAY)]) == [
        Told("u", "w", OFFLINE),
        Told("u", "v", AWAY),
        Told("u", "w", AWAY),
    ]


def test_who_left_is_told_nothing():
    """Nor who never was there, nor of whom nobody watches."""
    core = watcher(("u", "v"))
    asked(core)
    core.noticed(at(0), A, [notice(ONLINE, "v")])
    core.unwatch("u", "v")
    assert core.noticed(at(0), A, [notice(AWAY, "v", "w"), notice(AWAY), notice(AWAY, "v", user="x")]) == []


# ---------------------------------------------------------------- offline after everything was asked anew


def told_online(*viewers: str) -> Watcher:
    """A node whose viewers were told that the user is online, and which then lost its stream and asked anew."""
    core = watcher(*(("u", viewer) for viewer in viewers))
    asked(core)
    core.noticed(at(0), A, [notice(ONLINE, *viewers)])
    core.connected(A)
    asked(core)
    return core


def sees(core: Watcher, now: int, *notices: Notice) -> list[Told]:
    news = core.noticed(at(now), A, notices)
    core.check_invariants()
    return news


def test_who_is_within_the_grace_when_everything_is_asked_anew_does_not_flicker():
    """The owner says at once what is seen; the user is back before anybody need know."""
    core = told_online("v")
    assert sees(core, 100, notice(GONE, "v")) == []
    assert core.told("u", "v") == ONLINE
    assert core.due(at(100 + GRACE_MS - 1)) == []
    assert sees(core, 200, notice(ONLINE)) == []
    assert not core.has_waiting
    assert core.due(at(10 * GRACE_MS)) == []


def test_who_stays_away_is_told_after_the_grace():
    """Once, whatever the owner says in between that it does not know; and when last seen, as it was said last."""
    core = told_online("v", "w")
    assert sees(core, 100, notice(OFFLINE, "v", "w")) == []
    assert core.next_deadline() == ASSERT_MS
    for now in (1_000, 2_000):
        core.connected(A)
        asked(core, now)
        assert sees(core, now, notice(UNKNOWN, "v", "w"), notice(GONE, "v", "w")) == []
    core.unwatch("u", "w")
    core.answered(at(2_000), A, ask(core, 2_000), DONE)
    core.answered(at(7_500), A, ask(core, 7_500), WatchedReply(is_right=True))
    assert core.next_deadline() == 100 + GRACE_MS
    assert core.due(at(100 + GRACE_MS)) == [Told("u", "v", GONE)]
    assert core.told("u", "v") == GONE
    core.check_invariants()
    assert core.due(at(10 * GRACE_MS)) == []


def test_offline_waits_over_a_move_of_the_partition():
    """Two owners in a row see nobody."""
    core = told_online("v")
    assert sees(core, 100, notice(GONE, "v")) == []
    core.adopt(plan_table({B: 1}, TABLE))
    core.check_invariants()
    core.requests(at(200))
    assert core.noticed(at(300), B, [notice(GONE, "v")]) == []
    assert core.due(at(100 + GRACE_MS)) == [Told("u", "v", GONE)]


def test_an_owner_that_could_not_tell_at_first_makes_nobody_flicker():
    """As one that took the partition over: what it knows at last may be of before the user is back."""
    core = told_online("v")
    assert sees(core, 100, notice(UNKNOWN, "v"), notice(UNKNOWN, "v")) == []
    assert sees(core, 200, notice(GONE)) == []
    assert core.due(at(200 + GRACE_MS)) == [Told("u", "v", GONE)]


def test_what_is_no_snapshot_waits_for_nothing():
    """The owner's own grace is over then, and any other state is told at once."""
    core = told_online("v")
    assert sees(core, 100, notice(GONE, "v")) == []
    assert sees(core, 200, notice(AWAY)) == [Told("u", "v", AWAY)]
    assert not core.has_waiting
    assert sees(core, 300, notice(GONE)) == [Told("u", "v", GONE)]
    core = told_online("v")
    assert sees(core, 100, notice(GONE, "v")) == []
    assert sees(core, 200, notice(GONE)) == [Told("u", "v", GONE)], "the owner's grace is over"
    assert not core.has_waiting


def test_who_was_told_no_presence_waits_for_nothing():
    """Who asks for the first time, who was told offline, and who was told that it is not known."""
    core = watcher(("u", "v"))
    asked(core)
    assert sees(core, 0, notice(UNKNOWN, "v")) == [Told("u", "v", UNKNOWN)]
    for presence in (OFFLINE, GONE):
        core.connected(A)
        asked(core)
        assert sees(core, 0, notice(presence, "v")) == [Told("u", "v", presence)]
    core.watch("u", "w")
    asked(core)
    assert sees(core, 0, notice(GONE, "w")) == [Told("u", "w", GONE)]


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    core = told_online("v")
    sees(core, 0, notice(GONE, "v"))
    core._users["u"].told["v"] = OFFLINE
    with pytest.raises(AssertionError, match="I7"):
        core.check_invariants()
