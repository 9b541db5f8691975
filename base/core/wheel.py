"""Many timers, few wake-ups: a hashed timer wheel.

A connection gateway keeps a timer or two for every connection, almost all of which are moved before they fire. A
heap pays O(log n) and garbage for each move; the wheel pays O(1): a timer is an entry in the slot of its tick, and
moving it overwrites its deadline, so that the entry found in the old slot is known to be stale.

Timers fire at the first tick at or after their deadline: never early, late by `tick_ms` at most plus however late
`advance` is called.

Invariants:
    I1  A key has at most one timer.
    I2  `advance(now)` returns exactly the keys whose deadline's tick has passed, each once, earliest tick first.

Source: G. Varghese and T. Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987), scheme 6.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from base.clock import Instant

__all__ = ["TimerWheel"]

K = TypeVar("K", bound=Hashable)


class TimerWheel(Generic[K]):
    """Timers by key. The owner calls `advance` every `tick_ms` and acts on what it returns."""

    def __init__(self, now: Instant, *, tick_ms: int = 100, slots: int = 512) -> None:
        """`slots * tick_ms` should cover most timers; longer ones cost a look per turn of the wheel."""
        assert tick_ms > 0
        assert slots > 1
        self._tick_ms = tick_ms
        self._slots: list[list[K]] = [[] for _ in range(slots)]
        self._due_tick: dict[K, int] = {}
        self._tick = now // tick_ms

    def __len__(self) -> int:
        return len(self._due_tick)

    def set(self, key: K, at: Instant) -> None:
        """Fire `key` at the first tick at or after `at`; replaces the key's timer if it has one."""
        # A deadline that is already past still fires at the next tick, never at one that has gone by.
        tick = max(-(-at // self._tick_ms), self._tick + 1)
        if self._due_tick.get(key) == tick:
            return
        self._due_tick[key] = tick
        self._slots[tick % len(self._slots)].append(key)

    def cancel(self, key: K) -> None:
        """Forget the key's timer, if any. Its slot entry stays until the wheel comes by."""
        self._due_tick.pop(key, None)

    def advance(self, now: Instant) -> list[K]:
        """Move to `now` and return the keys that are due, earliest first."""
        target = now // self._tick_ms
        # After a stall of more than one turn every slot is visited once; order then comes from the sort below.
        steps = min(target - self._tick, len(self._slots))
        first = target - steps + 1
        late: list[tuple[int, K]] = []
        for tick in range(first, target + 1):
            self._collect(tick % len(self._slots), target, late)
        self._tick = max(self._tick, target)
        late.sort(key=lambda entry: entry[0])
        return [key for _, key in late]

    def _collect(self, index: int, target: int, due: list[tuple[int, K]]) -> None:
        """Move the slot's due keys to `due`; what waits for a later turn stays."""
        slot = self._slots[index]
        if not slot:
            return
        waiting: dict[K, None] = {}  # a key moved away and back has two entries; one is enough
        for key in slot:
            tick = self._due_tick.get(key)
            if tick is None or tick % len(self._slots) != index:
                continue  # cancelled, or moved to another slot
            if tick <= target:
                del self._due_tick[key]
                due.append((tick, key))
            else:
                waiting[key] = None
        self._slots[index] = list(waiting)
