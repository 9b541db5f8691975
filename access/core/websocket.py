"""The framing of WebSocket (RFC 6455), both sides: bytes to messages, messages to bytes, and the closing handshake.

`FrameReader` takes the bytes of one direction in whatever pieces they come and returns whole messages: unmasked, put
together, inflated, and text checked to be UTF-8. What the other side may not send ends the stream with a `Violation`,
which carries the code to close with. The result depends on the bytes only, never on how they were split.

    first byte of a frame     outside a message          inside a fragmented one
    text, binary              message, or its start      violation
    continuation              violation                  more of the message
    close, ping, pong, final  control                    control
    anything else             violation                  violation

Most frames are small, whole, and alone in what one read brings: they have a path of their own, through which nothing
is kept. An idle reader holds neither a buffer nor a decoder.

Invariants:
    I1  Everything complete before a violation is returned; nothing after it, and nothing after a close frame.
    I2  A reader holds at most `message_bytes_max` bytes, the header of a frame, and a control frame.
    I3  The part of a frame that is held is shorter than what its next decision needs.
    I4  A reader that is over holds nothing.
"""

from __future__ import annotations

import codecs
from enum import IntEnum
from typing import NamedTuple

from access.core.deflate import Inflate, InflateFault

__all__ = [
    "CONTROL_BYTES_MAX",
    "HEADER_BYTES_MAX",
    "INVALID_DATA",
    "NO_CODE",
    "PROTOCOL_ERROR",
    "TOO_LARGE",
    "CloseHandshake",
    "FrameReader",
    "Opcode",
    "Received",
    "Violation",
    "apply_mask",
    "encode_close",
    "encode_frame",
    "parse_close",
]


class Opcode(IntEnum):
    """What a frame carries (5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Received(NamedTuple):
    """A whole message (TEXT, BINARY) or a control frame (CLOSE, PING, PONG), its payload as the sender meant it."""

    opcode: int
    payload: bytes


class Violation(NamedTuple):
    """What the other side may not do: the code to close with (7.4.1), and a reason for people."""

    code: int
    reason: str


PROTOCOL_ERROR = 1002
INVALID_DATA = 1007
TOO_LARGE = 1009
NO_CODE = 1005
"""Stands for a close frame without a code, and is never sent."""

CONTROL_BYTES_MAX = 125
HEADER_BYTES_MAX = 14

_FINAL = 0x80
_COMPRESSED = 0x40
_MASKED = 0x80
# Plain integers: an attribute of an enumeration costs as much as the rest of a comparison.
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = (int(opcode) for opcode in Opcode)

_CONTROLS = frozenset(_FINAL | opcode for opcode in (_CLOSE, _PING, _PONG))
_OUTSIDE = _CONTROLS | {final | opcode for final in (0, _FINAL) for opcode in (_TEXT, _BINARY)}
_OUTSIDE_COMPRESSED = _OUTSIDE | {_COMPRESSED | first for first in _OUTSIDE - _CONTROLS}
_INSIDE = _CONTROLS | {_CONTINUATION, _FINAL | _CONTINUATION}
"""First bytes that may begin a frame: outside a message, the same with compression, inside a fragmented message."""

_CHUNK = 4096
_number = int.from_bytes
_new_tuple = tuple.__new__  # the constructor of a named tuple is a function in Python
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


# ---------------------------------------------------------------- writing


def apply_mask(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask: exclusive-or with the key of four bytes over and over (5.3).

    As one long integer while that fits into the processor's cache, the fastest of what Python has for every size.
    """
    size = len(payload)
    if size <= _CHUNK:
        keys = (key * (size // 4 + 1))[:size]
        return (_number(payload, "big") ^ _number(keys, "big")).to_bytes(size, "big")
    keys_number = _number(key * (_CHUNK // 4), "big")
    whole = size - size % _CHUNK
    parts = [
        (_number(payload[start : start + _CHUNK], "big") ^ keys_number).to_bytes(_CHUNK, "big")
        for start in range(0, whole, _CHUNK)
    ]
    parts.append(apply_mask(payload[whole:], key))
    return b"".join(parts)


def encode_frame(
    opcode: int, payload: bytes, *, mask: bytes | None = None, is_final: bool = True, is_compressed: bool = False
) -> bytes:
    """Return a frame (5.2). A client passes a `mask` of four unpredictable bytes, a server none."""
    size = len(payload)
    assert opcode < _CLOSE or (size <= CONTROL_BYTES_MAX and is_final and not is_compressed), "an illegal control frame"
    first = (opcode | _FINAL if is_final else opcode) | (_COMPRESSED if is_compressed else 0)
    if size <= 125:
        header = first << 8 | size
        header_size = 2
    elif size <= 0xFFFF:
        header = first << 24 | 126 << 16 | size
        header_size = 4
    else:
        header = first << 72 | 127 << 64 | size
        header_size = 10
    if mask is None:
        return header.to_bytes(header_size, "big") + payload
    header |= _MASKED << 8 * (header_size - 2)
    return header.to_bytes(header_size, "big") + mask + apply_mask(payload, mask)


def encode_close(code: int, reason: str = "", *, mask: bytes | None = None) -> bytes:
    """Return a close frame. A longer reason than fits is cut between two characters; `NO_CODE` sends none at all."""
    if code == NO_CODE:
        assert not reason, "a reason needs a code"
        return encode_frame(_CLOSE, b"", mask=mask)
    assert _may_close_with(code), "a code that may not be sent"
    text = reason.encode()[: CONTROL_BYTES_MAX - 2].decode(errors="ignore").encode()
    return encode_frame(_CLOSE, code.to_bytes(2, "big") + text, mask=mask)


def parse_close(payload: bytes) -> tuple[int, str] | Violation:
    """Return code and reason of a close frame's payload (5.5.1, 7.4); code `NO_CODE` when it is empty."""
    if not payload:
        return NO_CODE, ""
    code = _number(payload[:2], "big")
    if len(payload) == 1 or not _may_close_with(code):
        return Violation(PROTOCOL_ERROR, "no valid close code")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        return Violation(INVALID_DATA, "the reason of a close frame is not UTF-8")


def _may_close_with(code: int) -> bool:
    """Whether a close frame may carry the code: 1004 to 1006 and 1015 never travel, 1012 to 1014 came later (IANA)."""
    return 3000 <= code <= 4999 or 1000 <= code <= 1003 or 1007 <= code <= 1014


# ---------------------------------------------------------------- reading


class _Fragments:
    """A message of which only some frames have come."""

    __slots__ = ("data", "decoder", "is_compressed", "opcode")

    def __init__(self, opcode: int, *, is_compressed: bool) -> None:
        self.opcode = opcode
        self.is_compressed = is_compressed
        self.data = bytearray()  # not a list of parts: a frame may carry nothing, and there may be any number of them
        self.decoder = _Utf8Decoder() if opcode == _TEXT and not is_compressed else None


def _can_continue(decoder: codecs.IncrementalDecoder, part: bytes, *, is_final: bool) -> bool:
    """Whether the text is UTF-8 up to and with this part, at the end of which a character may be cut."""
    try:
        decoder.decode(part, is_final)
    except UnicodeDecodeError:
        return False
    # The decoder waits for a third byte before it refuses a surrogate, which two bytes show.
    held, _ = decoder.getstate()
    return not b"\xed\x9f" < held < b"\xee"


class FrameReader:
    """Reads the frames of one direction of one connection. See the module.

    `message_bytes_max` bounds a message both as it comes and inflated. A frame that breaks it is refused when its
    header is there, before its payload is.
    """

    __slots__ = (
        "_buffer",
        "_bytes_max",
        "_fragments",
        "_inflate",
        "_is_over",
        "_is_server",
        "_legal",
        "_needed",
        "_room",
        "violation",
    )

    def __init__(self, *, is_server: bool, message_bytes_max: int, inflate: Inflate | None = None) -> None:
        self.violation: Violation | None = None
        self._is_server = is_server
        self._bytes_max = message_bytes_max
        self._inflate = inflate
        self._legal = _OUTSIDE if inflate is None else _OUTSIDE_COMPRESSED  # what the next frame may begin with
        self._room = message_bytes_max  # how many bytes the next frame may bring
        self._is_over = False
        self._fragments: _Fragments | None = None
        self._buffer: bytearray | None = None  # the beginning of a frame, None when the last read ended with one
        self._needed = 2  # how many bytes the buffer must have until there is something to decide

    @property
    def buffered(self) -> int:
        """How many bytes of incomplete frames and messages are held."""
        held = 0 if self._buffer is None else len(self._buffer)
        return held if self._fragments is None else held + len(self._fragments.data)

    def feed(self, data: bytes) -> list[Received]:
        """Take what arrived; return what it completes, in order. Nothing more after a violation or a close frame."""
        buffer = self._buffer
        if buffer is None:
            # One frame and nothing else: final, text or binary, masked, not compressed, outside of a message.
            head = 6 if len(data) <= 131 else 8  # one whose length takes two bytes begins with at least 134
            size = len(data) - head
            if (
                0 <= size <= _CHUNK
                and (data[1] == size + 128 if head == 6 else data[1] == 254 and data[2] << 8 | data[3] == size > 125)
                and ((first := data[0]) == 0x81 or first == 0x82)
                and self._fragments is None
                and not self._is_over
                and self._is_server
                and size <= self._bytes_max
            ):
                keys = (data[head - 4 : head] * (size // 4 + 1))[:size]
                payload = (_number(data[head:], "big") ^ _number(keys, "big")).to_bytes(size, "big")
                if first == 0x82 or payload.isascii() or self._is_text(payload):
                    return [_new_tuple(Received, (first & 0x0F, payload))]
                return []
        else:
            buffer += data
            if len(buffer) < self._needed:
                return []
            data = bytes(buffer)
        received: list[Received] = []
        position = self._read_frames(data, received)
        if self._is_over:
            self._buffer = self._fragments = None
        else:
            self._buffer = bytearray(data[position:]) if position < len(data) else None
        return received

    def check_invariants(self) -> None:
        """Assert I2 to I4."""
        held = 0 if self._buffer is None else len(self._buffer)
        assert self.buffered <= self._bytes_max + HEADER_BYTES_MAX + CONTROL_BYTES_MAX, "I2"
        assert held < self._needed, "I3"
        assert not (self._is_over and self.buffered), "I4"
        assert self._is_over or self.violation is None, "I4"

    def _read_frames(self, data: bytes, received: list[Received]) -> int:
        """Take all complete frames; return where the first incomplete one begins."""
        size = len(data)
        is_server = self._is_server
        start = 0
        self._needed = 2
        while size - start >= 2 and not self._is_over:
            first = data[start]
            length = data[start + 1]
            if first not in self._legal or (length >= _MASKED) is not is_server:
                self._refuse(PROTOCOL_ERROR, self._explain(first))
                break
            length &= 0x7F
            body = start + 2
            if length > CONTROL_BYTES_MAX:
                if first in _CONTROLS:
                    self._refuse(PROTOCOL_ERROR, "a control frame is too long")
                    break
                body += 2 if length == 126 else 8
                if body > size:
                    self._needed = body - start
                    break
                fits_shorter = 125 if length == 126 else 0xFFFF
                length = _number(data[start + 2 : body], "big")
                if length <= fits_shorter or length >> 63:
                    self._refuse(PROTOCOL_ERROR, "a length is not in its shortest form, or over 63 bits")
                    break
            if length > self._room and first not in _CONTROLS:
                self._refuse(TOO_LARGE, "the message is too large")
                break
            if is_server:
                body += 4
            end = body + length
            if end > size:
                self._needed = end - start
                break
            payload = data[body:end]
            if is_server:
                payload = apply_mask(payload, data[body - 4 : body])
            start = end
            if first == 0x82 or (first == 0x81 and payload.isascii()):
                received.append(_new_tuple(Received, (first & 0x0F, payload)))
            else:
                self._take(first, payload, received)
        return start

    def _explain(self, first: int) -> str:
        """Say what is wrong with the first two bytes of a frame."""
        if first in self._legal:
            return "a frame of a client is not masked" if self._is_server else "a frame of a server is masked"
        if first in _OUTSIDE:
            return "a message begins inside another one"
        if first in _INSIDE:
            return "a continuation of nothing"
        return "an opcode or a bit that is reserved, or a control frame in parts"

    def _take(self, first: int, payload: bytes, received: list[Received]) -> None:
        """Take one frame, unmasked."""
        opcode = first & 0x0F
        if opcode >= _CLOSE:
            received.append(_new_tuple(Received, (opcode, payload)))
            self._is_over = opcode == _CLOSE
        elif first == _FINAL | _TEXT:
            if self._is_text(payload):
                received.append(_new_tuple(Received, (opcode, payload)))
        elif opcode and first & _FINAL:
            self._take_compressed(opcode, payload, received)
        else:
            self._take_fragment(first, payload, received)

    def _take_fragment(self, first: int, payload: bytes, received: list[Received]) -> None:
        """Take one frame of a message that has several."""
        fragments = self._fragments
        if fragments is None:
            fragments = self._fragments = _Fragments(first & 0x0F, is_compressed=bool(first & _COMPRESSED))
            self._legal = _INSIDE
        fragments.data += payload
        self._room -= len(payload)
        is_final = bool(first & _FINAL)
        if fragments.decoder is not None and not _can_continue(fragments.decoder, payload, is_final=is_final):
            self._refuse(INVALID_DATA, "a text is not UTF-8")
            return
        if is_final:
            self._fragments = None
            self._legal = _OUTSIDE if self._inflate is None else _OUTSIDE_COMPRESSED
            self._room = self._bytes_max
            if fragments.is_compressed:
                self._take_compressed(fragments.opcode, bytes(fragments.data), received)
            else:
                received.append(_new_tuple(Received, (fragments.opcode, bytes(fragments.data))))

    def _take_compressed(self, opcode: int, payload: bytes, received: list[Received]) -> None:
        """Take one whole message as it was deflated."""
        assert self._inflate is not None
        message = self._inflate.message(payload, self._bytes_max)
        if isinstance(message, InflateFault):
            self._refuse(TOO_LARGE if message is InflateFault.TOO_LARGE else INVALID_DATA, message.value)
        elif opcode == _BINARY or self._is_text(message):
            received.append(_new_tuple(Received, (opcode, message)))

    def _is_text(self, payload: bytes) -> bool:
        """Whether a whole message is UTF-8 (8.1); if not, that is a violation."""
        try:
            payload.decode()
        except UnicodeDecodeError:
            self._refuse(INVALID_DATA, "a text is not UTF-8")
            return False
        return True

    def _refuse(self, code: int, reason: str) -> None:
        self.violation = Violation(code, reason)
        self._is_over = True


# ---------------------------------------------------------------- closing


class CloseHandshake:
    """The end of a connection, as both sides agree on it (7.1): each sends one close frame, then TCP is closed.

    The server closes TCP as soon as `is_done`. The client waits for that, as long as its deadline allows. Whoever
    sent a close frame sends nothing more, and whoever waits for an answer sets itself a deadline.
    """

    __slots__ = ("has_sent", "is_done", "received")

    def __init__(self) -> None:
        self.has_sent = False
        """Whether nothing may be sent any more."""
        self.is_done = False
        """Whether nothing is waited for any more: both sent their frame, or this side gave up."""
        self.received: tuple[int, str] | Violation | None = None
        """The other side's code and reason, None until they come. Without any at the end, the code is 1006."""

    def start(self, code: int, reason: str = "", *, mask: bytes | None = None) -> bytes:
        """Close from this side. Returns the frame to send, nothing when one was sent before."""
        if self.has_sent:
            return b""
        self.has_sent = True
        return encode_close(code, reason, mask=mask)

    def fail(self, violation: Violation, *, mask: bytes | None = None) -> bytes:
        """Give up because of a violation (7.1.7). Returns the frame to send before TCP is closed, if any."""
        self.is_done = True
        return self.start(violation.code, violation.reason, mask=mask)

    def receive(self, payload: bytes, *, mask: bytes | None = None) -> bytes:
        """Take the other side's close frame. Returns the answer to send, nothing when one was sent before."""
        self.received = parse_close(payload)
        if isinstance(self.received, Violation):
            return self.fail(self.received, mask=mask)
        self.is_done = True
        return self.start(self.received[0], mask=mask)
