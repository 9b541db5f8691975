"""Opens connections at a pace, with a bound on how many are begun and not yet open, and tries again as told."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable

from bench.load.client import Client, Stage
from bench.load.wire import Open

__all__ = ["Opener"]

STEP_S = 0.005
IDLE_S = 1.0
CONNECT_TIMEOUT_S = 10.0
OPEN_TIMEOUT_S = 30.0


class Opener:
    """The connections that are to be opened. `run` opens them."""

    def __init__(self, sources: list[str], *, count: Callable[[str], None]) -> None:
        self._sources = sources
        self._next_source = 0
        self._count = count
        self._fresh: deque[Client] = deque()
        self._again: list[tuple[float, int, Client]] = []
        """Those to try again: when, and a number for an order among equals."""
        self._number = 0
        self._wake = asyncio.Event()
        self._flying: dict[Client, float] = {}
        """Begun and not yet open, since when; in the order in which they were begun."""
        self._random = random.Random()
        self.plan = Open(urls=[], first=0, count=0, rate=1)

    @property
    def flying(self) -> int:
        """How many are begun and not yet open."""
        return len(self._flying)

    @property
    def waiting(self) -> int:
        """How many are to be begun."""
        return len(self._fresh) + len(self._again)

    def add(self, client: Client) -> None:
        """Open it when its turn has come."""
        self._fresh.append(client)
        self._wake.set()

    def add_first(self, client: Client) -> None:
        """Open it next."""
        self._fresh.appendleft(client)
        self._wake.set()

    def add_again(self, client: Client, *, retry_after_ms: int = 0) -> None:
        """Open it after a while: full jitter below a ceiling that doubles, and no sooner than the server said."""
        client.attempts += 1
        ceiling = min(self.plan.backoff_ms * 2 ** min(client.attempts - 1, 16), self.plan.backoff_ceiling_ms)
        wait_ms = retry_after_ms + self._random.uniform(0, ceiling)
        self._number += 1
        due = asyncio.get_running_loop().time() + wait_ms / 1000
        heapq.heappush(self._again, (due, self._number, client))
        self._wake.set()

    def done(self, client: Client) -> None:
        """It is open, or it failed."""
        self._flying.pop(client, None)

    def forget(self) -> list[Client]:
        """Open nothing more; return what was begun."""
        self._fresh.clear()
        self._again.clear()
        flying, self._flying = self._flying, {}
        return list(flying)

    async def run(self) -> None:
        """Open until cancelled."""
        loop = asyncio.get_running_loop()
        before, due = loop.time(), 0.0
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._pause()
                now = loop.time()
                # What could not be begun in its time is not made up for: the bound says how much the server takes.
                due = min(due + (now - before) * self.plan.rate, max(1.0, self.plan.rate * 10 * STEP_S))
                before = now
                self._expire(now)
                while due >= 1 and len(self._flying) < self.plan.in_flight:
                    client = self._next(now)
                    if client is None:
                        break
                    due -= 1
                    self._flying[client] = now
                    tasks.create_task(self._connect(client))

    async def _pause(self) -> None:
        """Wait for the next step, or as long as there is nothing to do: a process that only holds must cost little."""
        if not self._fresh and not self._again:
            self._wake.clear()
            try:
                async with asyncio.timeout(IDLE_S if self._flying else None):
                    await self._wake.wait()
            except TimeoutError:
                return
        await asyncio.sleep(STEP_S)

    def _next(self, now: float) -> Client | None:
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        return self._fresh.popleft() if self._fresh else None

    def _expire(self, now: float) -> None:
        while self._flying:
            client, since = next(iter(self._flying.items()))
            if now - since < OPEN_TIMEOUT_S:
                return
            del self._flying[client]
            self._count("timed out")
            client.give_up()

    async def _connect(self, client: Client) -> None:
        source = self._sources[self._next_source % len(self._sources)]
        self._next_source += 1
        client.stage = Stage.CONNECTING
        client.begun_ns = client.owner.now_ns()
        target = client.target
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: client, target.host, target.port, local_addr=(source, 0)
                )
        except OSError as error:
            self._count("unreachable" if not isinstance(error, TimeoutError) else "timed out")
            client.stage = Stage.ENDED
            client.owner.failed(client)
