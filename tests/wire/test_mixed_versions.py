"""Nodes of two versions at one stream: what one of them does not know is stepped over, or refused by its code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import structlog
from aiohttp import ClientSession

from base.errors import PeerUnavailable, RemoteProtocolError, UnknownMethod
from base.http import HttpServer
from base.metrics import Metrics
from base.peer import Method, PeerClient, PeerServer
from base.peer.upgrade import PEER_PATH, PROTOCOL
from base.peer.wire import FrameReader, decode_batch, encode_frame, encode_push
from base.trust import Trust

NEWER = "roadstead.peer.v3"


class Ask(msgspec.Struct, array_like=True, frozen=True):
    text: str


class NewerAsk(msgspec.Struct, array_like=True, frozen=True):
    text: str
    hint: str = ""
    more: tuple[int, ...] = ()


class Answer(msgspec.Struct, array_like=True, frozen=True):
    text: str
    warmth: int = 20


class OlderAnswer(msgspec.Struct, array_like=True, frozen=True):
    text: str


class Named(msgspec.Struct, frozen=True):
    text: str
    warmth: int = 20


OLDER_ECHO = Method("test.echo", Ask, OlderAnswer)
NEWER_ECHO = Method("test.echo", NewerAsk, Answer)
NEWER_ONLY = Method("test.newer", NewerAsk, Answer)


def test_a_field_more_is_stepped_over_and_a_field_less_has_its_default() -> None:
    """Of structs by position and by name, whole or inside of each other."""
    encode = msgspec.msgpack.encode
    asked = msgspec.Raw(encode(NewerAsk("hi", "later", (1, 2))))
    assert OLDER_ECHO.decode_request(asked) == Ask("hi")
    assert NEWER_ECHO.decode_request(msgspec.Raw(encode(Ask("hi")))) == NewerAsk("hi")
    named = Method("test.named", list[Named], Named)
    assert named.decode_request(msgspec.Raw(encode([{"text": "hi", "hint": {"deep": [1]}}]))) == [Named("hi")]


@pytest.mark.parametrize(
    ("extended", "kind"),
    [
        (["q", 7, "some.method", 2_000, None, {"trace": "abc"}, 1], "q"),
        (["r", 7, None, 1], "r"),
        (["e", 7, 104, "later", {}, [1]], "e"),
        (["p", "some.method", None, "x"], "p"),
    ],
)
def test_an_envelope_with_a_field_more_is_the_envelope(extended: list[Any], kind: str) -> None:
    """So envelopes may grow within one protocol, by what may be ignored."""
    [envelope] = decode_batch(memoryview(msgspec.msgpack.encode([extended])))
    assert type(envelope).__struct_config__.tag == kind


class Served:
    """A node with one method, and what was pushed to it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.peers = PeerServer(trust=Trust.of_key("key"))
        self.peers.serve(OLDER_ECHO, self._echo)
        self.url = ""

    def _echo(self, ask: Ask, _peer: str) -> OlderAnswer:
        self.told.append(ask.text)
        return OlderAnswer(ask.text)


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    served = Served()
    server = HttpServer("older", Metrics("older"), statistics=dict)
    server.app.router.add_get(PEER_PATH, served.peers.handle)
    served.url = await server.listen("127.0.0.1", 0)
    try:
        yield served
    finally:
        await served.peers.close()
        await server.close()


@asynccontextmanager
async def running(url: str) -> AsyncIterator[PeerClient]:
    client = PeerClient(url, peer="older", node="newer", trust=Trust.of_key("key"))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(client.run())
        try:
            yield client
        finally:
            task.cancel()


async def test_a_newer_node_calls_an_older_one() -> None:
    """Its request has more fields and the reply fewer; what the older node does not serve is refused; all go on."""
    async with serving() as served, running(served.url) as client:
        assert await client.call(NEWER_ECHO, NewerAsk("hi", "later"), deadline_ms=5_000) == Answer("hi", 20)
        client.push(NEWER_ONLY, NewerAsk("lost"))
        with pytest.raises(UnknownMethod) as caught:
            await client.call(NEWER_ONLY, NewerAsk("what"), deadline_ms=5_000)
        assert caught.value.code.number == 405
        assert caught.value.detail["method"] == "test.newer"
        assert (await client.call(NEWER_ECHO, NewerAsk("still"), deadline_ms=5_000)).text == "still"
        assert served.told == ["hi", "still"]


async def test_an_envelope_of_an_unknown_kind_ends_the_stream_and_takes_its_batch_along() -> None:
    """Nobody can say what it asks for or owes: a kind comes only with another protocol, agreed on in the upgrade."""
    async with serving() as served:
        host, port = served.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        fields = f"Connection: Upgrade\r\nUpgrade: {PROTOCOL}\r\nAuthorization: Bearer key\r\nX-Roadstead-Node: odd"
        writer.write(f"GET {PEER_PATH} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        known = encode_push("test.echo", Ask("known"))
        with structlog.testing.capture_logs() as logged:
            writer.write(encode_frame([known]) + encode_frame([known, msgspec.msgpack.encode(["s", 1, "stream"])]))
            async with asyncio.timeout(5):
                rest = await reader.read()
        writer.close()
        assert [list(decode_batch(batch)) for batch in FrameReader().feed(rest)] in ([], [[]])
        assert served.told == ["known"]
        [line] = [line for line in logged if line["event"] == "peer_stream_refused"]
        assert "'s'" in line["error"]


async def test_a_node_that_speaks_both_protocols_is_answered_with_ours() -> None:
    """So a version that brings another protocol can still talk to the one before it."""
    async with serving() as served, ClientSession() as session:
        headers = {"Authorization": "Bearer key", "Connection": "Upgrade", "Upgrade": f"{NEWER}, {PROTOCOL}"}
        async with session.get(served.url + PEER_PATH, headers=headers) as answer:
            assert (answer.status, answer.headers["Upgrade"]) == (101, PROTOCOL)
        headers["Upgrade"] = f"{NEWER}, websocket"
        async with session.get(served.url + PEER_PATH, headers=headers) as answer:
            assert (answer.status, answer.headers["Upgrade"]) == (426, PROTOCOL)


async def test_a_peer_of_another_protocol_is_told_once_and_tried_until_it_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line names both protocols. Calls fail as to any node that is not there; a new node at the place is found."""
    monkeypatch.setattr("base.core.backoff.Backoff.next_ms", lambda _self: 1)
    asked = 0
    tried_again = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked == 5:
            tried_again.set()
        writer.write(f"HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: {NEWER}\r\n\r\n".encode())
        writer.close()

    newer = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{newer.sockets[0].getsockname()[1]}"
    with structlog.testing.capture_logs() as logged:
        async with serving() as served, running(url) as client:
            with pytest.raises(PeerUnavailable):
                client.push(NEWER_ECHO, NewerAsk("lost"))
            await tried_again.wait()
            newer.close()
            client.url = served.url  # as if a node of this version were started there
            await client.wait_connected(deadline_ms=5_000)
            assert (await client.call(NEWER_ECHO, NewerAsk("hi"), deadline_ms=5_000)).text == "hi"
    [line] = [line for line in logged if line.get("log_level") == "warning"]
    assert line["event"] == "peer_stream_failed"
    assert NEWER in line["error"]
    assert PROTOCOL in line["error"]


def test_a_reply_that_cannot_be_read_is_the_peers_fault() -> None:
    """As an older node's with a field less that has no default: this is what the rules for changes are for."""
    with pytest.raises(RemoteProtocolError, match="bad reply"):
        Method("a.b", Ask, Named).decode_reply(msgspec.Raw(msgspec.msgpack.encode({})))
