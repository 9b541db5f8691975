"""What operators ask and order of one access node over HTTP.

GET  /v1/admin/access           the node: connections, limits, drain
GET  /v1/admin/access/clients   its clients of one user, `?user=`
POST /v1/admin/access/drain     tell all clients to go elsewhere, `{"over_ms", "grace_ms"}`
POST /v1/admin/access/pause     tell nobody more
POST /v1/admin/access/resume    go on
POST /v1/admin/access/abort     take clients again
POST /v1/admin/access/kick      close a user's connections here, `{"user", "device"}`
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web

from access.clients import Clients
from access.core.protocol import Close
from access.drain import Drain
from base.http import Role, json_body, json_response, query_param
from base.ids import checked_id
from base.log import logger
from base.site import Site

__all__ = ["AccessAdmin"]

DAY_MS = 86_400_000


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Over which time to tell the clients, and how long each may take (ms); without, as configured."""

    over_ms: Annotated[int, msgspec.Meta(ge=0, le=DAY_MS)] = 60_000
    grace_ms: Annotated[int, msgspec.Meta(ge=100, le=DAY_MS)] | None = None


class KickRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose connections to close: of one device, or of all."""

    user: str
    device: str | None = None
    reconnect: bool = False
    """Whether the client may come back by itself (close 3011), rather than be told to stay out (3503)."""


class AccessAdmin:
    """The routes and what they do."""

    def __init__(self, site: Site, *, clients: Clients, drain: Drain, describe: Callable[[], dict[str, Any]]) -> None:
        """`describe` tells what the node says of itself."""
        self._credentials = site.credentials
        self._clients = clients
        self._drain = drain
        self._describe = describe
        self._log = logger(node=site.name)

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/access", self._get_node)
        router.add_get("/v1/admin/access/clients", self._get_clients)
        router.add_post("/v1/admin/access/drain", self._post_drain)
        router.add_post("/v1/admin/access/pause", self._order(self._pause))
        router.add_post("/v1/admin/access/resume", self._order(self._resume))
        router.add_post("/v1/admin/access/abort", self._order(self._drain.abort))
        router.add_post("/v1/admin/access/kick", self._post_kick)

    async def _get_node(self, request: web.Request) -> web.Response:
        """Answer with what the node says of itself."""
        self._credentials.require(request, Role.VIEWER)
        return json_response(self._shown())

    async def _get_clients(self, request: web.Request) -> web.Response:
        """Answer with the user's clients at this node."""
        self._credentials.require(request, Role.VIEWER)
        user = checked_id(query_param(request, "user"), "user")
        clients = [
            {
                "client": client.id,
                "device": client.opened.device,
                "platform": client.opened.platform,
                "state": client.opened.state,
                "since": client.opened.since,
                "address": client.address,
                "form": client.connection.form.name.lower(),
            }
            for client in self._clients.of_user(user)
            if client.opened is not None
        ]
        return json_response({"user": user, "clients": clients})

    async def _post_drain(self, request: web.Request) -> web.Response:
        """Begin to drain; answer with how far it is."""
        self._credentials.require(request, Role.OPERATOR)
        wanted = await json_body(request, DrainRequest) if request.can_read_body else DrainRequest()
        await self._drain.start(over_ms=wanted.over_ms, grace_ms=wanted.grace_ms)
        return json_response(self._shown())

    async def _post_kick(self, request: web.Request) -> web.Response:
        """Close a user's connections; answer with how many."""
        self._credentials.require(request, Role.OPERATOR)
        wanted = await json_body(request, KickRequest)
        user = checked_id(wanted.user, "user")
        kicked = 0
        for client in self._clients.of_user(user):
            if wanted.device is None or (client.opened is not None and client.opened.device == wanted.device):
                kicked += 1
                self._clients.close(client, Close.FORCE_RECONNECT if wanted.reconnect else Close.FORCE_DISCONNECT)
        self._log.info("kicked", user=user, device=wanted.device, connections=kicked)
        return json_response({"user": user, "kicked": kicked})

    def _order(self, act: Callable[[], Awaitable[None]]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            self._credentials.require(request, Role.OPERATOR)
            await act()
            return json_response(self._shown())

        return handle

    async def _pause(self) -> None:
        self._drain.pause()

    async def _resume(self) -> None:
        self._drain.resume()

    def _shown(self) -> dict[str, Any]:
        return {**self._describe(), "drain": self._drain.status()}
