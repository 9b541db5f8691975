"""The outbox: order, repeats, and that whatever happens everything is brought over once.

The other shards are lists that count as a ledger does: what is not behind the last position is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from base.clock import SimClock, Timestamp
from base.errors import StoreUnavailable, Unavailable
from im import outbox as outbox_module
from im.core.commands import Command, Draft, Executed, Outgoing, Sent
from im.core.ledger import LedgerSettings
from im.core.shards import shard_of_user
from im.outbox import BATCH_MAX, FORGET_MS, RETRY_CEILING_MS, Outbox
from im.shard import TAKE_OVER_MAX
from im.store.memory import MemoryMessageStore
from im.writer import Commit, GroupCommit

SHARDS = 3
USERS = {shard: next(f"u{n}" for n in range(99) if shard_of_user(f"u{n}", SHARDS) == shard) for shard in range(SHARDS)}
SENDER = next(f"a{n}" for n in range(99) if shard_of_user(f"a{n}", SHARDS) == 0)
"""Beside the logs of what it sends, since its name comes before all others."""


class Store(MemoryMessageStore):
    """Notes what it is asked; fails when it is told to, before or after it has written."""

    def __init__(self) -> None:
        super().__init__(LedgerSettings(shard=0, shards=SHARDS))
        self.reads: list[tuple[int, int]] = []
        self.sent: list[Sent] = []
        self.fails_after = 0
        self.fails_to_forget = False
        self.reading = asyncio.Event()
        self.reading.set()

    async def execute(self, commands: Sequence[Command]) -> Executed:
        sent = [command for command in commands if isinstance(command, Sent)]
        if sent and self.fails_to_forget:
            raise StoreUnavailable("the disk is full")
        executed = await super().execute(commands)
        self.sent += sent
        if self.fails_after:
            self.fails_after -= 1
            raise StoreUnavailable("it was written, or was it not?")
        return executed

    async def outgoing(self, shard: int, *, after: int, limit: int) -> list[Outgoing]:
        found = await super().outgoing(shard, after=after, limit=limit)
        self.reads.append((shard, len(found)))
        await self.reading.wait()
        return found


class Shard:
    """Another shard: what it took over, in order, and how it was told."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.through = 0
        self.told: list[list[int]] = []
        self.failures = 0
        """So many more calls fail, before anything is taken over."""
        self.lost_answers = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0

    async def take_over(self, entries: Sequence[Outgoing]) -> int:
        assert not self.running, "one at a time"
        self.running += 1
        try:
            self.told.append([entry.position for entry in entries])
            await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise Unavailable("not here")
            for entry in entries:
                if entry.position > self.through:
                    self.through = entry.position
                    self.taken.append(entry.message.client_msg_id)
            if self.lost_answers:
                self.lost_answers -= 1
                raise Unavailable("the stream broke")
            return self.through
        finally:
            self.running -= 1


class Desk:
    """An outbox of shard 0 with its writer."""

    def __init__(self, store: Store | None = None, others: dict[int, Shard] | None = None) -> None:
        self.clock = SimClock()
        self.store = store or Store()
        self.others = others or {shard: Shard() for shard in range(1, SHARDS)}
        self.writer = GroupCommit(self.store, self.clock, on_committed=self._committed, on_unsure=self._unsure)
        self.outbox = Outbox(
            self.store,
            self.writer,
            self.clock,
            others=self.others,
            take_over=lambda shard, entries: self.others[shard].take_over(entries),
        )

    def _committed(self, commit: Commit) -> None:
        self.outbox.committed(commit.executed.outgoing)

    def _unsure(self) -> None:
        self.outbox.unsure()

    async def send(self, shard: int, key: str, *, size: int = 2) -> None:
        body = b'"%s"' % (b"x" * size)
        draft = Draft(1, SENDER, "phone", USERS[shard], 0, key, "text", body, Timestamp(1_000))
        with suppress(StoreUnavailable):
            await self.writer.submit(draft)

    async def until(self, look: Callable[[], object], *, step_ms: int = 1) -> None:
        """Let time go on until it is so."""
        for _ in range(2_000):
            if look():
                return
            self.clock.advance(step_ms)
            for _ in range(8):
                await asyncio.sleep(0)
        raise AssertionError("it never came")


@asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(desk.writer.run()), tasks.create_task(desk.outbox.run())]
        try:
            yield desk
        finally:
            for task in work:
                task.cancel()


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with running(Desk()) as made:
        yield made


def keys(count: int, first: int = 0) -> list[str]:
    return [f"k{n}" for n in range(first, first + count)]


# ---------------------------------------------------------------- order and repeats


@pytest.mark.spec("OR-08")
async def test_entries_are_brought_over_in_order_one_call_at_a_time(desk: Desk):
    """While one is under way the next ones gather, and go together."""
    other = desk.others[1]
    other.gate.clear()
    for key in keys(5):
        await desk.send(1, key)
    await desk.until(lambda: other.told)
    assert other.told == [[1]]
    other.gate.set()
    await desk.until(lambda: len(other.taken) == 5)
    assert other.told == [[1], [2, 3, 4, 5]]
    assert other.taken == keys(5)


async def test_what_was_not_taken_over_is_told_again_later(desk: Desk):
    """Again and again, more and more rarely, and nothing that comes after it before it."""
    other = desk.others[1]
    other.failures = 6
    await desk.send(1, "k0")
    await desk.until(lambda: len(other.told) == 3)
    await desk.send(1, "k1")
    started = desk.clock.monotonic()
    await desk.until(lambda: other.taken == ["k0", "k1"], step_ms=10)
    assert len(other.told) == 7
    assert 0 < desk.clock.monotonic() - started < 4 * RETRY_CEILING_MS
    assert all(told[0] == 1 for told in other.told)


async def test_an_answer_that_is_lost_costs_one_repeat(desk: Desk):
    """The other one passes it over."""
    other = desk.others[1]
    other.lost_answers = 1
    await desk.send(1, "k0")
    await desk.until(lambda: len(other.told) == 2)
    assert other.taken == ["k0"]
    await desk.send(1, "k1")
    await desk.until(lambda: other.taken == ["k0", "k1"])


async def test_shards_do_not_hold_up_each_other(desk: Desk):
    """One hangs, the other one is told at once."""
    desk.others[1].gate.clear()
    for n, key in enumerate(keys(20)):
        await desk.send(1 + n % 2, key)
    await desk.until(lambda: desk.others[2].taken == keys(20)[1::2])
    assert desk.others[1].taken == []
    desk.others[1].gate.set()
    await desk.until(lambda: desk.others[1].taken == keys(20)[::2])


async def test_large_entries_go_in_several_calls(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """As many as one message may carry, and one that is larger alone."""
    monkeypatch.setattr(outbox_module, "BATCH_BYTES_MAX", 5_000)
    other = desk.others[1]
    other.gate.clear()
    for key, size in zip(keys(6), (2, 2_000, 2_000, 9_000, 10, 10), strict=True):
        await desk.send(1, key, size=size)
    other.gate.set()
    await desk.until(lambda: len(other.taken) == 6)
    assert other.told == [[1], [2, 3], [4], [5, 6]]


def test_a_shard_takes_as_many_as_are_brought():
    """Else it would refuse the same ones for ever."""
    assert BATCH_MAX <= TAKE_OVER_MAX


# ---------------------------------------------------------------- from the store


async def filled(count: int, *, size: int = 2) -> Store:
    """A store with entries for shard 1 that an earlier life has left."""
    earlier = Desk()
    for key in keys(count):
        draft = Draft(1, SENDER, "phone", USERS[1], 0, key, "text", b'"%s"' % (b"x" * size), Timestamp(1_000))
        await earlier.store.execute([draft])
    return earlier.store


@pytest.mark.parametrize("count", [1, BATCH_MAX - 1, BATCH_MAX, BATCH_MAX + 1, 3 * BATCH_MAX])
async def test_an_earlier_life_is_gone_on_with(count: int):
    """From the store, page by page, and then what comes now; which waits for it."""
    async with running(Desk(await filled(count))) as desk:
        await desk.send(1, "new")
        await desk.until(lambda: len(desk.others[1].taken) > count)
        assert desk.others[1].taken == [*keys(count), "new"]
        reads = len(desk.store.reads)
        await desk.send(1, "newer")
        await desk.until(lambda: len(desk.others[1].taken) > count + 1)
        assert len(desk.store.reads) == reads, "from now on it comes from memory"


@pytest.mark.parametrize("failures", [1, 5])
async def test_what_was_read_and_not_taken_over_is_not_lost(failures: int):
    """The last page, too, of which nothing is read again; and what comes meanwhile does not overtake it."""
    async with running(Desk(await filled(3))) as desk:
        desk.others[1].failures = failures
        await desk.until(lambda: desk.others[1].told)
        await desk.send(1, "new")
        await desk.until(lambda: "new" in desk.others[1].taken, step_ms=10)
        assert desk.others[1].taken == [*keys(3), "new"]


async def test_what_of_a_page_does_not_fit_into_a_call_is_not_lost(monkeypatch: pytest.MonkeyPatch):
    """A page is bounded by number, a call by bytes."""
    monkeypatch.setattr(outbox_module, "BATCH_BYTES_MAX", 5_000)
    async with running(Desk(await filled(7, size=2_000))) as desk:
        await desk.send(1, "new")
        await desk.until(lambda: "new" in desk.others[1].taken)
        assert desk.others[1].taken == [*keys(7), "new"]
        assert max(map(len, desk.others[1].told)) == 2


async def test_what_is_read_before_it_is_told_is_brought_over_once():
    """A commit may be seen in the store a moment before the outbox hears of it."""
    store = await filled(3)
    found = await store.outgoing(1, after=0, limit=9)
    async with running(Desk(store)) as desk:
        desk.others[1].failures = 1
        await desk.until(lambda: desk.others[1].told)
        desk.outbox.committed(found)
        assert len(desk.outbox) == 3
        await desk.until(lambda: len(desk.others[1].taken) == 3)
        desk.outbox.committed(found)
        await desk.send(1, "k3")
        await desk.until(lambda: len(desk.others[1].taken) == 4)
    assert desk.others[1].taken == keys(4)
    assert desk.others[1].told == [[1, 2, 3], [1, 2, 3], [4]]


@pytest.mark.parametrize("bound", [("WAITING_MAX", 4), ("WAITING_BYTES_MAX", 1_000)])
async def test_too_much_goes_over_to_the_store_and_back(desk: Desk, monkeypatch: pytest.MonkeyPatch, bound: Any):
    """A shard that does not answer for long costs a bounded amount of memory, and loses nothing."""
    monkeypatch.setattr(outbox_module, *bound)
    other = desk.others[1]
    await desk.send(1, "k0")
    await desk.until(lambda: other.taken)
    other.failures = 3
    for key in keys(50, first=1):
        await desk.send(1, key)
        assert len(desk.outbox) <= 4
    await desk.until(lambda: len(other.taken) == 51)
    assert other.taken == keys(51)
    reads = len(desk.store.reads)
    await desk.send(1, "k51")
    await desk.until(lambda: len(other.taken) == 52)
    assert len(desk.store.reads) == reads


async def test_what_overflows_while_the_store_is_read_is_read_later(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """The page that is under way does not have it."""
    monkeypatch.setattr(outbox_module, "WAITING_MAX", 3)
    await desk.send(1, "k0")
    await desk.until(lambda: desk.others[1].taken)
    desk.outbox.unsure()
    desk.store.reading.clear()
    before = len(desk.store.reads)
    await desk.until(lambda: len(desk.store.reads) > before)
    for key in keys(10, first=1):
        await desk.send(1, key)
    desk.store.reading.set()
    await desk.until(lambda: len(desk.others[1].taken) == 11)
    assert desk.others[1].taken == keys(11)


async def test_a_commit_that_may_have_been_one_is_looked_for(desk: Desk):
    """Its senders were told that nobody knows; what the store has of it must not be passed over later."""
    await desk.send(1, "k0")
    await desk.until(lambda: desk.others[1].taken)
    desk.store.fails_after = 1
    await desk.send(1, "k1")
    await desk.send(1, "k2")
    await desk.until(lambda: "k2" in desk.others[1].taken)
    assert desk.others[1].taken == keys(3)


async def test_a_store_that_cannot_be_read_is_asked_again():
    """As a shard that does not answer."""

    class Unreadable(Store):
        failures = 3

        async def outgoing(self, shard: int, *, after: int, limit: int) -> list[Outgoing]:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("busy")
            return await super().outgoing(shard, after=after, limit=limit)

    async with running(Desk(Unreadable())) as desk:
        await desk.send(1, "k0")
        await desk.until(lambda: desk.others[1].taken)


# ---------------------------------------------------------------- forgetting


async def test_what_was_taken_over_is_forgotten_a_while_later(desk: Desk):
    """Of each shard at once, however many entries; and never what was not."""
    desk.others[2].gate.clear()
    for key in keys(30):
        await desk.send(1, key)
        await desk.send(2, f"other-{key}")
    await desk.until(lambda: len(desk.others[1].taken) == 30)
    desk.clock.advance(FORGET_MS)
    await desk.until(lambda: desk.store.sent)
    assert {one.shard for one in desk.store.sent} == {1}
    await desk.until(lambda: desk.store.sent[-1].through == 59)
    assert len(desk.store.sent) <= 2
    assert await MemoryMessageStore.outgoing(desk.store, 1, after=0, limit=99) == []
    assert len(await MemoryMessageStore.outgoing(desk.store, 2, after=0, limit=99)) == 30
    said = len(desk.store.sent)
    desk.clock.advance(10 * FORGET_MS)
    await desk.until(lambda: True)
    assert len(desk.store.sent) == said, "nothing new is nothing to say"


async def test_forgetting_may_fail(desk: Desk):
    """It costs room until it succeeds."""
    desk.store.fails_to_forget = True
    await desk.send(1, "k0")
    await desk.until(lambda: desk.others[1].taken)
    for _ in range(3):
        desk.clock.advance(FORGET_MS)
        await asyncio.sleep(0.001)
    assert len(await MemoryMessageStore.outgoing(desk.store, 1, after=0, limit=9)) == 1
    desk.store.fails_to_forget = False
    desk.clock.advance(FORGET_MS)
    await desk.until(lambda: desk.store.sent)
    await desk.send(1, "k1")
    await desk.until(lambda: desk.others[1].taken == keys(2))


async def test_a_life_that_did_not_forget_repeats_and_nothing_more():
    """What is in the outbox and was taken over is told once more by the next life."""
    first = Desk()
    async with running(first):
        for key in keys(4):
            await first.send(1, key)
        await first.until(lambda: len(first.others[1].taken) == 4)
    async with running(Desk(first.store, first.others)) as second:
        await second.send(1, "k4")
        await second.until(lambda: len(second.others[1].taken) == 5)
        assert second.others[1].taken == keys(5)


async def test_a_store_that_was_put_back_is_told_of_and_goes_on_behind():
    """What comes under positions that the other one knows is passed over; it is said so, and the next ones are new."""
    async with running(Desk()) as desk:
        desk.others[1].through = 40
        with capture_logs() as said:
            await desk.send(1, "lost")
            await desk.until(lambda: desk.others[1].told)
            await desk.until(lambda: said)
        assert [(one["event"], one["its"], one["ours"]) for one in said] == [("outbox_is_an_older_one", 40, 1)]
        await desk.until(lambda: desk.store.sent, step_ms=10)
        with capture_logs() as said:
            await desk.send(1, "k1")
            await desk.until(lambda: desk.others[1].taken)
        assert said == []
        assert desk.others[1].taken == ["k1"]
        assert desk.others[1].told == [[1], [41]]


# ---------------------------------------------------------------- ends


async def test_settling_waits_for_what_can_be_brought_over(desk: Desk):
    """And not for a shard that does not answer, nor for ever."""
    await desk.outbox.settle(at_most_ms=5_000)
    desk.others[1].failures = 1_000
    desk.others[2].gate.clear()
    await desk.send(1, "x0")
    await desk.send(2, "k0")
    settling = asyncio.ensure_future(desk.outbox.settle(at_most_ms=5_000))
    await desk.until(lambda: desk.others[1].told and desk.others[2].told)
    assert not settling.done()
    desk.others[2].gate.set()
    await settling
    assert desk.others[2].taken == ["k0"]
    desk.others[2].gate.clear()
    await desk.send(2, "k1")
    await desk.outbox.settle(at_most_ms=1)
    assert desk.others[2].taken == ["k0"]
