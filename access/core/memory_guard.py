"""Whether there is memory for one more client, and whom to let go when what waits for clients takes too much.

Two sums are watched. The resident memory of the process decides on newcomers: above 90 % of the limit they are refused,
until it has fallen below 85 %, so that a node at its limit does not flap between yes and no. The bytes queued for all
clients decide on those who are here: each queue has a bound of its own, but many clients that are slow at once (a
balancer stalls, a carrier drops packets) can take the node down with all of them below it. Those with the longest
queues go first, since they are the furthest behind and the fewest; they reconnect and recover by position, so nothing
is lost.

Invariants:
    I1  Between the two marks the answer is the last one given.
    I2  Nobody is let go while the sum is within `queued_max`; afterwards it is at most 80 % of it.
    I3  Nobody is let go before a client with a longer queue, and none more than it takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from typing import TypeVar

__all__ = ["Guard"]

REFUSE_ABOVE_PERCENT = 90
ACCEPT_BELOW_PERCENT = 85
SHED_TO_PERCENT = 80

H = TypeVar("H", bound=Hashable)


class Guard:
    """The guard of one process."""

    __slots__ = ("_is_refusing", "_limit", "_queued_max")

    def __init__(self, limit: int, queued_max: int) -> None:
        """`limit`: resident bytes that the process may use, 0 for no limit. `queued_max`: bytes queued for all."""
        assert limit >= 0
        assert queued_max > 0
        self._limit = limit
        self._queued_max = queued_max
        self._is_refusing = False

    def accepts(self, resident: int) -> bool:
        """Return whether a newcomer may be let in. `resident`: bytes that the process uses now."""
        mark = ACCEPT_BELOW_PERCENT if self._is_refusing else REFUSE_ABOVE_PERCENT
        used, bound = resident * 100, self._limit * mark
        # The marks themselves belong to the answer that stands.
        self._is_refusing = self._limit > 0 and (used >= bound if self._is_refusing else used > bound)
        return not self._is_refusing

    def shed(self, queued: Mapping[H, int]) -> tuple[H, ...]:
        """Return the clients to close, longest queue first; of equal ones the first named. `queued`: bytes by client.

        Costs one pass as long as all is well, O(n + k log n) to name k of n clients.
        """
        left = sum(queued.values())
        if left <= self._queued_max:
            return ()
        longest = [(-size, number, handle) for number, (handle, size) in enumerate(queued.items())]
        heapq.heapify(longest)
        closed: list[H] = []
        while left * 100 > self._queued_max * SHED_TO_PERCENT:
            size, _, handle = heapq.heappop(longest)
            left += size
            closed.append(handle)
        return tuple(closed)
