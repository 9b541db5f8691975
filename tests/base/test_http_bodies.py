"""Bodies as clients send them: too long, too slow, broken. The fault is theirs, and is told so."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from base import http as http_module
from base.http import HttpServer, body_of, json_body, json_response
from base.metrics import Metrics

PORT_MAX = 1_000
ROUTE_MAX = 10


class Port:
    """A port whose routes read a body in one way each."""

    def __init__(self) -> None:
        self.metrics = Metrics("n")
        self.http = HttpServer("n", self.metrics, statistics=dict, body_bytes_max=PORT_MAX)
        self.http.app.router.add_post("/any", self._any)
        self.http.app.router.add_post("/short", self._short)
        self.http.app.router.add_post("/json", self._json)
        self.http.app.router.add_post("/bare", self._bare)

    async def _any(self, request: web.Request) -> web.Response:
        return json_response(len(await body_of(request)))

    async def _short(self, request: web.Request) -> web.Response:
        return json_response(len(await body_of(request, bytes_max=ROUTE_MAX)))

    async def _json(self, request: web.Request) -> web.Response:
        return json_response(await json_body(request, list[int], bytes_max=ROUTE_MAX))

    async def _bare(self, request: web.Request) -> web.Response:
        return json_response(len(await request.read()))

    async def send(self, path: str, rest: bytes, *, hangs_up: bool = False) -> tuple[int, Any]:
        """Send a request from its headers on; return the status and what was answered."""
        _, _, port = self.http.url.rpartition(":")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: a\r\n".encode() + rest)
        await writer.drain()
        if hangs_up:
            writer.close()
            return 0, None
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        writer.close()
        return int(head.split()[1]), answer

    def failures(self) -> dict[str, float]:
        """Return how many requests failed, by name of the error."""
        pattern = re.compile(r'^roadstead_http_errors_total{name="(\w+)".*} (\S+)$', re.MULTILINE)
        return {name: float(count) for name, count in pattern.findall(self.metrics.render().decode())}


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    made = Port()
    await made.http.listen("127.0.0.1", 0)
    yield made
    await made.http.close()


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def chunked(body: bytes) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("framed", [sized, chunked])
@pytest.mark.parametrize(("path", "limit"), [("/any", PORT_MAX), ("/short", ROUTE_MAX), ("/bare", PORT_MAX)])
async def test_a_body_has_the_limit_of_its_route_or_else_of_the_port(port: Port, path: str, limit: int, framed: Any):
    """Whether its length is said before or not."""
    assert await port.send(path, framed(b" " * limit)) == (200, limit)
    status, answer = await port.send(path, framed(b" " * (limit + 1)))
    assert (status, answer["error"]["name"], answer["error"]["detail"]) == (413, "too_large", {"limit": limit})


async def test_a_body_that_announces_too_much_is_not_waited_for(port: Port):
    """Nothing of it has come."""
    status, _ = await port.send("/json", b"Content-Length: 1000000\r\n\r\n")
    assert status == 413
    assert await port.send("/json", sized(b"[1, 2]")) == (200, [1, 2])


async def test_a_body_must_arrive_in_time(port: Port, monkeypatch: pytest.MonkeyPatch):
    """Whoever sends none of it takes room for as long as that."""
    monkeypatch.setattr(http_module, "READ_TIMEOUT_S", 0.05)
    status, answer = await port.send("/json", b"Content-Length: 6\r\n\r\n[1,")
    assert (status, answer["error"]["name"]) == (400, "bad_request")
    assert answer["error"]["message"] == "the body did not arrive within 0.05 s"


@pytest.fixture
def unlogged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither the port logs anything, nor the HTTP server below it."""
    with capture_logs() as logs:
        yield
    assert not logs
    assert not [entry for entry in caplog.get_records("call") if entry.name.startswith("aiohttp")]


@pytest.mark.parametrize("path", ["/any", "/short", "/bare"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.usefixtures("unlogged")
async def test_a_body_that_is_not_encoded_as_it_says_is_no_defect_of_ours(port: Port, path: str, encoding: str):
    """It is told to the client, and not logged with a traceback."""
    status, answer = await port.send(path, f"Content-Encoding: {encoding}\r\n".encode() + sized(b"\xff" * 5))
    await port.http.close()
    assert (status, answer["error"]["name"]) == (400, "bad_request")
    assert port.failures() == {"bad_request": 1}


@pytest.mark.parametrize("path", ["/any", "/short", "/bare"])
@pytest.mark.usefixtures("unlogged")
async def test_a_client_that_goes_while_it_sends_is_no_defect_of_ours(port: Port, path: str):
    """It went into a tunnel."""
    await port.send(path, b"Content-Length: 6\r\n\r\n[1,", hangs_up=True)
    async with asyncio.timeout(5):
        while not port.failures():  # noqa: ASYNC110 - the port tells nobody else
            await asyncio.sleep(0.005)
    await port.http.close()
    assert port.failures() == {"bad_request": 1}
