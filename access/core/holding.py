"""What a node holds of channels with a history: copies of their streams, its promises about them, and how much of it.

The rules of who may own a channel are `custody`; here is what they are applied to. All copies of a node together are
bounded: of publications by bytes, where the channels that were quiet for longest lose theirs and keep their positions;
of channels by time, where what nobody uses is forgotten, `sweep` by `sweep`. Every claim to a new channel leaves
promises at other nodes, so where there are too many channels, promises without a copy are remembered for less long.

Invariants:
    I1  Promises never fall, and those since the term are above it. Only one that a node made to itself, for a claim
        that came to nothing, is taken back.
    I2  The tail follows the stream without a gap, and only owners have one.
    I3  `size` is the sum of what all streams keep.
    I4  The bytes are within their bound after each `trim`, unless a single channel has them.
    I5  `unused` is of the owned channels that keep no publications and have no tail, and of no others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from access.core.stream import Entry, Stream
from access.peers import NO_BALLOT, Ballot, Copy
from base.clock import Instant, Timestamp

__all__ = ["CROWDED_MS", "DOUBTS_MAX", "PROMISE_MS", "QUIET_MS", "SWEEP", "Holding", "Shelf"]

DOUBTS_MAX = 16
"""Promises since the term that are remembered one by one; of more some cannot be cleared."""
QUIET_MS = 3_600_000
"""How long a channel without publications and subscribers keeps its position."""
PROMISE_MS = 600_000
"""How long a promise about a channel is remembered that this node has no copy of."""
CROWDED_MS = 60_000
"""The same while there are too many channels. Longer than a node that was cut off takes to learn of it."""
SWEEP = 1_000
"""Channels looked at by one `sweep`, at least."""
SWEEPS = 100
"""Sweeps in which all channels are looked at, if they are many."""


@dataclass(slots=True)
class Holding:
    """One channel. See `custody` for what each means."""

    touched: Instant
    promised: Ballot = NO_BALLOT
    since_term: list[Ballot] = field(default_factory=list)
    """What was promised since the copy was installed."""
    owned: int = 0
    """The number of the last ballot under which this node owned."""
    seen: int = 0
    """The greatest number of a ballot that this node used, or heard of in an answer."""
    stream: Stream | None = None
    term: Ballot = NO_BALLOT
    backup: str = ""
    backup_life: int = 0
    is_owner: bool = False
    is_installed: bool = True
    """As owner: the backup has everything that was committed."""
    is_in_flight: bool = False
    is_doubtful: bool = False
    tail: list[Entry] = field(default_factory=list)
    """As owner: publications that are numbered, and not committed."""
    tail_bytes: int = 0
    former: frozenset[str] = frozenset()
    """Nodes whose copies are old once the backup has this one."""
    trying_since: Instant | None = None
    """When the first claim of those began that came to nothing."""
    tried: Instant = Instant(0)
    """When the last claim began."""
    kept: int = 0
    """Bytes of the stream, as the shelf counts them."""

    def head(self) -> int:
        """Return the last offset that was given."""
        assert self.stream is not None
        return self.stream.offset + len(self.tail)

    def promise(self, ballot: Ballot) -> None:
        """Follow no smaller ballot from here on."""
        assert ballot >= self.promised
        if ballot == self.promised:
            return
        self.promised = ballot
        if self.stream is not None:
            self.since_term.append(ballot)
        if len(self.since_term) > DOUBTS_MAX:
            self.is_doubtful = True
            del self.since_term[0]

    def retract(self, ballot: Ballot, before: Ballot) -> None:
        """Take back what this node promised to itself: nobody will ever own under the ballot."""
        self.seen = max(self.seen, ballot.number)
        if self.promised == ballot:
            self.promised = before
            if self.since_term and self.since_term[-1] == ballot:
                self.since_term.pop()

    def install(self, ballot: Ballot, backup: str) -> None:
        """The copy is the one of a term, and beyond doubt."""
        self.promised = self.term = ballot
        self.backup = backup
        self.since_term.clear()
        self.is_doubtful = False

    def step_down(self) -> None:
        """Own no more. What was not committed stays in the copy: its outcome is unknown, so it may survive."""
        assert self.stream is not None
        for entry in self.tail:
            self.stream.append(entry)
        self.tail.clear()
        self.tail_bytes = 0
        self.is_owner = False
        self.is_in_flight = False

    def copy(self, beside: Ballot) -> Copy | None:
        """Return the stream with the tail, None if there is none; `beside`: the promise that it is given for."""
        if self.stream is None:
            return None
        promised = [ballot for ballot in self.since_term if ballot != beside]
        if self.is_doubtful:
            promised.append(NO_BALLOT)  # nobody's, so that nobody can clear the doubt
        entries = [*self.stream.entries(), *self.tail]
        return Copy(self.stream.epoch, self.term, self.backup, promised, self.head(), entries)


class Shelf:
    """All holdings of a node, by channel."""

    def __init__(self, *, keeps: Callable[[str], tuple[int, int]], bytes_max: int, many: int) -> None:
        """Begin with nothing.

        Args:
            keeps: how many publications a channel keeps, and for how long (ms).
            bytes_max: memory for the publications of all together.
            many: with more channels than that it is crowded.
        """
        self.bytes = 0
        self._keeps = keeps
        self._bytes_max = bytes_max
        self._many = many
        self._holdings: dict[str, Holding] = {}
        self._filled: OrderedDict[str, None] = OrderedDict()
        """Channels that keep publications, the quietest first."""
        self._blank: OrderedDict[str, None] = OrderedDict()
        """Owned channels in which nothing was ever published, the longest unused first."""
        self._spent: OrderedDict[str, None] = OrderedDict()
        """The same of those that keep nothing of what was."""
        self._unswept: list[str] = []

    def __len__(self) -> int:
        return len(self._holdings)

    def __iter__(self) -> Iterator[str]:
        return iter(self._holdings)

    def items(self) -> list[tuple[str, Holding]]:
        """Return all of them."""
        return list(self._holdings.items())

    def get(self, channel: str) -> Holding | None:
        """Return the channel's holding, if there is one."""
        return self._holdings.get(channel)

    def hold(self, channel: str, now: Instant) -> Holding:
        """Return the channel's holding, made if there is none. It was used now."""
        holding = self._holdings.get(channel)
        if holding is None:
            holding = self._holdings[channel] = Holding(now)
        holding.touched = now
        return holding

    def pop(self, channel: str) -> Holding:
        """Forget a channel that keeps no publications, and return its holding."""
        holding = self._holdings.pop(channel)
        assert not holding.kept
        self._blank.pop(channel, None)
        self._spent.pop(channel, None)
        return holding

    def put(self, channel: str, holding: Holding, stream: Stream | None) -> None:
        """Replace the stream of a holding, or take it away."""
        holding.stream = stream
        self._count(channel, holding)

    def sort(self, channel: str, holding: Holding) -> None:
        """Its owner or its tail changed: know whether it is one of `unused`."""
        if holding.kept or holding.tail or not holding.is_owner:
            self._blank.pop(channel, None)
            self._spent.pop(channel, None)
        else:
            (self._spent if holding.head() else self._blank).setdefault(channel)

    def unused(self, count: int) -> list[str]:
        """Return owned channels that keep nothing: up to `count` in which nothing ever was, then as many others."""
        return list(chain(islice(self._blank, count), islice(self._spent, count)))

    def used(self, channel: str) -> None:
        """It is in use: others come before it among `unused`."""
        for unused in (self._blank, self._spent):
            if channel in unused:
                unused.move_to_end(channel)

    def trim(self, channel: str, holding: Holding, wall: Timestamp) -> None:
        """The channel got publications: apply its bounds, and those of all channels together."""
        self._trim(channel, holding, wall)
        if holding.kept:
            self._filled.move_to_end(channel)
        while self.bytes > self._bytes_max and len(self._filled) > 1:
            quietest = next(iter(self._filled))
            other = self._holdings[quietest]
            assert other.stream is not None
            other.stream.clear()
            self._count(quietest, other)

    def sweep(self, now: Instant, wall: Timestamp, is_used: Callable[[str, Holding], bool]) -> dict[str, Holding]:
        """Look at the next thousand or more: drop what is too old; forget what is unused, and return that."""
        if not self._unswept:
            self._unswept = list(self._holdings)
        promise_ms = CROWDED_MS if len(self) > self._many else PROMISE_MS
        count = max(SWEEP, len(self) // SWEEPS)
        forgotten: dict[str, Holding] = {}
        for channel in self._unswept[-count:]:
            holding = self._holdings.get(channel)
            if holding is None:
                continue
            if holding.stream is not None:
                self._trim(channel, holding, wall)
            patience_ms = promise_ms if holding.stream is None else QUIET_MS
            is_empty = not holding.stream and not holding.tail
            if is_empty and now - holding.touched >= patience_ms and not is_used(channel, holding):
                forgotten[channel] = self.pop(channel)
        del self._unswept[-count:]
        return forgotten

    def check_invariants(self) -> None:
        """Assert I1, I2, I3 and I5."""
        for channel, holding in self._holdings.items():
            promises = [holding.term, *holding.since_term]
            assert promises == sorted(set(promises)), "I1"
            assert holding.promised >= promises[-1], "I1"
            offsets = [entry.offset for entry in holding.tail]
            assert holding.is_owner or not offsets, "I2"
            assert not offsets or offsets == list(range(holding.head() - len(offsets) + 1, holding.head() + 1)), "I2"
            assert holding.tail_bytes == sum(entry.size() for entry in holding.tail), "I2"
            assert (channel in self._filled) == bool(holding.kept), "I3"
            assert holding.kept == (holding.stream.size if holding.stream is not None else 0), "I3"
        assert self.bytes == sum(holding.kept for holding in self._holdings.values()), "I3"
        owned = {channel: holding for channel, holding in self._holdings.items() if holding.is_owner}
        empty = {channel: one.head() for channel, one in owned.items() if not one.kept and not one.tail}
        assert self._blank.keys() == {channel for channel, head in empty.items() if not head}, "I5"
        assert self._spent.keys() == {channel for channel, head in empty.items() if head}, "I5"

    def _trim(self, channel: str, holding: Holding, wall: Timestamp) -> None:
        assert holding.stream is not None
        size, ttl_ms = self._keeps(channel)
        holding.stream.trim(wall, size=size, ttl_ms=ttl_ms)
        self._count(channel, holding)

    def _count(self, channel: str, holding: Holding) -> None:
        kept = holding.stream.size if holding.stream is not None else 0
        self.bytes += kept - holding.kept
        holding.kept = kept
        if kept:
            self._filled.setdefault(channel)
        else:
            self._filled.pop(channel, None)
        self.sort(channel, holding)
