"""Sessions of clients that went where this node had sent them: shown for a moment longer, until they are there.

A client that moves as our SDKs do connects to its new node before it leaves this one, and nobody sees it offline. One
that leaves first is nowhere for as long as a handshake takes: that is our doing and not its, so it is not told.
"""

from __future__ import annotations

import asyncio
from collections import deque

from base.clock import Clock, Instant
from status.api import Closed
from status.client import SessionReports

__all__ = ["Leaving"]

WAIT_S = 0.02


class Leaving:
    """Reports the ends of such sessions late, by `linger_ms` and up to the time between two calls of `tick`."""

    def __init__(self, reports: SessionReports, clock: Clock, *, linger_ms: int) -> None:
        """`linger_ms` must leave time until users have to be offline, 3 s after they went."""
        self._reports = reports
        self._clock = clock
        self._linger_ms = linger_ms
        self._closed: deque[tuple[Instant, Closed]] = deque()

    def __len__(self) -> int:
        return len(self._closed)

    def add(self, closed: Closed) -> None:
        """Report that a session ended, in a while."""
        self._closed.append((Instant(self._clock.monotonic() + self._linger_ms), closed))

    def tick(self, now: Instant) -> None:
        """Report what is due."""
        while self._closed and self._closed[0][0] <= now:
            self._reports.close(self._closed.popleft()[1])

    async def wait_over(self) -> None:
        """Return when all is reported: within `linger_ms`, if nobody is added."""
        while self._closed:
            self.tick(self._clock.monotonic())
            await asyncio.sleep(WAIT_S)
