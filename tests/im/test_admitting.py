"""Quotas, and what is dropped under pressure in which order: with a writer that commits nothing until it is told to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from base.clock import SimClock, Timestamp
from base.errors import Overloaded, RateLimited
from base.metrics import Metrics
from im import admitting
from im.admitting import Admission
from im.config import ImConfig
from im.core.commands import Draft
from im.core.overload import DROPPED_AT, Work
from im.core.quotas import Quotas
from im.methods import Caller
from im.metrics import ImMetrics
from im.store.memory import MemoryMessageStore
from im.writer import GroupCommit

ANN, LAPTOP, BOB = Caller("ann", "phone"), Caller("ann", "laptop"), Caller("bob", "phone")
BACKEND = Caller("ann", "server", is_backend=True)
WORKS = (Work.TYPING, Work.PRESENCE, Work.RECEIPTS, Work.PREVIEWS, Work.MESSAGES)


class Desk:
    """An admission, with the clock and the writer that it looks at."""

    def __init__(self, **settings: float) -> None:
        config = ImConfig(**{"append_queue_max": 100, "append_wait_max_ms": 1_000_000, **settings})  # type: ignore[arg-type]
        self.clock = SimClock()
        self.metrics = ImMetrics(Metrics({}))
        self.writer = GroupCommit(
            MemoryMessageStore(), self.clock, on_committed=lambda _: None, waiting_max=config.append_queue_max
        )
        self.admission = Admission(config, self.clock, self.writer, self.metrics, quotas=Quotas(config.quota_settings))
        self._n = 0

    def fill(self, waiting: int) -> None:
        """Let so many commands wait."""
        while self.writer.waiting < waiting:
            self._n += 1
            draft = Draft(self._n, "ann", "x", "bob", 0, f"k{self._n}", "text", b"1", Timestamp(1))
            self.writer.enqueue(draft, lambda _: None)

    def waits(self, caller: Caller, cid: str = "") -> int:
        """Return what the caller is told to wait for a message; 0: it passed."""
        try:
            self.admission.admit(caller, "send", cid)
        except RateLimited as error:
            (told,) = re.findall(r"in (\d+) ms", error.message)
            return int(error.detail["retry_after_ms"]) if told == str(error.detail["retry_after_ms"]) else -1
        return 0

    async def look(self) -> list[Work]:
        """Let it look at the writer; return what is dropped then."""
        await asyncio.sleep(0.01)
        return [work for work in WORKS if not self.admission.does(work)]


@asynccontextmanager
async def watched(desk: Desk) -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(desk.admission.run())
        yield desk
        task.cancel()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitting, "OBSERVE_MS", 1)


@pytest.mark.spec("AR-5")
def test_each_device_has_its_share_of_its_users():
    """The device's limit is told first, then the user's; a token comes back after the time that was told."""
    desk = Desk(user_calls_per_second=10, user_calls_burst=5, device_calls_per_second=10, device_calls_burst=3)
    assert [desk.waits(ANN) for _ in range(4)] == [0, 0, 0, 100]
    assert [desk.waits(LAPTOP) for _ in range(3)] == [0, 0, 100]
    assert desk.waits(BOB) == 0
    desk.clock.advance(100)
    assert [desk.waits(ANN), desk.waits(ANN)] == [0, 100]
    assert desk.metrics.rate_limited._value.get() == 3


@pytest.mark.spec("AR-5")
def test_a_conversation_is_limited_whoever_sends():
    """By its cid; a name that is malformed is no conversation."""
    desk = Desk(conversation_calls_per_second=1, conversation_calls_burst=2)
    assert [desk.waits(ANN, "7"), desk.waits(BOB, "7"), desk.waits(BOB, "7")] == [0, 0, 1_000]
    assert [desk.waits(BOB, "8"), desk.waits(BOB, "07"), desk.waits(BOB, "x"), desk.waits(BOB)] == [0, 0, 0, 0]


def test_backends_and_reading_have_no_quota():
    """What is typed has one."""
    desk = Desk(user_calls_per_second=1, user_calls_burst=1)
    for _ in range(5):
        assert desk.waits(BACKEND) == 0
        desk.admission.admit(ANN, "read", "1")
    desk.admission.admit(ANN, "moment", "1")
    with pytest.raises(RateLimited):
        desk.admission.admit(ANN, "moment", "1")


@pytest.mark.spec("AR-5")
async def test_the_least_important_is_dropped_first_and_messages_last():
    """One kind after the other as the queue fills; what is dropped is not even begun."""
    told: list[str] = []
    desk = Desk()
    typing = desk.admission.shedding(lambda users, _: told.extend(users), Work.TYPING)
    receipts = desk.admission.shedding(lambda users, _: told.extend(users), Work.RECEIPTS)
    async with watched(desk):
        for dropped, work in enumerate(WORKS):
            desk.fill(round(DROPPED_AT[work] * 100) - 1)
            assert await desk.look() == list(WORKS[:dropped])
            typing(["typing"], b"")
            receipts(["receipts"], b"")
            assert desk.waits(ANN) == 0
            desk.fill(round(DROPPED_AT[work] * 100))
            assert await desk.look() == list(WORKS[: dropped + 1])
        assert told == ["typing", "receipts", "receipts", "receipts"]
        for caller in (ANN, BACKEND):
            with pytest.raises(Overloaded) as refused:
                desk.admission.admit(caller, "send", "")
            assert refused.value.detail["retry_after_ms"] >= 500
        desk.admission.admit(ANN, "read", "")
        assert desk.metrics.overloaded._value.get() == 2


async def test_everything_comes_back_one_after_the_other():
    """After a time of calm each, messages first."""
    desk = Desk()
    async with watched(desk):
        desk.fill(100)
        assert await desk.look() == list(WORKS)
        await desk.writer.close()
        assert desk.writer.waiting == 0
        assert await desk.look() == list(WORKS)
        for left in range(4, -1, -1):
            desk.clock.advance(2_000)
            assert await desk.look() == list(WORKS[:left])


async def test_a_disk_that_stands_still_is_pressure():
    """Commands that wait behind a commit that does not end, though they are few; and slow commits are remembered."""
    desk = Desk(append_wait_max_ms=1_000)
    async with watched(desk):
        desk.fill(1)
        assert await desk.look() == []
        desk.admission.committed(960)
        assert await desk.look() == list(WORKS)
        with pytest.raises(Overloaded) as refused:
            desk.admission.admit(ANN, "send", "")
        assert refused.value.detail["retry_after_ms"] == 960
