"""Brings entries of this shard's logs to the timelines of other shards: each shard's in order, exactly once.

What is to go out is durable with the entry itself. It is told again until the other shard says that it has taken it
over, and taken over once, since both count by positions. Only then is it forgotten here, a while later, beside other
commands: what is forgotten late costs nothing but room.

What was just committed comes from memory. What is older (the process has just started, a shard did not answer for so
long that too much waits, or it is not known whether a commit succeeded) is read from the store.

Invariants:
    I1  A shard is told entries in the order of their positions, the next ones when it has taken over those before: it
        would take one that comes late for a repeated one.
    I2  Every entry that a shard has not taken over waits in memory, or the lane knows that the store has to be read.
    I3  For a shard at most `WAITING_MAX` entries of `WAITING_BYTES_MAX` wait in memory, and one batch that was read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice

from base.clock import Clock, Instant
from base.core.backoff import Backoff
from base.errors import RoadsteadError
from base.ids import entropy
from base.log import logger
from im.core.commands import Outgoing, Sent
from im.ports import MessageStore
from im.writer import GroupCommit

__all__ = ["Outbox"]

WAITING_MAX = 10_000
WAITING_BYTES_MAX = 16 * 1_048_576
BATCH_MAX = 256
BATCH_BYTES_MAX = 1_048_576
FORGET_MS = 1_000
RETRY_BASE_MS = 50
RETRY_CEILING_MS = 2_000

TakeOver = Callable[[int, Sequence[Outgoing]], Awaitable[int]]
"""Have a shard take entries over; return the position up to which it has. Raises RoadsteadError."""


class _Lane:
    """What goes to one shard."""

    def __init__(self) -> None:
        self.waiting: deque[Outgoing] = deque()
        """In the order of positions."""
        self.size = 0
        """Of what waits, in bytes."""
        self.is_in_store = True
        """Whether something may be in the store that is not in `waiting`."""
        self.losses = 0
        """How often what waited was left to the store."""
        self.newest = 0
        """The greatest position that was told, or read."""
        self.through = 0
        """Taken over up to here; `forgotten`: and gone from the store."""
        self.forgotten = 0
        self.wake = asyncio.Event()
        self.rests = asyncio.Event()
        """Nothing is known that could be brought over now: all is, or the shard does not answer."""

    def add(self, entry: Outgoing) -> None:
        if entry.position <= self.newest:
            return  # it was read before it was told
        if len(self.waiting) >= WAITING_MAX or self.size >= WAITING_BYTES_MAX:
            self.leave_to_store()
        self.newest = entry.position
        self.waiting.append(entry)
        self.size += _size(entry)
        self.rests.clear()
        self.wake.set()

    def leave_to_store(self) -> None:
        """Forget what waits: it is read instead."""
        self.waiting.clear()
        self.size = 0
        self.is_in_store = True
        self.losses += 1
        self.rests.clear()
        self.wake.set()

    def read_all(self, found: Sequence[Outgoing]) -> None:
        """Take the last entries that the store has: from now on all is in memory."""
        self.is_in_store = False
        if not found:
            return
        last = found[-1].position
        self.waiting = deque([*found, *(entry for entry in self.waiting if entry.position > last)])
        self.size = sum(map(_size, self.waiting))
        self.newest = max(self.newest, last)

    def next_batch(self) -> list[Outgoing]:
        while self.waiting and self.waiting[0].position <= self.through:
            self.size -= _size(self.waiting.popleft())
        return _bounded(islice(self.waiting, BATCH_MAX))


class Outbox:
    """The outgoing entries of one shard. `run` belongs into the service's TaskGroup."""

    def __init__(
        self, store: MessageStore, writer: GroupCommit, clock: Clock, *, others: Iterable[int], take_over: TakeOver
    ) -> None:
        """`others`: the other shards."""
        self._store = store
        self._writer = writer
        self._clock = clock
        self._take_over = take_over
        self._lanes = {shard: _Lane() for shard in others}
        self._log = logger()

    def __len__(self) -> int:
        """Return how many entries wait in memory."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def committed(self, outgoing: Iterable[Outgoing]) -> None:
        """Take what was just made durable, in order of commit. Never waits."""
        for entry in outgoing:
            self._lanes[entry.shard].add(entry)

    def unsure(self) -> None:
        """Expect that something was made durable that `committed` is not told. Before anything else is."""
        for lane in self._lanes.values():
            lane.leave_to_store()

    async def settle(self, *, at_most_ms: int) -> None:
        """Return when all is brought out, but for what is for shards that do not answer; or when the time is over."""
        try:
            async with asyncio.timeout(at_most_ms / 1000):
                for lane in self._lanes.values():
                    await lane.rests.wait()
        except TimeoutError:
            pass

    async def run(self) -> None:
        """Bring out until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for shard, lane in self._lanes.items():
                tasks.create_task(self._bring(shard, lane))
            tasks.create_task(self._forget())

    async def _bring(self, shard: int, lane: _Lane) -> None:
        backoff = Backoff(entropy(), base_ms=RETRY_BASE_MS, ceiling_ms=RETRY_CEILING_MS)
        while True:
            try:
                batch = await self._next_batch(shard, lane)
                if batch:
                    lane.through = await self._take_over(shard, batch)
                    backoff.reset()
                    if not lane.is_in_store and lane.through > lane.newest:
                        # It passes over what comes under positions up to there.
                        self._log.error("outbox_is_an_older_one", shard=shard, its=lane.through, ours=lane.newest)
            except RoadsteadError as error:
                self._log.info("not_taken_over", shard=shard, waiting=len(lane.waiting), error=str(error))
                lane.rests.set()
                await self._clock.sleep_until(Instant(self._clock.monotonic() + backoff.next_ms()))
                continue
            if not batch and not lane.wake.is_set():
                lane.rests.set()
                await lane.wake.wait()

    async def _next_batch(self, shard: int, lane: _Lane) -> list[Outgoing]:
        if lane.is_in_store:
            losses = lane.losses
            found = await self._store.outgoing(shard, after=lane.through, limit=BATCH_MAX)
            if len(found) == BATCH_MAX or losses != lane.losses:
                return _bounded(found)  # nothing is kept of it: what is not taken over is read again
            lane.read_all(found)  # what was committed since we looked is told to `committed` (I2)
        lane.wake.clear()
        return lane.next_batch()

    async def _forget(self) -> None:
        while True:
            await self._clock.sleep_until(Instant(self._clock.monotonic() + FORGET_MS))
            async with asyncio.TaskGroup() as tasks:  # all at once, so that one commit has all
                for shard, lane in self._lanes.items():
                    if lane.through > lane.forgotten:
                        tasks.create_task(self._forget_of(shard, lane))

    async def _forget_of(self, shard: int, lane: _Lane) -> None:
        through = lane.through
        try:
            await self._writer.submit(Sent(shard, through))
        except RoadsteadError as error:
            self._log.debug("outbox_not_forgotten", shard=shard, error=str(error))
        else:
            lane.forgotten = through


def _bounded(entries: Iterable[Outgoing]) -> list[Outgoing]:
    """Return as many of the first entries as one message may carry, one at least if there is any."""
    batch: list[Outgoing] = []
    size = 0
    for entry in entries:
        size += _size(entry)
        if batch and size > BATCH_BYTES_MAX:
            break
        batch.append(entry)
    return batch


def _size(entry: Outgoing) -> int:
    """Return about how many bytes it has."""
    message = entry.message
    return len(message.body) + len(message.mentions) + 64 * len(entry.users) + 200
