"""Shards that are on their way, and the calls that wait for them.

A shard that moves rests for some 0.1 s at its old process and is opened by the new one then; in between it is nowhere.
A call that is refused then comes again after a pause, which is longer. So calls wait until the shard is somewhere, and
are carried out there. They go on in the order in which they came.

A call that waits for too long is refused as a call is that asks the wrong process, and so is one too many.
"""

from __future__ import annotations

import asyncio

from im.gathering import elsewhere

__all__ = ["WAITING_MAX", "WAIT_MS", "Absence"]

WAIT_MS = 2_500
"""With what it takes to pass the call on then it is less than callers wait."""
WAITING_MAX = 1_000
"""Calls that may wait in one process."""


class Absence:
    """Which shards of one process are on their way, from it or to it."""

    def __init__(self) -> None:
        self._ends: dict[int, asyncio.Event] = {}
        self._waiting = 0

    def __contains__(self, shard: int) -> bool:
        """Return whether the shard is on its way."""
        return shard in self._ends

    def begin(self, shard: int) -> None:
        """The shard is on its way from now on."""
        self._ends.setdefault(shard, asyncio.Event())

    def end(self, shard: int) -> None:
        """It is here, or somewhere else: whoever waits goes on. Idempotent."""
        if shard in self._ends:
            self._ends.pop(shard).set()

    async def wait(self, shard: int) -> None:
        """Return once the shard is not on its way any more, at once if it is not.

        Raises:
            Unavailable: that takes too long, or too many wait.
        """
        end = self._ends.get(shard)
        if end is None:
            return
        if self._waiting >= WAITING_MAX:
            raise elsewhere(shard)
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_MS / 1000):
                await end.wait()
        except TimeoutError:
            raise elsewhere(shard) from None
        finally:
            self._waiting -= 1
