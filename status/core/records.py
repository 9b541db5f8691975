"""What one status node knows about the connections of one partition, in a form that can be moved at any time.

Each connection has one *entry*, a few bytes that its access node packed and that nobody unpacks before a reader does,
except of users who hide:

    source 2 | conn 6 | seq 6 | kind 1 | body        big-endian numbers, so that bytes compare like them

`source` stands for one life of an access node, in this process only (see `Sources`); `conn` is the connection's number
in that life; `seq` grows with every change that the life reports, and of two entries of a connection the greater wins.
A disconnect leaves a *tombstone*, so that an older entry that comes late, in a copied chunk or a repeated beat, does
not bring the connection back. Merging is therefore idempotent and commutative: chunks and changes may come twice.

An access node that tells everything it has for the partition also says up to which seq that is: its *floor*. What is
not in the list and not above the floor is closed, whatever still comes; so a floor stands for all tombstones of the
time before it, also for those that a new owner has never seen.

The digest (count and XOR of hashes of the open entries) is kept up to date with each change: two stores with equal
digests hold the same open connections, which costs 16 bytes to find out.

A user who has no connection any more is kept as the time of the last one's end. Of a user who has hidden ones, that
time is kept beside them: when *everybody* could see the user last. It is the end of the last visible connection, or
the moment at which the user hid, by the clock of the access node that reported it. Nothing that a hidden connection
does changes it, so that it looks as if there was none. Only what happens to users with hidden connections is looked at
in this way, and only for them anything more is kept.

Invariants:
    I1  Per connection the greatest seq ever merged is kept, or a tombstone, or a floor at least as great.
    I2  Merging the same entries and floors in another order, or twice, gives the same open entries.
    I3  A tombstone is kept at least `TOMBSTONE_MS`, and is part of every snapshot.
    I4  The digests equal those computed anew from the open entries.
    I5  A time is kept beside the open entries of a user exactly if one of them is hidden and not everybody sees the
        user. It is 0 where it is not known, and else the greatest merged since everybody saw the user last.

I2 holds for entries and tombstones in any order; a floor must come after the entries that it stands above, which the
numbered stream of a handoff sees to. Where several entries of a user come or go at once (a snapshot, a full list, a
purge), whichever decides on the audience comes first and goes last: else the user would be visible for no time at all,
and that would leave a time behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from base.clock import Instant, Timestamp
from base.ids import Incarnation, NodeId
from status.api import SessionView, is_public, said_at, status_of

__all__ = [
    "TOMBSTONE_MS",
    "Digest",
    "Found",
    "Item",
    "Kind",
    "Life",
    "Merged",
    "PartitionRecords",
    "Sources",
    "body_of",
]
__all__ += ["Told", "conn_of", "digest_of", "kind_of", "packed", "seq_of"]

TOMBSTONE_MS = 60_000
_HEADER = Struct(">IHIHB")
"""conn, seq and kind: a number of 48 bits is one of 32 and one of 16."""
NEVER = Timestamp(0)
_MIN_SEQ = bytes(6)
_NO_CONN = bytes(6)


class Kind(IntEnum):
    """What an entry says."""

    OPEN = 1
    """The connection is open; the body is its session, for readers."""
    CLOSED = 2
    """It is closed; the body is when (ms since the Unix epoch), if that is known."""
    FLOOR = 3
    """In a handoff: all up to this seq is known. No connection."""
    SEEN = 4
    """In a handoff: everybody could see the user last at the time in the body. No connection."""
    HIDDEN = 5
    """As OPEN, but not everybody may see it: however it ends, it leaves no time behind. The body must be a session."""


class Life(NamedTuple):
    """One life of an access node."""

    node: NodeId
    incarnation: Incarnation


Found = bytes | tuple[bytes, ...] | int
"""What is known of a user: the entry of the one open connection, those of several, or the time of last sight."""

Item = tuple[str, bytes]
"""What a handoff streams, in order: a user and an entry; the user is empty where the entry is not about one."""


class Full(NamedTuple):
    """All that one life of an access node has in a partition, up to the seq `floor`.

    `ended_at` (ms since the Unix epoch) is told as the end of what was known and is not among the items.
    """

    floor: int
    items: list[Item]
    ended_at: Timestamp


def packed(conn: int, seq: int, kind: int, body: bytes = b"") -> bytes:
    """Return an entry as it travels from its access node: without the source."""
    return _HEADER.pack(conn >> 16, conn & 0xFFFF, seq >> 16, seq & 0xFFFF, kind) + body


def conn_of(entry: bytes) -> int:
    """Return the connection's number in its access node's life."""
    return int.from_bytes(entry[2:8], "big")


def seq_of(entry: bytes) -> int:
    """Return the number of the change that the entry tells."""
    return int.from_bytes(entry[8:14], "big")


def kind_of(entry: bytes) -> Kind:
    """Return what the entry says."""
    return Kind(entry[14])


def body_of(entry: bytes) -> bytes:
    """Return what the access node packed for readers."""
    return entry[15:]


class Digest(NamedTuple):
    """How many open entries, and the XOR of their hashes."""

    entries: int
    xor: int


def digest_of(entries: Iterable[bytes]) -> Digest:
    """Return the digest of entries without their sources: what an access node says it has."""
    count = xor = 0
    for entry in entries:
        count, xor = count + 1, xor ^ xxh3_64_intdigest(entry)
    return Digest(count, xor)


class Merged(IntEnum):
    """What merging an entry changed. Everything but STALE is news, which a handoff forwards."""

    STALE = 0
    OPENED = 1
    CHANGED = 2
    CLOSED = 3
    NOTED = 4
    """Nothing that anybody sees, but it must not be forgotten: a tombstone ahead of its entry, a floor."""


class Sources:
    """The lives of access nodes by a number of two bytes, which stands for them in every entry of this process."""

    def __init__(self) -> None:
        self._prefixes: dict[Life, bytes] = {}
        self._lives: dict[bytes, Life] = {}
        self._next = 0

    def prefix(self, life: Life) -> bytes:
        """Return the life's two bytes, giving it some if it is new."""
        known = self._prefixes.get(life)
        if known is not None:
            return known
        assert len(self._lives) < 1 << 16, "more lives of access nodes at once than any cluster has"
        while (prefix := self._next.to_bytes(2, "big")) in self._lives:
            self._next = (self._next + 1) % (1 << 16)
        self._prefixes[life] = prefix
        self._lives[prefix] = life
        return prefix

    def life(self, prefix: bytes) -> Life:
        """Return whose two bytes these are."""
        return self._lives[prefix]

    def forget(self, prefix: bytes) -> None:
        """Give the number free. No entry with it may be left anywhere."""
        del self._prefixes[self._lives.pop(prefix)]
        self._next = (int.from_bytes(prefix, "big") + 1) % (1 << 16)


class Told:
    """What one life of an access node told: up to which seq it is all, and the digest of what is open."""

    __slots__ = ("entries", "floor", "xor")

    def __init__(self) -> None:
        self.floor = b""
        self.entries = self.xor = 0


class PartitionRecords:
    """The entries of one partition. A merge costs a dictionary look and a hash; more where a user hides."""

    __slots__ = ("_closed", "_hidden", "_keeps_tombstones", "_told", "users")

    def __init__(self, *, keeps_tombstones: bool = True) -> None:
        """`keeps_tombstones` is False only where a test shows what happens without them."""
        self.users: dict[str, Found] = {}
        """For reading only, and as cheap as a dictionary is. Not every connection in it need be vouched for."""
        self._closed: dict[bytes, Instant] = {}
        self._told: dict[bytes, Told] = {}
        self._hidden: dict[str, int | None] = {}
        """Users with hidden connections: when everybody could see them last, None where everybody does (I5)."""
        self._keeps_tombstones = keeps_tombstones

    def merge(self, now: Instant, user: str, entry: bytes) -> Merged:
        """Take in one entry, tombstone, floor or time of last sight."""
        kind = entry[14]
        if kind == _OPEN:
            return self._open(user, entry)
        if kind == _CLOSED:
            return self._close(now, user, entry)
        if kind == _FLOOR:
            return self._raise_floor(entry[:2], entry[8:14])
        if kind == _HIDDEN:
            return self._hide(user, entry)
        return self._note_seen(user, msgspec.msgpack.decode(entry[15:], type=int))

    def replace(self, now: Instant, source: bytes, full: Full) -> list[tuple[str, bytes, Merged, bytes]]:
        """Take in everything that one life of an access node has here.

        Returns what was news, in order: user, entry, what it changed, and the open entry that it is about, if any.
        """
        news = []
        named = set()
        for user, entry in _in_order_of_say(full.items, newest_first=True):
            named.add(entry[:8])
            merged = self.merge(now, user, entry)
            if merged:
                news.append((user, entry, merged, entry))
        last = full.floor.to_bytes(6, "big")
        closing = msgspec.msgpack.encode(full.ended_at)
        for user, entry in _in_order_of_say(self.entries(source), newest_first=False):
            if entry[:8] not in named and entry[8:14] <= last:
                tombstone = b"%b%b%c%b" % (entry[:8], last, Kind.CLOSED, closing)
                news.append((user, tombstone, self._close(now, user, tombstone), entry))
        if self._raise_floor(source, last):
            news.append(("", source + _NO_CONN + last + bytes([Kind.FLOOR]), Merged.NOTED, b""))
        return news

    def purge(self, source: bytes, at: Timestamp) -> list[Item]:
        """Drop all that is known of one life of an access node: nobody vouches for it. Return what was open."""
        gone = _in_order_of_say(self.entries(source), newest_first=False)
        for user, entry in gone:
            self._remove(user, entry, at)
        self._told.pop(source, None)
        for key in [key for key in self._closed if key[:2] == source]:
            del self._closed[key]
        return gone

    def entries(self, source: bytes | None = None) -> list[Item]:
        """Return the open entries with their users, of one life of an access node or of all. Costs a pass."""
        if source is not None and (source not in self._told or not self._told[source].entries):
            return []
        found = []
        for user, held in self.users.items():
            if isinstance(held, bytes):
                if source is None or held[:2] == source:
                    found.append((user, held))
            elif isinstance(held, tuple):
                found.extend((user, entry) for entry in held if source is None or entry[:2] == source)
        return found

    def find(self, user: str, entry: bytes) -> bytes:
        """Return the open entry of the connection that an entry is about, empty if there is none."""
        return next((other for other in self.open_of(user) if other[:8] == entry[:8]), b"")

    def open_of(self, user: str) -> tuple[bytes, ...]:
        """Return the user's open entries."""
        found = self.users.get(user, 0)
        if isinstance(found, bytes):
            return (found,)
        return found if isinstance(found, tuple) else ()

    def last_visible(self, user: str) -> Timestamp | None:
        """Return when everybody could see the user last, in ms since the Unix epoch.

        None where everybody can, by the open entries, or where it is not known.
        """
        found = self.users.get(user)
        seen = found if isinstance(found, int) else self._hidden.get(user)
        return Timestamp(seen) if seen else None

    def told(self, source: bytes) -> Told | None:
        """Return what one life of an access node told, for reading only; None for nothing."""
        return self._told.get(source)

    def digest(self, source: bytes) -> Digest:
        """Return the digest of one life of an access node."""
        told = self._told.get(source)
        return Digest(0, 0) if told is None else Digest(told.entries, told.xor)

    def mark(self, sources: Sources, gone: frozenset[Life] = frozenset()) -> Digest:
        """Return a digest of all but the gone, which another process with other numbers computes alike."""
        count = xor = 0
        for prefix, told in self._told.items():
            life = sources.life(prefix)
            if told.entries and life not in gone:
                count += told.entries
                xor ^= xxh3_64_intdigest(f"{life.node}\0{life.incarnation}\0{told.entries}\0{told.xor}".encode())
        return Digest(count, xor)

    def knows(self, source: bytes) -> bool:
        """Return whether anything is kept of one life of an access node: an entry, a tombstone or a floor."""
        return source in self._told

    def sources(self) -> list[bytes]:
        """Return the lives of access nodes that have open entries here."""
        return [source for source, told in self._told.items() if told.entries]

    def snapshot(self) -> list[Item]:
        """Return everything, tombstones included, and the floors last. Copies no entry."""
        items: list[Item] = []
        for user, held in self.users.items():
            if isinstance(held, bytes):
                items.append((user, held))
            elif isinstance(held, tuple):
                items.extend((user, entry) for entry in held)
            else:
                items.append((user, _seen_at(held)))
        if self._hidden:
            items = _in_order_of_say(items, newest_first=True)
            items.extend((user, _seen_at(seen)) for user, seen in self._hidden.items() if seen)
        items.extend(("", key + _MIN_SEQ + bytes([Kind.CLOSED])) for key in self._closed)
        items.extend(
            ("", source + _NO_CONN + told.floor + bytes([Kind.FLOOR]))
            for source, told in self._told.items()
            if told.floor
        )
        return items

    def expire(self, now: Instant) -> int:
        """Forget tombstones that are old enough; return how many."""
        old = []
        for key, closed_at in self._closed.items():
            if closed_at + TOMBSTONE_MS > now:
                break  # in the order in which they came
            old.append(key)
        for key in old:
            del self._closed[key]
        return len(old)

    def forget_seen(self, before: Timestamp) -> int:
        """Forget when users were visible last if it was before that; return how many."""
        old = [user for user, held in self.users.items() if isinstance(held, int) and held < before]
        for user in old:
            del self.users[user]
        hidden = [user for user, seen in self._hidden.items() if seen and seen < before]
        for user in hidden:
            self._hidden[user] = 0
        return len(old) + len(hidden)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        entries = sum(told.entries for told in self._told.values())
        return {"entries": entries, "tombstones": len(self._closed), "users": len(self.users)}

    def check_invariants(self) -> None:
        """Assert I4, and what one state shows of I1 and I5."""
        entries = self.entries()
        assert len({entry[:8] for _, entry in entries}) == len(entries), "I1"
        assert not any(entry[:8] in self._closed for _, entry in entries), "I1"
        assert all(len(held) > 1 for held in self.users.values() if isinstance(held, tuple)), "one needs no tuple"
        assert self._told.keys() >= {key[:2] for key in self._closed}, "or a purge forgets them"
        for source in {*self._told, *(entry[:2] for _, entry in entries)}:
            assert self.digest(source) == digest_of(entry[2:] for _, entry in entries if entry[:2] == source), "I4"
        assert self._hidden.keys() == {user for user, entry in entries if entry[14] == _HIDDEN}, "I5"
        for user, seen in self._hidden.items():
            assert (seen is None) == is_public(status_of(self.open_of(user))), "I5"

    # ---------------------------------------------------------------- inside

    def _open(self, user: str, entry: bytes) -> Merged:
        users, source = self.users, entry[:2]
        found = users.get(user)
        if found is not None and not isinstance(found, int):
            return self._open_beside(user, entry, found)
        told = self._told.get(source) or self._told_by(source)
        if entry[8:14] <= told.floor or (self._closed and entry[:8] in self._closed):
            return _STALE
        users[user] = entry
        told.entries += 1
        told.xor ^= xxh3_64_intdigest(entry[2:])
        return _OPENED

    def _told_by(self, source: bytes) -> Told:
        told = self._told[source] = self._told.get(source) or Told()
        return told

    def _open_beside(self, user: str, entry: bytes, found: bytes | tuple[bytes, ...]) -> Merged:
        """Take in an open entry of a user who has some."""
        key = entry[:8]
        others = found if isinstance(found, tuple) else (found,)
        current = next((other for other in others if other[:8] == key), b"")
        if current:
            if entry[8:14] <= current[8:14]:
                return _STALE
            self._count(current, -1)
        elif entry[8:14] <= self._told_by(entry[:2]).floor or key in self._closed:
            return _STALE
        if found is current:
            self.users[user] = entry
        else:
            self.users[user] = (*(other for other in others if other is not current), entry)
        self._count(entry, 1)
        if user in self._hidden:
            self._settle(user, self._hidden[user], _changed_at(entry))
        return _CHANGED if current else _OPENED

    def _hide(self, user: str, entry: bytes) -> Merged:
        """Take in a hidden entry."""
        found = self.users.get(user, 0)
        merged = self._open(user, entry)
        if merged is not _STALE and user not in self._hidden:
            # Until now there was no hidden one: everybody saw the user, or knew the last sight.
            self._settle(user, found if isinstance(found, int) else None, _changed_at(entry))
        return merged

    def _settle(self, user: str, seen: int | None, at: int) -> None:
        """Keep what is to be kept of a user with hidden entries, one of which came, changed or went at `at` (I5).

        `seen` is when everybody could see the user last, as of before that; None if everybody could.
        """
        entries = self.open_of(user)
        if any(entry[14] == _HIDDEN for entry in entries):
            last = at if seen is None else seen
            self._hidden[user] = None if is_public(status_of(entries)) else last
            return
        del self._hidden[user]
        if not entries:
            self.users.pop(user, None)  # nobody may learn when a hidden one ended
            if seen:
                self.users[user] = seen

    def _note_seen(self, user: str, seen: int) -> Merged:
        known = self._hidden[user] if user in self._hidden else self.users.get(user, 0)
        if not isinstance(known, int) or seen <= known:
            return Merged.STALE
        if user in self._hidden:
            self._hidden[user] = seen
        else:
            self.users[user] = seen
        return Merged.NOTED

    def _close(self, now: Instant, user: str, entry: bytes) -> Merged:
        key = entry[:8]
        if key in self._closed:
            return Merged.STALE
        current = self.find(user, entry)
        told = self._told.get(key[:2]) or self._told_by(key[:2])
        if not current and entry[8:14] <= told.floor and entry[8:14] != _MIN_SEQ:
            return Merged.STALE
        if self._keeps_tombstones:
            self._closed[key] = now
        if not current:
            return Merged.NOTED
        at = msgspec.msgpack.decode(entry[15:], type=int) if len(entry) > 15 else 0
        self._remove(user, current, Timestamp(at))
        return Merged.CLOSED

    def _raise_floor(self, source: bytes, seq: bytes) -> Merged:
        told = self._told_by(source)
        if seq <= told.floor:
            return Merged.STALE
        told.floor = seq
        return Merged.NOTED

    def _remove(self, user: str, entry: bytes, at: Timestamp) -> None:
        found = self.users[user]
        if isinstance(found, tuple):
            left = tuple(other for other in found if other is not entry)
            self.users[user] = left if len(left) > 1 else left[0]
        elif at:
            self.users[user] = at
        else:
            del self.users[user]
        self._count(entry, -1)
        if user in self._hidden:
            self._settle(user, self._hidden[user], at)

    def _count(self, entry: bytes, by: int) -> None:
        told = self._told[entry[:2]]
        told.entries += by
        told.xor ^= xxh3_64_intdigest(entry[2:])


_OPEN, _CLOSED, _FLOOR = int(Kind.OPEN), int(Kind.CLOSED), int(Kind.FLOOR)  # plain numbers compare faster
_HIDDEN = int(Kind.HIDDEN)
_OPEN_KINDS = frozenset({_OPEN, _HIDDEN})
_STALE, _OPENED, _CHANGED = Merged.STALE, Merged.OPENED, Merged.CHANGED
_NO_SOURCE = bytes(2)
_SEEN = bytes([Kind.SEEN])


def _seen_at(seen: int) -> bytes:
    """Return the entry of a time of last sight."""
    return _NO_SOURCE + _NO_CONN + _MIN_SEQ + _SEEN + msgspec.msgpack.encode(seen)


def _view_of(entry: bytes) -> SessionView:
    return status_of(entry).sessions[0]


def _changed_at(entry: bytes) -> int:
    """Return when the session became what it is, by its access node."""
    view = _view_of(entry)
    return max(view.since, view.last_active)


def _in_order_of_say(items: list[Item], *, newest_first: bool) -> list[Item]:
    """Return items with the open entries of users who hide in the order of their say on the audience.

    Of entries that come newest first, or go newest last, no part is visible unless the whole is. Costs a pass.
    """
    hiding = {user for user, entry in items if entry[14] == _HIDDEN}
    if not hiding:
        return items

    def say(item: Item) -> tuple[bool, int, int, str]:
        user, entry = item
        return said_at(_view_of(entry) if user in hiding and entry[14] in _OPEN_KINDS else None)

    return sorted(items, key=say, reverse=newest_first)
