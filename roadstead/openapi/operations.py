"""Every operation of the HTTP APIs: where it is, which role serves it, who may ask, what it takes and answers.

Decides what is public: all that a role registers on its own port but the peer streams of the nodes. What access nodes
have on their port for clients is the client protocol, which is described elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from base.errors import Code
from base.http import Role
from roadstead.openapi.schemas import Schema, integer, ref, text
from status.core.events import CURSOR_CHARS_MAX
from status.core.rollcall import CURSOR_CHARS_MAX as LISTING_CHARS_MAX
from status.events_api import LIMIT
from status.feed import PAGE_MAX, WAIT_MS_MAX
from status.rollcall import PAGE_MAX as LISTED_MAX
from status.rollcall_api import LIMIT as LISTED

__all__ = ["EVERY_NODE", "JSON", "OPERATIONS", "Operation", "query"]

JSON = "application/json"
EVERY_NODE: Final = "every node"
_CLUSTER_ONLY = "Needs the status backend `cluster`; with `redis` the answer is `not_found`."

_VIEWED = "Takes an API key of the role viewer, unless the node listens on loopback or `security.open_metrics` is set."


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `key` is the least role of an API key, None where nothing is asked for.

    `text_body` is a content type in which the body may also come as plain text. `unchanged` says when 304 is answered.
    `own_errors` are answers of another shape than `Error`, by status: what they mean, and their schema's name.
    """

    method: Literal["get", "post", "put", "delete"]
    path: str
    name: str
    served_by: Literal["every node", "scheduler", "access", "status", "im"]
    summary: str
    description: str = ""
    key: Role | None = None
    user_token: bool = False
    parameters: tuple[Schema, ...] = ()
    body: str = ""
    body_required: bool = True
    text_body: str = ""
    answer: Schema
    answer_type: str = JSON
    answer_meaning: str = "The answer."
    not_ready: Schema | None = None
    errors: tuple[Code, ...] = ()
    unchanged: str = ""
    own_errors: Mapping[int, tuple[str, str]] = field(default_factory=dict)


def query(name: str, schema: Schema, meaning: str, **more: Any) -> Schema:
    """Return an optional parameter of the query."""
    return {"name": name, "in": "query", "required": False, "description": meaning, "schema": schema, **more}


_USER = {"name": "user", "in": "path", "required": True, "description": "The user.", "schema": ref("Id")}
_CURSOR = query(
    "cursor",
    text(default="", maxLength=CURSOR_CHARS_MAX),
    "What the last answer gave. Empty: from now on; `start`: everything that is open first.",
)
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The last `id` of a stream that broke; goes before `cursor`.",
    "schema": text(maxLength=CURSOR_CHARS_MAX),
}
_VIEWER = query("viewer", ref("Id"), "Answer with what this user may see: no sessions.")

_NODE: tuple[Operation, ...] = (
    Operation(
        method="get",
        path="/healthz",
        name="getHealth",
        served_by=EVERY_NODE,
        summary="Whether the process runs",
        answer=ref("Health"),
    ),
    Operation(
        method="get",
        path="/readyz",
        name="getReadiness",
        served_by=EVERY_NODE,
        summary="Whether the node takes work",
        answer=ref("Readiness"),
        answer_meaning="It does.",
        not_ready=ref("Readiness"),
    ),
    Operation(
        method="get",
        path="/metrics",
        name="getMetrics",
        served_by=EVERY_NODE,
        summary="Metrics for Prometheus",
        description=_VIEWED,
        answer=text(),
        answer_type="text/plain",
        answer_meaning="The text format of Prometheus, version 0.0.4.",
        errors=(Code.UNAUTHENTICATED, Code.PERMISSION_DENIED),
    ),
    Operation(
        method="get",
        path="/debug/statistics",
        name="getStatistics",
        served_by=EVERY_NODE,
        summary="A snapshot of the node's state, for people",
        description=_VIEWED,
        answer=ref("Statistics"),
        errors=(Code.UNAUTHENTICATED, Code.PERMISSION_DENIED),
    ),
)

_STATUSES: tuple[Operation, ...] = (
    Operation(
        method="get",
        path="/v1/users/{user}/status",
        name="getUserStatus",
        served_by="status",
        summary="Whether a user is online, and with which sessions",
        key=Role.VIEWER,
        parameters=(_USER, _VIEWER),
        answer=ref("UserStatus"),
        errors=(Code.BAD_REQUEST,),
    ),
    Operation(
        method="post",
        path="/v1/users/status",
        name="getUserStatuses",
        served_by="status",
        summary="The same of many users at once",
        key=Role.VIEWER,
        body="StatusesRequest",
        answer=ref("UserStatuses"),
        errors=(Code.BAD_REQUEST, Code.LIMIT_EXCEEDED),
    ),
    Operation(
        method="get",
        path="/v1/status/count",
        name="countOnline",
        served_by="status",
        summary="How many users and sessions are online, in all and behind each access node",
        description=f"Looks at every user, so ask every few seconds at most. {_CLUSTER_ONLY}",
        key=Role.VIEWER,
        answer=ref("OnlineCount"),
        errors=(Code.BAD_REQUEST, Code.NOT_FOUND, Code.NOT_READY),
    ),
)

_FEED_ERRORS = (Code.BAD_REQUEST, Code.NOT_FOUND, Code.LIMIT_EXCEEDED, Code.NOT_READY, Code.OVERLOADED)
_EVENTS: tuple[Operation, ...] = (
    Operation(
        method="get",
        path="/v1/events",
        name="getEvents",
        served_by="status",
        summary="A page of the session events of all users",
        description=f"At least once from any cursor. {_CLUSTER_ONLY}",
        key=Role.BACKEND,
        parameters=(
            _CURSOR,
            query("limit", integer(least=1, most=PAGE_MAX, default=LIMIT), "A page ends with what reaches it."),
            query("wait_ms", integer(most=WAIT_MS_MAX, default=0), "How long to wait rather than say: nothing."),
        ),
        answer=ref("EventPage"),
        errors=_FEED_ERRORS,
    ),
    Operation(
        method="get",
        path="/v1/events/stream",
        name="streamEvents",
        served_by="status",
        summary="The session events of all users, as they come",
        description=f"At least once from any cursor. {_CLUSTER_ONLY}",
        key=Role.BACKEND,
        parameters=(_CURSOR, _LAST_EVENT_ID),
        answer=text(),
        answer_type="text/event-stream",
        answer_meaning="Server-sent events without an end: `event` is the kind, `data` an `Event` as JSON, and `id`, "
        "with the last one of each page, the cursor after it. A silent stream gets a comment every 15 s.",
        errors=(*_FEED_ERRORS, Code.DRAINING),
    ),
)

_LOOK_ERRORS = (Code.NOT_FOUND, Code.NOT_READY, Code.STORE_UNAVAILABLE)
_ORDER_ERRORS = (*_LOOK_ERRORS, Code.BAD_REQUEST, Code.CAS_CONFLICT)


def _look(what: str, name: str, summary: str, answer: str) -> Operation:
    return Operation(
        method="get",
        path=f"/v1/admin/status/{what}",
        name=name,
        served_by="status",
        summary=summary,
        description=_CLUSTER_ONLY,
        key=Role.VIEWER,
        answer=ref(answer),
        errors=_LOOK_ERRORS,
    )


def _order(what: str, summary: str, answer: str, *, body: str = "NothingElse") -> Operation:
    return Operation(
        method="post",
        path=f"/v1/admin/status/{what}",
        name=f"{what}Status",
        served_by="status",
        summary=summary,
        description=f"Takes no query parameters. {_CLUSTER_ONLY}",
        key=Role.OPERATOR,
        body=body,
        body_required=body != "NothingElse",
        answer=ref(answer),
        errors=_ORDER_ERRORS,
    )


_SESSIONS = Operation(
    method="get",
    path="/v1/admin/status/sessions",
    name="getSessions",
    served_by="status",
    summary="A page of the users and sessions behind an access node",
    description="In the order of partitions, and of users within one. A session that is open during the whole listing "
    f"is in it, unless a page says that it misses its partition. {_CLUSTER_ONLY}",
    key=Role.OPERATOR,
    parameters=(
        query("node", ref("Id"), "The access node. One that there is not has no sessions.") | {"required": True},
        query(
            "limit",
            integer(least=1, most=LISTED_MAX, default=LISTED),
            "About how many sessions: a page may be shorter before the end, and a user's sessions are never parted.",
        ),
        query("cursor", text(default="", maxLength=LISTING_CHARS_MAX), "What the last page gave; empty: begin."),
    ),
    answer=ref("SessionPage"),
    errors=(Code.BAD_REQUEST, Code.NOT_FOUND, Code.NOT_READY),
)

_ADMIN: tuple[Operation, ...] = (
    _look("table", "getTable", "Who owns what", "PartitionTable"),
    _look("resize", "getResize", "How far a resize is", "ResizeProgress"),
    _look("digest", "getDigest", "What is held of each access node", "Digest"),
    _SESSIONS,
    _order("resize", "Change nodes and weights, or only plan it", "ResizePlan", body="ResizeRequest"),
    _order("pause", "Begin no moves and seal nothing more", "ResizeProgress"),
    _order("resume", "Go on", "ResizeProgress"),
    _order("abort", "Roll back the moves that can be, and pause", "AbortResult"),
)

OPERATIONS: tuple[Operation, ...] = (*_NODE, *_STATUSES, *_EVENTS, *_ADMIN)
