"""Who hides looks like who left, to stock SDK clients and over HTTP: whatever is asked, told, or not told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import SETTLE_S, Connect, StockClient, System, eventually, running
from tests.system.test_presence import GRACE_MS, QUICK, look_at, set_presence, view

INVISIBLE = {"state": "invisible"}
DENYING = {"audience": {"mode": "listed", "users": ["zoe"]}}


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path / "data", QUICK) as made:
        yield made


async def connect_hidden(system: System, connect: Connect, user: str, presence: dict[str, Any]) -> StockClient:
    """Connect as somebody who is hidden from the very first moment."""
    answer = await system.access(user)
    client = StockClient(answer["candidates"][0]["urls"]["websocket"], answer["ticket"], data={"presence": presence})
    connect.clients.append(client)
    await client.sdk.connect()
    await client.sdk.ready(SETTLE_S)
    return client


async def is_offline(system: System, user: str) -> bool:
    return (await system.status(user))["state"] == "offline"


@pytest.mark.parametrize("presence", [INVISIBLE, DENYING])
async def test_the_time_of_who_left_does_not_change_when_it_comes_back_hidden(
    system: System, connect: Connect, presence: dict[str, Any]
) -> None:
    """Nor when it leaves again: nobody is told anything, and whoever asks sees the same as before."""
    alice, bob = await connect("alice"), await connect("bob")
    look = await look_at(alice, "bob")
    await bob.sdk.disconnect()
    await look.has("online", "offline")
    left = look.seen[-1]
    assert left["last_seen"] > 0

    async def looks_the_same() -> None:
        assert await view(system, "bob", "alice") == {"user": "bob", **left}
        got = (await alice.sdk.rpc("presence.get", {"users": ["bob"]})).data["presences"]
        assert got == [{"user": "bob", **left}]
        assert (await look_at(await connect("alice", device="another"), "bob")).seen == [left]

    bob = await connect_hidden(system, connect, "bob", presence)
    assert (await system.status("bob"))["state"] != "offline"
    await looks_the_same()
    await set_presence(bob, state="invisible")
    await looks_the_same()
    await bob.sdk.disconnect()
    await eventually(lambda: is_offline(system, "bob"))
    await looks_the_same()
    await asyncio.sleep(2 * GRACE_MS / 1000)
    assert look.seen[1:] == [left]


async def test_who_never_came_looks_like_who_was_never_seen(system: System, connect: Connect) -> None:
    """Without a time, before, during and after."""
    alice = await connect("alice")
    looks = [await look_at(alice, user) for user in ("bob", "nobody")]
    bob = await connect_hidden(system, connect, "bob", INVISIBLE)
    assert (await view(system, "bob", "alice"))["last_seen"] is None
    await bob.sdk.disconnect()
    await eventually(lambda: is_offline(system, "bob"))
    assert (await view(system, "bob", "alice"))["last_seen"] is None
    assert looks[0].seen == looks[1].seen == [{"state": "offline", "last_seen": None}]


@pytest.mark.parametrize("presence", [INVISIBLE, DENYING])
async def test_who_hides_is_told_as_gone_at_the_pace_of_who_leaves(connect: Connect, presence: dict[str, Any]) -> None:
    """After the grace, with the time at which it hid; and not at all if it shows itself before that."""
    alice, bob, zoe = await connect("alice"), await connect("bob"), await connect("zoe")
    looks = [await look_at(alice, user) for user in ("bob", "zoe")]
    loop = asyncio.get_running_loop()
    began = loop.time()
    await zoe.sdk.disconnect()
    await set_presence(bob, **presence)
    assert [look.states for look in looks] == [["online"], ["online"]]
    for look in looks:
        await look.has("online", "offline")
    assert loop.time() - began > GRACE_MS / 1000
    hid, left = (look.seen[-1]["last_seen"] for look in looks)
    assert abs(hid - left) < 1_000
    await set_presence(bob, state="online", audience={"mode": "everyone"})
    await looks[0].has("online", "offline", "online")
    await set_presence(bob, **presence)
    await set_presence(bob, state="busy", audience={"mode": "everyone"})
    await looks[0].has("online", "offline", "online", "busy")


async def test_the_end_of_a_device_that_was_hidden_by_another_is_not_told(system: System, connect: Connect) -> None:
    """One device denies for all of them: when the others go, in whatever order, only the hiding shows."""
    alice = await connect("alice")
    phone, desk = await connect("bob", device="phone"), await connect("bob", device="desk")
    look = await look_at(alice, "bob")
    await set_presence(desk, **DENYING)
    await look.has("online", "offline")
    hid = look.seen[-1]
    for client in (phone, desk):
        await client.sdk.disconnect()
    await eventually(lambda: is_offline(system, "bob"))
    assert await view(system, "bob", "alice") == {"user": "bob", **hid}
    await asyncio.sleep(2 * GRACE_MS / 1000)
    assert look.seen[1:] == [hid]
