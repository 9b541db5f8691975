"""Clients that were ordered to go to other nodes, plan by plan: who still has to go, and who is closed in the end.

```
    told ──gone──▶ arrived
      ├──grace is over──▶ closed
      └──the node is drained──▶ released
```

A *plan* is somebody else's, a scheduler's say, who moves clients of many nodes in small orders and at a pace of its
own; here it is a name with totals. A drain of this node takes all clients over, as it moves them anyhow.

Invariants:
    I1  A client that was told waits in one plan, until it is in one of the three other places.
    I2  Of each plan that is known, told = waiting + arrived + closed + released.
    I3  A waiting client is closed by the first `expire` at or after its deadline, and by none before. Also when its
        plan is forgotten: it was told so.
    I4  At most `plans_max` plans are known, those with the latest orders. Deadlines are held for at most twice as many
        as wait, and `SPARE` more.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from base.clock import Instant

__all__ = ["MovePlans", "MoveTotals"]

SPARE = 64


@dataclass(slots=True)
class MoveTotals:
    """The clients of one plan at this node, by where they are."""

    told: int = 0
    waiting: int = 0
    """Told to go, and still here."""
    arrived: int = 0
    """Gone before the deadline: at the target, as far as this node can tell."""
    closed: int = 0
    released: int = 0


class MovePlans:
    """The plans of one node. Times are in ms on one monotonic clock."""

    __slots__ = ("_deadlines", "_plans", "_plans_max", "_waiting")

    def __init__(self, *, plans_max: int = 16) -> None:
        """`plans_max`: of so many plans totals are kept."""
        assert plans_max > 0
        self._plans_max = plans_max
        # By the latest order, oldest first.
        self._plans: dict[str, MoveTotals] = {}
        # Client -> totals of its plan, which may be forgotten meanwhile, and its deadline.
        self._waiting: dict[str, tuple[MoveTotals, Instant]] = {}
        # A heap. Of who went already the entry stays until its time, or until there are too many such.
        self._deadlines: list[tuple[Instant, str]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, client: str) -> bool:
        """Whether the client was told, and has to go."""
        return client in self._waiting

    def totals(self, plan: str) -> MoveTotals:
        """Return the plan's totals; zeros if it is not known, or not any more."""
        return self._plans.get(plan, MoveTotals())

    def told(self, plan: str, client: str, deadline: Instant) -> None:
        """The client was told to go before the deadline. It must not be waiting."""
        assert client not in self._waiting
        totals = self._plans[plan] = self._plans.pop(plan, MoveTotals())
        if len(self._plans) > self._plans_max:
            del self._plans[next(iter(self._plans))]
        totals.told += 1
        totals.waiting += 1
        self._waiting[client] = (totals, deadline)
        heapq.heappush(self._deadlines, (deadline, client))

    def gone(self, client: str) -> bool:
        """The client's connection is closed. Returns whether it had been told, and so has arrived."""
        if client not in self._waiting:
            return False
        self._leave(client).arrived += 1
        return True

    def expire(self, now: Instant) -> list[str]:
        """Return whom to close: they had until now."""
        close = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, client = heapq.heappop(self._deadlines)
            if self._waiting.get(client, (None, None))[1] == deadline:
                self._leave(client).closed += 1
                close.append(client)
        return close

    def release(self) -> None:
        """Nobody is waited for any more."""
        for totals, _ in self._waiting.values():
            totals.waiting -= 1
            totals.released += 1
        self._waiting = {}
        self._deadlines = []

    def check_invariants(self) -> None:
        """Assert I2, that all deadlines of I3 are held, and I4."""
        for totals in (*self._plans.values(), *(totals for totals, _ in self._waiting.values())):
            assert totals.told == totals.waiting + totals.arrived + totals.closed + totals.released, "I2"
            assert totals.waiting == sum(its is totals for its, _ in self._waiting.values()), "I2"
        held = set(self._deadlines)
        assert all((deadline, client) in held for client, (_, deadline) in self._waiting.items()), "I3"
        assert len(self._plans) <= self._plans_max, "I4"
        assert len(self._deadlines) <= 2 * len(self._waiting) + SPARE, "I4"

    def _leave(self, client: str) -> MoveTotals:
        totals, _ = self._waiting.pop(client)
        totals.waiting -= 1
        if len(self._deadlines) > 2 * len(self._waiting) + SPARE:
            self._deadlines = [(deadline, waiting) for waiting, (_, deadline) in self._waiting.items()]
            heapq.heapify(self._deadlines)
        return totals
