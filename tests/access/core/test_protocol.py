"""The client protocol: every command, batches, junk, replies and pushes, and the codes of errors both ways."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.protocol import (
    PING_FRAME,
    ChannelRequest,
    ClientError,
    Close,
    Command,
    ConnectRequest,
    ConnectResult,
    Position,
    Publication,
    ReplyError,
    RpcResult,
    SubscribeRequest,
    SubscribeResult,
    code_number,
    decode_frame,
    encode_push,
    encode_reply,
    error_of,
)
from base.errors import (
    AuthError,
    BadRequest,
    Code,
    ConfigError,
    Draining,
    LimitExceeded,
    NotFound,
    Overloaded,
    Retry,
    RoadsteadError,
    TokenExpired,
    TooLarge,
    from_wire,
    retry_of,
)

UNSERVED = ("publish", "presence", "presence_stats", "history", "ping", "send", "refresh", "sub_refresh")


def one(frame: bytes | str) -> Command:
    (command,) = decode_frame(frame)
    return command


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


# ---------------------------------------------------------------- commands


def test_a_connect_carries_its_token_and_the_positions_of_its_subscriptions():
    """What an SDK sends first, and what it sends when it comes back."""
    assert one('{"id":1,"connect":{}}') == Command(1, connect=ConnectRequest())
    again = '{"id":1,"connect":{"token":"t","subs":{"inbox:u":{"recover":true,"epoch":"e","offset":7}},"name":"js"}}'
    assert one(again).connect == ConnectRequest("t", {"inbox:u": Position(recover=True, epoch="e", offset=7)})


def test_a_subscribe_may_come_with_a_position():
    """And with flags."""
    frame = '{"id":2,"subscribe":{"channel":"inbox:u","recover":true,"epoch":"e","offset":7,"flag":2}}'
    assert one(frame).subscribe == SubscribeRequest("inbox:u", recover=True, epoch="e", offset=7, flag=2)


def test_an_unsubscribe_names_its_channel():
    """Nothing else."""
    assert one('{"id":3,"unsubscribe":{"channel":"inbox:u"}}').unsubscribe == ChannelRequest("inbox:u")


@pytest.mark.parametrize("data", ['{"a":[1, 2]}', '"text"', "null", "1.50", "[]"])
def test_a_call_keeps_its_data_as_it_came(data: str):
    """To the byte, spaces and all: whoever serves the method reads it."""
    call = one(f'{{"id":4,"rpc":{{"method":"im.send","data":{data}}}}}').rpc
    assert call is not None
    assert (call.method, bytes(call.data)) == ("im.send", data.encode())


def test_a_call_without_data_has_none():
    """JSON's null."""
    call = one('{"id":4,"rpc":{"method":"im.sync"}}').rpc
    assert call is not None
    assert bytes(call.data) == b"null"


@pytest.mark.parametrize("name", ["connect", "subscribe", "unsubscribe", "rpc", *UNSERVED])
def test_every_request_of_the_protocol_is_known_by_name(name: str):
    """Also those that this server refuses, whatever is in them."""
    assert one(f'{{"id":9,"{name}":{{}}}}').kind() == name
    assert one(f'{{"id":9,"{name}":{{"channel":"c","more":{{"a":[1]}}}}}}').kind() == name


@pytest.mark.parametrize("frame", ["{}", ' {"id":0} ', '{"id":5,"rpc":null}', '{"unheard_of":{}}'])
def test_a_command_without_a_request_has_no_kind(frame: str):
    """The pong is one."""
    assert one(frame).kind() is None


# ---------------------------------------------------------------- frames


def test_a_frame_may_carry_several_commands():
    """Joined by newlines; empty lines are none."""
    frame = '{"id":1,"rpc":{}}\n\n {"id":2,"rpc":{}}\r\n{}\n'
    assert [(command.id, command.kind()) for command in decode_frame(frame)] == [(1, "rpc"), (2, "rpc"), (0, None)]
    assert decode_frame(frame.encode()) == decode_frame(frame)


@pytest.mark.parametrize("frame", ["", "\n", b"", b" \n \n"])
def test_a_frame_without_commands_is_empty(frame: bytes | str):
    """The caller decides what that means."""
    assert decode_frame(frame) == []


@pytest.mark.parametrize(
    "frame",
    [
        "not json",
        "[]",
        "7",
        '{"id":1}{"id":2}',
        '{"id":1,"rpc":{}}\nnot json',
        '{"id":"1","rpc":{}}',
        '{"id":1,"rpc":[]}',
        '{"id":1,"publish":7}',
        '{"id":1,"connect":{"token":7}}',
        '{"id":1,"connect":{"subs":{"inbox:u":7}}}',
        '{"id":1,"subscribe":{"channel":"c","offset":-1}}',
        '{"id":1,"subscribe":{"channel":"c","offset":1.5}}',
        '{"id":1,"rpc":{"data":{"a":}}}',
        '{"id":1,"rpc":{"method":"\\ud800"}}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_made_of_commands_is_refused(frame: bytes | str):
    """With what msgspec says."""
    with pytest.raises(msgspec.MsgspecError):
        decode_frame(frame)


@pytest.mark.parametrize("request_", ['"subscribe":{"offset":%d}', '"connect":{"subs":{"inbox:u":{"offset":%d}}}'])
def test_an_offset_beyond_what_a_store_can_count_is_refused(request_: str):
    """It could not be passed on to the message services."""
    assert one(f'{{"id":1,{request_ % (2**63 - 1)}}}').id == 1
    with pytest.raises(msgspec.ValidationError):
        decode_frame(f'{{"id":1,{request_ % 2**63}}}')


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff",
        b'{"id":1,"rpc":{"method":"\xff"}}',
        b'{"id":1,"rpc":{"data":"\xff"}}',
        b'{"id":1,"rpc":{"data":{"\xc3":1}}}',
        b'{"id":1,"unheard_of":"\xff"}',
        '{"id":1,"rpc":{"data":"\ud800"}}',
    ],
)
def test_a_frame_that_is_not_utf_8_is_refused_wherever_that_is(frame: bytes | str):
    """Data passed on as it came would break the frame of whoever it is for."""
    with pytest.raises(UnicodeError):
        decode_frame(frame)


@pytest.mark.parametrize("name", ["data", "unheard_of"])
def test_data_nested_without_end_is_refused(name: str):
    """It costs a clear error, not the stack."""
    with pytest.raises(msgspec.DecodeError, match="nested"):
        decode_frame(f'{{"id":1,"rpc":{{"{name}":{"[" * 50_000}{"]" * 50_000}}}}}')


@given(frame=st.binary(max_size=60) | st.text(st.characters(), max_size=60))
def test_junk_is_commands_or_refused(frame: bytes | str):
    """No other error ever leaves the decoder."""
    try:
        commands = decode_frame(frame)
    except (msgspec.MsgspecError, UnicodeError):
        return
    assert all(isinstance(command, Command) for command in commands)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["id", "connect", "subscribe", "unsubscribe", "rpc", *UNSERVED])
REQUESTS = st.dictionaries(st.sampled_from(["token", "subs", "channel", "offset", "flag", "data", "method"]), JSON)


@given(lines=st.lists(st.dictionaries(FIELDS, REQUESTS | JSON, max_size=3), max_size=3))
def test_almost_commands_are_commands_or_refused(lines: list[dict[str, object]]):
    """JSON of the right names and any types; a large number or a NaN is no other case."""
    try:
        commands = decode_frame("\n".join(json.dumps(line) for line in lines))
    except (msgspec.MsgspecError, UnicodeError):
        return
    assert len(commands) == len(lines)


# ---------------------------------------------------------------- replies and pushes


def test_a_reply_has_the_id_of_its_command_and_one_result():
    """Defaults are left out, as in the protocol's own servers."""
    result = ConnectResult("s1", "v", 25, pong=True, session="s1", node="access-1")
    assert json.loads(encode_reply(1, "connect", result)) == {
        "id": 1,
        "connect": {"client": "s1", "version": "v", "ping": 25, "pong": True, "session": "s1", "node": "access-1"},
    }
    assert encode_reply(2, "rpc", RpcResult(msgspec.Raw(b'{"a":1}'))) == b'{"id":2,"rpc":{"data":{"a":1}}}'
    assert encode_reply(3, "unsubscribe", {}) == b'{"id":3,"unsubscribe":{}}'
    assert encode_reply(4, "subscribe", SubscribeResult()) == b'{"id":4,"subscribe":{}}'


def test_a_recovered_subscription_brings_what_was_missed():
    """Each publication with its offset, its data as it was stored."""
    entries = [Publication(msgspec.Raw(b'{"n":1}'), 6), Publication(raw("x"), 7)]
    result = SubscribeResult(
        recoverable=True,
        positioned=True,
        epoch="e",
        offset=7,
        was_recovering=True,
        recovered=True,
        publications=entries,
    )
    reply = json.loads(encode_reply(1, "subscribe", result))["subscribe"]
    assert reply["publications"] == [{"data": {"n": 1}, "offset": 6}, {"data": "x", "offset": 7}]
    assert (reply["epoch"], reply["offset"], reply["recovered"]) == ("e", 7, True)


def test_a_push_has_a_channel_and_no_id():
    """One frame for all who are subscribed."""
    frame = encode_push("inbox:u", Publication(raw({"n": 1}), 8))
    assert frame == b'{"push":{"channel":"inbox:u","pub":{"data":{"n":1},"offset":8}}}'


def test_a_ping_is_an_empty_object_both_ways():
    """The client answers with the same."""
    assert one(PING_FRAME).kind() is None


@given(value=JSON, command_id=st.integers(1, 2**32 - 1))
def test_no_reply_breaks_the_line(value: object, command_id: int):
    """Frames are joined by newlines, so none may be inside."""
    assert b"\n" not in encode_reply(command_id, "rpc", RpcResult(raw(value)))


@pytest.mark.parametrize("close", Close)
def test_a_close_code_is_one_that_sdks_understand(close: Close):
    """3000 to 3499 make them come back, 3500 to 3999 make them stop; the reason fits into the frame."""
    assert 3000 <= close.code <= 3999
    assert 0 < len(close.reason.encode()) <= 123


def test_only_a_clients_own_fault_stops_it():
    """What passes by itself makes an SDK come back."""
    stopping = {close for close in Close if close.code >= 3500}
    assert stopping == {Close.INVALID_TOKEN, Close.BAD_REQUEST, Close.STALE, Close.EVICTED}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RoadsteadError("m"), ReplyError(100, "m", temporary=True)),
        (BadRequest("m"), ReplyError(107, "m")),
        (TokenExpired("m"), ReplyError(109, "m")),
        (Overloaded("m"), ReplyError(111, "m", temporary=True)),
        (TooLarge("m"), ReplyError(106, "m")),
        (Draining("m"), ReplyError(1201, "m", temporary=True)),
        (NotFound("m"), ReplyError(1404, "m")),
    ],
)
def test_an_error_has_the_protocols_code_where_there_is_one(error: RoadsteadError, expected: ReplyError):
    """Else a thousand and ours; temporary is what an SDK may try again by itself."""
    assert error_of(error) == expected


def test_an_expired_token_is_not_temporary():
    """An SDK then asks for another token, which is no retry of the same."""
    assert TokenExpired().retry is Retry.REROUTE
    assert not error_of(TokenExpired()).temporary


@pytest.mark.parametrize("code", Code)
def test_every_error_keeps_its_code_over_the_wire_and_back(code: Code):
    """Only `too_large` comes back as `limit_exceeded`, since the protocol has one code for both."""
    error = from_wire(code.number, "m", {})
    back = code_number(error_of(error).code)
    assert back == (Code.LIMIT_EXCEEDED.number if code is Code.TOO_LARGE else error.code.number)
    assert retry_of(back) is error.retry
    assert error_of(error).message == error.message


@pytest.mark.parametrize("number", [102, 105, 108, 112])
def test_a_reply_code_of_the_protocol_alone_is_the_clients_own_doing(number: int):
    """Trying the same again cannot help."""
    assert code_number(number) == Code.BAD_REQUEST.number


@pytest.mark.parametrize("number", [0, 199, 999])
def test_an_unknown_reply_code_is_an_internal_error_to_clients(number: int):
    """They may try again."""
    assert code_number(number) == Code.INTERNAL.number


def test_a_limit_is_named_by_its_more_general_code():
    """106 stands for both limits."""
    assert code_number(error_of(LimitExceeded()).code) == Code.LIMIT_EXCEEDED.number


@pytest.mark.parametrize("known", ClientError)
def test_an_error_of_the_protocol_stands_in_a_reply(known: ClientError):
    """Its defaults left out."""
    number, message, is_temporary = known.value
    reply = json.loads(encode_reply(1, "error", known.wire))
    expected = {"code": number, "message": message} | ({"temporary": True} if is_temporary else {})
    assert reply == {"id": 1, "error": expected}


def test_codes_above_a_thousand_are_ours():
    """Also those of errors that a client need not know."""
    assert code_number(error_of(ConfigError(["a"])).code) == Code.CONFIG_INVALID.number
    assert error_of(AuthError()).code == 101
