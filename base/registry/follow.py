"""Follow a key prefix or a service: each change once, outages ridden out, restarts of the registry noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeVar

from base.clock import Clock, Instant
from base.core.backoff import Backoff
from base.errors import StoreError
from base.ids import entropy
from base.registry.ports import View

__all__ = ["follow"]

WAIT_MS = 30_000
FEW = 8
PAUSE_PER_ITEM_MS = 20
PAUSE_MAX_MS = 1_000

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Read(Protocol[T_co]):
    async def __call__(self, name: str, /, *, after: int, wait_ms: int) -> View[T_co]: ...


async def follow(
    read: _Read[T],
    name: str,
    clock: Clock,
    *,
    on_outage: Callable[[StoreError], None] | None = None,
) -> AsyncIterator[View[T]]:
    """Yield the present view, then each newer one; intermediate ones may be skipped.

    The last view stays good while the registry is away: the caller goes on with it and is told by `on_outage`, once an
    attempt. `read` is `registry.scan` or `registry.services`.

    Views of many items are read with a pause in between. Each of N nodes reports once a second, and if all followed all
    others report by report, the registry would send N * N views of N items a second.
    """
    after = -1
    backoff = Backoff(entropy(), base_ms=100)
    while True:
        try:
            view = await read(name, after=after, wait_ms=WAIT_MS)
        except StoreError as error:
            if on_outage is not None:
                on_outage(error)
            await clock.sleep_until(Instant(clock.monotonic() + backoff.next_ms()))
            continue
        backoff.reset()
        if view.index != after:
            after = view.index
            yield view
            if len(view.items) > FEW:
                pause_ms = min(len(view.items) * PAUSE_PER_ITEM_MS, PAUSE_MAX_MS)
                await clock.sleep_until(Instant(clock.monotonic() + pause_ms))
