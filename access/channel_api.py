"""Application channels over HTTP, for the application's backend: on the node's internal port, at any access node.

| request                                       | body or query                              | role    |
|-----------------------------------------------|--------------------------------------------|---------|
| `POST /v1/channels/publish`                   | `channel, data, tags?, idempotency_key?`   | backend |
| `POST /v1/channels/broadcast`                 | `channels, data, tags?, idempotency_key?`  | backend |
| `POST /v1/channels/unsubscribe`               | `channel, user`                            | backend |
| `GET /v1/channels/{channel}/history`          | `limit, offset, epoch, reverse`            | viewer  |
| `GET /v1/channels/{channel}/presence`         |                                            | viewer  |
| `GET /v1/channels/{channel}/presence_stats`   |                                            | viewer  |

A publication that is answered with 200 is in the history, and outlives the death of one node. 503 and 504 may be sent
again; with an `idempotency_key` that publishes once.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from aiohttp import web

from access.channels import Channels
from access.core.encoding import is_json
from access.peers import Place
from base.errors import BadRequest, LimitExceeded, NotFound, RoadsteadError
from base.http import Role, json_body, json_response
from base.ids import checked_id
from base.site import Site

__all__ = ["ChannelApi"]

BROADCAST_MAX = 1_000
BROADCAST_AT_ONCE = 32
HISTORY_MAX = 10_000


class PublishBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a publish. `data` is any JSON value."""

    channel: str
    data: msgspec.Raw
    tags: dict[str, str] = {}
    idempotency_key: str = ""


class BroadcastBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a broadcast: the same into each of the channels."""

    channels: Annotated[list[str], msgspec.Meta(min_length=1)]
    data: msgspec.Raw
    tags: dict[str, str] = {}
    idempotency_key: str = ""


class UnsubscribeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an unsubscribe."""

    channel: str
    user: str


class ChannelApi:
    """The routes and what they answer."""

    def __init__(self, site: Site, channels: Channels) -> None:
        self._credentials = site.credentials
        self._channels = channels

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_post("/v1/channels/publish", self._publish)
        router.add_post("/v1/channels/broadcast", self._broadcast)
        router.add_post("/v1/channels/unsubscribe", self._unsubscribe)
        router.add_get("/v1/channels/{channel}/history", self._history)
        router.add_get("/v1/channels/{channel}/presence", self._presence)
        router.add_get("/v1/channels/{channel}/presence_stats", self._presence_stats)

    async def _publish(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        body = await json_body(request, PublishBody)
        place = await self._publish_one(body.channel, body)
        return json_response(_place(place))

    async def _broadcast(self, request: web.Request) -> web.Response:
        """Answer for each channel, in the order asked: its place, or the error."""
        self._credentials.require(request, Role.BACKEND)
        body = await json_body(request, BroadcastBody)
        if len(body.channels) > BROADCAST_MAX:
            message = f"{len(body.channels)} channels in one broadcast, the limit is {BROADCAST_MAX}"
            raise LimitExceeded(message, what="channels", limit=BROADCAST_MAX, seen=len(body.channels))
        at_once = asyncio.Semaphore(BROADCAST_AT_ONCE)

        async def publish(channel: str) -> dict[str, Any]:
            async with at_once:
                try:
                    return _place(await self._publish_one(channel, body))
                except RoadsteadError as error:
                    return {"error": {"code": error.code.number, "name": error.code.label, "message": error.message}}

        async with asyncio.TaskGroup() as tasks:
            published = [tasks.create_task(publish(channel)) for channel in body.channels]
        return json_response({"responses": [task.result() for task in published]})

    async def _publish_one(self, channel: str, body: PublishBody | BroadcastBody) -> Place:
        data = bytes(body.data)
        if not is_json(data):
            raise BadRequest("data is not JSON in UTF-8")
        return await self._channels.backend_publish(channel, data, tags=body.tags, key=body.idempotency_key)

    async def _unsubscribe(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        body = await json_body(request, UnsubscribeBody)
        await self._channels.backend_unsubscribe(body.channel, checked_id(body.user, "user"))
        return json_response({})

    async def _history(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        limit = _number(request, "limit", HISTORY_MAX, HISTORY_MAX)
        since = None
        if "offset" in request.query:
            since = Place(request.query.get("epoch", ""), _number(request, "offset", 0, (1 << 63) - 1))
        is_reverse = request.query.get("reverse", "false") == "true"
        name = request.match_info["channel"]
        page = await self._channels.backend_history(name, limit=limit, since=since, is_reverse=is_reverse)
        if page is None:
            raise NotFound("the epoch of this position is over")
        return json_response(page)

    async def _presence(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.BACKEND)
        return json_response(await self._channels.backend_presence(request.match_info["channel"]))

    async def _presence_stats(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        stats = await self._channels.backend_presence_stats(request.match_info["channel"])
        return json_response({"num_clients": stats.num_clients, "num_users": stats.num_users})


def _place(place: Place) -> dict[str, Any]:
    return {"epoch": place.epoch, "offset": place.offset}


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from 0 to {most}")
    return int(text)
