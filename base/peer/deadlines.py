"""Deadlines of many things at once on one timer. Nearly all are met, and a timer for each would be set in vain.

To set a timer and to cancel it costs about as much as all else that a call does in its stream; so while there are new
deadlines often, the timer stays set when all are met, and wakes the process in vain once a deadline. For what comes
once in a while it is cancelled, since then that would be each time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ["OFTEN", "STEP_S", "Clock", "Deadlines"]

STEP_S = 0.005
"""How late a deadline may be noticed: a look at all of them must be worth it."""
OFTEN = 4
"""New deadlines in the time that one has, from which on they come often."""

Key = TypeVar("Key", bound=Hashable)


class Clock(Protocol):
    """What is needed of an event loop."""

    def time(self) -> float:
        """See `asyncio.loop.time`."""
        ...

    def call_at(self, when: float, callback: Callable[[], None], /) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`."""
        ...


class Deadlines(Generic[Key]):
    """Calls `late` with whatever is not met in time, once, after it is forgotten here."""

    __slots__ = ("_added_at", "_due", "_is_often", "_late", "_loop", "_runs_at", "_timer")

    def __init__(self, loop: Clock, late: Callable[[Key], None]) -> None:
        """`loop` is the event loop."""
        self._loop = loop
        self._late = late
        self._due: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._runs_at = math.inf
        """Not after the nearest deadline, or `STEP_S` after the last look."""
        self._added_at = -math.inf
        self._is_often = False

    def add(self, key: Key, seconds: float) -> None:
        """Expect `met` for the key within so many seconds from now."""
        now = self._loop.time()
        self._due[key] = due = now + seconds
        self._is_often = (now - self._added_at) * OFTEN < seconds
        self._added_at = now
        if due < self._runs_at:
            self._run_at(due)

    def met(self, key: Key) -> None:
        """Forget the key, if it is known."""
        self._due.pop(key, None)
        if not self._due and not self._is_often:
            self._stop()

    def clear(self) -> None:
        """Forget all of them."""
        self._due.clear()
        self._stop()

    def _run_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._runs_at = when
        self._timer = self._loop.call_at(when, self._run)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._runs_at, self._timer = math.inf, None

    def _run(self) -> None:
        now = self._loop.time()
        self._runs_at, self._timer = math.inf, None
        for key in [key for key, due in self._due.items() if due <= now]:
            if self._due.pop(key, None) is not None:  # not met by what another one's end led to
                self._late(key)
        nearest = min(self._due.values(), default=math.inf)
        if nearest < self._runs_at:
            self._run_at(max(nearest, now + STEP_S))
