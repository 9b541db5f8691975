"""Whom to take for live while a registry that was away, or lost everything, fills again.

Live processes notice within a heartbeat that a registry does not know them any more, and register again. Until then its
views miss them, one by one or all of them; and not always at once: a registry may come back with everybody, and only
then find that nobody was heard of for too long. Whoever believed such views would hang up on processes that are as well
as before, and call nobody at all. So the views are *doubted* for `keep_ms` from the first one after an outage, or the
first one of a registry that started over: who was there and is missed is *presumed* to be as it was shown last, until
it is shown again or the doubt is over. Who is dead is kept for no longer than its registration would have lasted.

In all other views who is not shown is gone.

Invariants:
    I1  What the last view showed is taken as it was shown.
    I2  Nobody is presumed unless the views are doubted.
"""

from __future__ import annotations

from collections.abc import Sequence

from base.clock import Instant
from base.core.registry import ServiceInstance

__all__ = ["Presumed"]


class Presumed:
    """One service's instances, as one process takes them."""

    __slots__ = ("_doubted_until", "_index", "_instances", "_keep_ms", "_presumed")

    def __init__(self, keep_ms: int) -> None:
        assert keep_ms >= 0
        self._keep_ms = keep_ms
        self._index = -1
        self._instances: dict[str, ServiceInstance] = {}
        self._presumed: set[str] = set()
        self._doubted_until: Instant | None = None

    def sees(
        self, now: Instant, index: int, shown: Sequence[ServiceInstance], *, was_away: bool
    ) -> tuple[ServiceInstance, ...]:
        """Return whom to take for live after a view.

        Args:
            now: the instant.
            index: the view's; a smaller one than the last tells that the registry started over.
            shown: whom the view has.
            was_away: whether reading failed since the last view.
        """
        if was_away or index < self._index:
            self._doubted_until = Instant(now + self._keep_ms)
        elif self._doubted_until is not None and now >= self._doubted_until:
            self._doubted_until = None
        self._index = index
        fresh = {instance.id: instance for instance in shown}
        known = self._instances if self._doubted_until is not None else {}
        self._presumed = known.keys() - fresh.keys()
        self._instances = known | fresh
        return tuple(self._instances[name] for name in sorted(self._instances))

    def next_deadline(self) -> Instant | None:
        """Return when who is presumed is presumed no longer, None without such: see the view again then."""
        return self._doubted_until if self._presumed else None

    def check_invariants(self) -> None:
        """Assert what one state shows."""
        assert self._presumed <= self._instances.keys(), "I1"
        assert not self._presumed or self._doubted_until is not None, "I2"
