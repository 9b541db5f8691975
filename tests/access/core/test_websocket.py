"""The WebSocket codec: the examples of RFC 6455, then limits, closing, and both sides against each other.

The reader's exhaustive cases are in the file beside this one.
"""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.deflate import Deflate, Inflate
from access.core.websocket import (
    INVALID_DATA,
    NO_CODE,
    PROTOCOL_ERROR,
    TOO_LARGE,
    CloseHandshake,
    FrameReader,
    Opcode,
    Received,
    Violation,
    apply_mask,
    encode_close,
    encode_frame,
    parse_close,
)

KEY = b"\x37\xfa\x21\x3d"
HELLO = Received(Opcode.TEXT, b"Hello")


def reader(*, is_server: bool = True, message_bytes_max: int = 1000, inflate: Inflate | None = None) -> FrameReader:
    return FrameReader(is_server=is_server, message_bytes_max=message_bytes_max, inflate=inflate)


def masked(opcode: int, payload: bytes, *, is_final: bool = True, is_compressed: bool = False) -> bytes:
    return encode_frame(opcode, payload, mask=KEY, is_final=is_final, is_compressed=is_compressed)


def code(of: FrameReader) -> int | None:
    return None if of.violation is None else of.violation.code


# ---------------------------------------------------------------- the examples of the RFC (5.7)


def test_the_frames_of_the_rfc_are_written_as_it_shows_them():
    """Each in hexadecimal digits."""
    assert encode_frame(Opcode.TEXT, b"Hello").hex() == "810548656c6c6f"
    assert encode_frame(Opcode.TEXT, b"Hello", mask=KEY).hex() == "818537fa213d7f9f4d5158"
    assert encode_frame(Opcode.TEXT, b"Hel", is_final=False).hex() == "010348656c"
    assert encode_frame(Opcode.CONTINUATION, b"lo").hex() == "80026c6f"
    assert encode_frame(Opcode.PING, b"Hello").hex() == "890548656c6c6f"
    assert encode_frame(Opcode.BINARY, bytes(256))[:4].hex() == "827e0100"
    assert encode_frame(Opcode.BINARY, bytes(65536))[:10].hex() == "827f0000000000010000"
    assert encode_frame(Opcode.TEXT, b"", is_compressed=True).hex() == "c100"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("810548656c6c6f", [HELLO]),
        ("010348656c80026c6f", [HELLO]),
        ("890548656c6c6f", [(Opcode.PING, b"Hello")]),
        ("8a0548656c6c6f", [(Opcode.PONG, b"Hello")]),
        ("827e0100" + "00" * 256, [(Opcode.BINARY, bytes(256))]),
        ("010348656c" + "8900" + "80026c6f", [(Opcode.PING, b""), HELLO]),
    ],
)
def test_the_frames_of_the_rfc_are_read(stream: str, expected: list[Received]):
    """As a client, which gets them without a mask."""
    client = reader(is_server=False)
    assert client.feed(bytes.fromhex(stream)) == expected
    assert client.violation is None


def test_the_masked_frame_of_the_rfc_is_read_by_a_server():
    """As a server."""
    assert reader().feed(bytes.fromhex("818537fa213d7f9f4d5158")) == [HELLO]


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("size", [*range(20), 123, 4093, 4095, 4096, 4097, 4100, 8192, 8193, 70_001])
def test_a_mask_is_the_key_over_and_over(size: int):
    """Against a loop over bytes, around the size at which it goes piece by piece; masking twice undoes it."""
    payload = bytes(index * 7 % 256 for index in range(size))
    for key in (KEY, b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1"):
        expected = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
        assert apply_mask(payload, key) == expected
        assert apply_mask(expected, key) == payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
@pytest.mark.parametrize("mask", [None, KEY])
def test_a_length_takes_its_shortest_form(size: int, mask: bytes | None):
    """Seven bits, else 16, else 64."""
    header = struct.pack(">B", size) if size < 126 else struct.pack(">BH", 126, size) if size < 65536 else None
    header = bytearray(header if header is not None else struct.pack(">BQ", 127, size))
    payload = b"a" * size
    body = payload
    if mask is not None:
        header[0] |= 0x80
        body = mask + apply_mask(payload, mask)
    assert encode_frame(Opcode.BINARY, payload, mask=mask) == b"\x82" + bytes(header) + body


@pytest.mark.parametrize("opcode", [Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_to_write_an_illegal_control_frame_is_a_bug(opcode: Opcode):
    """Too long, in parts, or compressed."""
    assert encode_frame(opcode, b"x" * 125)
    with pytest.raises(AssertionError):
        encode_frame(opcode, b"x" * 126)
    with pytest.raises(AssertionError):
        encode_frame(opcode, b"", is_final=False)
    with pytest.raises(AssertionError):
        encode_frame(opcode, b"", is_compressed=True)


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("offset", range(4))
def test_the_reason_of_a_close_is_cut_between_characters(character: str, offset: int):
    """As many whole characters as fit into 123 bytes."""
    reason = "x" * offset + character * 200
    frame = encode_close(1001, reason)
    assert frame[:4] == bytes([0x88, len(frame) - 2]) + (1001).to_bytes(2, "big")
    cut = frame[4:].decode()
    assert reason.startswith(cut)
    assert len(cut.encode()) <= 123 < len(reason[: len(cut) + 1].encode())


def test_a_close_frame_may_carry_nothing():
    """The code for that is never sent itself, and cannot have a reason."""
    assert encode_close(NO_CODE) == b"\x88\x00"
    assert encode_close(NO_CODE, mask=KEY) == b"\x88\x80" + KEY
    with pytest.raises(AssertionError):
        encode_close(NO_CODE, "why")
    with pytest.raises(AssertionError):
        encode_close(1006)


# ---------------------------------------------------------------- close codes


def test_every_code_of_a_close_frame_is_taken_or_refused():
    """All 65,536 against the list of RFC 6455 (7.4) and what IANA registered since."""
    registered = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
    for number in range(65536):
        payload = number.to_bytes(2, "big") + b"why"
        if number in registered or number // 1000 in {3, 4}:
            assert parse_close(payload) == (number, "why")
            assert encode_close(number, "why") == b"\x88\x05" + payload
        else:
            refused = parse_close(payload)
            assert isinstance(refused, Violation)
            assert refused.code == PROTOCOL_ERROR


def test_a_close_frame_without_a_code_is_legal_and_one_with_half_a_code_is_not():
    """The payload is empty, or has two bytes at least."""
    assert parse_close(b"") == (NO_CODE, "")
    assert parse_close(b"\x03\xe8") == (1000, "")
    for byte in range(256):
        refused = parse_close(bytes([byte]))
        assert isinstance(refused, Violation)
        assert refused.code == PROTOCOL_ERROR


def test_the_reason_of_a_close_frame_is_text():
    """UTF-8 is required of it."""
    assert parse_close(b"\x03\xe8\xc3\xa9") == (1000, "é")
    refused = parse_close(b"\x03\xe8\xc3")
    assert isinstance(refused, Violation)
    assert refused.code == INVALID_DATA


# ---------------------------------------------------------------- reading: limits


@pytest.mark.parametrize("size", [0, 5, 125, 126, 1000])
def test_a_message_of_exactly_the_limit_is_taken_and_a_byte_more_refused(size: int):
    """In one frame or in two; the refusal comes with the header."""
    assert reader(message_bytes_max=size).feed(masked(Opcode.BINARY, b"x" * size)) == [(Opcode.BINARY, b"x" * size)]
    parts = masked(Opcode.BINARY, b"", is_final=False) + masked(Opcode.CONTINUATION, b"x" * size)
    assert reader(message_bytes_max=size).feed(parts) == [(Opcode.BINARY, b"x" * size)]
    whole = masked(Opcode.BINARY, b"x" * (size + 1))
    for stream in (whole, whole[: -size - 5]):
        over = reader(message_bytes_max=size)
        assert over.feed(stream) == []
        assert code(over) == TOO_LARGE


def test_the_parts_of_a_message_count_together_and_anew_for_each_message():
    """Two messages of 600 bytes are fine, one of 1,001 in parts is not, and is refused before its last byte comes."""
    server = reader()
    half = masked(Opcode.TEXT, b"x" * 300, is_final=False)
    rest = masked(Opcode.CONTINUATION, b"x" * 300)
    assert server.feed((half + rest) * 2) == [(Opcode.TEXT, b"x" * 600)] * 2
    assert server.feed(half) == []
    assert server.buffered == 300
    assert server.feed(masked(Opcode.CONTINUATION, b"x" * 701)[:4]) == []
    assert code(server) == TOO_LARGE
    assert server.buffered == 0


def test_a_control_frame_has_no_part_in_the_limit_of_messages():
    """It has its own, 125 bytes."""
    ping = masked(Opcode.PING, b"x" * 125)
    server = reader(message_bytes_max=2)
    assert server.feed(masked(Opcode.TEXT, b"ab", is_final=False) + ping) == [(Opcode.PING, b"x" * 125)]
    assert server.feed(masked(Opcode.CONTINUATION, b"")) == [(Opcode.TEXT, b"ab")]


def test_any_number_of_empty_fragments_takes_no_memory():
    """Otherwise they would be a way around the limit."""
    server = reader()
    server.feed(masked(Opcode.TEXT, b"a", is_final=False))
    for _ in range(1000):
        assert server.feed(masked(Opcode.CONTINUATION, b"", is_final=False)) == []
    assert server.buffered == 1
    assert server.feed(masked(Opcode.CONTINUATION, b"b")) == [(Opcode.TEXT, b"ab")]


@pytest.mark.parametrize("size", [65535, 65536, 200_000])
@pytest.mark.parametrize("is_server", [True, False])
def test_a_long_frame_comes_in_many_reads(size: int, *, is_server: bool):
    """And nothing of it is held afterwards."""
    message = bytes(range(256)) * (size // 256 + 1)
    message = message[:size]
    stream = encode_frame(Opcode.BINARY, message, mask=KEY if is_server else None) + b"\x89"
    side = reader(is_server=is_server, message_bytes_max=size)
    received = [event for start in range(0, len(stream), 1460) for event in side.feed(stream[start : start + 1460])]
    assert received == [(Opcode.BINARY, message)]
    assert side.buffered == 1


def test_an_idle_reader_holds_nothing():
    """Neither after a message that came whole, nor after one in parts and pieces."""
    server = reader()
    assert server.feed(masked(Opcode.TEXT, b"{}")) == [(Opcode.TEXT, b"{}")]
    stream = masked(Opcode.TEXT, "é".encode(), is_final=False) + masked(Opcode.CONTINUATION, b"x" * 200)
    for byte in stream:
        server.feed(bytes([byte]))
    assert server.violation is None
    assert server.buffered == 0
    assert server._buffer is None
    assert server._fragments is None


# ---------------------------------------------------------------- reading: the end of a stream


@pytest.mark.parametrize("is_alone", [True, False])
def test_bad_text_is_a_violation(*, is_alone: bool):
    """Alone in its read or after another frame: these are two ways through the reader."""
    server = reader()
    before = b"" if is_alone else masked(Opcode.PING, b"")
    assert server.feed(before + masked(Opcode.TEXT, "é".encode())) == [(9, b"")] * (not is_alone) + [(1, "é".encode())]
    assert server.feed(before + masked(Opcode.TEXT, b"\xc3")) == [(9, b"")] * (not is_alone)
    assert code(server) == INVALID_DATA
    assert server.feed(masked(Opcode.TEXT, b"{}")) == []
    assert code(server) == INVALID_DATA


def test_what_was_complete_before_a_violation_is_returned_and_nothing_after_it():
    """I1."""
    server = reader()
    ping = masked(Opcode.PING, b"")
    assert server.feed(ping + b"\xff\xff" + ping) == [(Opcode.PING, b"")]
    violation = server.violation
    assert violation is not None
    assert violation.code == PROTOCOL_ERROR
    assert server.feed(ping) == []
    assert server.violation is violation


def test_what_follows_a_close_frame_is_ignored():
    """I1: in the same read or in a later one, legal or not, and nothing of it is held."""
    server = reader()
    server.feed(masked(Opcode.TEXT, b"a", is_final=False))
    assert server.feed(masked(Opcode.CLOSE, b"") + b"\xff") == [(Opcode.CLOSE, b"")]
    assert server.feed(masked(Opcode.TEXT, b"{}")) == []
    assert server.feed(b"\xff\xff") == []
    assert server.violation is None
    assert server.buffered == 0


REASONS = {
    "of a client is not masked": encode_frame(Opcode.TEXT, b""),
    "inside another one": masked(Opcode.TEXT, b"", is_final=False) + masked(Opcode.TEXT, b""),
    "continuation of nothing": masked(Opcode.CONTINUATION, b""),
    "opcode or a bit": b"\x83\x80",
    "control frame is too long": b"\x89\xfe",
    "shortest form": b"\x82\xfe\x00\x05",
    "too large": b"\x82\xfe\xff\xff",
    "is not UTF-8": masked(Opcode.TEXT, b"\xed\xa0", is_final=False),
    "text is not UTF-8": masked(Opcode.TEXT, b"\xff", is_final=False),
}


@pytest.mark.parametrize(("reason", "stream"), REASONS.items())
def test_a_violation_says_what_was_wrong(reason: str, stream: bytes):
    """For whoever writes the other side."""
    server = reader()
    server.feed(stream)
    assert server.violation is not None
    assert reason in server.violation.reason
    assert len(server.violation.reason) <= 123


def test_a_client_says_that_a_server_masked():
    """The rule is the other way round."""
    client = reader(is_server=False)
    client.feed(masked(Opcode.TEXT, b""))
    assert client.violation == Violation(PROTOCOL_ERROR, "a frame of a server is masked")


# ---------------------------------------------------------------- reading: compressed messages


def test_compressed_messages_are_inflated_whole_or_in_parts():
    """The bit stands on the first frame; messages without it may come between."""
    server = reader(inflate=Inflate())
    payload = Deflate().message(b"Hello")
    assert server.feed(masked(Opcode.TEXT, payload, is_compressed=True)) == [HELLO]
    assert server.feed(masked(Opcode.TEXT, b"Hello")) == [HELLO]
    first = masked(Opcode.TEXT, payload[:3], is_final=False, is_compressed=True)
    assert server.feed(first + masked(Opcode.CONTINUATION, payload[3:])) == [HELLO]
    assert server.feed(masked(Opcode.BINARY, payload, is_compressed=True)) == [(Opcode.BINARY, b"Hello")]
    assert server.violation is None


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (Deflate().message(bytes(1001)), TOO_LARGE),
        (Deflate().message(b"\xc3"), INVALID_DATA),
        (b"\xff", INVALID_DATA),
    ],
    ids=["bomb", "not text", "not deflate"],
)
def test_a_compressed_message_can_be_wrong_inside(payload: bytes, expected: int):
    """Too large, no text, or no deflate stream."""
    server = reader(inflate=Inflate())
    assert server.feed(masked(Opcode.TEXT, payload, is_compressed=True)) == []
    assert code(server) == expected


def test_a_compressed_frame_needs_an_agreement():
    """Without one the bit is reserved."""
    server = reader()
    server.feed(masked(Opcode.TEXT, Deflate().message(b"Hello"), is_compressed=True))
    assert code(server) == PROTOCOL_ERROR


# ---------------------------------------------------------------- both sides


@given(
    messages=st.lists(st.tuples(st.sampled_from([1, 2, 9, 10]), st.text(max_size=30).map(str.encode)), max_size=6),
    mask=st.none() | st.binary(min_size=4, max_size=4),
    size=st.integers(1, 40),
)
def test_what_one_side_writes_the_other_reads(messages: list[tuple[int, bytes]], mask: bytes | None, size: int):
    """Client to server with any mask, server to client without; in reads of any size."""
    stream = b"".join(encode_frame(opcode, payload, mask=mask) for opcode, payload in messages)
    side = reader(is_server=mask is not None)
    received = [event for start in range(0, len(stream), size) for event in side.feed(stream[start : start + size])]
    assert received == messages
    side.check_invariants()
    assert side.buffered == 0


# ---------------------------------------------------------------- closing

BAD = Violation(PROTOCOL_ERROR, "bad")
NO_VALID_CODE = Violation(PROTOCOL_ERROR, "no valid close code")
STEPS = {
    "start": (lambda closing, mask: closing.start(3001, "bye", mask=mask), (3001, "bye"), None),
    "fail": (lambda closing, mask: closing.fail(BAD, mask=mask), BAD, None),
    "hear": (lambda closing, mask: closing.receive(b"\x0f\xa0ok", mask=mask), (4000, ""), (4000, "ok")),
    "hear nothing": (lambda closing, mask: closing.receive(b"", mask=mask), (NO_CODE, ""), (NO_CODE, "")),
    "hear rubbish": (lambda closing, mask: closing.receive(b"\0", mask=mask), NO_VALID_CODE, NO_VALID_CODE),
}
"""What can happen, what is sent if it happens first, and what has been heard from the other side after it."""


@pytest.mark.parametrize("mask", [None, KEY])
def test_a_close_frame_is_sent_once_and_the_end_is_when_both_sent_or_one_gave_up(mask: bytes | None):
    """All orders of three steps: this side closes, finds a violation, or hears the other side's close frame."""
    for names in itertools.product(STEPS, repeat=3):
        closing = CloseHandshake()
        heard: tuple[int, str] | Violation | None = None
        for index, name in enumerate(names):
            step, answer, hears = STEPS[name]
            assert step(closing, mask) == (encode_close(*answer, mask=mask) if index == 0 else b""), names
            heard = hears or heard
            assert closing.received == heard
            assert closing.has_sent
            assert closing.is_done == (set(names[: index + 1]) != {"start"})


def test_a_new_connection_is_not_closing():
    """Nothing was sent, heard or given up."""
    closing = CloseHandshake()
    assert not closing.has_sent
    assert not closing.is_done
    assert closing.received is None
