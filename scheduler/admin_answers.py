"""What the operators' APIs have in common: documents that are sent and checked, shares, and what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from base.errors import BadRequest
from base.http import body_of, json_body
from scheduler.core.document import Fault
from scheduler.orders import Orders

__all__ = ["Document", "assigned_to", "document_of", "is_check", "percent_of", "unreadable", "validated"]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document as JSON carries it."""

    document: str


def assigned_to(arm: str, totals: Mapping[str, int], minute: Mapping[str, int]) -> dict[str, Any]:
    """Return this scheduler's new assignments to an arm, since it started and in the last minute."""
    count, recent = totals.get(arm, 0), minute.get(arm, 0)
    return {
        "count": count,
        "percent": percent_of(count, sum(totals.values())),
        "minute_count": recent,
        "minute_percent": percent_of(recent, sum(minute.values())),
    }


def percent_of(part: float, whole: float) -> float | None:
    """Return it with three digits; None of nothing."""
    return round(100 * part / whole, 3) if whole else None


def unreadable(orders: Orders, prefix: str) -> dict[str, str]:
    """Return what cannot be read of the orders below a key, by name, and why."""
    return {key.removeprefix(prefix): why for key, why in orders.bad.items() if key.startswith(prefix)}


def is_check(request: web.Request) -> bool:
    """Return whether a document is only to be checked. Raises BadRequest for any other query."""
    others = set(request.query) - {"validate"}
    if others:
        raise BadRequest(f"unknown query parameters: {', '.join(sorted(others))}")
    return "validate" in request.query


async def document_of(request: web.Request) -> str:
    """Return the document that a request brings. Raises BadRequest or TooLarge."""
    if request.content_type == "application/json":
        return (await json_body(request, Document)).document
    try:
        return (await body_of(request)).decode()
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not UTF-8") from error


def validated(name: str, parsed: object, shown: Callable[[Any], object] = msgspec.to_builtins) -> dict[str, object]:
    """Return what a check of a document answers: what was parsed under `name`, or its faults."""
    faults: tuple[Fault, ...] = parsed if isinstance(parsed, tuple) else ()
    return {
        "ok": not faults,
        "faults": [{"line": fault.line, "message": fault.message} for fault in faults],
        name: None if faults else shown(parsed),
    }
