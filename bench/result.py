"""What a benchmark is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

__all__ = ["Better", "Comparison", "Options", "Result", "Series", "percentile"]

Better = Literal["lower", "higher"]


class Options(msgspec.Struct, frozen=True):
    """What can be asked of a benchmark."""

    quick: bool = False
    """Prove that it runs, in a few seconds."""
    connections: int | None = None
    """Of those that hold connections: how many, instead of their own number."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What we and others took for the same in the same run, in the same unit."""

    unit: str
    better: Better
    ours: float
    others: Mapping[str, float]
    """By name: a peer (another program that does the same), a limit, or another way to do it. Never empty."""
    what: str = "ours"
    """What `ours` is of, where that is not simply ours."""

    @classmethod
    def of_known(
        cls, *, unit: str, better: Better, ours: float | None, others: Mapping[str, float | None]
    ) -> Comparison | None:
        """Compare with those who have a figure at all, as not all simulated ones do; None where nobody has."""
        known = {name: figure for name, figure in others.items() if figure is not None}
        return cls(unit=unit, better=better, ours=ours, others=known) if ours is not None and known else None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """How something grows with something else."""

    of: str
    """What grows, with its unit."""
    over: str
    """What it grows with."""
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """By name: (over, of), in the order of `over`. Never empty."""


class Result(msgspec.Struct, frozen=True):
    """The one line. `value` is a ratio to a peer or limit of the same run wherever there is one."""

    name: str
    value: float
    unit: str
    goal: float
    better: Better
    details: dict[str, Any]
    comparison: Comparison | None = None
    """The figures behind the ratio, where there is a peer or limit. In the JSON only then."""
    series: Series | None = None
    """In the JSON only where there is one."""

    @property
    def ok(self) -> bool:
        """Whether the aim was met."""
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def to_json(self) -> str:
        """The line to print."""
        fields = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        details = fields.pop("details")
        return msgspec.json.encode({**fields, "ok": self.ok, "details": details}).decode()


def percentile(sorted_values: Sequence[float], p: float) -> float:
    """Return the p-th percentile (0 to 100) of sorted values, by the nearest rank."""
    assert sorted_values
    rank = max(1, -(-len(sorted_values) * p // 100))
    return sorted_values[int(rank) - 1]
