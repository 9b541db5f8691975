"""Statuses over HTTP, the same in front of every backend.

`GET /v1/users/{user}/status` and, for up to 1,000 users at once, `POST /v1/users/status`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from base.errors import BadRequest, LimitExceeded
from base.http import Credentials, Role, json_body, json_response
from base.ids import checked_id
from status.api import LOOKUP_USERS_MAX, UserStatus
from status.ports import StatusLookups

__all__ = ["LookupApi"]


class StatusesRequest(msgspec.Struct, frozen=True):
    """The body of `POST /v1/users/status`."""

    users: list[str]


class LookupApi:
    """The routes and what they answer. Whoever adds them runs the lookups."""

    def __init__(self, statuses: StatusLookups, credentials: Credentials) -> None:
        self._statuses = statuses
        self._credentials = credentials

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/users/{user}/status", self._get_status)
        router.add_post("/v1/users/status", self._post_statuses)

    async def _get_status(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        user = checked_id(request.match_info["user"], "user")
        if set(request.query) - {""}:
            raise BadRequest(f"unknown query parameters: {', '.join(sorted(request.query))}")
        status = (await self._statuses.lookup([user]))[user]
        return json_response(_shown(user, status))

    async def _post_statuses(self, request: web.Request) -> web.Response:
        """Answer for all users, in the order asked."""
        self._credentials.require(request, Role.VIEWER)
        users = (await json_body(request, StatusesRequest)).users
        if len(users) > LOOKUP_USERS_MAX:
            raise LimitExceeded(
                f"{len(users)} users in one lookup, the limit is {LOOKUP_USERS_MAX}",
                what="users",
                limit=LOOKUP_USERS_MAX,
                seen=len(users),
            )
        found = await self._statuses.lookup([checked_id(user, "user") for user in users])
        return json_response({"statuses": [_shown(user, found[user]) for user in users]})


def _shown(user: str, status: UserStatus) -> dict[str, Any]:
    sessions = [msgspec.structs.asdict(session) for session in status.sessions]
    return {"user": user, "state": status.state, "sessions": sessions}
