"""The Python wrapper: channels, positions and sends, over the connections that there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from base.errors import Conflict, DeadlineExceeded, PermissionDenied
from roadstead.client import Incoming, Position
from tests.system.client_application import Application, becomes
from tests.system.fake_access import INBOX, World, fake_world

PRESENCE = "presence:alice"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world("one", "two", "three") as made:
        yield made


@pytest.fixture
async def app(world: World) -> AsyncIterator[Application]:
    made = Application(world)
    yield made
    await made.client.close()


async def test_a_channel_is_followed_over_connections_from_its_position(world: World, app: Application) -> None:
    """A node that knows the position tells what came after it, another one its state anew."""
    await app.client.connect()
    await app.client.subscribe(PRESENCE, app.take_other)
    await becomes(lambda: app.other == [("online", True)])
    await world.nodes["one"].set_state(PRESENCE, "busy")
    await becomes(lambda: app.other[1:] == [("busy", False)])
    assert app.client.positions[PRESENCE] == Position("view-of-one", 2)
    await app.breaks()
    await becomes(lambda: ("one", PRESENCE, "view-of-one", 2) in world.asked)
    await world.nodes["one"].set_state(PRESENCE, "away")
    await becomes(lambda: app.other[2:] == [("away", False)])
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await becomes(lambda: app.other[3:] == [("online", False)])
    await world.nodes["two"].set_state(PRESENCE, "busy")
    await becomes(lambda: app.other[4:] == [("busy", False)])
    assert ("two", PRESENCE, "view-of-one", 3) in world.asked


async def test_a_channel_whose_position_is_refused_begins_anew_and_says_so(world: World, app: Application) -> None:
    """The application reads its state again where `is_start` says so."""
    world.unrecoverable.add(PRESENCE)
    await app.client.connect()
    await app.client.subscribe(PRESENCE, app.take_other, Position("of old", 7))
    await becomes(lambda: app.other == [("online", True)])
    assert app.client.positions[PRESENCE] == Position("view-of-one", 1)


async def test_a_refused_channel_is_told_and_the_rest_goes_on(world: World, app: Application) -> None:
    """It may be followed again."""
    world.refused.add(PRESENCE)
    await app.client.connect()
    await app.client.subscribe(PRESENCE, app.take_other)
    await becomes(lambda: app.ends)
    assert [(type(end), end.detail) for end in app.ends] == [(PermissionDenied, {"channel": PRESENCE})]
    world.refused.clear()
    await app.client.subscribe(PRESENCE, app.take_other)
    await becomes(lambda: app.other)
    await world.publish("a")
    await app.has("a")


async def test_a_channel_ended_by_the_server_is_told(world: World, app: Application) -> None:
    """The server unsubscribes with a code below 2500 for good."""
    await app.client.connect()
    await app.client.subscribe(PRESENCE, app.take_other)
    await becomes(lambda: app.other)
    (session,) = world.nodes["one"].sessions
    await session.push({"channel": PRESENCE, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}})
    await becomes(lambda: app.ends)
    assert PRESENCE not in app.client.positions


async def test_a_channel_that_was_left_is_not_followed_by_the_next_connection(world: World, app: Application) -> None:
    """Nor by this one."""
    await app.client.connect()
    await app.client.subscribe(PRESENCE, app.take_other)
    await becomes(lambda: app.other)
    await app.client.unsubscribe(PRESENCE)
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")
    assert [name for name, channel, _, _ in world.asked if channel == PRESENCE] == ["one"]
    assert len(app.other) == 1


async def test_a_channel_may_be_followed_before_there_is_a_connection(app: Application) -> None:
    """It begins with the first one."""
    await app.client.subscribe(PRESENCE, app.take_other)
    await app.client.connect()
    await becomes(lambda: app.other == [("online", True)])
    await app.client.close()
    await app.client.unsubscribe(PRESENCE)


async def test_publications_without_an_offset_are_handed_over_as_they_come(world: World, app: Application) -> None:
    """There is no position to compare them by."""
    await app.client.connect()
    await app.client.subscribe(PRESENCE, app.take_other)
    await becomes(lambda: app.other)
    for data in ("x", "x"):
        await world.nodes["one"].tell(PRESENCE, 0, data)
    await becomes(lambda: app.other[1:] == [("x", False), ("x", False)])
    assert app.client.positions[PRESENCE] == Position("view-of-one", 1)


async def test_a_refused_inbox_is_an_end(world: World, app: Application) -> None:
    """Without it there is nothing to connect for."""
    world.refused.add(INBOX)
    with pytest.raises(PermissionDenied):
        await app.client.connect()


async def test_a_client_far_behind_pages_through_the_timeline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes: each page that comes is a sign of life."""
    monkeypatch.setattr("roadstead.client.connection.DEADLINE_S", 0.5)
    await world.publish(*range(100))
    world.recovery_max, world.page_max = 10, 3
    app = Application(world)

    async def slow(incoming: Incoming) -> None:
        await asyncio.sleep(0.01)
        app.inbox.append(incoming.data)

    app.client._inbox.handler = slow
    await app.client.connect()
    await app.has(*range(100))
    assert world.connects == ["one"]
    assert world.calls["im.sync"] == 34
    await app.client.close()


async def test_after_the_servers_data_was_replaced_the_timeline_is_read_from_its_beginning(world: World) -> None:
    """What the position meant is gone."""
    await world.publish("x", "y")
    world.epoch = "second"
    app = Application(world, position=Position("first", 1))
    await app.client.connect()
    await app.has("x", "y")
    assert app.client.position == Position("second", 2)
    await app.client.close()


async def test_the_old_connection_of_a_move_is_not_believed_about_data_that_was_replaced(
    world: World, app: Application
) -> None:
    """Its offsets are of another epoch than the position has by then."""
    await app.client.connect()
    await world.publish("a")
    await app.has("a")
    world.timeline, world.epoch = ["x", "y"], "second"
    turns: list[str] = []

    async def tell_of_old() -> None:
        turns.append("asked")
        if len(turns) == 2:  # the timeline was paged through
            await world.nodes["one"].tell(INBOX, 9, "of old")
            assert await app.client.call("where", {}) == "one", "and that was read by now"

    world.nodes["two"].before_subscribe = tell_of_old
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")
    assert len(turns) == 2
    await app.has("a", "x", "y")


async def test_an_inbox_whose_data_is_replaced_while_it_is_read_begins_anew(world: World, app: Application) -> None:
    """The server ends the subscription, and the SDK subscribes again."""
    await app.client.connect()
    await world.publish("a")
    await app.has("a")
    world.timeline, world.epoch = ["x", "y"], "second"
    (session,) = world.nodes["one"].sessions
    await session.push({"channel": INBOX, "unsubscribe": {"code": 2500, "reason": "insufficient state"}})
    await app.has("a", "x", "y")
    assert world.connects == ["one"]


async def test_a_message_is_sent_again_under_the_same_id_while_no_answer_comes(world: World, app: Application) -> None:
    """A temporary error is no answer; another one is."""
    await app.client.connect()
    world.failures = [{"code": 100, "message": "internal server error", "temporary": True}]
    assert await app.client.send("alice", "hi", client_msg_id="one") == {"is_new": True, "id": "one"}
    assert world.calls["im.send"] == 2
    world.failures = [{"code": 1303, "message": "another message had this id"}]
    with pytest.raises(Conflict):
        await app.client.send("alice", "hi", client_msg_id="one")


async def test_a_send_without_any_answer_says_that_the_outcome_is_unknown(world: World, app: Application) -> None:
    """After five tries."""
    await app.client.connect()
    world.failures = [{"code": 100, "message": "internal server error", "temporary": True}] * 5
    with pytest.raises(DeadlineExceeded):
        await app.client.send("alice", "hi")
