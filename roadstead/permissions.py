"""Who may do what over HTTP: one row for each operation of each role, made from the descriptions of the operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from access.api import EMULATION_PATH, EVENTS_PATH, POLL_PATH, STREAM_PATH, WEBSOCKET_PATH
from base.credentials import Role
from roadstead.openapi.access import ACCESS_OPERATIONS
from roadstead.openapi.messages import MESSAGE_OPERATIONS
from roadstead.openapi.operations import OPERATIONS
from roadstead.openapi.scheduler import SCHEDULER_OPERATIONS

__all__ = ["CLIENT_PATHS", "Permission", "Variant", "page", "permissions"]


class Variant(NamedTuple):
    """With `query` or `body` the operation takes another role; for people: `meaning`."""

    role: Role
    meaning: str
    query: str = ""
    body: Mapping[str, str] | None = None


class Permission(NamedTuple):
    """What an operation takes: a key of `role`, None for nothing; and where that differs."""

    served_by: str
    method: str
    path: str
    role: Role | None
    user_token: bool
    other: Variant | None


_TRIAL = Variant(Role.VIEWER, "to check a document only (`?validate`)", query="validate")
_OTHERS = {
    ("post", "/v1/admin/rollouts"): _TRIAL,
    ("put", "/v1/admin/policy"): _TRIAL,
    ("put", "/v1/admin/policy/shadow"): _TRIAL,
    ("post", "/v1/conversations/{cid}/changes"): Variant(
        Role.OPERATOR, "for the action `fan_out`", body={"action": "fan_out", "value": "read"}
    ),
}
_VIEWED = {"/metrics", "/debug/statistics"}
_ENTERED = "a ticket of a scheduler, or a token of the application, in the client's connect"
CLIENT_PATHS = {
    ("get", WEBSOCKET_PATH): _ENTERED,
    ("post", STREAM_PATH): _ENTERED,
    ("get", EVENTS_PATH): _ENTERED,
    ("post", POLL_PATH): _ENTERED,
    ("post", EMULATION_PATH): "what the connect was answered: the node and the session",
    ("get", "/healthz"): "nothing",
    ("get", "/readyz"): "nothing",
}
"""What an access node's port for clients takes."""
_TITLES = {
    "every node": "Every node",
    "scheduler": "Scheduler",
    "access": "Access node, on its port for operators",
    "status": "Status node",
    "im": "Message services",
}


def permissions() -> list[Permission]:
    """Return all rows, by role of the system and path."""
    every = (*OPERATIONS, *SCHEDULER_OPERATIONS, *ACCESS_OPERATIONS, *MESSAGE_OPERATIONS)
    order = list(_TITLES)
    rows = [
        Permission(one.served_by, one.method, one.path, one.key, one.user_token, _OTHERS.get((one.method, one.path)))
        for one in every
    ]
    return sorted(rows, key=lambda row: (order.index(row.served_by), row.path, row.method))


def page() -> str:
    """Return the reference page, in Markdown."""
    lines = [
        "# Permissions\n",
        "What a request needs, on every port of every role. An API key has one of four roles, and each includes those",
        "before it:\n",
        "| role | for |",
        "|---|---|",
        "| `viewer` | looking: nodes, statuses, counts, metrics |",
        "| `backend` | the application's servers: acting for users, sending, asking for tickets |",
        "| `operator` | changing the system: drain, resize, roll out, cordon; and seeing who is connected |",
        "| `admin` | everything, as of now the same |\n",
        "Without a known key the answer is 401 `unauthenticated`, with one of too low a role 403 `permission_denied`.",
        "What operators change, and who was refused on their paths, is",
        "[audited](../howto/secure-a-cluster.md#see-who-did-what).\n",
        "Streams between nodes (`/peer`, on every node) take a peer key and, with TLS, a certificate that names the",
        "node.\n",
    ]
    for served_by, title in _TITLES.items():
        lines += [f"## {title}\n", "| method | path | takes |", "|---|---|---|"]
        for row in permissions():
            if row.served_by == served_by:
                lines.append(f"| {row.method.upper()} | `{row.path}` | {_takes(row)} |")
        lines.append("")
    lines += ["## Access node, on its port for clients\n", "| method | path | takes |", "|---|---|---|"]
    lines += [f"| {method.upper()} | `{path}` | {takes} |" for (method, path), takes in CLIENT_PATHS.items()]
    return "\n".join(lines) + "\n"


def _takes(row: Permission) -> str:
    if row.path in _VIEWED:
        return "nothing on loopback, or with `security.open_metrics`; else `viewer`"
    if row.role is None:
        return "nothing"
    told = f"`{row.role.label}`"
    if row.user_token:
        told += ", or a user token for that user"
    if row.other is not None:
        told += f"; `{row.other.role.label}` {row.other.meaning}"
    return told
