"""Writes one push to many connections, without holding up the event loop.

A push to few is written at once. One to many is written in chunks, and between two chunks the loop does what else there
is: pings are answered, and other channels go on. All pushes of one key are written in the order in which they were
sent, each to the connections that were on the roll when it was sent.

There is one runner for all keys, no task and no copy per push. A `Roll` only grows at its end, and who leaves it is
replaced by nobody, so that a push that is under way never writes to who left meanwhile, nor to who came. Who keeps a
list of its own, replaced whenever it changes, says who left by `skip`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from access.core.outgoing import FORMS, Form, Outgoing
from base.clock import Clock

__all__ = ["CHUNK", "WAITING_MAX", "Fanout", "Receiver", "Roll", "write"]

CHUNK = 64
"""Connections written to in one go: about half a millisecond, for which everything else waits."""
WAITING_MAX = 1_000
"""Pushes of one key that may wait."""
HOLES_MIN = 64
"""A roll with fewer holes is not worth making anew."""


class Receiver(Protocol):
    """The part of a `Connection` that matters here."""

    form: Form

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        """See `Connection`."""
        ...


class _Nobody:
    """Stands on a roll where somebody left."""

    form = Form.WS_JSON

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        """Do nothing."""


_NOBODY = _Nobody()


class Roll:
    """Connections that get the same pushes."""

    __slots__ = ("_places", "connections")

    def __init__(self) -> None:
        self.connections: list[Receiver] = []
        """For `Fanout.send`: who is on the roll, with holes."""
        self._places: dict[Receiver, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, connection: Receiver) -> bool:
        return connection in self._places

    def add(self, connection: Receiver) -> None:
        """Put a connection on the roll; it must not be there."""
        assert connection not in self._places
        self._places[connection] = len(self.connections)
        self.connections.append(connection)

    def discard(self, connection: Receiver) -> None:
        """Take a connection off the roll; one that is not there does not matter."""
        place = self._places.pop(connection, None)
        if place is not None:
            self.connections[place] = _NOBODY

    def close_up(self) -> None:
        """Make the roll anew if it is more holes than connections. Not while a push to it is under way."""
        holes = len(self.connections) - len(self._places)
        if holes > max(HOLES_MIN, len(self._places)):
            self.connections = list(self._places)
            self._places = {connection: place for place, connection in enumerate(self.connections)}


class _Job:
    __slots__ = ("connections", "done", "end", "outgoing", "since")

    def __init__(self, connections: Sequence[Receiver], outgoing: Outgoing, since: float) -> None:
        self.connections = connections
        self.outgoing = outgoing
        self.since = since
        self.done = 0
        self.end = len(connections)


class Fanout:
    """See the module. `run` must run for pushes to many to be finished."""

    def __init__(
        self,
        clock: Clock,
        *,
        chunk: int = CHUNK,
        waiting_max: int = WAITING_MAX,
        pushed: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """`pushed` is told for each push that had to wait how long it took until its last write (seconds)."""
        self._clock = clock
        self._pushed = pushed
        self._chunk = chunk
        self._waiting_max = waiting_max
        self._jobs: dict[str, deque[_Job]] = {}
        self._wanted = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def is_busy(self, key: str) -> bool:
        """Return whether pushes of the key wait."""
        return key in self._jobs

    def send(self, key: str, connections: Sequence[Receiver], outgoing: Outgoing) -> bool:
        """Write to each connection, now or soon. False if too many of the key wait: it was not sent.

        `connections` may grow from here on, and must not be changed in any other way than a `Roll` does it.
        """
        if len(connections) <= self._chunk and key not in self._jobs:
            write(connections, outgoing)
            return True
        jobs = self._jobs.setdefault(key, deque())
        if len(jobs) >= self._waiting_max:
            return False
        jobs.append(_Job(connections, outgoing, self._clock.stopwatch()))
        self._wanted.set()
        return True

    def drop(self, key: str) -> None:
        """Forget what waits for the key; some connections may have got it, and others not."""
        self._jobs.pop(key, None)

    async def run(self) -> None:
        """Write what waits, a chunk of each key in turn, until cancelled."""
        while True:
            await self._wanted.wait()
            for key in tuple(self._jobs):
                self._step(key)
                await asyncio.sleep(0)
            if not self._jobs:
                self._wanted.clear()

    def _step(self, key: str) -> None:
        """Write one chunk of the key's first push."""
        jobs = self._jobs.get(key)
        if jobs is None:
            return  # dropped
        job = jobs[0]
        end = min(job.done + self._chunk, job.end)
        chunk = job.connections[job.done : end]
        job.done = end
        write(chunk, job.outgoing)
        if end == job.end:
            self._pushed(self._clock.stopwatch() - job.since)
            jobs.popleft()
            if not jobs and self._jobs.get(key) is jobs:
                del self._jobs[key]


def write(connections: Sequence[Receiver], outgoing: Outgoing) -> None:
    """Write a push to each connection, in its form. This loop is what a push to many costs."""
    frames: list[bytes | None] = [None] * FORMS
    for connection in connections:
        frame = frames[connection.form]
        if frame is None:
            frame = frames[connection.form] = outgoing.frame(connection.form)
        connection.write(frame)
