"""What the HTTP transports have in common: the connection of a client, what a request has to pass.

A client of these transports has no socket of its own: what it sends comes in requests beside the one on which it
receives, or in the same ones by turns. Such a request names the client's *session*, a secret that only the client is
told. The client's id would not do, since other clients see that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import hdrs, web

from access.core.backlog import Backlog
from access.core.encoding import Encoding
from access.core.outgoing import Form, Outgoing
from access.core.protocol import Close, Disconnect
from access.ports import ABNORMAL, Gateway
from base.core.limits import Counts, address_key
from base.cors import Cors
from base.errors import NotFound, Overloaded
from base.http import body_of
from base.ids import new_secret

__all__ = ["PROTOBUF_TYPE", "Admit", "Gate", "HttpConnection", "HttpSessions", "encoding_of"]

BODIES_MAX = 1_024
"""Bodies that may be on their way at once, each of a frame or so."""
BODIES_OF_ADDRESS_MAX = 128
"""Of these from one address, which many may share: who sends none keeps its place until the time is over."""
PROTOBUF_TYPE = "application/octet-stream"

Admit = Callable[[web.Request], None]
"""Called before anything else is done for a new connection; raises a RoadsteadError that refuses it."""


class HttpConnection:
    """A client's way out (`Connection`): what waits until a request can carry it.

    What the protocol says by the close codes of a WebSocket is said here by a last message, the push `disconnect`.
    """

    __slots__ = ("_backlog", "_close", "_is_over", "_news", "client", "code", "form", "session")

    def __init__(self, form: Form, *, write_bytes_max: int) -> None:
        """`write_bytes_max`: most bytes that may wait, else the client is closed with 3008."""
        self.form = form
        self.client: object | None = None
        self.code = ABNORMAL
        self.session = new_secret()
        self._backlog = Backlog(write_bytes_max)
        self._close: Close | None = None
        self._is_over = False
        self._news = asyncio.Event()

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        """See `Connection`."""
        if self._close is not None:
            return
        if self._backlog.put(frame, replaces):
            self._news.set()
        else:
            self.close(Close.SLOW)

    def close(self, close: Close) -> None:
        """See `Connection`. What waits for a client that is too slow is dropped: it would not read it."""
        if self._close is not None:
            return
        self._close = close
        self.code = close.code
        if close is Close.SLOW:
            self._backlog.take()
        self._news.set()

    def abort(self) -> None:
        """See `Connection`. The request that carries it ends with the HTTP server."""
        self.close(Close.SHUTDOWN)

    def queued(self) -> int:
        """Return how many bytes wait for the client."""
        return self._backlog.size

    @property
    def has_news(self) -> bool:
        """Whether `take` would return anything."""
        return bool(self._backlog) or (self._close is not None and not self._is_over)

    @property
    def is_closed(self) -> bool:
        """Whether the last message is there, taken or not."""
        return self._close is not None

    @property
    def is_over(self) -> bool:
        """Whether the last message was taken."""
        return self._is_over

    def take(self) -> bytes:
        """Return all that waits, the push `disconnect` behind it if the connection is closed."""
        frames = self._backlog.take()
        if self._close is not None and not self._is_over:
            self._is_over = True
            frames.append(Outgoing("", Disconnect(self._close.code, self._close.reason)).frame(self.form))
        return b"".join(frames)


class HttpSessions:
    """The HTTP clients of a node, found by their sessions."""

    def __init__(
        self, gateway: Gateway, address_of: Callable[[web.Request], str], check_room: Callable[[str], None]
    ) -> None:
        """`check_room` refuses, by a RoadsteadError, a client from an address for whom there is no room any more."""
        self._gateway = gateway
        self._address_of = address_of
        self._check_room = check_room
        self._connections: dict[str, HttpConnection] = {}

    def open(self, connection: HttpConnection, request: web.Request, frame: bytes) -> None:
        """A client is there, and this is its first frame. Raises if there is no room for it, as when it was admitted.

        That may be a while ago: others came, or a drain began, while its request was read.
        """
        address = self._address_of(request)
        self._check_room(address)
        self._connections[connection.session] = connection
        self._gateway.arrived(connection, address)
        self._gateway.crowded(connection)  # what waits for it waits here, and not in a socket
        self._gateway.received(connection, frame)

    def received(self, session: str, frame: bytes) -> None:
        """Pass a frame on. Raises NotFound if no client has the session."""
        connection = self._connections.get(session)
        if connection is None:
            raise NotFound("there is no such session; connect again")
        self._gateway.received(connection, frame)

    def end(self, connection: HttpConnection) -> None:
        """The client is gone, if it was not before."""
        if self._connections.pop(connection.session, None) is not None:
            self._gateway.gone(connection)


class Gate(Cors):
    """What every request has to pass: its origin, and the length of its body and the time that it takes to arrive."""

    def __init__(self, allows: Callable[[str], bool], address_of: Callable[[web.Request], str]) -> None:
        """Nothing is on its way.

        Args:
            allows: whether pages of an origin may connect.
            address_of: from where a request comes.
        """
        super().__init__(allows)
        self._address_of = address_of
        self._reading = 0
        self._reading_of = Counts(BODIES_OF_ADDRESS_MAX)

    async def read(self, request: web.Request, *, bytes_max: int) -> bytes:
        """Read a body. One that came with its head is there, and needs no place among those on their way.

        Raises:
            TooLarge: it is over the limit; no more than that is read.
            BadRequest: it does not arrive in time, or breaks off.
            Overloaded: too many are on their way, in all or from this address.
        """
        if request.content.is_eof() or (request.content_length or 0) > bytes_max:
            return await body_of(request, bytes_max=bytes_max)
        address = address_key(self._address_of(request))
        if self._reading >= BODIES_MAX or self._reading_of.is_full(address):
            raise Overloaded("too many requests are on their way", what="bodies", retry_after_ms=1_000)
        self._reading += 1
        self._reading_of.enter(address)
        try:
            return await body_of(request, bytes_max=bytes_max)
        finally:
            self._reading -= 1
            self._reading_of.leave(address)


def encoding_of(request: web.Request) -> Encoding:
    """Return the encoding of a body: protobuf if the request says so, else JSON."""
    # Asked for first, since aiohttp takes this type for granted where none is named.
    is_named = hdrs.CONTENT_TYPE in request.headers
    return Encoding.PROTOBUF if is_named and request.content_type == PROTOBUF_TYPE else Encoding.JSON
