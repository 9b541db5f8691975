"""Who is online over HTTP: how many everywhere, and who behind one access node.

    GET /v1/status/count                                          users and sessions, in all and by access node
    GET /v1/admin/status/sessions?node=NODE&limit=100&cursor=     a page of the sessions behind an access node

What was not counted or listed is always said: by `is_exact` of a count and `missing_partitions` of a page.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec
from aiohttp import web

from base.errors import NotFound
from base.http import Credentials, Role, json_response, query_param
from base.ids import NodeId, checked_id, name_order
from status.api import HEADER_BYTES, SessionView, session_json
from status.core.rollcall import END, Listed, bookmark_of, cursor_of
from status.queries import check_names, number
from status.rollcall import PAGE_MAX, RollCall

__all__ = ["LIMIT", "NoCountApi", "RollCallApi"]

LIMIT = 100

_unpack = msgspec.msgpack.Decoder(SessionView).decode


class RollCallApi:
    """The routes and what they answer."""

    def __init__(self, rollcall: RollCall, credentials: Credentials) -> None:
        self._rollcall = rollcall
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/status/count", self._get_count)
        router.add_get("/v1/admin/status/sessions", self._get_sessions)

    async def _get_count(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        check_names(request)
        total = await self._rollcall.count()
        rows = [
            {"node": one.node, "users": one.users, "sessions": one.sessions}
            for one in sorted(total.nodes, key=lambda one: name_order(one.node))
        ]
        return json_response(
            {
                "epoch": total.epoch,
                "is_exact": total.is_exact,
                "unknown": total.unknown,
                "partitions": total.partitions,
                "users": total.users,
                "sessions": sum(one.sessions for one in total.nodes),
                "access_nodes": rows,
            }
        )

    async def _get_sessions(self, request: web.Request) -> web.Response:
        """Answer with a page; it takes an operator, as it tells who the users are."""
        self._credentials.require(request, Role.OPERATOR)
        check_names(request, "node", "limit", "cursor")
        node = NodeId(checked_id(query_param(request, "node"), "node"))
        limit = number(request, "limit", LIMIT, 1, PAGE_MAX)
        begin = bookmark_of(request.query.get("cursor", ""), node)
        page, unknown = await self._rollcall.page(node, begin, limit)
        return json_response(
            {
                "node": node,
                "is_registered": self._rollcall.is_registered(node),
                "sessions": [shown for item in page.items for shown in _shown(item)],
                "cursor": None if page.end == END else cursor_of(node, page.end),
                "missing_partitions": page.gaps,
                "unknown": unknown,
            }
        )


class NoCountApi:
    """The route of the count where statuses are kept elsewhere."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get("/v1/status/count", self._refuse)

    async def _refuse(self, request: web.Request) -> NoReturn:
        self._credentials.require(request, Role.VIEWER)
        raise NotFound("with this status backend nobody counts; status.backend = cluster does")


def _shown(item: Listed) -> list[dict[str, Any]]:
    """Return a user's sessions as readers see them; here they are unpacked."""
    views = [_unpack(memoryview(entry)[HEADER_BYTES:]) for entry in item.entries]
    return [{"user": item.user, **session_json(view)} for view in views]
