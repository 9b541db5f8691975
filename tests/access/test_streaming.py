"""HTTP streaming and server-sent events over real sockets, and what their clients send by way of any node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientResponse
from centrifuge.protocol import client_pb2

from access import emulation, http, streaming, transports
from access.core.outgoing import Form
from access.core.protocol import Close
from access.http import HttpConnection
from access.websocket import write_soon
from base import http as base_http
from tests.access.http_nodes import CONNECT, LIMITS, ORIGIN, SETTLE_S, HttpNode, Lines, Nodes, running_nodes, until

SOCKET_BUFFER = 131_072
"""More than a transport takes before it says that it is full."""
RPC = '{"id":%d,"rpc":{"method":"m","data":%d}}'


@pytest.fixture
async def nodes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr(transports, "LOOK_INTERVAL_S", 0.02)
    async with running_nodes() as made:
        yield made


@asynccontextmanager
async def opened(nodes: Nodes, transport: str) -> AsyncIterator[ClientResponse]:
    url = nodes.one.url(f"/connection/{transport}")
    if transport == "sse":
        request = nodes.http.get(url, params={"cf_connect": CONNECT})
    else:
        request = nodes.http.post(url, data=CONNECT, headers={"Content-Type": "application/json"})
    async with request as response:
        assert response.status == 200
        yield response


TRANSPORTS = pytest.mark.parametrize("transport", ["http_stream", "sse"])


# ---------------------------------------------------------------- receiving


@TRANSPORTS
async def test_a_client_is_answered_on_its_stream(nodes: Nodes, transport: str) -> None:
    """The connect's reply, then whatever comes, a message each; nothing on the way may hold it back."""
    async with opened(nodes, transport) as response:
        lines = Lines(response)
        reply = await lines.next()
        assert (reply["id"], reply["connect"]["node"]) == (1, "access-1")
        nodes.one.gateway.publish(1, '{"a": "\\u2028"}')
        nodes.one.gateway.ping()
        nodes.one.gateway.publish(2)
        assert await lines.next() == {"push": {"channel": "news", "pub": {"data": {"a": "\u2028"}, "offset": 1}}}
        assert await lines.next() == {}
        assert (await lines.next())["push"]["pub"]["offset"] == 2
        assert response.headers["X-Accel-Buffering"] == "no"
        assert "no-cache" in response.headers["Cache-Control"]
    assert nodes.one.gateway.addresses == ["from 127.0.0.1"]


async def test_a_stream_in_protobuf_has_length_prefixed_messages(nodes: Nodes) -> None:
    """Both ways, the way back too, as the stock SDK's own codec has them."""
    command = client_pb2.Command(id=1, connect=client_pb2.ConnectRequest(token="t")).SerializeToString()
    headers = {"Content-Type": "application/octet-stream"}
    async with nodes.http.post(
        nodes.one.url("/connection/http_stream"), data=bytes((len(command),)) + command, headers=headers
    ) as stream:
        assert stream.content_type == "application/octet-stream"
        reply = await _protobuf_reply(stream)
        assert (reply.id, reply.connect.node) == (1, "access-1")
        rpc = client_pb2.Command(id=2, rpc=client_pb2.RPCRequest(method="m", data=b"\xff")).SerializeToString()
        request = client_pb2.EmulationRequest(
            node="access-1", session=reply.connect.session, data=bytes((len(rpc),)) + rpc
        )
        async with nodes.http.post(
            nodes.two.url("/emulation"), data=request.SerializeToString(), headers=headers
        ) as response:
            assert response.status == 204
        reply = await _protobuf_reply(stream)
        assert (reply.id, reply.rpc.data) == (2, b"\xff")
        nodes.one.gateway.close_all(Close.SHUTDOWN)
        push = (await _protobuf_reply(stream)).push
        assert (push.disconnect.code, push.disconnect.reason) == (3001, "shutdown")


async def _protobuf_reply(response: ClientResponse) -> client_pb2.Reply:
    async with asyncio.timeout(SETTLE_S):
        (length,) = await response.content.readexactly(1)
        assert length < 0x80, "a length of one byte"
        return client_pb2.Reply.FromString(await response.content.readexactly(length))


# ---------------------------------------------------------------- sending


@pytest.mark.spec("RT-01")
@TRANSPORTS
@pytest.mark.parametrize("at", ["one", "two"])
async def test_what_a_client_sends_arrives_from_whichever_node_it_comes_to(
    nodes: Nodes, transport: str, at: str
) -> None:
    """In order, and answered on the stream."""
    async with opened(nodes, transport) as response:
        lines = Lines(response)
        session = (await lines.next())["connect"]["session"]
        for number in range(2, 12):
            frame = f"{RPC % (number, number)}\n{RPC % (number + 100, number)}"
            assert await nodes.emulate(getattr(nodes, at), session, frame) == 204
        answers = [await lines.next() for _ in range(20)]
        assert [answer["id"] for answer in answers] == [n for number in range(2, 12) for n in (number, number + 100)]
        assert [answer["rpc"]["data"] for answer in answers] == [n for number in range(2, 12) for n in (number, number)]


async def test_a_session_is_a_secret_of_its_own(nodes: Nodes) -> None:
    """Who knows a client's id, as other clients do, cannot send in its name."""
    async with opened(nodes, "http_stream") as response:
        reply = (await Lines(response).next())["connect"]
        assert reply["session"] != reply["client"]
        assert len(reply["session"]) >= 32
        assert await nodes.emulate(nodes.one, "client-1", "{}") == 404


@pytest.mark.parametrize("at", ["one", "two"])
@pytest.mark.parametrize("node", ["access-1", "access-2", "access-9", ""])
async def test_a_session_that_is_nowhere_is_not_found(nodes: Nodes, at: str, node: str) -> None:
    """Nor is one of a node that is gone: the SDK connects again at once."""
    async with opened(nodes, "sse") as response:
        session = (await Lines(response).next())["connect"]["session"]
        assert await nodes.emulate(getattr(nodes, at), session[:-1], "{}", node=node) == 404
        if node != "access-1":
            assert await nodes.emulate(getattr(nodes, at), session, "{}", node=node) == 404
        assert nodes.one.gateway.frames == [CONNECT.encode()]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"node":"access-1","session":"s"', "application/json", 400),
        (b'{"node":"access-1","session":"s","data":7}', "application/json", 400),
        (b"\xff\xff", "application/octet-stream", 400),
        (b'{"node":"access-1","session":"s","data":"' + b"x" * (LIMITS.frame_bytes_max + 1) + b'"}', "text/plain", 413),
        (b" " * 3 * LIMITS.frame_bytes_max, "application/json", 413),
    ],
)
async def test_what_is_no_emulation_request_is_refused(
    nodes: Nodes, body: bytes, content_type: str, status: int
) -> None:
    """By a status, in the one shape of errors."""
    async with nodes.http.post(
        nodes.one.url("/emulation"), data=body, headers={"Content-Type": content_type}
    ) as response:
        assert response.status == status
        assert (await response.json())["error"]["retry"] == "never"


async def test_a_node_that_does_not_answer_is_not_waited_for(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is told 504, upon which the SDK connects again."""
    monkeypatch.setattr(emulation, "DEADLINE_MS", 50)
    assert await nodes.emulate(nodes.two, "unknown", "{}") == 404  # the stream between the nodes is up
    nodes.two.pool.get("access-1")._url = ""
    stream = nodes.two.pool.get("access-1")._stream
    assert stream is not None
    monkeypatch.setattr(stream._link, "put", lambda _envelope: None)
    assert await nodes.emulate(nodes.two, "unknown", "{}") == 504


# ---------------------------------------------------------------- the end


@TRANSPORTS
async def test_a_close_is_told_before_the_stream_ends(nodes: Nodes, transport: str) -> None:
    """Behind what was written before it; what is written or closed after it does nothing."""
    async with opened(nodes, transport) as response:
        lines = Lines(response)
        await lines.next()
        nodes.one.gateway.publish(1)
        nodes.one.gateway.close_all(Close.EVICTED)
        nodes.one.gateway.publish(2)
        nodes.one.gateway.close_all(Close.SHUTDOWN)
        assert (await lines.next())["push"]["pub"]["offset"] == 1
        assert (await lines.next())["push"] == {"disconnect": {"code": 3503, "reason": "evicted by another device"}}
        assert await lines.next() is None
    await until(lambda: nodes.one.gateway.ended == [3503])


@TRANSPORTS
async def test_who_hangs_up_is_noticed_without_writing(nodes: Nodes, transport: str) -> None:
    """Within a second, though the HTTP server tells nobody; its session takes nothing more."""
    async with opened(nodes, transport) as response:
        session = (await Lines(response).next())["connect"]["session"]
        assert nodes.one.transports.statistics() == {"streams": 1, "polls": 0}
        response.close()
        await until(lambda: nodes.one.gateway.ended == [1006])
    assert await nodes.emulate(nodes.one, session, "{}") == 404
    assert nodes.one.transports.statistics() == {"streams": 0, "polls": 0}


async def test_a_client_that_does_not_read_is_closed_and_nobody_else_notices(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 3008, when more than its budget waits; what waits for it is bounded."""
    monkeypatch.setattr(streaming, "LAST_WRITE_TIMEOUT_S", 0.1)
    reader, writer = await _stuck(nodes.one)
    (slow,) = nodes.one.gateway.here
    async with opened(nodes, "sse") as response:
        lines = Lines(response)
        await lines.next()
        (quick,) = (connection for connection in nodes.one.gateway.here if connection is not slow)
        offset = 0
        while slow.code != Close.SLOW.code:
            offset += 1
            nodes.one.gateway.publish(offset, '"' + "x" * 30_000 + '"')
            assert slow.queued() <= 2 * LIMITS.write_bytes_max + SOCKET_BUFFER
            assert (await lines.next())["push"]["pub"]["offset"] == offset
        assert offset > 3
        await until(lambda: nodes.one.gateway.ended == [3008])
        nodes.one.gateway.publish(offset + 1)
        assert (await lines.next())["push"]["pub"]["offset"] == offset + 1
        assert quick.queued() == 0
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        async with asyncio.timeout(SETTLE_S):
            await reader.readexactly(1 << 30)  # the stream was cut, not ended
    writer.close()


async def test_a_write_that_takes_too_long_ends_the_stream(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though less than its budget waits for the client."""
    monkeypatch.setattr(streaming, "WRITE_TIMEOUT_S", 0.1)
    _, writer = await _stuck(nodes.one)
    (stuck,) = nodes.one.gateway.here
    while not HttpConnection.queued(stuck):  # something waits behind what is being written
        nodes.one.gateway.publish(1, '"' + "x" * 30_000 + '"')
        await asyncio.sleep(0.001)
    await until(lambda: nodes.one.gateway.ended == [1006])
    writer.close()


async def _stuck(node: HttpNode) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a client that reads nothing."""
    host, port = node.node.http.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    head = f"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONNECT)}\r\n\r\n"
    writer.write((head + CONNECT).encode())
    await until(lambda: node.gateway.here)
    return reader, writer


async def test_of_states_that_wait_the_last_one_counts() -> None:
    """And what waits for a client that is too slow is not sent, only why it is closed."""
    connection = HttpConnection(Form.STREAM_JSON, write_bytes_max=20)
    for frame, replaces in ((b"x1\n", 1), (b"m\n", None), (b"x2\n", 1)):
        connection.write(frame, replaces)
    assert connection.queued() == 5
    assert connection.take() == b"x2\nm\n"
    assert not connection.has_news
    connection.write(b"0123456789\n")
    connection.write(b"0123456789\n")
    assert connection.queued() == 0
    assert connection.take() == b'{"push":{"disconnect":{"code":3008,"reason":"slow"}}}\n'
    assert connection.is_over
    assert not connection.has_news
    assert connection.take() == b""


# ---------------------------------------------------------------- refusals


@TRANSPORTS
async def test_who_is_not_admitted_gets_a_status_and_no_stream(nodes: Nodes, transport: str) -> None:
    """With the time to come back; the gateway never hears of it."""
    nodes.one.refuses = True
    with pytest.raises(AssertionError):
        async with opened(nodes, transport):
            pass
    async with nodes.http.post(nodes.one.url("/connection/http_stream"), data=CONNECT) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert not nodes.one.gateway.addresses


@pytest.mark.parametrize("path", ["/connection/http_stream", "/connection/poll"])
async def test_there_may_be_no_room_any_more_when_a_request_was_read(nodes: Nodes, path: str) -> None:
    """Others came, or a drain began, while its body was on its way: asked once more, it leaves nothing behind."""
    nodes.one.is_full = True
    async with nodes.http.post(nodes.one.url(path), data=CONNECT) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
    assert not nodes.one.gateway.addresses
    assert nodes.one.transports.statistics() == {"streams": 0, "polls": 0}
    nodes.one.is_full = False
    async with opened(nodes, "http_stream"):
        assert nodes.one.gateway.addresses


@pytest.mark.parametrize(("size", "status"), [(0, 400), (LIMITS.frame_bytes_max + 1, 413)])
async def test_a_first_frame_is_there_and_not_too_long(nodes: Nodes, size: int, status: int) -> None:
    """On both transports, and however its length is told."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * size

    url = nodes.one.url("/connection/http_stream")
    async with nodes.http.post(url, data=b"x" * size) as response:
        assert response.status == status
    async with nodes.http.post(url, data=chunks()) as response:
        assert response.status == status
    async with nodes.http.get(nodes.one.url("/connection/sse"), params={"cf_connect": "x" * size}) as response:
        assert response.status == status
    assert not nodes.one.gateway.addresses


@pytest.mark.parametrize("breaks_off", [True, False])
async def test_a_body_that_does_not_arrive_opens_nothing(
    nodes: Nodes,
    monkeypatch: pytest.MonkeyPatch,
    breaks_off: bool,  # noqa: FBT001
) -> None:
    """It breaks off, or takes too long: then the client is told."""
    monkeypatch.setattr(base_http, "READ_TIMEOUT_S", SETTLE_S if breaks_off else 0.1)
    host, port = nodes.one.node.http.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    await writer.drain()
    if breaks_off:
        await asyncio.sleep(0.05)
        writer.transport.abort()
    else:
        async with asyncio.timeout(SETTLE_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
    counted = 'roadstead_http_errors_total{name="bad_request",node="access-1"} 1.0'
    await until(lambda: counted.encode() in nodes.one.node.metrics.render())
    assert not nodes.one.gateway.addresses


class SlowRequest:
    """A request in the hands of the test, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, node: HttpNode, data: str) -> SlowRequest:
        host, port = node.node.http.url.removeprefix("http://").split(":")
        made = cls(*await asyncio.open_connection(host, int(port)))
        made.send(data)
        return made

    def send(self, data: str) -> None:
        self._writer.write(data.encode())

    async def head(self) -> str:
        """Return the head of the answer, and hang up."""
        async with asyncio.timeout(SETTLE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
        self._writer.close()
        return head.decode()


@pytest.mark.parametrize("limit", ["BODIES_MAX", "BODIES_OF_ADDRESS_MAX"])
async def test_only_so_many_bodies_are_on_their_way(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Who sends slowly takes a place from others who do, or from those at its address; who sends all at once none."""
    monkeypatch.setattr(http, limit, 1)
    head = f"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CONNECT)}\r\n\r\n"
    async with running_nodes() as nodes:
        gate = nodes.one.transports._gate
        slow = await SlowRequest.begin(nodes.one, head)
        await until(lambda: gate._reading)
        refused = await (await SlowRequest.begin(nodes.one, head)).head()
        assert refused.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 1\r\n" in refused
        whole = await SlowRequest.begin(nodes.one, head + CONNECT)
        assert (await whole.head()).startswith("HTTP/1.1 200 ")
        elsewhere = await SlowRequest.begin(nodes.one, head.replace("\r\n", "\r\nX-From: afar\r\n", 1))
        if limit == "BODIES_MAX":
            assert (await elsewhere.head()).startswith("HTTP/1.1 503 ")
        else:
            elsewhere.send(CONNECT)
            assert (await elsewhere.head()).startswith("HTTP/1.1 200 ")
        slow.send(CONNECT)
        assert (await slow.head()).startswith("HTTP/1.1 200 ")
        assert not gate._reading
        again = await SlowRequest.begin(nodes.one, head)
        await until(lambda: gate._reading)
        again.send(CONNECT)
        assert (await again.head()).startswith("HTTP/1.1 200 ")


# ---------------------------------------------------------------- browsers

PATHS = ["/connection/http_stream", "/connection/sse", "/connection/poll", "/emulation"]


@pytest.mark.parametrize("path", PATHS)
async def test_pages_of_allowed_origins_may_connect(nodes: Nodes, path: str) -> None:
    """They are told so by the preflight and by each answer, refusals too: else they could not read them."""
    headers = {"Origin": ORIGIN, "Access-Control-Request-Headers": "content-type"}
    async with nodes.http.options(nodes.one.url(path), headers=headers) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Headers"] == "Content-Type, Authorization"
        assert response.headers["Access-Control-Allow-Methods"] == ("GET" if path.endswith("sse") else "POST")
    method = "GET" if path.endswith("sse") else "POST"
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    async with nodes.http.request(method, nodes.one.url(path), headers=headers) as response:
        assert response.status == 400
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Expose-Headers"] == "Retry-After"
        assert response.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", ["https://evil.example.com", "null"])
async def test_pages_of_other_origins_may_not(nodes: Nodes, path: str, origin: str) -> None:
    """Neither the preflight nor a request that needs none gets through."""
    method = "GET" if path.endswith("sse") else "POST"
    for asked in (method, "OPTIONS"):
        async with nodes.http.request(asked, nodes.one.url(path), data=CONNECT, headers={"Origin": origin}) as response:
            assert response.status == 403
            assert "Access-Control-Allow-Origin" not in response.headers
    assert not nodes.one.gateway.addresses


async def test_other_paths_are_not_for_pages(nodes: Nodes) -> None:
    """What else the server has keeps its own rules."""
    async with nodes.http.get(nodes.one.url("/healthz"), headers={"Origin": ORIGIN}) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


def test_other_transports_are_written_to_at_once() -> None:
    """They collect what their request carries, and need no step to end."""
    connection = HttpConnection(Form.STREAM_JSON, write_bytes_max=100)
    write_soon(connection, b"a")
    write_soon(connection, b"b")
    assert connection.take() == b"ab"
