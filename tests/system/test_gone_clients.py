"""Clients that are gone before their command was even begun: nothing is opened for them any more.

A stock client comes close to that when it is closed at once. Here a command and the Close share one TCP segment, so
that the access node reads both in one step.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from roadstead.api import call_api
from tests.system.conftest import SETTLE_S, Connect, System, eventually

TEXT, CLOSE = 0x1, 0x8
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a frame of a client, masked with zeros."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + size + bytes(4) + payload


def command(command_id: int, **fields: Any) -> bytes:
    return frame(TEXT, json.dumps({"id": command_id, **fields}).encode())


BYE = frame(CLOSE, (1000).to_bytes(2, "big"))


class RawClient:
    """A WebSocket whose bytes are in the hands of the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def open(address: str) -> RawClient:
        url = urlsplit(address)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(UPGRADE.format(path=url.path, host=url.netloc).encode())
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return RawClient(reader, writer)

    def send(self, segment: bytes) -> None:
        self._writer.write(segment)

    async def has(self, text: bytes) -> None:
        async with asyncio.timeout(SETTLE_S):
            await self._reader.readuntil(text)

    async def is_over(self) -> None:
        """Wait until the other side has closed the socket."""
        async with asyncio.timeout(SETTLE_S):
            await self._reader.read()
        self._writer.close()


async def opened(system: System) -> dict[str, int]:
    """What the access nodes have open, together."""
    total = {"connections": 0, "sessions": 0, "views": 0, "watched": 0}
    for url in system.endpoints.access.values():
        one = await call_api("GET", f"{url}/debug/statistics")
        total["connections"] += one["connections"]
        total["sessions"] += one["inboxes"]["clients"]
        total["views"] += one["presence"]["here"]["views"]
        total["watched"] += one["presence"]["watches"]["users"]
    return total


async def test_a_connect_with_a_close_behind_it_opens_nothing(system: System) -> None:
    """The user is never online, and no session is left in the node: it would be there until the process ends."""
    for number in range(5):
        user = f"ghost-{number}"
        answer = await system.access(user)
        client = await RawClient.open(answer["candidates"][0]["urls"]["websocket"])
        client.send(command(1, connect={"token": answer["ticket"]}) + BYE)
        await client.is_over()
    await asyncio.sleep(0.3)
    assert set((await opened(system)).values()) == {0}
    for number in range(5):
        status = await system.status(f"ghost-{number}")
        assert (status["state"], status["last_seen"]) == ("offline", None)


async def test_the_ticket_of_a_client_that_was_gone_at_once_is_not_used_up(system: System, connect: Connect) -> None:
    """Nobody was let in with it."""
    answer = await system.access("bob")
    url = answer["candidates"][0]["urls"]["websocket"]
    client = await RawClient.open(url)
    client.send(command(1, connect={"token": answer["ticket"]}) + BYE)
    await client.is_over()
    client = await RawClient.open(url)
    client.send(command(1, connect={"token": answer["ticket"]}))
    await client.has(b'"connect"')
    client.send(BYE)
    await client.is_over()
    await connect("bob")


async def test_a_subscription_with_a_close_behind_it_opens_nothing(system: System) -> None:
    """Neither a view nor a watch at the owner of the user."""
    for number in range(5):
        answer = await system.access("alice", device=str(number))
        client = await RawClient.open(answer["candidates"][0]["urls"]["websocket"])
        client.send(command(1, connect={"token": answer["ticket"]}))
        await client.has(b'"connect"')
        presences = [command(2 + n, subscribe={"channel": f"presence:bob-{number}-{n}"}) for n in range(3)]
        client.send(b"".join(presences) + BYE)
        await client.is_over()
    await asyncio.sleep(0.3)
    assert set((await opened(system)).values()) == {0}

    async def is_offline() -> bool:
        return bool((await system.status("alice"))["state"] == "offline")

    await eventually(is_offline)


async def test_what_a_client_sent_before_its_close_is_still_done(system: System, connect: Connect) -> None:
    """A call that opens nothing is carried out, though nobody waits for the answer; presence.set is not."""
    bob = await connect("bob")
    answer = await system.access("alice")
    client = await RawClient.open(answer["candidates"][0]["urls"]["websocket"])
    client.send(command(1, connect={"token": answer["ticket"]}))
    await client.has(b'"connect"')
    send = {"method": "im.send", "data": {"to": "bob", "client_msg_id": "m", "body": "bye"}}
    change = {"method": "presence.set", "data": {"state": "busy"}}
    client.send(command(2, rpc=send) + command(3, rpc=change) + BYE)
    await client.is_over()
    (publication,) = await bob.wait_publications(1)
    assert publication.data["body"] == "bye"
    await asyncio.sleep(0.3)
    assert (await system.status("alice"))["state"] == "offline"
