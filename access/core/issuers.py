"""How many connections were let in by the tickets of each issuer: what tells a scheduler its share of all decisions.

A scheduler compares the count of its own tickets with that of all, and with how many it signed. Issuers come and go
with the lives of schedulers and with plans of moves, so only the most recent are counted.

Invariants:
    I1  At most `limit` issuers are known, those whose tickets came last.
    I2  An issuer's count is how many of its tickets came since it became known.
"""

from __future__ import annotations

__all__ = ["Issuers"]


class Issuers:
    """Counts by issuer."""

    __slots__ = ("_counts", "_limit")

    def __init__(self, *, limit: int = 64) -> None:
        assert limit > 0
        self._limit = limit
        # By when a ticket came last, oldest first.
        self._counts: dict[str, int] = {}

    def count(self, issuer: str) -> None:
        """A connection was let in by a ticket of the issuer."""
        self._counts[issuer] = self._counts.pop(issuer, 0) + 1
        if len(self._counts) > self._limit:
            del self._counts[next(iter(self._counts))]

    def counts(self) -> dict[str, int]:
        """Return the counts of the issuers that are known."""
        return dict(self._counts)

    def check_invariants(self) -> None:
        """Assert the bound of I1, and that nobody is known without a ticket."""
        assert len(self._counts) <= self._limit, "I1"
        assert all(count > 0 for count in self._counts.values()), "I2"
