"""A histogram of latencies with the same relative precision everywhere, which can be sent and added up.

Values share a bucket when their eight most significant bits are the same, so a percentile is at most 0.8 % too high.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["Histogram"]

PRECISION_BITS = 7
LINEAR = 1 << PRECISION_BITS
"""Values below have a bucket each."""


class Histogram:
    """Counts of values from 0 up, in whatever unit."""

    __slots__ = ("_counts",)

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: Counter[int] = Counter()
        self.add(pairs)

    def __len__(self) -> int:
        return self._counts.total()

    def record(self, value: int) -> None:
        """Count a value; one below 0, by clocks that differ, counts as 0."""
        shift = max(0, value.bit_length() - PRECISION_BITS - 1)
        self._counts[(shift << PRECISION_BITS) + (value >> shift) if value > 0 else 0] += 1

    def add(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Add another histogram's `pairs`."""
        for bucket, count in pairs:
            self._counts[bucket] += count

    def pairs(self) -> list[tuple[int, int]]:
        """Return (bucket, count) in ascending order, which is what another histogram can be made from."""
        return sorted(self._counts.items())

    def percentile(self, p: float) -> int:
        """Return the greatest value of the bucket in which the p-th percentile (0 to 100) is; 0 without values."""
        wanted = max(1, -(-len(self) * p // 100))
        seen = 0
        for bucket, count in self.pairs():
            seen += count
            if seen >= wanted:
                return _greatest(bucket)
        return 0

    def summary(self, divisor: float = 1) -> dict[str, float]:
        """Return the count and some percentiles, divided into another unit."""
        values = {f"p{p:g}": round(self.percentile(p) / divisor, 3) for p in (50, 90, 99, 99.9, 100)}
        return {"count": len(self), **values}


def _greatest(bucket: int) -> int:
    if bucket < 2 * LINEAR:
        return bucket
    shift = (bucket >> PRECISION_BITS) - 1
    return ((bucket - (shift << PRECISION_BITS) + 1) << shift) - 1
