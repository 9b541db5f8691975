"""Compression of WebSocket messages (RFC 7692): which terms to agree on, and the two ends of an agreed stream.

A server takes the first offer that it can keep. Unless told otherwise it forbids both sides to remember earlier
messages ("no context takeover"): a window of 32 kB inside and some 250 kB outside is what each connection would
otherwise hold while it is idle. Without memory between messages `Inflate` and `Deflate` are stateless, so that one of
each serves every connection with the same terms.

What is not agreed is not an error: an offer with an unknown, repeated or impossible parameter is passed over.
"""

from __future__ import annotations

import re
import zlib
from enum import Enum
from typing import NamedTuple

import msgspec

__all__ = ["Deflate", "DeflateTerms", "Extension", "Inflate", "InflateFault", "agree", "negotiate", "parse_extensions"]

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105  a token of the HTTP grammar
_NAME = re.compile(rf"[ \t,]*({_TOKEN})[ \t]*")
_PARAMETER = re.compile(rf";[ \t]*({_TOKEN})[ \t]*(?:=[ \t]*(?:({_TOKEN})|\"({_TOKEN})\")[ \t]*)?")
_WINDOW_BITS = re.compile(r"[89]|1[0-5]")

_EXTENSION_NAME = "permessage-deflate"
_FLAGS = frozenset({"server_no_context_takeover", "client_no_context_takeover"})
_WINDOWS = frozenset({"server_max_window_bits", "client_max_window_bits"})
_WINDOW_BITS_MAX = 15
_WINDOW_BITS_MIN = 9
"""A window of 8 bits is legal, but zlib cannot write such a stream without a header."""

_FLUSHED = b"\x00\x00\xff\xff"
"""How a flushed stream ends: the sender takes it off each message, the receiver puts it back (7.2.1, 7.2.2)."""
_END = b"\x01\x00\x00\xff\xff"
"""An empty last block: a stream that takes it and then ends was cut nowhere before."""


class Extension(NamedTuple):
    """One element of `Sec-WebSocket-Extensions`: its name, and its parameters in their order, None without a value."""

    name: str
    parameters: tuple[tuple[str, str | None], ...]


class DeflateTerms(msgspec.Struct, frozen=True):
    """What both sides agreed on: who forgets each message after it, and base-2 logarithms of the windows in bytes."""

    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    server_max_window_bits: int = _WINDOW_BITS_MAX
    client_max_window_bits: int = _WINDOW_BITS_MAX
    names_server_window: bool = False
    """Whether the client asked for a window of the server's, which then has to be named, the largest too (7.1.2.1)."""

    @property
    def is_shared(self) -> bool:
        """Whether a message that the server compressed for one client is good for others with such terms."""
        return self.server_no_context_takeover and self.server_max_window_bits == _WINDOW_BITS_MAX

    def encode(self) -> str:
        """Return the terms as an element of `Sec-WebSocket-Extensions`: a client's offer, or a server's answer."""
        parts = [_EXTENSION_NAME]
        if self.server_no_context_takeover:
            parts.append("server_no_context_takeover")
        if self.client_no_context_takeover:
            parts.append("client_no_context_takeover")
        if self.names_server_window or self.server_max_window_bits != _WINDOW_BITS_MAX:
            parts.append(f"server_max_window_bits={self.server_max_window_bits}")
        if self.client_max_window_bits != _WINDOW_BITS_MAX:
            parts.append(f"client_max_window_bits={self.client_max_window_bits}")
        return "; ".join(parts)

    def inflate(self, *, is_server: bool) -> Inflate:
        """Return what reads the other side's messages."""
        if is_server:
            return Inflate(self.client_max_window_bits, keeps_context=not self.client_no_context_takeover)
        return Inflate(self.server_max_window_bits, keeps_context=not self.server_no_context_takeover)

    def deflate(self, *, is_server: bool) -> Deflate:
        """Return what writes this side's messages."""
        if is_server:
            return Deflate(self.server_max_window_bits, keeps_context=not self.server_no_context_takeover)
        return Deflate(self.client_max_window_bits, keeps_context=not self.client_no_context_takeover)


def parse_extensions(header: str) -> tuple[Extension, ...] | None:
    """Parse `Sec-WebSocket-Extensions` (RFC 6455, 9.1), several such headers joined by commas. None: malformed."""
    found: list[Extension] = []
    position = 0
    while header[position:].strip(" \t,"):
        name = _NAME.match(header, position)
        if name is None:
            return None
        position = name.end()
        parameters: list[tuple[str, str | None]] = []
        while parameter := _PARAMETER.match(header, position):
            position = parameter.end()
            parameters.append((parameter[1], parameter[2] or parameter[3]))
        if position < len(header) and header[position] != ",":
            return None
        found.append(Extension(name[1], tuple(parameters)))
    return tuple(found)


def negotiate(offers: tuple[Extension, ...], *, keeps_context: bool = False) -> DeflateTerms | None:
    """Choose as a server: the terms to answer with, from the first offer that can be kept; None when there is none.

    With `keeps_context` each side remembers earlier messages unless the client asked that it should not: messages
    become smaller, and each connection larger.
    """
    for offer in offers:
        asked = _read(offer, is_offer=True)
        if asked is not None and asked.server_max_window_bits >= _WINDOW_BITS_MIN:
            return DeflateTerms(
                server_no_context_takeover=asked.server_no_context_takeover or not keeps_context,
                client_no_context_takeover=asked.client_no_context_takeover or not keeps_context,
                server_max_window_bits=asked.server_max_window_bits,
                names_server_window=asked.names_server_window,
            )
    return None


def agree(offer: DeflateTerms, answer: Extension) -> DeflateTerms | None:
    """Check as a client what the server made of the only offer. None: it may not answer that, the connection fails.

    A client that offered to forget does so, whether the server insists or not.
    """
    terms = _read(answer, is_offer=False)
    if (
        terms is None
        or (offer.server_no_context_takeover and not terms.server_no_context_takeover)
        or terms.server_max_window_bits > offer.server_max_window_bits
        or terms.client_max_window_bits != offer.client_max_window_bits
    ):
        return None
    forgets = offer.client_no_context_takeover or terms.client_no_context_takeover
    return msgspec.structs.replace(terms, client_no_context_takeover=forgets)


def _read(extension: Extension, *, is_offer: bool) -> DeflateTerms | None:
    """Read the parameters of one element (7.1). None: another extension, or parameters that the RFC forbids."""
    parameters = dict(extension.parameters)
    if extension.name != _EXTENSION_NAME or len(parameters) != len(extension.parameters):
        return None
    for name, value in parameters.items():
        if name in _FLAGS:
            is_legal = value is None
        elif value is None:  # the client can be told a window
            is_legal = is_offer and name == "client_max_window_bits"
        else:
            is_legal = name in _WINDOWS and _WINDOW_BITS.fullmatch(value) is not None
        if not is_legal:
            return None
    return DeflateTerms(
        server_no_context_takeover="server_no_context_takeover" in parameters,
        client_no_context_takeover="client_no_context_takeover" in parameters,
        server_max_window_bits=int(parameters.get("server_max_window_bits") or _WINDOW_BITS_MAX),
        client_max_window_bits=int(parameters.get("client_max_window_bits") or _WINDOW_BITS_MAX),
        names_server_window=is_offer and "server_max_window_bits" in parameters,
    )


class InflateFault(Enum):
    """Why a message could not be inflated."""

    TOO_LARGE = "the message is too large when inflated"
    CORRUPT = "the message is not a deflate stream"


class Inflate:
    """Inflates the messages of one sender. With `keeps_context`, of one connection and in their order."""

    __slots__ = ("_stream", "_window_bits")

    def __init__(self, window_bits: int = _WINDOW_BITS_MAX, *, keeps_context: bool = False) -> None:
        self._window_bits = -window_bits  # negative: a raw stream, without zlib's header
        self._stream = zlib.decompressobj(-window_bits) if keeps_context else None

    def message(self, payload: bytes, bytes_max: int) -> bytes | InflateFault:
        """Return the message of a payload, at most `bytes_max` bytes: no more than that is ever inflated.

        Where no context is kept, a payload whose last compressed block is cut short is found out as well.
        """
        stream = self._stream or zlib.decompressobj(self._window_bits)
        tail = _FLUSHED if self._stream else _FLUSHED + _END
        try:
            message = stream.decompress(payload + tail, bytes_max + 1)
        except zlib.error:
            return InflateFault.CORRUPT
        if len(message) > bytes_max:
            return InflateFault.TOO_LARGE
        was_ended = stream.unused_data == b"\0" + tail  # by the sender (7.2.3.4), who puts a zero behind it
        if not was_ended and (stream.unused_data or stream.eof == bool(self._stream)):
            return InflateFault.CORRUPT  # only our own `_END` may have ended it, and must have
        if was_ended and self._stream:
            self._stream = zlib.decompressobj(self._window_bits)
        return message


class Deflate:
    """Deflates the messages of one sender. With `keeps_context`, of one connection and in their order."""

    __slots__ = ("_stream", "_window_bits")

    def __init__(self, window_bits: int = _WINDOW_BITS_MAX, *, keeps_context: bool = False) -> None:
        assert _WINDOW_BITS_MIN <= window_bits <= _WINDOW_BITS_MAX
        self._window_bits = window_bits
        self._stream = zlib.compressobj(wbits=-window_bits) if keeps_context else None

    def message(self, message: bytes) -> bytes:
        """Return the payload that carries a message."""
        stream = self._stream or self._stream_for(len(message))
        payload = stream.compress(message) + stream.flush(zlib.Z_SYNC_FLUSH)
        assert payload.endswith(_FLUSHED)
        return payload[: -len(_FLUSHED)]

    def _stream_for(self, size: int) -> zlib._Compress:
        """Return a new stream, no larger than the message needs: to clear its memory is what a short one costs.

        138 bytes took 4 us in place of the 55 us with a full window.
        """
        window_bits = min(self._window_bits, max(_WINDOW_BITS_MIN, size.bit_length()))
        return zlib.compressobj(wbits=-window_bits, memLevel=window_bits - 8)
