"""The Python wrapper with a view: what it reads by itself, and what its methods ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from base.errors import Conflict, NotFound
from roadstead.client import Client, Incoming, Position
from roadstead.client.conversation import Conversation
from roadstead.client.rows import Changed, Shown
from roadstead.client.view import PAGE, Listed, Redrawn, Told
from roadstead.client.viewer import Update
from tests.roadstead.view_world import CID, Log, seen
from tests.system.client_application import becomes
from tests.system.fake_access import INBOX, USER, World, fake_world

ANN = "ann"
CHANNEL = f"conv:{CID}"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roadstead.client.conversation.GAP_WAIT_MS", 30)
    monkeypatch.setattr("roadstead.client.view.GAP_WAIT_MS", 30)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world("one", "two") as made:
        yield made


class Services:
    """Message services with one conversation, whose other user is ann."""

    def __init__(self, world: World, *, is_group: bool = False, **listed: Any) -> None:
        self.world = world
        self.log = Log(is_group=is_group)
        self.listed: dict[str, Any] = {"peer": "" if is_group else ANN, "unread": 0, **listed}
        self.is_listed = True
        self.sent: dict[str, dict[str, Any]] = {}
        world.methods |= {"im.conversations": self.conversations, "im.history": self.history, "im.send": self.send}

    def conversations(self, arguments: Any) -> Any:
        del arguments
        documents = [self.log.document(**self.listed)] if self.is_listed else []
        answer = {"epoch": self.world.epoch, "timeline": len(self.world.timeline), "sync_version": 0}
        return {**answer, "total_unread": 0, "conversations": documents, "next": ""}

    def history(self, arguments: Any) -> Any:
        after, limit = arguments.get("after"), arguments["limit"]
        seqs = range(after + 1, after + 1 + limit) if after is not None else range(1, arguments["before"])[-limit:]
        return {"epoch": self.world.epoch, "head": len(self.log.entries), "entries": self.log.as_read(seqs)}

    def send(self, arguments: Any) -> Any:
        key = arguments["client_msg_id"]
        is_new = key not in self.sent
        if is_new:
            self.sent[key] = self.log.message(USER, arguments["body"], client_msg_id=key)
        entry = self.sent[key]
        return {"mid": entry["mid"], "cid": CID, "seq": entry["seq"], "at": entry["at"], "is_new": is_new}

    async def push(self, entry: dict[str, Any], **more: Any) -> None:
        """Tell it beside the timeline."""
        for node in self.world.nodes.values():
            await node.tell(INBOX, 0, entry | more)

    def reads(self, method: str = "im.history") -> list[Any]:
        return [arguments for name, arguments in self.world.arguments if name == method]


class Viewing:
    """An application that shows a view."""

    def __init__(self, world: World, **options: Any) -> None:
        self.updates: list[Update] = []
        self.inbox: list[Incoming] = []
        self.ends: list[Exception] = []
        self.client = Client(
            world.scheduler,
            user=USER,
            credential="token",
            on_message=self._take,
            on_end=self.ends.append,
            on_update=self.updates.append,
            **options,
        )

    async def _take(self, incoming: Incoming) -> None:
        self.inbox.append(incoming)

    def shown(self) -> list[tuple[int, Any]]:
        return [(u.row.seq, u.row.data["body"]) for u in self.updates if isinstance(u, Shown)]

    def conversation(self) -> Conversation:
        found = self.client.view.conversation(CID)
        assert found is not None
        return found

    async def shows(self, *rows: tuple[int, Any]) -> None:
        await becomes(lambda: self.client.view.conversation(CID) and seen(self.client.view) == list(rows))


@pytest.fixture
async def app(world: World) -> AsyncIterator[Viewing]:
    made = Viewing(world)
    yield made
    await made.client.close()


@pytest.fixture
def services(world: World) -> Services:
    return Services(world)


async def test_without_a_position_a_view_begins_with_the_list(world: World, services: Services, app: Viewing) -> None:
    """What was before is in the list; what came since the list was made follows."""
    for _ in range(5):
        await world.publish(services.log.message(ANN))
    services.listed["unread"] = 3
    await app.client.connect()
    assert app.client.position == Position("first", 5)
    assert seen(app.client.view) == services.log.shown(5)
    assert [incoming.is_start for incoming in app.inbox] == [True]
    assert app.client.view.total_unread() == 3
    await world.publish(services.log.message(ANN))
    await app.shows(*services.log.shown(5))
    assert app.shown() == services.log.shown(5)
    assert app.client.view.total_unread() == 4
    assert len(services.reads("im.conversations")) == 1


async def test_what_is_before_is_read_when_a_window_is_opened(services: Services, app: Viewing) -> None:
    """A page of it, and further ones when the application looks further back."""
    for _ in range(PAGE + 50):
        services.log.message(ANN)
    await app.client.connect()
    app.client.open_window("unknown")
    app.client.open_window(CID)
    await app.shows(*services.log.shown(50))
    assert Redrawn(CID) in app.updates
    document = await app.client.history(CID, before=50, limit=100)
    assert [entry["seq"] for entry in document["entries"]] == list(range(1, 50))
    assert seen(app.client.view) == services.log.shown()
    document = await app.client.history(CID, after=140, limit=4)
    assert [entry["seq"] for entry in document["entries"]] == [141, 142, 143, 144]


@pytest.mark.spec("MD-05")
async def test_a_position_that_is_too_old_is_answered_by_the_list(world: World, services: Services) -> None:
    """Nothing is skipped silently: the application is told that what was before is not."""
    for _ in range(3):
        await world.publish(services.log.message(ANN))
    world.recovery_max = 1

    def sync(arguments: Any) -> Any:
        is_too_old = arguments["since"] < 2
        answer = {"epoch": world.epoch, "head": 3, "has_more": False, "too_old": is_too_old, "entries": []}
        entries = enumerate(world.timeline[arguments["since"] :], arguments["since"] + 1)
        return answer if is_too_old else {**answer, "entries": [{"offset": at, "data": data} for at, data in entries]}

    world.methods["im.sync"] = sync
    for app, lists in ((Viewing(world, position=Position("first", 1)), 1), (Plain(world), 0)):
        world.arguments.clear()
        await app.client.connect()
        assert app.client.position == Position("first", 3)
        assert [(one.is_start, one.position.offset) for one in app.inbox] == [(True, 3)]
        assert len(services.reads("im.conversations")) == lists
        await world.publish()
        await app.client.close()


class Plain(Viewing):
    """Without a view: it only reads the timeline."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.client = Client(
            world.scheduler, user=USER, credential="token", on_message=self._take, position=Position("first", 1)
        )


async def test_with_a_position_the_list_is_read_beside_the_timeline(world: World, services: Services) -> None:
    """The application kept what was before; the view knows how many are unread."""
    for _ in range(3):
        await world.publish(services.log.message(ANN))
    services.listed["unread"] = 2
    app = Viewing(world, position=Position("first", 1))
    await app.client.connect()
    await becomes(lambda: app.client.view.is_loaded)
    assert [incoming.position.offset for incoming in app.inbox] == [2, 3]
    assert app.client.view.total_unread() == 2
    await app.client.close()


async def test_what_is_lost_on_the_way_is_read_from_history(services: Services, app: Viewing) -> None:
    """A push that nothing brings again; the next one shows that it is missing."""
    services.log.fan_out = "read"
    await app.client.connect()
    services.log.message(ANN)
    await services.push(services.log.message(ANN))
    await app.shows(*services.log.shown())
    assert services.reads() == [{"cid": CID, "after": 0, "limit": PAGE}]
    for _ in range(2):
        services.log.message(ANN)
    assert app.client.position == Position("first", 0)
    await services.push({"kind": "sync"}, sync_version=4)
    await app.shows(*services.log.shown())
    assert len(services.reads("im.conversations")) == 3


async def test_a_reading_that_fails_is_repeated(world: World, services: Services, app: Viewing) -> None:
    """Of history, of older entries, and of the list."""
    await app.client.connect()
    for _ in range(3):
        services.log.message(ANN)
    world.failures = [{"code": 1404, "message": "no"}] * 2
    await services.push(services.log.entries[2])
    await app.shows(*services.log.shown())
    assert len(services.reads()) == 3
    world.failures = [{"code": 1404, "message": "no"}]
    await services.push(
        {"kind": "group", "cid": "9", "seq": 4, "from": ANN, "body": {"event": "invite", "users": [USER]}}
    )
    await becomes(lambda: len(services.reads("im.conversations")) == 3)
    world.failures = [{"code": 1404, "message": "no"}]
    app.client.open_window("9")
    await becomes(lambda: len(services.reads()) == 4)


async def test_a_large_group_is_followed_over_its_own_channel(world: World) -> None:
    """As long as it has one; from where the view is, over connections."""
    services = Services(world, is_group=True, channel="conv")
    services.log.fan_out = "read"
    services.log.message(ANN)
    app = Viewing(world)
    await app.client.connect()
    one = world.nodes["one"]
    one.states[CHANNEL] = (1, services.log.entries[0])
    await becomes(lambda: ("one", CHANNEL, "first", 1) in world.asked)
    await one.set_state(CHANNEL, services.log.message(ANN))
    await app.shows(*services.log.shown(1))
    world.unrecoverable.add(CHANNEL)
    services.log.message(ANN), services.log.message(ANN)
    one.states[CHANNEL] = (4, services.log.entries[3])
    await one.close_all(3001)
    await app.shows(*services.log.shown(1))
    kick = services.log.event("kick", USER, by=ANN)
    await world.publish(kick)
    await becomes(lambda: CHANNEL not in app.client.positions)
    assert app.conversation().last_seq == 5
    await app.client.close()


async def test_a_channel_that_is_refused_is_left_alone(world: World) -> None:
    """The timeline says why; and one that the application follows itself is not touched."""
    Services(world, is_group=True, channel="conv", fan_out="read")
    world.refused.add(CHANNEL)
    app = Viewing(world)
    await app.client.connect()
    await becomes(lambda: CHANNEL not in app.client.positions and app.conversation().is_followed)
    assert not app.ends
    await app.client.close()


@pytest.mark.spec("OR-01")
async def test_sends_into_one_conversation_keep_their_order_whatever_fails(
    world: World, services: Services, app: Viewing
) -> None:
    """The one that has to be sent again is not overtaken, over a reconnect too."""
    services.log.message(ANN)
    await app.client.connect()
    world.failures = [{"code": 100, "message": "internal", "temporary": True}]
    sends = [app.client.send(ANN, 1), app.client.send(body=2, cid=CID), app.client.send(ANN, 3, client_msg_id="k")]
    running = [asyncio.ensure_future(send) for send in sends]
    await becomes(lambda: app.conversation().rows()[-1].state == "sending")
    await world.nodes["one"].close_all(3001)
    results = await asyncio.gather(*running)
    assert [result["seq"] for result in results] == [2, 3, 4]
    await app.shows(*services.log.shown())
    assert app.conversation().rows()[-1].key == "k"
    assert len([update for update in app.updates if isinstance(update, Changed) and update.row.seq == 0]) == 3


async def test_a_send_that_is_refused_is_shown_as_failed(world: World, services: Services, app: Viewing) -> None:
    """And raised."""
    services.log.message(ANN)
    await app.client.connect()
    world.failures = [{"code": 1303, "message": "another message had this id"}]
    with pytest.raises(Conflict):
        await app.client.send(ANN, "x", client_msg_id="k")
    row = app.conversation().rows()[-1]
    assert (row.state, row.key, type(row.error)) == ("failed", "k", Conflict)
    world.methods["im.send"] = lambda _arguments: {"mid": "5"}
    await app.client.send(ANN, "y", client_msg_id="q", ack="queued")
    assert app.conversation().rows()[-1].state == "queued"


@pytest.mark.spec("PP-05")
async def test_when_no_push_arrives_the_timeline_is_read_from_time_to_time(world: World) -> None:
    """A safety net, for whom the access node's own is not enough."""
    app = Viewing(world, sync_interval_ms=40)
    services = Services(world)
    await app.client.connect()
    for _ in range(3):
        world.timeline.append(services.log.message(ANN))
    await app.shows(*services.log.shown())
    assert app.client.position == Position("first", 3)
    await app.client.close()


async def test_after_the_servers_data_was_replaced_the_view_begins_anew(
    world: World, services: Services, app: Viewing
) -> None:
    """Nothing of what was known holds."""
    await app.client.connect()
    await world.publish(services.log.message(ANN, "of old"))
    await app.shows((1, "of old"))
    again = Services(world)
    world.epoch, world.timeline = "second", []
    await world.publish(again.log.message(ANN, "new"), again.log.message(ANN, "newer"))
    (session,) = world.nodes["one"].sessions
    await session.push({"channel": INBOX, "unsubscribe": {"code": 2500, "reason": "insufficient state"}})
    await app.shows((1, "new"), (2, "newer"))


async def test_what_has_no_place_in_a_log_is_passed_on(services: Services, app: Viewing) -> None:
    """And what is no object at all is the application's alone."""
    await app.client.connect()
    typing = {"kind": "typing", "cid": CID, "from": ANN}
    await services.push(typing)
    await becomes(lambda: Told(typing) in app.updates)
    for node in services.world.nodes.values():
        await node.tell(INBOX, 0, "text")
    await becomes(lambda: app.inbox[-1].data == "text")


async def test_each_method_asks_for_what_it_says(world: World, services: Services, app: Viewing) -> None:
    """Names and arguments are the protocol's."""
    del services
    for name in ("edit", "recall", "unread", "mark", "search", "group_create", "group_change", "typing"):
        world.methods[f"im.{name}"] = lambda _arguments: {}
    await app.client.connect()
    world.arguments.clear()
    client = app.client
    await client.send(cid=CID, body="x", client_msg_id="a", kind="image", reply_to=3, mentions=[ANN])
    await client.edit(CID, 3, "y", client_msg_id="b", mentions=["*"])
    await client.recall(CID, 3, client_msg_id="c")
    await client.mark_read(CID, 3)
    await client.unread()
    await client.search(CID, "word", before=9, limit=5)
    await client.conversations(limit=7, after="z")
    await client.create_group("friends", [ANN], client_msg_id="d", history="all")
    await client.change_group(CID, "kick", users=[ANN])
    await client.change_group(CID, "rename", value="foes")
    await client.typing(CID)
    by_the_view = {"im.history"}  # for the message that it was told of by the answer only
    assert [call for call in world.arguments if call[0] not in by_the_view] == [
        (
            "im.send",
            {"cid": CID, "client_msg_id": "a", "type": "image", "body": "x", "reply_to": 3, "mentions": [ANN]},
        ),
        ("im.edit", {"cid": CID, "seq": 3, "client_msg_id": "b", "body": "y", "mentions": ["*"]}),
        ("im.recall", {"cid": CID, "seq": 3, "client_msg_id": "c"}),
        ("im.mark", {"cid": CID, "read_seq": 3}),
        ("im.unread", {}),
        ("im.search", {"cid": CID, "text": "word", "limit": 5, "before": 9}),
        ("im.conversations", {"limit": 7, "after": "z"}),
        (
            "im.group_create",
            {"client_msg_id": "d", "name": "friends", "members": [ANN], "settings": {"history": "all"}},
        ),
        ("im.group_change", {"cid": CID, "action": "kick", "users": [ANN]}),
        ("im.group_change", {"cid": CID, "action": "rename", "value": "foes"}),
        ("im.typing", {"cid": CID}),
    ]
    assert Listed(CID) in app.updates
    world.failures = [{"code": 1404, "message": "there is no such message"}]
    with pytest.raises(NotFound):
        await client.recall(CID, 9)
