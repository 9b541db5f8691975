"""The Centrifugo client protocol, version 2: its values, its error and close codes, and what each means for us.

A *command* has an id and one request in it; its *reply* has the same id and the result or an error. A *push* has no
id: it belongs to a channel, or to the connection. An empty message is the server's ping and the client's pong. How
these stand in a frame is decided by `encoding`.

Field names and code numbers are the protocol's, so that its stock SDKs connect unchanged. Errors of our own tree are
told by the protocol's code where it has one, else by 1000 + our code, in the range that it leaves to applications.

What the application gives (`data`, `conn_info`, `chan_info`) is a `Raw`, passed on as it came. For JSON it is a JSON
value; a protobuf client may send any bytes. Absent it is JSON's null in a request, and UNSET in what is sent.

Declined, and so neither here nor in `client.proto`: delta, tag filters, numeric channel ids, wildcard subscriptions.

Source: Centrifugal Labs, "Client protocol" (centrifugal.dev/docs/transports/client_protocol), and its published schema.
"""

from __future__ import annotations

from enum import Enum
from itertools import compress
from typing import Annotated

import msgspec
from msgspec.structs import astuple

from base.errors import Code, Retry, RoadsteadError

__all__ = [
    "APPLICATION_CODES",
    "EMPTY",
    "PUSH_NAMES",
    "BadFrame",
    "ChannelRequest",
    "ClientError",
    "ClientInfo",
    "Close",
    "Command",
    "Connect",
    "ConnectRequest",
    "ConnectResult",
    "Disconnect",
    "Empty",
    "EmulationRequest",
    "HistoryRequest",
    "HistoryResult",
    "Join",
    "Leave",
    "Message",
    "Position",
    "PresenceResult",
    "PresenceStatsResult",
    "Publication",
    "PublishRequest",
    "Push",
    "Refresh",
    "RefreshRequest",
    "RefreshResult",
    "ReplyError",
    "Result",
    "RpcRequest",
    "RpcResult",
    "SendRequest",
    "StreamPosition",
    "SubRefreshRequest",
    "SubRefreshResult",
    "Subscribe",
    "SubscribeFlag",
    "SubscribeRequest",
    "SubscribeResult",
    "Unsubscribe",
    "Unsubscribed",
    "code_number",
    "error_of",
]


class BadFrame(ValueError):
    """A frame that is not made of commands; the text says why, for people."""


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
    EXPIRED = (110, "expired", False)
    TOO_MANY_REQUESTS = (111, "too many requests", True)
    UNRECOVERABLE_POSITION = (112, "unrecoverable position", False)

    @property
    def wire(self) -> ReplyError:
        """The error as it stands in a reply."""
        number, message, is_temporary = self.value
        return ReplyError(number, message, is_temporary)


class Close(Enum):
    """WebSocket close codes: 3000-3499 and 4000-4499 make an SDK reconnect, 3500-3999 and 4500-4999 make it stop."""

    CONNECTION_CLOSED = (3000, "connection closed")
    SHUTDOWN = (3001, "shutdown")
    SERVER_ERROR = (3004, "internal server error")
    EXPIRED = (3005, "connection expired")
    SUBSCRIPTION_EXPIRED = (3006, "subscription expired")
    SLOW = (3008, "slow")
    WRITE_ERROR = (3009, "write error")
    INSUFFICIENT_STATE = (3010, "insufficient state")
    FORCE_RECONNECT = (3011, "force reconnect")
    NO_PONG = (3012, "no pong")
    TOO_MANY_REQUESTS = (3013, "too many requests")
    INVALID_TOKEN = (3500, "invalid token")
    BAD_REQUEST = (3501, "bad request")
    STALE = (3502, "stale")
    FORCE_DISCONNECT = (3503, "force disconnect")
    EVICTED = (3503, "evicted by another device")
    CONNECTION_LIMIT = (3504, "connection limit")
    CHANNEL_LIMIT = (3505, "channel limit")
    INAPPROPRIATE_PROTOCOL = (3506, "inappropriate protocol")
    PERMISSION_DENIED = (3507, "permission denied")
    NOT_AVAILABLE = (3508, "not available")
    TOO_MANY_ERRORS = (3509, "too many errors")

    @property
    def code(self) -> int:
        """The close code."""
        return self.value[0]

    @property
    def reason(self) -> str:
        """The close reason, for people."""
        return self.value[1]


class Unsubscribed(Enum):
    """Codes of the unsubscribe push: from 2500 on an SDK subscribes again by itself, below it stays out."""

    BY_SERVER = (2000, "server unsubscribe")
    INSUFFICIENT_STATE = (2500, "insufficient state")
    EXPIRED = (2501, "subscription expired")

    @property
    def wire(self) -> Unsubscribe:
        """The push."""
        return Unsubscribe(*self.value)


class SubscribeFlag:
    """Bits of a subscribe request's `flag`; others are ignored."""

    REJECT_UNRECOVERED = 2
    """Refuse with 112 rather than subscribe without what was missed."""


# The bounds are those of the schema's types. A store counts offsets in a signed integer, so they end half-way.
_Uint32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Given = msgspec.Raw | msgspec.UnsetType

_NULL = msgspec.Raw(b"null")


# ---------------------------------------------------------------- client to server


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request to recover after `offset` of `epoch`; an empty epoch with offset 0 means from the very beginning."""

    recover: bool = False
    epoch: str = ""
    offset: _Offset = 0


class StreamPosition(msgspec.Struct, frozen=True):
    """A place in a channel's stream: behind the publication `offset` of `epoch`."""

    offset: _Offset = 0
    epoch: str = ""


class ConnectRequest(msgspec.Struct, frozen=True):
    """The first command. `subs` are the server-side subscriptions that the SDK had before it lost its connection.

    `data` is what the application gives its SDK to send along. `name` and `version` tell the SDK, or the application
    if it says so. `headers` stand for those of HTTP where a browser cannot set them.
    """

    token: str = ""
    subs: dict[str, Position] = {}
    data: msgspec.Raw = _NULL
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}
    flag: _Int64 = 0


class RefreshRequest(msgspec.Struct, frozen=True):
    """Prolong the connection with a newer token."""

    token: str = ""


class SubscribeRequest(msgspec.Struct, frozen=True):
    """Subscribe to a channel, from a position if `recover`. `flag`: see `SubscribeFlag`.

    `positioned`, `recoverable` and `join_leave` ask for what the channel may grant.
    """

    channel: str = ""
    recover: bool = False
    epoch: str = ""
    offset: _Offset = 0
    flag: _Int64 = 0
    token: str = ""
    data: msgspec.Raw = _NULL
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False


class SubRefreshRequest(msgspec.Struct, frozen=True):
    """Prolong a subscription with a newer token."""

    channel: str = ""
    token: str = ""


class ChannelRequest(msgspec.Struct, frozen=True):
    """A request that names a channel and nothing else: unsubscribe, presence, presence_stats."""

    channel: str = ""


class PublishRequest(msgspec.Struct, frozen=True):
    """Publish `data` into a channel."""

    channel: str = ""
    data: msgspec.Raw = _NULL


class HistoryRequest(msgspec.Struct, frozen=True):
    """Read a channel's stream after `since`, or backwards before it.

    `limit`: how many publications at most; 0 asks for the stream's position only, -1 for all that there are.
    """

    channel: str = ""
    limit: _Int32 = 0
    since: StreamPosition | None = None
    reverse: bool = False


class SendRequest(msgspec.Struct, frozen=True):
    """A message to the server, without a reply."""

    data: msgspec.Raw = _NULL


class RpcRequest(msgspec.Struct, frozen=True, gc=False):
    """Call `method` with `data`."""

    method: str = ""
    data: msgspec.Raw = _NULL


class Empty(msgspec.Struct, frozen=True):
    """A request or a result with nothing in it: ping; unsubscribed, published."""


EMPTY = Empty()


class Command(msgspec.Struct, frozen=True, gc=False):
    """One command. The requests stand in the schema's order: of several, the first one is meant."""

    id: _Uint32 = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: ChannelRequest | None = None
    publish: PublishRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    history: HistoryRequest | None = None
    ping: Empty | None = None
    send: SendRequest | None = None
    rpc: RpcRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None

    def kind(self) -> str | None:
        """Return the name of the first request that is there, None for a pong."""
        return next(compress(_KINDS, astuple(self)[1:]), None)


_KINDS = Command.__struct_fields__[1:]


class EmulationRequest(msgspec.Struct, frozen=True):
    """What a client of a one-way transport sends beside it: a frame of commands for its session on `node`."""

    node: str = ""
    session: str = ""
    data: bytes = b""


# ---------------------------------------------------------------- server to client: parts


class ReplyError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it stands in a reply. `temporary` makes an SDK try again by itself."""

    code: _Uint32
    message: str
    temporary: bool = False


class ClientInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is in a channel, or published to it: a user on one of its connections."""

    user: str
    client: str
    conn_info: _Given = msgspec.UNSET
    chan_info: _Given = msgspec.UNSET


class Publication(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An entry of a channel's stream. `data` is encoded once, for all who get it.

    `info` is who published, if that was a client. `time`: Unix time in ms, 0 if it is not told.
    """

    data: msgspec.Raw
    offset: _Offset = 0
    info: ClientInfo | None = None
    tags: dict[str, str] = {}
    time: _Int64 = 0


# ---------------------------------------------------------------- server to client: results


class SubscribeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subscription's start. `recovered`: `publications` are all that came after the asked position, none missing.

    `data` is what the channel gives to whoever subscribes. `ttl`: seconds until the client has to refresh, if
    `expires`.
    """

    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: _Offset = 0
    was_recovering: bool = False
    recovered: bool = False
    publications: list[Publication] = []
    data: _Given = msgspec.UNSET
    expires: bool = False
    ttl: _Uint32 = 0


class ConnectResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The session's start. The client must see a ping at least every `ping` seconds, and answer if `pong`.

    `ttl`: seconds until the client has to refresh, if `expires`. `time`: the server's Unix time in ms, 0 if untold.
    """

    client: str
    version: str
    ping: _Uint32
    pong: bool
    session: str
    node: str
    subs: dict[str, SubscribeResult] = {}
    data: _Given = msgspec.UNSET
    expires: bool = False
    ttl: _Uint32 = 0
    time: _Int64 = 0


class RefreshResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The connection is prolonged, by `ttl` seconds if it `expires` at all."""

    client: str
    version: str
    expires: bool = False
    ttl: _Uint32 = 0


class SubRefreshResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The subscription is prolonged, by `ttl` seconds if it `expires` at all."""

    expires: bool = False
    ttl: _Uint32 = 0


class PresenceResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who is in the channel, by client id."""

    presence: dict[str, ClientInfo] = {}


class PresenceStatsResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many are in the channel: connections, and users."""

    num_clients: _Uint32 = 0
    num_users: _Uint32 = 0


class HistoryResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Publications in the asked order, and the stream's position now."""

    publications: list[Publication] = []
    epoch: str = ""
    offset: _Offset = 0


class RpcResult(msgspec.Struct, frozen=True, gc=False):
    """The result of a call."""

    data: msgspec.Raw


Result = (
    ConnectResult
    | SubscribeResult
    | PresenceResult
    | PresenceStatsResult
    | HistoryResult
    | RpcResult
    | RefreshResult
    | SubRefreshResult
    | Empty
    | ReplyError
)


# ---------------------------------------------------------------- server to client: pushes


class Join(msgspec.Struct, frozen=True):
    """Somebody came into the channel."""

    info: ClientInfo


class Leave(msgspec.Struct, frozen=True):
    """Somebody left the channel."""

    info: ClientInfo


class Unsubscribe(msgspec.Struct, frozen=True, omit_defaults=True):
    """The server ended the subscription; see `Unsubscribed` for the codes."""

    code: _Uint32
    reason: str = ""


class Message(msgspec.Struct, frozen=True):
    """A message outside of all channels: the push's channel is empty."""

    data: msgspec.Raw


class Subscribe(msgspec.Struct, frozen=True, omit_defaults=True):
    """The server subscribed the client to the channel."""

    recoverable: bool = False
    epoch: str = ""
    offset: _Offset = 0
    positioned: bool = False
    data: _Given = msgspec.UNSET


class Connect(ConnectResult, frozen=True, omit_defaults=True):
    """The session's start, told as a push: on a transport without commands nobody asked."""


class Disconnect(msgspec.Struct, frozen=True, omit_defaults=True):
    """The session's end, for a transport without close codes; see `Close` for the codes."""

    code: _Uint32
    reason: str = ""
    reconnect: bool = False


class Refresh(msgspec.Struct, frozen=True, omit_defaults=True):
    """The server prolonged the connection by itself."""

    expires: bool = False
    ttl: _Uint32 = 0


Push = Publication | Join | Leave | Unsubscribe | Message | Subscribe | Connect | Disconnect | Refresh

PUSH_NAMES: dict[type[Push], str] = {
    Publication: "pub",
    Join: "join",
    Leave: "leave",
    Unsubscribe: "unsubscribe",
    Message: "message",
    Subscribe: "subscribe",
    Connect: "connect",
    Disconnect: "disconnect",
    Refresh: "refresh",
}


# ---------------------------------------------------------------- errors of our tree

APPLICATION_CODES = 1_000
"""What is added to a code of our tree that the protocol has none for."""

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
    ClientError.EXPIRED.value[0]: Code.TOKEN_EXPIRED,
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
