"""One client that calls methods of the message services over a WebSocket, with as little as it takes.

For benchmarks of what an answer costs: it decodes nothing but the frame, so that the server is what is measured. It
runs no task: what is pushed meanwhile, and pings, are looked at while it waits for a reply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from base.ids import new_uuid
from roadstead.local import System
from scheduler.api import Ticket
from scheduler.tokens import mint_ticket

__all__ = ["Reply", "RpcClient", "inbox_of", "rpc_client", "ticket_of"]

TICKET_TTL_S = 600
CALL_TIMEOUT_S = 60.0
MESSAGE_BYTES_MAX = 1 << 22
CONNECT_ID = 1


class _Error(msgspec.Struct, frozen=True):
    code: int
    message: str


class _Result(msgspec.Struct, frozen=True):
    data: msgspec.Raw


class _Publication(msgspec.Struct, frozen=True):
    offset: int = 0


class Start(msgspec.Struct, frozen=True):
    """How a subscription began."""

    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Publication] = []


class _Connected(msgspec.Struct, frozen=True):
    subs: dict[str, Start] = {}


class Reply(msgspec.Struct, frozen=True):
    """To the command `id`."""

    id: int = 0
    error: _Error | None = None
    rpc: _Result | None = None
    connect: _Connected | None = None


_decode = msgspec.json.Decoder(Reply).decode
_encode = msgspec.json.encode


class RpcClient:
    """A connection. `start` is that of its user's inbox."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, user: str) -> None:
        self.start = Start()
        self._socket = socket
        self._user = user
        self._last_id = CONNECT_ID
        self._lines: deque[str] = deque()

    async def connect(self, ticket: str, position: dict[str, Any] | None = None) -> Start:
        """Connect, going on after a position of the inbox if there is one: {"epoch", "offset"}."""
        inbox = inbox_of(self._user)
        subs = {inbox: {"recover": True, **position}} if position is not None else {}
        await self._socket.send_str(_encode({"id": CONNECT_ID, "connect": {"token": ticket, "subs": subs}}).decode())
        reply = await self.receive()
        assert reply.connect is not None, reply
        self.start = reply.connect.subs[inbox]
        return self.start

    async def call(self, method: str, arguments: Any) -> msgspec.Raw:
        """Call a method and return its result."""
        number = await self.send(method, arguments)
        reply = await self.receive()
        assert reply.id == number, reply
        assert reply.rpc is not None, reply
        return reply.rpc.data

    async def send(self, method: str, arguments: Any) -> int:
        """Send a call and return its number; the reply is for `receive`."""
        self._last_id += 1
        command = {"id": self._last_id, "rpc": {"method": method, "data": arguments}}
        await self._socket.send_str(_encode(command).decode())
        return self._last_id

    async def receive(self) -> Reply:
        """Return the next reply to any command."""
        while True:
            while not self._lines:
                self._lines.extend((await self._socket.receive_str(timeout=CALL_TIMEOUT_S)).splitlines())
            line = self._lines.popleft()
            if line == "{}":
                await self._socket.send_str("{}")
            elif (reply := _decode(line)).id:
                return reply


@asynccontextmanager
async def rpc_client(
    system: System, url: str, user: str, *, device: str = "rpc", position: dict[str, Any] | None = None
) -> AsyncIterator[RpcClient]:
    """Connect a user to the access node at `url`, until the block ends."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=MESSAGE_BYTES_MAX) as socket,
    ):
        client = RpcClient(socket, user)
        await client.connect(ticket_of(system, user, device), position)
        yield client


def inbox_of(user: str) -> str:
    """Return the channel of the user's timeline."""
    return f"inbox:{user}"


def ticket_of(system: System, user: str, device: str) -> str:
    """Sign a ticket, as a scheduler would."""
    secrets = system.data.secrets()
    now_s = time.time_ns() // 1_000_000_000
    ticket = Ticket(sub=user, jti=new_uuid(), iat=now_s, exp=now_s + TICKET_TTL_S, device=device, platform="bench")
    return mint_ticket(ticket, kid=secrets.ticket_kid, key=secrets.ticket_key)
