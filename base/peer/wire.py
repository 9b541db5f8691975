"""The envelope between services, how envelopes travel together, and how a method is declared.

A *frame* is four bytes of length, big-endian, and as many bytes of *batch*: a MessagePack array of envelopes, each an
array that starts with its kind.

    ["q", id, method, ttl_ms, body]        a request; the reply is worth nothing after ttl_ms
    ["r", id, body]                        its reply
    ["e", id, code, message, detail]       or its failure, see base.errors
    ["p", method, body]                    a push: no reply

A batch without envelopes says only that its sender is alive. The version is agreed once, by the protocol's name in the
upgrade; within it, fields are only ever appended.

Each envelope is encoded once, with its body, when it is queued: what the caller changes afterwards cannot reach the
wire, and its size is known. A frame copies these bytes together. Bodies are decoded straight from the frame.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from base.errors import RemoteProtocolError

__all__ = [
    "ENVELOPE_BYTES_MAX",
    "FRAME_BYTES_MAX",
    "KEEPALIVE",
    "Envelope",
    "Failure",
    "FrameReader",
    "Method",
    "Push",
    "Reply",
    "Request",
    "decode_batch",
    "encode_failure",
    "encode_frame",
    "encode_push",
    "encode_reply",
    "encode_request",
]

FRAME_BYTES_MAX = 8 * 1024 * 1024
"""The longest batch, without its length."""
ENVELOPE_BYTES_MAX = FRAME_BYTES_MAX - 1
"""The longest envelope: alone in a batch, it has one byte before it."""

_LENGTH_BYTES = 4
_FIXARRAY, _FIXARRAY_MAX, _ARRAY32 = 0x90, 15, b"\xdd"  # how a MessagePack array begins, short or long

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Request(msgspec.Struct, tag="q", array_like=True, frozen=True, gc=False):
    """Ask for `method`. `id` is unique per stream and direction."""

    id: int
    method: str
    ttl_ms: int
    body: msgspec.Raw


class Reply(msgspec.Struct, tag="r", array_like=True, frozen=True, gc=False):
    """The result of request `id`."""

    id: int
    body: msgspec.Raw


class Failure(msgspec.Struct, tag="e", array_like=True, frozen=True):
    """Request `id` failed: a code of `base.errors` and its promised fields."""

    id: int
    code: int
    message: str
    detail: dict[str, Any]


class Push(msgspec.Struct, tag="p", array_like=True, frozen=True, gc=False):
    """Tell the other side, no reply wanted."""

    method: str
    body: msgspec.Raw


Envelope = Request | Reply | Failure | Push
"""As received: the body is a view into its frame, to be decoded before the next one is read."""

_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(list[Envelope])


class Method(Generic[Req, Rep]):
    """A named call with its two types; declared once in the serving package's `api.py`, used by both ends."""

    def __init__(self, name: str, request: type[Req], reply: type[Rep]) -> None:
        self.name = name
        self._request = msgspec.msgpack.Decoder(request)
        self._reply = msgspec.msgpack.Decoder(reply)

    def decode_request(self, body: msgspec.Raw) -> Req:
        """Raises RemoteProtocolError naming the field that is wrong."""
        try:
            return self._request.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"{self.name}: bad request: {error}") from error

    def decode_reply(self, body: msgspec.Raw) -> Rep:
        """Raises RemoteProtocolError naming the field that is wrong."""
        try:
            return self._reply.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"{self.name}: bad reply: {error}") from error


def encode_request(request_id: int, method: str, ttl_ms: int, body: object) -> bytes:
    """Encode a `Request` with its body."""
    return _encoder.encode(("q", request_id, method, ttl_ms, body))


def encode_reply(request_id: int, body: object) -> bytes:
    """Encode a `Reply` with its body."""
    return _encoder.encode(("r", request_id, body))


def encode_failure(request_id: int, code: int, message: str, detail: dict[str, Any]) -> bytes:
    """Encode a `Failure`."""
    return _encoder.encode(("e", request_id, code, message, detail))


def encode_push(method: str, body: object) -> bytes:
    """Encode a `Push` with its body."""
    return _encoder.encode(("p", method, body))


def encode_frame(batch: list[bytes]) -> bytes:
    """Make one frame of encoded envelopes."""
    count = len(batch)
    head = bytes((_FIXARRAY | count,)) if count <= _FIXARRAY_MAX else _ARRAY32 + count.to_bytes(4, "big")
    size = len(head) + sum(map(len, batch))
    return b"".join((size.to_bytes(_LENGTH_BYTES, "big"), head, *batch))


KEEPALIVE = encode_frame([])


def decode_batch(batch: memoryview) -> list[Envelope]:
    """Decode what a frame carries. Raises RemoteProtocolError when it is not a batch."""
    try:
        return _batch_decoder.decode(batch)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a batch of envelopes: {error}") from error


class FrameReader:
    """Cuts what a socket delivers, in pieces of any size, into batches.

    Usually one piece is one frame and nothing is copied; the pieces of a longer one are copied once as they come.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 0  # how long `_rest` must grow before there is anything to do

    def feed(self, data: bytes) -> list[memoryview]:
        """Return the batches that are now whole. Raises RemoteProtocolError at a length over FRAME_BYTES_MAX."""
        pending: bytes | bytearray = data
        if not self._rest:
            if int.from_bytes(data[:_LENGTH_BYTES], "big") == len(data) - _LENGTH_BYTES <= FRAME_BYTES_MAX:
                return [memoryview(data)[_LENGTH_BYTES:]]  # one piece, one frame, as nearly always
        else:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            # Given away rather than cut, so that the batches can be views.
            pending, self._rest = self._rest, bytearray()
        view = memoryview(pending)
        batches: list[memoryview] = []
        start, end = 0, len(view)
        self._needed = _LENGTH_BYTES
        while end - start >= _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            size = int.from_bytes(view[start:body], "big")
            if size > FRAME_BYTES_MAX:
                raise RemoteProtocolError(f"a frame of {size} bytes, over the limit of {FRAME_BYTES_MAX}")
            if end - body < size:
                self._needed = _LENGTH_BYTES + size
                break
            batches.append(view[body : body + size])
            start = body + size
        self._rest += view[start:]
        return batches
