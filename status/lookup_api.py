"""Statuses over HTTP, the same in front of every backend.

`GET /v1/users/{user}/status` and, for up to 1,000 users at once, `POST /v1/users/status`. With a `viewer` the answer is
what that user may see: a state and when the user was last seen, and no sessions. Who may see whom is never told.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from base.errors import LimitExceeded
from base.http import Credentials, Role, json_body, json_response
from base.ids import checked_id
from status.api import LOOKUP_USERS_MAX, UserStatus, session_json
from status.ports import StatusLookups
from status.queries import check_names

__all__ = ["LookupApi"]


class StatusesRequest(msgspec.Struct, frozen=True):
    """The body of `POST /v1/users/status`."""

    users: list[str]
    viewer: str | None = None


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
        check_names(request, "", "viewer")
        viewer = _checked_viewer(request.query.get("viewer"))
        status = (await self._statuses.lookup([user], viewer=viewer))[user]
        return json_response(_shown(user, status, viewer))

    async def _post_statuses(self, request: web.Request) -> web.Response:
        """Answer for all users, in the order asked."""
        self._credentials.require(request, Role.VIEWER)
        body = await json_body(request, StatusesRequest)
        users, viewer = body.users, _checked_viewer(body.viewer)
        if len(users) > LOOKUP_USERS_MAX:
            raise LimitExceeded(
                f"{len(users)} users in one lookup, the limit is {LOOKUP_USERS_MAX}",
                what="users",
                limit=LOOKUP_USERS_MAX,
                seen=len(users),
            )
        found = await self._statuses.lookup([checked_id(user, "user") for user in users], viewer=viewer)
        return json_response({"statuses": [_shown(user, found[user], viewer) for user in users]})


def _checked_viewer(viewer: str | None) -> str | None:
    return None if viewer is None else checked_id(viewer, "viewer")


def _shown(user: str, status: UserStatus, viewer: str | None) -> dict[str, Any]:
    if viewer is not None:
        return {"user": user, "state": status.state, "last_seen": status.last_seen}
    sessions = [session_json(session) for session in status.sessions]
    return {"user": user, "state": status.state, "sessions": sessions, "last_seen": status.last_seen}
