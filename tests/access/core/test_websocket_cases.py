"""The frame reader against a dumb twin: every header in every state and every split, all of UTF-8, random streams.

The twin reads a whole stream at once from a file object, byte by byte where that is simpler, and stops with an
exception. What the reader returns may depend on the bytes only, so that both must agree on every prefix as well.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from access.core.deflate import Deflate, Inflate, InflateFault
from access.core.websocket import (
    CONTROL_BYTES_MAX,
    HEADER_BYTES_MAX,
    INVALID_DATA,
    PROTOCOL_ERROR,
    TOO_LARGE,
    FrameReader,
    Opcode,
)

KEY = b"\x01\x80\xfe\x37"
BYTES_MAX = 300

Outcome = tuple[list[tuple[int, bytes]], int | None]
"""The events, and the code of the violation if there was one."""


# ---------------------------------------------------------------- the twin


class Incomplete(Exception):
    """The stream ends here."""


class Broken(Exception):
    """The stream breaks the rule that the code stands for."""


def twin(stream: bytes, *, is_server: bool, is_compressing: bool = False) -> Outcome:
    """What a reader must make of a stream."""
    events: list[tuple[int, bytes]] = []
    try:
        for event in twin_events(io.BytesIO(stream), is_server=is_server, is_compressing=is_compressing):
            events.append(event)
            if event[0] == Opcode.CLOSE:
                break
    except Incomplete:
        pass
    except Broken as broken:
        return events, broken.args[0]
    return events, None


def take(stream: io.BytesIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise Incomplete
    return data


def require(condition: bool, code: int) -> None:  # noqa: FBT001
    if not condition:
        raise Broken(code)


def twin_events(stream: io.BytesIO, *, is_server: bool, is_compressing: bool) -> Iterator[tuple[int, bytes]]:
    message: tuple[int, bool, bytes] | None = None
    while True:
        bits = "".join(f"{byte:08b}" for byte in take(stream, 2))
        is_final, opcode = bits[0] == "1", int(bits[4:8], 2)
        is_control = opcode in {8, 9, 10}
        require(opcode in {0, 1, 2, 8, 9, 10}, PROTOCOL_ERROR)
        require(bits[1:4] == "000" or (bits[1:4] == "100" and is_compressing and opcode in {1, 2}), PROTOCOL_ERROR)
        require(is_final or not is_control, PROTOCOL_ERROR)
        require(bits[8] == "01"[is_server], PROTOCOL_ERROR)
        require(is_control or (opcode == 0) == (message is not None), PROTOCOL_ERROR)
        form = int(bits[9:], 2)
        require(not is_control or form <= 125, PROTOCOL_ERROR)
        length = form if form <= 125 else int(take(stream, {126: 2, 127: 8}[form]).hex(), 16)
        shortest = 126 if length < 2**16 else 127
        require(form <= 125 or (length > 125 and form == shortest and length < 2**63), PROTOCOL_ERROR)
        held = b"" if message is None else message[2]
        require(is_control or len(held) + length <= BYTES_MAX, TOO_LARGE)
        key = take(stream, 4) if is_server else b"\0\0\0\0"
        payload = bytes(byte ^ keybyte for byte, keybyte in zip(take(stream, length), itertools.cycle(key)))
        if is_control:
            yield opcode, payload
            continue
        kind, is_compressed, _ = message or (opcode, bits[1] == "1", b"")
        whole = held + payload
        if kind == Opcode.TEXT and not is_compressed:
            require(can_become_text(whole) if not is_final else is_text(whole), INVALID_DATA)
        message = None if is_final else (kind, is_compressed, whole)
        if is_final:
            yield kind, twin_inflate(kind, whole) if is_compressed else whole


def twin_inflate(kind: int, payload: bytes) -> bytes:
    message = Inflate().message(payload, BYTES_MAX)
    if isinstance(message, InflateFault):
        raise Broken(TOO_LARGE if message is InflateFault.TOO_LARGE else INVALID_DATA)
    require(kind != Opcode.TEXT or is_text(message), INVALID_DATA)
    return message


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def can_become_text(data: bytes) -> bool:
    """Whether any continuation makes it UTF-8. The first byte that is missing decides between the two ends."""
    endings = (b"", b"\x80", b"\xbf", b"\x80\x80", b"\xbf\x80", b"\x80\x80\x80", b"\xbf\x80\x80")
    return any(is_text(data + ending) for ending in endings)


# ---------------------------------------------------------------- the reader under test


def read(pieces: list[bytes], *, is_server: bool, is_compressing: bool = False) -> Outcome:
    """Feed a new reader, checking it after every piece."""
    inflate = Inflate() if is_compressing else None
    reader = FrameReader(is_server=is_server, message_bytes_max=BYTES_MAX, inflate=inflate)
    events: list[tuple[int, bytes]] = []
    for piece in pieces:
        events += reader.feed(piece)
        reader.check_invariants()
        assert reader.buffered <= BYTES_MAX + HEADER_BYTES_MAX + CONTROL_BYTES_MAX
    return events, None if reader.violation is None else reader.violation.code


def singly(stream: bytes) -> list[bytes]:
    return [stream[index : index + 1] for index in range(len(stream))]


def raw_frame(first: int, form: int, extended: bytes, payload: bytes, *, is_masked: bool) -> bytes:
    """A frame of any header, legal or not."""
    key = KEY if is_masked else b""
    masked = bytes(byte ^ KEY[index % 4] for index, byte in enumerate(payload)) if is_masked else payload
    return bytes([first, (0x80 if is_masked else 0) | form]) + extended + key + masked


# ---------------------------------------------------------------- every header

LONG = b"l" * 126
LENGTHS = {
    "nothing": (0, b"", b""),
    "short": (3, b"", "aé".encode()),
    "longest short": (125, b"", b"s" * 125),
    "shortest medium": (126, (126).to_bytes(2, "big"), LONG),
    "short as medium": (126, (3).to_bytes(2, "big"), b"abc"),
    "just fits": (126, BYTES_MAX.to_bytes(2, "big"), b"f" * BYTES_MAX),
    "one too large": (126, (BYTES_MAX + 1).to_bytes(2, "big"), b""),
    "medium as long": (127, (0xFFFF).to_bytes(8, "big"), b""),
    "shortest long": (127, (0x10000).to_bytes(8, "big"), b""),
    "longest long": (127, (2**63 - 1).to_bytes(8, "big"), b""),
    "top bit": (127, (2**63).to_bytes(8, "big"), b""),
}
BEFORE = {
    "outside a message": None,
    "inside a text": (Opcode.TEXT, b"\xc3"),  # the half of a character
    "inside bytes": (Opcode.BINARY, b"\xff"),
}


def headers() -> Iterator[tuple[int, int, bytes, bytes]]:
    """Every first byte with every form of a length, and a payload for it."""
    deflated = Deflate().message("aé".encode())
    for first in range(256):
        for form, extended, payload in LENGTHS.values():
            yield first, form, extended, payload
        yield first, len(deflated), b"", deflated


@pytest.mark.parametrize(
    ("is_server", "is_compressing"), [(True, False), (False, False), (True, True)], ids=["server", "client", "deflate"]
)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
def test_every_header_in_every_state_is_read_as_the_twin_reads_it(
    before: tuple[int, bytes] | None, *, is_server: bool, is_compressing: bool
):
    """Opcode, FIN, RSV, mask and length, whole, by frames and byte by byte; another frame shows whether it goes on."""
    follower = raw_frame(0x89, 1, b"", b"!", is_masked=is_server)
    prefix = b""
    if before is not None:
        prefix = raw_frame(before[0], len(before[1]), b"", before[1], is_masked=is_server)
    codes = set()
    for first, form, extended, payload in headers():
        for is_masked in (False, True):
            frame = raw_frame(first, form, extended, payload, is_masked=is_masked)
            stream = prefix + frame + follower
            expected = twin(stream, is_server=is_server, is_compressing=is_compressing)
            codes.add(expected[1])
            bytewise = [*singly(stream[:24]), stream[24:]]  # beyond the headers
            for pieces in ([stream], [prefix, frame, follower], bytewise):
                outcome = read(pieces, is_server=is_server, is_compressing=is_compressing)
                assert outcome == expected, (first, form, is_masked)
    is_inside_bytes = before is not None and before[0] == Opcode.BINARY
    assert codes == {None, PROTOCOL_ERROR, TOO_LARGE} | (set() if is_inside_bytes else {INVALID_DATA})


@pytest.mark.parametrize("is_server", [True, False])
def test_every_split_of_short_streams_gives_the_same(*, is_server: bool):
    """Into two and into three, for the legal first bytes in every state; each prefix means what the twin says."""
    for before, first in itertools.product(BEFORE.values(), (0x00, 0x80, 0x01, 0x81, 0x02, 0x82, 0x88, 0x89, 0x8A)):
        parts = [(first, b"\xa9z"), (0x89, b"")]
        if before is not None:
            parts.insert(0, before)
        stream = b"".join(raw_frame(head, len(body), b"", body, is_masked=is_server) for head, body in parts)
        whole = twin(stream, is_server=is_server)
        for one, two in itertools.combinations_with_replacement(range(len(stream) + 1), 2):
            assert read([stream[:one], stream[one:two], stream[two:]], is_server=is_server) == whole
        for end in range(len(stream)):
            assert read([stream[:end]], is_server=is_server) == twin(stream[:end], is_server=is_server)


# ---------------------------------------------------------------- UTF-8


def sequences() -> Iterator[bytes]:
    """All of one byte, all of two that do not begin with ASCII, longer ones at the edges of every class of bytes."""
    yield from (bytes([byte]) for byte in range(256))
    yield from (bytes(pair) for pair in itertools.product(range(0x80, 256), range(256)))
    edges = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)
    leads = (0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF)
    yield from (bytes(triple) for triple in itertools.product(leads, edges, edges))
    yield from (bytes(four) for four in itertools.product(leads, edges, edges, (0x7F, 0x80, 0xBF, 0xC0)))


def test_a_whole_text_is_taken_exactly_if_it_is_utf_8():
    """Overlong forms, surrogates and what is beyond U+10FFFF included."""
    key = b"\0\0\0\0"
    for text in sequences():
        frame = bytes([0x81, 0x80 | len(text)]) + key + text
        expected = ([(Opcode.TEXT, text)], None) if is_text(text) else ([], INVALID_DATA)
        assert read([frame], is_server=True) == expected, text


def test_a_text_in_parts_fails_at_the_first_part_that_no_other_can_mend():
    """One byte a frame: a bad byte ends the stream at once, a split character does not."""
    for text in sequences():
        reader = FrameReader(is_server=False, message_bytes_max=BYTES_MAX)
        for end in range(1, len(text) + 1):
            reader.feed(bytes([0x01 if end == 1 else 0x00, 1, text[end - 1]]))
            assert (reader.violation is None) == can_become_text(text[:end]), text[:end]
            if reader.violation is not None:
                break
        else:
            assert reader.feed(b"\x80\x00") == ([(Opcode.TEXT, text)] if is_text(text) else [])


# ---------------------------------------------------------------- random streams


def streams() -> st.SearchStrategy[bytes]:
    """Mostly legal frames in any order, some with a wrong byte, some bytes of anything."""
    payloads = st.one_of(
        st.binary(max_size=20),
        st.text(max_size=10).map(str.encode),
        st.sampled_from([b"x" * 125, b"y" * 126, b"z" * BYTES_MAX, b"w" * (BYTES_MAX + 1)]),
        st.text(max_size=10).map(str.encode).map(Deflate().message),
        st.just(Deflate().message(bytes(BYTES_MAX + 1))),
    )
    firsts = st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x80, 0x80, 0x89, 0x8A, 0xC1, 0xC2, 0x41, 0x88])
    frames = st.builds(frame_of, firsts, payloads)
    damaged = st.builds(damage, frames, st.integers(0, 13), st.integers(1, 255))
    return st.lists(st.one_of(frames, frames, frames, damaged, st.binary(max_size=8)), max_size=8).map(b"".join)


def frame_of(first: int, payload: bytes) -> bytes:
    if len(payload) <= 125:
        return raw_frame(first, len(payload), b"", payload, is_masked=True)
    return raw_frame(first, 126, len(payload).to_bytes(2, "big"), payload, is_masked=True)


def damage(frame: bytes, index: int, change: int) -> bytes:
    index %= len(frame)
    return frame[:index] + bytes([frame[index] ^ change]) + frame[index + 1 :]


@settings(max_examples=300, deadline=None)
@given(stream=streams(), cuts=st.lists(st.integers(0, 400), max_size=12), is_compressing=st.booleans())
def test_random_streams_mean_the_same_however_they_are_split(stream: bytes, cuts: list[int], *, is_compressing: bool):
    """Never an exception, never more held than allowed (`read` checks both), always what the twin says."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    expected = twin(stream, is_server=True, is_compressing=is_compressing)
    assert read(pieces, is_server=True, is_compressing=is_compressing) == expected
    assert read(singly(stream), is_server=True, is_compressing=is_compressing) == expected
