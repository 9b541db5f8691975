"""What a plan of moves keeps of each node: how fast it may go, whom a source was told to send, whom a target expects.

A source answers with totals of what became of the clients that it told. Until then an order counts as carried out, so
that a call without an answer makes the plan too careful rather than too fast.

A report is older than the answers: of the connections that it counts, some left since. So `SourceAccount` remembers how
many were gone when, and `leaving` says how many of a report's connections were told to go, then or since. A target's
report counts its own arrivals, so what `TargetAccount` expects is always what the same report does not contain yet.

Invariants:
    A1  In any second a pace gives at most max(1, rate), and in any time t at most max(1, rate * 0.6 s) + rate * t.
    A2  `coming` is in the order of sending, and holds no empty entries.
    A3  A source's account holds no more than its answers since its report that differ.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from base.clock import Instant

__all__ = ["RATE_MIN", "Pace", "SourceAccount", "TargetAccount", "Totals"]

CLIENT = 1_000_000
"""A client in millionths: the pace is counted in them, since steps are shorter than the time between two moves."""
RATE_MIN = 0.001
"""Clients a second. No pace is slower: one client in 1,000 s."""
SAVE_MS = 600
"""How much unused pace is kept: a step that comes late makes up for that much."""
WINDOW_MS = 1_000


class Totals(NamedTuple):
    """What a source says of the plan's clients, totals in its life: how many were told, and what became of them."""

    told: int = 0
    arrived: int = 0
    """Gone before their deadline."""
    closed: int = 0
    """Still there at their deadline, and closed."""

    @property
    def gone(self) -> int:
        """How many are not at the source any more."""
        return self.arrived + self.closed


class Pace:
    """A rate that may change: evenly spread, and at most a second's worth in any second."""

    __slots__ = ("_at", "_recent", "_saved")

    def __init__(self, now: Instant) -> None:
        self._at = now
        self._saved = 0
        self._recent: deque[list[int]] = deque()

    def room(self, now: Instant, rate_per_s: float) -> int:
        """Return how many may go now."""
        rate = round(max(rate_per_s, RATE_MIN) * 1_000)
        self._saved = min(self._saved + rate * (now - self._at), max(rate * SAVE_MS, CLIENT))
        self._at = now
        while self._recent and self._recent[0][0] <= now - WINDOW_MS:
            self._recent.popleft()
        return max(min(self._saved // CLIENT, max(rate // 1_000, 1) - self.in_window), 0)

    @property
    def in_window(self) -> int:
        """How many went within the last second."""
        return sum(count for _, count in self._recent)

    def take(self, now: Instant, count: int) -> None:
        """So many go now. Negative: so many of those who went now did not after all."""
        self._saved -= count * CLIENT
        if self._recent and self._recent[-1][0] == now:
            self._recent[-1][1] += count
        else:
            assert count > 0
            self._recent.append([now, count])


@dataclass(slots=True)
class SourceAccount:
    """What a node was told to give, in one life of it."""

    ordered: int = 0
    """Told as far as it answered, and whatever it may have been told since."""
    ordered_at: Instant = Instant(0)
    totals: Totals = field(default_factory=Totals)
    left_alone_until: Instant = Instant(0)
    """It gets no orders until then."""
    is_exhausted: bool = False
    """Whether it had nobody left who should go."""
    gone: deque[tuple[Instant, int]] = field(default_factory=deque)
    """How many were gone by its answers, from the last one before its newest report on; equal ones once."""

    @property
    def waiting(self) -> int:
        """How many may still be there who were told to go."""
        return max(self.ordered - self.totals.gone, 0)

    def order(self, now: Instant, count: int) -> None:
        """It is told to send so many."""
        self.ordered += count
        self.ordered_at = now
        self.is_exhausted = False

    def answer(self, now: Instant, totals: Totals) -> None:
        """It answered."""
        self.ordered = totals.told
        self.totals = totals
        if not self.gone or self.gone[-1][1] != totals.gone:
            self.gone.append((now, totals.gone))

    def give_up(self, before: int) -> None:
        """Expect nobody any more to go whose order was before that: it was not carried out."""
        if self.ordered_at < before:
            self.ordered = self.totals.gone

    def leaving(self, reported_at: int) -> int:
        """Return how many of a report's connections were told to go, then or since. Reports only get newer."""
        while len(self.gone) > 1 and self.gone[1][0] <= reported_at:
            self.gone.popleft()
        gone = self.gone[0][1] if self.gone and self.gone[0][0] <= reported_at else 0
        return max(self.ordered - gone, 0)


@dataclass(slots=True)
class TargetAccount:
    """Who was sent to a node, in one life of it."""

    pace: Pace
    turned_away: int = 0
    """The node's total, when it was last looked at."""
    admitted: int = 0
    """The same, of clients with the plan's tickets."""
    coming: deque[list[int]] = field(default_factory=deque)
    """[when, how many] that were sent there and did not arrive, oldest first."""

    @property
    def on_their_way(self) -> int:
        """How many are expected."""
        return sum(count for _, count in self.coming)

    def send(self, now: Instant, count: int) -> None:
        """So many are sent now."""
        self.pace.take(now, count)
        if self.coming and self.coming[-1][0] == now:
            self.coming[-1][1] += count
        else:
            self.coming.append([now, count])

    def take_back(self, now: Instant, count: int) -> None:
        """So many of those sent now were not after all."""
        self.pace.take(now, -count)
        assert self.coming[-1][0] == now
        self.coming[-1][1] -= count
        if not self.coming[-1][1]:
            self.coming.pop()

    def look(self, admitted: int, turned_away: int) -> tuple[int, int]:
        """Take the node's totals, and return by how many they grew. Whoever arrived, the oldest is expected no more."""
        arrived, away = max(admitted - self.admitted, 0), max(turned_away - self.turned_away, 0)
        self.admitted += arrived
        self.turned_away += away
        left = arrived
        while left > 0 and self.coming:
            taken = min(left, self.coming[0][1])
            self.coming[0][1] -= taken
            left -= taken
            if not self.coming[0][1]:
                self.coming.popleft()
        return arrived, away

    def give_up(self, before: int) -> None:
        """Expect nobody any more who was sent before that."""
        while self.coming and self.coming[0][0] < before:
            self.coming.popleft()
