"""What is left of access nodes' lives that are over, taken out of the stores bit by bit.

A dead access node's sessions are hidden at once, in no time, because nobody vouches for them. Here they are forgotten,
a few thousand entries a round, so that a node with a hundred thousand of them does not stop everybody else. Stores on
the move are left for later: their other copy must stay equal. Old tombstones, and users who were not seen for long, are
forgotten in the same way.

Invariants:
    I1  A life's number is given free only when no store has anything of it.
    I2  A store is swept only when nobody may vouch for the life in it: it is over, or the store's grace has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from base.clock import Instant, Timestamp
from status.core.records import Item, PartitionRecords, Sources
from status.core.vouching import Vouching

__all__ = ["SEEN_MS", "SWEEP_ITEMS", "Sweep"]

SWEEP_ITEMS = 2_000
"""How many entries one round looks at: about a millisecond."""
EXPIRE_PARTITIONS = 4
"""In how many partitions one round forgets old tombstones."""
FORGET_MS = 500
"""How often users who were not seen for long are forgotten, in one partition at a time: it costs a pass over them."""
SEEN_MS = 86_400_000


class Store(Protocol):
    """A partition's store, as a sweep needs it."""

    @property
    def records(self) -> PartitionRecords:
        """What is swept."""
        ...

    @property
    def grace_until(self) -> Instant:
        """Until when another owner's vouches may count in it, in listened time (`vouching`)."""
        ...

    def is_moving(self) -> bool:
        """Return whether it has another copy, or is one."""
        ...

    def knows(self, source: bytes) -> bool:
        """Return whether it has anything of the life."""
        ...


@dataclass(slots=True)
class _Budget:
    """How many entries a round may still look at, and what it took out."""

    entries: int
    gone: list[tuple[int, Item]] = field(default_factory=list)


class Sweep:
    """The lives that are being swept out, each with the partitions that are left to look at."""

    def __init__(self, sources: Sources, vouching: Vouching, seen_ms: int) -> None:
        """`seen_ms`: for how long it is known when a user was last seen."""
        self._seen_ms = seen_ms
        self._forget_at = Instant(0)
        self._to_expire: list[int] = []
        self._sources = sources
        self._vouching = vouching
        self._left: dict[bytes, list[int]] = {}

    def __len__(self) -> int:
        return len(self._left)

    def begin(self, source: bytes, stores: Mapping[int, Store]) -> None:
        """Begin to sweep a life out, or begin anew."""
        self._left[source] = list(stores)

    def end(self, source: bytes) -> None:
        """Stop, if it is being swept: the life is back, and will tell everything again."""
        self._left.pop(source, None)

    def step(self, now: Instant, at: Timestamp, stores: Mapping[int, Store]) -> tuple[list[tuple[int, Item]], bool]:
        """Sweep for one round.

        Returns what was open and is gone, with its partition, and whether a life is forgotten for good. `at` is told as
        the end of those sessions.
        """
        budget = _Budget(SWEEP_ITEMS)
        is_over = False
        for source, partitions in list(self._left.items()):
            kept = self._sweep(now, at, source, stores, budget)
            # What was staged since the sweep began may have brought the dead again (I1).
            partitions.extend(kept or (one for one, store in stores.items() if store.knows(source)))
            if not partitions:
                del self._left[source]
                self._sources.forget(source)
                is_over = True
        return budget.gone, is_over

    def expire(self, now: Instant, at: Timestamp, stores: Mapping[int, Store]) -> None:
        """Forget what is old in a few stores, all of them in turn, and find lives that are over."""
        if not self._to_expire:
            self._to_expire = list(stores)
        batch = self._to_expire[:EXPIRE_PARTITIONS]
        del self._to_expire[:EXPIRE_PARTITIONS]
        for store in [stores[partition] for partition in batch if partition in stores]:
            store.records.expire(now)
            if now >= self._forget_at and not store.is_moving():
                self._forget_at = Instant(now + FORGET_MS)
                store.records.forget_seen(Timestamp(at - self._seen_ms))
            for source in store.records.sources() if self._vouching.listened(now) >= store.grace_until else ():
                # It came with the partition, and its life was over, or never heard of here.
                if not self._vouching.is_known(self._sources.life(source)) and source not in self._left:
                    self.begin(source, stores)

    def _sweep(
        self, now: Instant, at: Timestamp, source: bytes, stores: Mapping[int, Store], budget: _Budget
    ) -> list[int]:
        """Sweep one life until the budget is spent; return the partitions to come back to."""
        kept: list[int] = []
        is_over = self._vouching.is_over(self._sources.life(source))
        partitions = self._left[source]
        listened = self._vouching.listened(now)
        while partitions and budget.entries > 0:
            partition = partitions.pop()
            store = stores.get(partition)
            if store is None:
                continue
            if store.is_moving() or (not is_over and listened < store.grace_until):
                kept.append(partition)
                continue
            budget.entries -= len(store.records.users) + 1
            budget.gone.extend((partition, item) for item in store.records.purge(source, at))
        return kept
