"""How much is unread, asked often: counters in memory for those who asked lately, checked against the pointers.

The pointers in the store are the truth. Now and then a user's counters are compared with them; a difference is a
defect of ours, which is counted, told in the log, and mended on the spot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from base.errors import RoadsteadError
from base.log import logger
from im.core.commands import Executed, GroupChanged, Marked
from im.core.unread import Pointers, Unread, UnreadCounters, pointers, unread
from im.metrics import ImMetrics
from im.ports import Listed, MessageStore

__all__ = ["Counting", "pointers_of"]

PARTS_MAX = 1_000_000
RECENT_MAX = 1_000
"""Users who asked lately and are compared in turn."""


class Counting:
    """The counters of one message service."""

    def __init__(
        self,
        store: MessageStore,
        metrics: ImMetrics,
        *,
        settle: Callable[[], Awaitable[None]],
        interval_ms: int,
        is_caching: bool = True,
    ) -> None:
        """Count in the store's conversations.

        Args:
            store: has the pointers.
            metrics: what is counted.
            settle: returns when all that can be read now is `committed`.
            interval_ms: from one comparison to the next one.
            is_caching: whether all that changes the counters is told to `committed`. Else each asking reads.
        """
        self._store = store
        self._settle = settle
        self._metrics = metrics
        self._interval_ms = interval_ms
        self._counters = UnreadCounters(parts_max=PARTS_MAX)
        self._recent: dict[str, None] = {}
        self._reads = 0
        """Users that are being read from the store: what is committed meanwhile is wanted then."""
        self._log = logger()
        self._is_caching = is_caching
        self.forget = metrics.counted.add(lambda: len(self._counters))

    def committed(self, executed: Executed) -> None:
        """Apply what became durable."""
        if not self._reads and not self._counters.users:
            return  # nobody is counted, nor about to be
        for delivery in executed.deliveries:
            if delivery.is_first:
                self._counters.applied(delivery.message)
        for outcome in executed.outcomes:
            if isinstance(outcome, Marked):
                self._counters.applied(outcome.view)
            elif isinstance(outcome, GroupChanged):
                for member in outcome.members:
                    self._counters.applied(member)

    async def unread(self, user: str) -> list[Unread]:
        """Return what the user has not read of each conversation."""
        if not self._is_caching:
            return _unread([pointers_of(one) for one in await self._store.conversations(user)])
        self._recent[user] = None
        while len(self._recent) > RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        known = self._counters.unread(user)
        if known is not None:
            return known
        since = self._counters.position
        self._reads += 1
        try:
            parts = [pointers_of(one) for one in await self._store.conversations(user)]
            self._counters.learn(user, parts, since=since)
        finally:
            self._reads -= 1
        return _unread(parts)

    async def run(self) -> None:
        """Compare one user after the other until cancelled."""
        while True:
            await asyncio.sleep(self._interval_ms / 1000)
            if self._recent:
                user = next(iter(self._recent))
                del self._recent[user]
                try:
                    await self._compare(user)
                except RoadsteadError as error:
                    self._log.info("unread_not_compared", user=user, error=str(error))

    async def _compare(self, user: str) -> None:
        since = self._counters.position
        listed = await self._store.conversations(user)
        await self._settle()  # whatever was read has been applied then
        drift = self._counters.reconcile(user, map(pointers_of, listed), since=since)
        if drift:
            self._metrics.drift.inc(drift)
            self._log.error("unread_drifted", user=user, conversations=drift)


def _unread(parts: Iterable[Pointers]) -> list[Unread]:
    return [Unread(part.cid, unread(part), part.is_muted) for part in parts]


def pointers_of(one: Listed) -> Pointers:
    """Return what counts of a listed conversation."""
    return pointers(one.view, one.member, max_seq=one.max_seq, max_cseq=one.max_cseq, recalled=one.recalled)
