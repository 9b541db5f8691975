"""A role's place in the cluster: who it is, where it listens, and how it is found.

A process runs one or more roles (scheduler, status, access, im). Each has a `Site`, what its starter told it, and a
`Node` made from that: an HTTP port with health and metrics, peer streams on the same port, and a registration in the
registry. The role itself adds routes and peer methods, and decides when it is ready.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from base.clock import Clock, Timestamp
from base.core.registry import ServiceInstance
from base.errors import CasConflict, SessionLost, StoreError
from base.http import HttpServer, is_loopback
from base.ids import Incarnation
from base.log import logger
from base.metrics import Metrics
from base.peer.server import PEER_PATH, PeerServer
from base.registry.ports import Registry
from base.site import HEARTBEAT_MS, Site

__all__ = ["VERSION", "Node", "began_to_count", "next_incarnation"]

JUST_NOW_S = 60

VERSION = version("roadstead")
"""Of this program. Nodes publish it when they register."""


class Node:
    """See the module. `listen`, `join`, `run` in this order; `close` undoes what was done."""

    def __init__(
        self,
        site: Site,
        service: str,
        *,
        statistics: Callable[[], Mapping[str, Any]],
        note: Callable[[], bytes] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            site: the place.
            service: name of the role, as others look for it.
            statistics: the role's snapshot for `/debug/statistics`.
            note: asked before each heartbeat for the newest report, at most 4 kB.
        """
        self.site = site
        self.service = service
        self.log = logger(node=site.name)
        self.metrics = Metrics(site.name)
        self.http = HttpServer(
            site.name,
            self.metrics,
            statistics=lambda: {**self._identity(), **statistics()},
            credentials=site.credentials,
            audit=site.audit,
            open_metrics=site.open_metrics or is_loopback(site.host),
        )
        self.peers = PeerServer(trust=site.trust)
        self.drain_deadline_s = 10.0
        """How long the role may take to drain when its process is told to stop."""
        self.http.app.router.add_get(PEER_PATH, self.peers.handle)
        self._note = note or bytes
        self._instance: ServiceInstance | None = None
        self._joined = asyncio.Event()
        self._is_counted = False

    async def listen(self) -> None:
        """Open the port. Raises ConfigError when it cannot be bound."""
        await self.http.listen(self.site.host, self.site.port, tls=self.site.trust.server_ssl)

    async def join(self, meta: Mapping[str, str] | None = None) -> None:
        """Register, and be ready from here on.

        Raises SessionLost when a newer life of the same name is registered: this process must stop.
        """
        self._instance = ServiceInstance(
            id=self.site.name,
            service=self.service,
            url=self.site.config.advertise_url.rstrip("/") or self.http.url,
            incarnation=self.site.incarnation,
            meta={"roadstead": VERSION, **(meta or {})},
        )
        await self._register(self._instance)
        self._joined.set()
        self.http.is_ready = True

    async def run(self) -> None:
        """Heartbeat every second until cancelled; an outage of the registry is ridden out."""
        await self._joined.wait()
        is_away = False
        while True:
            try:
                await self.heartbeat()
            except SessionLost:
                raise
            except StoreError as error:
                if not is_away:  # told once an outage: it may last
                    self.log.warning("registry_unreachable", error=str(error))
                is_away = True
            else:
                if is_away:
                    self.log.warning("registry_reachable")
                is_away = False
            await asyncio.sleep(HEARTBEAT_MS / 1000)

    async def heartbeat(self) -> None:
        """Send a heartbeat now, for news that should not wait for the next regular one."""
        instance = self._instance
        if instance is None:
            return
        try:
            await self.site.registry.heartbeat(instance.id, instance.incarnation, self._note())
        except SessionLost:
            # Lapsed: we were silent too long, or the registry started over. Registering tells if we were replaced.
            await self._register(instance)
            self.log.info("registration_renewed")
        await self._see_it_counted(instance)

    async def close(self) -> None:
        """Leave the registry, end the streams, close the port. Idempotent, and good after any step."""
        instance, self._instance = self._instance, None
        if instance is not None:
            try:
                await self.site.registry.deregister(instance.id, instance.incarnation)
            except StoreError as error:
                self.log.warning("deregister_failed", error=str(error))
        await self.peers.close()
        await self.http.close()

    def _identity(self) -> dict[str, Any]:
        """Return which process this is, and what its wall clock says."""
        return {
            "node": self.site.name,
            "service": self.service,
            "incarnation": self.site.incarnation,
            "roadstead": VERSION,
            "pid": os.getpid(),
            "time_ms": self.site.clock.realtime(),
        }

    async def _register(self, instance: ServiceInstance) -> None:
        self._is_counted = False
        await self.site.registry.register(instance, ttl_ms=self.site.config.registration_ttl_ms)
        await self._see_it_counted(instance)

    async def _see_it_counted(self, instance: ServiceInstance) -> None:
        """A registry that started over lost the count of lives: the next one must be a later one than this."""
        if not self._is_counted:
            await _count(self.site.registry, instance.id, lambda counted: max(counted or 0, instance.incarnation))
            self._is_counted = True


async def next_incarnation(registry: Registry, node: str, clock: Clock) -> Incarnation:
    """Return the node's restart number, one more than at its last start, and remember it in the registry.

    Counted rather than read off the clock, since a clock can go back between two starts. A count that there is not
    begins with the seconds since 1970. The node may have had lives that a registry which started over knows nothing of,
    and others do: as no node starts more often than once a second, this life is a later one than all of those.

    Raises StoreUnavailable.
    """
    began_s = clock.realtime() // 1000
    return await _count(registry, node, lambda counted: began_s if counted is None else counted + 1)


def began_to_count(incarnation: Incarnation, now: Timestamp) -> bool:
    """Return whether a node that just started seems to have been counted for the first time (see `next_incarnation`).

    If it ran before, the registry has lost the count, and more.
    """
    return abs(now // 1000 - incarnation) < JUST_NOW_S


async def _count(registry: Registry, node: str, next_of: Callable[[int | None], int]) -> Incarnation:
    """Make the node's count another one, by what it is; return it."""
    key = f"incarnation/{node}"
    while True:
        entry = await registry.get(key)
        counted = int(entry.value) if entry is not None else None
        life = next_of(counted)
        if life == counted:
            return Incarnation(life)
        try:
            await registry.put(key, str(life).encode(), expect=entry.index if entry is not None else 0)
        except CasConflict:
            continue  # another process starts under the same name; registering will tell which one may
        return Incarnation(life)
