"""What one status node knows about the connections of one partition, in a form that can be moved at any time.

Each connection has one record; of two the greater (incarnation, conn_seq) wins. A disconnect leaves a *tombstone*, a
record without a session, so that an older record that comes late, in a copied chunk or a repeated beat, does not bring
the connection back. Merging is therefore idempotent and commutative: chunks and deltas may come twice.

An access node that tells everything it has for the partition also says up to which number that is: its *floor*. What
is not in the list and not above the floor is closed, whatever still comes; so a floor stands for all tombstones of the
life before it, also for those that a new owner has never seen.

The digest (count and XOR of hashes of the open records) is kept up to date with each change: two stores with equal
digests hold the same open connections, which costs 16 bytes to find out.

Invariants:
    I1  Per connection the greatest (incarnation, conn_seq) ever merged is kept, or a floor at least as great.
    I2  Merging the same records and floors in another order, or twice, gives the same open records.
    I3  A tombstone is kept at least `TOMBSTONE_MS`, and is part of every snapshot.
    I4  The digests equal those computed anew from the open records.

I2 holds for records and tombstones in any order; a floor must come after the records that it stands above, which the
numbered stream of a handoff sees to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from base.clock import Instant
from base.ids import Incarnation, NodeId
from status.api import Opened

__all__ = ["TOMBSTONE_MS", "Digest", "Floor", "Item", "PartitionRecords", "Record", "digest_of"]

TOMBSTONE_MS = 60_000


class Record(msgspec.Struct, tag="r", frozen=True, array_like=True):
    """One connection as its access node last reported it. `opened` is None once it is closed: a tombstone."""

    user: str
    session: str
    node: NodeId
    incarnation: Incarnation
    conn_seq: int
    opened: Opened | None

    @property
    def version(self) -> tuple[int, int]:
        """What decides between two records of one connection."""
        return (self.incarnation, self.conn_seq)

    @property
    def connection(self) -> tuple[NodeId, str]:
        """What the record is about. Numbers of different access nodes do not compare, so the node is part of it."""
        return (self.node, self.session)


class Floor(msgspec.Struct, tag="f", frozen=True, array_like=True):
    """All that this access node did up to (incarnation, conn_seq) is known: what is not there is closed."""

    node: NodeId
    incarnation: Incarnation
    conn_seq: int

    @property
    def version(self) -> tuple[int, int]:
        """What a record must exceed to be new."""
        return (self.incarnation, self.conn_seq)


Item = Record | Floor
"""What a handoff streams, in order."""


class Digest(NamedTuple):
    """How many open records, and the XOR of their hashes."""

    records: int
    xor: int


NO_RECORDS = Digest(0, 0)
NO_FLOOR = (0, 0)


class PartitionRecords:
    """The records of one partition. A step costs a dictionary look and a hash."""

    def __init__(self, *, keeps_tombstones: bool = True) -> None:
        """`keeps_tombstones` is False only where a test shows what happens without them."""
        self._keeps_tombstones = keeps_tombstones
        self._users: dict[str, dict[tuple[NodeId, str], Record]] = {}
        self._by_node: dict[NodeId, dict[str, Record]] = {}
        self._floors: dict[NodeId, Floor] = {}
        self._digests: dict[NodeId, Digest] = {}
        self._closed_at: dict[tuple[NodeId, str], Instant] = {}

    def merge(self, now: Instant, item: Item) -> bool:
        """Take in one record or floor; return whether it was news, which is what a handoff forwards."""
        if isinstance(item, Floor):
            return self._raise_floor(item)
        current = self._by_node.get(item.node, {}).get(item.session)
        floor = self._floors.get(item.node)
        known = NO_FLOOR if floor is None else floor.version
        if current is not None:
            known = current.version
        if item.version <= known:
            return False
        if current is not None:
            self._remove(current)
        if item.opened is None:
            if not self._keeps_tombstones:
                return current is not None
            self._closed_at[item.connection] = now
        self._put(item)
        return True

    def replace(self, now: Instant, floor: Floor, records: Iterable[Record]) -> list[Item]:
        """Take in everything that an access node has up to the floor; return what was news, in order."""
        news: list[Item] = []
        named: set[str] = set()
        for record in records:
            named.add(record.session)
            if self.merge(now, record):
                news.append(record)
        for record in list(self._by_node.get(floor.node, {}).values()):
            if record.opened is not None and record.session not in named and record.version <= floor.version:
                tombstone = msgspec.structs.replace(
                    record, incarnation=floor.incarnation, conn_seq=floor.conn_seq, opened=None
                )
                self._remove(record)
                self._closed_at[record.connection] = now
                self._put(tombstone)
                news.append(tombstone)
        if self._raise_floor(floor):
            news.append(floor)
        return news

    def of_user(self, user: str) -> tuple[Record, ...]:
        """Return the user's open records."""
        return tuple(record for record in self._users.get(user, {}).values() if record.opened is not None)

    def digest(self, node: NodeId | None = None) -> Digest:
        """Return the digest of one access node's open records, or of all."""
        if node is not None:
            return self._digests.get(node, NO_RECORDS)
        count = xor = 0
        for part in self._digests.values():
            count, xor = count + part.records, xor ^ part.xor
        return Digest(count, xor)

    def nodes(self) -> tuple[NodeId, ...]:
        """Return the access nodes that have open records here."""
        return tuple(sorted(node for node, digest in self._digests.items() if digest.records))

    def snapshot(self) -> list[Item]:
        """Return everything, tombstones included, and the floors last, in a settled order. Copies no record."""
        items: list[Item] = [
            record for node in sorted(self._by_node) for _, record in sorted(self._by_node[node].items())
        ]
        items.extend(self._floors[node] for node in sorted(self._floors))
        return items

    def expire(self, now: Instant) -> int:
        """Forget tombstones that are old enough; return how many."""
        old = [key for key, closed_at in self._closed_at.items() if closed_at + TOMBSTONE_MS <= now]
        for node, session in old:
            self._remove(self._by_node[node][session])
        return len(old)

    def statistics(self) -> dict[str, int]:
        """Return a snapshot of sizes."""
        return {"records": self.digest().records, "tombstones": len(self._closed_at), "users": len(self._users)}

    def check_invariants(self) -> None:
        """Assert I4, and that all indexes hold the same records."""
        by_user = {key: record for records in self._users.values() for key, record in records.items()}
        by_node = {record.connection: record for records in self._by_node.values() for record in records.values()}
        assert by_user == by_node, "I1"
        assert all(self._users.values()), "no user without a record"
        closed = {key for key, record in by_user.items() if record.opened is None}
        assert closed == set(self._closed_at), "I3"
        for node in self._by_node:
            records = [record for record in self._by_node[node].values() if record.opened is not None]
            assert self.digest(node) == digest_of(records), "I4"

    def _raise_floor(self, floor: Floor) -> bool:
        known = self._floors.get(floor.node)
        if known is not None and known.version >= floor.version:
            return False
        self._floors[floor.node] = floor
        # An older life's sockets are gone. Its records need no tombstones: the floor refuses them.
        for record in list(self._by_node.get(floor.node, {}).values()):
            if record.incarnation < floor.incarnation:
                self._remove(record)
        return True

    def _put(self, record: Record) -> None:
        self._users.setdefault(record.user, {})[record.connection] = record
        self._by_node.setdefault(record.node, {})[record.session] = record
        if record.opened is not None:
            self._count(record, 1)

    def _remove(self, record: Record) -> None:
        records = self._users[record.user]
        del records[record.connection]
        if not records:
            del self._users[record.user]
        del self._by_node[record.node][record.session]
        if record.opened is None:
            del self._closed_at[record.connection]
        else:
            self._count(record, -1)

    def _count(self, record: Record, by: int) -> None:
        count, xor = self._digests.get(record.node, NO_RECORDS)
        self._digests[record.node] = Digest(count + by, xor ^ _hash(record))


def digest_of(records: Iterable[Record]) -> Digest:
    """Return the digest of open records: what an access node says it has, or a test expects."""
    count = xor = 0
    for record in records:
        count, xor = count + 1, xor ^ _hash(record)
    return Digest(count, xor)


def _hash(record: Record) -> int:
    name = f"{record.user}\0{record.session}\0{record.node}\0{record.incarnation}\0{record.conn_seq}"
    return xxh3_64_intdigest(name.encode())
