"""The client protocol: which request a command is, what is sent of a value, and the codes of closes and errors."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core import protocol
from access.core.protocol import (
    PUSH_NAMES,
    ClientError,
    Close,
    Command,
    Connect,
    ConnectResult,
    Publication,
    Push,
    ReplyError,
    Result,
    SubscribeFlag,
    SubscribeResult,
    Unsubscribe,
    Unsubscribed,
    code_number,
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

# ---------------------------------------------------------------- commands

ORDER = [
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "presence_stats",
    "history",
    "ping",
    "send",
    "rpc",
    "refresh",
    "sub_refresh",
]
REQUEST = {field.name: field.type.__args__[0] for field in msgspec.structs.fields(Command) if field.name != "id"}


def test_a_command_has_the_requests_of_the_protocol():
    """In the order of its schema."""
    assert list(REQUEST) == ORDER


@given(names=st.sets(st.sampled_from(ORDER)), command_id=st.integers(0, 9))
def test_of_several_requests_the_first_is_meant(names: set[str], command_id: int):
    """By the order of the schema; a command without any is a pong."""
    command = Command(command_id, **{name: REQUEST[name]() for name in names})
    assert command.kind() == min(names, key=ORDER.index, default=None)


@pytest.mark.parametrize("name", ORDER)
def test_a_request_without_anything_in_it_is_one(name: str):
    """Everything in it has a default, and data is null, as in JSON."""
    request = REQUEST[name]()
    assert getattr(request, "data", msgspec.Raw(b"null")) == msgspec.Raw(b"null")


# ---------------------------------------------------------------- results and pushes

STRUCTS = [
    struct
    for struct in vars(protocol).values()
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct) and struct.__module__ == protocol.__name__
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_no_value_of_the_protocol_changes(struct: type[msgspec.Struct]):
    """One publication is on its way to many clients at once."""
    assert struct.__struct_config__.frozen


@pytest.mark.parametrize("struct", Push.__args__ + Result.__args__, ids=lambda struct: struct.__name__)
def test_defaults_are_not_sent(struct: type[msgspec.Struct]):
    """As the protocol's own servers do it: what has a default is left out of JSON."""
    optional = [field for field in msgspec.structs.fields(struct) if not field.required]
    assert struct.__struct_config__.omit_defaults or not optional


def test_what_is_sent_is_what_is_not_default():
    """Down to the entries."""
    started = SubscribeResult(epoch="e", publications=[Publication(msgspec.Raw(b"1"), 3)])
    result = ConnectResult("s", "v", 25, pong=False, session="s", node="n", subs={"c": started})
    assert msgspec.json.encode(result) == (
        b'{"client":"s","version":"v","ping":25,"pong":false,"session":"s","node":"n",'
        b'"subs":{"c":{"epoch":"e","publications":[{"data":1,"offset":3}]}}}'
    )


def test_every_push_has_its_name():
    """Names differ; a `Connect` is no `ConnectResult`, though it has the same fields."""
    assert set(PUSH_NAMES) == set(Push.__args__)
    assert len(set(PUSH_NAMES.values())) == len(PUSH_NAMES)
    assert Connect.__struct_fields__ == ConnectResult.__struct_fields__
    assert ConnectResult not in PUSH_NAMES


# ---------------------------------------------------------------- codes of closes and of unsubscribing


@pytest.mark.parametrize("close", Close)
def test_a_close_code_is_one_that_sdks_understand(close: Close):
    """3000 to 3499 make them come back, 3500 to 3999 make them stop; the reason fits into the frame."""
    assert 3000 <= close.code <= 3999
    assert 0 < len(close.reason.encode()) <= 123


def test_close_codes_are_the_protocols():
    """None of them twice, but that an eviction is told as a forced end with a reason of its own."""
    codes = [close.code for close in Close if close is not Close.EVICTED]
    assert codes == sorted(set(codes))
    assert codes == [3000, 3001, 3004, 3005, 3006, *range(3008, 3014), *range(3500, 3510)]
    assert Close.EVICTED.code == Close.FORCE_DISCONNECT.code
    assert Close.EVICTED.reason != Close.FORCE_DISCONNECT.reason


def test_what_passes_by_itself_makes_an_sdk_come_back():
    """A drain, a slow reader, a lost position: the same client is welcome elsewhere, or later."""
    passing = [Close.SHUTDOWN, Close.SLOW, Close.INSUFFICIENT_STATE, Close.NO_PONG, Close.FORCE_RECONNECT]
    assert all(close.code < 3500 for close in passing)


def test_a_client_that_lost_its_place_subscribes_again():
    """From 2500 on an SDK does so by itself; whom the server took out stays out."""
    assert {reason for reason in Unsubscribed if reason.wire.code >= 2500} == {
        Unsubscribed.INSUFFICIENT_STATE,
        Unsubscribed.EXPIRED,
    }
    assert Unsubscribed.BY_SERVER.wire == Unsubscribe(2000, "server unsubscribe")


def test_a_client_may_refuse_to_start_without_what_it_missed():
    """By a bit of its flags."""
    assert SubscribeFlag.REJECT_UNRECOVERED == 1 << 1


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
    """With its number, its message and whether an SDK tries again."""
    assert msgspec.structs.astuple(known.wire) == known.value


def test_error_numbers_are_the_protocols():
    """100 to 112, none of them twice, and only two of them pass by themselves."""
    assert [known.wire.code for known in ClientError] == list(range(100, 113))
    temporary = {known for known in ClientError if known.wire.temporary}
    assert temporary == {ClientError.INTERNAL, ClientError.TOO_MANY_REQUESTS}


def test_an_expired_connection_is_an_expired_token_to_clients():
    """Both are mended by another token."""
    assert code_number(ClientError.EXPIRED.wire.code) == Code.TOKEN_EXPIRED.number


def test_codes_above_a_thousand_are_ours():
    """Also those of errors that a client need not know."""
    assert code_number(error_of(ConfigError(["a"])).code) == Code.CONFIG_INVALID.number
    assert error_of(AuthError()).code == 101
