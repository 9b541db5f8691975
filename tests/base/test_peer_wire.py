"""Peer streams against ends that we do not write: bytes cut anywhere, garbage, silence, nobody reading."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from base.errors import DeadlineExceeded, Overloaded, PeerUnavailable, RemoteProtocolError, RoadsteadError
from base.http import HttpServer
from base.metrics import Metrics
from base.peer import Method, PeerClient, PeerServer
from base.peer.link import SILENT_TICKS, STUCK_TICKS, StreamLimits
from base.peer.server import PEER_PATH
from base.peer.upgrade import HEAD_BYTES_MAX, PROTOCOL, connect
from base.peer.wire import FRAME_BYTES_MAX, KEEPALIVE, FrameReader, encode_frame, encode_push, encode_request
from base.trust import Trust

ECHO = Method("test.echo", str, str)
TELL = Method("test.tell", str, str)

QUICK = StreamLimits(tick_s=0.05)
SWITCHED = f"HTTP/1.1 101 Switching Protocols\r\nupgrade: {PROTOCOL}\r\nConnection: upgrade\r\n\r\n".encode()

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def run(new_loop: NewLoop, scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(bounded())


# ---------------------------------------------------------------- frames


@given(st.lists(st.binary(max_size=300), max_size=20), st.randoms(use_true_random=False))
def test_frames_survive_any_cut(envelopes: list[bytes], cuts: random.Random) -> None:
    """However a socket cuts the bytes, the same batches come out."""
    frames = [encode_frame([msgspec.msgpack.encode(envelope)] * cuts.choice([0, 1, 2, 20])) for envelope in envelopes]
    sent = b"".join(frames)
    reader, received = FrameReader(), []
    while sent:
        size = cuts.choice([1, 2, 3, 5, 100, 1_000])
        received += [bytes(batch) for batch in reader.feed(sent[:size])]
        sent = sent[size:]
    assert received == [frame[4:] for frame in frames]
    for batch, frame in zip(received, frames, strict=True):
        assert msgspec.msgpack.encode(msgspec.msgpack.decode(batch)) == frame[4:] or len(frame) > 16


def test_an_overlong_frame_is_refused_by_its_length_alone() -> None:
    """Before anything of it is stored."""
    assert FrameReader().feed(FRAME_BYTES_MAX.to_bytes(4, "big")) == []
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        FrameReader().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))


def test_a_body_that_is_too_deep_is_refused_as_any_other() -> None:
    """Of a request and of a reply."""
    deep = msgspec.Raw(b"\x91" * 5_000 + b"\xc0")
    method = Method("test.any", Any, Any)
    for decode in (method.decode_request, method.decode_reply):
        with pytest.raises(RemoteProtocolError, match="recursion"):
            decode(deep)


# ---------------------------------------------------------------- a foreign client


class Foreign:
    """A client made of nothing but a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self) -> list[Any]:
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        batch: list[Any] = msgspec.msgpack.decode(await self.reader.readexactly(size))
        return batch

    async def is_cut_off(self) -> bool:
        """Whether the stream ends; returns when it does."""
        with suppress(ConnectionError):
            await self.reader.read()
        return True


class Serving:
    def __init__(self, limits: StreamLimits | None) -> None:
        self.told: list[str] = []
        self.url = ""
        self.peers = PeerServer(trust=Trust.of_key("key"), limits=limits)
        self.peers.serve(ECHO, lambda text, _peer: text)
        self.peers.serve(TELL, lambda text, _peer: self.told.append(text))

    @asynccontextmanager
    async def foreign(self) -> AsyncIterator[Foreign]:
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        fields = f"Connection: Upgrade\r\nUpgrade: {PROTOCOL}\r\nAuthorization: Bearer key\r\nX-Roadstead-Node: foreign"
        writer.write(f"GET {PEER_PATH} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        try:
            yield Foreign(reader, writer)
        finally:
            writer.transport.abort()

    async def echoes(self) -> bool:
        """Whether a stream that means well is served."""
        client = PeerClient(self.url, peer="server", node="other", trust=Trust.of_key("key"))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(client.run())
            reply = await client.call(ECHO, "fine", deadline_ms=5_000)
            running.cancel()
        return reply == "fine"


@asynccontextmanager
async def serving(limits: StreamLimits | None = None) -> AsyncIterator[Serving]:
    served = Serving(limits)
    server = HttpServer("node", Metrics("node"), statistics=dict)
    server.app.router.add_get(PEER_PATH, served.peers.handle)
    served.url = await server.listen("127.0.0.1", 0)
    try:
        yield served
    finally:
        await served.peers.close()
        await server.close()


@LOOPS
def test_a_frame_in_single_bytes_and_many_frames_at_once(new_loop: NewLoop) -> None:
    """What comes together is answered together, in one frame."""

    async def scenario() -> None:
        async with serving() as served, served.foreign() as foreign:
            for byte in encode_frame([encode_request(7, ECHO.name, 1_000, "slowly")]):
                foreign.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert await foreign.frame() == [["r", 7, "slowly"]]
            requests = [encode_request(number, ECHO.name, 1_000, str(number)) for number in range(40)]
            foreign.writer.write(b"".join(encode_frame([request]) for request in requests) + KEEPALIVE)
            assert await foreign.frame() == [["r", number, str(number)] for number in range(40)]

    run(new_loop, scenario())


@LOOPS
def test_garbage_ends_its_stream_and_no_other(new_loop: NewLoop) -> None:
    """A batch that is none, a length out of bounds, nesting without end, random bytes."""
    deep = b"\x91\x95\xa1e\x01\x01\xa0\x81\xa1a" + b"\x91" * 100_000
    unknown = msgspec.msgpack.encode([["z", 1]])
    bad = [
        b"",
        b"\xc1",
        b"\x90" * 10,
        unknown,
        deep,
        b"\x91\x92\xa1p\xa1\xff",
        msgspec.msgpack.encode([["r", "id", 1]]),
    ]
    noise = random.Random(7)

    async def scenario() -> None:
        async with serving() as served:
            frames = [len(batch).to_bytes(4, "big") + batch for batch in bad]
            frames += [b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"]
            frames += [(200).to_bytes(4, "big") + b"\xdc\x00\x03" + noise.randbytes(197) for _ in range(50)]
            for frame in frames:
                async with served.foreign() as foreign:
                    foreign.writer.write(frame)
                    assert await foreign.is_cut_off()
            assert await served.echoes()

    run(new_loop, scenario())


@LOOPS
def test_who_hears_nothing_keeps_talking_and_who_says_nothing_is_cut_off(new_loop: NewLoop) -> None:
    """Empty batches show that we live; their absence shows that the other side does not."""

    async def scenario() -> None:
        async with serving(QUICK) as served, served.foreign() as foreign:
            assert await foreign.frame() == []
            assert await foreign.frame() == []
            assert served.peers.stream_of("foreign") is not None
            assert await foreign.is_cut_off()
            assert served.peers.stream_of("foreign") is None

    run(new_loop, scenario())


@LOOPS
def test_two_that_have_nothing_to_say_stay_connected(new_loop: NewLoop) -> None:
    """Keepalives alone are enough, for longer than the silence that would end the stream."""

    async def scenario() -> None:
        ups: list[None] = []
        async with serving(QUICK) as served, asyncio.TaskGroup() as tasks:
            client = PeerClient(
                served.url,
                peer="s",
                node="n",
                trust=Trust.of_key("key"),
                limits=QUICK,
                on_connected=lambda: ups.append(None),
            )
            running = tasks.create_task(client.run())
            await client.call(ECHO, "", deadline_ms=5_000)
            await asyncio.sleep(3 * SILENT_TICKS * QUICK.tick_s)
            assert await client.call(ECHO, "still", deadline_ms=5_000) == "still"
            assert len(ups) == 1
            running.cancel()

    run(new_loop, scenario())


@LOOPS
def test_who_asks_and_does_not_read_is_no_longer_heard_then_cut_off(new_loop: NewLoop) -> None:
    """Replies are owed, so what bounds them is that no more requests are read."""
    limits = StreamLimits(queue_bytes_max=1_000_000, tick_s=0.05)

    async def scenario() -> None:
        async with serving(limits) as served, served.foreign() as foreign:
            foreign.writer.transport.pause_reading()  # type: ignore[attr-defined]
            request = encode_frame([encode_request(1, ECHO.name, 1_000, "x" * 200_000)])
            most = 0
            while served.peers.stream_of("foreign") is not None and not foreign.writer.transport.is_closing():
                if foreign.writer.transport.get_write_buffer_size() < 1_000_000:
                    foreign.writer.write(request)
                await asyncio.sleep(0)
                for statistics in served.peers.statistics().values():
                    assert isinstance(statistics, dict)
                    most = max(most, statistics["queue_bytes"])
            assert 1_000_000 < most < 3_000_000

    run(new_loop, scenario())


@LOOPS
def test_who_reads_late_gets_every_reply(new_loop: NewLoop) -> None:
    """Reading stops while too many replies wait, and goes on when they have left."""
    limits = StreamLimits(queue_bytes_max=300_000)

    async def scenario() -> None:
        async with serving(limits) as served, served.foreign() as foreign:
            requests = [encode_request(number, ECHO.name, 1_000, "x" * 200_000) for number in range(40)]
            for request in requests:
                foreign.writer.write(encode_frame([request]))
            for _ in range(500):
                await asyncio.sleep(0)
            received: list[int] = []
            while len(received) < len(requests):
                received += [reply[1] for reply in await foreign.frame()]
            assert received == list(range(40))

    run(new_loop, scenario())


@LOOPS
def test_closing_does_not_wait_for_who_does_not_read(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot leave in time is left behind."""
    monkeypatch.setattr("base.peer.link.CLOSE_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        async with serving() as served, served.foreign() as foreign:
            for _ in range(100):
                foreign.writer.write(encode_frame([encode_request(1, ECHO.name, 1_000, "x" * 200_000)]))
            for _ in range(500):
                await asyncio.sleep(0)
            await served.peers.close()
            assert served.peers.stream_of("foreign") is None

    run(new_loop, scenario())


# ---------------------------------------------------------------- a foreign server


@asynccontextmanager
async def answering(answer: bytes, *, limits: StreamLimits | None = None) -> AsyncIterator[PeerClient]:
    """A client of a server that answers each request with these bytes, and then reads no more."""
    held: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(answer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield PeerClient(
            f"http://127.0.0.1:{port}", peer="server", node="tester", trust=Trust.of_key("key"), limits=limits
        )
    finally:
        for writer in held:
            writer.transport.abort()
        server.close()


@LOOPS
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "refused the peer stream: 401 Unauthorized"),
        (b"HTTP/1.1 426 Upgrade Required\r\n\r\n", "426 Upgrade Required"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "200 OK"),
        (b"SSH-2.0\r\n\r\n", "does not answer in HTTP"),
        (SWITCHED.replace(b"v2", b"v3"), "not to roadstead.peer.v2"),
        (b"x" * (HEAD_BYTES_MAX + 1), "too long"),
    ],
)
def test_a_refused_upgrade_says_why(new_loop: NewLoop, answer: bytes, said: str) -> None:
    """One clear line, and nothing but our errors."""

    async def scenario() -> None:
        async with answering(answer) as client:
            with pytest.raises(RoadsteadError, match=said):
                await connect(client.url, node="n", trust=Trust.of_key("key"))

    run(new_loop, scenario())


@LOOPS
def test_a_server_that_hangs_up_is_told_apart(new_loop: NewLoop) -> None:
    """No answer at all."""

    async def scenario() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.transport.abort(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PeerUnavailable, match="broke off"):
            await connect(f"http://127.0.0.1:{port}", node="n", trust=Trust.of_key("key"))
        server.close()

    run(new_loop, scenario())


@LOOPS
def test_what_comes_with_the_101_finds_the_new_streams_state(new_loop: NewLoop) -> None:
    """A push in the same packet is handled after `on_connected`."""

    async def scenario() -> None:
        seen: list[str] = []
        async with answering(SWITCHED + encode_frame([encode_push(TELL.name, "early")])) as plain, asyncio.timeout(5):
            client = PeerClient(
                plain.url, peer="s", node="n", trust=Trust.of_key("key"), on_connected=lambda: seen.append("connected")
            )
            told = asyncio.Event()
            client.serve(TELL, lambda text, _peer: (seen.append(text), told.set()))
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(client.run())
                await told.wait()
                running.cancel()
        assert seen == ["connected", "early"]

    run(new_loop, scenario())


@LOOPS
def test_a_peer_that_does_not_read_costs_a_bounded_queue_and_is_cut_off(new_loop: NewLoop) -> None:
    """What does not fit is refused, and after the write timeout the stream ends; its calls' outcome is unknown."""
    limits = StreamLimits(queue_bytes_max=2_000_000, tick_s=0.1)

    async def scenario() -> None:
        async with answering(SWITCHED, limits=limits) as client, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(client.run())
            loop = asyncio.get_running_loop()
            call = tasks.create_task(_outcome(client.call(ECHO, "", deadline_ms=60_000)))
            with pytest.raises(DeadlineExceeded):  # which also waits for the stream
                await client.call(ECHO, "", deadline_ms=50)
            refused = 0
            while refused < 3:
                try:
                    client.push(TELL, "x" * 100_000)
                except Overloaded:
                    refused += 1
                await asyncio.sleep(0)
            started = loop.time()
            assert isinstance(await call, PeerUnavailable)
            assert loop.time() - started > limits.tick_s * (STUCK_TICKS - 1)
            running.cancel()

    run(new_loop, scenario())


async def _outcome(call: Awaitable[object]) -> BaseException | None:
    try:
        await call
    except RoadsteadError as error:
        return error
    return None


async def test_a_listener_closes_with_streams_open() -> None:
    """Even if nobody has ended them before: the port's own shutdown does."""
    async with asyncio.timeout(5), serving() as served, served.foreign() as foreign:
        assert served.peers.stream_of("foreign") is not None
        await served.peers.close()
        assert await foreign.is_cut_off()
