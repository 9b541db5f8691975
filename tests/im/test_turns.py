"""The turns that reads of one user take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from base.errors import RateLimited
from base.metrics import Metrics
from im import turns
from im.methods import Caller
from im.metrics import ImMetrics
from im.turns import AT_ONCE, ReadTurns

ANN, LAPTOP, BOB = Caller("ann", "phone"), Caller("ann", "laptop"), Caller("bob", "phone")
BACKEND = Caller("ann", "server", is_backend=True)


class Desk:
    """Reads that last until they are let go, by name in the order in which they began."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.metrics = ImMetrics(Metrics({}))
        self.turns = ReadTurns(self.metrics)
        self.began: list[str] = []
        self._tasks = tasks
        self._going: dict[str, asyncio.Event] = {}

    async def read(self, name: str, caller: Caller = ANN) -> asyncio.Task[None]:
        """Begin a read, as far as it comes by itself."""
        task = self._tasks.create_task(self._read(name, caller))
        await asyncio.sleep(0)
        return task

    async def end(self, name: str) -> None:
        """Let a read end, and the next one begin."""
        self._going.pop(name).set()
        await settled()

    async def end_all(self) -> None:
        """Let all end, and those that begin then."""
        while self._going:
            await self.end(next(iter(self._going)))

    async def _read(self, name: str, caller: Caller) -> None:
        async def read() -> str:
            self.began.append(name)
            going = self._going[name] = asyncio.Event()
            await going.wait()
            return name

        assert await self.turns.carry_out(caller, read) == name


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        made = Desk(tasks)
        yield made
        await made.end_all()
    assert made.turns.waiting == 0
    assert not made.turns._reads, "I2"


async def test_a_user_with_many_reads_delays_nobody_else():
    """Two of them are carried out, from whatever device, and the others in their order; another user's at once."""
    async with desk() as here:
        for n in range(6):
            await here.read(f"ann-{n}", LAPTOP if n % 2 else ANN)
        await here.read("bob-0", BOB)
        assert here.began == ["ann-0", "ann-1", "bob-0"]
        assert here.turns.waiting == 6 - AT_ONCE
        await here.end("ann-1")
        assert here.began[3:] == ["ann-2"]
        await here.end("ann-0")
        await here.end("ann-2")
        assert here.began[3:] == ["ann-2", "ann-3", "ann-4"]
        await here.end_all()
        assert here.began[3:] == [f"ann-{n}" for n in range(2, 6)]


async def test_a_read_that_nobody_waits_for_any_more_gives_its_turn_on():
    """Whether it waits, or is carried out, or is to begin in this moment."""
    async with desk() as here:
        tasks = [await here.read(f"ann-{n}") for n in range(9)]
        tasks[2].cancel()
        here._going.pop("ann-0").set()
        await settled()
        assert here.began[AT_ONCE:] == ["ann-3"]
        tasks[3].cancel()  # a turn comes with it to the next one, which is cancelled before it knows
        await asyncio.sleep(0)
        tasks[4].cancel()
        await settled()
        assert here.began[AT_ONCE:] == ["ann-3", "ann-5"]
        here._going.pop("ann-1").set()  # and here one that is cancelled already is passed over
        tasks[6].cancel()
        await settled()
        assert here.began[AT_ONCE:] == ["ann-3", "ann-5", "ann-7"]
        assert here.turns.waiting == 1
        here._going.pop("ann-3")


async def test_too_many_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch):
    """The user's, and nobody else's; a turn that was refused takes no place."""
    monkeypatch.setattr(turns, "WAITING_MAX", 3)
    async with desk() as here:
        for n in range(AT_ONCE + 3):
            await here.read(f"ann-{n}")
        for _ in range(2):
            with pytest.raises(RateLimited) as refused:
                await here.turns.carry_out(ANN, lambda: pytest.fail("begun"))
            assert refused.value.detail["retry_after_ms"] == 1_000
        assert here.metrics.rate_limited._value.get() == 2
        await here.read("bob-0", BOB)
        await here.end("ann-0")
        await here.read("ann-last")
        await here.end_all()
        assert here.began[-1] == "ann-last"


async def test_a_backend_reads_for_many():
    """Its reads wait for no others, nor others for them."""
    async with desk() as here:
        for n in range(5):
            await here.read(f"backend-{n}", BACKEND)
        await here.read("ann-0")
        assert len(here.began) == 6
