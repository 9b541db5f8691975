"""The opening of a WebSocket: heads that are and are not HTTP, upgrades that are and are not right, both sides."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.core.deflate import DeflateTerms
from access.core.handshake import (
    Accepted,
    BadHead,
    ClientAccepted,
    ClientRefused,
    Refused,
    RequestHead,
    accept,
    check_response,
    encode_request,
    encode_response,
    is_upgrade,
    parse_head,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ANSWER_TO_KEY = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

RFC_REQUEST = (
    "GET /chat HTTP/1.1\r\n"
    "Host: server.example.com\r\n"
    "Upgrade: websocket\r\n"
    "Connection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\n"
    "Origin: http://example.com\r\n"
    "Sec-WebSocket-Protocol: chat, superchat\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    "\r\n"
).encode()
"""The request of RFC 6455 (1.2)."""


def parsed(data: bytes) -> RequestHead:
    head = parse_head(data)
    assert isinstance(head, RequestHead)
    return head


def get(target: str, *headers: str, version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"GET {target} {version}", "Host: h", *headers, "", ""]).encode("latin-1")


def status(data: bytes) -> int | None:
    head = parse_head(data)
    return head.status if isinstance(head, BadHead) else None


# ---------------------------------------------------------------- heads


def test_the_request_of_the_rfc_is_parsed():
    """Names become lower case, values stay."""
    assert parsed(RFC_REQUEST + b"first frame") == RequestHead(
        method="GET",
        target="/chat",
        path="/chat",
        query={},
        headers={
            "host": "server.example.com",
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-key": KEY,
            "origin": "http://example.com",
            "sec-websocket-protocol": "chat, superchat",
            "sec-websocket-version": "13",
        },
        minor_version=1,
        length=len(RFC_REQUEST),
    )


def test_a_head_is_incomplete_until_its_empty_line_is_there():
    """Every beginning of it, and what follows does not matter."""
    for end in range(len(RFC_REQUEST)):
        assert parse_head(RFC_REQUEST[:end]) is None
    head = parsed(RFC_REQUEST)
    assert parse_head(RFC_REQUEST + b"\0\n\xff") == head


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/a/b?x=1&y=2", "/a/b", {"x": "1", "y": "2"}),
        ("/a?", "/a", {}),
        ("/a?x&y=", "/a", {"x": "", "y": ""}),
        ("/a?x=1&x=2", "/a", {"x": "2"}),
        ("/a%20b?x=%C3%A9+%26&z=%FF", "/a%20b", {"x": "é &", "z": "\N{REPLACEMENT CHARACTER}"}),
        ("/a?b?c=d?e", "/a", {"b?c": "d?e"}),
        ("//a", "//a", {}),
        ("/http://a/b", "/http://a/b", {}),
        ("http://h:80/a?x=1", "/a", {"x": "1"}),
        ("wss://h", "/", {}),
        ("ws://h?x=1", "/", {"x": "1"}),
        ("*", "*", {}),
        ("h:443", "h:443", {}),
    ],
)
def test_a_target_is_a_path_and_a_query(target: str, path: str, query: dict[str, str]):
    """In each form that HTTP has for it; the target itself is kept."""
    head = parsed(get(target))
    assert (head.target, head.path, head.query) == (target, path, query)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("X:a", "x", "a"),
        ("x-Y: \t a b \t ", "x-y", "a b"),
        ("X:", "x", ""),
        ("X: a:b", "x", "a:b"),
        ("X: \xe9\xff", "x", "\xe9\xff"),
        ("X: a\tb", "x", "a\tb"),
        ("!#$%&'*+-.^_`|~1aZ: v", "!#$%&'*+-.^_`|~1az", "v"),
        ("X: a\r\nx: b\r\nX:", "x", "a, b, "),
    ],
)
def test_a_header_has_a_name_and_a_value(line: str, name: str, value: str):
    """White space around the value is none of it, and repeated ones are one list."""
    assert parsed(get("/", line)).headers == {"host": "h", name: value}


def test_an_empty_line_before_a_request_is_ignored():
    """One: that is what RFC 9112 (2.2) is lenient about."""
    head = parsed(RFC_REQUEST)
    assert parse_head(b"\r\n" + RFC_REQUEST) == head._replace(length=head.length + 2)
    assert parse_head(b"\r") is parse_head(b"\r\n") is None
    assert status(b"\r\n\r\n" + RFC_REQUEST) == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\tfolded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\t: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX\xe9: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX(: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x0bb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x7fb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
        b"GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / http/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.10\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1\r\nHost: h\r\n\r\n",
        b"GET /\r\nHost: h\r\n\r\n",
        b"GET HTTP/1.1\r\nHost: h\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02",
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(data: bytes):
    """Also malformed lines of any other kind, and TLS on a port without."""
    assert status(data) == 400


@pytest.mark.parametrize("version", ["HTTP/0.9", "HTTP/2.0", "HTTP/3.1"])
def test_another_version_of_http_is_refused(version: str):
    """505 says why."""
    assert status(get("/", version=version)) == 505


def test_a_request_of_http_1_0_need_not_name_its_host():
    """RFC 9112 (3.2) asks for it from 1.1 on. An upgrade is not for such a client."""
    head = parsed(b"GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n")
    assert head.minor_version == 0
    assert not is_upgrade(head)


def test_a_head_is_bounded():
    """Up to and with its last byte; the first line over it is another status than all of it."""
    size = len(RFC_REQUEST)
    assert parse_head(RFC_REQUEST, bytes_max=size) == parsed(RFC_REQUEST)
    for data in (RFC_REQUEST, RFC_REQUEST[:-1], RFC_REQUEST + b"more"):
        assert parse_head(data, bytes_max=size - 1) == BadHead(431, "the headers are too long")
    assert parse_head(RFC_REQUEST[:10], bytes_max=10) == BadHead(414, "the first line is too long")
    assert parse_head(RFC_REQUEST[:9], bytes_max=10) is None
    assert status(get("/", "X: " + "y" * 8192)) == 431
    assert status(get("/" + "y" * 8192)) == 414


LINES = st.sampled_from(
    ["\r\n", "\n", "\r", " ", ":", "Host", "h", "GET", "/", "HTTP/1.1", "\0", "é", "X: y\r\n", "\t"]
)


@given(parts=st.lists(LINES, max_size=12), is_started=st.booleans())
def test_a_refusal_never_turns_into_anything_else_with_more_bytes(parts: list[str], *, is_started: bool):
    """Never an exception either, and what was found is found again whatever follows."""
    data = ("GET / HTTP/1.1\r\nHost: h\r\n" * is_started + "".join(parts)).encode()
    decided = None
    for end in range(len(data) + 1):
        head = parse_head(data[:end])
        assert decided is None or head == decided
        decided = head


# ---------------------------------------------------------------- the server's side


def test_the_handshake_of_the_rfc_is_accepted():
    """With its own key, and the first subprotocol that both have."""
    accepted = accept(parsed(RFC_REQUEST), subprotocols=("superchat", "chat"), allows_deflate=True)
    assert accepted == Accepted(
        (
            "HTTP/1.1 101 Switching Protocols\r\n"
            "Upgrade: websocket\r\n"
            "Connection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {ANSWER_TO_KEY}\r\n"
            "Sec-WebSocket-Protocol: chat\r\n"
            "\r\n"
        ).encode(),
        "chat",
        None,
    )


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def upgrade(method: str = "GET", **changes: str | None) -> RequestHead:
    """A right upgrade, with some headers changed, added, or left out (None)."""
    headers = UPGRADE | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return parsed("\r\n".join([f"{method} / HTTP/1.1", "Host: h", *lines, "", ""]).encode())


def accepted(head: RequestHead, *, allows_deflate: bool = False, keeps_context: bool = False) -> Accepted:
    result = accept(head, subprotocols=("json", "protobuf"), allows_deflate=allows_deflate, keeps_context=keeps_context)
    assert isinstance(result, Accepted)
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "UPGRADE"},
        {"Content-Length": "0"},
        {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
        {"Sec-WebSocket-Extensions": "x-unknown; a=b"},
    ],
)
def test_an_upgrade_may_be_written_in_many_ways(changes: dict[str, str]):
    """Tokens have no case, lists may have more."""
    head = upgrade(**changes)
    assert is_upgrade(head)
    assert accepted(head)[1:] == (None, None)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (upgrade("POST"), 405),
        (upgrade(Upgrade=None), 426),
        (upgrade(Upgrade="h2c"), 426),
        (upgrade(Upgrade="websocketx"), 426),
        (upgrade(Sec_WebSocket_Version=None), 426),
        (upgrade(Sec_WebSocket_Version="8"), 426),
        (upgrade(Sec_WebSocket_Version="13, 8"), 426),
        (upgrade(Connection=None), 400),
        (upgrade(Connection="close"), 400),
        (upgrade(Content_Length="5"), 400),
        (upgrade(Content_Length="00"), 400),
        (upgrade(Transfer_Encoding="chunked"), 400),
        (upgrade(Sec_WebSocket_Key=None), 400),
        (upgrade(Sec_WebSocket_Key=""), 400),
        (upgrade(Sec_WebSocket_Key=KEY[1:]), 400),
        (upgrade(Sec_WebSocket_Key=KEY.replace("=", "A")), 400),
        (upgrade(Sec_WebSocket_Key=f"{KEY}, {KEY}"), 400),
        (upgrade(Sec_WebSocket_Extensions="a;;b"), 400),
    ],
)
def test_an_upgrade_that_is_not_right_is_refused(head: RequestHead, expected: int):
    """With a sentence, and the headers that the status requires."""
    refused = accept(head, subprotocols=(), allows_deflate=True)
    assert isinstance(refused, Refused)
    assert refused.status == expected
    assert refused.message
    names = dict(refused.headers)
    assert (names.get("Allow") == "GET") == (expected == 405)
    assert (names.get("Sec-WebSocket-Version") == "13") == (names.get("Upgrade") == "websocket") == (expected == 426)
    assert encode_response(refused.status, headers=refused.headers).startswith(b"HTTP/1.1 %d " % expected)


@pytest.mark.parametrize("size", range(4))
def test_the_client_s_order_of_subprotocols_decides(size: int):
    """All lists of up to three; none in common is no refusal."""
    for asked in itertools.product(("json", "protobuf", "xml"), repeat=size):
        head = upgrade(Sec_WebSocket_Protocol=",".join(asked) or None)
        result = accepted(head)
        known = [name for name in asked if name != "xml"]
        assert result.subprotocol == (known[0] if known else None)
        assert (b"Sec-WebSocket-Protocol" in result.response) == bool(known)


def test_compression_is_agreed_on_if_it_is_asked_for_and_allowed():
    """The answer says what was agreed; the operator may prefer small messages to small connections."""
    asking = upgrade(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
    assert accepted(asking).deflate is None
    assert accepted(upgrade(), allows_deflate=True).deflate is None
    forgetting = accepted(asking, allows_deflate=True)
    assert forgetting.deflate == DeflateTerms()
    assert f"\r\nSec-WebSocket-Extensions: {DEFLATE}\r\n".encode() in forgetting.response
    keeping = accepted(asking, allows_deflate=True, keeps_context=True)
    assert keeping.deflate == DeflateTerms(False, False)
    assert b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n" in keeping.response


def test_a_plain_response_has_a_length_and_closes():
    """With and without a body."""
    assert encode_response(503, headers=[("Retry-After", "1")], body="später".encode()) == (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\nConnection: close\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nRetry-After: 1\r\n\r\nspäter".encode()
    )
    assert encode_response(400) == b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\n", "a\r", "a\0"])
def test_to_write_a_line_end_into_a_header_is_a_bug(value: str):
    """It would be another header, or another response."""
    with pytest.raises(AssertionError):
        encode_response(400, headers=[("X", value)])
    with pytest.raises(AssertionError):
        encode_request(host=value, target="/", key=KEY)


# ---------------------------------------------------------------- the client's side


def test_a_request_asks_for_what_it_is_told_to():
    """The least, and everything."""
    least = parsed(encode_request(host="h:1", target="/a?b=c", key=KEY))
    assert (least.method, least.target) == ("GET", "/a?b=c")
    assert least.headers == {
        "host": "h:1",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": KEY,
        "sec-websocket-version": "13",
    }
    most = parsed(
        encode_request(
            host="h", target="/", key=KEY, subprotocols=("a", "b"), headers=[("Origin", "http://o")], deflate=True
        )
    )
    assert most.headers == least.headers | {
        "host": "h",
        "sec-websocket-protocol": "a, b",
        "sec-websocket-extensions": DEFLATE,
        "origin": "http://o",
    }


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("allows", [False, True])
@pytest.mark.parametrize("subprotocols", [(), ("protobuf",), ("xml",), ("xml", "json")])
def test_client_and_server_agree(subprotocols: tuple[str, ...], *, asks: bool, allows: bool):
    """Both come to the same subprotocol and terms, whatever each wanted; frames may follow at once."""
    request = encode_request(host="h", target="/", key=KEY, subprotocols=subprotocols, deflate=asks)
    server = accepted(parsed(request), allows_deflate=allows)
    for end in range(len(server.response)):
        assert check_response(server.response[:end], key=KEY, subprotocols=subprotocols, deflate=asks) is None
    client = check_response(server.response + b"\x81\x00", key=KEY, subprotocols=subprotocols, deflate=asks)
    assert client == ClientAccepted(len(server.response), server.subprotocol, server.deflate)
    assert (server.deflate is not None) == (asks and allows)


def answer(first_line: str = "HTTP/1.1 101 Switching Protocols", **changes: str | None) -> bytes:
    """A right answer, with some headers changed, added, or left out (None)."""
    headers: dict[str, str | None] = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": ANSWER_TO_KEY,
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([first_line, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "data",
    [
        answer(Upgrade="h2c"),
        answer(Upgrade=None),
        answer(Connection="close"),
        answer(Connection=None),
        answer(Sec_WebSocket_Accept=None),
        answer(Sec_WebSocket_Accept=ANSWER_TO_KEY.lower()),
        answer(Sec_WebSocket_Protocol="b"),
        answer(Sec_WebSocket_Protocol="a, a"),
        answer(Sec_WebSocket_Extensions="x-other"),
        answer(Sec_WebSocket_Extensions=";"),
        answer(Sec_WebSocket_Extensions="permessage-deflate"),
        answer(Sec_WebSocket_Extensions=f"{DEFLATE}, {DEFLATE}"),
        answer("HTTP/2.0 101 Switching Protocols"),
        answer("HTTP/1.1 1O1 Switching Protocols"),
        answer("GET / HTTP/1.1"),
        answer().replace(b"Upgrade: ", b"Upgrade : "),
        answer().replace(b"\r\n", b"\n"),
        answer(X="x" * 8192),
    ],
)
def test_a_client_hangs_up_on_an_answer_that_is_none(data: bytes):
    """Malformed, for another key, or with what was not asked for."""
    bad = check_response(data, key=KEY, subprotocols=("a",), deflate=True)
    assert isinstance(bad, BadHead)
    assert bad.status == 502


def test_a_client_that_did_not_ask_for_compression_does_not_take_it():
    """The same answer is right for one that did."""
    data = answer("HTTP/1.1 101", Sec_WebSocket_Extensions=DEFLATE, Sec_WebSocket_Protocol="a")
    assert isinstance(check_response(data, key=KEY, subprotocols=("a",)), BadHead)
    expected = ClientAccepted(len(data), "a", DeflateTerms())
    assert check_response(data, key=KEY, subprotocols=("a",), deflate=True) == expected


@pytest.mark.parametrize(("code", "reason"), [(503, "Service Unavailable"), (401, "Unauthorized"), (200, "OK")])
def test_a_client_is_told_why_it_was_refused(code: int, reason: str):
    """Status and headers, and where the body begins."""
    data = encode_response(code, headers=[("Retry-After", "3")], body=b"later")
    refused = check_response(data, key=KEY)
    assert isinstance(refused, ClientRefused)
    assert (refused.status, refused.reason) == (code, reason)
    assert refused.headers["retry-after"] == "3"
    assert data[refused.length :] == b"later"


def test_a_status_needs_no_reason():
    """RFC 9112 (4) lets a server leave it out, with or without the space before it."""
    for line in ("HTTP/1.0 404", "HTTP/1.1 404 "):
        refused = check_response(f"{line}\r\n\r\n".encode(), key=KEY)
        assert refused == ClientRefused(404, "", {}, len(line) + 4)
