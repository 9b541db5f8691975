"""The Centrifugo client protocol, version 2, in JSON: commands in, replies and pushes out.

A frame is one or more JSON objects, joined by newlines. A *command* has an id and exactly one request in it; its
*reply* has the same id and the result or an error. A *push* has no id. `{}` is the server's ping and the client's
pong.

Field names and code numbers are the protocol's, so that its stock SDKs connect unchanged. Errors of our own tree are
told by the protocol's code where it has one, else by 1000 + our code, in the range that it leaves to applications.

Source: Centrifugal Labs, "Client protocol" (centrifugal.dev/docs/transports/client_protocol), and its published schema.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec

from base.errors import Code, Retry, RoadsteadError

__all__ = [
    "ClientError",
    "Close",
    "Command",
    "Publication",
    "code_number",
    "decode_frame",
    "encode_push",
    "encode_reply",
    "error_of",
]


class ClientError(Enum):
    """The protocol's error codes in replies: (number, message, whether the SDK retries by itself)."""

    INTERNAL = (100, "internal server error", True)
    UNAUTHORIZED = (101, "unauthorized", False)
    UNKNOWN_CHANNEL = (102, "unknown channel", False)
    PERMISSION_DENIED = (103, "permission denied", False)
    METHOD_NOT_FOUND = (104, "method not found", False)
    ALREADY_SUBSCRIBED = (105, "already subscribed", False)
    LIMIT_EXCEEDED = (106, "limit exceeded", False)
    BAD_REQUEST = (107, "bad request", False)
    NOT_AVAILABLE = (108, "not available", False)
    TOKEN_EXPIRED = (109, "token expired", False)
    TOO_MANY_REQUESTS = (111, "too many requests", True)
    UNRECOVERABLE_POSITION = (112, "unrecoverable position", False)

    @property
    def wire(self) -> ReplyError:
        """The error as it stands in a reply."""
        number, message, is_temporary = self.value
        return ReplyError(number, message, is_temporary)


class Close(Enum):
    """WebSocket close codes: 3000-3499 and 4000-4499 make an SDK reconnect, 3500-3999 and 4500-4999 make it stop."""

    SHUTDOWN = (3001, "shutdown")
    SLOW = (3008, "slow")
    INSUFFICIENT_STATE = (3010, "insufficient state")
    NO_PONG = (3012, "no pong")
    INVALID_TOKEN = (3500, "invalid token")
    BAD_REQUEST = (3501, "bad request")
    STALE = (3502, "stale")
    EVICTED = (3503, "evicted by another device")

    @property
    def code(self) -> int:
        """The close code."""
        return self.value[0]

    @property
    def reason(self) -> str:
        """The close reason, for people."""
        return self.value[1]


# ---------------------------------------------------------------- client to server

_Offset = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Unserved = dict[str, msgspec.Raw]


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request to recover after `offset` of `epoch`; an empty epoch with offset 0 means from the very beginning."""

    recover: bool = False
    epoch: str = ""
    offset: _Offset = 0


class ConnectRequest(msgspec.Struct, frozen=True):
    """The first command. `subs` are the server-side subscriptions that the SDK had before it lost its connection.

    `data` is what the application gives its SDK to send along, any JSON value.
    """

    token: str = ""
    subs: dict[str, Position] = {}
    data: msgspec.Raw = msgspec.Raw(b"null")


class SubscribeRequest(msgspec.Struct, frozen=True):
    """Subscribe to a channel. Bit 2 of `flag`: refuse with 112 rather than subscribe without recovery."""

    channel: str = ""
    recover: bool = False
    epoch: str = ""
    offset: _Offset = 0
    flag: int = 0


class ChannelRequest(msgspec.Struct, frozen=True):
    """A request that names a channel."""

    channel: str = ""


class RpcRequest(msgspec.Struct, frozen=True):
    """Call `method` with `data`, any JSON value."""

    method: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class Command(msgspec.Struct, frozen=True):
    """One command. Requests that this server does not serve are kept as they came, to be refused by name."""

    id: int = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: ChannelRequest | None = None
    rpc: RpcRequest | None = None
    publish: _Unserved | None = None
    presence: _Unserved | None = None
    presence_stats: _Unserved | None = None
    history: _Unserved | None = None
    ping: _Unserved | None = None
    send: _Unserved | None = None
    refresh: _Unserved | None = None
    sub_refresh: _Unserved | None = None

    def kind(self) -> str | None:
        """Return the name of the first request that is there, None for a pong."""
        return next((name for name in _KINDS if getattr(self, name) is not None), None)


_KINDS = tuple(name for name in Command.__struct_fields__ if name != "id")


# ---------------------------------------------------------------- server to client


class ReplyError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it stands in a reply. `temporary` makes an SDK try again by itself."""

    code: int
    message: str
    temporary: bool = False


class Publication(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry of a channel's stream. `data` is JSON as it was encoded once, for all who get it."""

    data: msgspec.Raw
    offset: int = 0


class SubscribeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subscription's start. `recovered`: `publications` are all that came after the asked position, none missing.

    `data` is JSON that the channel gives to whoever subscribes.
    """

    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: int = 0
    was_recovering: bool = False
    recovered: bool = False
    publications: list[Publication] = []
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class ConnectResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The session's start. The client must see a ping at least every `ping` seconds, and answer if `pong`."""

    client: str
    version: str
    ping: int
    pong: bool
    session: str
    node: str
    subs: dict[str, SubscribeResult] = {}


class RpcResult(msgspec.Struct, frozen=True):
    """The result of a call."""

    data: msgspec.Raw


_decoder = msgspec.json.Decoder(Command)
_encoder = msgspec.json.Encoder()

PING_FRAME = b"{}"
APPLICATION_CODES = 1_000


def decode_frame(frame: bytes | str) -> list[Command]:
    """Return the frame's commands.

    Raises:
        UnicodeError: it is not UTF-8. The decoder alone would let that through inside of what is passed on as it came.
        msgspec.MsgspecError: it is not made of commands.
    """
    if isinstance(frame, str):
        frame = frame.encode()
    else:
        frame.decode()
    try:
        return [_decoder.decode(line) for line in frame.split(b"\n") if line.strip()]
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error


def encode_reply(command_id: int, kind: str, result: object) -> bytes:
    """Encode the reply to a command: `kind` is the request's name, or `error`."""
    return _encoder.encode({"id": command_id, kind: result})


def encode_push(channel: str, publication: Publication) -> bytes:
    """Encode a publication for whoever is subscribed to the channel."""
    return _encoder.encode({"push": {"channel": channel, "pub": publication}})


_BY_CODE: dict[Code, ClientError] = {
    Code.INTERNAL: ClientError.INTERNAL,
    Code.OVERLOADED: ClientError.TOO_MANY_REQUESTS,
    Code.UNAUTHENTICATED: ClientError.UNAUTHORIZED,
    Code.PERMISSION_DENIED: ClientError.PERMISSION_DENIED,
    Code.TOKEN_EXPIRED: ClientError.TOKEN_EXPIRED,
    Code.UNKNOWN_METHOD: ClientError.METHOD_NOT_FOUND,
    Code.LIMIT_EXCEEDED: ClientError.LIMIT_EXCEEDED,
    Code.TOO_LARGE: ClientError.LIMIT_EXCEEDED,
    Code.BAD_REQUEST: ClientError.BAD_REQUEST,
}


# Of codes that share a number the first one speaks for all.
_CODES = {
    # Those without a code of ours are the client's own doing, unless they are temporary.
    **{known.value[0]: Code.BAD_REQUEST for known in ClientError if not known.wire.temporary},
    **{known.value[0]: code for code, known in reversed(_BY_CODE.items())},
}


def code_number(reply_code: int) -> int:
    """Return the code of our tree for a reply error's, for clients; 100 for one that it does not know."""
    if reply_code >= APPLICATION_CODES:
        return reply_code - APPLICATION_CODES
    return _CODES.get(reply_code, Code.INTERNAL).number


def error_of(error: RoadsteadError) -> ReplyError:
    """Return the reply error for a failure of our tree; its message says what was wrong."""
    known = _BY_CODE.get(error.code)
    number = known.value[0] if known else APPLICATION_CODES + error.code.number
    return ReplyError(
        number, error.message, temporary=error.retry is not Retry.NEVER and known is not ClientError.TOKEN_EXPIRED
    )
