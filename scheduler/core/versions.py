"""Which app versions a range holds, such as `<5.0` or `>=4.2 <5`.

Versions are ordered as semantic versions: 5.0.0-beta is before 5.0.0, and so is in `<5.0`; what follows a `+` does not
count. Of a partial version the rest is 0. But `>5.1` and `=5.1` mean 5.1.0 to some tools and all of 5.1 to others; so
there three numbers are demanded.

Source: Semantic Versioning 2.0.0, sections 9 to 11.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import eq, ge, gt, le, lt
from typing import Final, NamedTuple

from semver import Version

from scheduler.core.document import shown

__all__ = ["Bound", "is_in_range", "parse_range", "parse_version"]

LENGTH_MAX: Final = 64
"""Clients say their version themselves; nothing longer is looked at."""

_COMPARISONS: Final[dict[str, Callable[[Version, Version], bool]]] = {"<": lt, "<=": le, ">": gt, ">=": ge, "=": eq}
_BOUND = re.compile(r"[\s,]*(<=|>=|<|>|=)\s*([^\s,<>=]+)[\s,]*")


class Bound(NamedTuple):
    """One comparison, such as `<5.0.0`."""

    sign: str
    version: Version


def parse_version(version: str) -> Version | None:
    """Return the version; of a partial one the rest is 0, a leading `v` is none of it. None if it is no version."""
    if len(version) > LENGTH_MAX:
        return None
    try:
        return Version.parse(version[1:] if version[:1] in {"v", "V"} else version, optional_minor_and_patch=True)
    except ValueError:
        return None


def parse_range(version_range: str) -> tuple[Bound, ...] | str:
    """Return the range's bounds, all of which must hold, or what is wrong with it. Between them: blanks or commas."""
    bounds: list[Bound] = []
    at = 0
    while at < len(version_range):
        found = _BOUND.match(version_range, at)
        if found is None:
            break
        sign, written = found.groups()
        version = parse_version(written)
        if version is None:
            return f"{shown(written)} is not a version"
        is_partial = re.split("[-+]", written, maxsplit=1)[0].count(".") < 2
        if is_partial and sign not in {"<", ">="}:
            return f"{sign}{written} is read in different ways; write all three numbers, {sign}{version}"
        bounds.append(Bound(sign, version))
        at = found.end()
    if not bounds or at < len(version_range):
        return f"{shown(version_range)} is not a range of versions such as <5.0 or >=4.2 <5"
    return tuple(bounds)


def is_in_range(version: Version, bounds: tuple[Bound, ...]) -> bool:
    """Return whether the version is within all bounds."""
    return all(_COMPARISONS[bound.sign](version, bound.version) for bound in bounds)
