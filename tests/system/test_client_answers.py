"""What the scheduler's answer may ask of the Python wrapper: to wait, to come again, to measure."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from tests.system.client_application import Application, becomes
from tests.system.conftest import eventually
from tests.system.fake_access import USER, World, fake_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world("one", "two", "three") as made:
        yield made


@pytest.fixture
async def app(world: World) -> AsyncIterator[Application]:
    made = Application(world)
    yield made
    await made.client.close()


async def test_the_version_of_the_application_is_told(world: World) -> None:
    """By which a rollout may choose."""
    app = Application(world, app="5.1.0")
    await app.client.connect()
    assert world.questions[0][1] == {"user": USER, "device": "python", "platform": "python", "app": "5.1.0"}
    await app.client.close()


# ---------------------------------------------------------------- a place in a queue


async def test_nobody_connects_before_its_turn(world: World, app: Application) -> None:
    """Neither at first nor after its node was lost."""
    world.more = {"not_before_ms": 200}
    now = asyncio.get_running_loop().time
    await app.client.connect()
    assert now() - world.questions[0][0] >= 0.2
    world.candidates = ["two"]
    await world.nodes["one"].close_all(3001)
    await app.is_on("two")
    assert now() - world.questions[1][0] >= 0.2


async def test_while_a_client_waits_for_its_turn_its_old_connection_serves(world: World, app: Application) -> None:
    """A move with nowhere to go asks the scheduler, which may be busy with others."""
    await app.client.connect()
    world.candidates, world.more = ["two"], {"not_before_ms": 300}
    await world.nodes["one"].move_all("", "")
    await becomes(lambda: len(world.questions) == 2)
    await world.publish("a")
    await app.has("a")
    assert world.connects == ["one"]
    await app.is_on("two")


async def test_a_client_that_is_closed_while_it_waits_for_its_turn_never_connects(
    world: World, app: Application
) -> None:
    """Its place is given up at once."""
    await app.client.connect()
    world.more = {"not_before_ms": 60_000}
    await world.nodes["one"].close_all(3001)
    await becomes(lambda: len(world.questions) == 2)
    async with asyncio.timeout(1):
        await app.client.close()
    assert world.connects == ["one"]


# ---------------------------------------------------------------- a lifetime


async def test_after_its_lifetime_a_connection_is_replaced_without_a_gap(world: World, app: Application) -> None:
    """The new one is there before the old one goes, and nothing is lost or twice."""
    world.more = {"lifetime_ms": 150}
    await app.client.connect()
    world.candidates, world.more = ["two"], {}
    one, two = world.nodes["one"], world.nodes["two"]
    seen: list[tuple[int, int]] = []

    async def watch() -> bool:
        seen.append((len(one.sessions), len(two.sessions)))
        await world.publish(len(world.timeline))
        return not one.sessions

    await eventually(watch)
    assert all(old or new for old, new in seen)
    await app.is_on("two")
    await app.has(*range(len(world.timeline)))
    await asyncio.sleep(0.4)  # this answer named no lifetime: it stays
    assert world.connects == ["one", "two"]


async def test_when_there_is_nothing_to_replace_it_with_it_is_tried_again_later(world: World, app: Application) -> None:
    """The old connection goes on meanwhile."""
    world.more = {"lifetime_ms": 50}
    await app.client.connect()
    world.candidates = ["two"]
    world.refusals = [{"code": 104, "message": "starting"}] * 2
    await becomes(lambda: len(world.questions) == 3)
    assert world.connects == ["one"]
    world.more = {}
    await app.is_on("two")
    assert len(world.questions) == 4
    assert not app.ends


async def test_a_move_comes_before_the_end_of_a_lifetime(world: World, app: Application) -> None:
    """Where both are due, the client goes where it is told; there the lifetime begins anew."""
    world.more = {"lifetime_ms": 60_000}
    await app.client.connect()
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")
    assert len(world.questions) == 1


# ---------------------------------------------------------------- probes


async def test_what_was_measured_is_told_with_the_next_question_once(world: World, app: Application) -> None:
    """Regions that do not answer, in time or at all, are left out."""
    urls = {name: f"{world.scheduler}/probe/{name}" for name in ("sh", "bj", "gone")}
    urls |= {"nowhere": "http://127.0.0.1:1/", "nonsense": "http://", "other": "ftp://127.0.0.1/"}
    world.more = {"probe": [{"region": region, "url": url} for region, url in urls.items()]}
    await app.client.connect()
    assert "rtt" not in world.questions[0][1]
    await becomes(lambda: len(app.client._dialer._distances) == 2)
    world.more = {}
    for _ in range(2):
        await app.breaks()
        await app.is_on("one")
    told = [params.get("rtt", "") for _, params, _ in world.questions[1:]]
    assert re.fullmatch(r"(sh|bj):[0-9]+,(sh|bj):[0-9]+", told[0])
    assert set(told[1:]) == {""}
    assert sorted(world.probed) == ["bj", "gone", "sh"]


async def test_what_was_measured_is_kept_until_a_scheduler_was_told(world: World, app: Application) -> None:
    """One that could not answer may not have taken it."""
    world.more = {"probe": [{"region": "sh", "url": f"{world.scheduler}/probe/sh"}]}
    await app.client.connect()
    await becomes(lambda: app.client._dialer._distances)
    world.refusals = [{"code": 104, "message": "starting"}]
    await app.breaks()
    await app.is_on("one")
    assert [params.get("rtt", "")[:3] for _, params, _ in world.questions] == ["", "sh:", "sh:"]


async def test_a_probe_that_never_answers_delays_nothing(
    world: World, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the connection, nor its replacement, nor the end."""
    monkeypatch.setattr("roadstead.client.dialer.PROBE_S", 60.0)
    world.more = {"probe": [{"region": "slow", "url": f"{world.scheduler}/probe/slow"}]}
    await app.client.connect()
    await becomes(lambda: world.probed)
    world.more = {}
    await world.nodes["one"].move_all(world.nodes["two"].url, world.ticket())
    await app.is_on("two")
    async with asyncio.timeout(1):
        await app.client.close()
    assert world.connects == ["one", "two"]
