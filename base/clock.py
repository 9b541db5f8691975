"""The only module that reads time.

Two times, never mixed. `monotonic` drives every lease, timeout and deadline: it only goes forward and means
nothing outside its process. `realtime` is for values that people and other machines see.

Both are whole milliseconds: decisions are made on integers, so that a simulated run and a real one compare
equal. `stopwatch` is finer and for measuring only; nothing may be decided by it.
"""

from __future__ import annotations

import asyncio
import time
from typing import NewType, Protocol

__all__ = ["Clock", "Instant", "SimClock", "SystemClock", "Timestamp"]

Instant = NewType("Instant", int)
"""Milliseconds of a monotonic clock. Comparable within one process only."""

Timestamp = NewType("Timestamp", int)
"""Milliseconds since 1970-01-01T00:00Z."""


class Clock(Protocol):
    """A source of time. Shells own one; cores get the instants that it gave."""

    def monotonic(self) -> Instant:
        """Return the monotonic time in ms."""
        ...

    def realtime(self) -> Timestamp:
        """Return the wall-clock time in ms since the Unix epoch."""
        ...

    def stopwatch(self) -> float:
        """Return seconds of a fine monotonic clock, for measuring durations."""
        ...

    async def sleep_until(self, instant: Instant) -> None:
        """Return once `monotonic()` is at or past the instant."""
        ...


class SystemClock:
    """The machine's clocks. `CLOCK_MONOTONIC` stands still while the machine is suspended."""

    def monotonic(self) -> Instant:
        """Return the machine's monotonic time in ms."""
        return Instant(time.monotonic_ns() // 1_000_000)

    def realtime(self) -> Timestamp:
        """Return the machine's wall-clock time in ms."""
        return Timestamp(time.time_ns() // 1_000_000)

    def stopwatch(self) -> float:
        """Return seconds of the performance counter."""
        return time.perf_counter()

    async def sleep_until(self, instant: Instant) -> None:
        """Sleep on the event loop until the instant."""
        while (left_ms := instant - self.monotonic()) > 0:  # noqa: ASYNC110 - the loop's clock may run ahead of ours
            await asyncio.sleep(left_ms / 1000)


class SimClock:
    """A clock that moves only when told: for tests and the simulator.

    `drift_ppm` makes it run fast (positive) or slow against the time it is given, as quartz does; `jump`
    moves the wall clock alone, as an operator or NTP does.
    """

    def __init__(self, *, start_ms: int = 1_000, epoch_ms: int = 1_700_000_000_000, drift_ppm: int = 0) -> None:
        self._true_ms = start_ms
        self._start_ms = start_ms
        self._drift_ppm = drift_ppm
        self._offset_ms = epoch_ms - start_ms
        self._sleepers: list[tuple[Instant, asyncio.Event]] = []

    def monotonic(self) -> Instant:
        """Return the simulated monotonic time, drift included."""
        elapsed = self._true_ms - self._start_ms
        return Instant(self._start_ms + elapsed + elapsed * self._drift_ppm // 1_000_000)

    def realtime(self) -> Timestamp:
        """Return the simulated wall-clock time, jumps included."""
        return Timestamp(self.monotonic() + self._offset_ms)

    def stopwatch(self) -> float:
        """Return the simulated monotonic time in seconds."""
        return self.monotonic() / 1000

    async def sleep_until(self, instant: Instant) -> None:
        """Wait until `advance` has moved the clock to the instant."""
        if instant > self.monotonic():
            woken = asyncio.Event()
            self._sleepers.append((instant, woken))
            await woken.wait()

    def advance(self, ms: int) -> None:
        """Move true time forward by `ms` and wake the sleepers that are due."""
        assert ms >= 0
        self._true_ms += ms
        now = self.monotonic()
        due = [entry for entry in self._sleepers if entry[0] <= now]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > now]
        for _, woken in due:
            woken.set()

    def jump(self, ms: int) -> None:
        """Move the wall clock by `ms`, in either direction; the monotonic clock does not notice."""
        self._offset_ms += ms
