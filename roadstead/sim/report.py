"""What is told about a history afterwards: its trace, its summary, its violation.

Two runs that did the same things at the same times have equal digests. That is how determinism is tested, and how
somebody who replays a seed knows that it is the same history.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from hashlib import blake2b

__all__ = ["Report", "Trace", "Violation"]


class Trace:
    """A digest of every line, and the last `keep` lines themselves."""

    def __init__(self, *, keep: int) -> None:
        self._lines: deque[str] = deque(maxlen=keep)
        self._hash = blake2b(digest_size=8)

    def add(self, line: str) -> None:
        """Append one line, which must be the same in every process: no addresses, no set order."""
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        self._lines.append(line)

    def digest(self) -> str:
        """Return the hex digest of every line so far."""
        return self._hash.hexdigest()

    def last(self) -> tuple[str, ...]:
        """Return the last lines, oldest first."""
        return tuple(self._lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What one history went through without a violation. `counts` are the history's own."""

    seed: int
    simulated_ms: int
    events: int
    """Calls of actors."""
    checks: int
    """Calls of checkers, each of which looks at the whole cluster."""
    digest: str
    counts: dict[str, int]


class Violation(Exception):
    """An invariant did not hold. The seed replays it; `trace` is what happened just before."""

    def __init__(self, seed: int, at: int, message: str, trace: tuple[str, ...]) -> None:
        super().__init__(f"seed {seed}, at {at} ms: {message}")
        self.seed = seed
        self.at = at
        self.message = message
        self.trace = trace
