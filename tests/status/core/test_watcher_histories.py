"""The asking side of watches in histories with real owners that break, forget, and move."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from base.clock import Instant
from base.ids import Epoch, NodeId
from status.api import Watched, WatchedReply, WatchReply
from status.core.partitions import PartitionTable, partition_of, plan_table
from status.core.visibility import OFFLINE, Presence, Sight
from status.core.watcher import Request, Told, Watcher
from status.core.watches import Notice, WatchTable

ONLINE, AWAY = Presence("online"), Presence("away")
A, B = NodeId("status-1"), NodeId("status-2")
ME = NodeId("access-1")
PARTITIONS = 4
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
        self.watches = WatchTable(Random(0), grace_ms=50, jitter_ms=0, coalesce_ms=10)

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
        self.core = Watcher(users_max=len(USERS), partitions=PARTITIONS, grace_ms=500)
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

    def is_told(self, news: list[Told]) -> None:
        for told in news:
            assert told.viewer != "denied" or told.presence == OFFLINE, "I3"
            assert self.wanted[told.user, told.viewer] != told.presence, "I4"
            self.wanted[told.user, told.viewer] = told.presence

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
        self.is_told(self.core.due(self.now))
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
                self.is_told(self.core.noticed(self.now, node, [message]))
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
