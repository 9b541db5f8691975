"""A role's place in the cluster: who it is, where it listens, and how it is found.

A process runs one or more roles (scheduler, status, access, im). Each has a `Site`, what its starter told it, and a
`Node` made from that: an HTTP port with health and metrics, peer streams on the same port, and a registration in the
registry. The role itself adds routes and peer methods, and decides when it is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from base.core.registry import ServiceInstance
from base.errors import CasConflict, SessionLost, StoreError
from base.http import HttpServer
from base.ids import Incarnation
from base.log import logger
from base.metrics import Metrics
from base.peer.server import PEER_PATH, PeerServer
from base.registry.ports import Registry
from base.site import HEARTBEAT_MS, Site

__all__ = ["Node", "next_incarnation"]


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
        self.http = HttpServer(site.name, self.metrics, statistics=lambda: {"node": site.name, **statistics()})
        self.peers = PeerServer(peer_key=site.peer_key)
        self.drain_deadline_s = 10.0
        """How long the role may take to drain when its process is told to stop."""
        self.http.app.router.add_get(PEER_PATH, self.peers.handle)
        self._note = note or bytes
        self._instance: ServiceInstance | None = None
        self._joined = asyncio.Event()

    async def listen(self) -> None:
        """Open the port. Raises ConfigError when it cannot be bound."""
        await self.http.listen(self.site.host, self.site.port)

    async def join(self, meta: Mapping[str, str] | None = None) -> None:
        """Register, and be ready from here on.

        Raises SessionLost when a newer life of the same name is registered: this process must stop.
        """
        self._instance = ServiceInstance(
            id=self.site.name,
            service=self.service,
            url=self.http.url,
            incarnation=self.site.incarnation,
            meta=dict(meta or {}),
        )
        await self._register(self._instance)
        self._joined.set()
        self.http.is_ready = True

    async def run(self) -> None:
        """Heartbeat every second until cancelled; an outage of the registry is ridden out."""
        await self._joined.wait()
        while True:
            try:
                await self.heartbeat()
            except SessionLost:
                raise
            except StoreError as error:
                self.log.warning("registry_unreachable", error=str(error))
            await asyncio.sleep(HEARTBEAT_MS / 1000)

    async def heartbeat(self) -> None:
        """Send a heartbeat now, for news that should not wait for the next regular one."""
        if self._instance is None:
            return
        try:
            await self.site.registry.heartbeat(self._instance.id, self._instance.incarnation, self._note())
        except SessionLost:
            # Lapsed: we were silent too long, or the registry started over. Registering tells if we were replaced.
            await self._register(self._instance)
            self.log.info("registration_renewed")

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

    async def _register(self, instance: ServiceInstance) -> None:
        await self.site.registry.register(instance, ttl_ms=self.site.config.registration_ttl_ms)


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
