"""The asking side of watches: examples, then histories with real owners that break, forget, and move."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from base.clock import Instant
from base.errors import LimitExceeded
from base.ids import Epoch, NodeId
from status.api import Watch, Watched, WatchedReply, WatchReply
from status.core.partitions import PartitionTable, partition_of, plan_table
from status.core.subscription import Shown
from status.core.visibility import OFFLINE, UNKNOWN, Presence, Sight
from status.core.watcher import ASSERT_MS, PAIRS_PER_REQUEST, RETRY_MS, Request, Told, Watcher
from status.core.watches import Notice, WatchDigest, WatchTable, digest_of

ONLINE, AWAY = Presence("online"), Presence("away")
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
    core.noticed(A, [notice(ONLINE, "v")])
    core.unwatch("u", "v")
    assert core.watch("u", "v") is None
    assert asked(core).added == {"u": ["v"]}
    assert core.noticed(A, [notice(ONLINE, "v")]) == [Told("u", "v", ONLINE)]


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
    core.noticed(A, [notice(ONLINE, "v")])
    core.connected(A)
    core.connected(B)
    assert asked(core).is_anew
    assert core.noticed(A, [notice(ONLINE, "v")]) == []
    assert core.noticed(A, [notice(AWAY)]) == [Told("u", "v", AWAY)]


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
    core.noticed(A, [notice(ONLINE, "v")])
    core.unwatch("x", "v")
    moved = plan_table({B: 1}, TABLE)
    assert core.adopt(moved)
    core.check_invariants()
    assert not core.adopt(TABLE)
    ((node, request),) = core.requests(at(0))
    assert (node, request) == (B, Watch(moved.epoch, is_anew=True, added={"u": ["v"]}, removed={}))
    assert core.noticed(A, [notice(AWAY, "v")]) == []
    assert core.noticed(B, [notice(ONLINE, "v")]) == []
    assert core.noticed(B, [notice(AWAY)]) == [Told("u", "v", AWAY)]
    assert core.statistics()["owners"] == 1


def test_an_answer_of_a_former_owner_changes_nothing():
    """Its users are elsewhere; the owner itself is forgotten with the next table."""
    core = watcher(("u", "v"))
    request = ask(core)
    core.adopt(plan_table({B: 1}, TABLE))
    assert core.answered(at(0), A, request, WatchReply(["u"], ["u"])) == []
    core.check_invariants()


# ---------------------------------------------------------------- what is told


def test_a_viewer_is_told_what_is_news():
    """I4: not what it was told last, nor unknown after anything else."""
    core = watcher(("u", "v"))
    asked(core)
    assert core.noticed(A, [notice(UNKNOWN, "v")]) == [Told("u", "v", UNKNOWN)]
    assert core.told("u", "v") == UNKNOWN
    news = core.noticed(A, [notice(ONLINE), notice(ONLINE), notice(UNKNOWN, "v"), notice(OFFLINE, "v")])
    assert news == [Told("u", "v", ONLINE), Told("u", "v", OFFLINE)]
    assert core.watch("u", "v") == OFFLINE
    assert core.told("u", "w") is core.told("x", "v") is None


def test_all_means_those_who_were_named():
    """I3: whoever was not may be denied what the others see."""
    core = watcher(("u", "v"))
    asked(core)
    core.noticed(A, [notice(ONLINE, "v")])
    core.watch("u", "w")
    assert core.noticed(A, [notice(AWAY)]) == [Told("u", "v", AWAY)]
    asked(core)
    assert core.noticed(A, [notice(ONLINE)]) == [Told("u", "v", ONLINE)]
    assert core.noticed(A, [notice(OFFLINE, "w"), notice(AWAY)]) == [
        Told("u", "w", OFFLINE),
        Told("u", "v", AWAY),
        Told("u", "w", AWAY),
    ]


def test_who_left_is_told_nothing():
    """Nor who never was there, nor of whom nobody watches."""
    core = watcher(("u", "v"))
    asked(core)
    core.noticed(A, [notice(ONLINE, "v")])
    core.unwatch("u", "v")
    assert core.noticed(A, [notice(AWAY, "v", "w"), notice(AWAY), notice(AWAY, "v", user="x")]) == []


# ---------------------------------------------------------------- histories

USERS = ["u0", "u1"]
VIEWERS = ["v", "denied"]


class Owner:
    """A status node as its shell is, with the two directions of one stream."""

    def __init__(self, node: NodeId, table: PartitionTable) -> None:
        self.node = node
        self.table = table
        self.up: list[Request] = []
        self.down: list[Notice | tuple[Request, WatchReply | WatchedReply]] = []
        self.life()

    def life(self) -> None:
        self.knows_me = False
        self.watches = WatchTable("e", Random(0), grace_ms=50, jitter_ms=0, coalesce_ms=10)

    def owns(self, user: str) -> bool:
        return self.table.owner(partition_of(user) % PARTITIONS) == self.node

    def adopt(self, table: PartitionTable) -> None:
        old, self.table = self.table, table
        self.watches.forget_users([user for user in USERS if self.since(user) > old.epoch])

    def since(self, user: str) -> Epoch:
        return self.table.owner_epoch(partition_of(user) % PARTITIONS)

    def serve(self, request: Request, sights: dict[str, Sight]) -> None:
        if isinstance(request, Watched):
            is_comparable = request.epoch == self.table.epoch
            is_right = self.knows_me and (not is_comparable or self.watches.digest(ME) == request.digest)
            self.down.append((request, WatchedReply(is_right)))
            return
        if request.is_anew:
            self.watches.forget_node(ME)
            self.knows_me = True
        if not self.knows_me:
            self.down.append((request, WatchReply([], [], is_known=False)))
            return
        for user, viewers in request.removed.items():
            self.watches.unwatch(ME, user, viewers)
        refused = [user for user in request.added if not self.owns(user) or request.epoch < self.since(user)]
        for user, viewers in request.added.items():
            if user not in refused:
                self.down.append(self.watches.watch(ME, user, viewers, sights[user]))
        self.down.append((request, WatchReply(refused, [])))


class Histories(RuleBasedStateMachine):
    """One access node, two owners. "denied" may see nobody, whatever is lost, late, or elsewhere by now."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.moves_left = 0
        self.core = Watcher(users_max=len(USERS), partitions=PARTITIONS)
        self.table = plan_table({A: 1, B: 1}, partitions=PARTITIONS)
        self.core.adopt(self.table)
        self.owners = {node: Owner(node, self.table) for node in (A, B)}
        self.states: dict[str, Presence] = dict.fromkeys(USERS, OFFLINE)
        self.wanted: dict[tuple[str, str], Presence | None] = {}

    def sight(self, user: str) -> Sight:
        state = self.states[user]
        return state if state == OFFLINE else lambda viewer: OFFLINE if viewer == "denied" else state

    def tell(self, owner: Owner) -> None:
        owner.down += owner.watches.due(self.now)

    @rule(user=st.sampled_from(USERS), viewer=st.sampled_from(VIEWERS))
    def watch(self, user: str, viewer: str) -> None:
        assert self.core.watch(user, viewer) == self.wanted.setdefault((user, viewer), None)

    @rule(user=st.sampled_from(USERS), viewer=st.sampled_from(VIEWERS))
    def unwatch(self, user: str, viewer: str) -> None:
        self.core.unwatch(user, viewer)
        self.wanted.pop((user, viewer), None)

    @rule(user=st.sampled_from(USERS), state=st.sampled_from([ONLINE, AWAY, OFFLINE]))
    def change(self, user: str, state: Presence) -> None:
        self.states[user] = state
        for owner in self.owners.values():
            if owner.owns(user):
                owner.watches.changed(self.now, user, self.sight(user))
            self.tell(owner)

    @rule(ms=st.sampled_from([1, 20, 300, 6_000]))
    def wait(self, ms: int) -> None:
        self.now = Instant(self.now + ms)
        for owner in self.owners.values():
            self.tell(owner)

    @rule()
    def ask(self) -> None:
        for node, request in self.core.requests(self.now):
            assert not self.owners[node].up, "I2"
            self.owners[node].up.append(request)

    @rule(node=st.sampled_from([A, B]))
    def serve(self, node: NodeId) -> None:
        owner = self.owners[node]
        for request in owner.up:
            owner.serve(request, {user: self.sight(user) for user in USERS})
        owner.up.clear()

    @rule(node=st.sampled_from([A, B]))
    def lose_a_push(self, node: NodeId) -> None:
        """The owner could not push, and forgets."""
        self.owners[node].watches.forget_node(ME)
        self.owners[node].knows_me = False

    @rule()
    def exchange(self) -> None:
        """Whatever is on its way arrives, and what is asked is answered."""
        self.ask()
        for node in self.owners:
            self.serve(node)
            self.deliver(node, 1_000)

    @rule(node=st.sampled_from([A, B]), count=st.integers(1, 4))
    def deliver(self, node: NodeId, count: int) -> None:
        owner = self.owners[node]
        for message in owner.down[:count]:
            if isinstance(message, Notice):
                for told in self.core.noticed(node, [message]):
                    assert told.viewer != "denied" or told.presence == OFFLINE, "I3"
                    assert self.wanted[told.user, told.viewer] != told.presence, "I4"
                    self.wanted[told.user, told.viewer] = told.presence
            else:
                assert self.core.answered(self.now, node, *message) == []
        del owner.down[:count]

    @rule(
        node=st.sampled_from([A, B]),
        is_restart=st.booleans(),
        user=st.sampled_from(USERS),
        state=st.sampled_from([ONLINE, AWAY]),
    )
    def cut(self, node: NodeId, user: str, state: Presence, *, is_restart: bool) -> None:
        """The stream breaks, and maybe the owner with it; what was on its way is lost, and some news was."""
        self.change(user, state)
        owner = self.owners[node]
        under_way = [*owner.up, *(message[0] for message in owner.down if not isinstance(message, Notice))]
        owner.up, owner.down = [], []
        if is_restart:
            owner.life()
        for request in under_way:
            self.core.failed(self.now, node, request)
        self.core.connected(node)

    @initialize(moves=st.integers(0, 2))
    def begin(self, moves: int) -> None:
        """A move asks everything of another owner, which mends whatever was wrong: not too many of them."""
        self.moves_left = moves

    @precondition(lambda self: self.moves_left > 0)
    @rule(weights=st.sampled_from([(1, 1), (3, 1), (1, 3), (1, 0), (0, 1)]))
    def move(self, weights: tuple[int, int]) -> None:
        self.moves_left -= 1
        wanted = {node: weight for node, weight in zip((A, B), weights, strict=True) if weight}
        self.table = plan_table(wanted, self.table)

    @rule(node=st.sampled_from([A, B]))
    def owner_adopts(self, node: NodeId) -> None:
        self.owners[node].adopt(self.table)

    @rule()
    def adopt(self) -> None:
        self.core.adopt(self.table)

    @invariant()
    def holds(self) -> None:
        self.core.check_invariants()
        for pair, presence in self.wanted.items():
            assert self.core.told(*pair) == presence

    def teardown(self) -> None:
        """Whatever happened: when all know the table and nothing breaks, every viewer is told what it sees."""
        self.adopt()
        for node in self.owners:
            self.owner_adopts(node)
        for _ in range(40):
            self.wait(300)
            self.exchange()
        for (user, viewer), presence in self.wanted.items():
            assert presence == (OFFLINE if viewer == "denied" else self.states[user])
        self.holds()


Histories.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestHistories = Histories.TestCase
