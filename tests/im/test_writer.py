"""Group commit: order, groups, the bound, cancelled callers and failures. The store is a twin with a gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain

import pytest

from base.clock import Timestamp
from base.errors import Draining, Overloaded, StoreUnavailable
from im.memory import MemoryMessageStore
from im.ports import Appended, Draft, KeyConflict
from im.writer import GroupCommit


def draft(n: int, *, key: str | None = None, body: bytes = b"{}") -> Draft:
    return Draft(n, "ann", "phone", "bob", key or f"k{n}", "text", body, Timestamp(1_000))


class GatedStore(MemoryMessageStore):
    """Notes each group, waits at the gate before it, and fails once at each draft that it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[int]] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: dict[int, Exception] = {}

    async def append(self, drafts: Sequence[Draft]) -> list[Appended | KeyConflict]:
        self.groups.append([one.mid for one in drafts])
        self.arrived.set()
        await self.gate.wait()
        for one in drafts:
            if one.mid in self.failures:
                raise self.failures.pop(one.mid)
        return await super().append(drafts)

    async def hold(self, writer: GroupCommit) -> asyncio.Future[Appended | KeyConflict]:
        """Close the gate and let draft 0 wait before it, alone in its group."""
        self.gate.clear()
        self.arrived.clear()
        outcome = writer.enqueue(draft(0))
        await self.arrived.wait()
        return outcome


@asynccontextmanager
async def running(writer: GroupCommit) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(writer.run())
        yield
        await writer.close()


def ignore(_appended: list[Appended]) -> None:
    """Take note of nothing."""


def place(outcome: Appended | KeyConflict) -> int:
    assert isinstance(outcome, Appended)
    return outcome.message.seq


async def test_a_lone_message_is_committed_at_once():
    """Nothing waits on purpose."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore)
    async with running(writer):
        assert place(await writer.submit(draft(1))) == 1
    assert store.groups == [[1]]


async def test_what_comes_during_a_commit_is_the_next_group():
    """I1: in the order of submission."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore)
    async with running(writer), asyncio.timeout(10):
        first = await store.hold(writer)
        rest = [writer.enqueue(draft(n)) for n in range(1, 6)]
        assert writer.waiting == 5
        store.gate.set()
        assert [place(await outcome) for outcome in (first, *rest)] == [1, 2, 3, 4, 5, 6]
    assert store.groups == [[0], [1, 2, 3, 4, 5]]


async def test_groups_are_bounded_and_keep_the_order():
    """I1 over many groups."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore, group_max=256)
    outcomes = [writer.enqueue(draft(n)) for n in range(1_000)]
    async with running(writer):
        assert [place(await outcome) for outcome in outcomes] == list(range(1, 1_001))
    assert [len(group) for group in store.groups] == [256, 256, 256, 232]
    assert list(chain.from_iterable(store.groups)) == list(range(1_000))


async def test_concurrent_callers_each_get_their_own_outcome():
    """Fifty tasks, one message each."""
    writer = GroupCommit(GatedStore(), on_committed=ignore)
    async with running(writer), asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(writer.submit(draft(n))) for n in range(50)]
    assert [task.result().message.mid for task in tasks if isinstance(task.result(), Appended)] == list(range(50))


async def test_too_many_waiting_drafts_are_refused():
    """I5: with a name and a time to come again; what waits is not harmed."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore, waiting_max=3, retry_after_ms=70)
    async with running(writer):
        first = await store.hold(writer)
        waiting = [writer.enqueue(draft(n)) for n in (1, 2, 3)]
        with pytest.raises(Overloaded) as refused:
            await writer.submit(draft(4))
        assert refused.value.detail == {"what": "append_queue", "retry_after_ms": 70}
        store.gate.set()
        assert [place(await outcome) for outcome in (first, *waiting)] == [1, 2, 3, 4]
        assert place(await writer.submit(draft(4))) == 5


async def test_a_cancelled_caller_changes_nothing_for_the_others():
    """I2: neither one whose commit is running nor one that waits; both messages are stored."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore)
    async with running(writer):
        async with asyncio.TaskGroup() as callers:
            store.gate.clear()
            early = callers.create_task(writer.submit(draft(0)))
            await store.arrived.wait()
            tasks = [callers.create_task(writer.submit(draft(n))) for n in (1, 2, 3)]
            await asyncio.sleep(0)  # each runs up to its place in the queue
            assert writer.waiting == 3
            early.cancel()
            tasks[1].cancel()
            store.gate.set()
        assert [place(task.result()) for task in (tasks[0], tasks[2])] == [2, 4]
        assert place(await writer.submit(draft(0))) == 1, "a retry finds what its cancelled call stored"
    assert store.groups == [[0], [1, 2, 3], [0]]


async def test_a_failed_commit_fails_its_group_and_no_other():
    """I4: with the store's own error, after which the same keys may be sent again."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore)
    failure = StoreUnavailable("the disk is gone")
    async with running(writer):
        first = await store.hold(writer)
        doomed = [writer.enqueue(draft(n)) for n in (1, 2, 3)]
        store.failures[2] = failure
        store.gate.set()
        assert place(await first) == 1
        for outcome in doomed:
            with pytest.raises(StoreUnavailable) as caught:
                await outcome
            assert caught.value is failure
        assert [place(await writer.submit(draft(n))) for n in (1, 2, 3)] == [2, 3, 4]


async def test_commits_are_shown_in_order_before_callers_are_told():
    """I3: repeats are among them, conflicts are not, and a group of conflicts is not shown at all."""
    store = GatedStore()
    seen: list[tuple[int, bool]] = []
    told: list[asyncio.Future[Appended | KeyConflict]] = []

    def committed(appended: list[Appended]) -> None:
        assert not any(outcome.done() for outcome in told)
        seen.extend((one.message.seq, one.is_new) for one in appended)

    writer = GroupCommit(store, on_committed=committed)
    async with running(writer):
        await store.hold(writer)
        told = [writer.enqueue(one) for one in (draft(1), draft(2, key="k1"), draft(3, key="k1", body=b"[]"), draft(4))]
        store.gate.set()
        outcomes = [await outcome for outcome in told]
        told = []
        assert isinstance(outcomes[2], KeyConflict)
        assert seen == [(1, True), (2, True), (2, False), (3, True)]
        assert isinstance(await writer.submit(draft(5, key="k1", body=b"[]")), KeyConflict)
    assert len(seen) == 4


async def test_closing_commits_what_waits_and_refuses_the_rest():
    """Twice does no harm."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore, group_max=2)
    async with running(writer):
        first = await store.hold(writer)
        waiting = [writer.enqueue(draft(n)) for n in (1, 2, 3)]
        async with asyncio.TaskGroup() as closers:
            closers.create_task(writer.close())
            closers.create_task(writer.close())
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                writer.enqueue(draft(4))
            store.gate.set()
        assert [place(outcome.result()) for outcome in (first, *waiting)] == [1, 2, 3, 4]


async def test_a_writer_that_never_ran_answers_when_it_is_closed():
    """I4: nothing was written, and nobody waits for ever."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore)
    outcome = writer.enqueue(draft(1))
    await writer.close()
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        await outcome
    await writer.run()
    assert store.groups == []


async def test_a_cancelled_writer_answers_everybody():
    """I4: those whose commit was running, and those that waited."""
    store = GatedStore()
    writer = GroupCommit(store, on_committed=ignore)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(writer.run())
        outcomes = [await store.hold(writer), writer.enqueue(draft(1))]
        run.cancel()
    for outcome in outcomes:
        with pytest.raises(StoreUnavailable, match="unknown"):
            await outcome
    with pytest.raises(Draining):
        writer.enqueue(draft(2))


async def test_a_defect_ends_the_writer_and_answers_everybody():
    """It is not taken for a failure of the store; the service's TaskGroup learns of it."""

    def committed(_appended: list[Appended]) -> None:
        raise ZeroDivisionError

    writer = GroupCommit(GatedStore(), on_committed=committed)
    outcomes = [writer.enqueue(draft(n)) for n in (1, 2)]
    with pytest.raises(ZeroDivisionError):
        await writer.run()
    for outcome in outcomes:
        with pytest.raises(StoreUnavailable):
            await outcome
