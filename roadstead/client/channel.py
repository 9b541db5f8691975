"""What a client follows, and how far it has come: positions outlive connections.

Two connections may tell of one channel for a while, as in a move. Each of them tells all that comes after the channel's
position, in order and without a hole; so whichever is first is handed over, and the other one's is known already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from base.errors import RoadsteadError

__all__ = ["Ask", "Channel", "Handler", "Incoming", "Position", "Watcher", "report"]


@dataclass(frozen=True, slots=True)
class Position:
    """How far a channel was read. Keep it with what was read; offset 0 is the very beginning."""

    epoch: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Incoming:
    """A publication's `data`, and the `position` to keep once it is dealt with.

    With `is_start` the data is what the channel gives to whoever begins at this position; nothing before it is told.
    """

    position: Position
    data: Any
    channel: str
    is_start: bool = False


Handler = Callable[[Incoming], Awaitable[None]]

Ask = Callable[[str, Any], Awaitable[Any]]
"""Calls a method of the server with JSON arguments and returns its JSON result."""


class Watcher(Protocol):
    """Follows the inbox, too, before the application does, and can do without its past."""

    def take(self, at: Position, data: Any, *, is_start: bool) -> None:
        """The channel begins to tell, or told something: with the offset 0, something that is not kept."""
        ...

    async def load(self, ask: Ask) -> Position:
        """Read the state that the past led to, and return the position from which on it is not part of it."""
        ...


def report(what: str, error: BaseException) -> None:
    """Tell the event loop's exception handler, which logs it with its traceback unless the application set another."""
    asyncio.get_running_loop().call_exception_handler({"message": what, "exception": error})


@dataclass(slots=True)
class Channel:
    """One channel of one client. `refused` is told why the server does not let it follow the channel.

    A handler that raises is reported (`report`), and what it was given counts as dealt with: a defect in how one
    publication is treated must neither stop those behind it nor come again for ever. Who must not skip any tries again
    within the handler.
    """

    name: str
    handler: Handler
    position: Position
    refused: Callable[[str, RoadsteadError], None]
    watcher: Watcher | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    """Held while the application has a publication, so that another connection's does not overtake it."""

    async def begin(self, at: Position, data: Any, *, is_recovered: bool) -> None:
        """A connection begins to tell: all after the position if it is recovered, else only what comes after `at`."""
        async with self._lock:
            if self.watcher is not None:
                self.watcher.take(at, data, is_start=True)
            if not is_recovered:
                await self._hand_over(Incoming(at, data, self.name, is_start=True))
                self.position = at
            elif at.epoch != self.position.epoch:
                self.position = Position(at.epoch)  # another stream, which counts from its own beginning

    async def deliver(self, at: Position, data: Any) -> None:
        """Hand a publication over, unless it is known or of a stream that the channel has left."""
        async with self._lock:
            is_next = at.epoch == self.position.epoch and at.offset > self.position.offset
            if self.watcher is not None and (is_next or not at.offset):
                self.watcher.take(at, data, is_start=False)
            if not at.offset:  # without a history: nothing to compare
                await self._hand_over(Incoming(self.position, data, self.name))
            elif is_next:
                await self._hand_over(Incoming(at, data, self.name))
                self.position = at  # only now: a handler that is cancelled gets it again from the next connection

    async def restart(self, ask: Ask, at: Position) -> None:
        """What follows the position is not to be had: go on at `at`, or where the state ends that the watcher reads."""
        async with self._lock:
            if self.watcher is not None:
                at = await self.watcher.load(ask)
            await self._hand_over(Incoming(at, None, self.name, is_start=True))
            self.position = at

    async def _hand_over(self, incoming: Incoming) -> None:
        try:
            await self.handler(incoming)
        except Exception as error:  # noqa: BLE001 - the application's own, see the class
            report(f"the handler of {self.name} raised", error)
