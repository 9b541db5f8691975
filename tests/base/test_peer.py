"""Peer streams over real loopback sockets: calls, errors, deadlines, bounds, reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import ClientSession, WSServerHandshakeError

from base.errors import (
    BadRequest,
    DeadlineExceeded,
    NotOwner,
    Overloaded,
    PeerUnavailable,
    RemoteProtocolError,
    RoadsteadError,
    UnknownMethod,
)
from base.http import HttpServer
from base.metrics import Metrics
from base.peer import Method, PeerClient, PeerServer
from base.peer.server import PEER_PATH
from base.peer.stream import StreamLimits
from base.peer.wire import SUBPROTOCOL


class Ask(msgspec.Struct, array_like=True):
    text: str


class Answer(msgspec.Struct, array_like=True):
    text: str
    peer: str = ""


ECHO = Method("test.echo", Ask, Answer)
SLOW = Method("test.slow", Ask, Answer)
FAIL = Method("test.fail", Ask, Answer)
BUG = Method("test.bug", Ask, Answer)
ABSENT = Method("test.absent", Ask, Answer)
TELL = Method("test.tell", Ask, Answer)
WRONG = Method("test.echo", Answer, Ask)


class Served:
    """A server with a few methods, and what it saw."""

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.told: list[str] = []
        self.release = asyncio.Event()
        self.peers = PeerServer(peer_key="key", limits=limits)
        self.peers.serve(ECHO, lambda ask, peer: Answer(ask.text, peer))
        self.peers.serve(SLOW, self._slow)
        self.peers.serve(FAIL, self._fail)
        self.peers.serve(BUG, lambda _ask, _peer: 1 / 0)
        self.peers.serve(TELL, lambda ask, _peer: self.told.append(ask.text))
        self.url = ""

    async def _slow(self, ask: Ask, _peer: str) -> Answer:
        await self.release.wait()
        return Answer(ask.text)

    def _fail(self, _ask: Ask, _peer: str) -> Answer:
        raise NotOwner("not mine", owner="status-2", epoch=7)


@asynccontextmanager
async def serving(limits: StreamLimits | None = None, port: int = 0) -> AsyncIterator[Served]:
    served = Served(limits)
    server = HttpServer("node", Metrics("node"), statistics=dict)
    server.app.router.add_get(PEER_PATH, served.peers.handle)
    served.url = await server.listen("127.0.0.1", port)
    try:
        yield served
    finally:
        served.release.set()
        await served.peers.close()
        await server.close()


@asynccontextmanager
async def connected(url: str, *, key: str = "key", limits: StreamLimits | None = None) -> AsyncIterator[PeerClient]:
    client = PeerClient(url, peer="server", node="tester", peer_key=key, limits=limits)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(client.run())
        try:
            yield client
        finally:
            running.cancel()


async def test_a_call_gets_its_reply_and_the_callers_name_arrives() -> None:
    """The first call also waits for the stream."""
    async with serving() as served, connected(served.url) as client:
        assert await client.call(ECHO, Ask("hi"), deadline_ms=2_000) == Answer("hi", "tester")
        assert client.is_connected


async def test_many_calls_share_the_stream_and_answers_find_their_callers() -> None:
    """A slow call does not hold up the quick ones behind it."""
    async with serving() as served, connected(served.url) as client, asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(client.call(SLOW, Ask("slow"), deadline_ms=5_000))
        quick = [tasks.create_task(client.call(ECHO, Ask(str(n)), deadline_ms=5_000)) for n in range(200)]
        assert [(await task).text for task in quick] == [str(n) for n in range(200)]
        assert not slow.done()
        served.release.set()
        assert (await slow).text == "slow"


async def test_a_servers_error_arrives_typed_with_its_fields() -> None:
    """Code and detail cross the wire."""
    async with serving() as served, connected(served.url) as client:
        with pytest.raises(NotOwner) as caught:
            await client.call(FAIL, Ask(""), deadline_ms=2_000)
        assert caught.value.detail == {"owner": "status-2", "epoch": 7}


async def test_a_servers_bug_is_told_without_its_traceback() -> None:
    """The other side learns that it was internal, and nothing about our code; the stream lives on."""
    async with serving() as served, connected(served.url) as client:
        with pytest.raises(RoadsteadError) as caught:
            await client.call(BUG, Ask(""), deadline_ms=2_000)
        assert str(caught.value) == "test.bug: internal error"
        assert (await client.call(ECHO, Ask("still"), deadline_ms=2_000)).text == "still"


async def test_unknown_methods_and_wrong_types_are_refused_by_name() -> None:
    """Neither ends the stream."""
    async with serving() as served, connected(served.url) as client:
        with pytest.raises(UnknownMethod, match="absent"):
            await client.call(ABSENT, Ask(""), deadline_ms=2_000)
        with pytest.raises(RemoteProtocolError, match="bad request"):
            await client.call(WRONG, Answer(3), deadline_ms=2_000)  # type: ignore[arg-type]


async def test_a_call_without_reply_ends_at_its_deadline() -> None:
    """The outcome is unknown, and the late reply is dropped in silence."""
    async with serving() as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        with pytest.raises(DeadlineExceeded):
            await client.call(SLOW, Ask(""), deadline_ms=30)
        served.release.set()
        assert (await client.call(ECHO, Ask("on"), deadline_ms=2_000)).text == "on"


async def test_a_call_to_nobody_ends_at_its_deadline() -> None:
    """No listener: the client keeps trying, the call does not wait for ever."""
    async with connected("http://127.0.0.1:9") as client:
        with pytest.raises(DeadlineExceeded):
            await client.call(ECHO, Ask(""), deadline_ms=50)
        with pytest.raises(PeerUnavailable):
            client.push(ECHO, Ask(""))


async def test_a_stream_without_the_peer_key_is_refused() -> None:
    """401 before the upgrade."""
    async with serving() as served, ClientSession() as session:
        with pytest.raises(WSServerHandshakeError) as caught:
            await session.ws_connect(served.url + PEER_PATH, headers={"Authorization": "Bearer wrong"})
        assert caught.value.status == 401


async def test_pushes_arrive_in_order() -> None:
    """A push has no reply; a call behind it shows that it was served."""
    async with serving() as served, connected(served.url) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        for number in range(50):
            client.push(TELL, Ask(str(number)))
        client.push(ABSENT, Ask(""))
        client.push(BUG, Ask(""))
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        assert served.told == [str(number) for number in range(50)]


async def test_a_full_queue_refuses_instead_of_growing() -> None:
    """What does not fit is refused before it is sent."""
    async with serving() as served, connected(served.url, limits=StreamLimits(queue_bytes_max=1_000)) as client:
        await client.call(ECHO, Ask(""), deadline_ms=2_000)
        client.push(TELL, Ask("x" * 900))
        with pytest.raises(Overloaded):
            client.push(TELL, Ask("x" * 900))


async def test_too_many_requests_at_once_are_refused() -> None:
    """inflight_max bounds what one stream can make the server hold."""
    async with serving(StreamLimits(inflight_max=2)) as served, connected(served.url) as client:
        async with asyncio.TaskGroup() as tasks:
            held = [tasks.create_task(client.call(SLOW, Ask("a"), deadline_ms=5_000)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await client.call(SLOW, Ask("b"), deadline_ms=5_000)
            served.release.set()
        assert [task.result().text for task in held] == ["a", "a"]


async def test_a_broken_stream_fails_its_calls_and_comes_back() -> None:
    """Waiting calls learn that the outcome is unknown; the next call uses the new stream."""
    async with serving() as served:
        port = int(served.url.rsplit(":", 1)[1])
        async with connected(served.url) as client, asyncio.TaskGroup() as tasks:
            await client.call(ECHO, Ask(""), deadline_ms=2_000)
            waiting = tasks.create_task(_outcome(client.call(SLOW, Ask(""), deadline_ms=5_000)))
            await asyncio.sleep(0)
            await served.peers.close()
            assert isinstance(await waiting, PeerUnavailable)
            assert (await client.call(ECHO, Ask("back"), deadline_ms=5_000)).text == "back"
            assert port > 0


async def _outcome(call: object) -> BaseException | None:
    try:
        await call  # type: ignore[misc]
    except RoadsteadError as error:
        return error
    return None


async def test_garbage_ends_the_stream_and_only_that() -> None:
    """A batch that is none, or a text frame, closes the offender; others are served."""
    async with serving() as served, connected(served.url) as client, ClientSession() as session:
        for frame in (b"\xc1", b"\x90" * 10, "text"):
            socket = await session.ws_connect(
                served.url + PEER_PATH, headers={"Authorization": "Bearer key"}, protocols=[SUBPROTOCOL]
            )
            await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))
            async with asyncio.timeout(2):
                async for _ in socket:
                    pass
            assert socket.closed
        assert (await client.call(ECHO, Ask("fine"), deadline_ms=2_000)).text == "fine"


def test_bad_request_is_a_callers_bug() -> None:
    """The error class used for refused arguments says never to retry."""
    assert BadRequest().retry.value == "never"
