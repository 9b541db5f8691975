"""A scheduler and access nodes that do as they are told: what the clients' wrappers are tested against.

They speak the client protocol in JSON as far as the wrappers need it, over real sockets. All nodes serve one timeline;
each has its own view of presence, with its own epoch.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import WSMsgType, web

from base.errors import retry_of

USER = "bob"
INBOX = f"inbox:{USER}"
PATH = "/connection/websocket"


class Session:
    """A client's connection to a node."""

    def __init__(self, node: FakeNode, socket: web.WebSocketResponse) -> None:
        self.node = node
        self.socket = socket
        self.channels: set[str] = set()

    async def push(self, push: dict[str, Any]) -> None:
        with suppress(ConnectionError):  # it is closing
            await self.socket.send_str(json.dumps({"push": push}))

    async def run(self) -> None:
        async for message in self.socket:
            if message.type is not WSMsgType.TEXT:
                return
            for line in message.data.splitlines():
                command = json.loads(line)
                if command.get("id") and not self.node.is_silent:
                    await self._answer(command)

    async def _answer(self, command: dict[str, Any]) -> None:
        if "connect" in command:
            answer = await self._connect(command["connect"])
        elif "subscribe" in command:
            if self.node.before_subscribe is not None:
                await self.node.before_subscribe()
            answer = self._subscribe(command["subscribe"])
        elif "unsubscribe" in command:
            self.channels.discard(command["unsubscribe"]["channel"])
            answer = {"unsubscribe": {}}
        else:
            answer = self._call(**command["rpc"])
        if answer is not None:
            await self.socket.send_str(json.dumps({"id": command["id"], **answer}))

    async def _connect(self, request: dict[str, Any]) -> dict[str, Any] | None:
        world = self.node.world
        world.connects.append(self.node.name)
        if self.node.closes_connects is not None:
            await self.socket.close(code=self.node.closes_connects, message=b"as told")
            return None
        if request["token"] in world.used:
            return {"error": {"code": 109, "message": "token expired"}}
        world.used.add(request["token"])
        return {"connect": {"client": f"{self.node.name}-{len(world.used)}", "ping": 25, "pong": True}}

    def _subscribe(self, request: dict[str, Any]) -> dict[str, Any]:
        channel = request["channel"]
        if channel in self.node.world.refused:
            return {"error": {"code": 103, "message": "permission denied"}}
        epoch, offset = request.get("epoch", ""), request.get("offset", 0)
        self.node.world.asked.append((self.node.name, channel, epoch, offset))
        wants = bool(request.get("recover"))
        if channel == INBOX:
            head, current = len(self.node.world.timeline), self.node.world.epoch
            entries = list(enumerate(self.node.world.timeline, 1))[offset:]
            is_recovered = wants and (epoch == current or (epoch, offset) == ("", 0))
            is_recovered = is_recovered and len(entries) <= self.node.world.recovery_max
            data = None
        else:
            head, current = self.node.states.get(channel, (1, "online"))[0], self.node.epoch
            data = self.node.states.get(channel, (1, "online"))[1]
            entries = [] if (epoch, offset) == (current, head) else [(head, data)]
            is_recovered = wants and channel not in self.node.world.unrecoverable
        if wants and not is_recovered and request["flag"] & 2:
            return {"error": {"code": 112, "message": "unrecoverable position"}}
        self.channels.add(channel)
        publications = [{"offset": at, "data": entry} for at, entry in entries] if is_recovered else []
        start = {"recoverable": True, "positioned": True, "epoch": current, "offset": head}
        return {
            "subscribe": {
                **start,
                "data": data,
                "was_recovering": wants,
                "recovered": is_recovered,
                "publications": publications,
            }
        }

    def _call(self, method: str, data: Any) -> dict[str, Any]:
        world = self.node.world
        world.calls[method] += 1
        world.arguments.append((method, data))
        if world.failures:
            return {"error": world.failures.pop(0)}
        if method in world.methods:
            return {"rpc": {"data": world.methods[method](data)}}
        if method == "im.send":
            return {"rpc": {"data": {"is_new": True, "id": data["client_msg_id"]}}}
        if method == "im.sync":
            since, limit = data["since"], min(data["limit"], world.page_max)
            entries = [{"offset": at, "data": entry} for at, entry in enumerate(world.timeline, 1)]
            page = entries[since : since + limit]
            has_more = since + limit < len(entries)
            return {"rpc": {"data": {"epoch": world.epoch, "entries": page, "has_more": has_more}}}
        if method == "where":
            return {"rpc": {"data": self.node.name}}
        return {"error": {"code": 104, "message": "method not found"}}


class FakeNode:
    """One access node."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.url = ""
        self.epoch = f"view-of-{name}"
        self.states: dict[str, tuple[int, Any]] = {}
        self.sessions: list[Session] = []
        self.is_refusing = False
        self.is_silent = False
        self.closes_connects: int | None = None
        self.before_subscribe: Callable[[], Awaitable[None]] | None = None
        self._listener = _Listener({PATH: self.serve})

    async def start(self) -> None:
        self.url = f"ws://127.0.0.1:{await self._listener.start()}{PATH}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.is_refusing:
            return web.Response(status=503, headers={"Retry-After": "1"})
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        session = Session(self, socket)
        self.sessions.append(session)
        try:
            await session.run()
        finally:
            self.sessions.remove(session)
        return socket

    async def tell(self, channel: str, offset: int, data: Any) -> None:
        for session in tuple(self.sessions):
            if channel in session.channels:
                await session.push({"channel": channel, "pub": {"offset": offset, "data": data}})

    async def set_state(self, channel: str, state: Any) -> None:
        offset = self.states.get(channel, (1, None))[0] + 1
        self.states[channel] = (offset, state)
        await self.tell(channel, offset, state)

    async def move_all(self, url: str, ticket: str) -> None:
        """Ask everybody to go, as a node that drains does."""
        move = {"node": "another", "url": url, "ticket": ticket, "after_ms": 10_000}
        for session in tuple(self.sessions):
            await session.push({"message": {"data": {"move": move}}})

    async def close_all(self, code: int, reason: str = "as told") -> None:
        for session in tuple(self.sessions):
            await session.socket.close(code=code, message=reason.encode())

    async def kill(self) -> None:
        """No close frame, no further connection."""
        for session in tuple(self.sessions):
            transport = session.socket._req.transport if session.socket._req else None
            assert transport is not None
            transport.abort()
        await self._listener.stop()

    async def stop(self) -> None:
        await self.close_all(3001)
        await self._listener.stop()


class World:
    """What all nodes share, and the scheduler, which answers with `candidates` or refuses with `refusals` first."""

    def __init__(self) -> None:
        self.timeline: list[Any] = []
        self.epoch = "first"
        self.recovery_max = 1_000
        self.page_max = 1_000
        self.unrecoverable: set[str] = set()
        self.refused: set[str] = set()
        self.nodes: dict[str, FakeNode] = {}
        self.candidates: list[str] = []
        self.refusals: list[dict[str, Any]] = []
        self.backoff = {"base_ms": 1, "ceiling_ms": 8}
        self.more: dict[str, Any] = {}
        """What else stands in an answer."""
        self.probed: list[str] = []
        self.used: set[str] = set()
        self.connects: list[str] = []
        self.asked: list[tuple[str, str, str, int]] = []
        self.calls: Counter[str] = Counter()
        self.arguments: list[tuple[str, Any]] = []
        self.methods: dict[str, Callable[[Any], Any]] = {}
        """What a test answers by itself."""
        self.failures: list[dict[str, Any]] = []
        self.questions: list[tuple[float, dict[str, str], str]] = []
        self.scheduler = ""
        self.schedulers: list[str] = []
        """All of them; `scheduler` is the first."""
        self.asked_at: list[str] = []
        """Which scheduler had each question."""
        self.gateways: dict[str, tuple[int, str, str]] = {}
        """What stands before a scheduler and answers for it: status, content type, text."""
        self.gateway_headers: dict[str, str] = {}
        self._tickets = 0

    def ticket(self) -> str:
        self._tickets += 1
        return f"ticket-{self._tickets}"

    async def publish(self, *entries: Any) -> None:
        for entry in entries:
            self.timeline.append(entry)
            for node in self.nodes.values():
                await node.tell(INBOX, len(self.timeline), entry)

    async def access(self, request: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        self.questions.append((now, dict(request.query), request.headers.get("Authorization", "")))
        scheduler = f"http://{request.host}"
        self.asked_at.append(scheduler)
        if scheduler in self.gateways:
            status, kind, text = self.gateways[scheduler]
            return web.Response(status=status, content_type=kind, text=text, headers=self.gateway_headers)
        if self.refusals:
            refusal = self.refusals.pop(0)
            told = {"name": "as told", "retry": retry_of(refusal["code"]).value}
            return web.json_response({"error": told | refusal}, status=503)
        candidates = [{"id": name, "region": "", "urls": {"websocket": self.url(name)}} for name in self.candidates]
        answer = {"candidates": candidates, "ticket": self.ticket(), "ttl_ms": 60_000, "backoff": self.backoff}
        return web.json_response(answer | self.more)

    async def probe(self, request: web.Request) -> web.Response:
        """Answer a probe of a region; "gone" has no such place, "slow" never answers."""
        region = request.match_info["region"]
        self.probed.append(region)
        if region == "slow":
            await asyncio.Event().wait()
        return web.Response(status=404 if region == "gone" else 200)

    def url(self, name: str) -> str:
        """Where a node is, or where none listens."""
        return self.nodes[name].url if name in self.nodes else f"ws://127.0.0.1:1{PATH}"


class _Listener:
    """An HTTP server on a free port: handlers by path."""

    def __init__(self, handlers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]) -> None:
        app = web.Application()
        for path, handler in handlers.items():
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def fake_world(*names: str, schedulers: int = 1) -> AsyncIterator[World]:
    """Run schedulers and these nodes, which are their candidates in this order, until the block ends."""
    world = World()
    listeners = [_Listener({"/v1/access": world.access, "/probe/{region}": world.probe}) for _ in range(schedulers)]
    try:
        for listener in listeners:
            world.schedulers.append(f"http://127.0.0.1:{await listener.start()}")
        world.scheduler = world.schedulers[0]
        for name in names:
            world.nodes[name] = FakeNode(world, name)
            world.candidates.append(name)
            await world.nodes[name].start()
        yield world
    finally:
        for node in world.nodes.values():
            await node.stop()
        for listener in listeners:
            await listener.stop()
