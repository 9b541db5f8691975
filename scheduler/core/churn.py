"""How fast connections end, by what the nodes report: so that an older report can be compared with a newer one.

Of two nodes that reported the same, the one whose report is older has fewer connections left: nobody tells of an end
before the next report. All nodes are taken to lose the same part of their connections in the same time, which is
measured over all of them: newcomers let in, less what the number of connections rose by, per connection and ms.

Invariants:
    I1  What is left is never more than was reported, and never below 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scheduler.core.node import AccessNode

__all__ = ["Churn"]

HALF_LIFE_MS = 60_000.0
LIFETIME_MIN_MS = 20_000.0
"""Connections are never taken to be shorter, on average: when many end at once, that says little of the others."""


class Churn:
    """See the module. `now` is monotonic ms."""

    __slots__ = ("_at", "_ended", "_held", "_seen")

    def __init__(self) -> None:
        self._ended = 0.0
        self._held = 0.0
        """Connections times ms in which they were counted."""
        self._at = 0
        self._seen: dict[str, AccessNode] = {}

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:
        """Take a view."""
        fade = 0.5 ** (max(0, now - self._at) / HALF_LIFE_MS)
        self._at = now
        self._ended *= fade
        self._held *= fade
        for node in nodes:
            before = self._seen.get(node.id)
            if before is None or before.incarnation != node.incarnation:
                continue
            elapsed = node.reported_at - before.reported_at
            if elapsed > 0:
                self._ended += max(0, node.accepted - before.accepted + before.connections - node.connections)
                self._held += before.connections * elapsed
        self._seen = {node.id: node for node in nodes}

    def left(self, node: AccessNode, now: int) -> float:
        """Return how many of the connections that the node reported are probably there yet."""
        if not self._held:
            return float(node.connections)
        rate = min(self._ended / self._held, 1 / LIFETIME_MIN_MS)
        return node.connections * math.exp(-rate * max(0, now - node.reported_at))
