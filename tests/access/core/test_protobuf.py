"""Protobuf: the schema against its text and a stock SDK's, values against the stock runtime, junk against a twin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import centrifuge.protocol.client_pb2 as sdk
import msgspec
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from access.core import protobuf, protocol
from access.core.protocol import (
    PUSH_NAMES,
    BadFrame,
    ChannelRequest,
    Command,
    ConnectRequest,
    Empty,
    EmulationRequest,
    HistoryRequest,
    Message,
    Position,
    Publication,
    PublishRequest,
    ReplyError,
    RpcRequest,
    RpcResult,
    SubscribeRequest,
)

Schema = dict[str, dict[int, tuple[str, str]]]


# ---------------------------------------------------------------- the schema


def parsed(text: str) -> tuple[Schema, dict[str, set[int]]]:
    """Each message's fields (number -> name and type) and reserved numbers, from the text of a schema."""
    schema: Schema = {}
    reserved: dict[str, set[int]] = {}
    for name, body in re.findall(r"^message (\w+) \{(.*?)\}", re.sub(r"//.*", "", text), re.DOTALL | re.MULTILINE):
        assert name not in schema
        schema[name] = {}
        reserved[name] = set()
        for statement in filter(None, map(str.strip, body.split(";"))):
            if statement.startswith("reserved "):
                reserved[name] |= {int(number) for number in statement.removeprefix("reserved ").split(",")}
                continue
            field = re.fullmatch(r"(map<string, \w+>|repeated \w+|\w+) (\w+) = (\d+)", statement)
            assert field, statement
            assert int(field[3]) not in schema[name]
            schema[name][int(field[3])] = (field[2], field[1])
    return schema, reserved


SCHEMA, RESERVED = parsed((Path(protobuf.__file__).parent / "client.proto").read_text())
INTEGERS = {(0, 2**32 - 1): "uint32", (0, 2**63 - 1): "uint64"} | {
    (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1): f"int{bits}" for bits in (32, 64)
}
PLAIN = {inspect.BoolType: "bool", inspect.StrType: "string", inspect.RawType: "bytes", inspect.BytesType: "bytes"}


def fields_of(struct: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {field.name: field for field in info.fields}


def written(declared: inspect.Type) -> str:
    """A struct's type as the schema writes it."""
    match declared:
        case inspect.IntType(ge=least, le=most):
            return INTEGERS[least, most]
        case inspect.UnionType((inspect.StructType(cls), inspect.NoneType())) | inspect.StructType(cls):
            return cls.__name__
        case inspect.ListType(item):
            return f"repeated {written(item)}"
        case inspect.DictType(inspect.StrType(), value):
            return f"map<string, {written(value)}>"
        case _:
            return PLAIN[type(declared)]


@pytest.mark.parametrize("struct", protobuf.NUMBERS, ids=lambda struct: struct.__name__)
def test_a_struct_has_the_fields_of_its_message_in_the_schema(struct: type[msgspec.Struct]):
    """Names, numbers and types, all of them and no other."""
    numbers = protobuf.NUMBERS[struct]
    ours = {numbers[name]: (name, written(field.type)) for name, field in fields_of(struct).items()}
    assert ours == SCHEMA[struct.__name__]
    assert len(ours) == len(numbers)


def test_the_envelopes_have_the_fields_of_the_schema():
    """They are no structs, since a reply or a push never exists by itself."""
    assert {name: number for number, (name, _) in SCHEMA["Reply"].items()} == protobuf.REPLY_NUMBERS
    assert {name: number for number, (name, _) in SCHEMA["Push"].items()} == protobuf.PUSH_NUMBERS
    pushes = {name: kind for name, kind in SCHEMA["Push"].values() if name != "channel"}
    assert pushes == {name: push.__name__ for push, name in PUSH_NAMES.items()}


def test_the_schema_has_no_other_messages():
    """Each is a struct or an envelope."""
    assert {struct.__name__ for struct in protobuf.NUMBERS} | {"Reply", "Push"} == set(SCHEMA)


def typed(field: FieldDescriptor) -> str:
    """A descriptor's type as a schema writes it, a message's as `message`."""
    names = {
        FieldDescriptor.TYPE_UINT32: "uint32",
        FieldDescriptor.TYPE_INT32: "int32",
        FieldDescriptor.TYPE_UINT64: "uint64",
        FieldDescriptor.TYPE_INT64: "int64",
        FieldDescriptor.TYPE_BOOL: "bool",
        FieldDescriptor.TYPE_STRING: "string",
        FieldDescriptor.TYPE_BYTES: "bytes",
        FieldDescriptor.TYPE_MESSAGE: "message",
    }
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return f"map<{typed(inner.fields_by_name['key'])}, {typed(inner.fields_by_name['value'])}>"
    return f"repeated {names[field.type]}" if field.is_repeated else names[field.type]


def inside(field: FieldDescriptor) -> Descriptor | None:
    """The descriptor of the message in a field, in a list, or in a map."""
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        inner = inner.fields_by_name["value"].message_type
    return inner


def pairs() -> Iterator[tuple[str, Descriptor]]:
    """Each of our messages with each of the SDK's that stands in the same place, from the outermost ones inwards."""
    todo = [(name, getattr(sdk, name).DESCRIPTOR) for name in ("Command", "Reply", "EmulationRequest")]
    seen = set()
    for ours, theirs in todo:
        if (ours, theirs.name) in seen:
            continue
        seen.add((ours, theirs.name))
        yield ours, theirs
        for number, (_, kind) in SCHEMA[ours].items():
            name = re.sub(r"repeated |map<string, |>", "", kind)
            if name in SCHEMA:
                todo.append((name, inside(theirs.fields_by_number[number])))


PAIRS = list(pairs())
SDK_MESSAGES = {name: getattr(sdk, theirs.name) for name, theirs in reversed(PAIRS)}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda side: getattr(side, "name", side))
def test_the_schema_is_the_one_of_the_stock_sdks(ours: str, theirs: Descriptor):
    """Each field of ours is theirs, each of theirs is ours or reserved. Only a `Position` is part of another."""
    for number, (name, kind) in SCHEMA[ours].items():
        theirs_kind = typed(theirs.fields_by_number[number])
        assert theirs.fields_by_number[number].name == name
        assert re.sub(r"\b(" + "|".join(SCHEMA) + r")\b", "message", kind) == theirs_kind
    if ours != "Position":
        assert {field.number for field in theirs.fields} <= set(SCHEMA[ours]) | RESERVED[ours]
    assert not RESERVED[ours] & set(SCHEMA[ours])


def test_every_message_was_compared():
    """The walk came to all of them."""
    assert {ours for ours, _ in PAIRS} == set(SCHEMA)


# ---------------------------------------------------------------- values, against the stock runtime

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
BYTES = st.binary(min_size=1, max_size=6)


def values(declared: inspect.Type) -> st.SearchStrategy[Any]:
    """Any value of a struct's field."""
    match declared:
        case inspect.IntType(ge=least, le=most):
            return st.integers(least, most) | st.sampled_from([least, most, 0, 0x7F, 0x80, 0x3FFF, 0x4000])
        case inspect.UnionType((inner, inspect.NoneType())):
            return st.none() | values(inner)
        case inspect.StructType(cls):
            return structs(cls)
        case inspect.ListType(item):
            return st.lists(values(item), max_size=2)
        case inspect.DictType(_, value):
            return st.dictionaries(TEXT, values(value), max_size=2)
        case _:
            return {"bool": st.booleans(), "string": TEXT, "bytes": BYTES}[written(declared)].map(
                msgspec.Raw if isinstance(declared, inspect.RawType) else lambda same: same
            )


@cache
def structs(struct: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Any value of the struct: what has a default may be left out."""
    required = {name: values(field.type) for name, field in fields_of(struct).items() if field.required}
    optional = {name: values(field.type) for name, field in fields_of(struct).items() if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: struct(**fields))


def as_sdk(value: Any, message: Any) -> Any:
    """Fill the SDK's message by the names of its fields."""
    message.SetInParent()
    for name in value.__struct_fields__:
        given_ = getattr(value, name)
        if isinstance(given_, list):
            for item in given_:
                as_sdk(item, getattr(message, name).add())
        elif isinstance(given_, dict):
            for key, item in given_.items():
                if isinstance(item, str):
                    getattr(message, name)[key] = item
                else:
                    as_sdk(item, getattr(message, name)[key])
        elif isinstance(given_, msgspec.Struct):
            as_sdk(given_, getattr(message, name))
        elif given_ is not None and given_ is not msgspec.UNSET:
            setattr(message, name, bytes(given_) if isinstance(given_, msgspec.Raw) else given_)
    return message


def framed(body: bytes) -> bytes:
    """A message behind its length."""
    return twin_varint(len(body)) + body


def unframed(frame: bytes) -> bytes:
    """The only message of a frame."""
    length, body = twin_number(frame)
    assert length == len(body)
    return body


@pytest.mark.parametrize("struct", protobuf.NUMBERS, ids=lambda struct: struct.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_the_stock_runtime_and_we_read_what_the_other_wrote(struct: type[msgspec.Struct], data: st.DataObject):
    """Every message, with any values."""
    ours = data.draw(structs(struct))
    theirs = as_sdk(ours, SDK_MESSAGES[struct.__name__]())
    assert SDK_MESSAGES[struct.__name__].FromString(protobuf.encode(ours)) == theirs
    assert protobuf.decode(struct, theirs.SerializeToString()) == ours


@given(commands=st.lists(structs(Command), max_size=3))
def test_a_frame_of_the_stock_runtime_is_its_commands(commands: list[Command]):
    """Each behind its length, in order."""
    frame = b"".join(framed(as_sdk(command, sdk.Command()).SerializeToString()) for command in commands)
    assert protobuf.decode_frame(frame) == commands


RESULTS = {name: getattr(protocol, kind) for name, kind in SCHEMA["Reply"].values() if name not in {"id", "push"}}


@pytest.mark.parametrize("kind", RESULTS)
@settings(max_examples=10)
@given(data=st.data(), command_id=st.integers(1, 2**32 - 1))
def test_the_stock_runtime_reads_replies(kind: str, data: st.DataObject, command_id: int):
    """One of each result, and the error."""
    result = data.draw(structs(RESULTS[kind]))
    expected = sdk.Reply(id=command_id)
    as_sdk(result, getattr(expected, kind))
    assert sdk.Reply.FromString(unframed(protobuf.encode_reply(command_id, kind, result))) == expected


@pytest.mark.parametrize("push", PUSH_NAMES, ids=PUSH_NAMES.get)
@settings(max_examples=10)
@given(data=st.data(), channel=TEXT)
def test_the_stock_runtime_reads_pushes(push: type[protocol.Push], data: st.DataObject, channel: str):
    """One of each, in a channel or in none."""
    value = data.draw(structs(push))
    expected = sdk.Reply(push=sdk.Push(channel=channel))
    as_sdk(value, getattr(expected.push, PUSH_NAMES[push]))
    assert sdk.Reply.FromString(unframed(protobuf.encode_push(channel, value))) == expected


@pytest.mark.parametrize("size", [1, 126, 127, 128, 129, 16_383, 16_384, 2_100_000])
def test_sizes_and_numbers_take_no_more_bytes_than_they_need(size: int):
    """To the byte as the stock runtime writes them; a frame is read back at any size, too."""
    data = b"x" * size
    reply = unframed(protobuf.encode_reply(size, "rpc", RpcResult(msgspec.Raw(data))))
    assert reply == sdk.Reply(id=size, rpc=sdk.RPCResult(data=data)).SerializeToString()
    for channel in ("", "c" * size):
        push = unframed(protobuf.encode_push(channel, Message(msgspec.Raw(data))))
        assert push == sdk.Reply(push=sdk.Push(channel=channel, message=sdk.Message(data=data))).SerializeToString()
    send = Command(send=protocol.SendRequest(msgspec.Raw(data)))
    assert protobuf.decode_frame(framed(protobuf.encode(send))) == [send]


def test_what_is_missing_has_its_default():
    """Data that the application did not give is JSON's null, in a request, and none is sent in a result."""
    assert protobuf.decode(RpcRequest, b"") == RpcRequest("", msgspec.Raw(b"null"))
    assert protobuf.decode(Publication, b"") == Publication(msgspec.Raw(b""))
    assert protobuf.decode(ReplyError, b"") == ReplyError(0, "")
    assert protobuf.encode(Publication(msgspec.Raw(b""))) == b""


def test_no_message_shares_what_could_be_changed():
    """Though their defaults are made once."""
    first, second = (protobuf.decode(ConnectRequest, b"") for _ in range(2))
    assert first.subs is not second.subs
    assert first.headers is not second.headers


# ---------------------------------------------------------------- what is refused, against a dumb twin


def twin_varint(number: int) -> bytes:
    digits = [number >> shift & 0x7F for shift in range(0, 70, 7)]
    while len(digits) > 1 and not digits[-1]:
        digits.pop()
    return bytes(digit | 0x80 for digit in digits[:-1]) + bytes(digits[-1:])


def twin_number(data: bytes) -> tuple[int, bytes]:
    """The number at the start, and what follows. Raises ValueError."""
    match = re.match(rb"[\x80-\xff]{0,9}[\x00-\x7f]", data)
    if match is None:
        raise ValueError("no end")
    number = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[0]))
    if number >= 2**64:
        raise ValueError("too long")
    return number, data[match.end() :]


def twin_piece(data: bytes) -> tuple[bytes, bytes]:
    """What stands behind its length, and what follows. Raises ValueError."""
    length, data = twin_number(data)
    if length > len(data):
        raise ValueError("too short")
    return data[:length], data[length:]


def twin_fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, wire type and value of each field. Raises ValueError."""
    while data:
        tag, data = twin_number(data)
        if not 0 < tag >> 3 < 2**29:
            raise ValueError("no such field number")
        value: int | bytes
        match tag & 7:
            case 0:
                value, data = twin_number(data)
            case 2:
                value, data = twin_piece(data)
            case 1 | 5 as wire_type:
                size = 8 if wire_type == 1 else 4
                if size > len(data):
                    raise ValueError("too short")
                value, data = data[:size], data[size:]
            case _:
                raise ValueError("a group")
        yield tag >> 3, tag & 7, value


def twin_scalar(kind: str, value: int) -> int | bool:
    if kind == "bool":
        return value > 0
    if kind.startswith("int") and value >= 2**63:
        value -= 2**64
    least, most = {kind: bounds for bounds, kind in INTEGERS.items()}[kind]
    if not least <= value <= most:
        raise ValueError("out of bounds")
    return value


def twin_message(kind: str, data: bytes) -> Any:
    """A message by the text of the schema. Raises ValueError."""
    made: dict[str, Any] = {}
    for number, wire_type, value in twin_fields(data):
        if number not in SCHEMA[kind]:
            continue
        name, inner = SCHEMA[kind][number]
        if wire_type != (0 if inner == "bool" or "int" in inner else 2):
            raise ValueError("wrong wire type")
        if wire_type == 0:
            made[name] = twin_scalar(inner, value)
        elif inner == "string":
            made[name] = value.decode()
        elif inner == "bytes":
            made[name] = value if kind == "EmulationRequest" else msgspec.Raw(value)
        elif inner.startswith("repeated "):
            made.setdefault(name, []).append(twin_message(inner.removeprefix("repeated "), value))
        elif inner.startswith("map"):
            made.setdefault(name, {}).update([twin_entry(inner[len("map<string, ") : -1], value)])
        elif name in made:
            raise ValueError("twice")
        else:
            made[name] = twin_message(inner, value)
    return getattr(protocol, kind)(**made)


def twin_entry(kind: str, data: bytes) -> tuple[str, Any]:
    key, item, is_there = "", b"", False
    for number, wire_type, value in twin_fields(data):
        if number in {1, 2} and wire_type != 2:
            raise ValueError("wrong wire type")
        if number == 1:
            key = value.decode()
        elif number == 2:
            if kind == "string":
                value.decode()
            else:
                twin_message(kind, value)
                if is_there:
                    raise ValueError("twice")
            item, is_there = value, True
    return key, item.decode() if kind == "string" else twin_message(kind, item)


def twin_frame(frame: bytes) -> list[Command]:
    commands = []
    while frame:
        body, frame = twin_piece(frame)
        commands.append(twin_message("Command", body))
    return commands


def outcome(refusal: type[ValueError], decode: Any, *arguments: Any) -> Any:
    """What it returns, or None if it refuses; nothing else may be raised."""
    try:
        return decode(*arguments)
    except refusal:
        return None


TAGS = st.builds(lambda number, wire_type: twin_varint(number << 3 | wire_type), st.integers(0, 15), st.integers(0, 7))
NUMBERS = st.integers(0, 2**64 - 1).map(twin_varint) | st.integers(0, 9).map(twin_varint)
PIECES = st.recursive(
    st.binary(max_size=4) | NUMBERS,
    lambda inner: st.lists(TAGS | NUMBERS | inner.map(framed) | st.binary(max_size=2), max_size=4).map(b"".join),
    max_leaves=6,
)
ODD = st.lists(PIECES.map(framed) | PIECES, max_size=3).map(b"".join)
REQUESTS = st.lists(st.builds(lambda tag, body: tag + framed(body), TAGS, PIECES), max_size=4).map(b"".join).map(framed)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Commands as they should be, then bytes of them changed, removed, repeated or added."""
    frame = bytearray(b"".join(framed(protobuf.encode(command)) for command in draw(st.lists(structs(Command)))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(frame)))
        frame[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | NUMBERS)
    return bytes(frame)


@settings(max_examples=200)
@given(frame=st.binary(max_size=40) | ODD | REQUESTS | damaged())
def test_any_frame_is_read_or_refused_like_a_dumb_twin_does(frame: bytes):
    """The twin reads by the text of the schema; nothing but `BadFrame` is ever raised."""
    assert outcome(BadFrame, protobuf.decode_frame, frame) == outcome(ValueError, twin_frame, frame)


@given(data=st.binary(max_size=20) | PIECES)
@example(b"\x0a")
@example(b"\x0a\x01\xff")
def test_any_emulation_request_is_read_or_refused_like_a_dumb_twin_does(data: bytes):
    """The one message that has no length before it."""
    expected = outcome(ValueError, twin_message, "EmulationRequest", data)
    assert outcome(BadFrame, protobuf.decode, EmulationRequest, data) == expected


def test_every_prefix_of_a_frame_is_refused_but_between_its_messages():
    """Wherever a frame is cut: in a length, a tag, a number, a text."""
    commands = [
        Command(300, connect=ConnectRequest("t" * 200, {"c": Position(recover=True, offset=2**40)}, flag=-1)),
        Command(2, history=HistoryRequest("c", -1)),
    ]
    messages = [framed(protobuf.encode(command)) for command in commands]
    frame = b"".join(messages)
    read = {cut: outcome(BadFrame, protobuf.decode_frame, frame[:cut]) for cut in range(len(frame) + 1)}
    assert {cut: got for cut, got in read.items() if got is not None} == {
        0: [],
        len(messages[0]): commands[:1],
        len(frame): commands,
    }


def field(number: int, wire_type: int, value: bytes) -> bytes:
    return twin_varint(number << 3 | wire_type) + value


def in_request(name: str, body: bytes) -> bytes:
    """A frame of one command with the request in it."""
    return framed(field(protobuf.NUMBERS[Command][name], 2, framed(body)))


ALL_ONES = b"\xff" * 9 + b"\x01"
UNKNOWN = {
    "a varint": field(99, 0, ALL_ONES),
    "64 bits": field(99, 1, bytes(8)),
    "a piece": field(99, 2, framed(b"\xff")),
    "32 bits": field(99, 5, bytes(4)),
    "the largest number": field(2**29 - 1, 0, b"\x00"),
    "a filter on tags": field(13, 2, framed(b"\x0a\x01x")),
}


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_unknown_fields_are_skipped(unknown: str):
    """Before and behind the known ones; also the features that are declined."""
    request = UNKNOWN[unknown] + field(1, 2, framed(b"c")) + UNKNOWN[unknown]
    (command,) = protobuf.decode_frame(in_request("subscribe", request))
    assert command.subscribe == SubscribeRequest("c")


GOOD = {
    "a truth of two": ("subscribe", field(3, 0, b"\x02"), SubscribeRequest(recover=True)),
    "a long zero": ("subscribe", field(3, 0, b"\x80\x80\x00"), SubscribeRequest()),
    "a long tag": ("unsubscribe", b"\x8a\x00\x01c", ChannelRequest("c")),
    "no limit": ("history", field(7, 0, ALL_ONES), HistoryRequest(limit=-1)),
    "the largest offset": ("subscribe", field(7, 0, b"\xff" * 8 + b"\x7f"), SubscribeRequest(offset=2**63 - 1)),
    "the last of two values": ("unsubscribe", field(1, 2, b"\x01a") + field(1, 2, b"\x01b"), ChannelRequest("b")),
    "an entry without a key": (
        "connect",
        field(3, 2, framed(b"\x12\x02\x18\x01")),
        ConnectRequest(subs={"": Position(recover=True)}),
    ),
    "an entry without a value": ("connect", field(3, 2, framed(b"\x0a\x01c")), ConnectRequest(subs={"c": Position()})),
    "the last of two entries": (
        "connect",
        field(6, 2, framed(b"\x0a\x01k\x12\x01a")) + field(6, 2, framed(b"\x0a\x01k\x12\x01b")),
        ConnectRequest(headers={"k": "b"}),
    ),
    "data that is no JSON": ("publish", field(2, 2, b"\x02\xff\x00"), PublishRequest("", msgspec.Raw(b"\xff\x00"))),
    "nothing": ("ping", b"", Empty()),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_the_specification_allows_is_read(case: str):
    """The stock runtime says the same."""
    name, body, expected = GOOD[case]
    frame = in_request(name, body)
    (command,) = protobuf.decode_frame(frame)
    assert getattr(command, name) == expected
    theirs = sdk.Command.FromString(frame[1:])
    if hasattr(expected, "data") and not getattr(theirs, name).data:
        getattr(theirs, name).data = b"null"
    assert as_sdk(command, sdk.Command()) == theirs


BAD = {
    "a length without its message": b"\x01",
    "a length beyond the frame": b"\x05\x08\x01",
    "a length that does not end": b"\x80",
    "a length of more than 64 bits": b"\xff" * 9 + b"\x02",
    "a length of eleven bytes": b"\x80" * 10 + b"\x00",
    "the largest length": ALL_ONES,
    "field number zero": framed(b"\x00\x00"),
    "a field number of 30 bits": framed(field(2**29, 0, b"\x00")),
    "the start of a group": framed(field(99, 3, field(99, 4, b""))),
    "a wire type that is none": framed(field(99, 6, b"")),
    "an id in eight bytes": framed(field(1, 1, bytes(8))),
    "an id of 33 bits": framed(field(1, 0, twin_varint(2**32))),
    "a negative id": framed(field(1, 0, ALL_ONES)),
    "an id of 65 bits": framed(field(1, 0, b"\xff" * 9 + b"\x02")),
    "a truth of 65 bits": in_request("subscribe", field(3, 0, b"\xff" * 9 + b"\x02")),
    "a number of eleven bytes": framed(field(99, 0, b"\x80" * 10 + b"\x00")),
    "a request as a number": framed(field(4, 0, b"\x00")),
    "a request that comes twice": framed(field(11, 2, b"\x00") * 2),
    "an offset of 64 bits": in_request("subscribe", field(7, 0, twin_varint(2**63))),
    "a limit of 33 bits": in_request("history", field(7, 0, twin_varint(2**31))),
    "a limit below 32 bits": in_request("history", field(7, 0, twin_varint(2**64 - 2**31 - 1))),
    "text that is not UTF-8": in_request("unsubscribe", field(1, 2, b"\x01\xff")),
    "text with a surrogate": in_request("unsubscribe", field(1, 2, b"\x03\xed\xa0\x80")),
    "a key that is not UTF-8": in_request("connect", field(6, 2, framed(b"\x0a\x01\xff"))),
    "a number that ends in the next message": framed(field(11, 2, b"\x02\x98\x86")) + b"\x00",
    "a piece that ends in the next message": framed(field(6, 2, b"\x02\x0a\x01")) + framed(b"\x08\x01"),
    "32 bits that end in the next message": framed(field(99, 5, b"\x00")) + framed(b"\x08\x01"),
    "64 bits that end beyond the frame": framed(field(99, 1, b"\x00")),
    "a position that comes twice": in_request("connect", field(3, 2, framed(b"\x12\x00\x12\x00"))),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_client_sends_is_refused(case: str):
    """Also where the stock runtime would make something of it."""
    with pytest.raises(BadFrame, match=r"\w"):
        protobuf.decode_frame(BAD[case])
    assert outcome(ValueError, twin_frame, BAD[case]) is None
