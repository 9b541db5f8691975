"""Both encodings: every command, batches, junk, replies and pushes, read and written by a stock SDK's own codec."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from centrifuge.codecs import _JsonCodec, _ProtobufCodec
from hypothesis import given, settings
from hypothesis import strategies as st

from access.core.encoding import BadFrame, Encoding, is_json, one_line
from access.core.protocol import (
    EMPTY,
    PUSH_NAMES,
    ChannelRequest,
    ClientInfo,
    Command,
    Connect,
    ConnectRequest,
    ConnectResult,
    Disconnect,
    Empty,
    EmulationRequest,
    HistoryRequest,
    HistoryResult,
    Join,
    Leave,
    Message,
    Position,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    Push,
    Refresh,
    RefreshRequest,
    RefreshResult,
    ReplyError,
    Result,
    RpcRequest,
    RpcResult,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubRefreshResult,
    Subscribe,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)

CODECS = {Encoding.JSON: _JsonCodec, Encoding.PROTOBUF: _ProtobufCodec}
BYTES = {"data", "conn_info", "chan_info"}
LONG = {"offset", "time"}

both = pytest.mark.parametrize("encoding", Encoding, ids=lambda encoding: encoding.value)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def one(frame: str) -> Command:
    (command,) = Encoding.JSON.decode_frame(frame.encode())
    return command


def plain(value: Any, encoding: Encoding, *, name: str = "") -> Any:
    """A value as the SDK's codec hands it out, or wants it: JSON as it is, protobuf by the rules of its JSON mapping.

    Those have bytes in base 64 and integers of 64 bits in quotes, and leave out what is zero.
    """
    is_protobuf = encoding is Encoding.PROTOBUF
    if isinstance(value, msgspec.Raw):
        return base64.b64encode(value).decode() if is_protobuf else json.loads(bytes(value))
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__}
        return {
            name: plain(inner, encoding, name=name)
            for name, inner in fields.items()
            if inner or (not is_protobuf and name in REQUIRED.get(type(value), ()))
        }
    if isinstance(value, dict):
        return {key: plain(inner, encoding) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, encoding) for inner in value]
    return str(value) if is_protobuf and name in LONG else value


REQUIRED = {
    struct: {field.name for field in msgspec.structs.fields(struct) if field.required}
    for struct in (ConnectResult, Connect, ReplyError, RefreshResult, RpcResult)
}

# ---------------------------------------------------------------- commands

REQUESTS: dict[str, Any] = {
    "connect": ConnectRequest(
        "t",
        {"inbox:u": Position(recover=True, epoch="e", offset=7)},
        raw({"a": [1]}),
        name="js",
        version="5",
        headers={"x-a": "b"},
        flag=1,
    ),
    "subscribe": SubscribeRequest(
        "conv:1",
        recover=True,
        epoch="e",
        offset=2**63 - 1,
        flag=3,
        token="t",
        data=raw("d"),
        positioned=True,
        recoverable=True,
        join_leave=True,
    ),
    "unsubscribe": ChannelRequest("conv:1"),
    "publish": PublishRequest("conv:1", raw({"text": "grüße\n"})),
    "presence": ChannelRequest("conv:1"),
    "presence_stats": ChannelRequest("conv:1"),
    "history": HistoryRequest("conv:1", -1, StreamPosition(7, "e"), reverse=True),
    "ping": Empty(),
    "send": SendRequest(raw([])),
    "rpc": RpcRequest("im.send", raw(1.5)),
    "refresh": RefreshRequest("t"),
    "sub_refresh": SubRefreshRequest("conv:1", "t"),
}
COMMANDS = [Command(index, **{name: request}) for index, (name, request) in enumerate(REQUESTS.items(), 1)]


def test_no_request_was_forgotten():
    """One of each."""
    assert ["id", *REQUESTS] == list(Command.__struct_fields__)


@both
def test_a_batch_of_a_stock_sdk_is_its_commands(encoding: Encoding):
    """One of each request, with everything in it, in one frame and in order."""
    sent = CODECS[encoding].encode_commands([plain(command, encoding) for command in COMMANDS])
    frame = sent.encode() if isinstance(sent, str) else sent
    assert encoding.decode_frame(frame) == COMMANDS


@both
def test_an_empty_request_is_there(encoding: Encoding):
    """It has only defaults in it, and a null for data."""
    for name, request in REQUESTS.items():
        sent = CODECS[encoding].encode_commands([{"id": 9, name: {}}])
        (command,) = encoding.decode_frame(sent.encode() if isinstance(sent, str) else sent)
        assert command == Command(9, **{name: type(request)()})
        assert command.kind() == name


@both
def test_a_ping_and_a_pong_are_the_empty_message(encoding: Encoding):
    """A client answers with what it got, alone or among others."""
    assert encoding.decode_frame(encoding.ping) == [Command()]
    assert encoding.decode_frame(encoding.join([encoding.ping] * 3)) == [Command()] * 3
    assert Command().kind() is None
    ping = encoding.ping if encoding is Encoding.PROTOBUF else encoding.ping.decode()
    assert CODECS[encoding].decode_replies(ping) == [{}]


@both
def test_an_empty_frame_has_no_commands(encoding: Encoding):
    """The caller decides what that means."""
    assert encoding.decode_frame(b"") == []


@both
@given(frame=st.binary(max_size=60))
def test_junk_is_commands_or_refused(encoding: Encoding, frame: bytes):
    """No other error ever leaves a decoder."""
    try:
        commands = encoding.decode_frame(frame)
    except BadFrame:
        return
    assert all(isinstance(command, Command) for command in commands)


def test_a_line_is_a_command_in_json():
    """Blank lines and carriage returns are none."""
    frame = b'{"id":1,"rpc":{}}\n\n {"id":2,"rpc":{}}\r\n{}\n \r\n'
    commands = Encoding.JSON.decode_frame(frame)
    assert [(command.id, command.kind()) for command in commands] == [(1, "rpc"), (2, "rpc"), (0, None)]
    assert Encoding.JSON.decode_frame(b"\n \n") == []


@pytest.mark.parametrize("data", ['{"a":[1, 2]}', '"text"', "null", "1.50", "[]", '{"a":\t"ö"}'])
def test_data_is_kept_as_it_came(data: str):
    """To the byte, spaces and all: whoever it is for reads it."""
    call = one(f'{{"id":4,"rpc":{{"method":"im.send","data": {data} }}}}').rpc
    assert call == RpcRequest("im.send", msgspec.Raw(data.encode()))


def test_what_is_not_known_is_ignored():
    """In commands and in requests: a newer SDK may send more, and a null is as good as nothing."""
    assert one('{"id":5,"rpc":null,"unheard_of":{"a":1}}') == Command(5)
    subscribe = '{"id":5,"subscribe":{"channel":"c","delta":"fossil","tf":{"op":"and","nodes":[]},"more":{"a":[1]}}}'
    assert one(subscribe).subscribe == SubscribeRequest("c")


@pytest.mark.parametrize(
    "frame",
    [
        b"not json",
        b"[]",
        b"7",
        b'{"id":1}{"id":2}',
        b'{"id":1,"rpc":{}}\nnot json',
        b'{"id":1,\n"rpc":{}}',
        b'{"id":"1","rpc":{}}',
        b'{"id":-1,"rpc":{}}',
        b'{"id":4294967296,"rpc":{}}',
        b'{"id":1,"rpc":[]}',
        b'{"id":1,"publish":7}',
        b'{"id":1,"connect":{"token":7}}',
        b'{"id":1,"connect":{"subs":{"inbox:u":7}}}',
        b'{"id":1,"connect":{"headers":{"a":1}}}',
        b'{"id":1,"connect":{"subs":{"inbox:u":{"offset":9223372036854775808}}}}',
        b'{"id":1,"subscribe":{"channel":"c","offset":-1}}',
        b'{"id":1,"subscribe":{"channel":"c","offset":1.5}}',
        b'{"id":1,"subscribe":{"channel":"c","offset":9223372036854775808}}',
        b'{"id":1,"subscribe":{"channel":"c","flag":9223372036854775808}}',
        b'{"id":1,"history":{"channel":"c","limit":2147483648}}',
        b'{"id":1,"rpc":{"data":{"a":}}}',
        b'{"id":1,"rpc":{"method":"\\ud800"}}',
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'{"id":1,"rpc":{"method":"\xff"}}',
        b'{"id":1,"rpc":{"data":"\xff"}}',
        b'{"id":1,"rpc":{"data":{"\xc3":1}}}',
        b'{"id":1,"unheard_of":"\xff"}',
        b'{"id":1,"rpc":{"data":"\xed\xa0\x80"}}',
    ],
)
def test_json_that_is_not_commands_is_refused(frame: bytes):
    """Also UTF-8 that is none in data passed on as it came, which would break the frame of whoever it is for."""
    with pytest.raises(BadFrame, match=r"\w"):
        Encoding.JSON.decode_frame(frame)


@pytest.mark.parametrize("name", ["data", "unheard_of"])
def test_json_nested_without_end_is_refused(name: str):
    """It costs a clear error, not the stack."""
    frame = f'{{"id":1,"rpc":{{"{name}":{"[" * 50_000}{"]" * 50_000}}}}}'
    with pytest.raises(BadFrame, match="nested"):
        Encoding.JSON.decode_frame(frame.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["token", "subs", "channel", "offset", "flag", "data", "method", "since", "limit"])
NAMES = st.sampled_from(["id", *REQUESTS])


@settings(max_examples=60)
@given(lines=st.lists(st.dictionaries(NAMES, st.dictionaries(FIELDS, JSON, max_size=2) | JSON, max_size=2), max_size=2))
def test_almost_commands_are_commands_or_refused(lines: list[dict[str, object]]):
    """JSON of the right names and any types; a large number or a NaN is no other case."""
    try:
        commands = Encoding.JSON.decode_frame("\n".join(json.dumps(line) for line in lines).encode())
    except BadFrame:
        return
    assert len(commands) == len(lines)


# ---------------------------------------------------------------- replies and pushes

INFO = ClientInfo("u", "c-1", conn_info=raw({"name": "U"}), chan_info=raw(1))
ENTRIES = [Publication(raw({"n": 1}), 6), Publication(raw("x"), 7, INFO, {"tag": "t"}, 1_700_000_000_000)]
STARTED = SubscribeResult(
    recoverable=True,
    positioned=True,
    epoch="e",
    offset=7,
    was_recovering=True,
    recovered=True,
    publications=ENTRIES,
    data=raw([1]),
    expires=True,
    ttl=60,
)
WELCOME = ConnectResult("s1", "v", 25, pong=True, session="s1", node="access-1")
FULL = {"subs": {"conv:1": STARTED}, "data": raw({}), "expires": True, "ttl": 600, "time": 1_700_000_000_000}
RESULTS: list[tuple[str, Result]] = [
    ("error", ReplyError(100, "internal server error", temporary=True)),
    ("error", ReplyError(103, "permission denied")),
    ("connect", WELCOME),
    ("connect", msgspec.structs.replace(WELCOME, **FULL)),
    ("subscribe", SubscribeResult()),
    ("subscribe", STARTED),
    ("unsubscribe", EMPTY),
    ("publish", EMPTY),
    ("presence", PresenceResult({"c-1": INFO, "c-2": ClientInfo("v", "c-2")})),
    ("presence_stats", PresenceStatsResult(2, 1)),
    ("history", HistoryResult(ENTRIES, "e", 7)),
    ("ping", EMPTY),
    ("rpc", RpcResult(raw(None))),
    ("refresh", RefreshResult("s1", "v", expires=True, ttl=600)),
    ("sub_refresh", SubRefreshResult(expires=True, ttl=600)),
]
PUSHES: list[tuple[str, Push]] = [
    ("conv:1", ENTRIES[0]),
    ("conv:1", ENTRIES[1]),
    ("conv:1", Join(INFO)),
    ("conv:1", Leave(INFO)),
    ("conv:1", Unsubscribe(2500, "insufficient state")),
    ("", Message(raw({"move": {"node": "access-2"}}))),
    ('conv:"ö', Subscribe(recoverable=True, epoch="e", offset=7, positioned=True, data=raw(1))),
    ("", Connect(*msgspec.structs.astuple(msgspec.structs.replace(WELCOME, **FULL)))),
    ("", Disconnect(3001, "shutdown", reconnect=True)),
    ("", Refresh(expires=True, ttl=600)),
]


def test_no_result_and_no_push_was_forgotten():
    """At least one of each."""
    assert {type(result) for _, result in RESULTS} == set(Result.__args__)
    assert {type(push) for _, push in PUSHES} == set(PUSH_NAMES)


@both
def test_a_stock_sdk_reads_replies_and_pushes(encoding: Encoding):
    """All in one frame, each with what it has in it and nothing else."""
    messages = [encoding.encode_reply(number, *reply) for number, reply in enumerate(RESULTS, 1)]
    messages += [encoding.encode_push(*push) for push in PUSHES]
    frame = encoding.join([*messages, encoding.ping])
    expected: list[Any] = [
        {"id": number, kind: plain(result, encoding)} for number, (kind, result) in enumerate(RESULTS, 1)
    ]
    expected += [
        {"push": ({"channel": channel} if channel else {}) | {PUSH_NAMES[type(push)]: plain(push, encoding)}}
        for channel, push in PUSHES
    ]
    read = CODECS[encoding].decode_replies(frame if encoding is Encoding.PROTOBUF else frame.decode())
    assert read == [*expected, {}]


def test_json_has_no_defaults_and_no_spaces():
    """To the byte, once of each form."""
    encode_reply, encode_push = Encoding.JSON.encode_reply, Encoding.JSON.encode_push
    assert encode_reply(2, "rpc", RpcResult(msgspec.Raw(b'{"a": 1}'))) == b'{"id":2,"rpc":{"data":{"a": 1}}}'
    assert encode_reply(3, "unsubscribe", EMPTY) == b'{"id":3,"unsubscribe":{}}'
    assert encode_push("c", Publication(raw(1), 8)) == b'{"push":{"channel":"c","pub":{"data":1,"offset":8}}}'
    assert encode_push("", Message(raw(1))) == b'{"push":{"message":{"data":1}}}'


@given(value=JSON, channel=st.text(max_size=5))
def test_no_json_breaks_its_line(value: object, channel: str):
    """Frames are joined by newlines, so none may be inside, whatever the channel and the data are."""
    data = one_line(json.dumps(value, indent=1).encode())
    assert b"\n" not in Encoding.JSON.encode_reply(1, "rpc", RpcResult(data))
    push = Encoding.JSON.encode_push(channel, Publication(data))
    assert b"\n" not in push
    assert json.loads(push)["push"].get("channel", "") == channel


# ---------------------------------------------------------------- emulation


@both
def test_a_command_comes_beside_a_one_way_transport(encoding: Encoding):
    """As a frame in a request that names the session; in JSON it stands in a string."""
    frame = encoding.join([encoding.ping, encoding.ping])
    if encoding is Encoding.JSON:
        body = json.dumps({"session": "s", "node": "access-1", "data": frame.decode(), "more": 1}).encode()
    else:
        body = b"\x0a\x08access-1\x12\x01s\x1a\x02" + frame
    assert encoding.decode_emulation(body) == EmulationRequest("access-1", "s", frame)


@both
@pytest.mark.parametrize("body", [b"7", b"\x0a\x05x", b'{"node":"\xff"}', b'{"data":{}}', b'{"a":' + b"[" * 50_000])
def test_what_is_no_emulation_request_is_refused(encoding: Encoding, body: bytes):
    """Whatever is wrong with it."""
    with pytest.raises(BadFrame, match=r"\w"):
        encoding.decode_emulation(body)


# ---------------------------------------------------------------- what the application gives


@pytest.mark.parametrize("data", [b"1", b' "a" ', b'{"a":\r\n[1,2]}', b"[]", b"true", '"ö"'.encode(), b"-0.5e3"])
def test_a_json_value_is_told(data: bytes):
    """Whatever white space is around it."""
    assert is_json(data)
    assert json.loads(bytes(one_line(data))) == json.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"nul",
        b"NaN",
        b"01",
        b"1 2",
        b"{}{}",
        b'{"a":1,}',
        b"'a'",
        b'"a',
        b'"\n"',
        b'"\\q"',
        b'"\\ud800"',
        b'"\xff"',
        b'{"\xed\xa0\x80":1}',
        b"\xef\xbb\xbf1",
        b"[" * 50_000 + b"]" * 50_000,
    ],
)
def test_what_is_not_one_json_value_is_told(data: bytes):
    """A client that reads JSON could do nothing with it."""
    assert not is_json(data)


@given(data=st.binary(max_size=8) | st.text(alphabet='{}[]",:0aeE+-. \n\\u', max_size=8).map(str.encode))
def test_json_for_us_is_json_for_python(data: bytes):
    """Whose parser knows three numbers more, and takes half a surrogate pair for a character."""

    def number(name: str) -> None:
        raise ValueError(name)

    try:
        value = json.loads(data.decode(), parse_constant=number)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        assert not is_json(data)
    else:
        assert is_json(data)


@given(value=JSON, indent=st.sampled_from([None, 0, 2]), line=st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_value_on_one_line_is_the_same_value(value: object, indent: int | None, line: str):
    """Breaks inside of strings are escaped, so those that go were white space."""
    written = json.dumps(value, indent=indent).replace("\n", line).encode()
    written_on_one = bytes(one_line(written))
    assert not {b"\n", b"\r"} & {written_on_one[place : place + 1] for place in range(len(written_on_one))}
    assert json.dumps(json.loads(written_on_one)) == json.dumps(json.loads(written))
    assert indent is not None or written_on_one == written
