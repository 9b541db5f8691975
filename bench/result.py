"""What a benchmark is given and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

__all__ = ["Options", "Result", "percentile"]


class Options(msgspec.Struct, frozen=True):
    """What can be asked of a benchmark."""

    quick: bool = False
    """Prove that it runs, in a few seconds."""
    connections: int | None = None
    """Of those that hold connections: how many, instead of their own number."""


class Result(msgspec.Struct, frozen=True):
    """The one line. `value` is a ratio to a peer or limit of the same run wherever there is one."""

    name: str
    value: float
    unit: str
    goal: float
    better: Literal["lower", "higher"]
    details: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the aim was met."""
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def to_json(self) -> str:
        """The line to print."""
        fields = msgspec.structs.asdict(self)
        details = fields.pop("details")
        return msgspec.json.encode({**fields, "ok": self.ok, "details": details}).decode()


def percentile(sorted_values: Sequence[float], p: float) -> float:
    """Return the p-th percentile (0 to 100) of sorted values, by the nearest rank."""
    assert sorted_values
    rank = max(1, -(-len(sorted_values) * p // 100))
    return sorted_values[int(rank) - 1]
