"""Protobuf for the values of the client protocol: a table for each struct, and a decoder and encoder that follow it.

`NUMBERS` has the field numbers of `client.proto`; the types come from the structs' own annotations, so that both
encodings accept the same values. Decoding is stricter than the specification asks for, since a client that sends any
of this is broken or hostile:

| on the wire                                   | here    | stock decoders  |
|-----------------------------------------------|---------|-----------------|
| a known field with another wire type, a group | refused | skipped         |
| an integer beyond the field's type            | refused | cut to its size |
| an offset of 2^63 or more                     | refused | accepted        |
| a message in a field that has one already     | refused | merged          |

Otherwise as the specification says: fields come in any order, unknown ones are skipped, of a value that comes twice
the last one counts, and what has the zero value of its type is not sent. A missing field has the struct's default.

Nothing here recurses by what a client sends: the depth is that of the schema.

Why not the `google.protobuf` runtime (upb): it parses faster, but what it parsed must be moved into our structs, an
attribute at a time, and it needs generated code. Measured with that move, written by hand for each message; us on one
core, Python 3.11:

|                                               | here | runtime |
|-----------------------------------------------|------|---------|
| decode a pong                                 | 0.16 |    0.16 |
| decode an rpc of 100 bytes                    | 1.6  |    2.2  |
| decode a subscribe from a position            | 3.0  |    2.5  |
| decode a connect with a token of 400 bytes    | 5.1  |    5.4  |
| encode a push of 124 bytes                    | 1.6  |    1.3  |
| encode a connect result with one subscription | 4.7  |    2.5  |

The last one costs a connection once, and a push is encoded once for all who get it.

Source: Protocol Buffers Documentation, "Encoding" (protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import inspect
from msgspec.structs import astuple

from access.core import protocol
from access.core.protocol import PUSH_NAMES, BadFrame, Command, Push, Result

__all__ = [
    "NUMBERS",
    "PUSH_NUMBERS",
    "REPLY_NUMBERS",
    "decode",
    "decode_frame",
    "encode",
    "encode_push",
    "encode_reply",
]

# ---------------------------------------------------------------- the schema

NUMBERS: Final[dict[type[msgspec.Struct], dict[str, int]]] = {
    # A message stands behind those that are inside of it.
    protocol.Position: {"recover": 3, "epoch": 6, "offset": 7},
    protocol.ConnectRequest: {
        "token": 1,
        "data": 2,
        "subs": 3,
        "name": 4,
        "version": 5,
        "headers": 6,
        "flag": 7,
    },
    protocol.RefreshRequest: {"token": 1},
    protocol.SubscribeRequest: {
        "channel": 1,
        "token": 2,
        "recover": 3,
        "epoch": 6,
        "offset": 7,
        "data": 8,
        "positioned": 9,
        "recoverable": 10,
        "join_leave": 11,
        "flag": 14,
    },
    protocol.SubRefreshRequest: {"channel": 1, "token": 2},
    protocol.ChannelRequest: {"channel": 1},
    protocol.PublishRequest: {"channel": 1, "data": 2},
    protocol.StreamPosition: {"offset": 1, "epoch": 2},
    protocol.HistoryRequest: {"channel": 1, "limit": 7, "since": 8, "reverse": 9},
    protocol.SendRequest: {"data": 1},
    protocol.RpcRequest: {"data": 1, "method": 2},
    protocol.Empty: {},
    protocol.Command: {
        "id": 1,
        "connect": 4,
        "subscribe": 5,
        "unsubscribe": 6,
        "publish": 7,
        "presence": 8,
        "presence_stats": 9,
        "history": 10,
        "ping": 11,
        "send": 12,
        "rpc": 13,
        "refresh": 14,
        "sub_refresh": 15,
    },
    protocol.EmulationRequest: {"node": 1, "session": 2, "data": 3},
    protocol.ReplyError: {"code": 1, "message": 2, "temporary": 3},
    protocol.ClientInfo: {"user": 1, "client": 2, "conn_info": 3, "chan_info": 4},
    protocol.Publication: {"data": 4, "info": 5, "offset": 6, "tags": 7, "time": 9},
    protocol.SubscribeResult: {
        "expires": 1,
        "ttl": 2,
        "recoverable": 3,
        "epoch": 6,
        "publications": 7,
        "recovered": 8,
        "offset": 9,
        "positioned": 10,
        "data": 11,
        "was_recovering": 12,
    },
    protocol.ConnectResult: {
        "client": 1,
        "version": 2,
        "expires": 3,
        "ttl": 4,
        "data": 5,
        "subs": 6,
        "ping": 7,
        "pong": 8,
        "session": 9,
        "node": 10,
        "time": 11,
    },
    protocol.RefreshResult: {"client": 1, "version": 2, "expires": 3, "ttl": 4},
    protocol.SubRefreshResult: {"expires": 1, "ttl": 2},
    protocol.PresenceResult: {"presence": 1},
    protocol.PresenceStatsResult: {"num_clients": 1, "num_users": 2},
    protocol.HistoryResult: {"publications": 1, "epoch": 2, "offset": 3},
    protocol.RpcResult: {"data": 1},
    protocol.Join: {"info": 1},
    protocol.Leave: {"info": 1},
    protocol.Unsubscribe: {"code": 2, "reason": 3},
    protocol.Message: {"data": 1},
    protocol.Subscribe: {"recoverable": 1, "epoch": 4, "offset": 5, "positioned": 6, "data": 7},
    protocol.Connect: {
        "client": 1,
        "version": 2,
        "data": 3,
        "subs": 4,
        "expires": 5,
        "ttl": 6,
        "ping": 7,
        "pong": 8,
        "session": 9,
        "node": 10,
        "time": 11,
    },
    protocol.Disconnect: {"code": 1, "reason": 2, "reconnect": 3},
    protocol.Refresh: {"expires": 1, "ttl": 2},
}

REPLY_NUMBERS: Final = {
    "id": 1,
    "error": 2,
    "push": 4,
    "connect": 5,
    "subscribe": 6,
    "unsubscribe": 7,
    "publish": 8,
    "presence": 9,
    "presence_stats": 10,
    "history": 11,
    "ping": 12,
    "rpc": 13,
    "refresh": 14,
    "sub_refresh": 15,
}

PUSH_NUMBERS: Final = {
    "channel": 2,
    "pub": 4,
    "join": 5,
    "leave": 6,
    "unsubscribe": 7,
    "message": 8,
    "subscribe": 9,
    "connect": 10,
    "disconnect": 11,
    "refresh": 12,
}

# ---------------------------------------------------------------- reading

_VARINT, _I64, _LENGTH, _I32 = 0, 1, 2, 5
"""The wire types; 3 and 4 were groups."""

# The kinds of fields: the varints, what is one piece of bytes, and what has a table of its own.
_INTEGER, _BOOL, _STRING, _BYTES, _MESSAGE, _REPEATED, _MAP = range(7)
_LAST_VARINT, _LAST_PIECE = _BOOL, _BYTES

_UINT64_MAX: Final = (1 << 64) - 1
_INT64_MAX: Final = (1 << 63) - 1

S = TypeVar("S", bound=msgspec.Struct)


def decode_frame(frame: bytes) -> list[Command]:
    """Return the frame's commands, each of which stands behind its length.

    Raises:
        BadFrame: it is not made of commands.
    """
    commands: list[Command] = []
    pos, end = 0, len(frame)
    try:
        while pos < end:
            length = frame[pos]
            pos += 1
            if length > 0x7F:
                length, pos = _read_varint(frame, pos - 1)
            start, pos = pos, pos + length
            if pos > end:
                raise BadFrame("a message ends beyond its frame")
            commands.append(_decode(_COMMAND, frame, start, pos) if length else _PONG)
    except IndexError:
        raise BadFrame("the frame ends within a number") from None
    except UnicodeDecodeError as error:
        raise BadFrame(str(error)) from None
    return commands


def decode(struct: type[S], data: bytes) -> S:
    """Decode a message that is all of the data.

    Raises:
        BadFrame: it is no such message.
    """
    try:
        made: S = _decode(_TABLES[struct], data, 0, len(data))
    except IndexError:
        raise BadFrame("the message ends within a number") from None
    except UnicodeDecodeError as error:
        raise BadFrame(str(error)) from None
    return made


def _decode(table: _Table, data: bytes, pos: int, end: int) -> Any:  # noqa: PLR0912 - a call per field costs more
    """Decode `data[pos:end]`. Raises IndexError where all of the data ends within a number."""
    by_tag = table.by_tag
    values = table.defaults.copy()
    for index, make in table.containers:
        values[index] = make()
    while pos < end:
        tag = data[pos]
        pos += 1
        if tag > 0x7F:
            tag, pos = _read_varint(data, pos - 1)
        field = by_tag.get(tag)
        if field is None:
            pos = _skip(table, tag, data, pos)
            continue
        index, kind, detail = field
        number = data[pos]  # a varint's value, or the length of anything else
        pos += 1
        if number > 0x7F:
            number, pos = _read_varint(data, pos - 1)
        if kind <= _LAST_VARINT:
            if kind == _BOOL:
                number = number != 0
            elif number > _INT64_MAX:  # negative, and no unsigned field takes as much
                number -= _UINT64_MAX + 1
            if number not in detail:
                raise BadFrame(f"field {tag >> 3} of {table.make.__name__} is out of bounds")
            values[index] = number
            continue
        start, pos = pos, pos + number
        if pos > end:
            break
        if kind <= _LAST_PIECE:
            values[index] = detail(data[start:pos])
        elif kind == _REPEATED:
            values[index].append(_decode(detail, data, start, pos))
        elif kind == _MAP:
            key, value = _decode(detail, data, start, pos)
            values[index][key] = value
        elif values[index] is table.defaults[index]:
            values[index] = _decode(detail, data, start, pos)
        else:
            raise BadFrame(f"field {tag >> 3} of {table.make.__name__} comes twice")
    if pos != end:
        raise BadFrame(f"{table.make.__name__} ends within a field")
    return table.make(*values)


def _read_varint(data: bytes, pos: int) -> tuple[int, int]:
    """Read a number of at most 64 bits; return it and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[pos]
        pos += 1
        number |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            break
    else:
        raise BadFrame("a number has more than ten bytes")
    if number > _UINT64_MAX:
        raise BadFrame("a number has more than 64 bits")
    return number, pos


def _skip(table: _Table, tag: int, data: bytes, pos: int) -> int:
    """Return where an unknown field ends, which may be beyond its message."""
    number, wire_type = tag >> 3, tag & 7
    if number in table.numbers or not 0 < number < 1 << 29:
        raise BadFrame(f"field {number} of {table.make.__name__} has wire type {wire_type}")
    if wire_type == _VARINT:
        return _read_varint(data, pos)[1]
    if wire_type == _LENGTH:
        length, pos = _read_varint(data, pos)
        return pos + length
    if wire_type == _I64:
        return pos + 8
    if wire_type == _I32:
        return pos + 4
    raise BadFrame(f"wire type {wire_type}")


# ---------------------------------------------------------------- writing


def encode_reply(command_id: int, kind: str, result: Result) -> bytes:
    """Encode a reply, behind its length: `kind` is the request's name, or `error`."""
    return _sized(b"", _ID_HEAD + _varint(command_id) + _sized(_REPLY_HEADS[kind], encode(result)))


def encode_push(channel: str, push: Push) -> bytes:
    """Encode a push, behind its length; the channel is empty if it belongs to none."""
    inner = _sized(_PUSH_HEADS[type(push)], encode(push))
    if channel:
        inner = _sized(_CHANNEL_HEAD, channel.encode()) + inner
    return _sized(b"", _sized(_PUSH_HEAD, inner))


def encode(message: msgspec.Struct) -> bytes:
    """Encode a message, without a length before it."""
    return _encode(_TABLES[type(message)], astuple(message))


def _encode(table: _Table, values: tuple[Any, ...]) -> bytes:
    out: list[bytes] = []
    # What is false is left out: zero, empty, None and UNSET. A message never is.
    for place, head, kind, detail in compress(table.fields, values):
        value = values[place]
        if kind <= _LAST_VARINT:
            out += (head, _BYTE[value] if 0 <= value <= 0x7F else _varint(value))
        elif kind <= _LAST_PIECE:
            piece = value.encode() if kind == _STRING else value
            size = len(piece)
            out += (head, _BYTE[size] if size <= 0x7F else _varint(size), piece)
        elif kind == _MESSAGE:
            out.append(_sized(head, _encode(detail, astuple(value))))
        else:
            items = value.items() if kind == _MAP else map(astuple, value)
            out += [_sized(head, _encode(detail, item)) for item in items]
    return b"".join(out)


def _sized(head: bytes, body: bytes) -> bytes:
    size = len(body)
    return head + (_BYTE[size] if size <= 0x7F else _varint(size)) + body


def _varint(number: int) -> bytes:
    """Encode a number of up to 64 bits, a negative one as its two's complement."""
    if 0 <= number < 0x4000:
        return _BYTE[number] if number <= 0x7F else bytes((number & 0x7F | 0x80, number >> 7))
    number &= _UINT64_MAX
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_BYTE: Final = tuple(bytes((number,)) for number in range(0x80))

# ---------------------------------------------------------------- tables


class _Entry(NamedTuple):
    """An entry of a map, which is a message on the wire."""

    key: str
    value: Any


class _Table:
    """How a message stands on the wire. Its fields are in the order in which `make` takes them.

    A field's `detail`: the values that an integer may have; what makes a piece of its bytes; the table of a message,
    of a list's items, of a map's entries.
    """

    __slots__ = ("by_tag", "containers", "defaults", "fields", "make", "numbers")

    def __init__(self, make: type[Any], types: Mapping[int, inspect.Type], *, required: int) -> None:
        """`types` by field number; the first `required` fields have no default, so they have the zero value."""
        self.make = make
        self.numbers = frozenset(types)
        self.by_tag: dict[int, tuple[int, int, Any]] = {}  # to read: tag -> place, kind, detail
        self.fields: list[tuple[int, bytes, int, Any]] = []  # to write: place, encoded tag, kind, detail
        self.containers: list[tuple[int, type[Any]]] = []  # what each message has for itself: place, dict or list
        zeros: list[Any] = []
        for place, (number, declared) in enumerate(types.items()):
            kind, detail, zero = _understood(declared)
            tag = number << 3 | (_VARINT if kind <= _LAST_VARINT else _LENGTH)
            self.by_tag[tag] = (place, kind, detail)
            self.fields.append((place, _varint(tag), kind, detail))
            if kind > _MESSAGE:
                self.containers.append((place, type(zero)))
            zeros.append(zero)
        empty = make(*zeros[:required])
        self.defaults = list(empty if isinstance(empty, tuple) else astuple(empty))


def _understood(declared: inspect.Type) -> tuple[int, Any, Any]:
    """Return the kind, the detail and the zero value of a field of the declared type."""
    match declared:
        case inspect.BoolType():
            return _BOOL, range(2), False
        case inspect.IntType(ge=int(least), le=int(most)):
            return _INTEGER, range(least, most + 1), 0
        case inspect.UnionType((inspect.StructType(cls), inspect.NoneType())) | inspect.StructType(cls):
            table = _TABLES[cls]
            return _MESSAGE, table, _decode(table, b"", 0, 0)
        case inspect.ListType(inspect.StructType(cls)):
            return _REPEATED, _TABLES[cls], []
        case inspect.DictType(key, value):
            return _MAP, _Table(_Entry, {1: key, 2: value}, required=2), {}
        case _:
            return _PIECES[type(declared)]


_PIECES: Final[dict[type[inspect.Type], tuple[int, Any, Any]]] = {
    inspect.StrType: (_STRING, bytes.decode, ""),
    inspect.RawType: (_BYTES, msgspec.Raw, msgspec.Raw(b"")),
    inspect.BytesType: (_BYTES, bytes, b""),
}


def _table_of(struct: type[msgspec.Struct], numbers: Mapping[str, int]) -> _Table:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    types = {numbers[field.name]: field.type for field in info.fields}
    return _Table(struct, types, required=sum(field.required for field in info.fields))


_TABLES: Final[dict[type[msgspec.Struct], _Table]] = {}
for _struct, _numbers in NUMBERS.items():
    _TABLES[_struct] = _table_of(_struct, _numbers)

_COMMAND: Final = _TABLES[Command]
_PONG: Final = Command()

_ID_HEAD: Final = _varint(REPLY_NUMBERS["id"] << 3 | _VARINT)
_REPLY_HEADS: Final = {name: _varint(number << 3 | _LENGTH) for name, number in REPLY_NUMBERS.items()}
_PUSH_HEADS: Final = {push: _varint(PUSH_NUMBERS[name] << 3 | _LENGTH) for push, name in PUSH_NAMES.items()}
_PUSH_HEAD: Final = _REPLY_HEADS["push"]
_CHANNEL_HEAD: Final = _varint(PUSH_NUMBERS["channel"] << 3 | _LENGTH)
