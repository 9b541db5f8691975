"""A quick way in for access requests: from bytes to bytes, with the HTTP server behind it for all else.

A client asks one thing of a scheduler, a plain GET, and in a storm all of them ask it at once; most of what the answer
costs is then what an HTTP server does for requests of every kind. So each connection comes here with its first head
(`base.heads`). A request that `scheduler.core.access_head` reads is answered at once, in the event loop's own callback,
without a task or a timer of its own. With the first one that it does not read, the connection goes to the HTTP server,
all unread bytes with it, and stays there.

```
  first head ──▶ GET /v1/access?... ──▶ answered here, in order ──▶ the next request
                        │
                        └▶ anything else: the HTTP server takes the connection over
```

Both ways call `AccessApi.answer`, so that answers and errors are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import cast

from base.clock import Clock
from base.cors import Cors
from base.http import KEEPALIVE_S, HttpServer
from scheduler.access_api import AccessApi, query_of
from scheduler.core.access_head import PATH, Head, Unread, parse_head, parse_query
from scheduler.metrics import SchedulerMetrics

__all__ = ["Front"]

REQUESTS_AT_ONCE = 32
"""So many requests of one connection are answered before others have their turn."""

Arrive = Callable[[], asyncio.Protocol]


class Front:
    """A layer of the HTTP server, see `base.http`."""

    def __init__(
        self, api: AccessApi, *, http: HttpServer, cors: Cors, clock: Clock, metrics: SchedulerMetrics
    ) -> None:
        """`http` counts and logs what fails; `clock` gives the date."""
        self.answered = metrics.quick_requests
        self._api = api
        self._http = http
        self._cors = cors
        self._clock = clock
        self._address_header = api.address_header.lower()
        self._connections: set[_Connection] = set()
        self._is_draining = False
        self._second = -1
        self._date = ""
        self._usual = b""
        """The head of an answer that is no error, to no page, up to its length: as long as the second lasts."""

    def __len__(self) -> int:
        """Return how many connections are here."""
        return len(self._connections)

    def over(self, inner: Arrive) -> Arrive:
        """Return what takes connections off the port and gives them to `inner`."""
        return lambda: _Connection(self, inner)

    def drain(self) -> None:
        """Let each connection end with its next answer."""
        self._is_draining = True

    def close(self) -> None:
        """Close all connections, once what was answered is sent."""
        for connection in tuple(self._connections):
            connection.close()

    # ---------------------------------------------------------------- for connections

    def begun(self, connection: _Connection) -> None:
        """A connection is here."""
        self._connections.add(connection)

    def ended(self, connection: _Connection) -> None:
        """It is not here any more."""
        self._connections.discard(connection)

    def answer(self, head: Head, peer: str) -> tuple[bytes, bool]:
        """Return the answer to a request of who connected, and whether it is the connection's last."""
        headers = head.headers
        origin = headers.get("origin")
        is_last = head.is_last or self._is_draining
        try:
            self._cors.check(origin)
            body = self._api.answer(
                query_of(parse_query(head.query)),
                headers.get("authorization", ""),
                peer,
                headers.get(self._address_header, ""),
            )
        except Exception as error:  # noqa: BLE001 - `refuse` tells ours from others
            status, own, body = self._http.refuse(error, PATH)
            return self._encode(status, own.items(), origin, body, is_last=is_last), is_last
        if origin is not None or is_last:
            return self._encode(200, _JSON, origin, body, is_last=is_last), is_last
        self._tell_time()
        return b"%b%d\r\n\r\n%b" % (self._usual, len(body), body), False

    def _encode(
        self, status: int, own: Iterable[tuple[str, str]], origin: str | None, body: bytes, *, is_last: bool
    ) -> bytes:
        self._tell_time()
        last = (("Connection", "close"),) if is_last else ()
        headers = (*own, *self._cors.headers(origin), ("Date", self._date), *last, ("Content-Length", str(len(body))))
        return _head(status, headers) + b"\r\n\r\n" + body

    def _tell_time(self) -> None:
        second = self._clock.realtime() // 1000
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True)
            headers = (*_JSON, *self._cors.headers(None), ("Date", self._date), ("Content-Length", ""))
            self._usual = _head(200, headers)


_JSON = (("Content-Type", "application/json"),)


def _head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = (f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers))
    return "\r\n".join(lines).encode("ascii")


class _Connection(asyncio.Protocol):
    """A connection as long as it asks for nothing else.

    Nothing is read from it while it does not take its answers, or has to wait for its turn: what it may have here is
    one head that is not whole yet, or what the loop reads at once, whichever is more.
    """

    __slots__ = (
        "_front",
        "_inner",
        "_is_full",
        "_is_held",
        "_loop",
        "_peer",
        "_since",
        "_timer",
        "_transport",
        "_unread",
    )

    def __init__(self, front: Front, inner: Arrive) -> None:
        self._front = front
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._unread = b""
        self._is_held = False
        """Nothing is read."""
        self._is_full = False
        """It does not take its answers."""
        self._since = self._loop.time()
        """Of the last answer."""
        self._timer = self._loop.call_later(KEEPALIVE_S, self._look)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # that of uvloop is none of its subclasses
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self._front.begun(self)

    def data_received(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data
        if not self._is_held:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._end()

    def pause_writing(self) -> None:
        self._is_full = True
        self._hold()

    def resume_writing(self) -> None:
        self._is_full = False
        self._go_on()

    def close(self) -> None:
        """Hang up, once what was answered is sent."""
        assert self._transport is not None
        self._is_held = True
        self._transport.close()

    def _serve(self) -> None:
        transport, front, data = self._transport, self._front, self._unread
        assert transport is not None
        at = answered = 0
        head: Head | Unread = Unread.INCOMPLETE
        is_last = False
        while not (is_last or self._is_held or answered == REQUESTS_AT_ONCE):
            head = parse_head(data, at)
            if not isinstance(head, Head):
                break
            answer, is_last = front.answer(head, self._peer)
            transport.write(answer)
            answered += 1
            at = head.end
            if at == len(data):
                break
        self._unread = data[at:]
        if answered:
            front.answered.inc(answered)
            self._since = self._loop.time()
        if is_last:
            self.close()
        elif head is Unread.FOREIGN:
            self._give_away()
        elif self._unread and answered == REQUESTS_AT_ONCE:
            self._hold()
            self._loop.call_soon(self._go_on)

    def _hold(self) -> None:
        assert self._transport is not None
        self._is_held = True
        self._transport.pause_reading()

    def _go_on(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._is_full:
            return
        self._is_held = False
        self._transport.resume_reading()
        self._serve()

    def _look(self) -> None:
        idle_s = self._loop.time() - self._since
        if idle_s < KEEPALIVE_S:
            self._timer = self._loop.call_later(KEEPALIVE_S - idle_s, self._look)
        else:
            assert self._transport is not None
            self._transport.abort()  # it may not take its answers, so that nothing is waited for

    def _give_away(self) -> None:
        data = self._unread
        transport, protocol = self._end(), self._inner()
        assert transport is not None
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def _end(self) -> asyncio.Transport | None:
        transport, self._transport = self._transport, None
        self._unread = b""
        self._timer.cancel()
        self._front.ended(self)
        return transport
