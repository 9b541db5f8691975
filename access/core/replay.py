"""Which tickets were used already: a ticket lets in one connection.

Remembers a ticket's id until the ticket expires, since after that its expiry refuses it. Bounded: when it is full, new
tickets are refused rather than old ones forgotten, because forgetting would let a stolen ticket in.

Invariants:
    I1  An id is accepted at most once before its expiry, not counting uses that were forgotten.
    I2  At most `limit` ids are held.
"""

from __future__ import annotations

import heapq
from enum import Enum

__all__ = ["ReplayCache", "Use"]


class Use(Enum):
    """The outcome of using a ticket."""

    FIRST = "first"
    REPEATED = "repeated"
    FULL = "full"
    """Too many unexpired tickets are remembered; try again when some have expired."""


class ReplayCache:
    """Ids of used tickets until they expire. Times are in seconds, as in the tickets."""

    def __init__(self, *, limit: int = 200_000) -> None:
        self._limit = limit
        # id -> whether it is used up; False once the use was forgotten.
        self._held: dict[str, bool] = {}
        self._expiries: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._held)

    def use(self, ticket_id: str, *, expires_at: int, now: int) -> Use:
        """Take note that the ticket is being used."""
        while self._expiries and self._expiries[0][0] < now:
            del self._held[heapq.heappop(self._expiries)[1]]
        if self._held.get(ticket_id):
            return Use.REPEATED
        if ticket_id not in self._held:
            if len(self._held) >= self._limit:
                return Use.FULL
            heapq.heappush(self._expiries, (expires_at, ticket_id))
        self._held[ticket_id] = True
        return Use.FIRST

    def forget(self, ticket_id: str) -> None:
        """The use came to nothing, by a failure on our side: the ticket is good for another try."""
        if ticket_id in self._held:
            self._held[ticket_id] = False
