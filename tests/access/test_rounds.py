"""When audits are due: by their interval, and soon after a process of the message services is back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from access.config import AccessConfig
from access.inboxes import Inboxes
from access.metrics import AccessMetrics
from access.rounds import SOON_MS, Rounds
from base.metrics import Metrics
from im.client import Ends, ImClient
from tests.access.channel_cluster import simulated
from tests.access.client_nodes import FakeIm
from tests.access.conversation_nodes import running

INTERVAL_MS = 10_000


async def times(*calls_ms: int, until_ms: int, interval_ms: int = INTERVAL_MS) -> list[int]:
    """Return when rounds begin, in ms, if `come_soon` is called at these times."""
    loop = asyncio.get_running_loop()
    began, seen = loop.time(), list[int]()
    rounds = Rounds(interval_ms)
    for at in calls_ms:
        loop.call_later(at / 1000, rounds.come_soon)

    async def go_on() -> None:
        while True:
            await rounds.next()
            seen.append(round((loop.time() - began) * 1000))

    try:
        async with asyncio.timeout(until_ms / 1000):
            await go_on()
    except TimeoutError:
        return seen
    raise AssertionError


@simulated
async def test_rounds_come_by_their_interval() -> None:
    """However short it is."""
    assert await times(until_ms=35_000) == [10_000, 20_000, 30_000]
    assert await times(until_ms=1_600, interval_ms=500) == [500, 1_000, 1_500]


@simulated
async def test_a_round_that_is_called_for_comes_soon_and_the_next_one_an_interval_later() -> None:
    """At once, unless there was one within a second; who calls twice is heard once."""
    assert await times(4_000, 4_000, until_ms=25_000) == [4_000, 14_000, 24_000]
    assert await times(4_000, 4_001, 4_002, until_ms=16_000) == [4_000, 4_000 + SOON_MS, 15_000]
    assert await times(10, until_ms=9_000) == [SOON_MS]


@simulated
async def test_what_a_process_did_not_push_before_it_died_is_found_when_it_is_back() -> None:
    """And not an audit interval later: of conversations that are followed."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running(AccessConfig(audit_interval_ms=INTERVAL_MS)) as node:
        ann = node.join("ann")
        await ann.subscribe()
        await asyncio.sleep(2 * SOON_MS / 1000)
        node.im.store()
        for listener in node.im.when_connected:
            listener()
        await node.im.audit()
        assert ann.seen == [1]
        assert loop.time() - began == 2 * SOON_MS / 1000


class Asked(FakeIm):
    """Message services that note when heads are asked for, in ms."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[int] = []

    async def heads(self, users: Sequence[str]) -> Ends:
        self.at.append(round(asyncio.get_running_loop().time() * 1000))
        return await super().heads(users)


@simulated
async def test_timelines_are_compared_then_too() -> None:
    """By the same rule."""
    metrics = AccessMetrics(Metrics("access-1"), node="access-1", connections=lambda: 0)
    im = Asked()
    inboxes = Inboxes(AccessConfig(audit_interval_ms=INTERVAL_MS), cast("ImClient", im), metrics, node="access-1")
    auditing = asyncio.ensure_future(inboxes.run())
    began = round(asyncio.get_running_loop().time() * 1000)
    await asyncio.sleep(4)
    (listener,) = im.when_connected
    listener()
    await asyncio.sleep(12)
    auditing.cancel()
    assert [at - began for at in im.at] == [4_000, 14_000]
