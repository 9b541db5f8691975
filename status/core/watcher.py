"""What an access node watches, at which owners, and what its viewers were told last: the asking side of watches.

The node wants pairs of watched user and viewer. Each owner is told the difference between what is wanted and what was
*asked* of it, one request at a time, which brings a snapshot for whoever is new. After a new stream, a failed request,
or a wrong digest everything is asked *anew*: the owner forgets first what it knew of this node, so that whatever was
lost on the way is made good by the snapshots. Viewers are told what differs from what they were told last.

Owners say "all viewers" for short. That means those whom the owner knew then, and nobody else must be told: another
viewer may not be allowed to see the same. What comes from one owner comes in order, so they are those who have been
named, as a snapshot does, since they were asked for. An owner that forgot some of them takes nobody else before it was
asked for all of them anew.

The owner lets the news that somebody went offline wait for a return, but a snapshot says at once what is seen, and
everything is asked anew for reasons that have nothing to do with the user: a stream broke, the partition moved. So
"offline" waits here if it is the first that an owner can tell since it was asked anew, to a viewer who was told a
presence before: it is told after a grace, unless anything else was seen by then. Who asks first waits for nothing.

Invariants:
    I1  A pair is asked of the owner in the newest table, or pending for it, or the owner said that it is too many.
    I2  At most one request an owner is under way.
    I3  A viewer is told what names it, and what is for all only if it was named since it was asked for.
    I4  A viewer is never told what it was told last, nor "unknown" after anything else.
    I5  An owner's digest is that of the pairs that were asked of it.
    I6  An owner is known while users are watched there or a request is under way: a dead one is not asked for ever.
    I7  What waits is "offline", to a viewer who was told a presence last, for no longer than the grace since it was
        seen first and nothing else since then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice, takewhile
from typing import NamedTuple

from base.clock import Instant
from base.errors import LimitExceeded
from base.ids import Epoch, NodeId
from status.api import Watch, Watched, WatchedReply, WatchReply
from status.core.partitions import PARTITIONS, PartitionTable, partition_of
from status.core.visibility import Presence
from status.core.watches import GRACE_MS, Notice, WatchDigest, digest_of

__all__ = ["ASSERT_MS", "Request", "Told", "Watcher"]

ASSERT_MS = 5_000
RETRY_MS = 200
PAIRS_PER_REQUEST = 2_000

Request = Watch | Watched
_ABSENT = frozenset({"offline", "unknown"})
_NONE = WatchDigest(0, 0)


class Told(NamedTuple):
    """What a viewer is to be told of a user."""

    user: str
    viewer: str
    presence: Presence


class _Said(IntEnum):
    """What an owner said to a viewer since it was asked for: that it cannot tell, or what the viewer sees."""

    NOTHING = 0
    UNKNOWN = 1
    KNOWN = 2


class _Waiting(NamedTuple):
    """What a viewer is to be told at an instant, unless something else comes."""

    presence: Presence
    at: Instant


@dataclass(slots=True)
class _User:
    """A watched user: what each viewer was told last, and who was asked for, with what was said to it since."""

    partition: int
    link: _Link | None = None
    told: dict[str, Presence | None] = field(default_factory=dict)
    asked: dict[str, _Said] = field(default_factory=dict)


@dataclass(slots=True)
class _Link:
    """What there is to ask of one owner. Pending pairs are those that may differ from what was asked."""

    node: NodeId
    users: dict[str, _User] = field(default_factory=dict)
    pending: dict[tuple[str, str], None] = field(default_factory=dict)
    digest: WatchDigest = _NONE
    is_said: bool = False
    """Whether everything was asked since the last time that everything had to be."""
    was_asked: bool = False
    in_flight: Request | None = None
    not_before: Instant = Instant(0)
    assert_at: Instant = Instant(0)

    def due_at(self) -> Instant | None:
        if self.in_flight is not None:
            return None
        if self.pending or (not self.is_said and self.was_asked):
            return self.not_before
        return max(self.assert_at, self.not_before) if self.digest.pairs else None


class Watcher:
    """The watches of one access node. Its shell sends what `requests` returns, and steps what comes."""

    def __init__(self, *, users_max: int, partitions: int = PARTITIONS, grace_ms: int = GRACE_MS) -> None:
        """Watch nobody.

        Args:
            users_max: bounds the watched users.
            partitions: how many every table has.
            grace_ms: how long the news that somebody went offline waits here, if everything was asked anew before.
        """
        self.table: PartitionTable | None = None
        self._users_max = users_max
        self._size = partitions
        self._grace_ms = grace_ms
        self._users: dict[str, _User] = {}
        self._by_partition: dict[int, dict[str, _User]] = {}
        self._links: dict[NodeId, _Link] = {}
        # By user and viewer, what is due first first.
        self._waiting: dict[tuple[str, str], _Waiting] = {}

    # ---------------------------------------------------------------- what is wanted

    def watch(self, user: str, viewer: str) -> Presence | None:
        """Add a viewer; return what it was told last, None if it has been told nothing yet.

        Raises:
            LimitExceeded: as many users are watched as may be.
        """
        found = self._users.get(user)
        if found is None:
            if len(self._users) >= self._users_max:
                limit = self._users_max
                raise LimitExceeded("this node watches as many users as it may", what="watches", limit=limit)
            found = self._users[user] = _User(partition_of(user) % self._size)
            self._by_partition.setdefault(found.partition, {})[user] = found
            self._route(user, found)
        if viewer in found.told:
            return found.told[viewer]
        self._unask(user, found, [viewer])  # it was there before, and is not told anything twice but by a snapshot
        found.told[viewer] = None
        self._pend(user, found, [viewer])
        return None

    def unwatch(self, user: str, viewer: str) -> None:
        """Remove a viewer; one that is not there does not matter."""
        found = self._users.get(user)
        if found is None or viewer not in found.told:
            return
        del found.told[viewer]
        self._waiting.pop((user, viewer), None)
        if viewer in found.asked:
            self._pend(user, found, [viewer])
        elif found.link is not None:
            found.link.pending.pop((user, viewer), None)
        link = found.link
        self._forget_if_idle(user, found)
        if link is not None:
            self._forget_link_if_idle(link)

    def told(self, user: str, viewer: str) -> Presence | None:
        """Return what the viewer was told last, None for nothing."""
        found = self._users.get(user)
        return None if found is None else found.told.get(viewer)

    def adopt(self, table: PartitionTable) -> bool:
        """Route by a newer table; return whether it was newer."""
        old = self.table
        if old is not None and table.epoch <= old.epoch:
            return False
        self.table = table
        for partition, users in list(self._by_partition.items()):
            # Also what came back to the same owner: it forgot the watches in between.
            if old is None or max(table.owner_epoch(partition), table.restored) > old.epoch:
                for user, found in list(users.items()):
                    self._unask(user, found, list(found.asked))
                    self._unroute(user, found)
                    if found.told:
                        self._route(user, found)
                        self._pend(user, found, found.told)
                    else:
                        self._forget_if_idle(user, found)
        for link in list(self._links.values()):
            self._forget_link_if_idle(link)
        return True

    # ---------------------------------------------------------------- requests

    def requests(self, now: Instant) -> list[tuple[NodeId, Request]]:
        """Return what to ask now."""
        made: list[tuple[NodeId, Request]] = []
        for link in self._links.values():
            due_at = link.due_at()
            if self.table is not None and due_at is not None and due_at <= now:
                link.in_flight = self._request(link, self.table.epoch)
                made.append((link.node, link.in_flight))
        return made

    def answered(
        self, now: Instant, node: NodeId, request: Request, reply: WatchReply | WatchedReply
    ) -> list[tuple[str, str]]:
        """Take note of the answer; return pairs of user and viewer that are too many for the owner."""
        link = self._links.get(node)
        if link is None or link.in_flight is not request:
            return []
        link.in_flight = None
        limited = self._answered(now, link, request, reply)
        self._forget_link_if_idle(link)
        return limited

    def failed(self, now: Instant, node: NodeId, request: Request) -> None:
        """Take note that no answer came: what became of the request is not known, so all is asked anew."""
        link = self._links.get(node)
        if link is not None and link.in_flight is request:
            link.in_flight = None
            link.is_said = False
            link.not_before = Instant(now + RETRY_MS)
            self._forget_link_if_idle(link)

    def connected(self, node: NodeId) -> None:
        """Take note of a new stream to the owner: what it pushed on the last one may be lost."""
        link = self._links.get(node)
        if link is not None:
            link.is_said = False

    def next_deadline(self) -> Instant | None:
        """Return when `requests` or `due` has something to do; None when it waits for answers only."""
        deadlines = [due for link in self._links.values() if (due := link.due_at()) is not None]
        deadlines += [waiting.at for waiting in islice(self._waiting.values(), 1)]
        return min(deadlines, default=None)

    # ---------------------------------------------------------------- notices

    def noticed(self, now: Instant, node: NodeId, notices: Iterable[Notice]) -> list[Told]:
        """Take in what an owner says; return what is news to viewers."""
        news: list[Told] = []
        for notice in notices:
            found = self._users.get(notice.user)
            if found is None or found.link is None or found.link.node != node:
                continue
            for shown in notice.shown:
                if shown.viewers is None:
                    viewers = [viewer for viewer, said in found.asked.items() if said is not _Said.NOTHING]
                else:
                    viewers = [viewer for viewer in shown.viewers if viewer in found.asked]
                news += [
                    Told(notice.user, viewer, shown.presence)
                    for viewer in viewers
                    if self._is_news(now, notice.user, found, viewer, shown.presence)
                ]
        return news

    @property
    def has_waiting(self) -> bool:
        """Whether `due` has something to tell now or later."""
        return bool(self._waiting)

    def due(self, now: Instant) -> list[Told]:
        """Return what waited long enough, to be told now."""
        ready = list(takewhile(lambda item: item[1].at <= now, self._waiting.items()))
        news: list[Told] = []
        for (user, viewer), (presence, _) in ready:
            del self._waiting[user, viewer]
            self._users[user].told[viewer] = presence
            news.append(Told(user, viewer, presence))
        return news

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        pairs = sum(link.digest.pairs for link in self._links.values())
        pending = sum(len(link.pending) for link in self._links.values())
        return {"users": len(self._users), "asked": pairs, "pending": pending, "owners": len(self._links)}

    def check_invariants(self) -> None:
        """Assert I1, I5 and the indexes."""
        for user, found in self._users.items():
            assert found.told or found.asked, "what nobody wants is forgotten"
            assert self._by_partition[found.partition][user] is found
            assert found.link is None or found.link.users[user] is found
            if self.table is not None:
                assert found.link is not None, "I1"
                assert found.link.node == self.table.owner(found.partition), "I1"
        assert sum(map(len, self._by_partition.values())) == len(self._users)
        for (user, viewer), waiting in self._waiting.items():
            told = self._users[user].told[viewer]
            assert waiting.presence.state == "offline", "I7"
            assert told is not None, "I7"
            assert told.state not in _ABSENT, "I7"
        for link in self._links.values():
            assert link.users or link.in_flight is not None, "I6"
            assert link.digest == digest_of({user: found.asked for user, found in link.users.items()}), "I5"
            assert all(self._users.get(user) is found for user, found in link.users.items())

    # ---------------------------------------------------------------- inside

    def _is_news(self, now: Instant, user: str, found: _User, viewer: str, presence: Presence) -> bool:
        """Take note of what a viewer sees, as the owner says; return whether it is to be told that now."""
        is_first = found.asked[viewer] is not _Said.KNOWN
        if presence.state != "unknown":
            found.asked[viewer] = _Said.KNOWN
        elif is_first:
            found.asked[viewer] = _Said.UNKNOWN
        if viewer not in found.told:
            return False
        told = found.told[viewer]
        if presence.state == "unknown" and told is not None:
            return False
        if is_first and presence.state == "offline" and told is not None and told.state not in _ABSENT:
            since = self._waiting.get((user, viewer))
            at = since.at if since is not None else Instant(now + self._grace_ms)
            self._waiting[user, viewer] = _Waiting(presence, at)
            return False
        self._waiting.pop((user, viewer), None)
        found.told[viewer] = presence
        return presence != told

    def _answered(
        self, now: Instant, link: _Link, request: Request, reply: WatchReply | WatchedReply
    ) -> list[tuple[str, str]]:
        link.assert_at = Instant(now + ASSERT_MS)
        if isinstance(reply, WatchedReply):
            link.is_said = link.is_said and reply.is_right
            return []
        assert isinstance(request, Watch)
        if not reply.is_known:
            link.is_said = False
            return []
        for user in reply.refused:
            if (found := link.users.get(user)) is not None:
                viewers = [viewer for viewer in request.added[user] if viewer in found.asked]
                self._unask(user, found, viewers)
                self._pend(user, found, viewers)
                self._forget_if_idle(user, found)
                link.not_before = Instant(now + RETRY_MS)
        limited: list[tuple[str, str]] = []
        for user in reply.limited:
            if (found := link.users.get(user)) is not None:
                self._unask(user, found, request.added[user])
                limited += [(user, viewer) for viewer in request.added[user]]
                self._forget_if_idle(user, found)
        return limited

    def _request(self, link: _Link, epoch: Epoch) -> Request:
        is_anew = not link.is_said
        if is_anew:
            for user, found in list(link.users.items()):
                self._unask(user, found, list(found.asked))
                self._pend(user, found, found.told)
                self._forget_if_idle(user, found)
            link.is_said = True
        elif not link.pending:
            return Watched(epoch, link.digest)
        added: dict[str, list[str]] = {}
        removed: dict[str, list[str]] = {}
        for user, viewer in list(link.pending)[:PAIRS_PER_REQUEST]:
            del link.pending[user, viewer]
            wanted = link.users.get(user)
            if wanted is None:
                continue
            if viewer in wanted.told and viewer not in wanted.asked:
                added.setdefault(user, []).append(viewer)
                wanted.asked[viewer] = _Said.NOTHING
                self._count(link, user, viewer, by=1)
            elif viewer not in wanted.told and viewer in wanted.asked:
                removed.setdefault(user, []).append(viewer)
                self._unask(user, wanted, [viewer])
                self._forget_if_idle(user, wanted)
        link.was_asked = True
        return Watch(epoch, is_anew, added, removed)

    def _route(self, user: str, found: _User) -> None:
        if self.table is not None:
            node = self.table.owner(found.partition)
            found.link = self._links.setdefault(node, _Link(node))
            found.link.users[user] = found

    @staticmethod
    def _unroute(user: str, found: _User) -> None:
        if found.link is not None:
            del found.link.users[user]
            found.link = None

    @staticmethod
    def _pend(user: str, found: _User, viewers: Iterable[str]) -> None:
        if found.link is not None:
            found.link.pending.update(((user, viewer), None) for viewer in viewers)

    def _unask(self, user: str, found: _User, viewers: Iterable[str]) -> None:
        for viewer in viewers:
            if found.asked.pop(viewer, None) is not None:
                assert found.link is not None, "who was asked for was routed"
                self._count(found.link, user, viewer, by=-1)

    @staticmethod
    def _count(link: _Link, user: str, viewer: str, *, by: int) -> None:
        link.digest = WatchDigest(link.digest.pairs + by, link.digest.xor ^ digest_of({user: (viewer,)}).xor)

    def _forget_link_if_idle(self, link: _Link) -> None:
        """Forget an owner of whose users nobody is watched: there is nothing to say, and it forgets by itself."""
        if not link.users and link.in_flight is None:
            del self._links[link.node]

    def _forget_if_idle(self, user: str, found: _User) -> None:
        if not found.told and not found.asked:
            self._unroute(user, found)
            del self._users[user]
            users = self._by_partition[found.partition]
            del users[user]
            if not users:
                del self._by_partition[found.partition]
