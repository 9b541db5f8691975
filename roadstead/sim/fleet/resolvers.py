"""Balancing by name service, to compare with: a resolver answers clients from its cache until the TTL is over.

The authoritative server leaves out the nodes that are gone or draining as soon as it knows; resolvers go on with what
they were told. An answer holds at most eight addresses, in an order that changes with each question to the
authoritative server; a client tries the first one, and the others if it fails.
"""

from __future__ import annotations

from collections.abc import Sequence

from roadstead.sim.fleet.balancers import Choice
from roadstead.sim.fleet.chance import Chance
from scheduler.core.node import AccessNode
from scheduler.core.request import Request

__all__ = ["Resolver"]

ADDRESSES_MAX = 8


class Resolver:
    """One resolver and the authoritative server behind it, as a balancer."""

    def __init__(self, chance: Chance, *, ttl_ms: int) -> None:
        self._chance = chance
        self._ttl_ms = ttl_ms
        self._open: list[str] = []
        self._cached: list[str] = []
        self._expires_at = 0

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:  # noqa: ARG002 - see Balancer
        """The authoritative server learns which nodes take clients."""
        self._open = [node.id for node in nodes if not node.is_draining]

    def decide(self, request: Request, now: int) -> Choice:  # noqa: ARG002 - see Balancer
        """Answer from the cache, or ask and keep what comes."""
        if now >= self._expires_at:
            self._cached = self._chance.sample(self._open, min(ADDRESSES_MAX, len(self._open)))
            # Resolvers were first asked at different times, so their caches end at different ones.
            left = self._ttl_ms if self._expires_at else int(self._chance.random() * self._ttl_ms)
            self._expires_at = now + max(1, left)
        order = self._cached
        if not order:
            return Choice(())
        first = int(self._chance.random() * len(order))
        return Choice((*order[first:], *order[:first]))
