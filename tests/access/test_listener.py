"""The clients' port: who becomes a WebSocket, who is served HTTP, who is refused, and who is too slow for either."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from access import listener as shell
from access.api import WEBSOCKET_PATH
from base.errors import ConfigError, Overloaded
from tests.support.clients_port import (
    TEXT,
    Port,
    frame,
    get,
    listening,
    request,
    until,
)

HELLO = frame(TEXT, b"hello", mask=b"\x01\x02\x03\x04")


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with listening() as made:
        yield made


async def ask(port: Port, head: bytes) -> Any:
    """Send a request on a connection of its own; return the answer after which that is closed."""
    client = await port.client(head)
    answer = await client.answer()
    assert await client.is_over() == b""
    return answer


# ---------------------------------------------------------------- WebSockets


async def test_an_upgrade_is_answered_and_what_came_behind_it_is_read(port: Port) -> None:
    """Frames in the same segment as the head are the first that the gateway gets, in their order."""
    client = await port.client(request(f"{WEBSOCKET_PATH}?a=b"), HELLO, frame(TEXT, b"2"), frame(TEXT, b"3")[:3])
    answer = await client.answer()
    assert (answer.status, answer.headers["sec-websocket-accept"]) == (101, "ICX+Yqv66kxgM0FcWaLWlFLwTAI=")
    assert [await client.frame() for _ in range(2)] == [(TEXT, b"hello"), (TEXT, b"2")]
    client.send(frame(TEXT, b"3")[3:])
    assert await client.frame() == (TEXT, b"3")
    assert (port.gate.addresses, port.listener.arrivals, port.admission.open) == (["127.0.0.1"], 0, 1)
    client.hang_up()
    await until(lambda: not port.gate.here)
    assert port.admission.open == 0


async def test_a_head_may_be_cut_anywhere(port: Port) -> None:
    """Into two parts at each of its bytes, and into single bytes."""
    head = request()
    clients = [await port.client() for _ in range(len(head) + 1)]
    for at, client in enumerate(clients):
        client.send(head[:at])
    await until(lambda: port.listener.arrivals + len(port.gate.here) == len(clients))
    for at, client in enumerate(clients):
        client.send(head[at:], HELLO)
    for client in clients:
        assert (await client.answer()).status == 101
        assert await client.frame() == (TEXT, b"hello")
        client.hang_up()
    single = await port.client()
    for byte in head + HELLO:
        single.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await single.answer()).status == 101
    assert await single.frame() == (TEXT, b"hello")
    single.hang_up()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(Host=None), 400),
        (request().replace(b"Host:", b"Host: b\r\nHost:"), 400),
        (request(Connection="close"), 400),
        (request(Connection=None), 400),
        (request(Sec_WebSocket_Key=None), 400),
        (request(Sec_WebSocket_Key="AAAA"), 400),
        (request(Content_Length="5"), 400),
        (request(Sec_WebSocket_Extensions=";"), 400),
        (request().replace(b"\r\n", b"\n"), 400),
        (request().replace(b": ", b" : "), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request(), 400),
        (request(method="POST"), 405),
        (request("/" + "a" * 9_000), 414),
        (request(Sec_WebSocket_Version="8"), 426),
        (request(Sec_WebSocket_Version=None), 426),
        (request(Cookie="a" * 9_000), 431),
        (request().replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    ],
)
async def test_what_is_wrong_with_an_upgrade_is_told(port: Port, head: bytes, status: int) -> None:
    """As a status, and in the shape that all failures have; then the connection ends."""
    answer = await ask(port, head)
    assert answer.status == status
    assert answer.headers["connection"] == "close" or status == 426
    assert answer.error()["name"] == "bad_request"
    if status == 426:
        assert (answer.headers["sec-websocket-version"], answer.headers["upgrade"]) == ("13", "websocket")
    await until(lambda: port.listener.arrivals == 0)
    assert port.admission.open == 0


async def test_a_head_of_8_kb_is_read_and_no_longer_one(port: Port) -> None:
    """To the byte; a longer one is refused before its end is there."""
    room = 8_192 - len(request(Cookie=""))
    client = await port.client(request(Cookie="a" * room))
    assert (await client.answer()).status == 101
    client.hang_up()
    assert (await ask(port, request(Cookie="a" * (room + 1)))).status == 431
    assert (await ask(port, request(Cookie="a" * 8_192)[:8_192])).status == 431


async def test_whoever_is_still_sending_gets_the_answer(port: Port) -> None:
    """A head of a megabyte is refused at its first 8 kB; that is not lost by a reset of the connection."""
    client = await port.client(request(Cookie="a" * 2**20))
    assert (await client.answer()).status == 431
    assert await client.is_over() == b""
    await until(lambda: port.listener.arrivals == 0)
    assert port.counted("access_dropped") == {"bad_head": 1}


async def test_nobody_is_waited_for_long_after_a_refusal(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not hang up is hung up on, and counted once."""
    monkeypatch.setattr(shell, "LINGER_MS", 50)
    client = await port.client(b"nonsense\r\n\r\n")
    assert (await client.answer()).status == 400
    assert port.listener.arrivals == 1
    for _ in range(5):
        client.send(request())
    await until(lambda: port.listener.arrivals == 0)
    assert await client.is_over() == b""
    assert port.counted("access_dropped") == {"bad_head": 1}
    assert not port.gate.addresses


# ---------------------------------------------------------------- HTTP


async def test_other_requests_are_served_on_the_same_port_and_connection(port: Port) -> None:
    """One after the other, without waiting for the answers, whatever is left of the first in its segment."""
    client = await port.client(get("/readyz"), get("/healthz"), get("/nowhere"))
    assert [(await client.answer()).status for _ in range(3)] == [503, 200, 404]
    port.http.is_ready = True
    client.send(get("/readyz"))
    assert (await client.answer()).status == 200
    client.send(request(Sec_WebSocket_Version="13"))
    assert (await client.answer()).status == 404, "an upgrade is the first request of its connection"
    client.hang_up()


@pytest.mark.parametrize(
    "head",
    [
        request("/elsewhere"),
        request(Upgrade=None),
        request(Upgrade="h2c"),
        request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_what_asks_for_no_websocket_of_ours_goes_to_the_http_server(port: Port, head: bytes) -> None:
    """Another path, no upgrade, or one to something else."""
    client = await port.client(head)
    answer = await client.answer()
    assert (answer.status, answer.error()["name"]) == (404, "not_found")
    client.hang_up()


async def test_a_body_reaches_the_http_server_however_it_is_cut() -> None:
    """In the segment of the head, partly, or after it."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), headers={"From": port.listener.address_of(request)})

    async with listening(routes=[web.post("/echo", echo)]) as port:
        wanted = request("/echo", "POST", Upgrade=None, Connection=None, Content_Length="6") + b"abcdef"
        for at in (*range(len(wanted) - 8, len(wanted)), 5):
            client = await port.client(wanted[:at])
            await asyncio.sleep(0.005)
            client.send(wanted[at:])
            answer = await client.answer()
            assert (answer.status, answer.body, answer.headers["from"]) == (200, b"abcdef", "127.0.0.1")
            client.hang_up()


async def test_there_are_no_more_http_connections_than_clients_can_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused as clients are; there is room again soon after some are closed."""
    monkeypatch.setattr(shell, "TICK_MS", 10)
    async with listening(capacity=2) as port:
        here = [await port.client(source=f"127.0.0.{1 + n % 2}") for n in range(2 * 2 + shell.HTTP_SPARE)]
        for client in here:
            client.send(get("/healthz"))
            assert (await client.answer()).status == 200
        answer = await ask(port, get("/healthz"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.error()["detail"]["what"] == "http_connections"
        websocket = await port.upgraded()
        websocket.hang_up()
        here[0].hang_up()
        status = 503
        async with asyncio.timeout(5):
            while status == 503:  # until the next look at who is gone
                client = await port.client(get("/healthz"))
                status = (await client.answer()).status
                client.hang_up()
                await asyncio.sleep(0.02)
        assert status == 200


async def test_one_address_leaves_http_connections_to_others() -> None:
    """Though it keeps open as many as it gets: a check of the node's health has a place all the same."""
    async with listening(capacity=2) as port:
        for n in range(2 * 2 + shell.HTTP_SPARE):
            client = await port.client(get("/healthz"))
            assert (await client.answer()).status == (200 if n < (2 * 2 + shell.HTTP_SPARE) // 2 else 503)
        other = await port.client(get("/healthz"), source="127.0.0.2")
        assert (await other.answer()).status == 200


# ---------------------------------------------------------------- refusals


async def test_pages_of_other_origins_are_refused() -> None:
    """Those of the list may connect, and whoever names no origin, as no browser does that."""
    async with listening(origins=("https://*.example.com", "http://localhost:3000")) as port:
        for origin in ("https://app.example.com", "http://localhost:3000", None):
            client = await port.client(request(Origin=origin))
            assert (await client.answer()).status == 101
            client.hang_up()
        for origin in ("https://example.com", "http://app.example.com", "null", "https://app.example.com.evil.net", ""):
            answer = await ask(port, request(Origin=origin))
            assert (answer.status, answer.error()["name"]) == (403, "permission_denied")
        assert port.counted("access_refused") == {"origin": 5}


def _drain(port: Port) -> None:
    port.admission.is_draining = True


def _use_memory(port: Port) -> None:
    port.admission.resident = 91


def _arrive(port: Port) -> None:
    port.admission.enter("127.0.0.1")


def _use_rate(port: Port) -> None:
    with contextlib.suppress(Overloaded):
        while True:
            port.admission.check("127.0.0.1", None)


@pytest.mark.parametrize(
    ("settings", "fill", "what", "retry_s"),
    [
        ({}, _drain, "draining", (1, 1)),
        ({"capacity": 1}, _arrive, "full", (1, 1)),
        ({"memory_bytes_max": 100}, _use_memory, "memory", (1, 1)),
        ({"address_connections_max": 1}, _arrive, "address", (1, 1)),
        ({"address_accepts_per_second": 1}, _use_rate, "address_rate", (1, 2)),
        ({"accepts_per_second": 1}, _use_rate, "rate", (1, 1)),
    ],
)
async def test_a_refusal_says_when_to_come_back(
    settings: dict[str, int], fill: Callable[[Port], None], what: str, retry_s: tuple[int, int]
) -> None:
    """503 before the upgrade, with Retry-After and what it is too much of; the node's health is told all the same."""
    async with listening(**settings) as port:
        fill(port)
        before = port.counted("access_refused")
        for target in (WEBSOCKET_PATH, f"{WEBSOCKET_PATH}?format=protobuf"):
            answer = await ask(port, request(target))
            assert answer.status == 503
            assert retry_s[0] <= int(answer.headers["retry-after"]) <= retry_s[1]
            error = answer.error()
            assert error["retry"] == ("reroute" if what == "draining" else "same_node")
            assert error["detail"]["retry_after_ms"] > 0
        assert port.counted("access_refused") == {**before, what: before.get(what, 0) + 2}
        client = await port.client(get("/healthz"))
        assert (await client.answer()).status == 200
        client.hang_up()
        assert not port.gate.here


async def test_a_storm_is_refused_without_reading_on_until_there_is_room_again() -> None:
    """When the common rate is used up it does not matter what else a request says, and half of one is no request."""
    async with listening(accepts_per_second=5) as port:
        _use_rate(port)
        unread = request().replace(b"Host:", b"Host")
        statuses = {(await ask(port, unread)).status}
        slow = await port.client(request()[:-2])
        while 101 not in statuses:
            client = await port.client(request())
            statuses.add((await client.answer()).status)
            client.hang_up()
            await asyncio.sleep(0.01)
        assert statuses == {503, 101}
        slow.send(request()[-2:])
        assert (await slow.answer()).status == 503
        slow.hang_up()


async def test_what_one_address_has_too_much_of_is_not_taken_from_all() -> None:
    """The refusals of one address use up nothing of the common rate."""
    async with listening(accepts_per_second=2, address_accepts_per_second=1) as port:
        statuses = []
        for _ in range(10):
            client = await port.client(request())
            statuses.append((await client.answer()).status)
            client.hang_up()
        assert statuses == [101, 101, *[503] * 8]
        port.admission.check("192.0.2.1", None)
        port.admission.check("192.0.2.2", None)


# ---------------------------------------------------------------- whoever is slow


async def test_a_head_that_comes_too_slowly_is_dropped_however_steadily_it_comes() -> None:
    """The deadline is that of the whole head; nobody else waits for it."""
    async with listening(handshake_deadline_ms=300) as port:
        loop = asyncio.get_running_loop()
        began = loop.time()
        silent = await port.client()
        dripping = await port.client()
        dripped = 0
        over = [loop.create_task(client.is_over()) for client in (silent, dripping)]
        for byte in request(Cookie="a" * 1_000):
            if all(task.done() for task in over):
                break
            dripping.send(bytes([byte]))
            dripped += 1
            await asyncio.sleep(0.02)
        assert [await task for task in over] == [b"", b""]
        assert 0.3 <= loop.time() - began < 5
        assert dripped > 5
        assert port.counted("access_dropped") == {"slow": 2}
        assert port.listener.arrivals == 0


async def test_only_so_many_may_be_on_their_way_at_once() -> None:
    """One more is dropped, until one of them is through or gone."""
    async with listening(arrivals_max=3) as port:
        held = [await port.client(source=f"127.0.0.{n}") for n in (1, 2, 3)]
        await until(lambda: port.listener.arrivals == 3)
        more = await port.client()
        assert await more.is_over() == b""
        assert port.counted("access_dropped") == {"too_many": 1}
        held[0].send(request())
        assert (await held[0].answer()).status == 101
        held[1].hang_up()
        await until(lambda: port.listener.arrivals == 1)
        held += [await port.client(), await port.client()]
        await until(lambda: port.listener.arrivals == 3)
        for client in held:
            client.hang_up()
        await until(lambda: port.listener.arrivals == 0)
        assert port.counted("access_dropped") == {"too_many": 1}


async def test_one_address_leaves_places_to_others() -> None:
    """Half of them are for others, whatever it opens; and what it gives back it may have again."""
    async with listening(arrivals_max=4) as port:
        held = [await port.client() for _ in range(2)]
        await until(lambda: port.listener.arrivals == 2)
        assert await (await port.client()).is_over() == b""
        assert port.counted("access_dropped") == {"too_many": 1}
        other = await port.client(request(), source="127.0.0.2")
        assert (await other.answer()).status == 101
        held.pop().hang_up()
        await until(lambda: port.listener.arrivals == 1)
        again = await port.client(request())
        assert (await again.answer()).status == 101


# ---------------------------------------------------------------- the port


async def test_a_port_that_closes_drops_who_is_on_the_way() -> None:
    """And those that it answered and waited for; nobody comes any more."""
    async with listening() as port:
        waiting, answered = [await port.client() for _ in range(2)]
        answered.send(b"nonsense\r\n\r\n")
        assert (await answered.answer()).status == 400
        await until(lambda: port.listener.arrivals == 2)
        await port.listener.close()
        assert [await client.is_over() for client in (waiting, answered)] == [b"", b""]
        assert port.listener.arrivals == 0
        assert port.counted("access_dropped") == {"bad_head": 1, "closed": 1}
        with pytest.raises(OSError):
            await port.client()


async def test_a_port_in_use_is_told_in_one_line(port: Port) -> None:
    """As an error of the configuration, for the plain port as for one with a load balancer in front."""
    for settings in ({}, {"proxies": ("127.0.0.1/32",)}):
        number = int(port.url.rsplit(":", 1)[1])
        async with listening(**settings) as other:
            await other.listener.close()
            with pytest.raises(ConfigError, match=f"listen on 127.0.0.1:{number} for clients: the port is in use"):
                await other.listener.listen("127.0.0.1", number)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
@pytest.mark.parametrize("proxies", [(), ("::1/128",)])
async def test_it_listens_on_ipv6(proxies: tuple[str, ...]) -> None:
    """The URL has the address in brackets; a load balancer may come from there too."""
    async with listening(host="::1", proxies=proxies) as port:
        assert port.url.startswith("http://[::1]:")
        client = await port.client(b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n" if proxies else b"", request())
        assert (await client.answer()).status == 101
        assert port.gate.addresses == ["2001:db8::7" if proxies else "::1"]
        client.hang_up()


async def test_clients_are_told_the_configured_url() -> None:
    """Where a load balancer or a name is in front, the address that is bound means nothing to them."""
    async with listening(client_url="wss://a1.example.com") as port:
        assert port.url == "wss://a1.example.com"
