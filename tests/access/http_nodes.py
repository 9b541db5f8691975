"""Two nodes with the HTTP transports, and in the place of their clients' sessions a gateway that answers by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from aiohttp import ClientResponse, ClientSession, web

from access.api import SERVICE
from access.core.outgoing import ENCODINGS, PINGS, Outgoing, wrap
from access.core.protocol import Close, ConnectResult, Publication, RpcResult
from access.http import HttpConnection
from access.ports import Connection
from access.transports import HttpTransports
from access.websocket import TransportLimits
from base.clock import SimClock, SystemClock
from base.errors import Overloaded
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.node import Node
from base.peer import PeerPool
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust

SETTLE_S = 10.0
ORIGIN = "https://app.example.com"
CONNECT = '{"id":1,"connect":{"token":"t"}}'
LIMITS = TransportLimits(frame_bytes_max=4_096, write_bytes_max=65_536)
AWAY_MS = 10_000


class EchoGateway:
    """Lets everybody in, answers an rpc with its data, and holds the transports to their contract."""

    def __init__(self, node: str) -> None:
        self.here: list[HttpConnection] = []
        self.frames: list[bytes] = []
        self.addresses: list[str] = []
        self.ended: list[int] = []
        self._node = node

    def arrived(self, connection: Connection, address: str) -> str:
        assert isinstance(connection, HttpConnection)
        assert connection.client is None
        connection.client = self
        self.here.append(connection)
        self.addresses.append(address)
        return f"client-{len(self.addresses)}"

    def received(self, connection: Connection, frame: bytes) -> None:
        assert isinstance(connection, HttpConnection)
        assert connection.client is self, "nothing comes before `arrived` or after `gone`"
        self.frames.append(frame)
        encoding = ENCODINGS[connection.form]
        for command in encoding.decode_frame(frame):
            if command.connect is not None:
                kind, result = "connect", ConnectResult("c", "", 25, True, connection.session, self._node)
            elif command.rpc is not None:
                kind, result = "rpc", RpcResult(command.rpc.data)
            else:
                continue
            connection.write(wrap(connection.form, encoding.encode_reply(command.id, kind, result)))

    def crowded(self, connection: Connection) -> None:
        pass

    def relieved(self, connection: Connection) -> None:
        pass

    def gone(self, connection: Connection) -> None:
        assert isinstance(connection, HttpConnection)
        assert connection.client is self, "`gone` comes once"
        connection.client = None
        self.here.remove(connection)
        self.ended.append(connection.code)

    def publish(self, offset: int, data: str = "1", replaces: int | None = None) -> None:
        """Write a publication to everybody."""
        push = Outgoing("news", Publication(msgspec.Raw(data.encode()), offset=offset))
        for connection in list(self.here):
            connection.write(push.frame(connection.form), replaces)

    def ping(self) -> None:
        for connection in self.here:
            connection.write(PINGS[connection.form])

    def close_all(self, close: Close) -> None:
        for connection in list(self.here):
            connection.close(close)


class HttpNode:
    """One of the two nodes."""

    def __init__(self, name: str, registry: MemoryRegistry) -> None:
        site = Site(
            name=NodeId(name),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=registry,
            clock=SystemClock(),
            trust=Trust.of_key("key"),
            credentials=Credentials({}),
            config=NodeConfig(),
        )
        self.name = name
        self.clock = SimClock()
        self.gateway = EchoGateway(name)
        self.refuses = False
        self.is_full = False
        self.node = Node(site, SERVICE, statistics=dict)
        self.pool = PeerPool(site, SERVICE)
        self.transports = HttpTransports(
            self.gateway,
            node=name,
            peers=self.pool,
            clock=self.clock,
            admit=self._admit,
            address_of=lambda request: f"from {request.headers.get('X-From', request.remote)}",
            check_room=self._check_room,
            allows=lambda origin: origin == ORIGIN,
            limits=LIMITS,
            away_ms=AWAY_MS,
        )
        self.transports.add_routes(self.node.http.app)
        self.transports.serve(self.node.peers)

    def _admit(self, _request: web.Request) -> None:
        if self.refuses:
            raise Overloaded("full", what="connections", retry_after_ms=1_500)

    def _check_room(self, address: str) -> None:
        assert address.startswith("from ")
        if self.is_full:
            raise Overloaded("full", what="connections", retry_after_ms=1_500)

    def url(self, path: str) -> str:
        return self.node.http.url + path


class Nodes:
    """Both, and a client's HTTP session."""

    def __init__(self, one: HttpNode, two: HttpNode, http: ClientSession) -> None:
        self.one = one
        self.two = two
        self.http = http

    async def emulate(self, at: HttpNode, session: str, data: Any, *, node: str = "access-1") -> int:
        body = {"node": node, "session": session, "data": data}
        async with self.http.post(at.url("/emulation"), json=body) as response:
            return response.status


@asynccontextmanager
async def running_nodes() -> AsyncIterator[Nodes]:
    registry = MemoryRegistry(SystemClock())
    one, two = (HttpNode(name, registry) for name in ("access-1", "access-2"))
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        running = []
        for node in (one, two):
            await node.node.listen()
            stack.push_async_callback(node.node.close)
            await node.node.join()
            running += [tasks.create_task(node.transports.run()), tasks.create_task(node.pool.run())]
        http = await stack.enter_async_context(ClientSession())
        try:
            yield Nodes(one, two, http)
        finally:
            for task in running:
                task.cancel()
    assert not one.gateway.here
    assert not two.gateway.here


async def until(holds: Callable[[], object]) -> None:
    """Return once it holds; fail after SETTLE_S."""
    async with asyncio.timeout(SETTLE_S):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


class Lines:
    """Reads the messages of a JSON stream or of server-sent events."""

    def __init__(self, response: ClientResponse) -> None:
        self._response = response
        self._prefix = b"data: " if response.content_type == "text/event-stream" else b""

    async def next(self) -> Any:
        """Return the next message, None at the end of the stream."""
        async with asyncio.timeout(SETTLE_S):
            line = await self._response.content.readline()
            if not line:
                return None
            if self._prefix:
                assert await self._response.content.readline() == b"\n", "an event ends with an empty line"
        assert line.startswith(self._prefix)
        return msgspec.json.decode(line[len(self._prefix) :])
