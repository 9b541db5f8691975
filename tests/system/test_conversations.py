"""Conversations as stock SDK clients follow them: from the head, on from a position at another node, and not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import centrifuge
import pytest

from access.config import AccessConfig
from access.core.protocol import ClientError
from roadstead.config import Config
from tests.system.conftest import SETTLE_S, Connect, StockClient, System, eventually, running

QUICK = Config(access=AccessConfig(audit_interval_ms=500, conversations_max=2))


class Follower(centrifuge.SubscriptionEventHandler):
    """One subscription to a conversation, and what it was told."""

    def __init__(self, client: StockClient, cid: int, since: centrifuge.StreamPosition | None = None) -> None:
        self.seen: list[tuple[int, Any]] = []
        """Seq and body of each message."""
        self.starts: list[centrifuge.SubscribedContext] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def state(_channel: str) -> centrifuge.StreamPosition:
            assert since is not None
            return since

        self.subscription = client.sdk.new_subscription(
            f"conv:{cid}", events=self, recoverable=True, get_state=state if since is not None else None
        )

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self.starts.append(ctx)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        assert ctx.pub.offset == ctx.pub.data["seq"]
        self.seen.append((ctx.pub.offset, ctx.pub.data["body"]))

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        if not self.ended.done():
            self.ended.set_result(ctx.code)

    @property
    def place(self) -> centrifuge.StreamPosition:
        """Where to go on from."""
        start = self.starts[-1].stream_position
        assert start is not None
        return centrifuge.StreamPosition(self.seen[-1][0] if self.seen else start.offset, start.epoch)

    async def start(self) -> Follower:
        await self.subscription.subscribe()
        await self.subscription.ready(SETTLE_S)
        return self

    async def has(self, *seen: tuple[int, Any]) -> None:
        """Wait until exactly these came, in this order."""

        async def look() -> bool:
            assert self.seen == list(seen)[: len(self.seen)]
            return len(self.seen) == len(seen)

        await eventually(look)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data", QUICK) as made:
        yield made


async def test_a_conversation_is_followed_and_recovered_at_another_node(system: System, connect: Connect) -> None:
    """From the head on; what came between two connections follows once, before what comes then."""
    alice = await connect("alice", device="phone")
    cid = (await alice.send("bob", "m-1", "one"))["cid"]
    first = await Follower(alice, cid).start()
    await alice.send("bob", "m-2", "two")
    await system.send("bob", "alice", "m-3", "three")
    await first.has((2, "two"), (3, "three"))
    place = first.place
    await first.subscription.unsubscribe()
    await system.send("bob", "alice", "m-4", "four")

    again = await connect("alice", device="laptop", candidate=1)
    second = await Follower(again, cid, place).start()
    assert second.starts[0].recovered
    await second.has((4, "four"))
    await alice.send("bob", "m-5", "five")
    await second.has((4, "four"), (5, "five"))
    assert first.seen == [(2, "two"), (3, "three")]


async def test_both_sides_at_different_nodes_get_the_same(connect: Connect) -> None:
    """Whoever sends, whichever node it is at."""
    alice = await connect("alice")
    cid = (await alice.send("bob", "m-0", 0))["cid"]
    bob = await connect("bob", candidate=1)
    sides = [await Follower(alice, cid).start(), await Follower(bob, cid).start()]
    for number in range(1, 21):
        sender, to = (alice, "bob") if number % 2 else (bob, "alice")
        await sender.send(to, f"m-{number}", number)
    for side in sides:
        await side.has(*((number + 1, number) for number in range(1, 21)))
    history = await sides[1].subscription.history(limit=3, since=centrifuge.StreamPosition(2, sides[1].place.epoch))
    assert [publication.offset for publication in history.publications] == [3, 4, 5]
    assert history.offset == 21


async def test_a_stranger_gets_103(connect: Connect) -> None:
    """To a conversation of others, and to one that there is not; neither its history."""
    alice = await connect("alice")
    cid = (await alice.send("bob", "m-1"))["cid"]
    eve = await connect("eve")
    for number in (cid, str(int(cid) + 1)):
        refused = Follower(eve, number)
        await refused.subscription.subscribe()
        assert await asyncio.wait_for(refused.ended, SETTLE_S) == ClientError.PERMISSION_DENIED.value[0]
        assert refused.starts == []
    await alice.send("bob", "m-2")
    assert refused.seen == []


async def test_more_than_a_client_may_follow_is_refused(connect: Connect) -> None:
    """106, until it leaves one."""
    alice = await connect("alice")
    cids = [(await alice.send(to, f"to-{to}"))["cid"] for to in ("bob", "cat", "dan")]
    one, _ = [await Follower(alice, cid).start() for cid in cids[:2]]
    refused = Follower(alice, cids[2])
    await refused.subscription.subscribe()
    assert await asyncio.wait_for(refused.ended, SETTLE_S) == ClientError.LIMIT_EXCEEDED.value[0]
    await one.subscription.unsubscribe()
    await refused.subscription.subscribe()
    await refused.subscription.ready(SETTLE_S)
    await alice.send("dan", "again", "hi")
    await refused.has((2, "hi"))
