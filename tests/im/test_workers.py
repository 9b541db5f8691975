"""Worker numbers from a registry: taking, keeping, losing and giving back, with a registry that fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest

from base.clock import Clock, SimClock, Timestamp
from base.errors import StoreError, StoreUnavailable, Unavailable
from base.registry import Entry, View
from base.registry.memory import MemoryRegistry
from im.core.snowflake import AHEAD_MS_MAX, EPOCH_MS, WORKER_MAX, ClockWentBack
from im.core.workers import TERM_MS, Mark
from im.workers import LOOK_MS, PREFIX, RENEW_MS, RETRY_MS, LeasedIds, WorkerLease


class Flaky(MemoryRegistry):
    """A registry that can be out of reach, before a write or after it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.fails_before = False
        self.fails_after = False

    async def scan(self, prefix: str, *, after: int = -1, wait_ms: int = 0) -> View[Entry]:
        view = await super().scan(prefix, after=after, wait_ms=wait_ms)
        await asyncio.sleep(0)  # as over a network: others go on before the answer is here
        return view

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        if self.fails_before:
            raise StoreUnavailable("no answer")
        index = await super().put(key, value, expect=expect)
        if self.fails_after:
            raise StoreUnavailable("no answer")
        return index


class Holder:
    """A process with a claim."""

    def __init__(self, registry: MemoryRegistry, clock: SimClock, node: str = "im-1") -> None:
        self.clock = clock
        self.taken: list[tuple[int, Timestamp]] = []
        self.lease = WorkerLease(registry, clock, node=node, on_taken=lambda *taken: self.taken.append(taken))

    @property
    def is_valid(self) -> bool:
        return self.lease.is_valid(self.clock.realtime())


def sim_clock(*, ahead_ms: int = 0) -> SimClock:
    return SimClock(epoch_ms=EPOCH_MS + 43_200_000 + ahead_ms)


@pytest.fixture
def clock() -> SimClock:
    return sim_clock()


@pytest.fixture
def registry(clock: SimClock) -> Flaky:
    return Flaky(clock)


async def mark(registry: MemoryRegistry, worker: int) -> Mark:
    entry = await registry.get(f"{PREFIX}{worker:04}")
    assert entry is not None
    return msgspec.json.decode(entry.value, type=Mark)


async def settle() -> None:
    """Let whatever is ready run: the memory registry needs no more than a few turns of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(holder: Holder | LeasedIds) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(holder.lease.run())
        await settle()
        yield
        task.cancel()


async def passes(ms: int, *clocks: SimClock) -> None:
    for clock in clocks:
        clock.advance(ms)
    await settle()


@pytest.mark.spec("ID-02")
async def test_each_process_gets_a_number_of_its_own(registry: Flaky, clock: SimClock):
    """The lowest that is free, also for two that ask in the same moment."""
    holders = [Holder(registry, clock, f"im-{number}") for number in range(4)]
    async with asyncio.TaskGroup() as tasks:
        for holder in holders:
            tasks.create_task(holder.lease.acquire())
    assert sorted(holder.taken for holder in holders) == [[(number, EPOCH_MS)] for number in range(4)]
    assert [holder.lease.worker for holder in holders] == [holder.taken[0][0] for holder in holders]
    assert all(holder.is_valid for holder in holders)


async def test_without_a_number_nothing_is_numbered(registry: Flaky, clock: SimClock):
    """Before it is taken, and after it was given back."""
    holder = Holder(registry, clock)
    assert holder.lease.worker is None
    assert not holder.is_valid
    await holder.lease.release()
    await holder.lease.acquire()
    await holder.lease.release()
    assert holder.lease.worker is None
    assert not holder.is_valid


async def test_the_number_of_a_dead_process_rests_until_its_mark_is_past(registry: Flaky, clock: SimClock):
    """A restart does not wait for it: it takes another one. Afterwards the next holder numbers later than the mark."""
    await Holder(registry, clock).lease.acquire()
    promised = (await mark(registry, 0)).through_ms
    assert promised == clock.realtime() + TERM_MS
    again = Holder(registry, clock)
    await again.lease.acquire()
    assert again.lease.worker == 1
    clock.advance(TERM_MS + 1)
    third = Holder(registry, clock)
    await third.lease.acquire()
    assert third.taken == [(0, promised + 1)]


async def test_a_number_that_was_given_back_is_free_at_once(registry: Flaky, clock: SimClock):
    """Later than whatever was numbered, which is less than what was promised."""
    first = Holder(registry, clock)
    await first.lease.acquire()
    assert first.is_valid
    used = clock.realtime()
    await first.lease.release()
    clock.advance(AHEAD_MS_MAX + 1)
    second = Holder(registry, clock)
    await second.lease.acquire()
    assert second.taken == [(0, used + AHEAD_MS_MAX + 1)]


async def test_a_running_claim_stays_valid(registry: Flaky, clock: SimClock):
    """Renewed in time, for as long as it runs, under one number."""
    holder = Holder(registry, clock)
    async with running(holder):
        for _ in range(25):
            await passes(RENEW_MS, clock)
            assert holder.is_valid
            assert (await mark(registry, 0)).through_ms == clock.realtime() + TERM_MS
    assert len(holder.taken) == 1


@pytest.mark.spec("ID-02")
async def test_numbering_outlasts_a_registry_that_is_away_and_no_longer(registry: Flaky, clock: SimClock):
    """Up to the mark; and goes on, as before, when the registry is back."""
    holder = Holder(registry, clock)
    async with running(holder):
        registry.fails_before = True
        for _ in range((TERM_MS - AHEAD_MS_MAX) // RETRY_MS):
            await passes(RETRY_MS, clock)
            assert holder.is_valid
        await passes(RETRY_MS, clock)
        assert not holder.is_valid
        assert holder.lease.worker == 0, "nobody else has it"
        registry.fails_before = False
        await passes(RETRY_MS, clock)
        assert holder.is_valid
    assert len(holder.taken) == 1


async def test_a_claim_waits_for_the_registry(registry: Flaky, clock: SimClock):
    """A process that runs without a number takes one as soon as it can."""
    registry.fails_before = True
    holder = Holder(registry, clock)
    with pytest.raises(StoreUnavailable):
        await holder.lease.acquire()
    async with running(holder):
        assert not holder.is_valid
        registry.fails_before = False
        await passes(RETRY_MS, clock)
        assert holder.taken == [(0, EPOCH_MS)]


async def test_an_answer_that_was_lost_loses_no_number(registry: Flaky, clock: SimClock):
    """The mark was written, and it is ours: it is read back and counts."""
    holder = Holder(registry, clock)
    async with running(holder):
        registry.fails_after = True
        await passes(RENEW_MS, clock)
        written = (await mark(registry, 0)).through_ms
        registry.fails_after = False
        await passes(RETRY_MS, clock)
        await passes(RENEW_MS, clock)
        assert (await mark(registry, 0)).through_ms > written
        assert holder.is_valid
    assert len(holder.taken) == 1


async def test_a_number_of_which_the_answer_was_lost_is_left_alone(registry: Flaky, clock: SimClock):
    """Whether it was taken is not known; another one is as good."""
    registry.fails_after = True
    holder = Holder(registry, clock)
    with pytest.raises(StoreUnavailable):
        await holder.lease.acquire()
    registry.fails_after = False
    await holder.lease.acquire()
    assert holder.lease.worker == 1


@pytest.mark.spec("MI-07")
async def test_who_slept_too_long_loses_the_number_and_takes_another(registry: Flaky, clock: SimClock):
    """From its mark on it numbers nothing; when it learns of the new holder it goes on under a new number."""
    slow_clock = sim_clock()
    sleeper = Holder(registry, slow_clock)
    async with running(sleeper):
        clock.advance(TERM_MS + 1)
        heir = Holder(registry, clock, "im-2")
        await heir.lease.acquire()
        assert heir.lease.worker == 0
        slow_clock.jump(TERM_MS + 5)
        assert not sleeper.is_valid
        await passes(RENEW_MS, slow_clock)
        assert [worker for worker, _ in sleeper.taken] == [0, 1]
        assert sleeper.is_valid
        assert heir.is_valid


async def test_a_mark_that_the_registry_lost_is_written_again(registry: Flaky, clock: SimClock):
    """Else the holders would take each other's numbers, while the first owner still goes on."""
    holders = [Holder(registry, clock, f"im-{number}") for number in range(2)]
    async with running(holders[0]), running(holders[1]):
        for number in range(2):
            await registry.delete(f"{PREFIX}{number:04}")
        await passes(RENEW_MS, clock)
        assert [holder.lease.worker for holder in holders] == [0, 1]
        assert [(await mark(registry, number)).node for number in range(2)] == ["im-0", "im-1"]
        assert all(holder.is_valid for holder in holders)
    assert [len(holder.taken) for holder in holders] == [1, 1]


async def test_a_holder_that_cannot_say_goodbye_stops_all_the_same(registry: Flaky, clock: SimClock):
    """The number rests until its mark is past."""
    holder = Holder(registry, clock)
    await holder.lease.acquire()
    registry.fails_before = True
    await holder.lease.release()
    assert not holder.is_valid
    assert (await mark(registry, 0)).through_ms == clock.realtime() + TERM_MS


async def test_all_numbers_may_be_held(registry: Flaky, clock: SimClock):
    """Then a start fails, and says when to try again."""
    held = msgspec.json.encode(Mark("somebody", "im-9", clock.realtime()))
    for number in range(WORKER_MAX + 1):
        await registry.put(f"{PREFIX}{number:04}", held)
    holder = Holder(registry, clock)
    with pytest.raises(Unavailable, match="every worker number is held"):
        await holder.lease.acquire()
    clock.advance(1)
    await holder.lease.acquire()
    assert holder.lease.worker == 0


async def test_what_is_no_mark_is_named(registry: Flaky, clock: SimClock):
    """Nobody numbers over what they do not understand."""
    await registry.put(f"{PREFIX}0007", b"{}")
    with pytest.raises(StoreError, match="im/worker/0007 is no mark"):
        await Holder(registry, clock).lease.acquire()


async def test_leased_ids_say_whose_they_are(registry: Flaky, clock: SimClock):
    """Two processes number side by side, each under its own number."""
    sources = [LeasedIds(registry, clock, node=f"im-{number}", entropy=Random(number)) for number in range(2)]
    for ids in sources:
        await ids.lease.acquire()
    now = clock.realtime()
    given = [mid for ids in sources for mid in (ids.next(now), ids.next(now)) if isinstance(mid, int)]
    assert [mid >> 12 & WORKER_MAX for mid in given] == [0, 0, 1, 1]
    assert {(mid >> 22) + EPOCH_MS for mid in given} == {now}


async def test_leased_ids_end_with_their_lease_and_come_back_with_the_next(registry: Flaky, clock: SimClock):
    """Without a number a send is refused and may be tried again; under a new one ids are later than the old ones."""
    ids = LeasedIds(registry, clock, node="im-1", entropy=Random(1))
    with pytest.raises(Unavailable) as refused:
        ids.next(clock.realtime())
    assert refused.value.detail == {"retry_after_ms": RETRY_MS}
    await ids.lease.acquire()
    first = ids.next(clock.realtime())
    clock.advance(TERM_MS)
    with pytest.raises(Unavailable):
        ids.next(clock.realtime())
    await ids.lease.release()
    await ids.lease.acquire()
    second = ids.next(clock.realtime())
    assert isinstance(first, int)
    assert isinstance(second, int)
    assert second > first


async def test_after_a_clock_was_set_right_ids_go_on_under_another_number(registry: Flaky, clock: SimClock):
    """It was an hour ahead: to wait for it would be an hour without messages. Nobody else takes the old number."""
    ids = LeasedIds(registry, clock, node="im-1", entropy=Random(1))
    await ids.lease.acquire()
    async with running(ids):
        clock.jump(3_600_000)
        await passes(RENEW_MS, clock)
        before = ids.next(clock.realtime())
        clock.jump(-3_600_000)
        assert isinstance(ids.next(clock.realtime()), ClockWentBack)
        await passes(RETRY_MS, clock)
        after = ids.next(clock.realtime())
        assert isinstance(before, int)
        assert isinstance(after, int)
        assert (ids.lease.worker, after < before) == (1, True)
        other = Holder(registry, clock, "im-2")
        await other.lease.acquire()
        assert other.lease.worker == 2


async def test_a_registry_that_lost_the_marks_has_them_again_soon(registry: Flaky, clock: SimClock):
    """Long before the number would be marked the next time: others take those without a mark."""
    holder = Holder(registry, clock)
    await holder.lease.acquire()
    async with running(holder):
        await registry.delete(f"{PREFIX}0000")
        clock.advance(LOOK_MS)
        await settle()
        assert (await mark(registry, 0)).node == "im-1"
        assert holder.is_valid
        assert len(holder.taken) == 1


async def test_who_starts_in_a_registry_that_lost_its_marks_waits_for_those_of_the_others(
    registry: Flaky, clock: SimClock
):
    """Two that live must not number under one number; and who is dead holds nobody up for longer than its time."""
    taken: list[tuple[int, Timestamp]] = []

    def waiting(*others: str) -> WorkerLease:
        return WorkerLease(registry, clock, node="im-1", on_taken=lambda *one: taken.append(one), others=lambda: others)

    lease = waiting("im-2")
    with pytest.raises(Unavailable, match="lost"):
        await lease.acquire()
    await Holder(registry, clock, node="im-2").lease.acquire()
    await lease.acquire()
    assert lease.worker == 1
    of_dead = waiting("im-3")
    clock.advance(TERM_MS + AHEAD_MS_MAX)
    await of_dead.acquire()
    assert len(taken) == 2
