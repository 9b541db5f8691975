"""Ids that sort by time and never meet: 41 bits of milliseconds, 10 bits of worker, 12 bits of counter.

Every worker numbers alone: no id waits for another machine. What it costs is trust in the wall clock, so this core
says what it does when the clock misbehaves. A small step back (NTP, up to `STEP_BACK_MS_MAX`) is waited out without
waiting: numbering goes on in the last millisecond that was used. A greater one is an outcome that the caller must
act on, since ids would fall far behind what readers take for now. More than 4,096 ids in one millisecond borrow from
the next: numbering runs ahead of the clock, by `AHEAD_MS_MAX` at most, until the clock has caught up.

A quiet worker gives one id a millisecond, and its counters would all be 0: whoever shards by id modulo 2, 4 ... 128
would have one shard do all the work. So the counter of a new millisecond starts at random, below `STARTS`. This is a
power of two because a shard count's odd factors are evened out by the time already.

Invariants:
    I1  Ids of one `Snowflake` strictly increase, whatever the clock does.
    I2  `Snowflake`s of different workers never give the same id.
    I3  The time in an id is at or ahead of the greatest time seen, and ahead only by what was borrowed, which is at
        most `AHEAD_MS_MAX`.
    I4  At most 4,096 ids have the same time.

It does not remember across restarts: `im.core.workers` says from when on a new holder of a worker number may number.
The 41 bits last until September 2093.

Sources: Twitter's "Announcing Snowflake" (2010) for the layout; Meituan's Leaf for the bound of 5 ms and the random
start of the counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from base.clock import Timestamp

__all__ = ["AHEAD_MS_MAX", "EPOCH_MS", "WORKER_MAX", "ClockWentBack", "Entropy", "Snowflake"]

EPOCH_MS = Timestamp(1_704_067_200_000)
"""2024-01-01T00:00Z, where the 41 bits start."""

STEP_BACK_MS_MAX = 5
AHEAD_MS_MAX = 20
START_BITS = 7
STARTS = 1 << START_BITS
WORKER_BITS = 10
COUNTER_BITS = 12
WORKER_MAX = (1 << WORKER_BITS) - 1
COUNTER_MAX = (1 << COUNTER_BITS) - 1
TIME_MAX = (1 << 41) - 1

assert (TIME_MAX << (WORKER_BITS + COUNTER_BITS)).bit_length() == 63, "ids fit a signed 64-bit integer"


class Entropy(Protocol):
    """Where random bits come from: a `random.Random` that the caller seeded, or a source that nobody can guess."""

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of `k` random bits."""
        ...


@dataclass(frozen=True, slots=True)
class ClockWentBack:
    """No id: the wall clock is `by_ms` behind what it showed before, behind the last id, or before our time."""

    by_ms: int


class Snowflake:
    """One worker's numbering."""

    __slots__ = ("_counter", "_entropy", "_last_ms", "_seen_ms", "_worker_part")

    def __init__(self, worker: int, entropy: Entropy | None = None, *, not_before_ms: Timestamp = EPOCH_MS) -> None:
        """Start numbering.

        Args:
            worker: 0 to 1,023, held by nobody else.
            entropy: for the counter's start in a new millisecond; None: always 0.
            not_before_ms: the first time that an id may have. Until the clock is near it there are no ids.
        """
        assert 0 <= worker <= WORKER_MAX
        assert not_before_ms >= EPOCH_MS
        self._worker_part = worker << COUNTER_BITS
        self._entropy = entropy
        self._seen_ms = not_before_ms
        """The greatest time that the clock showed: what a step back is measured against."""
        self._last_ms = not_before_ms
        """The time in the last id; ahead of `_seen_ms` by what was borrowed."""
        self._counter = -1

    def next(self, now_ms: Timestamp) -> int | ClockWentBack:
        """Return the next id."""
        if now_ms > self._seen_ms:
            self._seen_ms = now_ms
        elif self._seen_ms - now_ms > STEP_BACK_MS_MAX:
            return ClockWentBack(self._seen_ms - now_ms)
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            self._counter = self._entropy.getrandbits(START_BITS) if self._entropy is not None else 0
        elif self._counter < COUNTER_MAX:
            self._counter += 1
        elif self._last_ms - self._seen_ms < AHEAD_MS_MAX:
            self._last_ms = Timestamp(self._last_ms + 1)
            self._counter = 0
        else:
            return ClockWentBack(self._last_ms - now_ms)
        elapsed = self._last_ms - EPOCH_MS
        assert elapsed <= TIME_MAX, "the clock is past the last id's year"
        return elapsed << (WORKER_BITS + COUNTER_BITS) | self._worker_part | self._counter
