"""A node's clients in the order in which they were let in, to be listed in pages while they come and go.

A client's *number* says when it came: later ones have greater numbers. The list is sorted by them, since clients join
at its end; who leaves is found by bisection, and those behind close up. For 20,000 clients that costs 10 us, which is
little beside the rest of what ends with a connection, and a client costs the 8 bytes of its entry. A scan for a page
would cost 10 ms instead: each client's number is another cache miss.

Invariants:
    I1  The numbers of the members ascend.
    I2  Whoever is a member throughout is on the pages from the first to the last exactly once, whoever comes and goes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Generic, TypeVar

__all__ = ["Arrivals"]

M = TypeVar("M")


class Arrivals(Generic[M]):
    """The members."""

    __slots__ = ("_members", "_number_of")

    def __init__(self, number_of: Callable[[M], int]) -> None:
        """`number_of` returns a member's number, at least 1. It must not change while it is one."""
        self._number_of = number_of
        self._members: list[M] = []

    def __len__(self) -> int:
        return len(self._members)

    def join(self, member: M) -> None:
        """Add a member; its number is greater than all before."""
        assert not self._members or self._number_of(member) > self._number_of(self._members[-1])
        self._members.append(member)

    def leave(self, member: M) -> None:
        """Remove a member. One that is not there does not matter."""
        at = bisect_left(self._members, self._number_of(member), key=self._number_of)
        if self._members[at : at + 1] == [member]:
            del self._members[at]

    def get(self, number: int) -> M | None:
        """Return the member with that number, if there is one."""
        at = bisect_left(self._members, number, key=self._number_of)
        for found in self._members[at : at + 1]:
            if self._number_of(found) == number:
                return found
        return None

    def page(self, after: int | None, limit: int, *, newest_first: bool = False) -> list[M]:
        """Return up to `limit` members that come after the number `after`, in the order of listing; None: the first."""
        if newest_first:
            end = len(self._members) if after is None else bisect_left(self._members, after, key=self._number_of)
            return self._members[max(0, end - limit) : end][::-1]
        begin = 0 if after is None else bisect_right(self._members, after, key=self._number_of)
        return self._members[begin : begin + limit]

    def check_invariants(self) -> None:
        """Assert I1."""
        assert all(self._number_of(one) < self._number_of(next_) for one, next_ in pairwise(self._members)), "I1"
