"""The quick way's heads: a table of what is taken and what is not, and the HTTP server's own parser as the twin."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from yarl import URL

from scheduler.core.access_head import HEAD_BYTES_MAX, Head, Unread, parse_head, parse_query

LINE = b"GET /v1/access?device=phone HTTP/1.1\r\n"
HOST = b"Host: s\r\n"
PLAIN = LINE + HOST + b"\r\n"


def with_lines(*lines: bytes) -> bytes:
    return LINE + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


class Twin:
    """What aiohttp reads. One loop serves all of them, and never runs."""

    loop = asyncio.new_event_loop()
    loop.close()

    def __init__(self, data: bytes) -> None:
        parser = HttpRequestParser(BaseProtocol(self.loop, None), self.loop, 65_536)  # type: ignore[arg-type]
        self.messages: list[Any] = []
        self.is_error = False
        try:
            self.messages, _, _ = parser.feed_data(data)  # type: ignore[assignment]
        except HttpProcessingError:
            self.is_error = True


def check(data: bytes) -> Head | Unread:
    """Parse, and compare: whatever is read is what the twin reads."""
    head = parse_head(data)
    if isinstance(head, Head):
        ((message, payload),) = Twin(data[: head.end]).messages
        assert message.method == "GET"
        assert message.url.raw_path == "/v1/access"
        assert message.url.raw_query_string == head.query
        assert message.url.raw_fragment == ""
        assert parse_query(head.query) == list(message.url.query.items())
        assert message.should_close == head.is_last
        assert not any((message.upgrade, message.chunked, message.compression))
        assert payload.is_eof()
        assert head.headers == {name.lower(): ",".join(message.headers.getall(name)) for name in message.headers}
        assert message.headers.get("Authorization") == head.headers.get("authorization")
    return head


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize(
    ("data", "query", "headers", "end"),
    [
        (PLAIN, "device=phone", {}, "goes on"),
        (b"GET /v1/access HTTP/1.1\r\nHost:\r\n\r\n", "", {"host": ""}, "goes on"),
        (b"GET /v1/access? HTTP/1.1\r\nHost: s\r\n\r\n", "", {}, "goes on"),
        (b"GET /v1/access?a=/?:@%41+;,~ HTTP/1.1\r\nhOST:s\r\n\r\n", "a=/?:@%41+;,~", {}, "goes on"),
        (with_lines(b"Authorization:\t Bearer x y \t"), "device=phone", {"authorization": "Bearer x y"}, "goes on"),
        (with_lines(b"Connection: Close"), "device=phone", {"connection": "Close"}, "ends"),
        (with_lines(b"Connection: keep-alive"), "device=phone", {"connection": "keep-alive"}, "goes on"),
        (with_lines(b"Via: 1", b"via: 2"), "device=phone", {"via": "1,2"}, "goes on"),
        (with_lines(b"!#$%&'*+-.^_`|~: |~!"), "device=phone", {"!#$%&'*+-.^_`|~": "|~!"}, "goes on"),
        (with_lines(*[b"A:"] * 99), "device=phone", {"a": "," * 98}, "goes on"),
    ],
)
def test_a_plain_request_is_read(data: bytes, query: str, headers: dict[str, str], end: str):
    """As the HTTP server would read it, up to where the next one begins."""
    expected = Head(query, {"host": "s"} | headers, end == "ends", len(data))
    assert check(data) == expected
    assert parse_head(data + PLAIN) == expected
    assert parse_head(PLAIN + data, len(PLAIN)) == replace(expected, end=len(PLAIN) + len(data))


def test_a_head_is_taken_up_to_its_greatest_length():
    """Whatever is longer in all might have a line that is too long."""
    filler = b"A: " + b"a" * (HEAD_BYTES_MAX - len(PLAIN) - 5)
    assert len(with_lines(filler)) == HEAD_BYTES_MAX
    assert isinstance(check(with_lines(filler)), Head)
    assert parse_head(with_lines(filler + b"a")) is Unread.FOREIGN
    assert parse_head(with_lines(filler)[:-1]) is Unread.INCOMPLETE
    assert parse_head(with_lines(filler + b"a")[:-1]) is Unread.FOREIGN


# ---------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    "data",
    [
        b"POST /v1/access HTTP/1.1\r\nHost: s\r\n\r\n",
        b"get /v1/access HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET  /v1/access HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET /v1/%61ccess HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET /v1/access/ HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET /v1/accessory HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET http://s/v1/access HTTP/1.1\r\nHost: s\r\n\r\n",
        b"GET /v1/access HTTP/1.0\r\nHost: s\r\n\r\n",
        b"GET /v1/access HTTP/2.0\r\nHost: s\r\n\r\n",
        b"GET /v1/access\r\n\r\n",
        b"GET /v1/access HTTP/1.1\r\n\r\n",
        b"GET /v1/access?a#b HTTP/1.1\r\nHost: s\r\n\r\n",
        b'GET /v1/access?a="b" HTTP/1.1\r\nHost: s\r\n\r\n',
        b"GET /v1/access?\xc3\xa9 HTTP/1.1\r\nHost: s\r\n\r\n",
        b"\r\n" + PLAIN,
        b"\x16\x03\x01",
        PLAIN.replace(b"\r\n", b"\n"),
        LINE + b"Host: s\n\r\n",
        LINE + b"Host: s\r\r\n\r\n",
        LINE + b" Host: s\r\n\r\n",
        with_lines(b"A: 1", b" folded"),
        with_lines(b"A : 1"),
        with_lines(b"A(): 1"),
        with_lines(b": 1"),
        with_lines(b"A"),
        with_lines(b"A: \x00"),
        with_lines(b"A: \x7f"),
        with_lines(b"A: \x80"),
        with_lines(*[b"A:"] * 100),
        with_lines(b"Host: s"),
        with_lines(b"Authorization: Bearer x", b"authorization: Bearer y"),
        with_lines(b"User-Agent: x", b"User-Agent: x"),
        with_lines(b"Origin: x", b"Origin: x"),
        with_lines(b"Connection: keep-alive", b"Connection: keep-alive"),
        with_lines(b"Connection: keep-alive, close"),
        with_lines(b"Connection: Upgrade", b"Upgrade: websocket"),
        with_lines(b"Upgrade: h2c"),
        with_lines(b"Proxy-Connection: close"),
        with_lines(b"Content-Length: 0"),
        with_lines(b"Content-Length: 1", b"Content-Length: 2"),
        with_lines(b"Transfer-Encoding: chunked"),
        with_lines(b"Content-Encoding: gzip"),
        with_lines(b"Expect: 100-continue"),
        with_lines(b"Sec-WebSocket-Key1: x"),
    ],
)
def test_anything_else_is_left_alone(data: bytes):
    """It is the HTTP server's to answer or to refuse, whatever comes next."""
    assert check(data) is Unread.FOREIGN
    assert parse_head(data + b"x") is Unread.FOREIGN
    assert parse_head(PLAIN + data, len(PLAIN)) is Unread.FOREIGN


@pytest.mark.parametrize("data", [b"", PLAIN, with_lines(b"A: 1"), with_lines(b"Content-Length: 1")])
def test_nothing_is_said_of_a_head_before_its_end(data: bytes):
    """It may come byte by byte."""
    for end in range(len(data)):
        assert parse_head(data[:end]) is Unread.INCOMPLETE


@pytest.mark.parametrize("odd", [b"\x00", b"\n", b"\r ", b"\x80", b"\x7f"])
def test_what_cannot_become_a_head_is_not_waited_for(odd: bytes):
    """Its sender may well wait for an answer, having sent all that it wants to."""
    assert parse_head(LINE + HOST + odd) is Unread.FOREIGN
    assert parse_head(b"GET /v1/acces" + odd) is Unread.FOREIGN
    assert parse_head(b"HEAD /") is Unread.FOREIGN


# ---------------------------------------------------------------- anything

_ODD = st.binary(min_size=1, max_size=3) | st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"#"])
_NAME = st.sampled_from(
    [b"Host", b"authorization", b"Connection", b"X-Forwarded-For", b"Accept", b"Content-Length", b"Upgrade", b"Origin"]
)
_VALUE = st.sampled_from([b"", b"s", b" keep-alive", b"close", b"Bearer x", b"1", b"websocket", b"a, b", b"\tx\t"])
_FIELD = st.tuples(_NAME, _VALUE).map(lambda pair: b"%b:%b\r\n" % pair)
_QUERY = st.lists(st.sampled_from([b"a", b"=", b"&", b"+", b"%", b"%4", b"1", b"%C3%A9", b"%FF", b"%ED%A0%80", b";"]))


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that is right, or nearly."""
    query, fields = b"".join(draw(_QUERY)), b"".join(draw(st.lists(_FIELD, max_size=4)))
    data = b"GET /v1/access?" + query + b" HTTP/1.1\r\n" + draw(st.sampled_from([HOST, b""])) + fields + b"\r\n"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(_ODD) + data[at + draw(st.integers(0, 2)) :]
    return data


@given(data=heads())
@example(data=PLAIN)
def test_what_is_read_is_what_the_http_server_reads(data: bytes):
    """Never more, and nothing else."""
    check(data)


@given(data=heads(), cut=st.integers(0, 300))
def test_more_bytes_never_change_what_was_said(data: bytes, cut: int):
    """A head that is read, or left alone, stays so."""
    before = parse_head(data[:cut])
    if before is not Unread.INCOMPLETE:
        assert parse_head(data) == before


@given(query=_QUERY.map(lambda parts: b"".join(parts).decode()))
def test_queries_are_decoded_as_the_http_server_decodes_them(query: str):
    """Blank values and names too."""
    url = URL.build(path="/", query_string=query, encoded=True)
    assert parse_query(query) == list(url.query.items())
