"""How long to wait before trying again: exponential, with full jitter.

Waiting a uniformly random time below a doubling ceiling spreads a crowd of retriers over the whole interval, so that
they do not come back in waves.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Backoff"]


class _Randrange(Protocol):
    def randrange(self, stop: int, /) -> int: ...


class Backoff:
    """Delays for one retrier. `random` is its own source, seeded in tests."""

    def __init__(self, random: _Randrange, *, base_ms: int = 50, ceiling_ms: int = 5_000) -> None:
        assert 0 < base_ms <= ceiling_ms
        self._random = random
        self._base_ms = base_ms
        self._ceiling_ms = ceiling_ms
        self._tries = 0

    def next_ms(self) -> int:
        """Return the next delay in ms, at least 1, and raise the ceiling for the one after."""
        ceiling = min(self._ceiling_ms, self._base_ms << min(self._tries, 30))
        self._tries += 1
        return 1 + self._random.randrange(ceiling)

    def reset(self) -> None:
        """Start over: the last try worked."""
        self._tries = 0
