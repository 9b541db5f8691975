"""A status node's log of session events, for readers that come back with a cursor: at least once, no silent loss.

Each life of a status node has one log, named by its *feed*, of what happens in the partitions that the node owns. It is
bounded: the oldest events fall out. A reader that is too far behind, or comes with the place of another life, is told
so in the only way that a program can act on: it gets everything that is open, anew.

What says that is a *resync* of a partition: from here on this node speaks for the partition; what is open there, taken
at the moment of reading, follows; sessions that are not in it are gone. The log has one where the node became the
owner, and a reader that lost its place gets one for every partition. So an event may be told twice, but a reader that
follows `Page.next` never misses that a session came or went, over crashes and moves of partitions, too.

Each event has a `user_seq`, which grows for each user whoever the owner is. From the top it is made of the owner's
epoch, which grows with each change of the owner; the owner's incarnation, which grows when it restarts and keeps its
partitions; and a count of the partition's events in that life. A resync carries that of the newest event that it
includes. So a reader keeps the greatest that it saw of each partition, and ignores an event that is not greater and a
resync that is smaller: then repeats do no harm, nor do news of two owners that are read in the wrong order. Readers
have it as a text that compares like the number, since many keep numbers as floats of 53 bits.

Sessions stay packed in the log: most events are never read, and to log one costs half a microsecond.

```
    position    41      42      43      44        45      46
              event   event  resync 7  event   resync 7  event      43 is void: 45 says it all again
                                       ▲
                                       └── a place: all up to here was read
```

Invariants:
    I1  Positions grow by one for the life of the log; the newest `capacity` are held.
    I2  Of the events of one partition each has a greater `user_seq` than those before it.
    I3  A reader that follows the places it is given meets each event, or later on a resync of its partition, unless the
        partition has another owner by then.
    I4  A partition has at most one live resync, its last one, and none while the node does not own it.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec

from base.clock import Timestamp
from base.errors import BadRequest, LimitExceeded
from base.ids import Epoch, Incarnation, NodeId
from status.core.records import Merged

__all__ = [
    "CURSOR_CHARS_MAX",
    "CURSOR_NODES_MAX",
    "EVENTS_MAX",
    "START",
    "Cursor",
    "EventKind",
    "EventLog",
    "MergedPage",
]
__all__ += ["Page", "Place", "Resync", "SessionEvent", "merged", "share_of"]

EVENTS_MAX = 200_000
"""With sessions of 100 bytes each, a full log takes about 60 MB."""
CURSOR_NODES_MAX = 256
CURSOR_CHARS_MAX = 8_000
"""Servers and proxies take a request line of about 8 kB."""

_LIFE_BITS = 24
_COUNT_BITS = 40
"""A partition with a thousand events a second takes 35 years to count through them."""

Item = TypeVar("Item")
_Natural = Annotated[int, msgspec.Meta(ge=0)]

EventKind = Literal["connect", "state", "disconnect"]
# By the number of what a merge changed: the members of an enumeration hash slowly.
_KIND_OF: Final[tuple[EventKind | None, ...]] = (None, "connect", "state", "disconnect", None)
assert len(_KIND_OF) == len(Merged)


class SessionEvent(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="e"):
    """One thing that happened to a session. `entry` is the session, packed; of one that ended, as it was last.

    `at` is when the status node heard of it, in ms since the Unix epoch.
    """

    partition: int
    user_seq: str
    kind: EventKind
    at: Timestamp
    user: str
    entry: bytes


class Resync(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """To be followed by all that is open in the partition now, as of `user_seq`; what is not in that is gone."""

    partition: int
    user_seq: str


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a reader has read in one log: all up to position `after`.

    A reader that lost its place gets resyncs first; `resync_from` is the partition with which to go on then.
    """

    feed: str
    after: _Natural
    resync_from: _Natural | None = None


START = Place("", 0)
"""The place of a reader that knows nothing: in no log."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """What was read of one log, the place after it, and whether that is the end of the log for now."""

    items: Sequence[Item]
    next: Place
    is_at_end: bool


@dataclass(slots=True)
class _Partition:
    """A partition that the node owns or owned: the newest `user_seq`, and its live resync's position, 0 for none."""

    user_seq: int
    resync_at: int


# An event as the log keeps it: all that is in a SessionEvent, and nothing that the garbage collector has to look at.
_Logged = tuple[int, int, EventKind, Timestamp, str, bytes]


class EventLog:
    """The log of one life of a status node. Read it in the same turn in which resyncs are expanded."""

    def __init__(self, node: NodeId, incarnation: Incarnation, *, capacity: int = EVENTS_MAX) -> None:
        """No other life of any node has the same two."""
        assert capacity > 0
        assert 0 <= incarnation < 1 << _LIFE_BITS
        self.feed = f"{node}.{incarnation}"
        self._incarnation = incarnation
        self._capacity = capacity
        self._head = 0
        # The item of position p is at (p - 1) % capacity; a number is a partition's resync.
        self._ring: list[_Logged | int] = []
        self._partitions: dict[int, _Partition] = {}

    @property
    def head(self) -> Place:
        """The place after all that is in the log."""
        return Place(self.feed, self._head)

    def owned(self, partition: int, owner_epoch: Epoch) -> None:
        """This node speaks for the partition from here on.

        `owner_epoch` must be greater than that of every other node that spoke for the partition before.
        """
        known = self._partitions.get(partition, _Partition(0, 0))
        first = ((owner_epoch << _LIFE_BITS) + self._incarnation) << _COUNT_BITS
        assert known.user_seq >> _LIFE_BITS + _COUNT_BITS <= owner_epoch, "an owner's epoch never falls"
        self._append(partition)
        self._partitions[partition] = _Partition(max(first, known.user_seq), self._head)

    def released(self, partition: int) -> None:
        """This node no longer speaks for the partition: the next owner's log goes on."""
        if known := self._partitions.get(partition):
            known.resync_at = 0

    def extend(self, changes: Iterable[tuple[int, str, bytes, Merged]], at: Timestamp) -> None:
        """Add what happened, in order: partition, user, the packed session, what it changed.

        What happened where this node does not speak for the partition is left out: a resync will include it.
        """
        partitions, append = self._partitions, self._append
        for partition, user, entry, merged in changes:
            known = partitions.get(partition)
            if known is not None and known.resync_at:
                kind = _KIND_OF[merged]
                assert kind is not None, "nobody is told of what nobody can see"
                known.user_seq += 1
                append((partition, known.user_seq, kind, at, user, entry))

    def read(
        self, place: Place | None, limit: int, open_sessions: Callable[[int], int] = lambda _: 0
    ) -> Page[SessionEvent | Resync]:
        """Return what comes after a place; None is from now on, which is a place and nothing else yet.

        The page ends with the item that makes it `limit` or more, where an event counts one and a resync one more than
        the open sessions of its partition.
        """
        if place is None:
            return Page((), self.head, is_at_end=True)
        if not self._is_held(place):
            place = Place(self.feed, self._head, resync_from=0)
        items: list[SessionEvent | Resync] = []
        size = 0
        for partition in self._owned_from(place.resync_from):
            if size >= limit:
                return Page(tuple(items), Place(self.feed, place.after, partition), is_at_end=False)
            items.append(self._resync(partition))
            size += 1 + open_sessions(partition)
        after = place.after
        while after < self._head and size < limit:
            after += 1
            item = self._ring[(after - 1) % self._capacity]
            if isinstance(item, tuple):
                partition, user_seq, kind, at, user, entry = item
                items.append(SessionEvent(partition, _text(user_seq), kind, at, user, entry))
                size += 1
            elif self._partitions[item].resync_at == after:
                items.append(self._resync(item))
                size += 1 + open_sessions(item)
        return Page(tuple(items), Place(self.feed, after), is_at_end=after == self._head)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"head": self._head, "events": len(self._ring), "partitions": len(self._owned_from(0))}

    def check_invariants(self) -> None:
        """Assert what one state shows of I1, I2 and I4."""
        assert len(self._ring) == min(self._head, self._capacity), "I1"
        newest: dict[int, int] = {}
        for position in range(self._head - len(self._ring) + 1, self._head + 1):
            item = self._ring[(position - 1) % self._capacity]
            if isinstance(item, tuple):
                partition, user_seq, *_ = item
                assert newest.get(partition, 0) < user_seq <= self._partitions[partition].user_seq, "I2"
                newest[partition] = user_seq
            else:
                assert self._partitions[item].resync_at in (0, *range(position, self._head + 1)), "I4"

    # ---------------------------------------------------------------- inside

    def _append(self, item: _Logged | int) -> None:
        if len(self._ring) < self._capacity:
            self._ring.append(item)
        else:
            self._ring[self._head % self._capacity] = item
        self._head += 1

    def _is_held(self, place: Place) -> bool:
        return place.feed == self.feed and self._head - len(self._ring) <= place.after <= self._head

    def _owned_from(self, first: int | None) -> list[int]:
        if first is None:
            return []
        return sorted(one for one, known in self._partitions.items() if one >= first and known.resync_at)

    def _resync(self, partition: int) -> Resync:
        return Resync(partition, _text(self._partitions[partition].user_seq))


def _text(user_seq: int) -> str:
    """Return a sequence as readers have it; all are equally long."""
    return f"{user_seq:024x}"


# ---------------------------------------------------------------- several nodes


class Cursor(msgspec.Struct, frozen=True):
    """How far a reader has read on each status node; for the reader, a text to hand back.

    A node that has no place is read from its start, unless `is_now`: then from now on.
    """

    places: dict[NodeId, Place]
    is_now: bool = False

    def place(self, node: NodeId) -> Place | None:
        """Return where to go on reading on the node, as `EventLog.read` takes it."""
        return self.places.get(node, None if self.is_now else START)

    def encode(self) -> str:
        """Return the text, which may stand in a URL as it is.

        Raises:
            LimitExceeded: more nodes, or longer names, than a cursor can carry.
        """
        packed = msgspec.msgpack.encode(_Encoded(1, self.places))
        text = urlsafe_b64encode(packed).rstrip(b"=").decode()
        if len(self.places) > CURSOR_NODES_MAX or len(text) > CURSOR_CHARS_MAX:
            raise LimitExceeded("too many status nodes for a cursor", what="cursor", limit=CURSOR_NODES_MAX)
        return text

    @staticmethod
    def decode(text: str) -> Cursor:
        """Return the cursor of a text: empty for "from now on", "start" for "from a full snapshot on".

        Raises:
            BadRequest: it is none that we made.
        """
        if not text:
            return Cursor({}, is_now=True)
        if text == "start":
            return Cursor({})
        if len(text) > CURSOR_CHARS_MAX:
            raise BadRequest(f"the cursor has {len(text)} characters, at most {CURSOR_CHARS_MAX} are taken")
        try:
            packed = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            places = _decoder.decode(packed).places
        except (ValueError, msgspec.MsgspecError) as error:
            raise BadRequest('the cursor is not one that was given out; "start" begins anew') from error
        if len(places) > CURSOR_NODES_MAX:
            raise BadRequest(f"the cursor names {len(places)} nodes, at most {CURSOR_NODES_MAX} are taken")
        return Cursor(places)


class _Encoded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    places: dict[NodeId, Place]


_decoder = msgspec.msgpack.Decoder(_Encoded)


@dataclass(frozen=True, slots=True)
class MergedPage(Generic[Item]):
    """What was read of several nodes. `is_at_end` is about those that answered, `missing` are the others."""

    items: Sequence[Item]
    cursor: Cursor
    is_at_end: bool
    missing: tuple[NodeId, ...]


def share_of(limit: int, nodes: int) -> int:
    """Return the limit to ask each node with: then no item that was read is left over, and everybody gets a turn."""
    return max(1, limit // max(1, nodes))


def merged(cursor: Cursor, nodes: Collection[NodeId], pages: Mapping[NodeId, Page[Item]]) -> MergedPage[Item]:
    """Return what was read from a cursor on as one page, in the order of `nodes`: each node's items stay in theirs.

    `nodes` are those that there are, `pages` of those that answered. A node that did not answer keeps its place. One
    that is gone loses it: whoever owns its partitions now has a resync for each. If it comes back, it is read from its
    start, as is a new one, and one that did not even answer when reading began.
    """
    places = {**cursor.places, **{node: page.next for node, page in pages.items()}}
    return MergedPage(
        items=[item for node in nodes if node in pages for item in pages[node].items],
        cursor=Cursor({node: places[node] for node in nodes if node in places}),
        is_at_end=all(page.is_at_end for page in pages.values()),
        missing=tuple(node for node in nodes if node not in pages),
    )
