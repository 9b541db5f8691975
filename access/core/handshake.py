"""The opening of a WebSocket (RFC 6455, section 4), both sides, and as much of HTTP/1.1 (RFC 9112) as that takes.

The head of a request is parsed here once for all: an upgrade is answered by `accept`, anything else goes on, bytes
and all, to a full HTTP server. So the parser is lenient where HTTP is (an absolute target, an empty line before the
request, white space around values), and strict where two parsers could come to differ about where a request ends or
what it says: line ends other than CRLF, folded lines, space before a colon, control characters, two `Host`s.

A refusal is a value, with the status and the sentence that the client gets.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

from access.core.deflate import DeflateTerms, agree, negotiate, parse_extensions

__all__ = [
    "Accepted",
    "BadHead",
    "ClientAccepted",
    "ClientRefused",
    "Refused",
    "RequestHead",
    "accept",
    "check_response",
    "encode_request",
    "encode_response",
    "is_upgrade",
    "parse_head",
]

HEAD_BYTES_MAX = 8192
_VERSION = "13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""The constant by which a server shows that it understood (1.3)."""

_OFFER = DeflateTerms()
"""What a client of ours asks for: nobody remembers earlier messages."""

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105  a token of the HTTP grammar
_NAME = re.compile(_TOKEN)
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([!-\"$-~]+) HTTP/([0-9])\.([0-9])")  # a target has no fragment: no "#"
_STATUS_LINE = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (.*))?")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")
"""Control characters other than tabs and whole line ends."""


# ---------------------------------------------------------------- values


class RequestHead(NamedTuple):
    """A request up to its empty line. Names of headers are in lower case, repeated ones joined by commas.

    `path` is neither decoded nor normalised; `query` is, and the last of repeated names counts.
    """

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    minor_version: int
    length: int
    """How many bytes it took: the body, or the first frame, begins there."""


class BadHead(NamedTuple):
    """Bytes that are no head, or one over its limit: what to answer. From a server: status 502, and hang up."""

    status: int
    message: str


class Accepted(NamedTuple):
    """The answer that opens the connection, and what was agreed on."""

    response: bytes
    subprotocol: str | None
    deflate: DeflateTerms | None


class Refused(NamedTuple):
    """An upgrade that cannot be: the status, a sentence, and headers for `encode_response`."""

    status: int
    message: str
    headers: tuple[tuple[str, str], ...] = ()


class ClientAccepted(NamedTuple):
    """The server opened the connection: after `length` bytes, frames begin."""

    length: int
    subprotocol: str | None
    deflate: DeflateTerms | None


class ClientRefused(NamedTuple):
    """The server answered something else: its status, reason and headers."""

    status: int
    reason: str
    headers: dict[str, str]
    length: int


# ---------------------------------------------------------------- heads


def parse_head(data: bytes, *, bytes_max: int = HEAD_BYTES_MAX) -> RequestHead | BadHead | None:
    """Parse what came of a connection so far. None: it is incomplete, and could still become a request.

    The refusals: 400 malformed, 414 and 431 longer than `bytes_max` in its first line or altogether, 505 not HTTP/1.
    """
    head = _split(data, bytes_max)
    if not isinstance(head, _Head):
        return head
    line = _REQUEST_LINE.fullmatch(head.first_line)
    if line is None:
        return BadHead(400, "the request line is malformed")
    method, target, major, minor = line.groups()
    if major != "1":
        return BadHead(505, "the version of HTTP is not 1")
    headers = _parse_headers(head.lines)
    if headers is None:
        return BadHead(400, "a header is malformed")
    if "host" not in headers and minor != "0":
        return BadHead(400, "the header Host is missing")
    path, _, query = (target if target[0] == "/" else _ORIGIN.sub("", target)).partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
    return RequestHead(method, target, path or "/", parameters, headers, int(minor), head.length)


class _Head(NamedTuple):
    first_line: str
    lines: list[str]
    length: int


def _split(data: bytes, bytes_max: int) -> _Head | BadHead | None:
    """Find the lines of a head. What can never become one is refused before its end is there."""
    start = 2 if data.startswith(b"\r\n") else 0  # some clients end a body with an empty line too many
    end = data.find(b"\r\n\r\n", start, bytes_max)
    text = data[start : bytes_max if end < 0 else end + 2].decode("latin-1")
    if _FORBIDDEN.search(text):
        return BadHead(400, "a line end is not CRLF, or there is a control character")
    if end >= 0:
        first_line, *lines = text[:-2].split("\r\n")
        return _Head(first_line, lines, end + 4)
    if len(data) < bytes_max:
        return None
    return BadHead(431, "the headers are too long") if "\r\n" in text else BadHead(414, "the first line is too long")


def _parse_headers(lines: list[str]) -> dict[str, str] | None:
    """Return the values by lower-case name. None: a line is no header, or there are two hosts."""
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            return None  # a folded line too: it begins with a space
        name = name.lower()
        value = value.strip(" \t")
        if name not in headers:
            headers[name] = value
        elif name == "host":
            return None
        else:
            headers[name] += ", " + value
    return headers


def _elements(value: str) -> list[str]:
    """Return the elements of a list in a header, without what surrounds them."""
    return [element.strip(" \t") for element in value.split(",")]


def _encode_head(first_line: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in headers)]
    assert not any(_FORBIDDEN.search(line) or "\r" in line for line in lines), "a line would become two"
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# ---------------------------------------------------------------- the server's side


def is_upgrade(head: RequestHead) -> bool:
    """Whether the client wants a WebSocket, rightly or wrongly; `accept` says which."""
    return head.minor_version >= 1 and "websocket" in _elements(head.headers.get("upgrade", "").lower())


def accept(
    head: RequestHead, *, subprotocols: Sequence[str], allows_deflate: bool, keeps_context: bool = False
) -> Accepted | Refused:
    """Check an upgrade and answer it (4.2).

    Of the client's subprotocols the first that is among `subprotocols` is taken. None in common is no refusal: the
    client decides. `keeps_context` is for `negotiate`.
    """
    headers = head.headers
    fault = _refusal(head)
    if fault is not None:
        return fault
    extensions = parse_extensions(headers.get("sec-websocket-extensions", ""))
    if extensions is None:
        return Refused(400, "the header Sec-WebSocket-Extensions is malformed")
    asked = _elements(headers.get("sec-websocket-protocol", ""))
    subprotocol = next((name for name in asked if name in subprotocols), None)
    deflate = negotiate(extensions, keeps_context=keeps_context) if allows_deflate else None
    answer = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", _answer_key(headers["sec-websocket-key"])),
    ]
    if subprotocol is not None:
        answer.append(("Sec-WebSocket-Protocol", subprotocol))
    if deflate is not None:
        answer.append(("Sec-WebSocket-Extensions", deflate.encode()))
    return Accepted(_encode_head("HTTP/1.1 101 Switching Protocols", answer), subprotocol, deflate)


def encode_response(status: int, *, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> bytes:
    """Return a whole response, after which the connection is closed: a refusal before the upgrade. Text for a body."""
    own = [("Content-Length", str(len(body))), ("Connection", "close")]
    if body:
        own.append(("Content-Type", "text/plain; charset=utf-8"))
    return _encode_head(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", [*own, *headers]) + body


def _refusal(head: RequestHead) -> Refused | None:
    """Return what is wrong with an upgrade (4.2.1), None when nothing is."""
    headers = head.headers
    if head.method != "GET":
        return Refused(405, "a WebSocket is opened with GET", (("Allow", "GET"),))
    right_upgrade = (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", _VERSION))
    if not is_upgrade(head):
        return Refused(426, "only a WebSocket is served here", right_upgrade)
    if headers.get("sec-websocket-version") != _VERSION:
        return Refused(426, "only version 13 of WebSocket is spoken here", right_upgrade)
    if "upgrade" not in _elements(headers.get("connection", "").lower()):
        return Refused(400, "the header Connection does not name Upgrade")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return Refused(400, "an upgrade has no body")
    if not _KEY.fullmatch(headers.get("sec-websocket-key", "")):
        return Refused(400, "the header Sec-WebSocket-Key is not 16 bytes in base64")
    return None


def _answer_key(key: str) -> str:
    """Return what a server answers to a key (4.2.2)."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


# ---------------------------------------------------------------- the client's side


def encode_request(
    *,
    host: str,
    target: str,
    key: str,
    subprotocols: Sequence[str] = (),
    headers: Iterable[tuple[str, str]] = (),
    deflate: bool = False,
) -> bytes:
    """Return the request that opens a connection (4.1). `key` is 16 unpredictable bytes in base64."""
    own = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", _VERSION),
    ]
    if subprotocols:
        own.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    if deflate:
        own.append(("Sec-WebSocket-Extensions", _OFFER.encode()))
    return _encode_head(f"GET {target} HTTP/1.1", [*own, *headers])


def check_response(
    data: bytes, *, key: str, subprotocols: Sequence[str] = (), deflate: bool = False
) -> ClientAccepted | ClientRefused | BadHead | None:
    """Check what came of the server's answer so far, given what was asked for. None: it is incomplete."""
    head = _split(data, HEAD_BYTES_MAX)
    if not isinstance(head, _Head):
        return None if head is None else _bad_answer(head.message)
    line = _STATUS_LINE.fullmatch(head.first_line)
    headers = _parse_headers(head.lines)
    if line is None or headers is None:
        return _bad_answer("the answer is not HTTP/1")
    if line[2] != "101":
        return ClientRefused(int(line[2]), line[3] or "", headers, head.length)
    if (
        headers.get("upgrade", "").lower() != "websocket"
        or "upgrade" not in _elements(headers.get("connection", "").lower())
        or headers.get("sec-websocket-accept") != _answer_key(key)
    ):
        return _bad_answer("the answer does not open this WebSocket")
    subprotocol = headers.get("sec-websocket-protocol")
    if subprotocol is not None and subprotocol not in subprotocols:
        return _bad_answer("the subprotocol was not asked for")
    extensions = parse_extensions(headers.get("sec-websocket-extensions", ""))
    if not extensions and extensions is not None:
        return ClientAccepted(head.length, subprotocol, None)
    terms = agree(_OFFER, extensions[0]) if deflate and extensions and len(extensions) == 1 else None
    if terms is None:
        return _bad_answer("the extensions were not asked for")
    return ClientAccepted(head.length, subprotocol, terms)


def _bad_answer(message: str) -> BadHead:
    return BadHead(502, message)
