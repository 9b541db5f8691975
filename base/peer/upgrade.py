"""How a peer stream begins, at both ends: an HTTP/1.1 request on the node's one port, upgraded (RFC 9110, 7.8).

    GET /peer HTTP/1.1
    Connection: Upgrade
    Upgrade: roadstead.peer.v2
    Authorization: Bearer KEY
    X-Roadstead-Node: access-1

The answer is 101 Switching Protocols, and what follows it, both ways, is frames (`base.peer.wire`). Until it has read
the 101, the connecting side sends nothing. Without the key the answer is 401; if this very protocol is not among those
that are asked for it is 426, which names the one that is spoken here.

Over mutual TLS a key is not enough: the certificate of the asking node must name it, so that no node speaks for
another.
"""

from __future__ import annotations

import asyncio
from typing import cast
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

from base.errors import Code, PeerUnavailable, RemoteProtocolError, Unauthenticated
from base.http import json_response
from base.tls import names_of
from base.trust import Trust

__all__ = ["PEER_PATH", "PROTOCOL", "authenticate", "connect", "is_wanted", "refusal", "switch"]

PEER_PATH = "/peer"
PROTOCOL = "roadstead.peer.v2"
NODE_HEADER = "X-Roadstead-Node"
HEAD_BYTES_MAX = 8 * 1024
UNBELIEVED = ", perhaps since it does not believe this node's certificate"
"""What it can mean that an upgrade over TLS was not answered: the alert that says so is seldom still sent."""

_SWITCH = {"Connection": "Upgrade", "Upgrade": PROTOCOL}
_HEAD_END = b"\r\n\r\n"


# ---------------------------------------------------------------- the accepting side


def authenticate(request: web.Request, trust: Trust) -> str:
    """Return the name of the asking node. Raises Unauthenticated when it does not prove to be one of the cluster."""
    offered = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not trust.accepts(offered):
        raise Unauthenticated("a peer stream needs the cluster's peer key")
    node = request.headers.get(NODE_HEADER, "unnamed")
    if trust.server_ssl is not None:
        proved = names_of(request.get_extra_info("ssl_object"))
        if proved is None:
            raise Unauthenticated("a peer stream needs a certificate of the cluster's CA")
        if node not in proved:
            raise Unauthenticated(f"the certificate is not of the node {node}", node=node)
    return node


def is_wanted(request: web.Request) -> bool:
    """Whether the request asks for an upgrade to this protocol."""
    tokens = {token.strip().lower() for token in request.headers.get("Connection", "").split(",")}
    is_upgrade = request.version >= HttpVersion11 and "upgrade" in tokens
    # A newer node may speak several, and name them all: we answer with the one that is ours.
    return is_upgrade and PROTOCOL in _protocols(request.headers.get("Upgrade", ""))


def _protocols(field: str) -> list[str]:
    """Return the protocols that an Upgrade field names, in lower case."""
    return [protocol.strip().lower() for protocol in field.split(",")]


def refusal() -> web.Response:
    """Return the 426 that names the protocol; its body has the shape of every failure of the port."""
    code = Code.BAD_REQUEST
    message = f"a peer stream must be asked for with `Upgrade: {PROTOCOL}`"
    error = {"code": code.number, "name": code.label, "retry": code.retry.value, "message": message}
    return json_response({"error": error}, status=426, headers=_SWITCH)


async def switch(request: web.Request) -> tuple[web.StreamResponse, asyncio.Transport]:
    """Answer 101 and give the connection away; what the aiohttp handler must return at the end comes with it.

    aiohttp goes on to own the connection's life: the transport must be given another protocol before anything is
    awaited, that protocol must pass `connection_lost` on to `request.protocol`, and the handler must last as long.
    """
    transport = request.transport
    if transport is None:
        raise PeerUnavailable("the connection was lost before the upgrade")
    response = web.StreamResponse(status=101, headers=_SWITCH)
    response.force_close()  # no further request after the handler has returned
    request.protocol.keep_alive(False)
    try:
        await response.prepare(request)
    except ConnectionResetError as error:
        raise PeerUnavailable("the connection was lost during the upgrade") from error
    return response, transport


# ---------------------------------------------------------------- the connecting side


async def connect(url: str, *, node: str, trust: Trust) -> tuple[asyncio.Transport, bytes]:
    """Connect and upgrade; return the transport and what the peer sent after its 101. The caller bounds the time.

    Reading is paused, so that nothing is lost until another protocol is set; resume it then. Raises OSError when there
    is no connection, Unauthenticated or PeerUnavailable when the peer refuses or the URL is none, and
    RemoteProtocolError when it does not speak HTTP, or not this protocol.
    """
    try:
        parts = urlsplit(url + PEER_PATH)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError as error:  # what others registered must not end the process
        raise PeerUnavailable(f"{url} is no URL: {error}") from error
    if not parts.netloc.isprintable():
        raise PeerUnavailable("a URL with control characters in it")
    fields = {"Host": parts.netloc, **_SWITCH, "Authorization": f"Bearer {trust.peer_key}", NODE_HEADER: node}
    assert all(value.isprintable() for value in fields.values())
    head = f"GET {parts.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    is_tls = parts.scheme == "https"
    if trust.client_ssl is not None and not is_tls:
        raise PeerUnavailable(f"{url} is served without TLS: a node that has it shows its key to no such peer")
    transport, asking = await asyncio.get_running_loop().create_connection(
        lambda: _Asking(url, (head + "\r\n").encode()),
        parts.hostname or "",
        port or (443 if is_tls else 80),
        ssl=(trust.client_ssl or True) if is_tls else None,
    )
    try:
        rest = await asking.answer
    except BaseException:
        transport.abort()
        raise
    if transport.is_closing():
        raise PeerUnavailable(f"{url} broke off after the upgrade")
    return transport, rest


class _Asking(asyncio.Protocol):
    """Sends the request and waits for the 101; `answer` is what came behind it."""

    def __init__(self, url: str, head: bytes) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._url = url
        self._head = head
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return
        self._received += data
        head, end, rest = self._received.partition(_HEAD_END)
        if not end and len(head) <= HEAD_BYTES_MAX:
            return
        assert self._transport is not None
        self._transport.pause_reading()
        refused = RemoteProtocolError(f"{self._url}: the answer's head is too long") if not end else self._check(head)
        if refused is None:
            self.answer.set_result(rest)
        else:
            self._fail(refused)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            reason = exc or ("closed without an answer" + (UNBELIEVED if self._url.startswith("https") else ""))
            self._fail(PeerUnavailable(f"{self._url} broke off the upgrade: {reason}"))

    def _fail(self, error: Exception) -> None:
        self.answer.set_exception(error)
        self.answer.exception()  # who connects may have given up meanwhile: then nobody asks for it

    def _check(self, head: bytes) -> Exception | None:
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, status = status_line.partition(" ")
        if not version.startswith("HTTP/1."):
            return RemoteProtocolError(f"{self._url} does not answer in HTTP/1")
        fields = [line.partition(":") for line in lines]
        named = [value for name, _, value in fields if name.strip().lower() == "upgrade"]
        spoken = [protocol for value in named for protocol in _protocols(value)]
        if status.startswith("101"):
            if spoken != [PROTOCOL]:
                return RemoteProtocolError(f"{self._url} upgraded to {spoken}, not to {PROTOCOL}")
            return None
        reason = f"{self._url} refused the peer stream: {status}"
        if status.startswith("426"):
            theirs = ", ".join(spoken) or "no such thing"
            return RemoteProtocolError(f"{reason}; it speaks {theirs}, this node speaks {PROTOCOL}")
        return (Unauthenticated if status.startswith("401") else PeerUnavailable)(reason)
