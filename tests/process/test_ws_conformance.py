"""RFC 6455 and RFC 7692 as others understand them: two third-party clients, and by hand what those refuse to send.

On the other side is an echo on the production listener and codec, in a process of its own on the production loop.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.support.clients_port import BINARY, CLOSE, PING, PONG, TEXT, RawClient, frame, request

pytestmark = pytest.mark.process

CONTINUATION = 0x0
MORE = 0x00
"""Instead of FIN: the message goes on in another frame."""
RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
FIN = 0x80
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
SIZES = (0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1_000_000)
DEFLATE = "permessage-deflate"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.ws_echo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def websocket(url: str) -> str:
    return url.replace("http", "ws", 1)


def texts(size: int) -> str:
    """Return so many bytes of UTF-8, characters of one to four bytes among them."""
    return ("aé€😀" * (size // 10 + 1)).encode()[:size].decode(errors="ignore").ljust(size)[:size]


# ---------------------------------------------------------------- the library `websockets`

OFFERS = {
    "none": None,
    "plain": ClientPerMessageDeflateFactory(client_max_window_bits=None),
    "window free": ClientPerMessageDeflateFactory(client_max_window_bits=True),
    "no takeover": ClientPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True),
    "server forgets": ClientPerMessageDeflateFactory(server_no_context_takeover=True, client_max_window_bits=None),
    "client forgets": ClientPerMessageDeflateFactory(client_no_context_takeover=True, client_max_window_bits=None),
    "small windows": ClientPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9),
    "client's window": ClientPerMessageDeflateFactory(client_max_window_bits=10),
    "server's window": ClientPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=None),
}
LARGEST_WINDOWS = ClientPerMessageDeflateFactory(server_max_window_bits=15, client_max_window_bits=15)


@pytest.fixture(params=[*OFFERS, "largest windows"])
async def client(url: str, request: pytest.FixtureRequest) -> AsyncIterator[ClientConnection]:
    offer = OFFERS.get(request.param, LARGEST_WINDOWS)
    extensions = None if offer is None else [offer]
    async with connect(
        websocket(url), compression=None, extensions=extensions, max_size=None, ping_interval=None, proxy=None
    ) as made:
        agreed = [extension.name for extension in made.protocol.extensions]
        assert agreed == ([] if offer is None else [DEFLATE]), "every offer here is one that the server can keep"
        yield made


@pytest.mark.spec("RT-01")
async def test_messages_come_back_as_they_were(client: ClientConnection) -> None:
    """Of any size, text as text and binary as binary, the same one twice, many at once."""
    for size in SIZES:
        for message in (texts(size), texts(size).encode(), b"\x00\xff" * (size // 2)):
            for _ in range(2):
                await client.send(message)
                assert await client.recv() == message
    for number in range(200):
        await client.send(f"message {number}")
    assert [await client.recv() for _ in range(200)] == [f"message {number}" for number in range(200)]


async def test_fragments_with_pings_between_them_are_one_message(client: ClientConnection) -> None:
    """Empty ones too, and characters that are cut in two; the pings are answered on the way."""
    pongs = []

    async def parts(message: bytes, size: int) -> AsyncIterator[bytes]:
        for at in range(0, len(message) + size, size):
            pongs.append(await client.ping(f"after {at}"))
            yield message[at : at + size]

    for size in (1, 7, 1_000):
        message = texts(5 * size).encode()
        await client.send(parts(message, size), text=True)
        assert await client.recv() == message.decode()
        await client.send(parts(message, size), text=False)
        assert await client.recv() == message
    for pong in pongs:
        assert (await pong) < 10


async def test_pings_are_answered_with_their_payload(client: ClientConnection) -> None:
    """The library matches a pong with its ping by that."""
    for payload in (b"", b"x", b"\x00" * 125):
        assert await (await client.ping(payload)) < 10
    await client.pong(b"nobody asked")
    await client.send("still here")
    assert await client.recv() == "still here"


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 3000, 3999, 4000, 4999])
async def test_a_close_is_answered_with_its_code(url: str, code: int) -> None:
    """Whatever was sent before it comes back before."""
    async with connect(websocket(url), proxy=None) as client:
        await client.send("first")
        await client.close(code, "a reason")
        assert client.protocol.close_rcvd == websockets.frames.Close(code, "")
        assert [message async for message in client] == ["first"] if code in {1000, 1001} else True
        assert client.close_code == code


async def test_a_message_over_the_limit_is_refused_with_1009(url: str) -> None:
    """The client hears why, though it is still sending; one at the limit comes back."""
    client = await connect(websocket(url), compression=None, max_size=None, proxy=None)
    largest = b"x" * MESSAGE_BYTES_MAX
    await client.send(largest)
    assert await client.recv() == largest
    with contextlib.suppress(websockets.ConnectionClosed):
        await client.send(largest + b"x")
    await client.wait_closed()
    assert client.close_code == 1009


# ---------------------------------------------------------------- the client of aiohttp


@pytest.mark.parametrize("compress", [0, 9, 12, 15])
async def test_the_client_of_aiohttp_is_served(url: str, compress: int) -> None:
    """Messages of any size, with compression and without, pings and the close."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, compress=compress, max_msg_size=0, autoping=False) as client,
    ):
        assert bool(client.compress) == bool(compress)
        for size in SIZES:
            await client.send_str(texts(size))
            assert await client.receive_str() == texts(size)
            await client.send_bytes(b"\xff" * size)
            assert await client.receive_bytes() == b"\xff" * size
        await client.ping(b"there?")
        answer = await client.receive()
        assert (answer.type, answer.data) == (aiohttp.WSMsgType.PONG, b"there?")
        await client.close(code=4001, message=b"bye")
        assert client.close_code == 4001


async def test_the_subprotocol_is_the_first_of_the_client_s_that_is_known(url: str) -> None:
    """None in common is no refusal."""
    for asked, agreed in (
        (("centrifuge-json",), "centrifuge-json"),
        (("x", "centrifuge-json", "centrifuge-protobuf"), "centrifuge-json"),
        (("centrifuge-protobuf", "centrifuge-json"), "centrifuge-protobuf"),
        ((), None),
    ):
        async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=asked) as client:
            assert client.protocol == agreed
            await client.send_str("hi")
            assert (await client.receive()).data in {"hi", b"hi"}


# ---------------------------------------------------------------- what no library sends


def length(opcode: int, header: bytes) -> bytes:
    """Return a frame's header whose length is written as in `header`, and a mask; its payload is to follow."""
    return bytes([FIN | opcode]) + header + bytes(4)


def closing(payload: bytes) -> bytes:
    return frame(CLOSE, payload)


def code(number: int, reason: bytes = b"") -> bytes:
    return closing(number.to_bytes(2) + reason)


def deflated(payload: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return (made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


BAD_TEXTS = {
    "a stray byte": b"\x80",
    "a byte that there is not": b"ab\xffcd",
    "an overlong form": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "half a character": b"\xe2\x82",
}
VIOLATIONS = {
    **{f"opcode {opcode}": (frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{
        f"reserved bit {bit:#x} on {opcode}": (frame(opcode, b"", first=FIN | bit), 1002)
        for bit in (RSV1, RSV2, RSV3)
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
    },
    **{f"no mask on {opcode}": (frame(opcode, mask=None), 1002) for opcode in (TEXT, BINARY, CLOSE, PING, PONG)},
    **{f"a control frame in parts: {opcode}": (frame(opcode, first=MORE), 1002) for opcode in (CLOSE, PING, PONG)},
    **{f"a control frame of 126 bytes: {opcode}": (frame(opcode, b"x" * 126)[:4], 1002) for opcode in (CLOSE, PING)},
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a last continuation of nothing": (frame(CONTINUATION, b"x", first=MORE), 1002),
    "a message inside another": (frame(TEXT, b"a", first=MORE) + frame(TEXT, b"b"), 1002),
    "a binary one inside a text": (frame(TEXT, b"a", first=MORE) + frame(BINARY, b"b", first=MORE), 1002),
    "a continuation after the end": (
        frame(BINARY, b"", first=MORE) + frame(CONTINUATION, b"") + frame(CONTINUATION, b""),
        1002,
    ),
    "125 bytes in two bytes of length": (length(BINARY, b"\xfe\x00\x7d"), 1002),
    "65,535 bytes in eight": (length(BINARY, b"\xff" + (65_535).to_bytes(8)), 1002),
    "a length of 64 bits": (length(BINARY, b"\xff\x80" + bytes(7)), 1002),
    "a length of 63 bits": (length(BINARY, b"\xff\x7f" + b"\xff" * 7), 1009),
    "one byte too many": (length(BINARY, b"\xff" + (MESSAGE_BYTES_MAX + 1).to_bytes(8)), 1009),
    "one byte too many together": (
        frame(BINARY, b"x", first=MORE) + length(CONTINUATION, b"\xff" + MESSAGE_BYTES_MAX.to_bytes(8)),
        1009,
    ),
    **{f"{name} in a text": (frame(TEXT, text, mask=b"abcd"), 1007) for name, text in BAD_TEXTS.items()},
    **{
        f"{name} in parts": (
            frame(TEXT, text[:1], first=MORE) + frame(PING) + frame(CONTINUATION, text[1:]),
            1007,
        )
        for name, text in BAD_TEXTS.items()
    },
    "a bad byte in a message that goes on": (frame(TEXT, b"\xff", first=MORE), 1007),
    "a close of one byte": (closing(b"\x03"), 1002),
    **{
        f"close {number}": (code(number), 1002)
        for number in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "a close whose reason is no text": (code(1000, b"\xff"), 1007),
}
"""What is sent -> the code that has to come back. Without compression."""


@pytest.mark.parametrize("name", VIOLATIONS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "bytewise"])
async def test_a_violation_ends_the_connection_with_its_code(url: str, name: str, whole: bool) -> None:  # noqa: FBT001
    """What came before it is still answered, nothing that comes after it; then TCP is closed."""
    segment, expected = VIOLATIONS[name]
    client = await RawClient.upgraded(url)
    sent = frame(TEXT, b"before") + segment + frame(TEXT, b"behind it")
    if whole:
        client.send(sent)
    else:
        for byte in sent:
            client.send(bytes([byte]))
            await client.writer.drain()
    frames = [await client.frame()]
    while frames[-1][0] != CLOSE:
        frames.append(await client.frame())
    assert frames[0] == (TEXT, b"before")
    assert (TEXT, b"behind it") not in frames
    assert int.from_bytes(frames[-1][1][:2]) == expected
    assert await client.is_over() == b""


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (frame(BINARY, b"\xff\xff\xff", first=FIN | RSV1), 1007),
        (frame(TEXT, deflated(b"\xff"), first=FIN | RSV1), 1007),
        (frame(TEXT, deflated(b"a" * 100)[:-3], first=FIN | RSV1), 1007),
        (frame(BINARY, deflated(bytes(MESSAGE_BYTES_MAX + 1)), first=FIN | RSV1), 1009),
        (frame(PING, first=FIN | RSV1), 1002),
        (frame(BINARY, b"", first=MORE) + frame(CONTINUATION, b"", first=FIN | RSV1), 1002),
        (frame(BINARY, b"", first=FIN | RSV2), 1002),
    ],
)
async def test_a_violation_of_the_compression_that_was_agreed_on(url: str, segment: bytes, expected: int) -> None:
    """A stream that is none, or a bomb, ends the connection; so does the bit where it means nothing."""
    client = await RawClient.connect(url)
    client.send(request(Sec_WebSocket_Extensions=DEFLATE))
    assert (await client.answer()).headers["sec-websocket-extensions"].startswith(DEFLATE)
    client.send(frame(TEXT, deflated(b"before"), first=FIN | RSV1), segment)
    assert (await client.frame())[0] & 0x0F == TEXT
    assert await client.close_code() == expected
    assert await client.is_over() == b""


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        (DEFLATE, True),
        (f"{DEFLATE}; client_max_window_bits", True),
        (f"{DEFLATE}; server_max_window_bits=8", False),
        (f"{DEFLATE}; server_max_window_bits=16", False),
        (f"{DEFLATE}; server_max_window_bits", False),
        (f"{DEFLATE}; unknown", False),
        (f"{DEFLATE}; server_no_context_takeover=1", False),
        (f"{DEFLATE}; unknown, {DEFLATE}", True),
        (f"x-webkit-deflate-frame, {DEFLATE}", True),
        ("bbf-usp-protocol", False),
        ("", False),
    ],
)
async def test_offers_of_compression_are_taken_or_passed_over(url: str, offer: str, agreed: bool) -> None:  # noqa: FBT001
    """None is a reason to refuse the connection; without any a compressed frame is a violation."""
    client = await RawClient.connect(url)
    client.send(request(Sec_WebSocket_Extensions=offer))
    answer = await client.answer()
    assert answer.status == 101
    assert answer.headers.get("sec-websocket-extensions", "").startswith(DEFLATE) == agreed
    client.send(frame(TEXT, deflated(b"hi"), first=FIN | RSV1))
    opcode, _ = await client.frame()
    assert opcode & 0x0F == (TEXT if agreed else CLOSE)
    client.hang_up()


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        *((code(number, b"why"), number) for number in (1000, 1003, 1007, 1011, 1014, 3000, 4999)),
        (closing(b""), None),
        (code(1000) + frame(TEXT, b"behind it") + code(1001), 1000),
        (frame(BINARY, b"never ends", first=MORE) + code(1000), 1000),
    ],
)
async def test_a_close_is_answered_once_and_ends_tcp(url: str, sent: bytes, answered: int | None) -> None:
    """With its code; what is behind it, or was not whole, does not matter."""
    client = await RawClient.upgraded(url)
    client.send(sent)
    expected = b"" if answered is None else answered.to_bytes(2)
    assert await client.frame() == (CLOSE, expected)
    assert await client.is_over() == b""


async def test_control_frames_may_stand_anywhere_between_frames(url: str) -> None:
    """Each ping is answered in its turn, with its payload; pongs that nobody asked for are not."""
    client = await RawClient.upgraded(url)
    client.send(
        frame(PING, b"1"),
        frame(TEXT, "é".encode()[:1], first=MORE),
        frame(PING, b"x" * 125, mask=b"\x00\xff\x10\x20"),
        frame(PONG, b"unasked"),
        frame(CONTINUATION, b"", first=MORE),
        frame(PING),
        frame(CONTINUATION, "é".encode()[1:]),
    )
    got = [await client.frame() for _ in range(4)]
    assert got == [(PONG, b"1"), (PONG, b"x" * 125), (PONG, b""), (TEXT, "é".encode())]
    client.hang_up()
