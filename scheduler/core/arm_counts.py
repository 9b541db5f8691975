"""How many clients were sent to each arm: in all, and in the last minute.

Of a rollout two numbers are always told: its share of new assignments, which follows a step within a minute, and its
share of live connections, which follows as clients come back. This counts the first.

Invariants:
    I1  The last minute's counts are those of the 60 whole or begun seconds up to now.
    I2  No arm has more in the last minute than in all.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ArmCounts"]

SECONDS = 60


class ArmCounts:
    """See the module. `now` is monotonic, in ms; one that is a little behind counts where it belongs."""

    __slots__ = ("_seconds", "_slots", "totals")

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        """Since the beginning, by arm."""
        self._slots: list[dict[str, int]] = [{} for _ in range(SECONDS)]
        self._seconds = [-1] * SECONDS

    def add(self, arm: str, now: int) -> None:
        """Count a client who was sent to the arm."""
        self.totals[arm] = self.totals.get(arm, 0) + 1
        second = now // 1_000
        place = second % SECONDS
        if self._seconds[place] < second:
            self._seconds[place] = second
            self._slots[place] = {}
        slot = self._slots[place]
        slot[arm] = slot.get(arm, 0) + 1

    def last_minute(self, now: int) -> Mapping[str, int]:
        """Return the counts of the last minute, by arm; arms that got nobody are left out."""
        second = now // 1_000
        counts: dict[str, int] = {}
        for slot, at in zip(self._slots, self._seconds, strict=True):
            if second - SECONDS < at <= second:
                for arm, count in slot.items():
                    counts[arm] = counts.get(arm, 0) + count
        return counts

    def check_invariants(self) -> None:
        """Assert I2, and what I1 rests on."""
        sums: dict[str, int] = {}
        for place, (slot, at) in enumerate(zip(self._slots, self._seconds, strict=True)):
            assert at == -1 or at % SECONDS == place, "I1"
            for arm, count in slot.items():
                sums[arm] = sums.get(arm, 0) + count
        assert all(count <= self.totals[arm] for arm, count in sums.items()), "I2"
