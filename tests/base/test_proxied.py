"""An HTTP port behind a load balancer that speaks the PROXY protocol, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from aiohttp import web

from base import proxied
from base.http import HttpServer
from base.metrics import Metrics
from base.proxied import Proxied, _Named

SOON_S = 5.0
GET = b"GET /who HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 80\r\n"
V2_START = b"\r\n\r\n\x00\r\nQUIT\n"
V2 = V2_START + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 9, 198, 51, 100, 2, 0xDC, 0x04, 0, 80])
V2_SIX = V2_START + b"\x21\x21\x00\x24" + bytes.fromhex("20010db8" + "00" * 11 + "07") + bytes(16) + b"\xdc\x04\0\x50"
V2_LOCAL = V2_START + b"\x20\x00\x00\x00"


class Port:
    """A server that says whom it sees."""

    def __init__(self, proxies: tuple[str, ...]) -> None:
        self.dropped: list[str] = []
        self.http = HttpServer("node", Metrics("node"), statistics=dict)
        self.http.app.router.add_route("*", "/who", self._who)
        self.http.layers.append(Proxied(proxies, dropped=self.dropped.append))

    async def _who(self, request: web.Request) -> web.Response:
        return web.Response(text=f"{request.remote} {(await request.read()).decode()}")

    async def ask(self, *parts: bytes) -> bytes:
        """Send the parts one by one; return the body of the answer, nothing if the connection was dropped."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(SOON_S):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                answer = await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
        return answer.partition(b"\r\n\r\n")[2]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.http.url.removeprefix("http://").rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port))


@asynccontextmanager
async def listening(*proxies: str, host: str = "127.0.0.1") -> AsyncIterator[Port]:
    port = Port(proxies)
    await port.http.listen(host, 0)
    try:
        yield port
    finally:
        await port.http.close()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_client_is_whom_the_header_names(factory: Callable[[], asyncio.AbstractEventLoop]):
    """Of both versions, however the bytes come; where it names nobody, the balancer itself."""

    async def main() -> None:
        async with listening("127.0.0.0/8") as port:
            for header, client in (
                (V1, b"192.0.2.1 "),
                (V2, b"192.0.2.9 "),
                (V2_SIX, b"2001:db8::7 "),
                (V2_LOCAL, b"127.0.0.1 "),
                (b"PROXY UNKNOWN\r\n", b"127.0.0.1 "),
            ):
                stream = header + GET
                for parts in ([stream], [header, GET], [bytes([byte]) for byte in stream]):
                    assert await port.ask(*parts) == client
            assert port.dropped == []

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def test_a_long_body_and_answer_go_through() -> None:
    """With what that takes of reading and writing in pieces."""
    body = b"x" * 900_000
    head = b"POST /who HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with listening("127.0.0.1") as port:
        assert await port.ask(V1 + head, body) == b"192.0.2.1 " + body


async def test_a_connection_without_the_header_is_dropped() -> None:
    """A client that came past the balancer, or a balancer that is not set up for it."""
    async with listening("127.0.0.0/8") as port:
        for start in (GET, b"PROXY TCP4 nonsense\r\n" + GET, V2_START + b"\xff"):
            assert await port.ask(start) == b""
        assert port.dropped == ["bad_proxy_header"] * 3


async def test_a_header_from_elsewhere_is_not_believed() -> None:
    """Whoever may write one can choose an address."""
    async with listening("10.0.0.0/8", "2001:db8::/32") as port:
        assert await port.ask(V1 + GET) == b""
        assert port.dropped == ["unknown_proxy"]


def test_a_balancer_is_known_by_its_network():
    """An IPv4 one on a port for both kinds, too."""
    layer = Proxied(("10.0.0.0/8", "2001:db8::/32", "fe80::/10"), dropped=print)
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "fe80::1%eth0"):
        assert layer.is_known(host)
    for host in ("11.1.2.3", "::ffff:11.1.2.3", "2001:db9::1", "::10.1.2.3"):
        assert not layer.is_known(host)


class Accepted(asyncio.Transport):
    """A connection that was accepted, and perhaps lost since: it has no peer then."""

    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(("peer", "reason"), [(None, "gone"), (("192.0.2.1", 1), "unknown_proxy")])
def test_what_still_comes_of_a_dropped_connection_is_nothing(peer: object, reason: str):
    """It is dropped once."""
    dropped: list[str] = []
    arrival = Proxied(("10.0.0.0/8",), dropped=dropped.append).over(asyncio.Protocol)()
    transport = Accepted({"peername": peer})
    arrival.connection_made(transport)
    assert transport.is_aborted
    arrival.data_received(V1)
    arrival.connection_lost(None)
    assert dropped == [reason]


async def test_who_is_slow_with_the_header_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a header holds nothing for long."""
    monkeypatch.setattr(proxied, "HEADER_S", 0.05)
    async with listening("127.0.0.0/8") as port:
        assert await port.ask(V1[:10]) == b""
        assert port.dropped == ["slow"]


async def test_who_hangs_up_before_the_header_is_forgotten() -> None:
    """And who still waits when the port is closed."""
    async with listening("127.0.0.0/8") as port:
        _, writer = await port.connect()
        writer.write(V1[:10])
        writer.close()
        async with asyncio.timeout(SOON_S):
            while not port.dropped:  # noqa: ASYNC110 - the other end of a socket
                await asyncio.sleep(0.001)
        reader, writer = await port.connect()
        writer.write(V1 + GET[:-2])
        waiting_reader, waiting = await port.connect()
        waiting.write(V1[:10])
        assert await port.ask(V1 + GET) == b"192.0.2.1 "
    assert await waiting_reader.read() == b""
    assert await reader.read() == b""
    assert port.dropped == ["gone", "closed"]
    writer.close()
    waiting.close()


def test_whatever_a_transport_can_do_is_passed_on():
    """What is not would fail on the day that somebody needs it."""
    names = {name for kind in (asyncio.Transport, asyncio.BaseTransport) for name in vars(kind) if name[0] != "_"}
    assert names <= vars(_Named).keys()
