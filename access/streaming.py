"""HTTP streaming and server-sent events: one request on which the client receives, others on which it sends.

    POST /connection/http_stream             the body is the first frame; the answer is messages, as they come
    GET /connection/sse?cf_connect=FRAME     the same as an event stream, for browsers' EventSource

`emulation` has the way back. The client may send by way of any access node, so that nobody has to route it to this one.

One coroutine writes to each client, the one that serves the request. That is dearer than a WebSocket, which costs none;
these clients are few.

Source: WHATWG, HTML, "Server-sent events"; Centrifugal Labs, "HTTP streaming" and "SSE", with bidirectional emulation.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from access.api import EVENTS_PATH, STREAM_PATH
from access.core.encoding import Encoding
from access.core.outgoing import Form
from access.core.protocol import Close
from access.http import PROTOBUF_TYPE, Admit, Gate, HttpConnection, HttpSessions, encoding_of
from access.websocket import TransportLimits
from base.errors import BadRequest, TooLarge

__all__ = ["Streams"]

WRITE_TIMEOUT_S = 15.0
LAST_WRITE_TIMEOUT_S = 2.0
"""For a client that was found too slow: whether it takes that news or not."""

_HEADERS = {
    # A cache has no use for it, and a proxy that compresses it or gathers it first would hold messages back.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
_CONTENT_TYPES = {
    Form.STREAM_JSON: "application/x-ndjson",
    Form.STREAM_PROTOBUF: PROTOBUF_TYPE,
    Form.EVENTS_JSON: "text/event-stream",
}


class _Stream(HttpConnection):
    """A client's stream. What is being written may be as much again as what waits."""

    __slots__ = ("_is_lost", "_request", "_writing")

    def __init__(self, form: Form, request: web.Request, *, write_bytes_max: int) -> None:
        super().__init__(form, write_bytes_max=write_bytes_max)
        self._request = request
        self._is_lost = False
        self._writing: asyncio.Timeout | None = None

    def close(self, close: Close) -> None:
        """See `Connection`."""
        super().close(close)
        if close is Close.SLOW and self._writing is not None and not self._writing.expired():
            self._writing.reschedule(asyncio.get_running_loop().time() + LAST_WRITE_TIMEOUT_S)

    def look(self) -> None:
        """End the stream if the client hung up. The HTTP server tells nobody until something is written."""
        if self._request.transport is None:
            self.lose()

    def lose(self) -> None:
        """End the stream without another word."""
        self._is_lost = True
        self._news.set()

    def queued(self) -> int:
        """Return how many bytes wait for the client: here, and in the socket's buffer."""
        transport = self._request.transport
        return super().queued() + (transport.get_write_buffer_size() if transport is not None else 0)

    async def run(self, response: web.StreamResponse) -> None:
        """Write until the connection is closed or the client is gone."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await response.prepare(self._request)
            while not self.is_over:
                await self._news.wait()
                self._news.clear()
                if self._is_lost:
                    return
                if self.has_news:
                    await self._write(response)
        except (TimeoutError, ConnectionError):
            if self._request.transport is not None:
                self._request.transport.abort()

    async def _write(self, response: web.StreamResponse) -> None:
        is_slow = self.code == Close.SLOW.code
        try:
            async with asyncio.timeout(LAST_WRITE_TIMEOUT_S if is_slow else WRITE_TIMEOUT_S) as self._writing:
                await response.write(self.take())
        finally:
            self._writing = None


class Streams:
    """The streams of a node."""

    def __init__(self, sessions: HttpSessions, gate: Gate, *, admit: Admit, limits: TransportLimits) -> None:
        """Build it.

        Args:
            sessions: where the clients are entered.
            gate: what requests have to pass.
            admit: asked first.
            limits: of each connection.
        """
        self._sessions = sessions
        self._gate = gate
        self._admit = admit
        self._limits = limits
        self._streams: set[_Stream] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def add_routes(self, app: web.Application) -> None:
        """Serve both paths."""
        app.router.add_post(STREAM_PATH, self._http_stream)
        app.router.add_get(EVENTS_PATH, self._events, allow_head=False)
        self._gate.guard(app, STREAM_PATH, "POST")
        self._gate.guard(app, EVENTS_PATH, "GET")

    def look(self) -> None:
        """Notice who hung up. To be called every second or so."""
        for stream in self._streams:
            stream.look()

    def close(self) -> None:
        """End all streams: the node stops."""
        for stream in self._streams:
            stream.lose()

    async def _http_stream(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        self._gate.require_origin(request)
        frame = await self._gate.read(request, bytes_max=self._limits.frame_bytes_max)
        form = Form.STREAM_PROTOBUF if encoding_of(request) is Encoding.PROTOBUF else Form.STREAM_JSON
        return await self._serve(request, form, frame)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        self._gate.require_origin(request)
        frame = request.query.get("cf_connect", "").encode(errors="surrogateescape")
        if len(frame) > self._limits.frame_bytes_max:
            raise TooLarge(
                f"cf_connect is over {self._limits.frame_bytes_max} bytes", limit=self._limits.frame_bytes_max
            )
        return await self._serve(request, Form.EVENTS_JSON, frame)

    async def _serve(self, request: web.Request, form: Form, frame: bytes) -> web.StreamResponse:
        if not frame:
            raise BadRequest("the connect command is missing")
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": _CONTENT_TYPES[form]})
        stream = _Stream(form, request, write_bytes_max=self._limits.write_bytes_max)
        self._streams.add(stream)
        try:
            self._sessions.open(stream, request, frame)
            await stream.run(response)
        finally:
            self._streams.remove(stream)
            self._sessions.end(stream)
        return response
