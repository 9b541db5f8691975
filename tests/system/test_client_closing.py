"""The Python wrapper when it is closed, whatever it is about to do, and when the application's own code raises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from base.errors import PeerUnavailable, RemoteProtocolError
from roadstead.client import Incoming, Position
from roadstead.client.connection import Connection
from tests.system.client_application import Application, becomes
from tests.system.fake_access import INBOX, World, fake_world
from tests.system.test_client_view import ANN, Services, Viewing

PRESENCE = "presence:alice"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roadstead.client.conversation.GAP_WAIT_MS", 30)
    monkeypatch.setattr("roadstead.client.view.GAP_WAIT_MS", 30)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world("one", "two") as made:
        yield made


@pytest.fixture
async def app(world: World) -> AsyncIterator[Application]:
    made = Application(world)
    yield made
    await made.client.close()


@pytest.fixture
async def failures() -> list[dict[str, Any]]:
    """What the event loop's exception handler is told."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context))
    return seen


# ---------------------------------------------------------------- calls


async def test_a_call_of_a_client_that_is_not_connected_says_so_at_once(world: World, app: Application) -> None:
    """Before and after."""
    async with asyncio.timeout(1):
        with pytest.raises(PeerUnavailable, match="connect first"):
            await app.client.call("where", {})
        await app.client.connect()
        await app.client.close()
        with pytest.raises(PeerUnavailable, match="the client was closed"):
            await app.client.send("alice", "hi")
    assert not world.calls


async def test_a_call_that_waits_for_a_connection_is_told_of_the_close(world: World, app: Application) -> None:
    """It does not wait for its deadline."""
    await app.client.connect()
    world.refusals = [{"code": 104, "message": "starting", "detail": {"retry_after_ms": 60_000}}]
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: len(world.questions) == 2)
    waiting = asyncio.get_running_loop().create_task(app.client.call("where", {}))
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await app.client.close()
        with pytest.raises(PeerUnavailable, match="the client was closed"):
            await waiting


async def test_a_call_during_the_close_is_no_defect(world: World, app: Application) -> None:
    """It is done, or told of the close."""
    await app.client.connect()
    closing = asyncio.get_running_loop().create_task(app.client.close())
    await asyncio.sleep(0)  # it has begun
    outcomes = []
    while not closing.done():
        try:
            outcomes.append(await app.client.call("where", {}))
        except Exception as error:  # noqa: BLE001 - which one it is, is the question
            outcomes.append(type(error).__name__)
        await asyncio.sleep(0)
    assert outcomes
    assert set(outcomes) <= {"one", "PeerUnavailable", "ClientDisconnectedError"}
    assert not world.nodes["two"].sessions


# ---------------------------------------------------------------- while it connects


async def test_a_client_that_is_closed_while_it_connects_does_not_connect(world: World, app: Application) -> None:
    """Its place in the queue is given up at once, and who connects is told."""
    world.more = {"not_before_ms": 60_000}
    connecting = asyncio.get_running_loop().create_task(app.client.connect())
    await becomes(lambda: len(world.questions) == 1)
    async with asyncio.timeout(1):
        await app.client.close()
        for waiting in (connecting, app.client.call("where", {})):
            with pytest.raises(PeerUnavailable, match="the client was closed"):
                await waiting
    assert not world.connects
    world.more = {}
    await app.client.connect()
    await app.is_on("one")


async def test_a_connect_that_its_caller_gives_up_leaves_no_connection(world: World, app: Application) -> None:
    """As by a deadline of the application's own; it may connect again."""
    world.nodes["one"].is_silent = True
    connecting = asyncio.get_running_loop().create_task(app.client.connect())
    await becomes(lambda: world.nodes["one"].sessions)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    async with asyncio.timeout(1):  # before its own deadline
        await becomes(lambda: not world.nodes["one"].sessions)
    world.candidates = ["two"]
    await app.client.connect()
    assert await app.client.call("where", {}) == "two"


async def test_of_two_that_connect_at_once_the_last_one_does(world: World, app: Application) -> None:
    """And a close ends all that they began."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    for _ in range(2):  # from nothing, and in place of a connection
        first, last = (loop.create_task(app.client.connect()) for _ in range(2))
        await last
        with pytest.raises(PeerUnavailable, match="the client was closed"):
            await first
        assert await app.client.call("where", {}) == "one"
    await app.client.close()
    await becomes(lambda: not world.nodes["one"].sessions)
    assert not [task for task in asyncio.all_tasks() - before if task.get_coro().__qualname__ == "Client._keep"]


async def test_a_close_while_a_connect_takes_its_predecessor_away_holds(world: World, app: Application) -> None:
    """It was asked for last."""
    await app.client.connect()
    connecting = asyncio.get_running_loop().create_task(app.client.connect())
    await asyncio.sleep(0)  # it has begun
    await app.client.close()
    with pytest.raises(PeerUnavailable, match="the client was closed"):
        await connecting
    await becomes(lambda: not world.nodes["one"].sessions)
    assert world.connects == ["one"]


async def test_a_close_does_not_hinder_a_connect_that_begins_before_it_is_over(world: World, app: Application) -> None:
    """What it leaves is what there was when it began."""
    await app.client.connect()
    disconnect, may_go_on = app.client._connection.disconnect, asyncio.Event()  # type: ignore[union-attr]

    async def slowly() -> None:
        await disconnect()
        await may_go_on.wait()

    async def told() -> None:
        may_go_on.set()
        await closing

    app.client._connection.disconnect = slowly  # type: ignore[union-attr, method-assign]
    closing = asyncio.get_running_loop().create_task(app.client.close())
    await asyncio.sleep(0)  # it has begun
    world.nodes["one"].before_subscribe = told
    await app.client.connect()
    assert closing.done()
    assert await app.client.call("where", {}) == "one"
    assert world.connects == ["one", "one"]


# ---------------------------------------------------------------- by a handler


@pytest.mark.parametrize("behind", [3, 20], ids=["recovered", "paged through"])
@pytest.mark.parametrize("is_first", [True, False], ids=["connect", "reconnect"])
async def test_a_handler_that_closes_leaves_no_connection(
    world: World, app: Application, behind: int, *, is_first: bool
) -> None:
    """Whatever the connection was about to become when it told the entry."""
    taken: list[Any] = []

    async def take(incoming: Incoming) -> None:
        taken.append(incoming.data)
        await app.client.close()

    app.client._inbox.handler = take
    world.recovery_max = 10
    if is_first:
        world.timeline += range(behind)
        with pytest.raises(PeerUnavailable, match="the client was closed"):
            await app.client.connect()
    else:
        await app.client.connect()
        await world.nodes["one"].close_all(3001)
        world.timeline += range(behind)
        await becomes(lambda: taken)
    async with asyncio.timeout(1):
        with pytest.raises(PeerUnavailable, match="the client was closed"):
            await app.client.call("where", {})
    await becomes(lambda: not world.nodes["one"].sessions)
    await world.publish("more")
    assert taken == [0]
    assert not app.ends


# ---------------------------------------------------------------- a view


class Held:
    """Holds the calls of one method on their way, as a long round trip does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.begun = 0
        self.may_go_on = asyncio.Event()
        call = Connection.rpc

        async def rpc(connection: Connection, name: str, data: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - the SDK's
            if name == method:
                self.begun += 1
                await self.may_go_on.wait()
            return await call(connection, name, data, timeout=timeout)

        monkeypatch.setattr(Connection, "rpc", rpc)


async def reconnects(viewing: Viewing, held: Held, is_due: Callable[[], object]) -> None:
    """Close while a call is held, then connect to a server that is well again."""
    await becomes(lambda: held.begun)
    await viewing.client.close()
    held.may_go_on.set()
    await viewing.client.connect()
    await becomes(is_due)


async def test_a_list_whose_reading_a_close_cut_off_is_read_by_the_next_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing else happens."""
    services = Services(world, unread=2)
    services.log.message(ANN)
    held = Held(monkeypatch, "im.conversations")
    app = Viewing(world, position=Position("first", 0))
    await app.client.connect()
    await reconnects(app, held, lambda: app.client.view.is_loaded)
    assert app.client.view.total_unread() == 2
    await app.client.close()


async def test_a_list_that_is_read_again_when_a_close_cuts_it_off_is_read_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view was loaded before, so that connecting alone does not ask for it."""
    services = Services(world)
    services.log.message(ANN)
    app = Viewing(world)
    await app.client.connect()
    await becomes(lambda: app.client.view.is_loaded)
    held = Held(monkeypatch, "im.conversations")
    services.listed["unread"] = 3
    await services.push({"kind": "sync"}, sync_version=9)
    await reconnects(app, held, lambda: app.client.view.total_unread() == 3)
    await app.client.close()


async def test_a_gap_whose_reading_a_close_cut_off_is_read_by_the_next_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the conversation would stay as it is for ever."""
    services = Services(world)
    app = Viewing(world)
    await app.client.connect()
    held = Held(monkeypatch, "im.history")
    services.log.message(ANN)
    await services.push(services.log.message(ANN))
    await reconnects(app, held, lambda: [row.seq for row in app.conversation().rows()] == [1, 2])
    await app.client.close()


async def test_an_on_update_that_raises_is_reported_and_the_view_goes_on(
    world: World, failures: list[dict[str, Any]]
) -> None:
    """What comes next is told."""
    services = Services(world)
    app = Viewing(world)
    told = []

    def fail(update: object) -> None:
        told.append(update)
        raise ValueError("a bug of the application")

    assert app.client._viewer is not None
    app.client._viewer._told = fail
    await app.client.connect()
    for _ in range(2):
        await world.publish(services.log.message(ANN))
    await app.shows(*services.log.shown())
    assert len(failures) == len(told) >= 2
    assert isinstance(failures[0]["exception"], ValueError)
    assert not app.ends
    await app.client.close()


# ---------------------------------------------------------------- handlers that raise


@pytest.mark.parametrize("before", [0, 3], ids=["told as it comes", "recovered"])
async def test_a_handler_that_raises_is_reported_and_what_follows_is_handed_over(
    world: World, app: Application, failures: list[dict[str, Any]], before: int
) -> None:
    """Over the same connection; what it raised for counts as dealt with, so that it does not come again."""
    await world.publish(*range(before))
    begun: list[Any] = []

    async def take(incoming: Incoming) -> None:
        begun.append(incoming.data)
        if incoming.data == 1:
            raise ValueError("a bug of the application")

    app.client._inbox.handler = take
    await app.client.connect()
    await world.publish(*range(before, 4))
    await becomes(lambda: begun == [0, 1, 2, 3])
    await becomes(lambda: app.client.position == Position("first", 4))
    assert [(type(each["exception"]), each["message"]) for each in failures] == [
        (ValueError, f"the handler of {INBOX} raised")
    ]
    await app.breaks()
    await app.is_on("one")
    assert begun == [0, 1, 2, 3]
    assert world.connects == ["one", "one"]
    assert not app.ends


async def test_a_handler_of_a_channel_that_raises_disturbs_nothing_else(
    world: World, app: Application, failures: list[dict[str, Any]]
) -> None:
    """Where it begins, and what has no place in a history."""

    async def fail(_incoming: Incoming) -> None:
        raise ValueError("a bug of the application")

    await app.client.connect()
    await app.client.subscribe(PRESENCE, fail)
    await becomes(lambda: len(failures) == 1)
    await world.nodes["one"].tell(PRESENCE, 0, "x")
    await becomes(lambda: len(failures) == 2)
    await world.publish("a")
    await app.has("a")
    assert not app.ends


async def test_what_the_sdk_cannot_read_is_told_as_the_servers_fault(
    world: World, app: Application, failures: list[dict[str, Any]]
) -> None:
    """It is no lack of a permission."""
    del failures
    await app.client.connect()
    (session,) = world.nodes["one"].sessions
    await session.push({"channel": INBOX, "pub": "no object"})  # type: ignore[dict-item]
    await becomes(lambda: app.ends)
    assert [(type(end), end.detail) for end in app.ends] == [(RemoteProtocolError, {"close_code": 2})]
