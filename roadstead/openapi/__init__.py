"""The OpenAPI 3.1 document of every public HTTP API, made from the code.

Decides how operations become a document: each path has the servers of the role that serves it, as `roadstead up` has
them by default; each operation the role that an API key needs, and one answer for each HTTP status of its errors, which
lists their codes.
"""

from __future__ import annotations

from typing import Any

from base.errors import Code
from base.http import Role
from roadstead import __version__
from roadstead.config import Config
from roadstead.openapi.access import ACCESS_OPERATIONS, access_schemas
from roadstead.openapi.messages import MESSAGE_OPERATIONS, message_schemas
from roadstead.openapi.operations import EVERY_NODE, JSON, OPERATIONS, Operation
from roadstead.openapi.scheduler import SCHEDULER_OPERATIONS, scheduler_schemas
from roadstead.openapi.schemas import Schema, ref, schemas

__all__ = ["document"]

_ROLES = {
    EVERY_NODE: "Health and metrics, on the port of every node.",
    "scheduler": "Where clients connect, and how that is decided.",
    "access": "The clients' connections, and the channels of the application, for operators and backends.",
    "status": "Who is online, and the cluster that knows it.",
    "im": "Conversations and messages, for backends.",
}


def document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in (*OPERATIONS, *SCHEDULER_OPERATIONS, *ACCESS_OPERATIONS, *MESSAGE_OPERATIONS):
        path = paths.setdefault(operation.path, {"servers": _servers(operation.served_by)})
        assert operation.method not in path, "an operation is described once"
        path[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Roadstead",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "The HTTP APIs of all nodes. Where GET is described, HEAD is answered as well. Every failure"
            " has the shape of `Error`; an unknown path is `not_found`, a wrong method `unknown_method`."
            " Only what is no HTTP, or has a request line or header of more than 8190 bytes, is refused in plain text.",
        },
        "tags": [{"name": name, "description": meaning} for name, meaning in _ROLES.items()],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": _security_schemes(),
        },
    }


def _schemas() -> dict[str, Schema]:
    made: dict[str, Schema] = {"NothingElse": _nothing_else()}
    for part in (schemas(), scheduler_schemas(), access_schemas(), message_schemas()):
        assert not made.keys() & part.keys(), "a name means one thing"
        made |= part
    return made


def _nothing_else() -> Schema:
    return {"type": "object", "properties": {}, "additionalProperties": False}


def _security_schemes() -> dict[str, Schema]:
    roles = ", ".join(role.name.lower() for role in Role)
    return {
        "apiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": f"An API key. Its role is one of {roles}; each includes those before it.",
        },
        "userToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A user token, signed by the operator's backend: HS256, with `sub` and `exp`.",
        },
    }


def _servers(role: str) -> list[Schema]:
    """Return where the role's first node listens by default; for what every node serves, that of each role."""
    up = Config().up
    ports = {"scheduler": up.port, "im": up.port + 1, "access": up.port + 2, "status": up.port + 2 + up.access_nodes}
    names = list(ports) if role == EVERY_NODE else [role]
    return [{"url": f"http://{up.host}:{ports[name]}", "description": f"{name}-1 of `roadstead up`"} for name in names]


def _operation(operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.served_by],
        "security": _security(operation),
        "responses": _responses(operation),
    }
    if operation.description:
        made["description"] = operation.description
    if operation.parameters:
        made["parameters"] = list(operation.parameters)
    if operation.body:
        content = {JSON: {"schema": ref(operation.body)}}
        if operation.text_body:
            content[operation.text_body] = {"schema": {"type": "string"}}
        made["requestBody"] = {"required": operation.body_required, "content": content}
    return made


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    ways: list[dict[str, list[str]]] = []
    if operation.key is not None:
        ways.append({"apiKey": [operation.key.name.lower()]})
    if operation.user_token:
        ways.append({"userToken": []})
    return ways


def _responses(operation: Operation) -> dict[str, Any]:
    answer = {
        "description": operation.answer_meaning,
        "content": {operation.answer_type: {"schema": operation.answer}},
    }
    made = {"200": answer}
    codes = {Code.INTERNAL, *operation.errors}
    if operation.key is not None:
        codes |= {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
    if operation.body:
        codes.add(Code.TOO_LARGE)
    for status in sorted({code.http_status for code in codes}):
        made[str(status)] = _failure([code for code in Code if code in codes and code.http_status == status])
    if operation.unchanged:
        made["304"] = {"description": operation.unchanged}
    for status, (meaning, schema) in operation.own_errors.items():
        made[str(status)] = {"description": meaning, "content": {JSON: {"schema": ref(schema)}}}
    if operation.not_ready is not None:
        made["503"] = {"description": "It does not.", "content": {JSON: {"schema": operation.not_ready}}}
    return made


def _failure(codes: list[Code]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": "\n".join(f"- `{code.label}` ({code.number}): {code.meaning}" for code in codes),
        "content": {JSON: {"schema": ref("Error")}},
    }
    if codes[0].http_status == Code.UNAVAILABLE.http_status:
        meaning = "Seconds after which to come back, where that is known."
        made["headers"] = {"Retry-After": {"description": meaning, "schema": {"type": "integer", "minimum": 0}}}
    return made
