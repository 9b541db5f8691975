"""Reads of one user take turns, so that whoever asks for much delays nobody else.

All users of a shard share its reading threads. A list of 20,000 conversations keeps one busy for a good part of a
second, and a client may have many calls under way. So of each user only a few reads are carried out at once: others
find at most these before their own, however many wait.

Invariants:
    I1  Of a user at most `AT_ONCE` reads are carried out, in the order in which they came, and `WAITING_MAX` wait.
    I2  A read waits only while `AT_ONCE` are carried out. A user without reads is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from base.errors import RateLimited
from im.methods import Caller
from im.metrics import ImMetrics

__all__ = ["ReadTurns"]

T = TypeVar("T")

AT_ONCE = 2
"""By itself, a slow one such as a search does not hold up its user's others."""
WAITING_MAX = 256
RETRY_AFTER_MS = 1_000


@dataclass(slots=True)
class _Reads:
    """A user's reads: how many are carried out, and what those wait for that came after them, in order."""

    going: int = 0
    waiting: dict[asyncio.Future[None], None] = field(default_factory=dict)


class ReadTurns:
    """The reads of a shard's users. A backend reads for many: their limits are its own business."""

    def __init__(self, metrics: ImMetrics) -> None:
        self._metrics = metrics
        self._reads: dict[str, _Reads] = {}
        self.forget = metrics.reads_waiting.add(lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """How many reads wait for others of their user."""
        return sum(len(reads.waiting) for reads in self._reads.values())

    async def carry_out(self, caller: Caller, read: Callable[[], Awaitable[T]]) -> T:
        """Read when it is the turn of this read.

        Raises:
            RateLimited: too many of the user's wait.
        """
        if caller.is_backend:
            return await read()
        user = caller.user
        reads = self._reads.get(user)
        if reads is None:
            reads = self._reads[user] = _Reads()
        if reads.going < AT_ONCE:
            reads.going += 1
        else:
            await self._wait(user, reads)
        try:
            return await read()
        finally:
            self._leave(user, reads)

    async def _wait(self, user: str, reads: _Reads) -> None:
        """Return when somebody has left, in whose place this read is then."""
        if len(reads.waiting) >= WAITING_MAX:
            self._metrics.rate_limited.inc()
            raise RateLimited("too many calls wait", what="calls", retry_after_ms=RETRY_AFTER_MS)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reads.waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            reads.waiting.pop(turn, None)
            if not turn.cancelled():  # it came at the same moment
                self._leave(user, reads)
            raise

    def _leave(self, user: str, reads: _Reads) -> None:
        """Give the place to the next read that still waits, if any."""
        while reads.waiting:
            turn = next(iter(reads.waiting))
            del reads.waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return
        reads.going -= 1
        if not reads.going:
            del self._reads[user]
