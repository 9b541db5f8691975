"""The head of a plain access request, `GET /v1/access`, as the quick way in reads it; and what is not for it.

Decided here: whether the bytes of a connection begin with a request that can be answered at once, and what it says.
A request is either read as a full HTTP server reads it, or left to one unread, bytes and all; it is never refused
here. So what is taken is narrow, well within what RFC 9112 allows:

| part       | taken                                               | left to the HTTP server                        |
|------------|-----------------------------------------------------|------------------------------------------------|
| first line | GET `/v1/access`, with or without a query, HTTP/1.1 | other methods, paths and versions              |
| query      | characters of RFC 3986, section 3.4                 | all others, a fragment                         |
| headers    | 1 to 100; names are tokens, values printable ASCII  | folded lines, controls, NUL, bytes above 0x7e  |
| line ends  | CRLF                                                | a bare LF or CR                                |
| body       | none                                                | what announces one, even if its length is 0    |
| connection | nothing, `keep-alive` or `close`                    | other options, `Upgrade`, `Expect`             |
| repeated   | headers that are lists                              | `Host`, `Authorization` and others like them |
| length     | up to `HEAD_BYTES_MAX`                              | longer ones                                    |

Sources: RFC 9112, sections 2 to 6 and 9; RFC 9110, section 5; RFC 3986, section 3.4.
"""

from __future__ import annotations

import re
from enum import Enum
from urllib.parse import parse_qsl

import msgspec

__all__ = ["HEAD_BYTES_MAX", "PATH", "Head", "Unread", "parse_head", "parse_query"]

PATH = "/v1/access"
HEAD_BYTES_MAX = 8_190
"""So much the HTTP server takes in one line: no line of a head that is taken here is too long for it."""

_START = f"GET {PATH}".encode()
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_HEAD = re.compile(
    re.escape(_START) + rb"(?:\?([A-Za-z0-9\-._~!$&'()*+,;=:@/?%]*+))? HTTP/1\.1\r\n"
    rb"((?:" + _TOKEN + rb"++:[\t -~]*+\r\n){1,100}+)\r\n"
)
_IMPOSSIBLE = re.compile(rb"[^\t\r\n -~]|(?<!\r)\n|\r(?!\n|\Z)")
"""Nothing that has one of these in it becomes a head."""

_FOREIGN = frozenset(
    {
        "content-length",
        "transfer-encoding",
        "content-encoding",
        "trailer",
        "expect",
        "upgrade",
        "http2-settings",
        "proxy-connection",
        "sec-websocket-key1",
    }
)
"""With one of these, a request has a body or wants more than an answer."""
_ONCE = frozenset(
    {
        "authorization",
        "connection",
        "content-location",
        "content-range",
        "content-type",
        "etag",
        "host",
        "max-forwards",
        "origin",
        "server",
        "user-agent",
    }
)
"""Headers that are no lists: which of two counts, or whether that is an error, is the HTTP server's to say."""


class Unread(Enum):
    """Why there is no head."""

    INCOMPLETE = "it may become one"
    FOREIGN = "it is for the HTTP server"


class Head(msgspec.Struct, frozen=True, gc=False):
    """A request. Names of headers are in lower case, repeated ones are joined by commas."""

    query: str
    """As it was written."""
    headers: dict[str, str]
    is_last: bool
    """Whether the client wants the connection closed after the answer."""
    end: int
    """Where the next request begins."""


def parse_head(data: bytes, at: int = 0) -> Head | Unread:
    """Read the request that begins at an offset of what came of a connection so far."""
    found = _HEAD.match(data, at)
    if found is None:
        return _unread(data, at)
    end = found.end()
    if end - at > HEAD_BYTES_MAX:
        return Unread.FOREIGN
    query, lines = found.groups(b"")
    headers: dict[str, str] = {}
    for line in lines.decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in _ONCE:
                return Unread.FOREIGN
            value = f"{headers[name]},{value}"
        headers[name] = value
    if "host" not in headers or not _FOREIGN.isdisjoint(headers):
        return Unread.FOREIGN
    is_last = False
    if "connection" in headers:
        option = headers["connection"].lower()
        if option not in {"keep-alive", "close"}:
            return Unread.FOREIGN
        is_last = option == "close"
    return Head(query.decode("ascii"), headers, is_last, end)


def parse_query(text: str) -> list[tuple[str, str]]:
    """Return the parameters of a query in order, decoded (application/x-www-form-urlencoded), blank ones too."""
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True)
    pairs = []
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((name, value))
    return pairs


def _unread(data: bytes, at: int) -> Unread:
    begins = data[at : at + len(_START)]
    if not _START.startswith(begins) or len(data) - at >= HEAD_BYTES_MAX:
        return Unread.FOREIGN
    if data.find(b"\r\n\r\n", at) >= 0 or _IMPOSSIBLE.search(data, at):
        return Unread.FOREIGN
    return Unread.INCOMPLETE
