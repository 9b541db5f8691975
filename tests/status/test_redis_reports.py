"""An access node's sessions on their way to Redis: who is told that which write did it, and what failures hold up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from base.clock import SystemClock, Timestamp
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from status.api import Opened, State
from status.config import StatusConfig
from status.core.refreshing import BATCH_MAX, key_of, lane_of
from status.redis import RedisSessionReports
from status.redis_link import Call, Failed

TTL_MS = 3_000
INTERVAL_MS = TTL_MS // 3


class Store:
    """In the place of Redis: holds its answers back until they are asked for, and fails for whom the test says."""

    def __init__(self) -> None:
        self.sent: list[list[Call]] = []
        self.is_lost: Callable[[bytes], bool] = lambda _: False
        self.permits: asyncio.Semaphore | None = None
        """Each batch waits for one of them, if there are any."""

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def execute(self, calls: Sequence[Call], *, deadline_ms: int) -> list[Any]:
        del deadline_ms
        self.sent.append([*calls])
        if self.permits is not None:
            await self.permits.acquire()
        return [Failed("lost") if self.is_lost(call.key) else 1 for call in calls]

    async def until_sent(self, batches: int) -> None:
        async with asyncio.timeout(5):
            while len(self.sent) < batches:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[RedisSessionReports]:
    site = Site(
        name=NodeId("access-1"),
        incarnation=Incarnation(1),
        host="127.0.0.1",
        port=0,
        registry=MemoryRegistry(SystemClock()),
        clock=SystemClock(),
        trust=Trust.of_key("peer-key"),
        credentials=Credentials({}),
        config=NodeConfig(),
    )
    config = StatusConfig(backend="redis", redis_url="redis://127.0.0.1:1", redis_ttl_ms=TTL_MS)
    reports = RedisSessionReports(config, site)
    reports._link = store  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reports.run())
        await reports.wait_ready()
        store.sent.clear()
        yield reports
        task.cancel()


def opened(user: str, *, conn_seq: int = 1, state: State = "online") -> Opened:
    return Opened(user, f"{user}/1", conn_seq, "phone", "ios", state, Timestamp(7))


async def test_a_write_confirms_what_it_carried_and_not_a_later_change():
    """Two changes of one session, the second one while the first is under way."""
    store = Store()
    async with running(store) as reports, asyncio.TaskGroup() as tasks:
        store.permits = asyncio.Semaphore(0)
        first = tasks.create_task(reports.open(opened("alice"), deadline_ms=5_000))
        await store.until_sent(1)
        second = tasks.create_task(reports.open(opened("alice", state="busy"), deadline_ms=5_000))
        await asyncio.sleep(0)
        store.permits.release()
        assert await first
        await store.until_sent(2)
        await asyncio.sleep(0.02)
        assert not second.done()
        store.permits.release()
        assert await second
        store.permits = None
    assert not reports._confirming


async def test_a_write_confirms_what_it_replaced():
    """Of changes that one write carries, the last one stands for all; whoever waits too long is told so."""
    store = Store()
    async with running(store) as reports, asyncio.TaskGroup() as tasks:
        store.permits = asyncio.Semaphore(0)
        late = tasks.create_task(reports.open(opened("bob"), deadline_ms=20))
        states: list[State] = ["online", "away", "busy", "away"]
        waiting = [tasks.create_task(reports.open(opened("alice", state=state), deadline_ms=5_000)) for state in states]
        old = tasks.create_task(reports.open(opened("alice", conn_seq=0), deadline_ms=5_000))
        assert not await late
        for _ in range(20):
            store.permits.release()
        assert [await one for one in (*waiting, old)] == [True] * 5
        store.permits = None
    assert not reports._confirming


async def test_users_whose_writes_fail_do_not_keep_the_others_from_being_refreshed():
    """A part of the store is away, with two batches of users of one lane; the others of it are refreshed in time."""
    store = Store()
    store.is_lost = lambda key: b"lost" in key
    lost = [name for name in (f"lost-{number}" for number in range(40_000)) if lane_of(name) == 0][: 2 * BATCH_MAX]
    well = [name for name in (f"well-{number}" for number in range(4_000)) if lane_of(name) == 0][:100]
    assert len(lost) == 2 * BATCH_MAX
    async with running(store) as reports:
        for user in (*lost, *well):
            reports.report(opened(user))
        await asyncio.sleep(0.2)
        store.sent.clear()
        await asyncio.sleep(3 * INTERVAL_MS / 1000)
        sent = [call.key for batch in store.sent for call in batch]
        assert all(sent.count(key_of(user)) >= 2 for user in well)
        assert {key_of(user) for user in lost} <= set(sent), "they are tried again"
        assert len(store.sent) < 200, "and not without a pause"
        store.is_lost = lambda _: False
        async with asyncio.timeout(5):
            while reports._lanes[0].is_failing:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.02)
    assert reports._lanes[0].failures > 0
