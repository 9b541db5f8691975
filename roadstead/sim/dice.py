"""The only source of chance in a simulated history.

Everything that a history leaves to chance is drawn here, in the order of its events, from one seeded generator: so
the seed is the whole history. Draws are integers, like all time and weights.

Invariants:
    I1  Equal seeds and equal questions give equal answers, on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random  # noqa: TID251 - the one generator of a history, seeded by its caller
from typing import TypeVar

__all__ = ["Dice"]

T = TypeVar("T")


class Dice:
    """A seeded generator with the few kinds of draw that histories need."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - chance, never keys

    def chance(self, permille: int) -> bool:
        """Return True `permille` times in a thousand."""
        return permille > 0 and self._random.randrange(1_000) < permille

    def between(self, low: int, high: int) -> int:
        """Return an integer of low..high, both included."""
        return self._random.randint(low, high)

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, which must stand in an order that the seed decides."""
        return self._random.choice(items)

    def some(self, items: Sequence[T]) -> list[T]:
        """Return some of the items, at least one and never all; there must be two or more."""
        return self._random.sample(items, self.between(1, len(items) - 1))
