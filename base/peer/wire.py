"""The envelope between services, and how a method is declared.

A WebSocket message is one *batch*: a MessagePack array of envelopes, each an array that starts with its kind.

    ["q", id, method, ttl_ms, body]        a request; the reply is worth nothing after ttl_ms
    ["r", id, body]                        its reply
    ["e", id, code, message, detail]       or its failure, see base.errors
    ["p", method, body]                    a push: no reply

Batches form by themselves: whatever was queued while the last one was being written goes into the next. The version is
negotiated once, by the WebSocket subprotocol; within it, fields are only ever appended.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from base.errors import RemoteProtocolError

__all__ = [
    "FRAME_BYTES_MAX",
    "SUBPROTOCOL",
    "Failure",
    "Method",
    "Push",
    "Reply",
    "Request",
    "decode_batch",
    "encode",
]

SUBPROTOCOL = "roadstead.peer.v1"
FRAME_BYTES_MAX = 8 * 1024 * 1024

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Request(msgspec.Struct, tag="q", array_like=True, frozen=True):
    """Ask for `method`. `id` is unique per stream and direction."""

    id: int
    method: str
    ttl_ms: int
    body: msgspec.Raw


class Reply(msgspec.Struct, tag="r", array_like=True, frozen=True):
    """The result of request `id`."""

    id: int
    body: msgspec.Raw


class Failure(msgspec.Struct, tag="e", array_like=True, frozen=True):
    """Request `id` failed: a code of `base.errors` and its promised fields."""

    id: int
    code: int
    message: str
    detail: dict[str, Any]


class Push(msgspec.Struct, tag="p", array_like=True, frozen=True):
    """Tell the other side, no reply wanted."""

    method: str
    body: msgspec.Raw


Envelope = Request | Reply | Failure | Push

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
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"{self.name}: bad request: {error}") from error

    def decode_reply(self, body: msgspec.Raw) -> Rep:
        """Raises RemoteProtocolError naming the field that is wrong."""
        try:
            return self._reply.decode(body)
        except msgspec.MsgspecError as error:
            raise RemoteProtocolError(f"{self.name}: bad reply: {error}") from error


def encode(value: object) -> msgspec.Raw:
    """Encode a body, or a whole batch of envelopes."""
    return msgspec.Raw(_encoder.encode(value))


def decode_batch(frame: bytes) -> list[Envelope]:
    """Decode one WebSocket message. Raises RemoteProtocolError when it is not a batch."""
    try:
        return _batch_decoder.decode(frame)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"not a batch of envelopes: {error}") from error
