"""One channel's past: the publications that it keeps, and which of them follow a position.

A *position* is an offset in an epoch. The epoch names one life of the channel's numbering; in each the offsets are 1,
2, 3 ... without a hole. Positions of different epochs do not compare. The empty epoch with offset 0 stands before the
first publication of any epoch.

What is kept is bounded three ways: by number, by age, and by bytes. The oldest go first, so that what is left is
always the newest, without a hole. Recovery is all or nothing: either every publication after the position is still
there, or the position cannot be recovered; a part would look like the whole.

The offset outlives the publications: a channel that was quiet for longer than its publications live still knows where
it stands, and whoever missed nothing recovers. It is forgotten only with its stream, see `custody`.

Invariants:
    I1  The kept publications have the offsets `offset` - n + 1 ... `offset`.
    I2  Their bytes are at most `STREAM_BYTES_MAX`, unless a single one is longer.
    I3  Their times never fall.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from base.clock import Timestamp

__all__ = ["PAGE_BYTES_MAX", "RECOVERY_MAX", "STREAM_BYTES_MAX", "Draft", "Entry", "Stream"]

STREAM_BYTES_MAX = 4 * 1024 * 1024
"""The most that one channel keeps (bytes): it must fit into one message to another node."""
RECOVERY_MAX = 300
"""How many publications a recovery returns at most. Who missed more is better off loading its state anew."""
PAGE_BYTES_MAX = 512 * 1024
"""The most that goes to a client at once (bytes), well below what may wait for one: a page ends earlier, a longer
recovery is none."""
_ENTRY_BYTES = 64
"""What an entry costs beside its texts, about."""
_SLACK = 32
"""Places of dropped entries that may stay at the head of the list, however short it is."""


class Draft(msgspec.Struct, array_like=True, frozen=True):
    """A publication without its place. `user` and `client` are who published, empty for a backend.

    `key` makes a repeated publication harmless: the channel takes it once.
    """

    data: bytes
    user: str = ""
    client: str = ""
    conn_info: bytes = b""
    chan_info: bytes = b""
    tags: dict[str, str] = {}
    key: str = ""


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A publication in its place. `time` is when it was numbered; offset 0: in a channel without history."""

    offset: int
    time: Timestamp
    draft: Draft

    def size(self) -> int:
        """Return what it costs to keep it, about (bytes)."""
        draft = self.draft
        size = _ENTRY_BYTES + len(draft.data) + len(draft.conn_info) + len(draft.chan_info)
        return size + sum(len(name) + len(value) for name, value in draft.tags.items())


class Stream:
    """See the module. Who owns it gives the bounds with each call, and the time."""

    __slots__ = ("_entries", "_keys", "_start", "epoch", "offset", "size")

    def __init__(self, epoch: str, *, offset: int = 0, entries: Iterable[Entry] = ()) -> None:
        """`entries` are the last ones up to `offset`."""
        self.epoch = epoch
        self.offset = offset
        self.size = 0
        """Bytes of what is kept, about."""
        # A list from `_start` on: nearly all channels keep little or nothing, for which a deque is ten times as large.
        self._entries: list[Entry | None] = []
        self._start = 0
        self._keys: dict[str, int] = {}
        for entry in entries:
            self._keep(entry)

    def __len__(self) -> int:
        return len(self._entries) - self._start

    def entries(self) -> list[Entry]:
        """Return all that is kept, oldest first."""
        return self._slice(0, len(self))

    def last_time(self) -> Timestamp:
        """Return the time of the newest publication that is kept, 0 for none."""
        last = self._entries[-1] if self._entries else None
        return last.time if last is not None else Timestamp(0)

    def append(self, entry: Entry) -> None:
        """Add the next publication; its offset must be the next one."""
        assert entry.offset == self.offset + 1
        self.offset = entry.offset
        self._keep(entry)

    def trim(self, now: Timestamp, *, size: int, ttl_ms: int) -> None:
        """Drop what is too much, too old or too long."""
        while self._start < len(self._entries):
            oldest = self._entries[self._start]
            assert oldest is not None
            is_too_long = self.size > STREAM_BYTES_MAX and len(self) > 1
            if len(self) <= size and oldest.time + ttl_ms > now and not is_too_long:
                break
            self._drop(oldest)

    def clear(self) -> None:
        """Drop everything but the position."""
        self._entries.clear()
        self._keys.clear()
        self._start = self.size = 0

    def find(self, key: str) -> int | None:
        """Return the offset of the kept publication with the key, None if there is none."""
        return self._keys.get(key)

    def page(self, *, after: int | None, limit: int, is_reverse: bool) -> list[Entry]:
        """Return up to `limit` kept publications, -1 for all: those after the offset, oldest first.

        Reversed: those before it, newest first. `after` None: from the one end or the other. Fewer if they are long.
        """
        count = len(self)
        start = self.offset - count  # the offset before the first kept one
        if is_reverse:
            end = count if after is None else min(count, max(0, after - 1 - start))
            begin = 0 if limit < 0 else max(0, end - limit)
            return _cut(self._slice(begin, end)[::-1])
        begin = 0 if after is None else min(count, max(0, after - start))
        return _cut(self._slice(begin, count if limit < 0 else min(count, begin + limit)))

    def recover(
        self, epoch: str, offset: int, *, limit: int = RECOVERY_MAX, bytes_max: int = PAGE_BYTES_MAX
    ) -> list[Entry] | None:
        """Return every publication after the position, None if not every one is kept or they are over the limits."""
        if epoch != self.epoch and (epoch, offset) != ("", 0):
            return None
        missed = self.offset - offset
        if not 0 <= missed <= min(limit, len(self)):
            return None
        found = self._slice(len(self) - missed, len(self))
        return found if sum(entry.size() for entry in found) <= bytes_max else None

    def check_invariants(self) -> None:
        """Assert I1, I2 and I3, and that the sums are right."""
        entries = self.entries()
        offsets = [entry.offset for entry in entries]
        assert offsets == list(range(self.offset - len(entries) + 1, self.offset + 1)), "I1"
        assert self.size == sum(entry.size() for entry in entries)
        times = [entry.time for entry in entries]
        assert times == sorted(times), "I3"
        assert self._keys == {entry.draft.key: entry.offset for entry in entries if entry.draft.key}

    def _keep(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.size += entry.size()
        if entry.draft.key:
            self._keys[entry.draft.key] = entry.offset

    def _drop(self, entry: Entry) -> None:
        """Drop the oldest, which this is."""
        self._entries[self._start] = None
        self._start += 1
        if self._start > max(_SLACK, len(self)):
            del self._entries[: self._start]
            self._start = 0
        self.size -= entry.size()
        key = entry.draft.key
        if key and self._keys[key] == entry.offset:
            del self._keys[key]

    def _slice(self, begin: int, end: int) -> list[Entry]:
        kept = self._entries[self._start + begin : self._start + end]
        return [entry for entry in kept if entry is not None]


def _cut(entries: list[Entry]) -> list[Entry]:
    """Return the first of the entries, as many as go into a page, but one at least."""
    total = 0
    for count, entry in enumerate(entries):
        total += entry.size()
        if total > PAGE_BYTES_MAX and count:
            return entries[:count]
    return entries
