"""A message on its way to many clients: encoded once for each form in which a client wants it.

A client's *form* is its encoding (JSON or protobuf) and the framing of its transport. All clients of a form get the
same bytes, so that the work of encoding, framing and compressing does not grow with the number of receivers. This is
why a compressed WebSocket is only offered without context takeover (RFC 7692, 7.1.1): a message compressed for one
client is then good for all.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from access.core.deflate import Deflate
from access.core.encoding import Encoding
from access.core.protocol import Push
from access.core.websocket import Opcode, encode_frame

__all__ = ["ENCODINGS", "FORMS", "PINGS", "Form", "Outgoing", "wrap"]

COMPRESSED_BYTES_MIN = 256
"""A shorter message is sent as it is, without trying: compressing would hardly make it shorter."""

_deflate = Deflate()
"""Keeps no context, see the module."""


class Form(IntEnum):
    """An encoding in a framing."""

    WS_JSON = 0
    WS_PROTOBUF = 1
    WS_JSON_DEFLATED = 2
    WS_PROTOBUF_DEFLATED = 3
    STREAM_JSON = 4
    """HTTP streaming: a line a message."""
    STREAM_PROTOBUF = 5
    """HTTP streaming: length-prefixed messages."""
    EVENTS_JSON = 6
    """Server-sent events."""


_SHORT_TEXTS = tuple(encode_frame(Opcode.TEXT, b"x" * size)[:2] for size in range(126))
_LONG_TEXT = encode_frame(Opcode.TEXT, b"x" * 126)[:2]

FORMS = len(Form)
ENCODINGS: tuple[Encoding, ...] = (
    Encoding.JSON,
    Encoding.PROTOBUF,
    Encoding.JSON,
    Encoding.PROTOBUF,
    Encoding.JSON,
    Encoding.PROTOBUF,
    Encoding.JSON,
)
"""The encoding of each form."""


def _text(message: bytes) -> bytes:
    # As `encode_frame` does it, in half the time: nearly all that is ever sent passes here.
    size = len(message)
    if size <= 125:
        return _SHORT_TEXTS[size] + message
    if size <= 0xFFFF:
        return _LONG_TEXT + size.to_bytes(2, "big") + message
    return encode_frame(Opcode.TEXT, message)


def _binary(message: bytes) -> bytes:
    return encode_frame(Opcode.BINARY, message)


def _deflated_text(message: bytes) -> bytes:
    return _deflated(Opcode.TEXT, message)


def _deflated_binary(message: bytes) -> bytes:
    return _deflated(Opcode.BINARY, message)


def _deflated(opcode: Opcode, message: bytes) -> bytes:
    if len(message) >= COMPRESSED_BYTES_MIN:
        payload = _deflate.message(message)
        if len(payload) < len(message):  # an image, say, only becomes longer
            return encode_frame(opcode, payload, is_compressed=True)
    return encode_frame(opcode, message)


def _line(message: bytes) -> bytes:
    return message + b"\n"


def _as_it_is(message: bytes) -> bytes:
    return message


def _event(message: bytes) -> bytes:
    return b"data: " + message.replace(b"\n", b"\n\ndata: ") + b"\n\n"


_WRAPS: tuple[Callable[[bytes], bytes], ...] = (
    _text,
    _binary,
    _deflated_text,
    _deflated_binary,
    _line,
    _as_it_is,
    _event,
)


def wrap(form: Form, message: bytes) -> bytes:
    """Frame an encoded message for clients of the form."""
    return _WRAPS[form](message)


PINGS: tuple[bytes, ...] = tuple(wrap(form, ENCODINGS[form].ping) for form in Form)
"""The server's ping in each form."""


class Outgoing:
    """One push, on its way to any number of clients."""

    __slots__ = ("_frames", "_messages", "channel", "push")

    def __init__(self, channel: str, push: Push) -> None:
        """`channel` is empty for a push that belongs to none."""
        self.channel = channel
        self.push = push
        self._messages: dict[Encoding, bytes] = {}
        self._frames: list[bytes | None] = [None] * FORMS

    def frame(self, form: Form) -> bytes:
        """Return the bytes to write to clients of the form."""
        frame = self._frames[form]
        if frame is None:
            encoding = ENCODINGS[form]
            message = self._messages.get(encoding)
            if message is None:
                message = self._messages[encoding] = encoding.encode_push(self.channel, self.push)
            frame = self._frames[form] = _WRAPS[form](message)
        return frame
