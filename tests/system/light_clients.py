"""Light clients, hundreds in one test: they go where they are sent, and keep all that they saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import msgspec

from base.clock import SystemClock
from tests.system.conftest import eventually

__all__ = ["Clients", "LightClient", "clients", "now"]

AT_ONCE = 20
PAUSE_S = 0.2
"""Between a client's tries."""
now = SystemClock().monotonic


class LightClient:
    """A user's client that goes where it is sent, connects there before it leaves, and keeps all that it saw."""

    def __init__(self, clients: Clients, user: str, scheduler: str, **params: str) -> None:
        """`params` are what it says of itself when it asks."""
        self.user = user
        self.scheduler = scheduler
        self.params = params
        self.node = ""
        self.arm = ""
        """Of the scheduler's answer."""
        self.moves: list[tuple[int, str]] = []
        """When it was told to go, and where to."""
        self.closes: list[int | None] = []
        """Codes of connections that ended without having been told to go."""
        self.got: list[Any] = []
        """Bodies of its messages, as they came; known offsets are left out."""
        self._clients = clients
        self._position: dict[str, Any] = {"recover": True, "epoch": "", "offset": 0}

    async def connect(self) -> None:
        """Ask and try the candidates, until one of them lets it in. Of a scheduler that is gone another takes over."""
        while True:
            try:
                if await self.use(await self._clients.ask(self.user, self.scheduler, **self.params)):
                    return
            except (KeyError, aiohttp.ClientError):
                self.scheduler = self._clients.schedulers()[0]
            await asyncio.sleep(PAUSE_S)

    async def use(self, answer: Mapping[str, Any]) -> bool:
        """Try the candidates of an answer. Returns whether one of them let it in."""
        self.arm = answer.get("arm", "")
        for candidate in answer["candidates"]:
            socket = await self._dial(candidate["urls"]["websocket"], answer["ticket"])
            if socket is not None:
                self._clients.spawn(self._follow(socket))
                return True
        return False

    async def _follow(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Read until the connection ends; go where it says before that."""
        was_told = False
        async for frame in socket:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            for line in frame.data.splitlines():
                reply = msgspec.json.decode(line)
                if not reply:
                    await socket.send_str("{}")
                push = reply.get("push", {})
                if "pub" in push:
                    self._take(push["pub"])
                move = push.get("message", {}).get("data", {}).get("move")
                if move is not None:
                    was_told = True
                    self.moves.append((now(), move["node"]))
                    successor = await self._dial(move["url"], move["ticket"])
                    if successor is not None:
                        self._clients.spawn(self._follow(successor))
                        await socket.close()
                        return
        if not was_told and not self._clients.is_closing:
            self.closes.append(socket.close_code)

    async def _dial(self, url: str, ticket: str) -> aiohttp.ClientWebSocketResponse | None:
        try:
            socket = await self._clients.http.ws_connect(url, protocols=["centrifuge-json"])
        except aiohttp.ClientError:
            return None
        channel = f"inbox:{self.user}"
        await socket.send_json({"id": 1, "connect": {"token": ticket, "subs": {channel: self._position}}})
        frame = await socket.receive(10.0)
        first, *rest = frame.data.splitlines() if frame.type is aiohttp.WSMsgType.TEXT else [""]
        reply = msgspec.json.decode(first) if first else {}
        if "connect" not in reply:
            await socket.close()
            return None
        self.node = reply["connect"]["node"]
        start = reply["connect"]["subs"][channel]
        self._position["epoch"] = start["epoch"]
        for publication in start.get("publications", []):
            self._take(publication)
        assert not rest, "a frame with more than the reply"
        self._clients.sockets.append(socket)
        return socket

    def _take(self, publication: Mapping[str, Any]) -> None:
        if publication["offset"] > self._position["offset"]:
            assert publication["offset"] == self._position["offset"] + 1, "a message is missing"
            self._position["offset"] = publication["offset"]
            self.got.append(publication["data"]["body"])


class Clients:
    """Light clients of one test."""

    def __init__(
        self,
        url: Callable[[str], str],
        key: str,
        *,
        schedulers: Callable[[], Sequence[str]],
        im: str,
        http: aiohttp.ClientSession,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """`url` gives a node's address by its name, `schedulers` the names of those that there are."""
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self.schedulers = schedulers
        self._im = im
        self.http = http
        self.all: list[LightClient] = []
        self.sockets: list[aiohttp.ClientWebSocketResponse] = []
        self.assigned: list[tuple[int, str, str]] = []
        """Each answer: when it came, from which scheduler, and to which arm."""
        self.is_closing = False
        self.spawn = tasks.create_task

    async def ask(self, user: str, scheduler: str, **params: str) -> dict[str, Any]:
        """Ask a scheduler for access."""
        url = f"{self._url(scheduler)}/v1/access"
        async with self.http.get(url, params={"user": user, **params}, headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = await answer.json()
        self.assigned.append((now(), scheduler, found.get("arm", "")))
        return found

    async def join(self, users: Iterable[str], *schedulers: str, **params: str) -> list[LightClient]:
        """Connect users, each by the next one of the schedulers."""
        names = schedulers or self.schedulers()
        joined = [LightClient(self, user, names[number % len(names)], **params) for number, user in enumerate(users)]
        for first in range(0, len(joined), AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                for client in joined[first : first + AT_ONCE]:
                    tasks.create_task(client.connect())
        self.all += joined
        return joined

    async def send(self, body: Any) -> None:
        """Send everybody a message."""
        url = f"{self._url(self._im)}/v1/messages"
        for first in range(0, len(self.all), AT_ONCE):
            async with asyncio.TaskGroup() as tasks:
                for client in self.all[first : first + AT_ONCE]:
                    tasks.create_task(self._send(url, client.user, body))

    async def _send(self, url: str, user: str, body: Any) -> None:
        message = {"from": "sender", "to": user, "client_msg_id": f"{user}-{body}", "body": body}
        async with self.http.post(url, json=message, headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()

    async def have(self, *bodies: Any) -> None:
        """Wait until everybody got these in this order, and nothing else."""

        async def look() -> bool:
            return all(client.got == list(bodies) for client in self.all)

        await eventually(look)

    def at(self, *names: str) -> list[LightClient]:
        """Those who are at one of the nodes."""
        return [client for client in self.all if client.node in names]

    @property
    def untold(self) -> list[int | None]:
        """Close codes of all who were closed without a move first."""
        return [code for client in self.all for code in client.closes]

    async def close(self) -> None:
        self.is_closing = True
        for socket in self.sockets:
            with suppress(aiohttp.ClientError):
                await socket.close()


@asynccontextmanager
async def clients(
    url: Callable[[str], str], key: str, *, schedulers: Callable[[], Sequence[str]], im: str
) -> AsyncIterator[Clients]:
    """Clients until the block ends."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        made = Clients(url, key, schedulers=schedulers, im=im, http=http, tasks=tasks)
        try:
            yield made
        finally:
            await made.close()
