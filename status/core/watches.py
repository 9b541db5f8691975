"""Who wants to be told about whom, and when that is told: the watches at the owner of the watched users.

An access node has one subscription a watched user, however many of its clients look on. It names these viewers, since
visibility is decided here: what leaves the owner is what each viewer may see, and a user whom all see alike costs one
short notice a node.

Reading never waits, telling does. Who comes, or changes between online, away and busy, is told at once, but at most one
notice a user and `coalesce_ms`: the first change after quiet leaves immediately, and of those in the interval the last
one counts. Who goes is told after a grace and a random part, which spreads the users of a dead access node, and not at
all when back by then. "Goes" is meant as the viewer sees it: who hides, or denies a viewer, goes offline like anybody
else, at the same pace. While the owner cannot tell (unknown), viewers keep what they know.

A watch is a state and not a stream of events. An access node that may have missed a notice watches anew, and is
answered with snapshots: there is no history.

Invariants:
    I1  A viewer is never told what it was told last. (A snapshot, which answers a question, may repeat it.)
    I2  Notices of a user are `coalesce_ms` apart, and "offline" after a presence waits for the grace without a break.
    I3  "unknown" is told in snapshots only.
    I4  Versions of a user grow by one a notice and never fall in the life of the owner.
    I5  A node's digest is that of its pairs of watched user and viewer.
    I6  Whatever is pending has a deadline, not later than the first instant at which it may be told.

What is kept of a user is forgotten with its last watch. No operation passes over more than the users and nodes that it
is about; `changed` asks for each viewer of the user when not all see the same.

Telling late what is read at once, and dropping it when the user returns, follows A. Gupta, "Now You See Me, Now You
Don't: LinkedIn's Real-Time Presence Platform" (LinkedIn Engineering, 2018).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, KeysView, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec
from xxhash import xxh3_64_intdigest

from base.clock import Instant
from base.errors import LimitExceeded
from base.ids import NodeId
from status.core.subscription import Shown, Subscription
from status.core.visibility import Sight

__all__ = ["COALESCE_MS", "GRACE_MS", "JITTER_MS", "VIEWERS_MAX", "WATCHES_MAX", "Notice", "WatchDigest", "WatchTable"]
__all__ += ["digest_of"]

COALESCE_MS = 200
GRACE_MS = 8_000
JITTER_MS = 2_000
WATCHES_MAX = 200_000
VIEWERS_MAX = 20_000


class _Random(Protocol):
    def randrange(self, stop: int, /) -> int: ...


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """What to tell viewers of a user on one access node.

    "All viewers" are those that the owner knew when it made the notice: what goes to one node must arrive in the order
    in which it was made, snapshots included. The version is for access nodes and never for clients: it grows when
    others are told something, so that it would tell a viewer who is denied that the user is about.
    """

    node: NodeId
    user: str
    version: int
    shown: tuple[Shown, ...]


class WatchDigest(NamedTuple):
    """How many pairs of watched user and viewer, and the XOR of their hashes: equal for equal watches."""

    pairs: int
    xor: int


_NO_WATCHES = WatchDigest(0, 0)


def digest_of(watches: Mapping[str, Iterable[str]]) -> WatchDigest:
    """Return the digest of viewers by watched user: what an access node says it wants of this owner."""
    pairs = xor = 0
    for user, viewers in watches.items():
        for viewer in viewers:
            pairs, xor = pairs + 1, xor ^ _pair_hash(user, viewer)
    return WatchDigest(pairs, xor)


def _pair_hash(user: str, viewer: str) -> int:
    return xxh3_64_intdigest(f"{user}\0{viewer}".encode())  # no id has a control character in it


@dataclass(slots=True)
class _Watched:
    """A watched user. Notices may leave from `free_at` on; `wake_at` is its live entry among the deadlines."""

    version: int
    free_at: Instant = Instant(0)
    wake_at: Instant | None = None
    nodes: dict[NodeId, Subscription] = field(default_factory=dict)


@dataclass(slots=True)
class _Node:
    """What an access node watches. The users are a dictionary because that keeps its order, for the sake of replays."""

    users: dict[str, None] = field(default_factory=dict)
    digest: WatchDigest = _NO_WATCHES


class WatchTable:
    """The watches of one life of an owner. After each call, ask `due` for what is to be told by now."""

    def __init__(
        self,
        random: _Random,
        *,
        grace_ms: int = GRACE_MS,
        jitter_ms: int = JITTER_MS,
        coalesce_ms: int = COALESCE_MS,
        watches_max: int = WATCHES_MAX,
        viewers_max: int = VIEWERS_MAX,
    ) -> None:
        """`watches_max` bounds the users that one access node watches, `viewers_max` its viewers of one user."""
        self._random = random
        self._grace_ms = grace_ms
        self._jitter_ms = jitter_ms
        self._coalesce_ms = coalesce_ms
        self._watches_max = watches_max
        self._viewers_max = viewers_max
        self._users: dict[str, _Watched] = {}
        self._nodes: dict[NodeId, _Node] = {}
        # An entry is live while it is its user's `wake_at`.
        self._deadlines: list[tuple[Instant, str]] = []
        # No user that was forgotten had a greater version: whoever is watched anew goes on from here (I4).
        self._newest_forgotten = 0

    # ---------------------------------------------------------------- watching

    def watch(self, node: NodeId, user: str, viewers: Collection[str], sight: Sight) -> Notice:
        """Add viewers, at least one; return what they see now, a snapshot. Viewers who are there already get one too.

        Raises:
            LimitExceeded: too many users for the node, or viewers for the user; nothing is changed.
        """
        held = self._subscription(node, user) or ()
        fresh = sum(viewer not in held for viewer in set(viewers))
        self._check_limits(len(self._node(node).users) + (not held), len(held) + fresh)
        return self._add(node, user, viewers, sight)

    def unwatch(self, node: NodeId, user: str, viewers: Collection[str]) -> None:
        """Remove viewers; those that are not there do not matter."""
        watched = self._users.get(user)
        if watched is None or node not in watched.nodes:
            return
        subscription = watched.nodes[node]
        self._count(node, user, subscription.remove(viewers), by=-1)
        if not subscription:
            del watched.nodes[node]
            users = self._nodes[node].users
            del users[user]
            if not users:
                del self._nodes[node]
            self._forget_if_unwatched(user, watched)

    def forget_node(self, node: NodeId) -> None:
        """Remove all that an access node watches: it is gone."""
        for user in self._node(node).users:
            watched = self._users[user]
            del watched.nodes[node]
            self._forget_if_unwatched(user, watched)
        self._nodes.pop(node, None)

    def forget_users(self, users: Iterable[str]) -> None:
        """Remove all watches of users that have another owner now; nobody is told anything."""
        for user in users:
            for node in list(self._users[user].nodes) if user in self._users else ():
                self.unwatch(node, user, self._viewers(node, user))

    def is_watched(self, user: str) -> bool:
        """Return whether anybody watches the user: if not, `changed` need not be called."""
        return user in self._users

    def watched(self) -> KeysView[str]:
        """Return the watched users, as a view."""
        return self._users.keys()

    def digest(self, node: NodeId) -> WatchDigest:
        """Return the digest of what the node watches here."""
        return self._node(node).digest

    # ---------------------------------------------------------------- telling

    def changed(self, now: Instant, user: str, sight: Sight) -> None:
        """Take note of what viewers see from now on: whatever changes that, sessions or audience, must come here.

        The sight is asked now and not kept.
        """
        watched = self._users.get(user)
        if watched is None:
            return
        offline_at = Instant(now + self._grace_ms + self._random.randrange(self._jitter_ms + 1))
        for subscription in watched.nodes.values():
            self._wake(user, watched, subscription.see(now, sight, offline_at))

    def due(self, now: Instant) -> list[Notice]:
        """Return what is to be told by now, the longest due first, and take it as told."""
        notices: list[Notice] = []
        while (at := self.next_deadline()) is not None and at <= now:
            _, user = heapq.heappop(self._deadlines)
            watched = self._users[user]
            assert watched.free_at <= at, "I2: whatever moves `free_at` moves the deadline along"
            watched.wake_at = None
            notices += self._tell(now, user, watched)
            for subscription in watched.nodes.values():
                self._wake(user, watched, subscription.next_at())
        return notices

    def next_deadline(self) -> Instant | None:
        """Return when to call `due` next, None while nothing waits. It may then find that all was cancelled."""
        while self._deadlines:
            at, user = self._deadlines[0]
            watched = self._users.get(user)
            if watched is not None and watched.wake_at == at:
                return at
            heapq.heappop(self._deadlines)
        return None

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes. Costs a pass over the access nodes."""
        watches = sum(len(held.users) for held in self._nodes.values())
        pairs = sum(held.digest.pairs for held in self._nodes.values())
        return {"users": len(self._users), "watches": watches, "viewers": pairs, "deadlines": len(self._deadlines)}

    def check_invariants(self) -> None:
        """Assert I5 and I6; the subscriptions assert their part of I1 and I3."""
        viewers: dict[NodeId, dict[str, set[str]]] = {node: {} for node in self._nodes}
        for user, watched in self._users.items():
            assert watched.nodes, "what nobody watches is forgotten"
            for node, subscription in watched.nodes.items():
                subscription.check_invariants()
                viewers[node][user] = subscription.viewers()
                at = subscription.next_at()
                is_awake = watched.wake_at is not None and watched.wake_at <= max(at or 0, watched.free_at)
                assert at is None or is_awake, "I6"
            assert watched.wake_at is None or (watched.wake_at, user) in self._deadlines, "I6"
        for node, held in self._nodes.items():
            assert held.users.keys() == viewers[node].keys() != set(), "the two sides of a watch agree"
            assert held.digest == digest_of(viewers[node]), "I5"

    # ---------------------------------------------------------------- inside

    def _check_limits(self, watches: int, viewers: int) -> None:
        for what, limit, seen in (("watches", self._watches_max, watches), ("viewers", self._viewers_max, viewers)):
            if seen > limit:
                raise LimitExceeded(f"an access node may have {limit} {what}", what=what, limit=limit, seen=seen)

    def _node(self, node: NodeId) -> _Node:
        """Return what the node watches, for reading only."""
        return self._nodes.get(node) or _Node()

    def _subscription(self, node: NodeId, user: str) -> Subscription | None:
        watched = self._users.get(user)
        return None if watched is None else watched.nodes.get(node)

    def _viewers(self, node: NodeId, user: str) -> set[str]:
        subscription = self._subscription(node, user)
        return set() if subscription is None else subscription.viewers()

    def _add(self, node: NodeId, user: str, viewers: Collection[str], sight: Sight) -> Notice:
        assert viewers
        watched = self._users.get(user) or _Watched(self._newest_forgotten)
        subscription = watched.nodes.get(node) or Subscription()
        fresh = {viewer for viewer in viewers if viewer not in subscription}
        shown = subscription.add(viewers, sight)
        self._users[user] = watched
        watched.nodes[node] = subscription
        self._nodes.setdefault(node, _Node()).users[user] = None
        self._count(node, user, fresh, by=1)
        return Notice(node, user, watched.version, shown)

    def _forget_if_unwatched(self, user: str, watched: _Watched) -> None:
        if not watched.nodes:
            self._newest_forgotten = max(self._newest_forgotten, watched.version)
            del self._users[user]

    def _count(self, node: NodeId, user: str, viewers: set[str], *, by: int) -> None:
        held = self._nodes[node]
        pairs, xor = held.digest
        for viewer in viewers:
            xor ^= _pair_hash(user, viewer)
        held.digest = WatchDigest(pairs + by * len(viewers), xor)

    def _tell(self, now: Instant, user: str, watched: _Watched) -> list[Notice]:
        version = watched.version + 1
        notices = []
        for node, subscription in watched.nodes.items():
            if shown := subscription.tell(now):
                notices.append(Notice(node, user, version, shown))
        if notices:
            watched.version = version
            watched.free_at = Instant(now + self._coalesce_ms)
        return notices

    def _wake(self, user: str, watched: _Watched, tell_at: Instant | None) -> None:
        """See to a deadline when that may be told. One that is earlier will do (I6): it finds nothing, and moves."""
        if tell_at is None:
            return
        at = max(tell_at, watched.free_at)
        if watched.wake_at is None or at < watched.wake_at:
            watched.wake_at = at
            heapq.heappush(self._deadlines, (at, user))
