"""The simulated network: which copies of a message arrive, and when.

Each link, in each direction, has its own ordinary range of delays; a few messages take far longer, some are lost,
some come twice. Reordering follows from the delays. A cut stops every message from one group of hosts to another,
those already in flight too; cutting the other direction as well is a second cut.

It decides fates only. Carrying them out, and time, are the world's.

Invariants:
    I1  Nothing arrives over a cut link, neither what is sent during the cut nor what would land in it.
    I2  Once healed, every message arrives exactly once within `delay_ms_max`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from roadstead.sim.dice import Dice
from roadstead.sim.faults import Faults

__all__ = ["Network"]


@dataclass(frozen=True, slots=True)
class _Cut:
    sources: frozenset[str]
    targets: frozenset[str]
    until: int


class Network:
    """Links between named hosts. Instants are true time."""

    def __init__(self, dice: Dice, faults: Faults) -> None:
        self._dice = dice
        self._faults = faults
        self._cuts: list[_Cut] = []
        self._ranges: dict[tuple[str, str], tuple[int, int]] = {}

    def fates(self, now: int, source: str, target: str) -> list[int]:
        """Return the delay of each copy of a message that leaves now: none when it is lost."""
        if self.is_cut(now, source, target) or self._dice.chance(self._faults.loss_permille):
            return []
        copies = 2 if self._dice.chance(self._faults.duplicate_permille) else 1
        return [self._delay(source, target) for _ in range(copies)]

    def cut(self, sources: Iterable[str], targets: Iterable[str], *, until: int) -> None:
        """Stop every message from a source to a target until then."""
        self._cuts.append(_Cut(frozenset(sources), frozenset(targets), until))

    def is_cut(self, now: int, source: str, target: str) -> bool:
        """Return whether a cut stands between them in this direction."""
        if not self._cuts:
            return False
        self._cuts = [cut for cut in self._cuts if now < cut.until]
        return any(source in cut.sources and target in cut.targets for cut in self._cuts)

    def heal(self) -> None:
        """End every cut and every fault to come. What is late already stays late."""
        self._cuts = []
        self._faults = self._faults.healed()

    def _delay(self, source: str, target: str) -> int:
        low, high = self._range(source, target)
        if self._dice.chance(self._faults.tail_permille):
            return self._dice.between(high, max(high, self._faults.tail_ms_max))
        return self._dice.between(low, high)

    def _range(self, source: str, target: str) -> tuple[int, int]:
        link = (source, target)
        if link not in self._ranges:
            low = self._dice.between(self._faults.delay_ms_min, self._faults.delay_ms_max)
            self._ranges[link] = (low, self._dice.between(low, self._faults.delay_ms_max))
        return self._ranges[link]
