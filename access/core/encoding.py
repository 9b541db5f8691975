"""How the client protocol stands in a frame: in JSON, or in protobuf. A client chooses one for its connection.

| encoding | one message         | several in a frame  | ping and pong         | what the application gives |
|----------|---------------------|---------------------|-----------------------|----------------------------|
| JSON     | an object, one line | joined by newlines  | `{}`                  | any JSON value, embedded   |
| protobuf | length, then fields | one after the other | the message of size 0 | any bytes                  |

A client is not trusted: whatever it sends is commands or `BadFrame`. What the server encodes is trusted: `Raw` data for
a JSON client must be a JSON value without a line break, which is checked once where the data comes in (`is_json`,
`one_line`), not for each client who gets it.

Source: Centrifugal Labs, "Client protocol" (centrifugal.dev/docs/transports/client_protocol).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol, Self

import msgspec

from access.core import protobuf
from access.core.protocol import PUSH_NAMES, BadFrame, Command, EmulationRequest, Push, Result

__all__ = ["BadFrame", "Encoding", "is_json", "one_line"]


class _Codec(Protocol):
    ping: bytes
    decode_frame: Callable[[bytes], list[Command]]
    decode_emulation: Callable[[bytes], EmulationRequest]
    encode_reply: Callable[[int, str, Result], bytes]
    encode_push: Callable[[str, Push], bytes]
    join: Callable[[Sequence[bytes]], bytes]


# ---------------------------------------------------------------- JSON

_decode_command = msgspec.json.Decoder(Command).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_encode = msgspec.json.Encoder().encode

_PUSH_KEYS = {push: f'"{name}":'.encode() for push, name in PUSH_NAMES.items()}


class _JsonEmulation(msgspec.Struct, frozen=True):
    node: str = ""
    session: str = ""
    data: str = ""


_decode_emulation = msgspec.json.Decoder(_JsonEmulation).decode


class _Json:
    ping = b"{}"
    join = b"\n".join

    @staticmethod
    def decode_frame(frame: bytes) -> list[Command]:
        try:
            # The decoder would let bytes that are not UTF-8 through inside of what is passed on as it came.
            if not frame.isascii():
                frame.decode()
            if frame and b"\n" not in frame:  # as nearly all are
                return [_decode_command(frame)]
            return [_decode_command(line) for line in frame.split(b"\n") if line and not line.isspace()]
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            raise BadFrame(str(error)) from error
        except RecursionError as error:
            raise BadFrame("nested too deeply") from error

    @staticmethod
    def decode_emulation(body: bytes) -> EmulationRequest:
        try:
            request = _decode_emulation(body)
        except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
            raise BadFrame(str(error)) from error
        return EmulationRequest(request.node, request.session, request.data.encode())

    @staticmethod
    def encode_reply(command_id: int, kind: str, result: Result) -> bytes:
        # Two thirds of the time of encoding a dict.
        return b'{"id":%d,"%s":%s}' % (command_id, kind.encode(), _encode(result))

    @staticmethod
    def encode_push(channel: str, push: Push) -> bytes:
        # Three quarters of the time of encoding nested dicts.
        key = _PUSH_KEYS[type(push)]
        if channel:
            return b"".join((b'{"push":{"channel":', _encode(channel), b",", key, _encode(push), b"}}"))
        return b"".join((b'{"push":{', key, _encode(push), b"}}"))


# ---------------------------------------------------------------- protobuf


class _Protobuf:
    ping = b"\0"
    join = b"".join
    decode_frame = staticmethod(protobuf.decode_frame)
    encode_reply = staticmethod(protobuf.encode_reply)
    encode_push = staticmethod(protobuf.encode_push)

    @staticmethod
    def decode_emulation(body: bytes) -> EmulationRequest:
        return protobuf.decode(EmulationRequest, body)


# ---------------------------------------------------------------- both


class Encoding(Enum):
    """An encoding of the protocol, with its functions. The value is its name."""

    JSON = ("json", _Json)
    PROTOBUF = ("protobuf", _Protobuf)

    ping: bytes
    """The server's ping and the client's pong."""

    decode_frame: Callable[[bytes], list[Command]]
    """`decode_frame(frame)` returns the commands of a frame, none for an empty one. Raises `BadFrame`."""

    decode_emulation: Callable[[bytes], EmulationRequest]
    """`decode_emulation(body)` returns what a client of a one-way transport sends beside it. Raises `BadFrame`."""

    encode_reply: Callable[[int, str, Result], bytes]
    """`encode_reply(command_id, kind, result)`: `kind` is the request's name, or `error`."""

    encode_push: Callable[[str, Push], bytes]
    """`encode_push(channel, push)`: the channel is empty for a push that concerns the connection."""

    join: Callable[[Sequence[bytes]], bytes]
    """`join(messages)` makes one frame of encoded replies and pushes."""

    def __new__(cls, value: str, codec: type[_Codec]) -> Self:
        """Bind the functions to the member, so that a call has nothing to choose."""
        member = object.__new__(cls)
        member._value_ = value
        member.ping = codec.ping
        member.decode_frame = codec.decode_frame
        member.decode_emulation = codec.decode_emulation
        member.encode_reply = codec.encode_reply
        member.encode_push = codec.encode_push
        member.join = codec.join
        return member


# ---------------------------------------------------------------- what the application gives


def is_json(data: bytes) -> bool:
    """Return whether the bytes are one JSON value in UTF-8. It may have line breaks: see `one_line`."""
    try:
        data.decode()
        _decode_raw(data)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def one_line(data: bytes) -> msgspec.Raw:
    """Return a JSON value without line breaks, as it must stand in a frame; it is copied only if it has any.

    A break inside a JSON value is white space between two tokens, one of which is punctuation: nothing is lost.
    Carriage returns go, too, since they end lines of server-sent events.
    """
    if b"\n" in data or b"\r" in data:
        data = data.translate(None, b"\r\n")
    return msgspec.Raw(data)
