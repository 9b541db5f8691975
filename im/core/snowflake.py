"""Ids that sort by time and never meet: 41 bits of milliseconds, 10 bits of worker, 12 bits of counter.

Every worker numbers alone: no id waits for another machine. What it costs is trust in the wall clock, so this core
says what it does when the clock misbehaves. A small step back (NTP, up to `STEP_BACK_MS_MAX`) is waited out without
waiting: numbering goes on in the last millisecond that was used. A greater one is an outcome that the caller must
act on, since ids would fall far behind what readers take for now. More than 4,096 ids in one millisecond borrow from
the next: numbering runs ahead of the clock until the clock has caught up.

Invariants:
    I1  Ids of one `Snowflake` strictly increase, whatever the clock does.
    I2  `Snowflake`s of different workers never give the same id.
    I3  The time in an id is at or ahead of the greatest time seen, and ahead only by what was borrowed.

It does not remember across restarts: whoever hands out worker numbers sees to it that a new life of a worker starts
later than the last id of the old one, as a lease does. The 41 bits last until September 2093.

Source: Twitter's "Announcing Snowflake" (2010) for the layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from base.clock import Timestamp

__all__ = ["ClockWentBack", "Snowflake"]

EPOCH_MS = 1_704_067_200_000
"""2024-01-01T00:00Z, where the 41 bits start."""

STEP_BACK_MS_MAX = 5
WORKER_BITS = 10
COUNTER_BITS = 12
WORKER_MAX = (1 << WORKER_BITS) - 1
COUNTER_MAX = (1 << COUNTER_BITS) - 1
TIME_MAX = (1 << 41) - 1

assert (TIME_MAX << (WORKER_BITS + COUNTER_BITS)).bit_length() == 63, "ids fit a signed 64-bit integer"


@dataclass(frozen=True, slots=True)
class ClockWentBack:
    """No id: the wall clock is `by_ms` behind what it showed before, or behind the start of our time."""

    by_ms: int


class Snowflake:
    """One worker's numbering."""

    def __init__(self, worker: int) -> None:
        """`worker`: 0 to 1,023, held by nobody else."""
        assert 0 <= worker <= WORKER_MAX
        self._worker_part = worker << COUNTER_BITS
        self._seen_ms = EPOCH_MS
        """The greatest time that the clock showed: what a step back is measured against."""
        self._last_ms = EPOCH_MS
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
            self._counter = 0
        elif self._counter < COUNTER_MAX:
            self._counter += 1
        else:
            self._last_ms += 1
            self._counter = 0
        elapsed = self._last_ms - EPOCH_MS
        assert elapsed <= TIME_MAX, "the clock is past the last id's year"
        return elapsed << (WORKER_BITS + COUNTER_BITS) | self._worker_part | self._counter
