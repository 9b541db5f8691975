"""Connections and subscriptions with the application's own tokens: let in, renewed, ended when nobody renews them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import centrifuge
import jwt
import pytest

from access.api import transport_urls
from access.config import AccessConfig
from access.core.namespaces import Namespace
from roadstead.config import Config
from tests.system.conftest import SETTLE_S, StockClient, System, eventually, running

KEY = "a secret of the application's backend, long enough"
NEWS = Namespace(name="news", history_size=10, allow_publish="subscriber", allow_history="subscriber")
ACCESS = AccessConfig(token_key=KEY, expired_deadline_ms=1_000, namespaces=(NEWS,))


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data", Config(access=ACCESS)) as made:
        yield made


def token(user: str, *, key: str = KEY, seconds: int | None = None, **claims: Any) -> str:
    if seconds is not None:
        claims["exp"] = int(time.time()) + seconds
    return jwt.encode({"sub": user, **claims}, key, algorithm="HS256")


def client(system: System, shown: str, fresh: str | None = None, *, node: int = 0) -> StockClient:
    async def get_token() -> str:
        assert fresh is not None
        return fresh

    url = transport_urls(sorted(system.endpoints.clients.values())[node])["websocket"]
    return StockClient(url, shown, get_token if fresh is not None else None)


async def connected(made: StockClient) -> StockClient:
    await made.sdk.connect()
    await made.sdk.ready(SETTLE_S)
    return made


async def test_a_token_lets_in_as_often_as_it_is_shown(system: System) -> None:
    """Other than a ticket; and its claims say who, on what, and where else the server subscribes."""
    shown = token("alice", device="phone", platform="ios", info={"name": "Alice"}, channels=["news:all"])
    for _ in range(2):
        alice = await connected(client(system, shown))
        async with asyncio.timeout(SETTLE_S):
            while len(alice.subscribed) < 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        assert {ctx.channel for ctx in alice.subscribed} == {"inbox:alice", "news:all"}
        await eventually(lambda: _has_session(system, "alice", "phone", "ios"))
        await alice.sdk.disconnect()


async def _has_session(system: System, user: str, device: str, platform: str) -> bool:
    sessions = (await system.status(user))["sessions"]
    return {(session["device"], session["platform"]) for session in sessions} == {(device, platform)}


async def test_what_is_no_token_of_the_application_is_refused(system: System) -> None:
    """Another key, another algorithm, no user, not yet valid: 3500, and the SDK stops."""
    nobody = jwt.encode({"name": "alice"}, KEY, algorithm="HS256")
    later = token("alice", nbf=int(time.time()) + 3_600)
    for shown in (token("alice", key="x" * 40), jwt.encode({"sub": "alice"}, "", algorithm="none"), nobody, later):
        alice = client(system, shown)
        await alice.sdk.connect()
        ctx = await asyncio.wait_for(alice.disconnected, SETTLE_S)
        assert ctx.code == 3500


async def test_a_connection_is_renewed_before_its_token_expires(system: System) -> None:
    """The SDK asks its application for a newer one in time; nobody is cut."""
    alice = await connected(client(system, token("alice", seconds=2), token("alice", seconds=3_600)))
    await asyncio.sleep(5)
    assert not alice.reconnecting.is_set()
    assert not alice.errors
    assert alice.sdk.state is centrifuge.ClientState.CONNECTED
    await alice.sdk.disconnect()


async def test_a_connection_that_nobody_renews_is_closed(system: System) -> None:
    """With 3005, after the time that it has for that; the SDK comes back, and is told that its token is expired."""
    alice = client(system, token("alice", seconds=1))
    closed = []

    class Events(centrifuge.ClientEventHandler):
        async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
            closed.append(ctx.code)

        async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
            closed.append(ctx.code)

    alice.sdk.events = Events()
    await connected(alice)
    async with asyncio.timeout(SETTLE_S):
        while 3005 not in closed:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)
    await alice.sdk.disconnect()


async def test_a_connection_is_not_renewed_with_another_users_token(system: System) -> None:
    """Whoever holds the connection would become somebody else."""
    alice = await connected(client(system, token("alice", seconds=2), token("bob", seconds=3_600)))
    assert (await asyncio.wait_for(alice.disconnected, SETTLE_S)).code == 101
    assert (await system.status("bob"))["state"] == "offline"


async def test_a_subscription_is_renewed_or_ended(system: System) -> None:
    """With the tokens of a channel: renewed in time by the SDK, refused for others, ended when nobody renews it."""
    alice = await connected(client(system, token("alice")))
    renewed: list[str] = []

    async def get_token(channel: str) -> str:
        renewed.append(channel)
        return token("alice", channel=channel, seconds=2 if len(renewed) == 1 else 3_600)

    subscription = alice.sdk.new_subscription("news:all", get_token=get_token)
    await subscription.subscribe()
    await subscription.ready(SETTLE_S)
    await asyncio.sleep(4)
    assert len(renewed) == 2
    assert subscription.state is centrifuge.SubscriptionState.SUBSCRIBED

    other = alice.sdk.new_subscription("news:other", token=token("alice", channel="news:all"))
    await other.subscribe()
    async with asyncio.timeout(SETTLE_S):
        while other.state is not centrifuge.SubscriptionState.UNSUBSCRIBED:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)
    await alice.sdk.disconnect()


async def test_tickets_and_tokens_live_side_by_side(system: System) -> None:
    """A client of the scheduler's and one of the application's talk in one channel, at two nodes."""
    ticket = (await system.access("carol"))["ticket"]
    carol = await connected(client(system, ticket, node=0))
    alice = await connected(client(system, token("alice"), node=1))
    heard: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    inside = carol.sdk.new_subscription("news:all", token=token("carol", channel="news:all"))

    class Events(centrifuge.SubscriptionEventHandler):
        async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
            heard.set_result(ctx.pub.data)

    inside.events = Events()
    await inside.subscribe()
    await inside.ready(SETTLE_S)
    outside = alice.sdk.new_subscription("news:all", token=token("alice", channel="news:all"))
    await outside.subscribe()
    await outside.ready(SETTLE_S)
    await outside.publish({"hello": "carol"})
    assert await asyncio.wait_for(heard, SETTLE_S) == {"hello": "carol"}
    with pytest.raises(centrifuge.CentrifugeError):
        await carol.sdk.publish("news:all", {"x": "y" * 70_000})
    await alice.sdk.disconnect()
    await carol.sdk.disconnect()
