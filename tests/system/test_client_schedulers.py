"""The Python wrapper and its schedulers: gateways before them, several of them; and that no end is unseen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from base.errors import ConfigError, PeerUnavailable, PermissionDenied, RemoteProtocolError, RoadsteadError
from tests.system.client_application import Application, becomes
from tests.system.fake_access import World, fake_world

HTML = (502, "text/html", "<html><h1>502 Bad Gateway</h1></html>")
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world("one", "two", schedulers=3) as made:
        yield made


@pytest.fixture
async def app(world: World) -> AsyncIterator[Application]:
    made = Application(world)
    yield made
    await made.client.close()


@pytest.fixture
async def all_of_them(world: World) -> AsyncIterator[Application]:
    """It knows all schedulers."""
    made = Application(world, scheduler=world.schedulers)
    yield made
    await made.client.close()


def first(app: Application, scheduler: str) -> None:
    """Have the client begin with this scheduler; else that is a matter of chance."""
    app.client._dialer._at = list(app.client._dialer._schedulers).index(scheduler)


# ---------------------------------------------------------------- what stands before a scheduler


@pytest.mark.parametrize(
    "gateway",
    [
        HTML,
        (502, "application/json", '{"message": "Service Unavailable"}'),
        (503, "application/json", '{"error": "service unavailable"}'),
        (503, "application/json", '{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}'),
        (503, "application/json", '{"error": {"code": 503, "name": "ServiceUnavailable", "message": "x"}}'),
        (429, "text/plain", "slow down"),
        (404, "text/html", "no such backend"),
        (200, "text/html", "<html>back soon</html>"),
        (200, "application/json", "[]"),
        (200, "application/json", '{"candidates": [{"urls": null}], "ticket": "t"}'),
        (
            200,
            "application/json",
            json.dumps({"candidates": [], "ticket": "t", "backoff": {"base_ms": 0, "ceiling_ms": 0}}),
        ),
    ],
)
async def test_a_client_outlives_whatever_answers_for_its_scheduler(
    world: World, app: Application, gateway: tuple[int, str, str]
) -> None:
    """It goes on asking, and a call waits for that; the application is not told of an end that is none."""
    await app.client.connect()
    world.gateways[world.scheduler] = gateway
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: len(world.questions) >= 4)
    world.gateways.clear()
    assert await app.client.call("where", {}) == "one"
    assert not app.ends


async def test_connecting_through_a_gateway_without_a_scheduler_fails(world: World, app: Application) -> None:
    """The application decides whether to try again."""
    world.gateways[world.scheduler] = HTML
    with pytest.raises(PeerUnavailable, match="502"):
        await app.client.connect()
    world.gateways[world.scheduler] = (200, "application/json", "{}")
    with pytest.raises(RemoteProtocolError, match="not answer as a scheduler"):
        await app.client.connect()
    world.gateways.clear()
    await app.client.connect()


async def test_a_gateways_retry_after_is_heeded(world: World, app: Application) -> None:
    """As that of a scheduler is."""
    await app.client.connect()
    world.gateways[world.scheduler], world.gateway_headers = HTML, {"Retry-After": "1"}
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: len(world.questions) == 2)
    world.gateways.clear()
    await app.is_on("one")
    times = [time for time, _, _ in world.questions]
    assert times[2] - times[1] >= 1


async def test_when_to_come_back_must_be_a_number(world: World, app: Application) -> None:
    """Else it is as if nothing had been said."""
    await app.client.connect()
    world.refusals = [{"code": 104, "message": "starting", "detail": {"retry_after_ms": "soon"}}]
    await app.breaks()
    await app.is_on("one")


async def test_a_candidate_without_a_websocket_endpoint_is_passed_over(world: World, app: Application) -> None:
    """It may have others, for other clients."""
    ways = [{"grpc": "x"}, {"websocket": world.url("two")}]
    world.more = {"candidates": [{"id": "x", "region": "", "urls": urls} for urls in ways]}
    await app.client.connect()
    await app.is_on("two")


# ---------------------------------------------------------------- several schedulers


async def test_where_one_scheduler_is_away_the_next_is_asked_at_once(world: World) -> None:
    """Nobody there, or a gateway that finds nobody; no wait is between them."""
    urls = [NOWHERE, *world.schedulers[:2]]
    app = Application(world, scheduler=urls)
    first(app, NOWHERE)
    world.gateways[world.schedulers[0]], world.gateway_headers = HTML, {"Retry-After": "60"}
    async with asyncio.timeout(5):
        await app.client.connect()
    assert world.asked_at == world.schedulers[:2]
    await app.client.close()


async def test_a_client_stays_with_the_scheduler_that_answered(world: World, all_of_them: Application) -> None:
    """And leaves it when it is away, for another one, over reconnects."""
    one, two, three = world.schedulers
    app = all_of_them
    first(app, two)
    await app.client.connect()
    for _ in range(2):
        await app.breaks()
        await app.is_on("one")
    assert world.asked_at == [two] * 3
    world.gateways[two] = HTML
    await app.breaks()
    await app.is_on("one")
    assert world.asked_at[3:] == [two, three]
    world.gateways = {three: HTML, two: HTML}
    await app.breaks()
    await app.is_on("one")
    assert world.asked_at[5:] == [three, one]
    assert not app.ends


async def test_what_a_scheduler_refuses_is_asked_of_no_other(world: World, all_of_them: Application) -> None:
    """A queue is none if one may stand in several; and a credential is no better elsewhere."""
    first(all_of_them, world.schedulers[1])
    for code, kind in ((104, RoadsteadError), (302, PermissionDenied)):
        world.refusals = [{"code": code, "message": "no"}]
        with pytest.raises(kind):
            await all_of_them.client.connect()
    assert world.asked_at == [world.schedulers[1]] * 2


async def test_only_when_all_schedulers_are_away_a_client_waits(world: World, all_of_them: Application) -> None:
    """For as long as the first of them said; then it goes round again."""
    app = all_of_them
    await app.client.connect()
    world.gateways, world.gateway_headers = dict.fromkeys(world.schedulers, HTML), {"Retry-After": "1"}
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: len(world.questions) == 4)
    world.gateways.clear()
    await app.is_on("one")
    times = [time for time, _, _ in world.questions]
    assert times[3] - times[1] < 1 <= times[4] - times[3]
    assert set(world.asked_at[1:4]) == set(world.schedulers)
    world.gateways = dict.fromkeys(world.schedulers, HTML)
    with pytest.raises(PeerUnavailable, match="no scheduler answers"):
        await app.client.connect()


def test_clients_are_spread_over_the_schedulers() -> None:
    """Each begins with any of them, of which there is at least one."""
    urls = ["http://a", "http://b", "http://c"]
    begun = {Application(World(), scheduler=urls).client._dialer._at for _ in range(100)}
    assert begun == {0, 1, 2}
    with pytest.raises(ConfigError, match="no scheduler"):
        Application(World(), scheduler=[])


# ---------------------------------------------------------------- defects


async def test_a_defect_of_the_client_is_no_silence(
    world: World, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported, the application is told of the end, and calls fail at once, those that wait, too."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    await app.client.connect()
    is_asked, may_fail = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        is_asked.set()
        await may_fail.wait()
        raise KeyError("a defect")

    monkeypatch.setattr(app.client._dialer, "dial", fail)
    await world.nodes["one"].close_all(3001)
    await is_asked.wait()
    waiting = asyncio.get_running_loop().create_task(app.client.call("where", {}))
    await asyncio.sleep(0)
    may_fail.set()
    async with asyncio.timeout(1):
        await becomes(lambda: app.ends)
        for call in (waiting, app.client.call("where", {})):
            with pytest.raises(RoadsteadError, match="a defect"):
                await call
    assert [type(end) for end in app.ends] == [RoadsteadError]
    assert "KeyError" in repr(failures[0]["exception"])
    monkeypatch.undo()
    await app.client.connect()
    await app.is_on("one")


async def test_a_defect_beside_the_connection_ends_that_too(
    world: World, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is handed over by a client that said that it came to its end."""
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

    async def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app.client._dialer, "measure", fail)
    await app.client.connect()
    await becomes(lambda: app.ends and not world.nodes["one"].sessions)
    assert "ZeroDivisionError" in app.ends[0].message


async def test_an_on_end_that_raises_is_reported(world: World, app: Application) -> None:
    """The end is the same: calls say why."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))

    def fail(_error: RoadsteadError) -> None:
        raise ValueError("a bug of the application")

    app.client._on_end = fail
    await app.client.connect()
    await world.nodes["one"].close_all(3500, "enough")
    await becomes(lambda: failures)
    assert [str(failure["exception"]) for failure in failures] == ["a bug of the application"]
    with pytest.raises(PermissionDenied, match="enough"):
        await app.client.call("where", {})
