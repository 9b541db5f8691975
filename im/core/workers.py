"""Who may number messages as which worker, for which times.

A worker number is not so much held by somebody as its *time* is: the registry keeps a mark for each number that was
ever used, and the mark says through which time its ids are given away. Whoever writes the next mark, by
compare-and-set, numbers from the time after it on. So no two holders can give the same id, whatever their clocks say,
however long one of them slept, and whether or not it knows that it was replaced. Clocks decide only how soon a number
can be used again.

A holder writes its mark ahead of its clock by `TERM_MS`, and again long before the time has come. That is how long
numbering goes on while the registry is away. It is also how long the number of a holder that died rests; meanwhile
others are free, of which there are 1,024. A holder that stops in order shortens its mark to what it used.

Invariants:
    I1  The times of two terms of one worker number have none in common.
    I2  While a `WorkerTerm` covers a time, every id that a `Snowflake` gives at that time is within the term.

A registry that lost its marks would give times away again. Those who live mark their numbers anew within a second.
Whoever starts then, and ran before, takes a number without a mark only when all others that number messages have theirs
(`must_wait`), or when all times that were given away before it started are past.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from base.clock import Timestamp
from im.core.snowflake import AHEAD_MS_MAX, EPOCH_MS, WORKER_MAX

__all__ = ["TERM_MS", "Mark", "WorkerTerm", "free_workers", "must_wait"]

TERM_MS = 300_000


class Mark(msgspec.Struct, frozen=True):
    """What the registry keeps of a worker number, as JSON."""

    holder: str
    """Drawn by each life of a holder: it knows its own marks again."""
    node: str
    """Its name, for people."""
    through_ms: int
    """The last time that its ids may have, in ms since 1970."""


def free_workers(marks: Mapping[int, Mark], now: Timestamp) -> list[int]:
    """Return the numbers that could be used from now on, lowest first: whose mark is past, or that have none."""
    return [number for number in range(WORKER_MAX + 1) if number not in marks or marks[number].through_ms < now]


def must_wait(marks: Mapping[int, Mark], others: Collection[str], *, waited_ms: int) -> bool:
    """Return whether to take no number yet, in a registry that may have lost its marks.

    Args:
        marks: what it has.
        others: who else numbers messages, by name.
        waited_ms: since this process started.
    """
    return waited_ms < TERM_MS + AHEAD_MS_MAX and not {*others} <= {mark.node for mark in marks.values()}


class WorkerTerm:
    """The times for which this process may number as `worker`."""

    __slots__ = ("_seen_ms", "not_before_ms", "through_ms", "worker")

    def __init__(self, worker: int, previous: Mark | None, now: Timestamp) -> None:
        """`previous`: the mark that ours replaces, past by now. The term holds once the registry has ours."""
        assert previous is None or previous.through_ms < now
        self.worker = worker
        self.not_before_ms = Timestamp(max(EPOCH_MS, previous.through_ms + 1 if previous is not None else 0))
        """The first time that an id may have."""
        self.through_ms = Timestamp(max(now, self.not_before_ms) + TERM_MS)
        """What our mark says."""
        self._seen_ms = self.not_before_ms
        """The greatest time that was covered."""

    def covers(self, now: Timestamp) -> bool:
        """Return whether ids may be given now; ask with the very time that is numbered with."""
        if now + AHEAD_MS_MAX > self.through_ms:
            return False
        self._seen_ms = max(self._seen_ms, now)
        return True

    def next_through(self, now: Timestamp) -> Timestamp:
        """Return what the next mark should say; never less than the last one."""
        return Timestamp(max(self.through_ms, now + TERM_MS))

    def extend(self, through_ms: int) -> None:
        """The registry has our mark through this time."""
        self.through_ms = Timestamp(max(self.through_ms, through_ms))

    def used_through(self) -> Timestamp:
        """Return the last time that an id of this term can have."""
        return Timestamp(min(self.through_ms, self._seen_ms + AHEAD_MS_MAX))
