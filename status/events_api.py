"""The HTTP interface of the session event feed: pages, with or without waiting, and a stream of server-sent events.

    GET /v1/events?cursor=&limit=&wait_ms=     one page, and the cursor after it
    GET /v1/events/stream?cursor=              all pages from there on, as they come (text/event-stream)

What the events mean, and the one rule for reading them, is in docs/howto/follow-sessions.md. In a stream the last event
of a page has the page's cursor as its `id`: a client that comes back with it as `Last-Event-ID` gets that which
it may have missed, and no event is between two ids that it could miss.

Limits, each with its meaning:
    KEEPALIVE_MS       a silent stream gets a comment line this often, so that both ends notice a dead connection
    WRITE_TIMEOUT_S    a reader of a stream that takes no data for so long is cut off; nothing is read for it meanwhile
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, NoReturn

import msgspec
from aiohttp import web

from base.errors import Draining, NotFound, RoadsteadError
from base.http import Credentials, Role, json_response
from base.log import logger
from status.api import HEADER_BYTES, SessionView, session_json
from status.core.events import Cursor, MergedPage
from status.feed import PAGE_MAX, WAIT_MS_MAX
from status.feed_reader import FeedReader
from status.peers import Snapshot, Told
from status.queries import check_names, number

__all__ = ["EventsApi", "NoEventsApi", "shown"]

LIMIT = 100
KEEPALIVE_MS = 15_000
WRITE_TIMEOUT_S = 10.0
SLICE_BYTES = 64 * 1024

_unpack = msgspec.msgpack.Decoder(SessionView).decode
_encoder = msgspec.json.Encoder()
_log = logger()


class EventsApi:
    """The routes and what they answer."""

    def __init__(self, reader: FeedReader, credentials: Credentials) -> None:
        self._reader = reader
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/events", self._get_events)
        router.add_get("/v1/events/stream", self._get_stream)

    async def _get_events(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        check_names(request, "cursor", "limit", "wait_ms")
        cursor = Cursor.decode(request.query.get("cursor", ""))
        limit = number(request, "limit", LIMIT, 1, PAGE_MAX)
        wait_ms = number(request, "wait_ms", 0, 0, WAIT_MS_MAX)
        page = await self._reader.poll(cursor, limit, wait_ms)
        return json_response(
            {
                "events": [shown(item) for item in page.items],
                "cursor": page.cursor.encode(),
                "is_at_end": page.is_at_end,
                "missing": page.missing,
            }
        )

    async def _get_stream(self, request: web.Request) -> web.StreamResponse:
        self._credentials.require(request, Role.BACKEND)
        check_names(request, "cursor")
        cursor = Cursor.decode(request.headers.get("Last-Event-ID") or request.query.get("cursor", ""))
        if self._reader.is_closing:
            raise Draining("this node ends")
        with self._reader.waiting():
            page = await self._reader.read(cursor, PAGE_MAX)
            first = _framed(page)
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            try:
                await self._send_all(request, response, page, first)
                await _taken(request, response.write_eof())
            except ConnectionError:
                pass  # the reader has gone
            except RoadsteadError as error:
                _log.warning("event_stream_failed", error=str(error))
        return response

    async def _send_all(
        self, request: web.Request, response: web.StreamResponse, page: MergedPage[Told], frames: bytes
    ) -> None:
        """Send page after page until the reader goes or this node ends."""
        while True:
            await _write(request, response, frames)
            if self._reader.is_closing:
                return
            before = page
            if page.is_at_end:
                page = await self._reader.read_on(_emptied(page), PAGE_MAX, KEEPALIVE_MS)
            else:
                page = await self._reader.read(page.cursor, PAGE_MAX)
            frames = b": keepalive\n\n" if page.cursor == before.cursor else _framed(page)


class NoEventsApi:
    """The routes where statuses are kept elsewhere."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/events", self._refuse)
        router.add_get("/v1/events/stream", self._refuse)

    async def _refuse(self, request: web.Request) -> NoReturn:
        self._credentials.require(request, Role.BACKEND)
        raise NotFound("with this status backend there are no session events; status.backend = cluster has them")


# ---------------------------------------------------------------- answering


def shown(item: Told) -> dict[str, Any]:
    """Return an item as readers see it; here, at last, sessions are unpacked."""
    if isinstance(item, Snapshot):
        sessions = [_session(user, entry) for user, entry in item.sessions]
        return {
            "kind": "resync",
            "partition": item.partition,
            "user_seq": item.user_seq,
            "sessions": sessions,
        }
    return {
        "kind": item.kind,
        "partition": item.partition,
        "user_seq": item.user_seq,
        "at": item.at,
        **_session(item.user, item.entry),
    }


def _session(user: str, entry: bytes) -> dict[str, Any]:
    return {"user": user, **session_json(_unpack(memoryview(entry)[HEADER_BYTES:]))}


def _framed(page: MergedPage[Told]) -> bytes:
    """Return a page as server-sent events. An `id` without data is kept by the client and shown to nobody."""
    frames = []
    for item in page.items:
        event = shown(item)
        frames.append(b"event: %b\ndata: %b\n" % (event["kind"].encode(), _encoder.encode(event)))
    cursor = b"id: %b\n" % page.cursor.encode().encode()
    return b"\n".join(frames) + cursor + b"\n"


def _emptied(page: MergedPage[Told]) -> MergedPage[Told]:
    """Return the page as if it had been read anew at once: what was in it is sent."""
    return MergedPage((), page.cursor, page.is_at_end, page.missing)


async def _write(request: web.Request, response: web.StreamResponse, frames: bytes) -> None:
    for start in range(0, len(frames), SLICE_BYTES):
        await _taken(request, response.write(frames[start : start + SLICE_BYTES]))


async def _taken(request: web.Request, writing: Awaitable[None]) -> None:
    """Return once what is written is on its way, all but a slice of it. Raises ConnectionError if it is not taken."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await writing
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError("the reader takes no data") from None
