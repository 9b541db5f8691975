"""Connections before their first request, and what is none: on real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import pytest
import uvloop
from aiohttp import web
from structlog.testing import capture_logs

from base import heads
from base.heads import Heads
from base.http import HttpServer
from base.metrics import Metrics
from base.proxied import Proxied

SOON_S = 5.0
GET = b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n"
HERE, THERE = "127.0.0.1", "127.0.0.2"


class Connection(NamedTuple):
    """A client's."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, *parts: bytes) -> int:
        """Send a request in parts; return the status of its answer, 0 if there is none."""
        async with asyncio.timeout(SOON_S):
            try:
                for part in parts:
                    self.writer.write(part)
                    await asyncio.sleep(0.002)
                head = await self.reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await self.reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0
        return int(head.split()[1])

    async def is_over(self) -> bytes:
        """Return what comes up to the end."""
        async with asyncio.timeout(SOON_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


class Port:
    """A server, and connections to it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.metrics = Metrics("n")
        self.http = HttpServer("n", self.metrics, statistics=dict)
        self.heads = next(layer for layer in self.http.layers if isinstance(layer, Heads))
        self._stack = stack

    async def connect(self, source: str = HERE) -> Connection:
        port = int(self.http.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        self._stack.callback(writer.close)
        return Connection(reader, writer)

    def counted(self, name: str) -> dict[str, int]:
        """Return the values of a counter by its label."""
        pattern = re.compile(rf"^roadstead_{name}_total{{(?:name|node|reason)=.*}} \S+$", re.MULTILINE)
        lines = pattern.findall(self.metrics.render().decode())
        return {re.findall(r'(?:name|reason)="(\w+)"', line)[0]: int(float(line.split()[-1])) for line in lines}

    async def settled(self, number: int) -> None:
        """Wait until so many are before the end of their head."""
        async with asyncio.timeout(SOON_S):
            while len(self.heads) != number:  # noqa: ASYNC110 - the other end of a socket
                await asyncio.sleep(0.002)


@asynccontextmanager
async def listening(*layers: Proxied) -> AsyncIterator[Port]:
    async with AsyncExitStack() as stack:
        port = Port(stack)
        port.http.layers.extend(layers)
        await port.http.listen("127.0.0.1", 0)
        try:
            yield port
        finally:
            await port.http.close()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_request_is_served_however_its_head_is_cut(factory: Callable[[], asyncio.AbstractEventLoop]):
    """With empty lines before it, too; and the next ones on its connection, which has its place no more."""

    async def main() -> None:
        async with listening() as port:
            for at in range(0, len(GET), 7):
                connection = await port.connect()
                assert await connection.ask(b"\r\n\r\n", GET[:at], GET[at:]) == 200
                assert await connection.ask(GET) == 200
            assert len(port.heads) == 0
            assert port.counted("http_dropped") == {}

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_a_head_that_comes_too_slowly_is_dropped_however_steadily_it_comes(monkeypatch: pytest.MonkeyPatch):
    """As one of which nothing comes; a connection that had its request is not."""
    monkeypatch.setattr(heads, "HEAD_S", 0.15)
    async with listening() as port:
        served = await port.connect()
        assert await served.ask(GET) == 200
        silent, dripping = await port.connect(), await port.connect()
        for byte in GET[:-2] * 2:
            dripping.writer.write(bytes([byte]))
            await asyncio.sleep(0.005)
            if dripping.reader.at_eof() or dripping.reader.exception():
                break
        assert (await silent.is_over(), await dripping.is_over()) == (b"", b"")
        assert port.counted("http_dropped") == {"slow": 2}
        assert len(port.heads) == 0
        assert await served.ask(GET) == 200


async def test_each_has_its_time_however_many_are_there(monkeypatch: pytest.MonkeyPatch):
    """Those that came later are dropped later, and in between a request comes through."""
    monkeypatch.setattr(heads, "HEAD_S", 0.2)
    async with listening() as port:
        loop = asyncio.get_running_loop()
        took: list[float] = []

        async def idle() -> None:
            connection = await port.connect()
            began = loop.time()
            await connection.is_over()
            took.append(loop.time() - began)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(idle())
                await asyncio.sleep(0.07)
                assert await (await port.connect()).ask(GET) == 200
        assert all(0.15 <= each < SOON_S / 2 for each in took)
        assert port.counted("http_dropped") == {"slow": 6}


async def test_one_address_leaves_places_to_others(monkeypatch: pytest.MonkeyPatch):
    """Half of them; and it has them again with a request, or when it hangs up."""
    monkeypatch.setattr(heads, "HEADS_MAX", 4)
    async with listening() as port:
        held = [await port.connect() for _ in range(2)]
        await port.settled(2)
        assert await (await port.connect()).is_over() == b""
        assert port.counted("http_dropped") == {"too_many": 1}
        assert await (await port.connect(THERE)).ask(GET) == 200
        assert await held[0].ask(GET) == 200
        assert await (await port.connect()).ask(GET) == 200
        held[1].writer.close()
        await port.settled(0)


async def test_whom_the_balancer_names_has_the_place(monkeypatch: pytest.MonkeyPatch):
    """Not the balancer, of which nobody is dropped."""
    monkeypatch.setattr(heads, "HEADS_MAX", 4)
    async with listening(Proxied(["127.0.0.0/8"], dropped=pytest.fail)) as port:
        for n in range(3):
            (await port.connect()).writer.write(b"PROXY TCP4 192.0.2.%d 198.51.100.2 1 80\r\n" % n)
        await port.settled(3)
        assert await (await port.connect()).ask(b"PROXY TCP4 192.0.2.9 198.51.100.2 1 80\r\n" + GET) == 200


async def test_a_head_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    """Of what is longer than any head nothing is served."""
    monkeypatch.setattr(heads, "HEAD_BYTES_MAX", 1_000)
    async with listening() as port:
        connection = await port.connect()
        assert await connection.ask(GET[:-2], b"A: " + b"a" * 1_000) == 0
        assert port.counted("http_dropped") == {"long_head": 1}


async def test_a_port_that_closes_drops_who_is_before_the_end_of_its_head():
    """That is no fault of theirs, and not counted."""
    async with listening() as port:
        connection = await port.connect()
        await port.settled(1)
        await port.http.close()
        assert await connection.is_over() == b""
        assert port.counted("http_dropped") == {}


# ---------------------------------------------------------------- what is no request


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        GET + b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=["target", "version", "field", "long line", "one word", "tls", "the second"],
)
async def test_what_is_no_request_fails_as_any_request(
    sent: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    """One shape of answers, one event in our log, one count; nothing beside it."""
    async with listening() as port:
        with capture_logs() as logged:
            connection = await port.connect()
            connection.writer.write(sent)
            answers = await connection.is_over()
        head, _, body = answers[answers.rindex(b"HTTP/1.") :].partition(b"\r\n\r\n")
        assert head.split()[1] == b"400"
        assert b"Content-Type: application/json" in head
        assert answers.count(b"Server: roadstead\r\n") == answers.count(b"HTTP/1.")
        assert json.loads(body)["error"]["name"] == "bad_request"
        assert [(event["event"], event["log_level"], event["address"]) for event in logged] == [
            ("request_malformed", "info", HERE)
        ]
        assert port.counted("http_errors") == {"bad_request": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert capfd.readouterr().err == ""


async def test_what_fails_outside_of_the_application_is_our_bug():
    """An error behind the handlers: a bare 500, and all of it in our log; in the middle of an answer, the end."""

    async def begun(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"beginning")
        return answer

    async def fail(request: web.Request, handler: Any) -> web.StreamResponse:
        await handler(request)
        raise ValueError("a bug")

    async with AsyncExitStack() as stack:
        port = Port(stack)
        port.http.app.middlewares.insert(0, web.middleware(fail))
        port.http.app.router.add_get("/begun", begun)
        await port.http.listen("127.0.0.1", 0)
        stack.push_async_callback(port.http.close)
        with capture_logs() as logged:
            assert await (await port.connect()).ask(GET) == 500
            connection = await port.connect()
            connection.writer.write(GET.replace(b"healthz", b"begun"))
            assert (await connection.is_over()).startswith(b"HTTP/1.1 200 ")
        assert [(event["event"], event["path"]) for event in logged] == [
            ("http_request_failed", "/healthz"),
            ("http_request_failed", "/begun"),
        ]
        assert all(isinstance(event["exc_info"], ValueError) for event in logged)
        assert port.counted("http_errors") == {"internal": 2}
