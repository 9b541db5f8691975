"""Keep this process in the registry: join, heartbeat with a fresh note, join again after an outage, leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from base.clock import Clock
from base.errors import CasConflict, SessionLost, StoreError
from base.ids import Incarnation
from base.log import logger
from base.registry import Registry, ServiceInstance

__all__ = ["Registration", "next_incarnation"]

HEARTBEAT_MS = 1_000


class Registration:
    """One instance's presence in the registry. `note` is asked for the newest report before each heartbeat."""

    def __init__(
        self, registry: Registry, clock: Clock, *, ttl_ms: int, note: Callable[[], bytes] | None = None
    ) -> None:
        assert ttl_ms >= HEARTBEAT_MS
        self._registry = registry
        self._clock = clock
        self._ttl_ms = ttl_ms
        self._note = note or (lambda: b"")
        self._instance: ServiceInstance | None = None
        self._joined = asyncio.Event()

    async def join(self, instance: ServiceInstance) -> None:
        """Register. Raises SessionLost when a newer life of the same id is registered: this process must stop."""
        await self._registry.register(instance, ttl_ms=self._ttl_ms)
        self._instance = instance
        self._joined.set()

    async def beat(self) -> None:
        """Send a heartbeat now, for news that should not wait for the next regular one."""
        if self._instance is None:
            return
        try:
            await self._registry.heartbeat(self._instance.id, self._note())
        except SessionLost:
            # Lapsed: we were silent too long, or the registry started over. Registering tells if we were replaced.
            await self._registry.register(self._instance, ttl_ms=self._ttl_ms)
            logger(node=self._instance.id).info("registration_renewed")

    async def run(self) -> None:
        """Heartbeat every second until cancelled; an outage of the registry is ridden out."""
        await self._joined.wait()
        while self._instance is not None:
            try:
                await self.beat()
            except SessionLost:
                raise
            except StoreError as error:
                logger(node=self._instance.id).warning("registry_unreachable", error=str(error))
            await asyncio.sleep(HEARTBEAT_MS / 1000)

    async def leave(self) -> None:
        """Take the registration back. No error when never joined."""
        instance, self._instance = self._instance, None
        if instance is not None:
            await self._registry.deregister(instance.id)


async def next_incarnation(registry: Registry, node: str) -> Incarnation:
    """Return the node's restart number, one more than at its last start, and remember it in the registry.

    Counted rather than read off the clock, since a clock can go back between two starts.
    """
    key = f"incarnation/{node}"
    while True:
        entry = await registry.get(key)
        life = int(entry.value) + 1 if entry else 1
        try:
            await registry.put(key, str(life).encode(), expect=entry.index if entry else 0)
        except CasConflict:
            continue  # another process starts under the same name; registering will tell which one may
        return Incarnation(life)
