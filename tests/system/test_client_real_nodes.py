"""The Python wrapper against real access nodes, of which one is killed or drained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from base.errors import RoadsteadError
from roadstead.client import Client, Incoming
from tests.support.closing import goodbyes_said
from tests.system.conftest import eventually
from tests.system.killable import MORTAL, Killable, killable, until

USER = "bob"

pytestmark = pytest.mark.process


@asynccontextmanager
async def on_mortal(system: Killable) -> AsyncIterator[tuple[Client, list[Any]]]:
    """A client on the node that can be killed, and the bodies that it got: ten so far."""
    bodies: list[Any] = []
    ends: list[RoadsteadError] = []

    async def take(incoming: Incoming) -> None:
        bodies.append(incoming.data["body"])

    client = Client(system.scheduler, user=USER, credential=system.key, on_message=take, on_end=ends.append)
    await system.send(USER, *range(5))
    await client.connect()
    while not await system.is_mortal(USER):
        await client.connect()
    await system.send(USER, *range(5, 10))
    await until(10, bodies)
    yield client, bodies
    assert ends == []
    await client.close()
    await goodbyes_said()


async def test_after_kill_nine_of_a_real_node_every_message_arrives_once_and_in_order(tmp_path: Path) -> None:
    """Stored before, around and after the crash; the client's own sends go on, too."""
    with killable(tmp_path / "data") as system:
        async with on_mortal(system) as (client, bodies):
            system.kill()
            await system.send(USER, *range(10, 15))
            await until(15, bodies)
            await client.send(USER, 15)
            await system.send(USER, *range(16, 20))
            await until(20, bodies)
            assert bodies == list(range(20))
            assert await system.nodes_of(USER) != [MORTAL]


async def test_a_drain_of_a_real_node_moves_the_client_which_is_never_shown_offline(tmp_path: Path) -> None:
    """And every message arrives once and in order."""
    with killable(tmp_path / "data") as system:
        async with on_mortal(system) as (_, bodies):
            await system.drain()
            seen: list[list[str]] = []

            async def has_moved() -> bool:
                await system.send(USER, 10 + len(seen))
                seen.append(await system.nodes_of(USER))
                return seen[-1] == ["access-1"]

            await eventually(has_moved)
            assert all(seen), "at some node all the time"
            await until(10 + len(seen), bodies)
            assert bodies == list(range(10 + len(seen)))
