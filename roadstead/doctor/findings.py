"""What a look comes to: well, well but, or not well, and what to do then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from base.errors import RoadsteadError

__all__ = ["Degraded", "Finding", "found"]


class Finding(msgspec.Struct, frozen=True):
    """One check: what was looked at, whether it is well, what was seen, what to do if it is not.

    A warning is ok, since everything is served, and there is something to do all the same.
    """

    check: str
    is_ok: bool
    seen: str
    advice: str = ""
    is_warning: bool = False


class Degraded(RoadsteadError):
    """Everything is served, and something that it stands on is away."""


async def found(check: str, look: Callable[[], Awaitable[str]], advice: str) -> Finding:
    """Look, and tell what was found. `look` returns what it saw, and raises what is wrong, or `Degraded`."""
    try:
        return Finding(check, is_ok=True, seen=await look())
    except Degraded as warning:
        return Finding(check, is_ok=True, seen=str(warning), advice=advice, is_warning=True)
    except (RoadsteadError, TimeoutError) as error:
        return Finding(check, is_ok=False, seen=str(error) or type(error).__name__, advice=advice)
