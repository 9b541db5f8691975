"""The whole path with stock clients: access, presence, sending, pushing, recovery, restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import centrifuge
import pytest

from tests.system.conftest import Connect, System, eventually, running


async def test_a_client_asks_for_access_and_gets_candidates_and_a_ticket(system: System) -> None:
    """Both access nodes are named, each once, and the decision explains itself when asked to."""
    answer = await system.access("alice", why="1")
    assert sorted(c["id"] for c in answer["candidates"]) == ["access-1", "access-2"]
    assert all(c["urls"]["websocket"].startswith("ws://127.0.0.1:") for c in answer["candidates"])
    assert answer["ticket"].count(".") == 2
    stages = {stage["stage"]: stage for stage in answer["why"]}
    assert list(stages) == ["locate", "filter", "rule", "arm", "region", "draw", "slot"]
    assert stages["draw"]["says"] == ", ".join(candidate["id"] for candidate in answer["candidates"])
    assert sum("candidate 1" in line for line in stages["draw"]["dropped"]) == 1
    assert "why" not in await system.access("alice")


async def test_a_session_is_visible_while_it_is_open(system: System, connect: Connect) -> None:
    """Online at every status node as soon as the connect is answered, offline soon after the close."""
    client = await connect("alice", device="phone", platform="ios")
    for node in range(3):
        status = await system.status("alice", node=node)
        assert status["state"] == "online"
        (session,) = status["sessions"]
        assert (session["device"], session["platform"]) == ("phone", "ios")
    await client.sdk.disconnect()
    await eventually(lambda: _is_offline(system, "alice"))


async def _is_offline(system: System, user: str) -> bool:
    return (await system.status(user))["state"] == "offline"


@pytest.mark.spec("PP-01")
async def test_a_message_reaches_the_receiver_wherever_it_is_connected(system: System, connect: Connect) -> None:
    """Sender and receiver on different access nodes; the push carries what was sent and where it stands."""
    alice = await connect("alice")
    here = (await system.status("alice"))["sessions"][0]["node"]
    bob = await connect("bob")
    while (await system.status("bob"))["sessions"][0]["node"] == here:
        await bob.sdk.disconnect()
        bob = await connect("bob")
    acknowledged = await alice.send("bob", "m-1", {"text": "hello"})
    (publication,) = await bob.wait_publications(1)
    assert publication.offset == 1
    assert publication.data["from"] == "alice"
    assert publication.data["body"] == {"text": "hello"}
    assert publication.data["client_msg_id"] == "m-1"
    assert (publication.data["mid"], publication.data["seq"]) == (acknowledged["mid"], 1)


@pytest.mark.spec("PP-01")
async def test_all_devices_of_both_users_see_the_message_once(connect: Connect) -> None:
    """Two devices of the receiver and the sender's other device."""
    alice, other = await connect("alice", device="phone"), await connect("alice", device="desk")
    bobs = [await connect("bob", device=f"d{n}") for n in range(2)]
    for number in range(20):
        await alice.send("bob", f"m-{number}")
    for client in (*bobs, other, alice):
        publications = await client.wait_publications(20)
        assert [p.data["client_msg_id"] for p in publications] == [f"m-{n}" for n in range(20)]


async def test_a_retry_is_acknowledged_with_the_first_place_and_pushed_once(connect: Connect) -> None:
    """Same key, same message: nothing new. Same key, another message: a conflict."""
    alice, bob = await connect("alice"), await connect("bob")
    first = await alice.send("bob", "m-1", "hello")
    again = await alice.send("bob", "m-1", "hello")
    assert first["is_new"] is True
    assert again == {**first, "is_new": False}
    with pytest.raises(centrifuge.ReplyError) as caught:
        await alice.send("bob", "m-1", "other")
    assert caught.value.code == 1303
    await alice.send("bob", "m-2", "end")
    publications = await bob.wait_publications(2)
    assert [p.data["body"] for p in publications] == ["hello", "end"]


@pytest.mark.spec("MD-04")
async def test_who_was_offline_recovers_at_connect_by_its_position(system: System, connect: Connect) -> None:
    """A fresh client with a kept position gets exactly what came after it, then what is new, each once."""
    for number in range(5):
        await system.send("alice", "bob", f"m-{number}", number)
    bob = await connect("bob")
    seen: list[int] = []
    all_here = asyncio.Event()

    class Events(centrifuge.SubscriptionEventHandler):
        async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
            seen.append(ctx.pub.data["body"])
            if len(seen) == 4:
                all_here.set()

    kept = bob.subscribed[0].stream_position
    assert kept is not None

    async def position(_channel: str) -> centrifuge.StreamPosition:
        return centrifuge.StreamPosition(offset=2, epoch=kept.epoch)

    inbox = bob.sdk.new_subscription("inbox:bob", events=Events(), recoverable=True, get_state=position)
    await inbox.subscribe()
    await inbox.ready()
    await system.send("alice", "bob", "m-5", 5)
    async with asyncio.timeout(5):
        await all_here.wait()
    assert seen == [2, 3, 4, 5]


async def test_a_client_that_lost_its_connection_recovers_by_itself(system: System, connect: Connect) -> None:
    """The same SDK object reconnects, with a new ticket, and gets what it missed in between."""
    bob = await connect("bob")
    await system.send("alice", "bob", "m-1", 1)
    await bob.wait_publications(1)
    assert bob.sdk._conn is not None
    bob.sdk._conn.transport.abort()
    await bob.reconnecting.wait()
    await system.send("alice", "bob", "m-2", 2)
    await bob.sdk.ready(10)
    await system.send("alice", "bob", "m-3", 3)
    publications = await bob.wait_publications(3)
    assert [p.data["body"] for p in publications] == [1, 2, 3]
    assert bob.subscribed[-1].recovered is True


async def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    """Stop and start from the same folder: timeline, positions and idempotency keys are all there."""
    async with running(tmp_path / "data") as system:
        connect = Connect(system)
        bob = await connect("bob")
        sent = [await system.send("alice", "bob", f"m-{n}", n) for n in range(3)]
        before = await bob.wait_publications(3)
        await connect.close()
    async with running(tmp_path / "data") as system:
        connect = Connect(system)
        bob = await connect("bob")
        assert (await system.send("alice", "bob", "m-0", 0)) == {**sent[0], "is_new": False}
        page = (await bob.sdk.rpc("im.sync", {"since": 0})).data
        assert [e["data"] for e in page["entries"]] == [p.data for p in before]
        assert (page["head"], page["has_more"]) == (3, False)
        await system.send("alice", "bob", "m-3", 3)
        (publication,) = await bob.wait_publications(1)
        assert publication.offset == 4
        await connect.close()


async def test_many_senders_to_one_receiver_arrive_in_timeline_order(connect: Connect) -> None:
    """200 sends from ten users at once: the receiver sees offsets 1 to 200, each once, each sender's in order."""
    bob = await connect("bob")
    senders = [await connect(f"user-{n}") for n in range(10)]

    async def send_all(index: int) -> None:
        for number in range(20):
            await senders[index].send("bob", f"{index}-{number}", [index, number])

    async with asyncio.TaskGroup() as tasks:
        for index in range(10):
            tasks.create_task(send_all(index))
    publications = await bob.wait_publications(200)
    assert [p.offset for p in publications] == list(range(1, 201))
    for index in range(10):
        assert [p.data["body"][1] for p in publications if p.data["body"][0] == index] == list(range(20))
