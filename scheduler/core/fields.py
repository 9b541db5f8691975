"""Which value a part of a document is: names, numbers, percentages, durations, rates, lists, and mappings of them.

A reader takes a node and gives its value; if it cannot, it adds a fault and gives None. Readers are put together:
`fields.optional("steps", items(step, most=50), ())`. So all that is wrong is found in one pass.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple, Protocol, TypeVar

from scheduler.core.document import FAULTS_MAX, Faults, Items, Mapping, Node, Scalar, shown

__all__ = [
    "Fields",
    "Place",
    "Read",
    "choice",
    "complain",
    "duration",
    "entries",
    "items",
    "name",
    "named_twice",
    "number",
    "rate",
    "relative",
    "share",
    "text",
    "whole",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_RATE = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)/(s|m)")
_UNIT_S = {"s": 1, "m": 60}
_PERCENT = re.compile(r"([-+]?[0-9]{1,5}(?:\.[0-9]{1,6})?)%")

T = TypeVar("T")
D = TypeVar("D")
T_co = TypeVar("T_co", covariant=True)


class Read(Protocol[T_co]):
    """A reader of one kind of value."""

    def __call__(self, node: Node, faults: Faults, /) -> T_co | None:
        """Return the node's value, or add a fault and return None."""
        ...


class Fields:
    """Reads one mapping, key by key. A faulty or missing field gives a filler: nobody uses it, for there is a fault."""

    __slots__ = ("_asked", "_entries", "_faults", "_is_mapping", "_node", "is_good")

    def __init__(self, node: Node, faults: Faults) -> None:
        self._node = node
        self._faults = faults
        self._is_mapping = isinstance(node, Mapping)
        self._entries = node.entries if isinstance(node, Mapping) else {}
        self._asked: dict[str, None] = {}
        self.is_good = self._is_mapping
        """Whether every field that was read so far is good."""
        if not self._is_mapping:
            complain(node, faults, "needs keys and values here")

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def required(self, key: str, read: Read[T], filler: T) -> T:
        """Return the field's value."""
        if key not in self._entries and self._is_mapping:
            self._asked[key] = None
            self.fault(key, f"{key} is missing")
        return self.optional(key, read, filler)

    def optional(self, key: str, read: Read[T], default: D) -> T | D:
        """Return the field's value, or `default` if it is not there."""
        self._asked[key] = None
        entry = self._entries.get(key)
        if entry is None:
            return default
        value = read(entry.node, self._faults)
        if value is None:
            self.is_good = False
            return default
        return value

    def fault(self, key: str, message: str) -> None:
        """Add a fault at the line of a field, or of the whole mapping if the field is not there."""
        entry = self._entries.get(key)
        self._faults.add(entry.line if entry else self._node.line, _where(self._node) + message)
        self.is_good = False

    def close(self) -> bool:
        """Complain of every key that nobody asked for; return whether all is good."""
        for key in self._entries:
            if key in self._asked:
                continue
            # Looking for near words costs some 50 us; a text of a thousand unknown keys is not worth it.
            near = difflib.get_close_matches(key[:40], self._asked, n=1) if len(self._faults) < FAULTS_MAX else ()
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._asked)}"
            self.fault(key, f"{shown(key)} is not known here; {hint}")
        return self.is_good


# ---------------------------------------------------------------- lists


class Place(NamedTuple):
    """Where a value stands."""

    line: int
    path: str


def entries(read: Read[T], *, most: int) -> Read[tuple[tuple[Place, T | None], ...]]:
    """Read a list of 1 to `most`, each with its place, None for those that are faulty: for checks across a list."""

    def read_entries(node: Node, faults: Faults) -> tuple[tuple[Place, T | None], ...] | None:
        if not isinstance(node, Items):
            complain(node, faults, "needs a list here")
            return None
        if not 1 <= len(node.nodes) <= most:
            complain(node, faults, f"has {len(node.nodes)} entries; 1 to {most:,} are allowed")
            return None
        return tuple((Place(each.line, each.path), read(each, faults)) for each in node.nodes)

    return read_entries


def items(read: Read[T], *, most: int) -> Read[tuple[T, ...]]:
    """Read a list of 1 to `most`, all of which must be good."""
    read_entries = entries(read, most=most)

    def read_items(node: Node, faults: Faults) -> tuple[T, ...] | None:
        found = read_entries(node, faults)
        if found is None:
            return None
        good = tuple(value for _, value in found if value is not None)
        return good if len(good) == len(found) else None

    return read_items


def named_twice(names: Iterable[tuple[Place, str]], faults: Faults) -> None:
    """Add a fault for each name that was there before."""
    first: dict[str, Place] = {}
    for place, each in names:
        before = first.setdefault(each, place)
        if before is not place:
            faults.add(place.line, f"{place.path}: {each} is a name already, in line {before.line}")


# ---------------------------------------------------------------- text


def text(node: Node, faults: Faults) -> str | None:
    """Read any text but the empty one."""
    if not isinstance(node, Scalar):
        complain(node, faults, "needs a single value here")
    elif node.kind in {"number", "bool"}:
        complain(node, faults, f'must be text, which {node.text} is not to YAML: write it in quotes, "{node.text}"')
    elif node.kind != "text":
        _complain_of_kind(node, faults)
    elif not node.text.strip():
        complain(node, faults, "must not be empty")
    else:
        return node.text
    return None


def name(node: Node, faults: Faults) -> str | None:
    """Read a name: lower-case letters, digits and . _ - (not first), at most 63 characters."""
    value = text(node, faults)
    if value is None or _NAME.fullmatch(value):
        return value
    complain(node, faults, f"{shown(value)} is not a name: a-z, 0-9 and . _ - (not first), at most 63 characters")
    return None


def choice(*options: str) -> Read[str]:
    """Read one of these words."""

    def read_choice(node: Node, faults: Faults) -> str | None:
        value = text(node, faults)
        if value is None or value in options:
            return value
        near = difflib.get_close_matches(value[:40], options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it must be {' or '.join(options)}"
        complain(node, faults, f"{shown(value)} is not known here; {hint}")
        return None

    return read_choice


# ---------------------------------------------------------------- numbers


def number(low: float, high: float) -> Read[float]:
    """Read a number of that range, both ends included."""

    def read_number(node: Node, faults: Faults) -> float | None:
        exact = _decimal(node, faults)
        if exact is None or low <= exact <= high:
            return None if exact is None else float(exact)
        complain(node, faults, f"must be from {low:,g} to {high:,g}")
        return None

    return read_number


def whole(low: int, high: int) -> Read[int]:
    """Read an integer of that range, both ends included."""

    def read_whole(node: Node, faults: Faults) -> int | None:
        exact = _decimal(node, faults)
        if exact is None or (low <= exact <= high and exact == int(exact)):
            return None if exact is None else int(exact)
        complain(node, faults, f"must be a whole number from {low:,} to {high:,}")
        return None

    return read_whole


def share(node: Node, faults: Faults) -> int | None:
    """Read a percentage, `12.5` or `12.5%`, as thousandths of a percent: 0 to 100,000."""
    percent = _matched(_PERCENT, node)
    exact = Decimal(percent[1]) if percent else _decimal(node, faults)
    if exact is None:
        return None
    if not 0 <= exact <= 100:
        complain(node, faults, "must be from 0 to 100 percent")
        return None
    if exact * 1_000 != int(exact * 1_000):
        complain(node, faults, "has more than three decimals; shares are in thousandths of a percent")
        return None
    return int(exact * 1_000)


def relative(node: Node, faults: Faults) -> float | None:
    """Read a difference such as `-0.2%` or `+15%` as a fraction: -0.002, 0.15.

    The sign `%` must be there: 0.15 could mean either.
    """
    percent = _matched(_PERCENT, node)
    if percent:
        return float(Decimal(percent[1]) / 100)
    complain(node, faults, "must be a difference in percent, such as -0.2% or +15%")
    return None


def duration(low_ms: int, high_ms: int) -> Read[int]:
    """Read a duration of that range, such as `500ms`, `30s`, `10m`, `2h`, `1d`, as ms."""

    def read_duration(node: Node, faults: Faults) -> int | None:
        found = _matched(_DURATION, node)
        if found is None:
            complain(node, faults, "must be a duration such as 500ms, 30s, 10m, 2h or 1d")
            return None
        value = int(found[1]) * _UNIT_MS[found[2]]
        if low_ms <= value <= high_ms:
            return value
        complain(node, faults, f"must be from {_duration_text(low_ms)} to {_duration_text(high_ms)}")
        return None

    return read_duration


def rate(node: Node, faults: Faults) -> float | None:
    """Read a rate such as `200/s` or `30/m` as a number a second, more than 0."""
    found = _matched(_RATE, node)
    if found and Decimal(found[1]):
        return float(Decimal(found[1]) / _UNIT_S[found[2]])
    complain(node, faults, "must be a rate above 0, such as 200/s or 30/m")
    return None


def _matched(pattern: re.Pattern[str], node: Node) -> re.Match[str] | None:
    return pattern.fullmatch(node.text) if isinstance(node, Scalar) else None


def _decimal(node: Node, faults: Faults) -> Decimal | None:
    if not isinstance(node, Scalar):
        complain(node, faults, "needs a number here")
    elif node.kind in {"text", "bool"}:
        complain(node, faults, f"{shown(node.text)} is not a number")
    elif node.kind != "number":
        _complain_of_kind(node, faults)
    else:
        return Decimal(node.text)
    return None


def _duration_text(ms: int) -> str:
    """Return the duration in the largest unit that leaves it whole."""
    unit = next(unit for unit, size in _UNIT_MS.items() if ms >= size and ms % size == 0) if ms else "s"
    return f"{ms // _UNIT_MS[unit]}{unit}"


# ---------------------------------------------------------------- complaints


def complain(node: Node, faults: Faults, message: str) -> None:
    """Add a fault at the node's line, with its path; not if its value was refused before it was read."""
    if not (isinstance(node, Scalar) and node.kind == "refused"):
        faults.add(node.line, _where(node) + message)


def _where(node: Node) -> str:
    return f"{node.path}: " if node.path else ""


def _complain_of_kind(node: Scalar, faults: Faults) -> None:
    """Say what is wrong with a null or with what is read in different ways."""
    if node.kind == "null":
        complain(node, faults, "has no value")
    else:
        advice = "write text in quotes, numbers as 12 or 0.5, truth values as true or false"
        complain(node, faults, f"YAML readers do not agree on what {node.text} is: {advice}")
