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
partitions; and the event's position in the log of that life. A resync carries the end of the log at which it was
expanded. So a reader keeps the greatest that it saw of each partition, and ignores an event that is not greater and a
resync that is smaller: then repeats do no harm, nor do news of two owners that are read in the wrong order. Readers
have it as a text that compares like the number, since many keep numbers as floats of 53 bits.

Most events are never read, so to log one costs next to nothing: what happened in one millisecond is one *block*, kept
as it was told, with packed sessions. Whose event it is, and with which number, is made of its position when it is read.

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
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Annotated, Final, Generic, Literal, NamedTuple, TypeVar

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

_LIFE_BITS = 32
_POSITION_BITS = 48
"""A log with a hundred thousand events a second takes 89 years to come to its end."""

Item = TypeVar("Item")
_Natural = Annotated[int, msgspec.Meta(ge=0)]

EventKind = Literal["connect", "state", "disconnect"]
_NEVER = Timestamp(0)
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


_Change = tuple[int, str, bytes, Merged]
"""Partition, user, the packed session, what happened to it."""


@dataclass(slots=True)
class _Span:
    """A time in which the node speaks for a partition: after position `since`, up to `until`, None while it does.

    `base` is what each `user_seq` begins with.
    """

    base: int
    since: int
    until: int | None = None


class _Block(NamedTuple):
    """What happened at one time, from position `first` on. A number is a partition that the node owns from there on."""

    first: int
    at: Timestamp
    items: list[_Change | int]


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
        self._blocks: deque[_Block] = deque()
        # The last one is live if its `until` is None; older ones go when nothing of their time is held any more.
        self._spans: dict[int, list[_Span]] = {}
        self._spoken_for: set[int] = set()

    @property
    def head(self) -> Place:
        """The place after all that is in the log."""
        return Place(self.feed, self._head)

    def owned(self, partition: int, owner_epoch: Epoch) -> None:
        """This node speaks for the partition from here on.

        `owner_epoch` must be greater than that of every other node that spoke for the partition before.
        """
        self.released(partition)
        self._append([partition], self._blocks[-1].at if self._blocks else _NEVER)
        base = ((owner_epoch << _LIFE_BITS) + self._incarnation) << _POSITION_BITS
        spans = [span for span in self._spans.get(partition, ()) if span.until is None or span.until > self._tail]
        assert not spans or spans[-1].base <= base, "an owner's epoch never falls"
        self._spans[partition] = [*spans, _Span(base, self._head)]
        self._spoken_for.add(partition)

    def released(self, partition: int) -> None:
        """This node no longer speaks for the partition: the next owner's log goes on."""
        if partition in self._spoken_for:
            self._spoken_for.remove(partition)
            self._spans[partition][-1].until = self._head

    def extend(self, changes: Sequence[_Change], at: Timestamp) -> None:
        """Add what happened, in order: partition, user, the packed session, what it changed.

        What happened where this node does not speak for the partition is left out: a resync will include it.
        """
        spoken_for = self._spoken_for
        if not spoken_for.issuperset([change[0] for change in changes]):
            changes = [change for change in changes if change[0] in spoken_for]
        if changes:
            self._append(changes, at)

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
        for position, at, item in self._logged_after(after):
            if size >= limit:
                break
            after = position
            if not isinstance(item, tuple):
                if item in self._spoken_for and self._spans[item][-1].since == position:
                    items.append(self._resync(item))
                    size += 1 + open_sessions(item)
            else:
                items.append(self._event(position, at, item))
                size += 1
        return Page(tuple(items), Place(self.feed, after), is_at_end=after == self._head)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"head": self._head, "events": self._head - self._tail, "partitions": len(self._spoken_for)}

    def check_invariants(self) -> None:
        """Assert what one state shows of I1, I2 and I4."""
        at = self._blocks[0].first if self._blocks else self._head + 1
        assert at <= self._tail + 1, "I1"
        for block in self._blocks:
            assert block.items, "I1"
            assert block.first == at, "I1"
            at += len(block.items)
        assert at == self._head + 1, "I1"
        for partition, spans in self._spans.items():
            assert [span.until is None for span in spans] == [False] * (len(spans) - 1) + [
                partition in self._spoken_for
            ], "I4"
            for earlier, later in pairwise(spans):
                assert earlier.base <= later.base, "I2"
                assert earlier.until is not None, "I4"
                assert earlier.since <= earlier.until < later.since, "I2"

    # ---------------------------------------------------------------- inside

    @property
    def _tail(self) -> int:
        """The position before the oldest that is held."""
        return max(0, self._head - self._capacity)

    def _append(self, items: Sequence[_Change | int], at: Timestamp) -> None:
        blocks = self._blocks
        if blocks and blocks[-1].at == at:
            blocks[-1].items.extend(items)
        else:
            blocks.append(_Block(self._head + 1, at, list(items)))
        self._head += len(items)
        while len(blocks) > 1 and blocks[1].first <= self._tail + 1:
            blocks.popleft()

    def _logged_after(self, after: int) -> Iterator[tuple[int, Timestamp, _Change | int]]:
        """Yield what was logged after a position that is held, with its position and time."""
        blocks = self._blocks
        index = bisect_right(blocks, after + 1, key=lambda block: block.first) - 1
        for block in islice(blocks, max(0, index), None):
            begin = max(0, after + 1 - block.first)
            for offset, item in enumerate(islice(block.items, begin, None), begin):
                yield block.first + offset, block.at, item

    def _event(self, position: int, at: Timestamp, change: _Change) -> SessionEvent:
        partition, user, entry, merged = change
        kind = _KIND_OF[merged]
        assert kind is not None, "nobody is told of what nobody can see"
        base = next(span.base for span in reversed(self._spans[partition]) if span.since < position)
        return SessionEvent(partition, _text(base + position), kind, at, user, entry)

    def _is_held(self, place: Place) -> bool:
        return place.feed == self.feed and self._tail <= place.after <= self._head

    def _owned_from(self, first: int | None) -> list[int]:
        return [] if first is None else sorted(one for one in self._spoken_for if one >= first)

    def _resync(self, partition: int) -> Resync:
        return Resync(partition, _text(self._spans[partition][-1].base + self._head))


def _text(user_seq: int) -> str:
    """Return a sequence as readers have it; all are equally long."""
    return f"{user_seq:028x}"


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
