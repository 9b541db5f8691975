"""One status node in the hands of a test, and the tables and entries that it is given."""

from __future__ import annotations

from dataclasses import replace

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import REFUSED, Audit, Beat, Shown, Stamp
from status.api import pack_partitions as pack
from status.core.holding import Role
from status.core.ownership import Heard, Ownership
from status.core.partitions import Advance, Begin, Change, End, PartitionTable, Stage, Take
from status.core.records import Kind, Merged, digest_of, packed
from status.core.vouching import LEASE_MS

A, B = NodeId("a"), NodeId("b")
GATE, OTHER = NodeId("gate"), NodeId("other")
LIFE = Incarnation(1)
TABLE = PartitionTable(Epoch(1), (A, B), (1, 1), (0, 1))
EARLY = [Begin(0, B), Advance(0, Stage.COPY), Advance(0, Stage.CATCHUP), Advance(0, Stage.SEAL)]
AWAY_AND_BACK = [Take(0, B), End(0), Take(0, A), End(0)]
VOUCH_MS = LEASE_MS * 9 // 10
GRACE_MS = LEASE_MS * 11 // 10
OFFLINE = None
SEEN = Timestamp(77)


def at(ms: int) -> Instant:
    return Instant(100_000 + ms)


def entry(conn: int, *, seq: int = 0, is_open: bool = True) -> bytes:
    """An entry as it travels; by default a connection's first."""
    return packed(conn, seq or conn, Kind.OPEN if is_open else Kind.CLOSED, b"session" if is_open else b"")


def table(*changes: Change, since: PartitionTable = TABLE) -> PartitionTable:
    """Return the table after these changes, each a write of its own."""
    made = since
    for change in changes:
        made = made.with_changes([change])
    return made


class Node:
    """One status node in the hands of a test. Its lease is a switch."""

    def __init__(self, name: NodeId, *access: NodeId, life: int = 1) -> None:
        self.is_leased = True
        self.life = Incarnation(life)
        self.core = Ownership(name, self.life, access, is_leased=lambda *_: self.is_leased)

    def read(self, now: Instant, newer: PartitionTable) -> None:
        assert self.core.adopt(now, newer)
        self.step(now)

    def step(self, now: Instant) -> None:
        self.core.step(now, SEEN)
        self.core.check_invariants()

    def beat(
        self,
        now: Instant,
        *entries: bytes,
        has: tuple[bytes, ...] | None = None,
        floor: int | None = None,
        epoch: int = 1,
        life: int = 1,
        echo: Instant | None = None,
        node: NodeId = GATE,
        user: str = "u",
    ) -> Heard:
        """Send a beat about partition 0, which echoes the last answer: by default one of just now.

        `has` is what the access node's digest is of; without it there is no audit.
        """
        self.step(now)
        stamp = self.core.stamp(now, node)
        beat = Beat(
            Incarnation(life),
            Epoch(epoch),
            Stamp(stamp.incarnation, echo if echo is not None else now, stamp.since),
            pack([0] * len(entries)),
            [user] * len(entries),
            list(entries),
            pack([0] if floor is not None else []),
            floor or 0,
            (Audit(pack([0]), *digest_of(has)),) if has is not None else (),
        )
        heard = self.core.heard(now, node, beat, SEEN)
        self.core.check_invariants()
        return replace(heard, refused=tuple(heard.refused), mismatched=tuple(heard.mismatched))

    def role(self, now: Instant) -> Role:
        return self.core.role(now, 0)

    def says(self, now: Instant, user: str = "u") -> Shown:
        """Return what is shown of a user of partition 0, without the source's number."""
        (shown,) = self.core.lookup(now, [0], [user])
        if isinstance(shown, tuple):
            return tuple(one[2:] for one in shown)
        return shown[2:] if isinstance(shown, bytes) else shown


def serving(*entries: bytes) -> Node:
    """Node a, which owns partition 0 and was told everything at 0."""
    node = Node(A, GATE)
    node.read(at(0), TABLE)
    assert node.beat(at(0), *entries, floor=len(entries)) == Heard()
    assert node.beat(at(0), has=entries) == Heard()
    assert node.role(at(0)) is Role.SERVING
    node.core.take_changes()
    return node


def copied(node: Node, target: Node, now: Instant) -> None:
    """Carry every question and its answer between the two, as often as it takes here."""
    for _ in range(2):
        for source, pull in target.core.pulls(now):
            assert source == A
            chunk = node.core.pulled(now, pull)
            assert chunk is not None
            target.core.received(now, chunk)


def moved(source: Node, target: Node, now: Instant, *stages: Change) -> PartitionTable:
    """Bring partition 0 through these stages, all at one instant."""
    made = TABLE
    for change in stages or EARLY:
        made = table(change, since=made)
        source.read(now, made)
        target.read(now, made)
        copied(source, target, now)
    return made


def changes(node: Node) -> list[tuple[int, str, bytes, Merged]]:
    return [(partition, user, one[2:], merged) for partition, user, one, merged in node.core.take_changes()]


def slow(node: Ownership, now: Instant, partition: int, user: str) -> Shown:
    """Decide entry by entry, whether the partition is clean or not."""
    role = node.role(now, partition)
    if role not in {Role.SERVING, Role.RECOVERING}:
        return REFUSED
    return node._showing.show(
        now,
        node._held[partition],
        user,
        is_serving=role is Role.SERVING and not node._vouching.is_in_doubt(now, node.access),
    )
