"""Unread counters in front of a store: asked for often, read seldom, and held against the pointers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from base.clock import SimClock, Timestamp
from base.errors import Overloaded
from base.metrics import Metrics
from im.core.commands import ChangeGroup, Command, CreateGroup, Draft, Executed, Mark, Revise
from im.core.model import View
from im.counting import RECENT_MAX, Counting
from im.metrics import ImMetrics
from im.ports import Listed
from im.store.memory import MemoryMessageStore
from im.writer import Commit, GroupCommit

NOW = Timestamp(1_000)


class CountedStore(MemoryMessageStore):
    """Counts how often lists are read, and fails when told to; takes a while to tell what is durable."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.lag_s = 0.0
        self.fails = False

    async def execute(self, commands: Sequence[Command]) -> Executed:
        executed = await super().execute(commands)
        await asyncio.sleep(self.lag_s)  # durable, to be read, and nobody was told
        return executed

    async def conversations(self, user: str) -> list[Listed]:
        self.reads += 1
        if self.fails:
            raise Overloaded("not now", what="reads", retry_after_ms=1)
        return await super().conversations(user)


class Desk:
    """Counters in front of a store."""

    def __init__(self, interval_ms: int) -> None:
        self.store = CountedStore()
        self.metrics = ImMetrics(Metrics({}))
        self.writer = GroupCommit(self.store, SimClock(), on_committed=self._committed)
        self.counting = Counting(self.store, self.metrics, settle=self.writer.settle, interval_ms=interval_ms)
        self._n = 0

    def _committed(self, commit: Commit) -> None:
        self.counting.committed(commit.executed)

    async def send(self, sender: str, to: str) -> None:
        self._n += 1
        await self.writer.submit(Draft(self._n, sender, "x", to, 0, f"k{self._n}", "text", b"1", NOW))

    async def do(self, command: Any) -> None:
        await self.writer.submit(command)

    async def unread(self, user: str) -> dict[int, int]:
        return {one.cid: one.unread for one in await self.counting.unread(user)}


@asynccontextmanager
async def desk(*, interval_ms: int = 60_000) -> AsyncIterator[Desk]:
    made = Desk(interval_ms)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        running = [tasks.create_task(made.writer.run()), tasks.create_task(made.counting.run())]
        yield made
        for task in running:
            task.cancel()


async def becomes(look: Callable[[], object]) -> None:
    while not look():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.001)


async def test_who_asks_again_costs_no_reading():
    """Whatever was committed meanwhile: messages, recalls, marks, own ones, groups left."""
    async with desk() as here:
        await here.send("ann", "bob")
        assert await here.unread("bob") == {1: 1}
        await here.send("ann", "bob")
        await here.send("ann", "bob")
        await here.do(Revise(9, "ann", "x", 1, 3, "r", True, b"", NOW))
        assert await here.unread("bob") == {1: 2}
        await here.do(Mark("bob", "x", 1, NOW, read_seq=1))
        assert await here.unread("bob") == {1: 1}
        await here.send("bob", "ann")
        assert await here.unread("bob") == {1: 0}
        assert here.store.reads == 1


async def test_a_group_that_one_comes_into_or_leaves_is_read_anew():
    """Only for whom it is about; a group that was left counts nothing."""
    async with desk() as here:
        await here.do(CreateGroup(1, "ann", "x", "g", "team", ("bob",), NOW))
        assert await here.unread("bob") == {1: 0}
        await here.do(Draft(2, "ann", "x", "", 1, "m", "text", b"1", NOW))
        assert await here.unread("bob") == {1: 1}
        await here.do(ChangeGroup(3, "bob", "x", 1, "leave", NOW))
        assert sum((await here.unread("bob")).values()) == 0
        await here.do(Draft(4, "ann", "x", "", 1, "m2", "text", b"1", NOW))
        assert sum((await here.unread("bob")).values()) == 0


@pytest.mark.spec("UN-06")
async def test_a_drift_is_told_and_mended():
    """What the pointers say holds; nobody has to ask for the comparison."""
    async with desk(interval_ms=1) as here:
        await here.send("ann", "bob")
        assert await here.unread("bob") == {1: 1}
        view = here.store._views.get(("bob", 1), View("bob", 1))
        here.store._views["bob", 1] = replace(view, read_seq=1, read_cseq=1)  # nobody was told
        while await here.unread("bob") != {1: 0}:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
        assert here.metrics.drift._value.get() == 1


@pytest.mark.spec("UN-06")
async def test_nothing_drifts_while_messages_come():
    """A comparison that reads what is committed and not told yet waits for that."""
    async with desk(interval_ms=1) as here:
        here.store.lag_s = 0.004
        for n in range(40):
            await here.send("ann", "bob" if n % 3 else "cleo")
            if n % 7 == 0:
                await here.do(Mark("bob", "x", 1, NOW, read_seq=n))
            await here.unread("bob")
        assert here.store.reads > 5, "it was compared"
        assert here.metrics.drift._value.get() == 0


async def test_a_store_that_fails_ends_no_comparing():
    async with desk(interval_ms=1) as here:
        await here.send("ann", "bob")
        await here.unread("bob")
        here.store.fails = True
        await becomes(lambda: here.store.reads > 1)
        here.store.fails = False
        await here.unread("bob")
        reads = here.store.reads
        await becomes(lambda: here.store.reads > reads)


async def test_only_so_many_are_compared():
    """Those who asked least lately are left out."""
    here = Desk(60_000)
    for n in range(RECENT_MAX + 5):
        await here.counting.unread(f"u{n}")
    assert len(here.counting._recent) == RECENT_MAX
    assert "u4" not in here.counting._recent
