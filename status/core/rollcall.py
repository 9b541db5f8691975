"""Who is online, counted, and who is behind one access node, listed: what lookups of everybody would show.

Both go through a node's partitions one at a time, each within one turn. A partition that the node may not answer for is
*refused*, and asked of its next owner; one of which the owner cannot tell everything, since lookups in it say unknown,
is *unsure*: it is counted and listed as far as it is known, and named.

A listing is in the order of partitions, and of users within a partition. Every node tells its own part; of the parts a
page is made that ends where the first of them ends, so that nothing before its end is left out. The end is a
*bookmark*: a partition, and the last user told of it. It says nothing of nodes, so a partition may move between two
pages: its next owner goes on after the same user.

Invariants:
    I1  A session that is open from the first page of a listing to its last one is in exactly one of them, or that page
        names its partition as a gap.
    I2  Each part ends behind where it began: at least one partition, or one user, is told.
    I3  One part looks at about `LOOKED_MAX` users at most, and ends with the user who brings it to its limit.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec

from base.clock import Instant
from base.errors import BadRequest
from base.ids import NodeId
from status.api import UNKNOWN_SHOWN, Shown
from status.core.holding import Role
from status.core.ownership import Ownership
from status.core.partitions import PARTITIONS
from status.core.records import Found, PartitionRecords

__all__ = ["CURSOR_CHARS_MAX", "END", "START", "Bookmark", "Listed", "Listing", "Page", "Tally", "cursor_of"]
__all__ += ["bookmark_of", "page_of"]

CURSOR_CHARS_MAX = 1_000
LOOKED_MAX = 100_000
"""About 20 ms of work, which its shell does in many turns."""
PARTITION_COST = 20
"""What it costs to look at a partition without a user of interest, in users looked at."""


class Bookmark(NamedTuple):
    """How far a listing is: all partitions before this one, and in it the users up to `after`, are told."""

    partition: int
    after: str


START = Bookmark(0, "")
END = Bookmark(PARTITIONS, "")


class _Encoded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    node: NodeId
    partition: Annotated[int, msgspec.Meta(ge=0, le=PARTITIONS)]
    after: str


_decoder = msgspec.msgpack.Decoder(_Encoded)


def cursor_of(node: NodeId, bookmark: Bookmark) -> str:
    """Return the bookmark of an access node's listing as a text, which may stand in a URL as it is."""
    packed = msgspec.msgpack.encode(_Encoded(1, node, bookmark.partition, bookmark.after))
    return urlsafe_b64encode(packed).rstrip(b"=").decode()


def bookmark_of(cursor: str, node: NodeId) -> Bookmark:
    """Return where a listing goes on; an empty cursor begins it.

    Raises:
        BadRequest: it is none that we made, or it belongs to another access node's listing.
    """
    if not cursor:
        return START
    if len(cursor) > CURSOR_CHARS_MAX:
        raise BadRequest(f"the cursor has {len(cursor)} characters, at most {CURSOR_CHARS_MAX} are taken")
    try:
        packed = b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        encoded = _decoder.decode(packed)
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadRequest("the cursor is not one that was given out; without one the listing begins") from error
    if encoded.node != node:
        raise BadRequest(f"the cursor is of the listing of {encoded.node}, not of {node}")
    return Bookmark(encoded.partition, encoded.after)


# ---------------------------------------------------------------- what one node tells


class _Walk:
    """Goes through partitions; which of them may be told, and how completely."""

    def __init__(self, ownership: Ownership) -> None:
        self.refused: list[int] = []
        self.unsure: list[int] = []
        self._ownership = ownership

    def _enter(self, now: Instant, partition: int) -> PartitionRecords | None:
        """Return the partition's store if anything may be told of it."""
        role = self._ownership.role(now, partition)
        store = self._ownership.store(partition)
        if store is None or role not in {Role.SERVING, Role.RECOVERING}:
            self.refused.append(partition)
            return None
        if role is Role.RECOVERING:
            self.unsure.append(partition)
        return store

    def _look_up(self, now: Instant, partition: int, users: Sequence[str], known: Sequence[Found]) -> list[Shown]:
        """Return what lookups show of the users, and note if that is not all that is known of them."""
        shown = self._ownership.lookup(now, [partition] * len(users), users)
        # Nearly always the two hold the same objects, which is quickly seen.
        if shown != known and any(map(_is_doubtful, known, shown)) and self.unsure[-1:] != [partition]:
            self.unsure.append(partition)
        return shown


class Tally(_Walk):
    """How many users and sessions are online in the partitions that were taken, and behind which access nodes."""

    def __init__(self, ownership: Ownership) -> None:
        super().__init__(ownership)
        self.users = 0
        self.sessions_of: Counter[NodeId] = Counter()
        self.users_of: Counter[NodeId] = Counter()
        """A user with sessions behind two access nodes is one of each."""

    def take(self, now: Instant, partition: int) -> int:
        """Count a partition; return what it cost, in users looked at."""
        store = self._enter(now, partition)
        if store is None:
            return PARTITION_COST
        shown = self._look_up(now, partition, list(store.users), list(store.users.values()))
        several = [entries for entries in shown if isinstance(entries, tuple)]
        sessions = Counter([entry[:2] for entry in shown if isinstance(entry, bytes)])
        self.users += sessions.total() + len(several)
        users = sessions.copy()
        for entries in several:
            sources = [entry[:2] for entry in entries]
            sessions.update(sources)
            users.update(set(sources))
        for source, count in sessions.items():
            node = self._ownership.sources.life(source).node
            self.sessions_of[node] += count
            self.users_of[node] += users[source]
        return PARTITION_COST + len(shown)


class Listed(NamedTuple):
    """A user with sessions behind the access node that is listed: those, packed."""

    partition: int
    user: str
    entries: tuple[bytes, ...]


class Listing(_Walk):
    """The users behind one access node, in the partitions that are taken: in ascending order, from a bookmark on."""

    def __init__(self, ownership: Ownership, node: NodeId, begin: Bookmark, limit: int) -> None:
        """`limit`: with how many sessions it ends; those of one user are never parted."""
        super().__init__(ownership)
        self.items: list[Listed] = []
        self.reached: Bookmark | None = None
        """Where it ended because it has enough; None: all that was taken is told."""
        self._node = node
        self._begin = begin
        self._left = limit
        self._looked = 0

    def take(self, now: Instant, partition: int) -> int:
        """List a partition, if there is room; return what it cost, in users looked at."""
        if self.reached is not None:
            return 0
        cost = PARTITION_COST
        store = self._enter(now, partition)
        if store is not None:
            life = self._ownership.sources.life
            sources = {source for source in store.sources() if life(source).node == self._node}
            if sources:
                cost += len(store.users)
                self._list(now, partition, store, sources)
        self._looked += cost
        if self._left > 0 and self._looked >= LOOKED_MAX:
            self.reached = Bookmark(partition + 1, "")
        return cost

    def _list(self, now: Instant, partition: int, store: PartitionRecords, sources: Collection[bytes]) -> None:
        after = self._begin.after if partition == self._begin.partition else ""
        users = sorted({user for source in sources for user, _ in store.entries(source) if user > after})
        known = [store.users[user] for user in users]
        for user, one in zip(users, self._look_up(now, partition, users, known), strict=True):
            entries = tuple(entry for entry in _entries(one) if entry[:2] in sources)
            if entries:
                self.items.append(Listed(partition, user, entries))
                self._left -= len(entries)
                if self._left <= 0:
                    self.reached = Bookmark(partition, user)
                    return


def _entries(found: Found | Shown) -> tuple[bytes, ...]:
    """Return the entries of what is known or shown of a user."""
    if isinstance(found, bytes):
        return (found,)
    return found if isinstance(found, tuple) else ()


def _is_doubtful(known: Found, shown: Shown) -> bool:
    """Return whether something that is known of a user is not shown, and may still be open."""
    return shown is UNKNOWN_SHOWN or 0 < len(_entries(shown)) < len(_entries(known))


# ---------------------------------------------------------------- what all nodes told


class Part(Protocol):
    """What one node told of a listing; see `Listing`."""

    @property
    def items(self) -> Sequence[Listed]:
        """In order."""
        ...

    @property
    def reached(self) -> Bookmark | None:
        """Where it ended, None if it told all that it was asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing: what is before its end, in order, and of which partitions something may be missing."""

    items: list[Listed]
    end: Bookmark
    gaps: list[int] = field(default_factory=list)


def page_of(parts: Collection[Part], gaps: Iterable[int]) -> Page:
    """Return the page that all parts make, up to where the first of them ended.

    Args:
        parts: what the nodes told, all from one bookmark on and each of its own partitions.
        gaps: the partitions of which nobody told, or not everything.
    """
    end = min((part.reached for part in parts if part.reached is not None), default=END)
    return Page(
        items=sorted(item for part in parts for item in part.items if (item.partition, item.user) <= end),
        end=end,
        gaps=sorted(gap for gap in set(gaps) if (gap, "") < end),
    )
