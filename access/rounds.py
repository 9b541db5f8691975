"""When this node compares what its clients were given with the heads of their logs: its audits.

From time to time, since a push that is lost may be the last one. And soon after a stream to a process of the message
services comes up: with its last life, pushes of what it had acknowledged may have been lost.
"""

from __future__ import annotations

import asyncio

__all__ = ["Rounds"]

SOON_MS = 1_000
"""Between two audits at least, however often streams come and go."""


class Rounds:
    """The rounds of one audit, which begins each when `next` returns."""

    def __init__(self, interval_ms: int) -> None:
        self._pause_s = min(interval_ms, SOON_MS) / 1000
        self._rest_s = interval_ms / 1000 - self._pause_s
        self._is_due = asyncio.Event()

    def come_soon(self) -> None:
        """Begin the next round without waiting for its time."""
        self._is_due.set()

    async def next(self) -> None:
        """Return when a round is due."""
        await asyncio.sleep(self._pause_s)
        try:
            async with asyncio.timeout(self._rest_s):
                await self._is_due.wait()
        except TimeoutError:
            pass
        self._is_due.clear()
