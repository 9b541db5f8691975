"""Values with a unit, as options take them and as tables show them: times, rates, shares."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["PERCENT", "RATE", "TIME", "age", "count", "percent", "span"]

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


class _Duration(click.ParamType[int]):
    """A time such as 60s, 5m or 500ms, in ms."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,9})(ms|s|m|h)", str(value))
        if found is None:
            self.fail(f"{value!r} is no time such as 60s, 5m or 500ms", param, ctx)
        return int(found[1]) * _UNITS_MS[found[2]]


class _Rate(click.ParamType[float]):
    """A rate such as 200/s, a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)/s", str(value))
        if found is None:
            self.fail(f"{value!r} is no rate such as 200/s", param, ctx)
        return float(found[1])


class _Percent(click.ParamType[float]):
    """A share such as 3% or 2.5%, in percent."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?)%", str(value))
        if found is None:
            self.fail(f"{value!r} is no share such as 3%", param, ctx)
        return float(found[1])


TIME = _Duration()
RATE = _Rate()
PERCENT = _Percent()


def span(ms: float) -> str:
    """Return a time as people read it: `350 ms`, `12 s`, `3 m 20 s`, `2 h 5 m`."""
    seconds = round(ms / 1000)
    if seconds < 1:
        return f"{ms:.0f} ms"
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3_600:
        return f"{seconds // 60} m {seconds % 60} s"
    return f"{seconds // 3_600} h {seconds % 3_600 // 60} m"


def age(at: int, now: int) -> str:
    """Return how long ago a wall time (ms) was."""
    return f"{span(max(0, now - at))} ago"


def percent(value: float | None) -> str:
    """Return a share in percent; None is that of nothing."""
    return "none" if value is None else f"{value:.3g} %"


def count(number: int, what: str) -> str:
    """Return a number with its noun: `1 node`, `2,000 nodes`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
