"""How a duration is distributed, in few bytes and whole numbers: counts in buckets that all processes have in common.

Buckets are 1 ms wide up to 8 ms. From there each doubling has eight of them, so that a bucket's upper boundary is at
most 12.5 % above its lower one. The last boundary is 65,536 ms; what took longer is in the overflow. A bucket
holds its lower boundary and not its upper one: boundaries are exact, so questions about them have exact answers.

A histogram counts since its owner started, so that a report that is lost takes nothing with it. `minus` gives a window.

Wire form: a byte that names the buckets, then per bucket that is not empty how many were skipped and its count, both
LEB128 (DWARF 5, section 7.6). Other bytes decode to an empty histogram: they cost a reader one report, not its life.

Source: G. Tene, HdrHistogram (buckets linear within a power of two).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import add, sub
from typing import Final

__all__ = ["BOUNDARIES", "Histogram"]

_PER_DOUBLING = 8
_LAST_MS = 65_536


def _boundaries() -> tuple[int, ...]:
    found = list(range(1, _PER_DOUBLING + 1))
    while found[-1] < _LAST_MS:
        found.append(found[-1] + max(1 << found[-1].bit_length() - 1, _PER_DOUBLING) // _PER_DOUBLING)
    return tuple(found)


BOUNDARIES: Final = _boundaries()
"""Upper boundaries in ms, ascending. The overflow has none."""

_BUCKETS = len(BOUNDARIES) + 1
_FORM = 1
_COUNT_MAX = (1 << 63) - 1


class Histogram:
    """Counts of durations. Cheap to feed, cheap to send, exact to add and to subtract."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Sequence[int] = ()) -> None:
        """`counts` per bucket, ascending; those that are left out are 0."""
        assert len(counts) <= _BUCKETS
        self._counts = [*counts, *[0] * (_BUCKETS - len(counts))]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        upper = (*BOUNDARIES, math.inf)
        return f"Histogram({ {upper[index]: count for index, count in enumerate(self._counts) if count} })"

    def observe(self, ms: float) -> None:
        """Count one duration. A negative one, which no monotonic clock gives, counts as 0."""
        self._counts[bisect_right(BOUNDARIES, ms)] += 1

    @property
    def counts(self) -> tuple[int, ...]:
        """One count per bucket, ascending, the overflow last."""
        return tuple(self._counts)

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self._counts)

    def count_above(self, boundary: float) -> int:
        """Return how many durations were `boundary` ms or more.

        Exact for a boundary. For anything between two of them, how many were surely that long: those from the next
        boundary on. Infinity has none above it.
        """
        return sum(self._counts[bisect_left(BOUNDARIES, boundary) + 1 :])

    def quantile(self, p: float) -> float | None:
        """Return the lowest boundary in ms that at least the part `p` of all durations is below, 0 < p <= 1.

        Infinity if that many are only with the overflow; None if nothing was counted.
        """
        assert 0 < p <= 1
        below = list(accumulate(self._counts))
        if not below[-1]:
            return None
        index = bisect_left(below, p * below[-1])
        return BOUNDARIES[index] if index < len(BOUNDARIES) else math.inf

    def merge(self, other: Histogram) -> None:
        """Add the other's counts to this one."""
        self._counts = list(map(add, self._counts, other._counts))

    def minus(self, earlier: Histogram) -> Histogram:
        """Return what was counted since `earlier`, a previous state of this one.

        If any count is lower than it was, the owner started anew in between: then all of this one came since.
        """
        gained = list(map(sub, self._counts, earlier._counts))
        return Histogram(self._counts if min(gained) < 0 else gained)

    def encode(self) -> bytes:
        """Return the wire form. Empty histograms have none: b""."""
        encoded = bytearray()
        skipped = 0
        for count in self._counts:
            if count:
                _put(encoded, skipped)
                _put(encoded, count)
                skipped = 0
            else:
                skipped += 1
        return bytes((_FORM, *encoded)) if encoded else b""

    @classmethod
    def decode(cls, encoded: bytes) -> Histogram:
        """Return the histogram of a wire form; an empty one if the bytes are none."""
        numbers = _numbers(encoded[1:]) if encoded[:1] == bytes((_FORM,)) else None
        if numbers is None or len(numbers) % 2:
            return cls()
        counts = [0] * _BUCKETS
        index = -1
        for skipped, count in zip(numbers[::2], numbers[1::2], strict=True):
            index += skipped + 1
            if index >= _BUCKETS or not 0 < count <= _COUNT_MAX:
                return cls()
            counts[index] = count
        return cls(counts)


def _put(encoded: bytearray, number: int) -> None:
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)


def _numbers(encoded: bytes) -> list[int] | None:
    """Return the numbers, or None if the last one is cut off."""
    numbers = []
    number = shift = 0
    for byte in encoded:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    return None if shift else numbers
