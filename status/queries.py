"""What the query of an HTTP request may say: no parameter that is unknown, numbers within bounds."""

from __future__ import annotations

from aiohttp import web

from base.errors import BadRequest

__all__ = ["check_names", "number"]


def check_names(request: web.Request, *known: str) -> None:
    """Raise BadRequest if the query has other parameters than these."""
    unknown = sorted(set(request.query) - set(known))
    if unknown:
        raise BadRequest(f"unknown query parameters: {', '.join(unknown)}")


def number(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    """Return a parameter that is a whole number, the default where it is absent or empty.

    Raises:
        BadRequest: it is none, or out of bounds.
    """
    text = request.query.get(name, "")
    if not text:
        return default
    # Not int() alone: it takes "1_000" and the digits of any script.
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not least <= value <= most:
        raise BadRequest(f"{name} must be a number from {least} to {most}, not {text[:40]!r}")
    return value
