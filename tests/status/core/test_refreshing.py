"""What is written into a store whose records expire: examples by invariant, then histories against a dumb twin."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from base.clock import Timestamp
from base.ids import Incarnation, NodeId
from status.api import OFFLINE, Closed, Opened, State
from status.core.refreshing import BATCH_MAX, GONE_MAX, LANES, PHASES, RefreshLane, Write, key_of, lane_of, status_of


def opened(user: str, conn_seq: int = 1, *, session: str = "s", state: State = "online") -> Opened:
    return Opened(user, session, conn_seq, "phone", "ios", state, Timestamp(7))


def closed(one: Opened) -> Closed:
    return Closed(one.user, one.session, one.conn_seq)


def new_lane(node: str = "a", incarnation: int = 1) -> RefreshLane:
    return RefreshLane(NodeId(node), Incarnation(incarnation))


def write_all(lane: RefreshLane) -> list[Write]:
    """Write all that is due or failed."""
    writes: list[Write] = []
    while lane.has_work or lane.has_failed:
        batch = lane.next_batch(is_retrying=True)
        writes += batch
        for write in batch:
            lane.written(write)
    return writes


@pytest.fixture
def lane() -> RefreshLane:
    """A lane whose one session, alice's, was written."""
    lane = new_lane()
    lane.open(opened("alice"))
    write_all(lane)
    return lane


# ---------------------------------------------------------------- writes


def test_a_session_is_written_at_once_and_confirmed_by_that_write():
    """I1 and I3."""
    lane = new_lane()
    lane.open(opened("alice"))
    (write,) = lane.next_batch()
    assert (write.user, write.gone, len(write.held)) == ("alice", (), 1)
    assert lane.written(write) == (("s", write.held[0]),)
    assert not lane.has_work


@pytest.mark.spec("PR-01")
def test_each_session_is_refreshed_once_in_a_round_of_phases():
    """I1: and the phases share the users."""
    lane = new_lane()
    users = [f"user-{number}" for number in range(1_000)]
    for user in users:
        lane.open(opened(user))
    write_all(lane)
    rounds = []
    for number in range(PHASES):
        lane.tick(number)
        rounds.append([write.user for write in write_all(lane)])
    assert sorted(user for one in rounds for user in one) == sorted(users)
    assert max(map(len, rounds)) < 3 * len(users) / PHASES


def test_a_batch_is_bounded_and_changes_go_first(lane: RefreshLane):
    """What waits goes with the next one."""
    lane.resync()
    for number in range(BATCH_MAX):
        lane.open(opened(f"user-{number}"))
    assert [write.user for write in lane.next_batch()] == [f"user-{number}" for number in range(BATCH_MAX)]
    assert [write.user for write in lane.next_batch()] == ["alice"]


def test_a_user_that_is_due_and_changed_is_written_once(lane: RefreshLane):
    """The change carries everything."""
    lane.resync()
    lane.open(opened("alice", 2, session="t"))
    (write,) = lane.next_batch()
    assert write.sessions == ("s", "t")
    assert not lane.has_work


def test_a_write_that_failed_comes_again_with_the_retries(lane: RefreshLane):
    """Nothing is confirmed by it, and until then it is not due."""
    lane.open(opened("bob"))
    (write,) = lane.next_batch()
    lane.open(opened("carol"))
    lane.resync()  # while it is under way
    lane.failed(write)
    lane.check_invariants()
    assert [again.user for again in lane.next_batch()] == ["carol", "alice"]
    lane.resync()
    assert "bob" not in [again.user for again in lane.next_batch()]
    assert (lane.has_work, lane.has_failed, lane.statistics()["backlog"]) == (False, True, 1)
    assert lane.next_batch(is_retrying=True) == [write]
    assert not lane.has_failed


def test_a_change_of_whom_a_write_failed_goes_at_once(lane: RefreshLane):
    """And is not written twice."""
    lane.resync()
    (write,) = lane.next_batch()
    lane.failed(write)
    lane.open(opened("alice", state="busy"))
    lane.check_invariants()
    (changed,) = lane.next_batch()
    lane.open(opened("alice", state="away"))
    lane.failed(changed)
    assert not lane.has_failed
    assert [status_of(one.held).state for one in lane.next_batch(is_retrying=True)] == ["away"]
    assert not lane.has_work


@pytest.mark.parametrize("failing", [2 * BATCH_MAX, 10 * BATCH_MAX])
def test_users_whose_writes_fail_for_long_do_not_keep_others_from_being_refreshed(failing: int):
    """I5: a part of the store is away, with any number of users; all others are refreshed once a round as ever."""
    lane = new_lane()
    lost = {f"lost-{number}" for number in range(failing)}
    well = {f"well-{number}" for number in range(BATCH_MAX)}
    for user in (*lost, *well):
        lane.open(opened(user))
    refreshed: dict[str, int] = dict.fromkeys(well, 0)
    retried: set[str] = set()

    def write(*, is_retrying: bool) -> None:
        batch = lane.next_batch(is_retrying=is_retrying)
        assert len(batch) <= BATCH_MAX
        for one in batch:
            if one.user in lost:
                retried.update({one.user} if is_retrying else ())
                lane.failed(one)
            else:
                refreshed[one.user] += 1
                lane.written(one)
        lane.check_invariants()

    while lane.has_work:
        write(is_retrying=False)
    for number in range(5 * PHASES):  # a batch a phase, of which each has retries
        lane.tick(number)
        write(is_retrying=True)
    assert set(refreshed.values()) == {6}
    assert retried == lost


def test_retries_take_half_of_a_batch_if_there_is_more_of_both():
    """I5: and all that the others leave."""
    lane = new_lane()
    for number in range(2 * BATCH_MAX):
        lane.open(opened(f"lost-{number}"))
    while lane.has_work:
        for write in lane.next_batch():
            lane.failed(write)
    for number in range(BATCH_MAX):
        lane.open(opened(f"new-{number}"))
    for news, retries in ((BATCH_MAX // 2, BATCH_MAX // 2), (BATCH_MAX // 2, BATCH_MAX // 2), (0, BATCH_MAX)):
        users = [write.user for write in lane.next_batch(is_retrying=True)]
        assert sum(user.startswith("new") for user in users) == news
        assert sum(user.startswith("lost") for user in users) == retries


def test_what_stands_for_a_reported_session_is_what_a_write_of_it_confirms(lane: RefreshLane):
    """I3: a write that was under way when the session changed confirms what it carried; an earlier connection counts
    as written with the later one that replaced it.
    """
    first = lane.open(opened("alice", 2))
    (write,) = lane.next_batch()
    second = lane.open(opened("alice", 2, state="busy"))
    assert lane.written(write) == (("s", first),)
    assert lane.open(opened("alice", 1)) == second
    (write,) = lane.next_batch()
    assert lane.written(write) == (("s", second),)


# ---------------------------------------------------------------- ends and changes


def test_a_closed_session_is_removed_until_the_store_did_it(lane: RefreshLane):
    """I4."""
    lane.close(closed(opened("alice")))
    (write,) = lane.next_batch()
    assert (len(write.gone), write.held) == (1, ())
    lane.failed(write)
    assert lane.next_batch(is_retrying=True) == [write]
    lane.written(write)
    lane.tick(0)
    lane.resync()
    assert not lane.has_work
    assert lane.statistics() == {"sessions": 0, "backlog": 0, "removals": 0}


def test_a_changed_session_replaces_its_old_record(lane: RefreshLane):
    """I4: the store never keeps both."""
    lane.open(opened("alice", state="busy"))
    (write,) = lane.next_batch()
    assert (len(write.gone), len(write.held)) == (1, 1)
    assert status_of(write.held).state == "busy"


def test_a_session_reported_again_as_it_was_is_just_written(lane: RefreshLane):
    """Nothing to remove."""
    lane.open(opened("alice"))
    (write,) = lane.next_batch()
    assert (write.gone, len(write.held)) == ((), 1)


def test_a_session_that_comes_back_as_it_was_is_not_removed(lane: RefreshLane):
    """I4: the removal that waited is void, others stay."""
    lane.open(opened("alice", 2, session="t"))
    write_all(lane)
    lane.close(closed(opened("alice", 2, session="t")))
    lane.close(closed(opened("alice")))
    lane.open(opened("alice"))
    (write,) = lane.next_batch()
    assert len(write.gone) == 1
    assert set(write.held).isdisjoint(write.gone)


def test_an_earlier_connection_neither_opens_nor_closes_a_later_one(lane: RefreshLane):
    """I2."""
    lane.open(opened("alice", 3))
    lane.open(opened("alice", 2))
    lane.close(closed(opened("alice", 2)))
    lane.close(closed(opened("nobody", 9)))
    (write,) = lane.next_batch()
    assert len(write.held) == 1
    assert lane.statistics()["sessions"] == 1


def test_what_came_and_went_before_a_write_costs_a_removal_and_then_nothing():
    """It may have been on its way."""
    lane = new_lane()
    lane.open(opened("alice"))
    lane.close(closed(opened("alice")))
    assert [len(write.gone) for write in write_all(lane)] == [1]
    lane.failed(Write("alice", (), (), ()))
    assert lane.next_batch(is_retrying=True) == []


def test_removals_that_wait_are_bounded():
    """I4: beyond, records expire by themselves."""
    lane = new_lane()
    for number in range(GONE_MAX + 1):
        lane.open(opened(f"user-{number}"))
        lane.close(closed(opened(f"user-{number}")))
    lane.check_invariants()
    assert lane.statistics()["removals"] == GONE_MAX
    assert len(write_all(lane)) == GONE_MAX


# ---------------------------------------------------------------- reading


def members(*sessions: Opened, node: str = "a", incarnation: int = 1) -> list[bytes]:
    lane = new_lane(node, incarnation)
    for one in sessions:
        lane.open(one)
    return [member for write in lane.next_batch() for member in write.held]


def test_nobody_is_offline_and_what_is_not_ours_is_ignored():
    """Whatever else writes into the store."""
    assert status_of([]) == OFFLINE
    assert status_of([b"", b"junk", msgspec.msgpack.encode(["too", "short"])]) == OFFLINE


def test_the_best_state_counts_and_the_oldest_session_comes_first():
    """As in the cluster."""
    away, busy = opened("alice", 1, session="s", state="away"), opened("alice", 2, session="t", state="busy")
    status = status_of(members(busy, away))
    assert (status.state, [view.session for view in status.sessions]) == ("busy", ["s", "t"])


def test_of_one_session_the_latest_connection_counts_in_whatever_order_it_is_read():
    """And of one connection what expires last."""
    old, new = members(opened("alice", 1, state="away")), members(opened("alice", 2, state="busy"))
    for order in (old + new, new + old):
        (view,) = status_of(order).sessions
        assert view.state == "busy"
    (view,) = status_of(new + members(opened("alice", 2, state="online"))).sessions
    assert view.state == "online"


def test_a_former_life_of_a_node_is_not_shown_beside_its_new_one():
    """Other nodes' sessions are."""
    found = [
        *members(opened("alice", 9, session="old")),
        *members(opened("alice", 1, session="new"), incarnation=2),
        *members(opened("alice", 1, session="else"), node="b"),
    ]
    assert {view.session for view in status_of(found).sessions} == {"new", "else"}


@pytest.mark.spec("PR-02")
def test_keys_have_the_user_as_their_hash_tag_whatever_it_is_made_of():
    """No two users share a key; every user has a lane."""
    assert key_of("alice") == b"status:{alice}"
    names = ["}", "%7D", "{", "a}b", "a%b", "\u6f22", "\ud800"]
    keys = {key_of(name) for name in names}
    assert len(keys) == len(names)
    assert all(key.index(b"}") == len(key) - 1 for key in keys)
    assert {lane_of(f"user-{number}") for number in range(200)} == set(range(LANES))


# ---------------------------------------------------------------- histories


class Histories(RuleBasedStateMachine):
    """A lane and a store that does, or does not do, what it is told; the twin is a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = new_lane()
        self.held: dict[tuple[str, str], Opened] = {}
        self.store: dict[str, set[bytes]] = {}
        self.seq = 0

    @rule(user=st.sampled_from("abc"), session=st.sampled_from("st"), state=st.sampled_from(["online", "busy"]))
    def opens(self, user: str, session: str, state: State) -> None:
        self.seq += 1
        self.held[user, session] = opened(user, self.seq, session=session, state=state)
        self.lane.open(self.held[user, session])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), state=st.sampled_from(["online", "away"]))
    def changes(self, data: st.DataObject, state: State) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.held[key] = msgspec.structs.replace(self.held[key], state=state)
        self.lane.open(self.held[key])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), is_late=st.booleans())
    def closes(self, data: st.DataObject, *, is_late: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[key]
        self.lane.close(Closed(*key, held.conn_seq - is_late))
        if not is_late:
            del self.held[key]

    @rule(number=st.integers(0, PHASES))
    def ticks(self, number: int) -> None:
        self.lane.tick(number)

    @rule(does=st.booleans(), says=st.booleans(), is_retrying=st.booleans())
    def writes(self, *, does: bool, says: bool, is_retrying: bool) -> None:
        for write in self.lane.next_batch(is_retrying=is_retrying):
            if does:
                self.apply(write)
            if does and says:
                assert dict(self.lane.written(write)).keys() == {s for user, s in self.held if user == write.user}
            else:
                self.lane.failed(write)

    @rule()
    def forgets(self) -> None:
        self.store.clear()

    def apply(self, write: Write) -> None:
        records = self.store.setdefault(write.user, set())
        records.difference_update(write.gone)
        records.update(write.held)

    @invariant()
    def is_sound(self) -> None:
        self.lane.check_invariants()

    def teardown(self) -> None:
        """I1, I2 and I4: a round of phases with a store that works, and it holds exactly what is held."""
        for number in range(PHASES):
            self.lane.tick(number)
        while self.lane.has_work or self.lane.has_failed:
            for write in self.lane.next_batch(is_retrying=True):
                self.apply(write)
                self.lane.written(write)
        found = {
            (user, view.session): view.state for user, store in self.store.items() for view in status_of(store).sessions
        }
        assert found == {key: held.state for key, held in self.held.items()}
        assert sum(map(len, self.store.values())) == len(self.held)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
