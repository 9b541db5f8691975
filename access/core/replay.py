"""Which tickets were used already: a ticket lets in one connection.

Remembers a ticket's id until the ticket expires, since after that its expiry refuses it. Bounded: when it is full, new
tickets are refused rather than old ones forgotten, because forgetting would let a stolen ticket in.

A node that takes thousands of clients a second holds hundreds of thousands of ids, so each is kept as 60 bits of its
hash (an int of that size takes 32 bytes, one of 64 bits takes 48), in one dictionary for each second of expiry, which
is dropped whole. Measured with 3,000 to 200,000 held over 30 to 120 s: 63 to 90 bytes a ticket, as the dictionaries
are about to grow or have just grown; the ids themselves in one dictionary and a heap took 220.

Two ids with the same hash are harmless. Ids are drawn by the scheduler and signed, so nobody can choose one to meet
another. By chance, a new ticket meets one of the h that are held in its second with probability h * 2^-60, and then is
refused as used: its client asks for another ticket. `forget` looks in all seconds, and would with that probability for
all that are held make another used ticket good again.

Invariants:
    I1  An id is accepted at most once before its expiry, not counting uses that were forgotten.
    I2  At most `limit` ids are held.
    I3  Every second held has an id in it and its place in the order of expiry.
"""

from __future__ import annotations

import heapq
from enum import Enum

from xxhash import xxh3_64_intdigest

__all__ = ["ReplayCache", "Use"]

HASH_BITS = 60


class Use(Enum):
    """The outcome of using a ticket."""

    FIRST = "first"
    REPEATED = "repeated"
    FULL = "full"
    """Too many unexpired tickets are remembered; try again when some have expired."""


class ReplayCache:
    """Ids of used tickets until they expire. Times are in seconds, as in the tickets."""

    __slots__ = ("_held", "_limit", "_order", "_seconds")

    def __init__(self, *, limit: int = 200_000) -> None:
        self._limit = limit
        # By second of expiry: id's hash -> whether it is used up; False once the use was forgotten.
        self._seconds: dict[int, dict[int, bool]] = {}
        self._order: list[int] = []
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def use(self, ticket_id: str, *, expires_at: int, now: int) -> Use:
        """Take note that the ticket is being used. A ticket has one id and one expiry, both signed."""
        while self._order and self._order[0] < now:
            self._held -= len(self._seconds.pop(heapq.heappop(self._order)))
        key = _hash(ticket_id)
        ids = self._seconds.get(expires_at, {})
        if ids.get(key):
            return Use.REPEATED
        if key not in ids:
            if self._held >= self._limit:
                return Use.FULL
            self._held += 1
            if not ids:
                self._seconds[expires_at] = ids
                heapq.heappush(self._order, expires_at)
        ids[key] = True
        return Use.FIRST

    def forget(self, ticket_id: str) -> None:
        """The use came to nothing, by a failure on our side: the ticket is good for another try.

        Costs a look into each second held: some tens, for the lifetime of a ticket.
        """
        key = _hash(ticket_id)
        for ids in self._seconds.values():
            if key in ids:
                ids[key] = False

    def check_invariants(self) -> None:
        """Assert I2 and I3."""
        assert self._held == sum(map(len, self._seconds.values())) <= self._limit, "I2"
        assert sorted(self._order) == sorted(self._seconds), "I3"
        assert all(self._seconds.values()), "I3"


def _hash(ticket_id: str) -> int:
    return xxh3_64_intdigest(ticket_id.encode()) >> (64 - HASH_BITS)
