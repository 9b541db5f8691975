"""A WebSocket connection between a transport that only keeps what it is told and a gateway that does.

The codec has its own tests; a real socket is in those of the listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from access import websocket as module
from access.core.deflate import Deflate, DeflateTerms
from access.core.outgoing import Form, wrap
from access.core.protocol import Close
from access.core.websocket import (
    INVALID_DATA,
    NO_CODE,
    PROTOCOL_ERROR,
    TOO_LARGE,
    FrameReader,
    Opcode,
    encode_close,
    encode_frame,
    parse_close,
)
from access.ports import Connection
from access.websocket import (
    PROTOBUF_SUBPROTOCOL,
    SOON_MAX,
    TransportLimits,
    WebSocketConnection,
    form_of,
    write_soon,
)

KEY = b"\x37\xfa\x21\x3d"
LIMITS = TransportLimits(frame_bytes_max=1_000, write_bytes_max=20)
ADDRESS = "192.0.2.1"


class Transport:
    """What the loop gives a protocol, as far as a connection uses it.

    `is_full`: what is written stays in its buffer. As the loop's transports do, it may tell the protocol of that in
    the midst of a write. `has_eof`: it can end its own direction only, which TLS cannot.
    """

    def __init__(self, *, has_eof: bool = True) -> None:
        self.written: list[bytes] = []
        self.buffered = 0
        self.is_full = False
        self.is_closing = False
        self.is_ended = False
        self.is_aborted = False
        self.has_eof = has_eof
        self.fills_at: int | None = None
        self.protocol: WebSocketConnection | None = None

    def write(self, data: bytes) -> None:
        assert not self.is_aborted
        assert not self.is_ended
        self.written.append(data)
        if self.is_full:
            self.buffered += len(data)
        if self.fills_at is not None and sum(map(len, self.written)) >= self.fills_at:
            assert self.protocol is not None
            self.fills_at, self.is_full = None, True
            self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def can_write_eof(self) -> bool:
        return self.has_eof

    def write_eof(self) -> None:
        assert self.has_eof
        assert not self.is_ended
        self.is_ended = True

    def close(self) -> None:
        self.is_closing = True

    def abort(self) -> None:
        self.is_aborted = True


@dataclass
class Gateway:
    """Keeps what it is told; `answer` is called for each frame."""

    arrived_from: list[str] = field(default_factory=list)
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    gone_with: list[int] = field(default_factory=list)
    answer: Callable[[WebSocketConnection], Any] = lambda _: None

    def arrived(self, connection: Connection, address: str) -> str:
        assert connection.client is None
        connection.client = self
        self.arrived_from.append(address)
        return "c1"

    def received(self, connection: Connection, frame: bytes) -> None:
        assert connection.client is self
        assert not self.gone_with
        assert isinstance(connection, WebSocketConnection)
        self.frames.append((connection.opcode, frame))
        self.answer(connection)

    def crowded(self, connection: Connection) -> None:
        pass

    def relieved(self, connection: Connection) -> None:
        pass

    def gone(self, connection: Connection) -> None:
        self.gone_with.append(connection.code)


class Client:
    """The connection under test and what is around it; reads what was written as a client does."""

    def __init__(self, *, deflate: DeflateTerms | None = None, starts: bool = True, has_eof: bool = True) -> None:
        self.transport = Transport(has_eof=has_eof)
        self.gateway = Gateway()
        self.connection = WebSocketConnection(
            self.gateway,
            self.transport,  # type: ignore[arg-type]
            form=form_of(None, deflate),
            address=ADDRESS,
            limits=LIMITS,
            deflate=deflate,
        )
        self.transport.protocol = self.connection
        if starts:
            self.connection.start(b"")

    def sends(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        self.connection.data_received(encode_frame(opcode, payload, mask=KEY, **how))

    def closes(self, code: int, reason: str = "") -> None:
        self.connection.data_received(encode_close(code, reason, mask=KEY))

    def read(self) -> list[tuple[int, bytes]]:
        """Everything that the client was written, frame by frame, every byte of it."""
        stream = b"".join(self.transport.written)
        reader = FrameReader(is_server=False, message_bytes_max=1 << 20)
        received = reader.feed(stream)
        assert reader.violation is None
        # A reader looks at nothing behind a close frame: as long as what it took must be what there is.
        assert sum(len(encode_frame(opcode, payload)) for opcode, payload in received) == len(stream)
        return [(opcode, payload) for opcode, payload in received]

    def texts(self) -> list[bytes]:
        """The messages that the client was written before the close frame, if there is one."""
        return [payload for opcode, payload in self.read() if opcode == Opcode.TEXT]

    def closed_with(self) -> int | None:
        """The code of the last frame, None if that does not close."""
        frames = self.read()
        if not frames or frames[-1][0] != Opcode.CLOSE:
            return None
        parsed = parse_close(frames[-1][1])
        return parsed[0]


def text(payload: bytes) -> bytes:
    return encode_frame(Opcode.TEXT, payload)


async def is_dropped(client: Client) -> None:
    """Wait for the connection to lose its patience."""
    async with asyncio.timeout(5):
        while not client.transport.is_aborted:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@pytest.fixture
async def client() -> Client:
    """One that is connected. On a loop, since whoever closes sets itself a deadline."""
    return Client()


# ---------------------------------------------------------------- arriving


@pytest.mark.parametrize(
    ("subprotocol", "deflate", "form"),
    [
        (None, None, Form.WS_JSON),
        ("centrifuge-json", None, Form.WS_JSON),
        (PROTOBUF_SUBPROTOCOL, None, Form.WS_PROTOBUF),
        (None, DeflateTerms(), Form.WS_JSON_DEFLATED),
        (PROTOBUF_SUBPROTOCOL, DeflateTerms(), Form.WS_PROTOBUF_DEFLATED),
        (None, DeflateTerms(server_max_window_bits=10), Form.WS_JSON),
        (PROTOBUF_SUBPROTOCOL, DeflateTerms(server_max_window_bits=10), Form.WS_PROTOBUF),
        (None, DeflateTerms(server_no_context_takeover=False), Form.WS_JSON),
    ],
)
def test_the_handshake_decides_on_the_form(subprotocol: str | None, deflate: DeflateTerms | None, form: Form) -> None:
    """Compressed only where what is compressed for everybody can be read."""
    assert form_of(subprotocol, deflate) is form


async def test_a_client_arrives_once_its_handshake_is_done() -> None:
    """With its address, and before anything that it sends."""
    client = Client(starts=False)
    assert client.gateway.arrived_from == []
    client.connection.start(b"")
    assert (client.gateway.arrived_from, client.gateway.frames) == ([ADDRESS], [])


async def test_what_came_behind_the_handshake_is_not_lost() -> None:
    """It was read together with that, whole or in part."""
    client = Client(starts=False)
    stream = encode_frame(Opcode.TEXT, b"one", mask=KEY) + encode_frame(Opcode.TEXT, b"two", mask=KEY)
    client.connection.start(stream[:13])
    assert client.gateway.frames == [(Opcode.TEXT, b"one")]
    client.connection.data_received(stream[13:])
    assert client.gateway.frames[1:] == [(Opcode.TEXT, b"two")]


# ---------------------------------------------------------------- what the client sends


async def test_messages_come_in_their_order_and_kind(client: Client) -> None:
    """Text and binary, short and long, whole and in parts."""
    client.sends(Opcode.TEXT, b"{}")
    client.sends(Opcode.BINARY, b"\x00\xff")
    client.sends(Opcode.TEXT, b"a", is_final=False)
    client.sends(Opcode.CONTINUATION, b"b" * 500)
    assert client.gateway.frames == [
        (Opcode.TEXT, b"{}"),
        (Opcode.BINARY, b"\x00\xff"),
        (Opcode.TEXT, b"a" + b"b" * 500),
    ]
    assert client.read() == []


async def test_a_compressed_message_is_read_where_that_was_agreed_on() -> None:
    """Elsewhere it is a fault."""
    payload = Deflate().message(b"hello " * 50)
    for deflate, frames, code in ((DeflateTerms(), [(Opcode.TEXT, b"hello " * 50)], None), (None, [], PROTOCOL_ERROR)):
        client = Client(deflate=deflate)
        client.sends(Opcode.TEXT, payload, is_compressed=True)
        assert (client.gateway.frames, client.closed_with()) == (frames, code)


async def test_a_ping_is_answered_with_what_it_carries(client: Client) -> None:
    """In its place among what is written; a pong is not answered."""
    client.connection.write(text(b"a"))
    client.sends(Opcode.PING, b"are you there?")
    client.sends(Opcode.PONG, b"by the way")
    client.connection.write(text(b"b"))
    assert client.read() == [(Opcode.TEXT, b"a"), (Opcode.PONG, b"are you there?"), (Opcode.TEXT, b"b")]
    assert client.gateway.frames == []


async def test_who_pings_and_does_not_read_is_too_slow(client: Client) -> None:
    """Answers take their place in the budget, so that nobody fills the memory with them."""
    client.connection.pause_writing()
    client.sends(Opcode.PING, b"0123456789")
    assert client.connection.queued() == 12
    client.sends(Opcode.PING, b"0123456789")
    assert client.closed_with() == Close.SLOW.code


async def test_nothing_that_a_client_sent_behind_its_end_is_looked_at(client: Client) -> None:
    """In the same piece: the gateway closed it because of the first."""
    client.gateway.answer = lambda connection: connection.close(Close.BAD_REQUEST)
    frames = [encode_frame(Opcode.TEXT, b"%d" % number, mask=KEY) for number in range(3)]
    client.connection.data_received(b"".join([*frames, encode_frame(Opcode.PING, b"", mask=KEY)]))
    assert client.gateway.frames == [(Opcode.TEXT, b"0")]
    assert [opcode for opcode, _ in client.read()] == [Opcode.CLOSE]


# ---------------------------------------------------------------- what is written


async def test_frames_are_written_in_order_and_at_once(client: Client) -> None:
    """Nothing waits here while the transport takes it: the frames are those that all clients get."""
    frames = [text(b"%d" % number) for number in range(5)]
    for frame in frames:
        client.connection.write(frame, 1)
    assert all(written is frame for written, frame in zip(client.transport.written, frames, strict=True))
    assert client.connection.queued() == 0


async def test_while_the_transport_is_full_frames_wait_here(client: Client) -> None:
    """And follow in their order when it has room again, together."""
    client.connection.write(text(b"a"))
    client.connection.pause_writing()
    for payload in (b"b", b"c"):
        client.connection.write(text(payload))
    client.connection.pause_writing()
    client.transport.buffered = 100
    assert client.texts() == [b"a"]
    assert client.connection.queued() == 106
    client.connection.resume_writing()
    client.connection.write(text(b"d"))
    assert client.texts() == [b"a", b"b", b"c", b"d"]
    assert len(client.transport.written) == 3
    client.connection.pause_writing()
    client.connection.resume_writing()
    assert len(client.transport.written) == 3, "there was nothing to write"


async def test_of_states_that_wait_only_the_last_one_is_written(client: Client) -> None:
    """In the place of the first; one that was written is not replaced."""
    client.connection.write(text(b"x0"), 1)
    client.connection.pause_writing()
    for payload, replaces in ((b"x1", 1), (b"m", None), (b"y1", 2), (b"x2+", 1), (b"x3", 1), (b"y2", 2)):
        client.connection.write(text(payload), replaces)
    client.connection.resume_writing()
    client.connection.pause_writing()
    client.connection.write(text(b"x4"), 1)
    client.connection.resume_writing()
    assert client.texts() == [b"x0", b"x3", b"m", b"y2", b"x4"]


async def test_a_transport_may_become_full_in_the_midst_of_a_write(client: Client) -> None:
    """Also with what waited before: nothing overtakes, nothing is written twice."""
    client.transport.fills_at = 5
    for payload in (b"a", b"b", b"c"):
        client.connection.write(text(payload))
    assert client.texts() == [b"a", b"b"]
    client.transport.fills_at = 6
    client.connection.resume_writing()
    client.connection.write(text(b"d"))
    assert client.texts() == [b"a", b"b", b"c"]
    client.connection.resume_writing()
    assert client.texts() == [b"a", b"b", b"c", b"d"]


async def test_who_reads_too_slowly_is_closed_and_written_nothing_more(client: Client) -> None:
    """What waited is dropped: the client recovers it by its positions. It is closed with 3008, once."""
    client.connection.write(text(b"a"))
    client.connection.pause_writing()
    for number in range(6):
        client.connection.write(text(b"%d" % number))
    assert client.closed_with() is None
    client.connection.write(text(b"0123"))
    client.connection.write(text(b"x"), 1)
    client.connection.close(Close.SHUTDOWN)
    client.connection.resume_writing()
    assert client.texts() == [b"a"]
    assert client.closed_with() == client.connection.code == Close.SLOW.code
    assert client.connection.queued() == 0


async def test_a_frame_of_any_length_is_written_where_nothing_waits(client: Client) -> None:
    """The budget is for what waits."""
    client.connection.write(wrap(Form.WS_JSON, b"m" * 5_000))
    assert client.texts() == [b"m" * 5_000]


# ---------------------------------------------------------------- written soon


async def test_what_is_written_soon_leaves_together_at_the_end_of_the_step(client: Client) -> None:
    """In its order; one frame alone is not copied."""
    frames = [text(b"%d" % number) for number in range(3)]
    for frame in frames:
        write_soon(client.connection, frame)
    assert client.transport.written == []
    await asyncio.sleep(0)
    assert client.transport.written == [b"".join(frames)]
    write_soon(client.connection, frames[0])
    await asyncio.sleep(0)
    assert client.transport.written[1] is frames[0]


async def test_what_is_written_at_once_does_not_overtake_it(client: Client) -> None:
    """It takes along what was to leave a little later."""
    client.connection.write_soon(text(b"a"))
    client.connection.write_soon(text(b"b"))
    client.connection.write(text(b"c"))
    client.connection.write_soon(text(b"d"))
    assert client.texts() == [b"a", b"b", b"c"]
    await asyncio.sleep(0)
    assert client.texts() == [b"a", b"b", b"c", b"d"]
    assert len(client.transport.written) == 3


async def test_no_more_than_a_few_frames_wait_for_the_end_of_the_step(client: Client) -> None:
    """Or what waits for a client would have no bound."""
    for number in range(SOON_MAX + 2):
        client.connection.write_soon(text(b"%d" % number))
    assert len(client.texts()) == SOON_MAX + 1
    await asyncio.sleep(0)
    assert client.texts() == [b"%d" % number for number in range(SOON_MAX + 2)]


async def test_what_is_written_soon_waits_in_its_place_while_the_transport_is_full(client: Client) -> None:
    """Whether it became full before, or in between, and within the same budget."""
    client.connection.write_soon(text(b"a"))
    client.connection.pause_writing()
    await asyncio.sleep(0)
    client.connection.write_soon(text(b"b"))
    client.connection.write(text(b"c"))
    assert client.texts() == []
    client.connection.resume_writing()
    assert client.texts() == [b"a", b"b", b"c"]
    client.connection.pause_writing()
    client.connection.write_soon(text(b"m" * LIMITS.write_bytes_max))
    await asyncio.sleep(0)
    assert client.closed_with() == Close.SLOW.code


async def test_what_was_written_soon_comes_before_the_close(client: Client) -> None:
    """And nothing behind it."""
    client.connection.write_soon(text(b"a"))
    client.connection.close(Close.SHUTDOWN)
    client.connection.write_soon(text(b"b"))
    await asyncio.sleep(0)
    assert client.texts() == [b"a"]
    assert client.closed_with() == Close.SHUTDOWN.code


async def test_what_was_written_soon_to_a_client_that_is_gone_is_dropped(client: Client) -> None:
    """The transport may not be written to any more."""
    client.connection.write_soon(text(b"a"))
    client.connection.connection_lost(None)
    await asyncio.sleep(0)
    assert client.transport.written == []


# ---------------------------------------------------------------- the node closes


async def test_the_node_closes_behind_what_was_written(client: Client) -> None:
    """Also behind what still waits; the client's answer ends it."""
    client.connection.write(text(b"a"))
    client.connection.pause_writing()
    client.connection.write(text(b"b"))
    client.connection.close(Close.SHUTDOWN)
    client.connection.write(text(b"c"))
    client.connection.resume_writing()
    assert client.texts() == [b"a", b"b"]
    assert client.read()[-1] == (Opcode.CLOSE, b"\x0b\xb9shutdown")
    assert not client.transport.is_closing
    client.sends(Opcode.TEXT, b"too late")
    client.sends(Opcode.PING)
    client.closes(1000)
    assert client.transport.is_closing
    client.connection.connection_lost(None)
    assert client.gateway.gone_with == [Close.SHUTDOWN.code]
    assert client.gateway.frames == []
    assert client.closed_with() == Close.SHUTDOWN.code


@pytest.mark.parametrize("answer", ["nothing", "nonsense", "a close that is none"])
async def test_whoever_does_not_answer_a_close_is_dropped(
    client: Client, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """After a deadline, with the code of the node; it is told nothing more."""
    monkeypatch.setattr(module, "CLOSE_DEADLINE_S", 0.05)
    client.connection.close(Close.SHUTDOWN)
    if answer == "nonsense":
        client.connection.data_received(b"\xff\xff")
    elif answer != "nothing":
        client.sends(Opcode.CLOSE, b"\x00")
    assert client.gateway.gone_with == ([] if answer == "nothing" else [Close.SHUTDOWN.code])
    await is_dropped(client)
    client.connection.connection_lost(None)
    assert client.gateway.gone_with == [Close.SHUTDOWN.code]
    assert [opcode for opcode, _ in client.read()] == [Opcode.CLOSE]


@pytest.mark.parametrize("close", [Close.NO_PONG, Close.SLOW])
async def test_whoever_will_hardly_answer_is_gone_at_once(client: Client, close: Close) -> None:
    """Its session does not wait for the answer to a close; and it is told of only once."""
    client.connection.close(close)
    assert client.gateway.gone_with == [close.code]
    client.connection.connection_lost(None)
    assert client.gateway.gone_with == [close.code]


# ---------------------------------------------------------------- the client closes


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_client_s_close_is_answered_with_its_code(client: Client, code: int, *, waits: bool) -> None:
    """It is gone at once, and nothing is written behind the answer, whatever waited."""
    client.connection.write(text(b"a"))
    if waits:
        client.connection.pause_writing()
        client.connection.write(text(b"b"))
    client.closes(code, "bye")
    assert client.transport.is_closing
    assert client.gateway.gone_with == [code]
    client.connection.write(text(b"c"))
    client.connection.close(Close.SHUTDOWN)
    client.connection.resume_writing()
    assert client.texts() == [b"a"]
    assert client.closed_with() == code
    client.connection.connection_lost(None)
    assert client.gateway.gone_with == [code]


async def test_a_close_without_a_code_is_answered_without_one(client: Client) -> None:
    """1005 stands for that, and never travels."""
    client.sends(Opcode.CLOSE)
    assert client.read() == [(Opcode.CLOSE, b"")]
    client.connection.connection_lost(None)
    assert client.gateway.gone_with == [NO_CODE]


async def test_a_client_that_never_reads_the_answer_is_dropped(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport would wait for it for ever."""
    monkeypatch.setattr(module, "CLOSE_DEADLINE_S", 0.05)
    client.closes(1000)
    await is_dropped(client)


VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "not masked": (encode_frame(Opcode.TEXT, b"a"), PROTOCOL_ERROR),
    "an opcode that is reserved": (b"\x83\x80" + KEY, PROTOCOL_ERROR),
    "no UTF-8": (encode_frame(Opcode.TEXT, b"\xff", mask=KEY), INVALID_DATA),
    "too large": (encode_frame(Opcode.TEXT, bytes(1_001), mask=KEY), TOO_LARGE),
    "a close code that is none": (encode_frame(Opcode.CLOSE, b"\x03\xed", mask=KEY), PROTOCOL_ERROR),
    "a close reason that is no UTF-8": (encode_frame(Opcode.CLOSE, b"\x03\xe8\xff", mask=KEY), INVALID_DATA),
}


@pytest.mark.parametrize("has_eof", [False, True])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("name", VIOLATIONS)
async def test_who_breaks_the_protocol_is_closed_with_the_code_for_that(
    name: str, *, waits: bool, has_eof: bool
) -> None:
    """What came before it in the same piece counts, nothing after it does; nothing is written behind the close."""
    client = Client(has_eof=has_eof)
    stream, code = VIOLATIONS[name]
    whole = encode_frame(Opcode.TEXT, b"a", mask=KEY)
    if waits:
        client.connection.pause_writing()
        client.connection.write(text(b"b"))
    client.connection.data_received(whole + stream + whole)
    assert client.gateway.frames == [(Opcode.TEXT, b"a")]
    assert client.gateway.gone_with == [code]
    client.connection.data_received(whole)
    client.connection.write(text(b"c"))
    client.connection.resume_writing()
    assert [opcode for opcode, _ in client.read()] == [Opcode.CLOSE]
    assert client.closed_with() == code
    client.connection.connection_lost(None)
    assert client.gateway.gone_with == [code]
    assert client.gateway.frames == [(Opcode.TEXT, b"a")]


async def test_who_breaks_the_protocol_can_still_read_why(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it goes on sending is thrown away for a while: to hang up on that would take the close frame along."""
    monkeypatch.setattr(module, "CLOSE_DEADLINE_S", 0.05)
    client.connection.data_received(VIOLATIONS["too large"][0])
    assert (client.transport.is_ended, client.transport.is_closing, client.transport.is_aborted) == (True, False, False)
    async with asyncio.timeout(5):
        while not client.transport.is_aborted:
            client.sends(Opcode.TEXT, b"more")
            await asyncio.sleep(0.01)
    client.connection.connection_lost(None)
    assert (client.gateway.gone_with, client.gateway.frames) == ([TOO_LARGE], [])


# ---------------------------------------------------------------- the transport ends


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_connection_that_just_breaks_is_gone_with_1006(client: Client, error: Exception | None) -> None:
    """Once; and whoever still wants to write to it, or to close it, does no harm."""
    client.connection.pause_writing()
    client.connection.write(text(b"a"))
    assert client.connection.eof_received() is False, "the transport closes by itself"
    client.connection.connection_lost(error)
    client.connection.write(text(b"b"))
    client.connection.close(Close.SHUTDOWN)
    client.connection.resume_writing()
    assert client.gateway.gone_with == [module.ABNORMAL] == [1006]
    assert client.connection.code == 1006
    assert client.transport.written == []
    assert client.connection.queued() == 0


async def test_the_node_can_hang_up_without_a_word(client: Client) -> None:
    """And is told so as of any other end."""
    client.connection.abort()
    assert client.transport.is_aborted
    client.connection.connection_lost(None)
    assert (client.gateway.gone_with, client.transport.written) == ([1006], [])
