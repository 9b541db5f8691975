"""Group commit: order, groups, the bound, cancelled callers, failures, and the store's own work.

The store is the twin with a gate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain

import pytest

from base.clock import SimClock, Timestamp
from base.errors import Draining, Overloaded, RoadsteadError, StoreUnavailable
from im import writer as writer_module
from im.core.commands import Appended, Command, Draft, Executed, KeyConflict, Outcome, Queued
from im.core.model import Form
from im.store.memory import MemoryMessageStore
from im.writer import Commit, GroupCommit


def draft(
    n: int, *, key: str | None = None, body: bytes = b"{}", sender: str = "ann", is_queued: bool = False
) -> Draft:
    return Draft(n, sender, "phone", "bob", 0, key or f"k{n}", "text", body, Timestamp(1_000), is_queued=is_queued)


class GatedStore(MemoryMessageStore):
    """Notes each group, waits at the gate before it, and fails once at each draft that it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[int | str]] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: dict[int | str, Exception] = {}
        self.work_fails = 0
        self.on_work: Callable[[], object] = int

    async def execute(self, commands: Sequence[Command]) -> Executed:
        mids = [one.mid for one in commands if isinstance(one, Draft)]
        self.groups.append(mids)
        self.arrived.set()
        await self.gate.wait()
        if not commands:
            self.on_work()
        if not commands and self.work_fails:
            self.work_fails -= 1
            raise StoreUnavailable("the disk is busy")
        for mid in mids:
            if mid in self.failures:
                raise self.failures.pop(mid)
        return await super().execute(commands)


def made(
    store: GatedStore,
    *,
    group_max: int = 256,
    waiting_max: int = 10_000,
    lane_max: int | None = None,
    clock: SimClock | None = None,
) -> tuple[GroupCommit, list[Commit]]:
    """Return a writer and the groups that it says were committed."""
    seen: list[Commit] = []
    writer = GroupCommit(
        store,
        clock or SimClock(),
        on_committed=seen.append,
        group_max=group_max,
        waiting_max=waiting_max,
        lane_max=lane_max,
        retry_after_ms=70,
    )
    return writer, seen


def enqueue(writer: GroupCommit, command: Command) -> asyncio.Future[Outcome]:
    """Take a place now; the future gets what is told."""
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def told(answer: Outcome | RoadsteadError) -> None:
        assert not outcome.done(), "each is told once"
        if isinstance(answer, RoadsteadError):
            outcome.set_exception(answer)
        else:
            outcome.set_result(answer)

    writer.enqueue(command, told)
    return outcome


async def hold(store: GatedStore, writer: GroupCommit) -> asyncio.Future[Outcome]:
    """Close the gate and let draft 0 wait before it, alone in its group."""
    store.gate.clear()
    store.arrived.clear()
    outcome = enqueue(writer, draft(0))
    await store.arrived.wait()
    return outcome


@asynccontextmanager
async def running(writer: GroupCommit) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        tasks.create_task(writer.run())
        yield
        await writer.close()


def place(outcome: Outcome) -> int:
    assert isinstance(outcome, Appended)
    return outcome.message.seq


async def test_a_lone_message_is_committed_at_once():
    """Nothing waits on purpose."""
    store = GatedStore()
    writer, seen = made(store)
    async with running(writer):
        assert place(await writer.submit(draft(1))) == 1
    assert store.groups == [[1]]
    assert [(commit.commands, commit.took_ms) for commit in seen] == [(1, 0)]


async def test_callers_may_be_told_later():
    """By whoever takes the commit, once; the next group does not wait for that."""
    store = GatedStore()
    commits: asyncio.Queue[Commit] = asyncio.Queue()

    def taken(commit: Commit) -> bool:
        commits.put_nowait(commit)
        return True

    writer = GroupCommit(store, SimClock(), on_committed=taken)
    async with running(writer):
        first = enqueue(writer, draft(1))
        one = await commits.get()
        second = enqueue(writer, draft(2))
        other = await commits.get()
        assert not first.done()
        one.tell()
        one.tell()
        assert place(await first) == 1
        assert not second.done()
        other.tell()
        assert place(await second) == 2


async def test_what_comes_during_a_commit_is_the_next_group():
    """I1: in the order of submission."""
    store = GatedStore()
    writer, _ = made(store)
    async with running(writer):
        first = await hold(store, writer)
        rest = [enqueue(writer, draft(n)) for n in range(1, 6)]
        assert writer.waiting == 5
        store.gate.set()
        assert [place(await outcome) for outcome in (first, *rest)] == [1, 2, 3, 4, 5, 6]
    assert store.groups == [[0], [1, 2, 3, 4, 5]]


@pytest.mark.spec("OR-07")
async def test_groups_are_bounded_and_keep_the_order():
    """I1 over many groups."""
    store = GatedStore()
    writer, seen = made(store)
    outcomes = [enqueue(writer, draft(n)) for n in range(1_000)]
    async with running(writer):
        assert [place(await outcome) for outcome in outcomes] == list(range(1, 1_001))
    assert [len(group) for group in store.groups] == [commit.commands for commit in seen] == [256, 256, 256, 232]
    assert list(chain.from_iterable(store.groups)) == list(range(1_000))


async def test_who_sends_much_delays_nobody_else():
    """Lanes take turns: of ten senders' first messages none waits for the hundred of an eleventh."""
    store = GatedStore()
    writer, _ = made(store, group_max=20)
    async with running(writer):
        first = await hold(store, writer)
        much = [enqueue(writer, draft(n, sender="eve")) for n in range(100, 200)]
        others = [enqueue(writer, draft(n, sender=f"u{n}")) for n in range(1, 11)]
        store.gate.set()
        await asyncio.gather(first, *much, *others)
    assert set(range(1, 11)) < set(store.groups[1])
    mine = [mid for mid in chain.from_iterable(store.groups) if isinstance(mid, int) and mid >= 100]
    assert mine == list(range(100, 200))


async def test_concurrent_callers_each_get_their_own_outcome():
    """Fifty tasks, one message each."""
    writer, _ = made(GatedStore())
    async with running(writer), asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(writer.submit(draft(n))) for n in range(50)]
    assert [task.result().message.mid for task in tasks if isinstance(task.result(), Appended)] == list(range(50))


async def test_too_many_waiting_drafts_are_refused():
    """I5: with a name and a time to come again; what waits is not harmed, and the refused one is told nothing more."""
    store = GatedStore()
    writer, _ = made(store, waiting_max=3)
    async with running(writer):
        first = await hold(store, writer)
        waiting = [enqueue(writer, draft(n)) for n in (1, 2, 3)]
        with pytest.raises(Overloaded) as refused:
            await writer.submit(draft(4))
        assert refused.value.detail == {"what": "append_queue", "retry_after_ms": 70}
        store.gate.set()
        assert [place(await outcome) for outcome in (first, *waiting)] == [1, 2, 3, 4]
        assert place(await writer.submit(draft(4))) == 5


async def test_one_sender_cannot_take_all_places():
    """A lane has a bound of its own; others still find room."""
    store = GatedStore()
    writer, _ = made(store, waiting_max=100, lane_max=2)
    async with running(writer):
        await hold(store, writer)
        waiting = [enqueue(writer, draft(n)) for n in (1, 2)]
        with pytest.raises(Overloaded):
            enqueue(writer, draft(3))
        other = enqueue(writer, draft(50, sender="cleo"))
        store.gate.set()
        assert isinstance(await other, Appended)
        await asyncio.gather(*waiting)


async def test_a_cancelled_caller_changes_nothing_for_the_others():
    """I2: neither one whose commit is running nor one that waits; both messages are stored."""
    store = GatedStore()
    writer, _ = made(store)
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


async def test_a_cancelled_caller_is_not_told_a_failure_either():
    """I2: the others of its group are."""
    store = GatedStore()
    writer, _ = made(store)
    store.failures[0] = StoreUnavailable("the disk is gone")
    async with running(writer), asyncio.TaskGroup() as callers:
        store.gate.clear()
        early = callers.create_task(writer.submit(draft(0)))
        await store.arrived.wait()
        early.cancel()
        await asyncio.wait([early])
        store.gate.set()
    assert early.cancelled()


async def test_a_failed_commit_fails_its_group_and_no_other():
    """I4: with the store's own error, after which the same keys may be sent again."""
    store = GatedStore()
    writer, seen = made(store)
    failure = StoreUnavailable("the disk is gone")
    async with running(writer):
        first = await hold(store, writer)
        doomed = [enqueue(writer, draft(n)) for n in (1, 2, 3)]
        store.failures[2] = failure
        store.gate.set()
        assert place(await first) == 1
        for outcome in doomed:
            with pytest.raises(StoreUnavailable) as caught:
                await outcome
            assert caught.value is failure
        assert [place(await writer.submit(draft(n))) for n in (1, 2, 3)] == [2, 3, 4]
    assert [commit.commands for commit in seen] == [1, 1, 1, 1], "what failed is not told as committed"


async def test_commits_are_shown_in_order_before_callers_are_told():
    """I3: repeats and conflicts have outcomes, and nothing is delivered for them."""
    store = GatedStore()
    told: list[asyncio.Future[Outcome]] = []
    seen: list[Commit] = []

    def committed(commit: Commit) -> None:
        assert not any(outcome.done() for outcome in told)
        seen.append(commit)

    writer = GroupCommit(store, SimClock(), on_committed=committed)
    async with running(writer):
        await hold(store, writer)
        drafts = (draft(1), draft(2, key="k1"), draft(3, key="k1", body=b"[]"), draft(4))
        told = [enqueue(writer, one) for one in drafts]
        store.gate.set()
        outcomes = [await outcome for outcome in told]
        told = []
    executed = seen[1].executed
    assert executed.outcomes == outcomes
    kinds = [(one.message.seq, one.is_new) for one in outcomes if isinstance(one, Appended)]
    assert kinds == [(2, True), (2, False), (3, True)]
    assert isinstance(outcomes[2], KeyConflict)
    assert [delivery.message.seq for delivery in executed.deliveries] == [2, 3]


# ---------------------------------------------------------------- the store's own work


async def test_queued_drafts_become_messages_without_another_command():
    """The store's work is done as soon as nothing else waits; its group has no commands."""
    store = GatedStore()
    writer, seen = made(store)
    async with running(writer):
        queued = await writer.submit(draft(1, is_queued=True))
        assert queued == Queued(1, is_new=True)
        while store.has_work:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        await writer.settle()
    assert store.groups == [[1], []]
    assert [commit.commands for commit in seen] == [1, 0]
    assert [delivery.message.form for delivery in seen[1].executed.deliveries] == [Form.MESSAGE]


async def test_work_that_fails_is_tried_again_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    """A command that comes while the work rests is carried out at once, and the work with it."""
    store = GatedStore()
    writer, _ = made(store)
    store.work_fails = 1
    monkeypatch.setattr(writer_module, "WORK_RETRY_MS", 60_000)
    async with running(writer):
        await writer.submit(draft(1, is_queued=True))
        while store.work_fails:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        assert place(await writer.submit(draft(2, sender="cleo"))) == 1
        page = await store.timeline("bob", since=0, limit=10)
        assert {entry.message.mid for entry in page.entries} == {1, 2}
    assert store.groups == [[1], [], [2]]


async def test_what_comes_while_work_fails_does_not_rest_either(monkeypatch: pytest.MonkeyPatch):
    """It came before the failure was known, and nobody will wake the writer for it."""
    store = GatedStore()
    writer, _ = made(store)
    store.work_fails = 1
    monkeypatch.setattr(writer_module, "WORK_RETRY_MS", 60_000)
    late: list[asyncio.Future[Outcome]] = []
    store.on_work = lambda: late.append(enqueue(writer, draft(len(late) + 2, sender="cleo")))
    async with running(writer):
        await writer.submit(draft(1, is_queued=True))
        while not late:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        assert isinstance(await late[0], Appended)


async def test_work_that_fails_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch):
    """After a while, though nobody sends anything."""
    store = GatedStore()
    writer, _ = made(store)
    store.work_fails = 2
    monkeypatch.setattr(writer_module, "WORK_RETRY_MS", 1)
    async with running(writer):
        await writer.submit(draft(1, is_queued=True))
        while store.has_work:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
    assert store.groups == [[1], [], [], []]


async def test_closing_does_not_wait_for_work_that_fails(monkeypatch: pytest.MonkeyPatch):
    """It is durable, and the next life goes on with it."""
    store = GatedStore()
    writer, _ = made(store)
    store.work_fails = 1_000
    monkeypatch.setattr(writer_module, "WORK_RETRY_MS", 60_000)
    async with running(writer):
        await writer.submit(draft(1, is_queued=True))
        while store.work_fails == 1_000:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
    assert store.has_work


# ---------------------------------------------------------------- what runs


async def test_who_settles_waits_for_the_running_commit():
    """And for no other: what can be read before it returns has been told."""
    store = GatedStore()
    clock = SimClock()
    writer, seen = made(store, clock=clock)
    async with running(writer), asyncio.TaskGroup() as tasks:
        await writer.settle()
        assert writer.running_ms(clock.monotonic()) == 0
        await hold(store, writer)
        settled = tasks.create_task(writer.settle())
        await asyncio.sleep(0)
        clock.advance(30)
        assert (settled.done(), writer.running_ms(clock.monotonic())) == (False, 30)
        store.gate.set()
        await settled
        assert [commit.took_ms for commit in seen] == [30]
        assert writer.running_ms(clock.monotonic()) == 0


# ---------------------------------------------------------------- the end


async def test_closing_commits_what_waits_and_refuses_the_rest():
    """Twice does no harm."""
    store = GatedStore()
    writer, _ = made(store, group_max=2)
    async with running(writer):
        first = await hold(store, writer)
        waiting = [enqueue(writer, draft(n)) for n in (1, 2, 3)]
        async with asyncio.TaskGroup() as closers:
            closers.create_task(writer.close())
            closers.create_task(writer.close())
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                enqueue(writer, draft(4))
            store.gate.set()
        assert [place(outcome.result()) for outcome in (first, *waiting)] == [1, 2, 3, 4]


async def test_whoever_counts_on_commits_hears_of_those_that_nobody_knows_of():
    """Before the next one: what is durable of it is older."""
    store, heard = GatedStore(), list[str]()
    store.failures[2] = StoreUnavailable("was it written?")
    writer = GroupCommit(
        store,
        SimClock(),
        on_committed=lambda commit: heard.append(f"committed {commit.commands}"),
        on_unsure=lambda: heard.append("unsure"),
        group_max=1,
    )
    async with asyncio.TaskGroup() as tasks:
        sends = [tasks.create_task(writer.submit(draft(n))) for n in (1, 3)]
        failing = tasks.create_task(refused(writer, draft(2)))
        running = tasks.create_task(writer.run())
        await asyncio.gather(*sends)
        await failing
        await writer.submit(draft(4))
        running.cancel()
    assert heard == ["committed 1", "committed 1", "unsure", "committed 1"]


async def refused(writer: GroupCommit, command: Command) -> None:
    with pytest.raises(StoreUnavailable, match="was it written"):
        await writer.submit(command)


async def test_a_writer_that_never_ran_answers_when_it_is_closed():
    """I4: nothing was written, and nobody waits for ever."""
    store = GatedStore()
    writer, _ = made(store)
    outcome = enqueue(writer, draft(1))
    await writer.close()
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        await outcome
    await writer.run()
    assert store.groups == []


async def test_a_cancelled_writer_answers_everybody():
    """I4: those whose commit was running, and those that waited."""
    store = GatedStore()
    writer, _ = made(store)
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(writer.run())
        outcomes = [await hold(store, writer), enqueue(writer, draft(1))]
        run.cancel()
    for outcome, said in zip(outcomes, ("unknown", "nothing was written"), strict=True):
        with pytest.raises(StoreUnavailable, match=said):
            await outcome
    with pytest.raises(Draining):
        enqueue(writer, draft(2))


async def test_a_defect_ends_the_writer_and_answers_everybody():
    """It is not taken for a failure of the store; the service's TaskGroup learns of it."""

    def committed(_commit: Commit) -> None:
        raise ZeroDivisionError

    writer = GroupCommit(GatedStore(), SimClock(), on_committed=committed)
    outcomes = [enqueue(writer, draft(n)) for n in (1, 2)]
    with pytest.raises(ZeroDivisionError):
        await writer.run()
    for outcome in outcomes:
        with pytest.raises(StoreUnavailable):
            await outcome
