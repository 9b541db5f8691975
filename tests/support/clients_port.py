"""The clients' port alone, and a client whose bytes are in the hands of the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from access.admission import Admission
from access.api import WEBSOCKET_PATH
from access.config import AccessConfig
from access.listener import Listener
from access.metrics import AccessMetrics
from access.ports import Connection
from base.clock import SystemClock
from base.http import HttpServer
from base.metrics import Metrics
from tests.support.ws_echo import Echo

SETTLE_S = 10.0
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
HEADERS: Mapping[str, str] = {
    "Host": "a1.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


def request(target: str = WEBSOCKET_PATH, method: str = "GET", **changes: str | None) -> bytes:
    """Return the head of an upgrade, with headers changed or, where None, left out: `Sec_WebSocket_Key="x"`."""
    headers: dict[str, str | None] = {**HEADERS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
    return f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


def get(path: str) -> bytes:
    """Return a plain request, after which the connection stays open."""
    return f"GET {path} HTTP/1.1\r\nHost: a1.example.com\r\n\r\n".encode()


def frame(opcode: int, payload: bytes = b"", *, first: int = 0x80, mask: bytes | None = bytes(4)) -> bytes:
    """Return a frame as a client sends it. Written apart from the codec, so that both are not wrong in one way."""
    size = len(payload)
    short, long = (size, b"") if size < 126 else (126, size.to_bytes(2)) if size < 65_536 else (127, size.to_bytes(8))
    if mask is None:
        return bytes([first | opcode, short]) + long + payload
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if any(mask) else payload
    return bytes([first | opcode, 0x80 | short]) + long + mask + masked


class Answer(NamedTuple):
    """A response to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        """Return what every failure tells as JSON."""
        assert self.headers["content-type"].startswith("application/json")
        told = json.loads(self.body)["error"]
        assert isinstance(told, dict)
        return told


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def connect(
        cls, url: str, *, tls: ssl.SSLContext | None = None, buffer: int = 0, source: str = ""
    ) -> RawClient:
        """Open the connection and say nothing.

        `buffer`: bytes that the client's socket holds unread, 0 as usual. `source`: the address it comes from, such as
        127.0.0.2.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None
        made = socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET)
        if buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        try:
            if source:
                made.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(made, (parts.hostname, parts.port))
        except OSError:
            made.close()
            raise
        hostname = parts.hostname if tls is not None else None
        reader, writer = await asyncio.open_connection(sock=made, ssl=tls, server_hostname=hostname, limit=2**20)
        return cls(reader, writer)

    @classmethod
    async def upgraded(cls, url: str, **options: Any) -> RawClient:
        """Open a WebSocket."""
        client = await cls.connect(url, **options)
        client.send(request(urlsplit(url).path or WEBSOCKET_PATH))
        assert (await client.answer()).status == 101
        return client

    def send(self, *segments: bytes) -> None:
        """Send bytes; nothing is waited for."""
        self.writer.write(b"".join(segments))

    async def answer(self) -> Answer:
        """Read a response."""
        async with asyncio.timeout(SETTLE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split(" ")[1]), headers, body)

    async def frame(self) -> tuple[int, bytes]:
        """Read a frame: its first byte without FIN, and its payload."""
        async with asyncio.timeout(SETTLE_S):
            first, size = await self._reader.readexactly(2)
            if size >= 126:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8))
            return first & 0x7F, await self._reader.readexactly(size)

    async def message(self) -> Any:
        """Read up to the next message, as JSON; pings of the protocol on the way are answered."""
        while True:
            opcode, payload = await self.frame()
            assert opcode == TEXT, (opcode, payload)
            if payload != b"{}":
                return json.loads(payload)
            self.send(frame(TEXT, b"{}"))

    async def close_code(self) -> int:
        """Read up to the close frame; return its code."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2])

    async def is_over(self) -> bytes:
        """Wait until the other side hung up, however it did; return what it sent before."""
        async with asyncio.timeout(SETTLE_S):
            try:
                return await self._reader.read()
            except (ConnectionError, ssl.SSLError):
                return b""
            finally:
                self.hang_up()

    def hang_up(self) -> None:
        """Close the connection at once, without a goodbye."""
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Hang up, and wait until nothing is left of it."""
        self.hang_up()
        with contextlib.suppress(OSError):  # however it ended
            await self.writer.wait_closed()


class Gate(Echo):
    """An echo that counts its clients as a node does."""

    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission | None = None
        self.addresses: list[str] = []
        self._of: dict[Connection, str] = {}

    def arrived(self, connection: Connection, address: str) -> str:
        assert self.admission is not None
        self.admission.enter(address)
        self.addresses.append(address)
        self._of[connection] = address
        return super().arrived(connection, address)

    def gone(self, connection: Connection) -> None:
        assert self.admission is not None
        self.admission.leave(self._of.pop(connection))
        super().gone(connection)


class Port:
    """A listener and what is behind it."""

    def __init__(self, config: AccessConfig) -> None:
        clock = SystemClock()
        self.metrics = Metrics("port")
        metrics = AccessMetrics(self.metrics, node="port", connections=lambda: 0)
        self.http = HttpServer("port", self.metrics, statistics=dict, is_public=True)
        self.gate = Gate()
        self._clients: list[RawClient] = []
        self.admission = self.gate.admission = Admission(config, clock, metrics)
        self.listener = Listener(
            config,
            clock,
            node="port",
            http=self.http,
            websockets={WEBSOCKET_PATH: self.gate},
            admission=self.admission,
            metrics=metrics,
        )

    @property
    def url(self) -> str:
        return self.listener.url

    async def client(self, *segments: bytes, **options: Any) -> RawClient:
        """Return a new connection that sent these; it is closed with the port at the latest."""
        client = await RawClient.connect(self.url, **options)
        self._clients.append(client)
        client.send(*segments)
        return client

    async def upgraded(self, *frames: bytes, **options: Any) -> RawClient:
        """Return a WebSocket that sent these."""
        client = await self.client(request(), **options)
        assert (await client.answer()).status == 101
        client.send(*frames)
        return client

    async def close(self) -> None:
        """Close it, and its clients."""
        for connection in list(self.gate.here):
            connection.abort()
        await self.listener.close()
        for client in self._clients:
            await client.gone()

    def counted(self, name: str) -> dict[str, int]:
        """Return the values of a counter with one label, `access_dropped` say, by that label."""
        return counter(self.metrics.render().decode(), name)


def counter(exposition: str, name: str) -> dict[str, int]:
    """Return the values of a counter by its label; by "" one that has none."""
    return {
        next((value for label, value in sample.labels.items() if label != "node"), ""): int(sample.value)
        for family in text_string_to_metric_families(exposition)
        if family.name == f"roadstead_{name}"
        for sample in family.samples
        if sample.name.endswith("_total")
    }


@asynccontextmanager
async def listening(
    *, host: str = "127.0.0.1", routes: Iterable[web.AbstractRouteDef] = (), **settings: Any
) -> AsyncIterator[Port]:
    """Run a clients' port until the block ends; with all limits off that are not named. `routes`: HTTP beside it."""
    port = Port(AccessConfig(**{"accepts_per_second": 0, **settings}))
    port.http.app.router.add_routes(routes)
    await port.listener.listen(host, 0)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(port.listener.run())
        try:
            yield port
        finally:
            running.cancel()
            await port.close()
    await until(lambda: not port.gate.here)


async def until(holds: Callable[[], object]) -> None:
    """Return once it holds; fail after SETTLE_S."""
    async with asyncio.timeout(SETTLE_S):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


class CertificateFiles(NamedTuple):
    """A self-signed certificate for 127.0.0.1, and its key."""

    chain: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> CertificateFiles:
        made = cls(folder / f"{name}.pem", folder / f"{name}.key")
        command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
        files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(made.key), "-out", str(made.chain)]
        subprocess.run([*command.split(), *files], check=True, capture_output=True)
        return made

    def trusted(self) -> ssl.SSLContext:
        """Return the context of a client that trusts this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.chain))
