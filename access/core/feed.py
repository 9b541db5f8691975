"""One channel at a node that has subscribers: what comes from the owner, in order, and from where each one gets it.

The node follows the channel at its owner and stands at a position. What the owner tells may come twice, late, or not at
all, and the owner may change:

    offset <= position       seen: drop
    offset == position + 1   next: deliver, position + 1
    offset >  position + 1   something is missing: join again, from the position
    another epoch            the same

While the node is joining, publications are kept, a bounded number of them; if that was not enough, the next one shows a
gap. If the owner cannot tell everything since the position, the position is lost, and so is that of every subscriber:
they are told to start over. In a channel without history there are no positions: everything is delivered as it comes.

A subscriber begins with a *start*: its reply carries a position, read at the owner, which may be behind or ahead of
where this node stands. From when it was asked for until both agree, what is delivered meanwhile is kept for it.

Invariants:
    I1  What is delivered has the offsets position + 1, position + 2 ... of one epoch, until a reset.
    I2  A subscriber gets exactly what follows its start's position, in order, until it is reset.
    I3  At most `HELD_MAX` publications are kept here, and as many for each start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from access.core.stream import Entry
from access.peers import Joined, Place

__all__ = ["HELD_MAX", "Feed", "News", "Start"]

HELD_MAX = 1_000


@dataclass(frozen=True, slots=True)
class News:
    """What to do: tell subscribers with a position to start over, deliver the entries to the others, join again."""

    deliver: Sequence[Entry] = ()
    must_join: bool = False
    is_reset: bool = False


_NOTHING = News()
_JOIN = News(must_join=True)


class Feed:
    """See the module. It begins unjoined."""

    __slots__ = ("_held", "is_joined", "place")

    def __init__(self) -> None:
        self.place: Place | None = None
        """Where the node stands, None before it ever joined."""
        self.is_joined = False
        self._held: list[tuple[str, Entry]] = []

    def received(self, epoch: str, entries: Sequence[Entry]) -> News:
        """The owner told of publications."""
        if not self.is_joined:
            self._held.extend((epoch, entry) for entry in entries[: HELD_MAX - len(self._held)])
            return _NOTHING
        place = self.place
        assert place is not None
        if len(entries) == 1 and entries[0].offset == place.offset + 1 and epoch == place.epoch:
            self.place = Place(epoch, place.offset + 1)  # as nearly always
            return News(entries)
        return self._take([(epoch, entry) for entry in entries])

    def joined(self, start: Joined) -> News:
        """The owner answered: the feed is joined, and has what the answer tells."""
        former = self.place
        # What is left over from another epoch is nobody's any more, and if it is from a later one, more will come.
        held = [(epoch, entry) for epoch, entry in self._held if epoch == start.place.epoch]
        self.place, self.is_joined, self._held = start.place, True, []
        news = self._take(held)
        if former is None:
            return news
        if not start.is_known or former.epoch != start.place.epoch or former.offset > start.place.offset:
            return News(news.deliver, must_join=news.must_join, is_reset=True)
        return News([*start.entries, *news.deliver], must_join=news.must_join)

    def lost(self) -> None:
        """The owner may have told what did not arrive: keep what comes from here on until it is joined again."""
        self.is_joined = False

    def _take(self, arrivals: Sequence[tuple[str, Entry]]) -> News:
        place = self.place
        assert place is not None
        epoch, offset = place.epoch, place.offset
        deliver: list[Entry] = []
        is_missing = False
        for of_epoch, entry in arrivals:
            if not entry.offset:
                deliver.append(entry)  # of a channel without history
            elif of_epoch != epoch or entry.offset > offset + 1:
                is_missing = True
                break
            elif entry.offset == offset + 1:
                offset += 1
                deliver.append(entry)
        self.place = Place(epoch, offset)
        if is_missing:
            self.is_joined = False
        return News(deliver, must_join=is_missing) if deliver else _JOIN if is_missing else _NOTHING


class Start:
    """A subscriber on its way from its reply to where its node stands."""

    __slots__ = ("_held", "_is_lost", "place")

    def __init__(self) -> None:
        self.place: Place | None = None
        """Up to where it was told, None before its reply was written."""
        self._held: list[Entry] = []
        self._is_lost = False

    def hold(self, entries: Sequence[Entry]) -> None:
        """The node delivered something."""
        self._held.extend(entries[: HELD_MAX - len(self._held)])
        if len(self._held) >= HELD_MAX:
            self._is_lost = True

    def reset(self) -> None:
        """The node lost its position, and so did the subscriber, whatever its reply says."""
        self._is_lost = True

    def begun(self, place: Place, feed: Place) -> Sequence[Entry] | None:
        """The reply was written, up to `place`; the node stands at `feed`. Returns what to write, as `take` does."""
        self.place = place
        held, self._held = self._held, []
        if not place.epoch and not feed.epoch:
            return held  # no positions: everything since it was asked for
        return self._after(held) if place.epoch == feed.epoch else None

    def take(self, entries: Sequence[Entry]) -> Sequence[Entry] | None:
        """The node delivered something more; return what of it to write, None to tell the subscriber to start over."""
        return self._after(entries)

    def is_level(self, feed: Place) -> bool:
        """Return whether the subscriber stands where its node does, and needs no start any more."""
        return self.place is not None and self.place.offset == feed.offset and self.place.epoch == feed.epoch

    def _after(self, entries: Sequence[Entry]) -> Sequence[Entry] | None:
        place = self.place
        assert place is not None
        if self._is_lost:
            return None
        found = [entry for entry in entries if entry.offset > place.offset]
        for expected, entry in enumerate(found, place.offset + 1):
            if entry.offset != expected:
                return None
        if found:
            self.place = Place(place.epoch, found[-1].offset)
        return found
