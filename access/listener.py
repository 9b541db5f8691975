"""The clients' port: from an accepted socket to a WebSocket, or to the HTTP server for everything else.

```
    accepted ──(PROXY header)──(TLS)──▶ head of the request ──▶ WebSocket: admitted, answered, a `WebSocketConnection`
                                             │                └▶ refused with a status and Retry-After
                                             └▶ any other request: the HTTP server takes the connection over
```

What is on its way has a deadline and is bounded in number and bytes, so that nobody holds anything here by being slow
(slowloris) or by opening half a TLS connection; and one address has no more than its share of the places, before and
after the head. A storm is refused at the price of reading where it goes: when nobody
can be let in, it does not matter what else the request says.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

from aiohttp import web

from access.admission import Admission
from access.config import AccessConfig
from access.core.handshake import BadHead, Refused, RequestHead, accept, encode_response, is_upgrade, parse_head
from access.metrics import AccessMetrics
from access.ports import Gateway
from access.websocket import SUBPROTOCOLS, TransportLimits, WebSocketConnection, form_of
from base.accepting import Acceptor
from base.clock import Clock, Instant
from base.core.limits import Places, address_key
from base.core.wheel import TimerWheel
from base.errors import BadRequest, ConfigError, Overloaded, RoadsteadError
from base.http import HttpServer, failure
from base.log import logger
from base.reload import follow
from base.tls import ServerCertificate

__all__ = ["Listener", "peer_address"]

BACKLOG = 4_096
TICK_MS = 250
LINGER_MS = 1_000
"""How long a client may go on sending after its request was found malformed. Hanging up on what it still sends would
reset the connection, and the answer be lost with it."""
HTTP_PER_CLIENT = 2
"""A client without a WebSocket has one connection to receive on and one to send on."""
HTTP_SPARE = 16
"""For whoever asks whether the node is well. No client's address can have them all, see `Places`."""
BACK_MS = 1_000
"""When to come back to a node that serves too many HTTP connections."""


class Listener:
    """The clients' port of one access node."""

    def __init__(
        self,
        config: AccessConfig,
        clock: Clock,
        *,
        node: str,
        http: HttpServer,
        websockets: Mapping[str, Gateway],
        admission: Admission,
        metrics: AccessMetrics,
    ) -> None:
        """Nothing is opened yet.

        Args:
            config: the node's settings.
            clock: the node's clock.
            node: its name, for messages.
            http: serves what is no WebSocket.
            websockets: who gets the clients, by path.
            admission: who may connect.
            metrics: the node's metrics.
        """
        self.url = ""
        self.limits = TransportLimits(config.frame_bytes_max, config.write_bytes_max)
        self.admission = admission
        self.websockets = websockets
        self.allows_deflate = config.compression
        self._config = config
        self._clock = clock
        self._node = node
        self._http = http
        self._metrics = metrics
        self._arrivals: TimerWheel[Arrival] = TimerWheel(clock.monotonic(), tick_ms=TICK_MS)
        self._places = Places(config.arrivals_max)
        self._certificate = (
            ServerCertificate(config.tls_certificate, config.tls_key, setting="access.tls_certificate")
            if config.tls_certificate
            else None
        )
        self._upgrades = tuple(f"GET {path} HTTP/1.1\r\n".encode() for path in websockets)
        self._http_places = Places(HTTP_PER_CLIENT * config.capacity + HTTP_SPARE)
        self._served: dict[asyncio.BaseProtocol, str] = {}
        """The connections that the HTTP server took over, and their clients' addresses."""
        self._busy = asyncio.Event()
        """Set once there is anybody to look at: a node whose clients are all connected is not to be woken up."""
        self._serve_http: Callable[[], asyncio.Protocol] | None = None
        self._server: asyncio.Server | Acceptor | None = None
        self._log = logger(node=node)

    @property
    def arrivals(self) -> int:
        """How many are on their way through the handshake."""
        return len(self._places)

    async def listen(self, host: str, port: int) -> None:
        """Bind. Raises ConfigError if that cannot be, or the certificate cannot be loaded."""
        config = self._config
        if self._certificate is not None:
            self._certificate.load()
        self._serve_http = await self._http.prepare()
        context = self._certificate.context if self._certificate is not None else None
        try:
            if config.proxies or context is not None:
                self._server = Acceptor(
                    self._arrive,
                    context,
                    proxies=config.proxies,
                    deadline_s=config.handshake_deadline_ms / 1000,
                    places=self._places,
                    dropped=lambda reason, _detail: self.count_dropped(reason),
                )
                bound = self._server.listen(host, port, backlog=BACKLOG)
            else:
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(self._arrive, host, port, backlog=BACKLOG)
                bound = self._server.sockets[0].getsockname()[:2]
        except OSError as error:
            reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigError([f"{self._node}: cannot listen on {host}:{port} for clients: {reason}"]) from error
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        scheme = "http" if context is None else "https"
        self.url = config.client_url or f"{scheme}://{shown}:{bound[1]}"

    async def run(self) -> None:
        """Drop who is too slow, and load the certificate anew when it changed, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._certificate is not None:
                interval_s = self._config.tls_reload_ms / 1000
                tasks.create_task(follow([self._certificate], interval_s=interval_s, node=self._node))
            while True:
                if not self._arrivals and not self._served:
                    self._busy.clear()
                    await self._busy.wait()
                await asyncio.sleep(TICK_MS / 1000)
                for arrival in self._arrivals.advance(self._clock.monotonic()):
                    arrival.drop("slow")
                if self._served:
                    self._forget_closed()

    def stop_accepting(self) -> None:
        """Accept nobody any more. Who is here stays."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Stop listening, drop who is on the way, and end every HTTP request. Idempotent."""
        self.stop_accepting()
        latest = max(self._config.handshake_deadline_ms, LINGER_MS) + TICK_MS
        for arrival in self._arrivals.advance(Instant(self._clock.monotonic() + latest)):
            arrival.drop("closed")
        await self._http.close()

    # ---------------------------------------------------------------- for arrivals

    def entered(self, arrival: Arrival, key: str) -> bool:
        """A connection from the address of this key begins its request; False if there is no place for it."""
        if not self._places.take(key):
            return False
        self._busy.set()
        self._arrivals.set(arrival, Instant(self._clock.monotonic() + self._config.handshake_deadline_ms))
        return True

    def lingers(self, arrival: Arrival) -> None:
        """It was answered, and is waited for until it hangs up."""
        self._arrivals.set(arrival, Instant(self._clock.monotonic() + LINGER_MS))

    def left(self, arrival: Arrival, key: str) -> None:
        """Its handshake is over. Only for one that entered."""
        self._arrivals.cancel(arrival)
        self._places.leave(key)

    def count_dropped(self, reason: str) -> None:
        """A connection was dropped in its handshake."""
        self._metrics.dropped.inc(reason)

    def early_refusal(self, data: bytes) -> bytes | None:
        """Return the answer to a request for a WebSocket if nobody can be let in; None: read what it says.

        Other requests are none of its business: the node's health is told however full it is.
        """
        if not data.startswith(self._upgrades) or not data.endswith(b"\r\n\r\n"):
            return None
        error = self.admission.refusal_of_all()
        return None if error is None else refusal(error)

    def http_protocol(self, address: str) -> asyncio.Protocol:
        """Return a protocol of the HTTP server, for one connection of a client at the address.

        Raises Overloaded when it serves as many as the clients of all transports can need, or the address has its share
        of them.
        """
        if not self._http_places.take(address_key(address)):
            self._metrics.refused.inc("http_connections")
            raise Overloaded("too many HTTP connections for now", what="http_connections", retry_after_ms=BACK_MS)
        assert self._serve_http is not None
        protocol = self._serve_http()
        self._busy.set()
        self._served[protocol] = address
        return protocol

    def address_of(self, request: web.Request) -> str:
        """Return from where a request of the HTTP server came: behind a load balancer, as that says."""
        return self._served.get(request.protocol) or request.remote or ""

    def _forget_closed(self) -> None:
        for protocol in [protocol for protocol in self._served if getattr(protocol, "transport", None) is None]:
            self._http_places.leave(address_key(self._served.pop(protocol)))

    def _arrive(self, address: str | None = None) -> Arrival:
        return Arrival(self, address)


class Arrival(asyncio.Protocol):
    """A connection until its first request is read."""

    __slots__ = ("_address", "_buffer", "_is_answered", "_key", "_listener", "_transport")

    def __init__(self, listener: Listener, address: str | None) -> None:
        """`address`: the client's, None where it is the socket's."""
        self._listener = listener
        self._address = address
        self._buffer = b""
        self._is_answered = False
        self._key: str | None = None
        """By which it has its place, as long as it has one."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there, its TLS handshake done."""
        self._transport = cast("asyncio.Transport", transport)  # that of uvloop is none of its subclasses
        if self._address is None:
            self._address = peer_address(transport)
        key = address_key(self._address)
        if self._listener.entered(self, key):
            self._key = key
        else:
            self.drop("too_many")

    def data_received(self, data: bytes) -> None:
        """Read on in the head."""
        if self._transport is None or self._is_answered:
            return
        self._buffer = self._buffer + data if self._buffer else data
        answer = self._listener.early_refusal(self._buffer)
        if answer is not None:
            self._answer(answer)
            return
        head = parse_head(self._buffer)
        match head:
            case None:
                return
            case BadHead(status, message):
                self._listener.count_dropped("bad_head")
                self._answer_and_linger(_refused(status, (), message))
            case _ if is_upgrade(head) and head.path in self._listener.websockets:
                self._upgrade(head)
            case _:
                self._hand_over()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client hung up before it was let in."""
        del exc
        self._end()

    def drop(self, reason: str) -> None:
        """Hang up without an answer, as there was no request yet; or long enough after it."""
        if not self._is_answered:
            self._listener.count_dropped(reason)
        transport = self._end()
        if transport is not None:
            transport.abort()

    def _end(self) -> asyncio.Transport | None:
        transport, self._transport = self._transport, None
        self._buffer = b""
        if self._key is not None:
            self._listener.left(self, self._key)
            self._key = None
        return transport

    def _answer(self, response: bytes) -> None:
        transport = self._end()
        assert transport is not None
        transport.write(response)
        transport.close()

    def _answer_and_linger(self, response: bytes) -> None:
        assert self._transport is not None
        self._buffer = b""
        self._is_answered = True
        self._listener.lingers(self)
        self._transport.write(response)
        if self._transport.can_write_eof():  # TLS cannot: its client hangs up by what the response says
            self._transport.write_eof()

    def _upgrade(self, head: RequestHead) -> None:
        listener = self._listener
        assert self._address is not None
        try:
            # First, as the check of an upgrade costs more than that of who asks.
            listener.admission.check(self._address, head.headers.get("origin"))
        except RoadsteadError as error:
            self._answer(refusal(error))
            return
        accepted = accept(head, subprotocols=SUBPROTOCOLS, allows_deflate=listener.allows_deflate)
        if isinstance(accepted, Refused):
            self._answer(_refused(accepted.status, accepted.headers, accepted.message))
            return
        rest = self._buffer[head.length :]
        transport = self._end()
        assert transport is not None
        connection = WebSocketConnection(
            listener.websockets[head.path],
            transport,
            form=form_of(accepted.subprotocol, accepted.deflate),
            address=self._address,
            limits=listener.limits,
            deflate=accepted.deflate,
        )
        transport.set_protocol(connection)
        transport.write(accepted.response)
        connection.start(rest)

    def _hand_over(self) -> None:
        assert self._address is not None
        try:
            protocol = self._listener.http_protocol(self._address)
        except Overloaded as error:
            self._answer(refusal(error))
            return
        data = self._buffer
        transport = self._end()
        assert transport is not None
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)


def peer_address(transport: asyncio.BaseTransport) -> str:
    """Return the address at the other end, empty for a socket that has none."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


def refusal(error: RoadsteadError) -> bytes:
    """Return the response that tells why somebody was not let in."""
    kind: Callable[[str], RoadsteadError] = type(error)
    return _refusal(kind, error.message, tuple(error.detail.items()))


@lru_cache(maxsize=256)
def _refusal(kind: Callable[[str], RoadsteadError], message: str, detail: tuple[tuple[str, object], ...]) -> bytes:
    """In a storm few answers are given many times: how long to stay away differs by milliseconds."""
    error = kind(message)
    error.detail = dict(detail)
    status, headers, body = failure(error)
    return encode_response(status, headers=tuple(headers.items()), body=body)


def _refused(status: int, headers: tuple[tuple[str, str], ...], message: str) -> bytes:
    _, usual, body = failure(BadRequest(message))
    return encode_response(status, headers=(*usual.items(), *headers), body=body)
