"""Who may connect at all: decided for each newcomer before the upgrade, so that a refusal is an HTTP status.

A refusal says when to come back, by the present load: a socket that is accepted and closed at once would make a client
believe that it had got through, and start its backoff anew.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Hashable, Mapping
from typing import TypeVar

from access.config import AccessConfig
from access.core.memory_guard import Guard
from access.metrics import AccessMetrics
from base.clock import Clock, Instant
from base.core.limits import Counts, KeyedBuckets, TokenBucket, address_key
from base.core.origins import Origins
from base.errors import Draining, Overloaded, PermissionDenied, RoadsteadError

__all__ = ["Admission"]

H = TypeVar("H", bound=Hashable)

ADDRESSES_MAX = 100_000
"""Addresses whose rates are remembered."""
WATCH_MS = 1_000
LAG_SAMPLE_S = 0.2
"""How often it is looked how late the loop is: an idle node pays for each time that it wakes up."""
BACK_MS = 1_000
"""When to come back to a node that is full, drains or has no memory: by then the scheduler knows."""
PAGE_BYTES = resource.getpagesize()


class Admission:
    """Decides on newcomers, and counts those who were let in until they left."""

    def __init__(self, config: AccessConfig, clock: Clock, metrics: AccessMetrics) -> None:
        self.is_draining = False
        self._capacity = config.capacity
        self._clock = clock
        self._metrics = metrics
        self._origins = Origins(config.origins)
        self._rate = TokenBucket(config.accepts_per_second, max(1, 2 * config.accepts_per_second))
        rate = config.address_accepts_per_second
        self._rates = KeyedBuckets(rate, max(1, 2 * rate), ADDRESSES_MAX)
        self._none_before = Instant(0)
        """Until then there is no newcomer that the common rate has room for."""
        self._counts = Counts(config.address_connections_max)
        self._guard = Guard(config.memory_bytes_max, config.queued_bytes_max)
        self.open = 0
        """How many clients are here."""
        self.accepted = 0
        """Newcomers that were let in, since the start."""
        self.resident = 0
        """Resident bytes of the process when it was last looked at."""
        self.lag_s = 0.0
        """How late the event loop was, the worst of the last second."""

    async def run(self) -> None:
        """Watch memory and the loop until cancelled."""
        loop = asyncio.get_running_loop()
        worst = 0.0
        look_at = 0.0
        while True:
            due = loop.time() + LAG_SAMPLE_S
            await asyncio.sleep(LAG_SAMPLE_S)
            worst = max(worst, loop.time() - due)
            if loop.time() >= look_at:
                look_at = loop.time() + WATCH_MS / 1000
                self.resident, self.lag_s, worst = _resident_bytes(), worst, 0.0

    def allows_origin(self, origin: str | None) -> bool:
        """Return whether a page of the origin may connect; None is no page."""
        return self._origins.allows(origin)

    def refusal_of_all(self) -> RoadsteadError | None:
        """Return why any newcomer is refused now, whoever it is; None: it depends. As cheap as it can be."""
        if self.is_draining:
            return self._refusal("draining", Draining("this access node is draining", retry_after_ms=BACK_MS))
        if self.open >= self._capacity:
            return self._overloaded("full", "connections", BACK_MS)
        if not self._guard.accepts(self.resident):
            return self._overloaded("memory", "memory", BACK_MS)
        wait_ms = self._none_before - self._clock.monotonic()
        return self._overloaded("rate", "accepts_per_second", wait_ms) if wait_ms > 0 else None

    def check(self, address: str, origin: str | None) -> None:
        """Decide on a newcomer, at a page's origin if it is a browser.

        Raises:
            Draining: this node takes nobody any more.
            Overloaded: too many, here or from the address, or too fast, or too little memory.
            PermissionDenied: the page's origin is not allowed.
        """
        closed = self.refusal_of_all()
        if closed is not None:
            raise closed
        now = self._clock.monotonic()
        if not self._origins.allows(origin):
            raise self._refusal("origin", PermissionDenied("pages of this origin may not connect"))
        # What one address has too much of is not taken from what all have together.
        key = address_key(address)
        if self._counts.is_full(key):
            raise self._overloaded("address", "address_connections", BACK_MS)
        wait_ms = self._rates.take(key, now)
        if wait_ms:
            raise self._overloaded("address_rate", "address_accepts_per_second", wait_ms)
        wait_ms = self._rate.take(now)
        if wait_ms:
            self._none_before = Instant(now + wait_ms)
            raise self._overloaded("rate", "accepts_per_second", wait_ms)

    def check_room(self, address: str) -> None:
        """Decide once more on a newcomer that passed the check a while ago. It takes from no rate. Raises as that."""
        if self.is_draining:
            raise self._refusal("draining", Draining("this access node is draining", retry_after_ms=BACK_MS))
        if self.open >= self._capacity:
            raise self._overloaded("full", "connections", BACK_MS)
        if self._counts.is_full(address_key(address)):
            raise self._overloaded("address", "address_connections", BACK_MS)

    def enter(self, address: str) -> None:
        """A newcomer that passed the check is there."""
        self.open += 1
        self.accepted += 1
        self._counts.enter(address_key(address))

    def leave(self, address: str) -> None:
        """Somebody who entered is gone."""
        self.open -= 1
        self._counts.leave(address_key(address))

    def shed(self, queued: Mapping[H, int]) -> tuple[H, ...]:
        """Return whom to close because too much waits for all clients together. `queued`: bytes by client."""
        return self._guard.shed(queued)

    def _overloaded(self, reason: str, what: str, wait_ms: int) -> RoadsteadError:
        return self._refusal(
            reason, Overloaded("too many connections for now; try another node", what=what, retry_after_ms=wait_ms)
        )

    def _refusal(self, reason: str, error: RoadsteadError) -> RoadsteadError:
        self._metrics.refused.inc(reason)
        return error


def _resident_bytes() -> int:
    """Return the resident memory of this process; where the system does not tell, the most it ever was."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - read once a second
            return int(file.read().split()[1]) * PAGE_BYTES
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
