"""One partition on its way from node to node: the source's stream, the target's hidden copy, and parked requests.

The source numbers everything that the target must know 1, 2, 3 ...: first a snapshot, then each change from the same
instant on. The target *pulls*: it says up to where it applied and gets what follows. A pull that is lost, late or
doubled costs time and nothing else, no buffer on the way can overflow, and because the target knows when it asked, ages
in the answer need no common clock. A target that is not heard of for too many changes loses the stream: the source
drops what it remembered, and the next pull begins anew.

Every answer carries a mark: the stream's head at that instant and the digest of the source's store. A target that has
applied up to the mark compares; equal means *caught up*. Once the source is sealed its store changes no more, and the
same comparison means *ready*. Lives of access nodes whose lease ended are left out of the comparison: each side forgets
them in its own time.

A sealed store stays true until somebody else takes changes, which the target does when it has read the commit. So the
source goes on answering lookups, and the target has it *cease* before it takes anything. If the source cannot be
reached a lease decides instead: it answers for `ANSWER_MS` from its first word that it is sealed, by its clock, and the
target waits for longer than that, by its own, from the word that made it ready.

```
    source   streaming ── seal ─▶ sealed ── told to cease, or commit read ─▶ released
                 ▲                   │
                 └──── unseal ───────┘  only on an abort read at a higher epoch, never on a timeout
    target   copying ─▶ caught up ─▶ ready ── commit read, source ceased ─▶ its store is served
                └───────────┴──────────┴── abort read, another stream, an unequal digest: begin anew, empty
```

Invariants:
    I1  The target's staging is what a prefix of one stream makes of an empty store: chunks apply in order.
    I2  Ready means: the source was sealed when it answered, all of its stream is applied, the digests are equal.
    I3  A sealed source stays sealed until it has read a table in which the move is over.
    I4  What the target got from one stream or one life of the source is never mixed with another's.
    I5  A request is parked for at most `PARK_MS`, and at most `PARKED_MAX` are.
    I6  An access node's lease at the target, counted from the pull, ends no later than at the source.
    I7  A source remembers at most `CHANGES_MAX` items more than its stream began with.
    I8  A source answers lookups while sealed only until it was told to cease, and for `ANSWER_MS` at most after its
        target may have become ready; a target is alone no earlier.
    I9  A chunk has at most `CHUNK_ITEMS` items, and ends where it reaches `CHUNK_BYTES`; an answer to many pulls ends
        with the chunk that reaches `PULL_ITEMS` or `PULL_BYTES`.

Sources: the atomic slot migration of Redis 8.4 and Valkey 9 for snapshot, stream and hidden staging; Scylla's tablets
and Orleans' directory for the seal; what none of them has is a fence that is no timeout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from base.clock import Instant
from base.ids import Epoch, Incarnation, NodeId
from status.core.records import Digest, Item, Kind, Life, PartitionRecords, Sources

__all__ = ["ANSWER_MS", "CHANGES_MAX", "CHUNK_BYTES", "CHUNK_ITEMS", "LAG_MAX", "PARKED_MAX", "PARK_MS", "Chunk"]
__all__ += ["PULL_BYTES", "PULL_ITEMS", "Incoming", "Outgoing", "Parking", "Pull", "answered"]

CHUNK_ITEMS = 500
CHUNK_BYTES = 256 * 1024
"""A chunk ends with the item that makes its users and entries this long or longer: entries may be of any size."""
PULL_ITEMS = 4_000
"""How many items an answer to many pulls has, about: neither end stops for longer than some milliseconds."""
PULL_BYTES = 1024 * 1024
"""How long such an answer is, about: far below what a message may have, whatever the entries are like."""
CHANGES_MAX = 10_000
"""So many changes are remembered for a target beside the snapshot. A copy begun anew costs less than more of them."""
LAG_MAX = 256
ANSWER_MS = 250
"""As long as a commit takes, and how long a partition's news wait if the source died at that moment."""
PARK_MS = 250
PARKED_MAX = 10_000
DRIFT_PPM = 100_000
_NAME_BYTES = 64
"""About what a life of an access node takes in a chunk: its name and some numbers."""

Request = TypeVar("Request")


class Pull(msgspec.Struct, frozen=True, array_like=True):
    """The target asks for what follows `applied` in `stream`, 0 when it has none. `number` grows with each pull."""

    partition: int
    move_id: Epoch
    incarnation: Incarnation
    number: int
    stream: int
    applied: int


class Vouch(msgspec.Struct, frozen=True, array_like=True):
    """An access node's lease for this partition had so long to run when the source answered."""

    node: NodeId
    incarnation: Incarnation
    left_ms: int


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """The source's answer: items from `first` on, and the mark (`head`, `digest`) at this instant.

    `users` and `entries` are the items; `sources` says whose life each prefix of an entry is, at the sender.
    """

    partition: int
    move_id: Epoch
    source_incarnation: Incarnation
    number: int
    stream: int
    first: int
    users: list[str]
    entries: list[bytes]
    sources: list[tuple[bytes, NodeId, Incarnation]]
    head: int
    digest: Digest
    gone: list[Life]
    is_sealed: bool
    vouches: tuple[Vouch, ...]

    def size(self) -> int:
        """Return about how many bytes it takes on the wire."""
        names = len(self.sources) + len(self.gone) + len(self.vouches)
        return sum(map(len, self.users)) + sum(map(len, self.entries)) + _NAME_BYTES * names


class Outgoing:
    """The source's side of one move, in one of its lives."""

    def __init__(
        self, partition: int, move_id: Epoch, incarnation: Incarnation, records: PartitionRecords, sources: Sources
    ) -> None:
        self.partition = partition
        self.move_id = move_id
        self.is_sealed = False
        self._sealed_told_at: Instant | None = None
        self._has_ceased = False
        self._incarnation = incarnation
        self._records = records
        self._sources = sources
        self._stream = 0
        self._is_streaming = False
        self._base = 0
        self._log: deque[Item] = deque()
        self._log_max = 0
        self._newest: tuple[Incarnation, int] = (Incarnation(0), 0)

    @property
    def lag(self) -> int:
        """How many items the target has not confirmed."""
        return len(self._log)

    def changed(self, user: str, entry: bytes) -> None:
        """Forward a change that the store took in. Without a stream there is nothing to add it to."""
        assert not self.is_sealed, "I2: a sealed store does not change"
        if not self._is_streaming:
            return
        self._log.append((user, entry))
        if len(self._log) > self._log_max:
            self._is_streaming = False
            self._log.clear()

    def pulled(self, pull: Pull, vouches: tuple[Vouch, ...], gone: frozenset[Life] = frozenset()) -> Chunk | None:
        """Answer a pull; None for one that is older than another already answered.

        `vouches` are the access nodes' leases now; they count only once sealed, when no more can be added. `gone` are
        the lives whose lease ended.
        """
        if pull.move_id != self.move_id or (pull.incarnation, pull.number) <= self._newest:
            return None
        self._newest = (pull.incarnation, pull.number)
        is_known = self._is_streaming and pull.stream == self._stream
        if not (is_known and self._base <= pull.applied <= self._head):
            self._start_stream()
            applied = 0
        else:
            applied = pull.applied
        while self._base < applied:
            self._log.popleft()
            self._base += 1
        items = self._next_items()
        prefixes = {entry[:2] for _, entry in items if entry[14] != Kind.SEEN}
        return Chunk(
            partition=self.partition,
            move_id=self.move_id,
            source_incarnation=self._incarnation,
            number=pull.number,
            stream=self._stream,
            first=self._base + 1,
            users=[user for user, _ in items],
            entries=[entry for _, entry in items],
            sources=[(prefix, *self._sources.life(prefix)) for prefix in sorted(prefixes)],
            head=self._head,
            digest=self._records.mark(self._sources, gone),
            gone=sorted(gone),
            is_sealed=self.is_sealed,
            vouches=vouches if self.is_sealed else (),
        )

    def seal(self) -> None:
        """Answer no more requests and take in no more changes; what was taken in is in the stream."""
        self.is_sealed = True

    def sealed_told(self, now: Instant) -> None:
        """Take note that an answer leaves which says that this is sealed: the target may be ready from now on."""
        if self._sealed_told_at is None:
            self._sealed_told_at = now

    def cease(self) -> None:
        """Answer no lookups any more: the target takes this one's place (I8)."""
        self._has_ceased = True

    def may_answer(self, now: Instant) -> bool:
        """Return whether lookups may be answered though it is sealed: nobody else does, or takes changes (I8)."""
        if self._has_ceased:
            return False
        return self._sealed_told_at is None or now < self._sealed_told_at + ANSWER_MS

    def check_invariants(self) -> None:
        """Assert that the stream is numbered without a gap."""
        assert self._head == self._base + len(self._log)
        assert self._is_streaming or not self._log
        assert len(self._log) <= self._log_max, "I7"

    @property
    def _head(self) -> int:
        return self._base + len(self._log)

    def _start_stream(self) -> None:
        # The target is a new life or lost the thread. A number of its own keeps the rests of the old one out (I4).
        self._stream += 1
        self._is_streaming = True
        self._base = 0
        self._log = deque(self._records.snapshot())
        self._log_max = len(self._log) + CHANGES_MAX

    def _next_items(self) -> list[Item]:
        items: list[Item] = []
        size = 0
        for user, entry in islice(self._log, CHUNK_ITEMS):
            items.append((user, entry))
            size += len(user) + len(entry)
            if size >= CHUNK_BYTES:
                break
        return items


class Incoming:
    """The target's side of one move, in one of its lives. `records` is the staging: nobody may read it yet."""

    def __init__(
        self,
        partition: int,
        move_id: Epoch,
        incarnation: Incarnation,
        sources: Sources,
        *,
        new_store: Callable[[], PartitionRecords] = PartitionRecords,
    ) -> None:
        self.partition = partition
        self.move_id = move_id
        self._sources = sources
        self._new_store = new_store
        self.records = new_store()
        self.is_copied = False
        self.is_caught_up = False
        self.is_ready = False
        self.vouches: dict[NodeId, tuple[Incarnation, Instant]] = {}
        """When ready: until when each access node's records may be shown without hearing from it again."""
        self.alone_from = Instant(0)
        """When ready: from when on the source answers no lookups any more, be it that nobody told it to cease (I8)."""
        self._incarnation = incarnation
        self.asked_at = Instant(0)
        """When the last question was asked."""
        self._number = 0
        self._asked: dict[int, Instant] = {}
        self._source: tuple[Incarnation, int] = (Incarnation(0), 0)
        self._applied = 0

    def pull(self, now: Instant) -> Pull:
        """Return the next question, to be asked again and again until ready; the shell sets the pace."""
        self._number += 1
        self.asked_at = self._asked[self._number] = now
        for number in [number for number in self._asked if number <= self._number - 16]:
            del self._asked[number]
        return Pull(self.partition, self.move_id, self._incarnation, self._number, self._source[1], self._applied)

    def received(self, now: Instant, chunk: Chunk) -> None:
        """Apply an answer, if it is the next part of the stream that is being applied."""
        asked_at = self._asked.pop(chunk.number, None)
        if asked_at is None or chunk.move_id != self.move_id or self.is_ready:
            return
        stream = (chunk.source_incarnation, chunk.stream)
        if stream < self._source:
            return
        if stream > self._source:
            self._discard(stream)
        if not chunk.first <= self._applied + 1:
            return  # a gap: the next pull says where it begins
        self._apply(now, chunk)
        self._compare(now, asked_at, chunk)

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        assert self.is_caught_up or not self.is_ready, "I2"
        self.records.check_invariants()

    def _apply(self, now: Instant, chunk: Chunk) -> None:
        ours = {prefix: self._sources.prefix(Life(node, life)) for prefix, node, life in chunk.sources}
        is_alike = all(prefix == own for prefix, own in ours.items())
        merge = self.records.merge
        begin = self._applied + 1 - chunk.first
        for user, entry in zip(chunk.users[begin:], chunk.entries[begin:], strict=True):
            merge(now, user, entry if is_alike else ours.get(entry[:2], entry[:2]) + entry[2:])
            self._applied += 1

    def _compare(self, now: Instant, asked_at: Instant, chunk: Chunk) -> None:
        self.is_copied = self.is_copied or chunk.head - self._applied <= LAG_MAX
        if self._applied != chunk.head:
            # A stream under load is never at its head for long; what was equal once and lags a little will be again.
            self.is_caught_up = self.is_caught_up and chunk.head - self._applied <= LAG_MAX
            return
        if self.records.mark(self._sources, frozenset(chunk.gone)) != chunk.digest:
            self._discard((chunk.source_incarnation, 0))  # what was applied is not what was sent: ask for it anew
            return
        self.is_caught_up = True
        if chunk.is_sealed:
            self.is_ready = True
            self.alone_from = Instant(now + 1 + ANSWER_MS + ANSWER_MS * DRIFT_PPM // 1_000_000)
            self.vouches = {
                vouch.node: (
                    vouch.incarnation,
                    Instant(asked_at + vouch.left_ms - vouch.left_ms * DRIFT_PPM // 1_000_000),
                )
                for vouch in chunk.vouches
            }

    def _discard(self, stream: tuple[Incarnation, int]) -> None:
        self.records = self._new_store()
        self._source = stream
        self._applied = 0
        self.is_copied = self.is_caught_up = False


def answered(pulls: Iterable[Pull], answer: Callable[[Pull], Chunk | None]) -> tuple[list[Chunk | None], bool]:
    """Answer many pulls in their order; return an answer a pull, and whether it was cut for its size (I9).

    What was cut is None, as is what `answer` does not answer.
    """
    chunks: list[Chunk | None] = []
    items = size = 0
    for pull in pulls:
        is_full = items >= PULL_ITEMS or size >= PULL_BYTES
        chunk = None if is_full else answer(pull)
        if chunk is not None:
            items, size = items + len(chunk.users), size + chunk.size()
        chunks.append(chunk)
    return chunks, items >= PULL_ITEMS or size >= PULL_BYTES


class Parking(Generic[Request]):
    """Requests for a sealed partition: held back a moment, since most seals are over in a few milliseconds."""

    def __init__(self) -> None:
        self._parked: deque[tuple[Instant, Request]] = deque()

    def park(self, now: Instant, request: Request) -> bool:
        """Hold the request back; False when too many are, and it must be answered with RETRY."""
        if len(self._parked) >= PARKED_MAX:
            return False
        self._parked.append((Instant(now + PARK_MS), request))
        return True

    def release(self, is_sealed: Callable[[Request], bool]) -> list[Request]:
        """Return the requests, oldest first, to be answered: what they ask for is served again, or moved.

        Those that `is_sealed` still holds for stay, for no longer than before.
        """
        released = [request for _, request in self._parked if not is_sealed(request)]
        self._parked = deque((until, request) for until, request in self._parked if is_sealed(request))
        return released

    def expire(self, now: Instant) -> list[Request]:
        """Return the requests that waited long enough, to be answered with RETRY (I5)."""
        late: list[Request] = []
        while self._parked and self._parked[0][0] <= now:
            late.append(self._parked.popleft()[1])
        return late

    def next_deadline(self) -> Instant | None:
        """Return when `expire` has something to do, None when nothing is parked."""
        return self._parked[0][0] if self._parked else None
