"""Timelines are kept from growing: by commands of the same writer, as often as it is worth it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from base.clock import SimClock, Timestamp
from base.errors import StoreUnavailable
from im import trimming
from im.core.commands import Command, Draft, Executed, Trim
from im.store.memory import MemoryMessageStore
from im.trimming import Trimming
from im.writer import Commit, GroupCommit


class FailingStore(MemoryMessageStore):
    """Fails at so many trims, and notes all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self.trims: list[Trim] = []

    async def execute(self, commands: Sequence[Command]) -> Executed:
        trims = [command for command in commands if isinstance(command, Trim)]
        self.trims += trims
        if trims and self.failures:
            self.failures -= 1
            raise StoreUnavailable("not now")
        return await super().execute(commands)


class Kept:
    """A store whose timelines are trimmed."""

    def __init__(self, *, keep: int) -> None:
        self.store = FailingStore()
        self.writer = GroupCommit(self.store, SimClock(), on_committed=self._committed)
        self.trimming = Trimming(self.writer, keep=keep)

    def _committed(self, commit: Commit) -> None:
        self.trimming.committed(commit.executed.deliveries)

    async def send(self, count: int, to: str = "bob") -> None:
        n = len(await self.store.log(after=0, limit=10_000))
        for key in range(n, n + count):
            await self.writer.submit(Draft(key, "ann", "x", to, 0, f"k{key}", "text", b"1", Timestamp(1)))

    async def floor(self, user: str) -> int:
        return (await self.store.timeline(user, since=0, limit=1)).floor


@asynccontextmanager
async def kept(keep: int) -> AsyncIterator[Kept]:
    made = Kept(keep=keep)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        running = [tasks.create_task(made.writer.run()), tasks.create_task(made.trimming.run())]
        yield made
        for task in running:
            task.cancel()


async def becomes(look: Callable[[], object]) -> None:
    while not look():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


@pytest.mark.spec("HC-01")
async def test_each_timeline_keeps_its_newest_entries_and_a_tenth_more():
    """Both sides' of a conversation; a short one is let alone."""
    async with kept(20) as here:
        await here.send(20)
        assert here.store.trims == []
        await here.send(2)
        await becomes(lambda: len(here.store.trims) == 2)
        assert {(trim.user, trim.through) for trim in here.store.trims} == {("ann", 2), ("bob", 2)}
        await here.send(1)
        await here.send(1, to="cleo")
        await becomes(lambda: len(here.store.trims) == 3)
        assert (await here.floor("ann"), await here.floor("bob"), await here.floor("cleo")) == (4, 2, 0)


async def test_nothing_is_trimmed_where_all_is_kept():
    async with kept(0) as here:
        await here.send(50)
        assert here.store.trims == []


async def test_very_few_are_kept_if_wanted():
    """A tenth of them is still one."""
    async with kept(1) as here:
        await here.send(3)
        for user in ("ann", "bob"):
            while await here.floor(user) != 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)


async def test_a_trim_that_fails_is_made_good_by_the_next(monkeypatch: pytest.MonkeyPatch):
    """Trimming goes on, and sends are not concerned."""
    monkeypatch.setattr(trimming, "RETRY_MS", 1)
    async with kept(10) as here:
        here.store.failures = 2
        await here.send(11)
        while here.store.failures:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        assert await here.floor("bob") == 0
        await asyncio.sleep(0.01)
        await here.send(1)
        while await here.floor("bob") != 2:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


async def test_too_many_that_wait_are_left_to_the_next_time(monkeypatch: pytest.MonkeyPatch):
    """So that nothing grows without a bound."""
    monkeypatch.setattr(trimming, "WAITING_MAX", 1)
    here = Kept(keep=10)  # it does not run
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(here.writer.run())
        await here.send(12)
        running.cancel()
    assert len(here.trimming._due) == 1
