"""Follow a key prefix or a service: each change once, outages ridden out, restarts of the registry noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from base.clock import Clock, Instant
from base.core.backoff import Backoff
from base.core.presumed import Presumed
from base.core.registry import ServiceInstance
from base.errors import StoreError
from base.ids import entropy
from base.registry.ports import Registry, View

__all__ = ["follow", "follow_services"]

WAIT_MS = 30_000
FEW = 8
PAUSE_PER_ITEM_MS = 20
PAUSE_MAX_MS = 1_000

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Read(Protocol[T_co]):
    async def __call__(self, name: str, /, *, after: int, wait_ms: int) -> View[T_co]: ...


@dataclass(frozen=True, slots=True)
class _Seen(Generic[T]):
    """What one read saw, whether that is news, and whether a read failed since the last one."""

    view: View[T]
    is_new: bool
    was_away: bool


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
    async for seen in _reads(read, name, clock, on_outage, lambda: WAIT_MS):
        if seen.is_new:
            yield seen.view


async def follow_services(
    registry: Registry,
    service: str,
    clock: Clock,
    *,
    keep_ms: int,
    on_outage: Callable[[StoreError], None] | None = None,
) -> AsyncIterator[tuple[ServiceInstance, ...]]:
    """Yield whom to take for the live instances of a service, by id; else as `follow`.

    Whom a registry does not know any more when it is back is among them for `keep_ms`, as long as a registration lasts
    (see `base.core.presumed`).
    """
    presumed = Presumed(keep_ms)

    def wait_ms() -> int:
        deadline = presumed.next_deadline()
        return WAIT_MS if deadline is None else max(0, min(WAIT_MS, deadline - clock.monotonic()))

    async for seen in _reads(registry.services, service, clock, on_outage, wait_ms):
        now, deadline = clock.monotonic(), presumed.next_deadline()
        if seen.is_new or seen.was_away or (deadline is not None and now >= deadline):
            yield presumed.sees(now, seen.view.index, seen.view.items, was_away=seen.was_away)


async def _reads(
    read: _Read[T],
    name: str,
    clock: Clock,
    on_outage: Callable[[StoreError], None] | None,
    wait_ms: Callable[[], int],
) -> AsyncIterator[_Seen[T]]:
    """Yield what each read saw. `wait_ms`: how long the next one may wait for a change."""
    after = -1
    was_away = False
    backoff = Backoff(entropy(), base_ms=100)
    while True:
        try:
            view = await read(name, after=after, wait_ms=wait_ms())
        except StoreError as error:
            was_away = True
            if on_outage is not None:
                on_outage(error)
            await clock.sleep_until(Instant(clock.monotonic() + backoff.next_ms()))
            continue
        backoff.reset()
        is_new, after = view.index != after, view.index
        yield _Seen(view, is_new, was_away)
        was_away = False
        if is_new and len(view.items) > FEW:
            pause_ms = min(len(view.items) * PAUSE_PER_ITEM_MS, PAUSE_MAX_MS)
            await clock.sleep_until(Instant(clock.monotonic() + pause_ms))
