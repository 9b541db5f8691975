"""A link that is dead and not known to be yet: nothing is lost, and somebody is told who may have missed what."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from access.config import AccessConfig
from base.errors import RoadsteadError
from roadstead.api import call_api
from roadstead.client import Client, Incoming
from roadstead.config import Config
from tests.system.client_application import becomes
from tests.system.conftest import SETTLE_S, System, running

PONG_DEADLINE_MS = 500
QUICK = Config(access=AccessConfig(ping_interval_ms=1_000, pong_deadline_ms=PONG_DEADLINE_MS))


class Link:
    """A client's connection, which may stop to answer without being closed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def hears(self, wanted: str) -> Any:
        """Read until a message has this field, and answer pings."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                for line in (await self._socket.receive_str()).splitlines():
                    message = json.loads(line)
                    if message == {}:
                        await self._socket.send_str("{}")
                    if wanted in message or (wanted == "ping" and message == {}):
                        return message


async def connect(system: System, http: aiohttp.ClientSession, user: str) -> Link:
    answer = await system.access(user)
    socket = await http.ws_connect(answer["candidates"][0]["urls"]["websocket"], autoping=False)
    await socket.send_str(json.dumps({"id": 1, "connect": {"token": answer["ticket"]}}))
    link = Link(socket)
    await link.hears("connect")
    return link


@pytest.mark.spec("PP-04")
async def test_what_a_dead_link_did_not_answer_for_is_announced_and_not_lost(tmp_path: Path) -> None:
    """The user seems to be there until a pong is missing. What was answered for before is not announced."""
    async with running(tmp_path / "data", QUICK) as system, aiohttp.ClientSession() as http:
        link = await connect(system, http, "bob")
        await system.send("ann", "bob", "m-1", "answered for")
        await link.hears("push")
        await link.hears("ping")
        # The answer to this ping proves the first message; then the link is dead.
        await link.hears("ping")
        await system.send("ann", "bob", "m-2", "into the void")
        url = f"{system.im}/v1/offline?wait_ms=10000"
        page = await call_api("GET", url, credential=system.key)
        assert [(item["user"], item["message"]["body"]) for item in page["items"]] == [("bob", "into the void")]
        assert (await system.status("bob"))["state"] == "offline"

        bodies: list[Any] = []
        ends: list[RoadsteadError] = []

        async def take(incoming: Incoming) -> None:
            bodies.append(incoming.data["body"])

        client = Client(system.scheduler, user="bob", credential=system.key, on_message=take, on_end=ends.append)
        await client.connect()
        await becomes(lambda: bodies == ["answered for", "into the void"])
        await client.close()
        assert ends == []
