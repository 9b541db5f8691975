"""An access node: one HTTP port with the clients' WebSockets, peer streams, health and metrics.

Start: listen, register. Run: clients, their inboxes, heartbeats to the status cluster, a report to the registry each
second. Drain: not ready, no new connections, everybody is closed with 3001, which makes a stock SDK come back by way of
the scheduler or the pool address. Stop: deregister, close.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from access.api import DELIVER, SERVICE, WEBSOCKET_PATH, NodeReport
from access.clients import Clients
from access.config import AccessConfig
from access.core.protocol import Close
from access.metrics import AccessMetrics
from access.websocket import run_connection
from base.clock import Clock
from base.errors import BadRequest, Draining, Overloaded, StoreError
from base.http import HttpServer
from base.ids import Incarnation, NodeId
from base.log import logger
from base.metrics import Metrics
from base.peer import PeerServer
from base.peer.server import PEER_PATH
from base.registration import Registration
from base.registry import Registry, ServiceInstance
from im.client import ImClient
from scheduler.client import TicketVerifier
from status.client import StatusPublisher

__all__ = ["AccessNode"]

LAST_FRAMES_S = 1.0


class AccessNode:
    """One access node."""

    def __init__(
        self,
        config: AccessConfig,
        *,
        name: NodeId,
        incarnation: Incarnation,
        host: str,
        port: int,
        registry: Registry,
        clock: Clock,
        peer_key: str,
        ticket_keys: dict[str, str],
    ) -> None:
        """`ticket_keys`: kid -> secret of every key that the scheduler may sign tickets with."""
        self.name = name
        self._config = config
        self._incarnation = incarnation
        self._address = (host, port)
        self._registry = registry
        self._is_draining = False
        self._reports = 0
        self._log = logger(node=name)
        metrics = Metrics(name)
        self._metrics = AccessMetrics(metrics, connections=lambda: len(self._clients))
        self._publisher = StatusPublisher(registry, clock, node=name, incarnation=incarnation, peer_key=peer_key)
        self._im = ImClient(registry, clock, node=name, peer_key=peer_key)
        self._clients = Clients(
            config,
            node=name,
            clock=clock,
            verifier=TicketVerifier(ticket_keys, node=name),
            publisher=self._publisher,
            im=self._im,
            metrics=self._metrics,
        )
        self._peers = PeerServer(peer_key=peer_key)
        self._peers.serve(DELIVER, self._clients.inboxes.deliver)
        self.http = HttpServer(name, metrics, statistics=self.statistics)
        self.http.app.router.add_get(PEER_PATH, self._peers.handle)
        self.http.app.router.add_get(WEBSOCKET_PATH, self._websocket)
        self._registration = Registration(registry, clock, ttl_ms=config.registration_ttl_ms, note=self._report)

    async def start(self) -> None:
        """Listen, wait for the status table and the message services' addresses, join."""
        await self.http.listen(*self._address)
        await self._publisher.wait_ready()
        await self._im.wait_ready()
        await self._registration.join(
            ServiceInstance(
                id=self.name,
                service=SERVICE,
                url=self.http.url,
                incarnation=self._incarnation,
                meta={"region": self._config.region, "capacity": str(self._config.capacity)},
            )
        )
        self.http.is_ready = True

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publisher.run())
            tasks.create_task(self._im.run())
            tasks.create_task(self._clients.run())
            tasks.create_task(self._registration.run())

    async def drain(self) -> None:
        """Tell the scheduler, then close everybody in a way that makes them come back elsewhere."""
        self.http.is_ready = False
        self._is_draining = True
        try:
            await self._registration.beat()
        except StoreError as error:
            self._log.warning("registry_unreachable", error=str(error))
        self._clients.close_all(Close.SHUTDOWN)
        try:
            async with asyncio.timeout(LAST_FRAMES_S):
                while len(self._clients):  # noqa: ASYNC110 - sockets end one by one, there is no one event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self._log.info("clients_left_behind", connections=len(self._clients))

    async def stop(self) -> None:
        """Deregister and close."""
        try:
            await self._registration.leave()
        except StoreError as error:
            self._log.warning("deregister_failed", error=str(error))
        await self._peers.close()
        await self.http.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "node": self.name,
            "connections": len(self._clients),
            "is_draining": self._is_draining,
            "inboxes": self._clients.inboxes.hub.statistics(),
            "status_links": self._publisher.statistics(),
            "streams": self._peers.statistics(),
        }

    def _report(self) -> bytes:
        self._reports += 1
        return msgspec.msgpack.encode(NodeReport(self._reports, len(self._clients), self._is_draining))

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Admit before the upgrade: a refusal is an HTTP status with Retry-After, never a socket closed at once."""
        if self._is_draining:
            self._metrics.refused.labels(self.name, "draining").inc()
            raise Draining("this access node is draining; ask the scheduler for another", retry_after_ms=1_000)
        if len(self._clients) >= self._config.capacity:
            self._metrics.refused.labels(self.name, "full").inc()
            raise Overloaded("this access node is full", what="connections", retry_after_ms=1_000)
        if not web.WebSocketResponse().can_prepare(request):
            raise BadRequest("this is a WebSocket endpoint; connect with a WebSocket client")

        return await run_connection(
            request,
            frame_bytes_max=self._config.frame_bytes_max,
            write_bytes_max=self._config.write_bytes_max,
            arrived=self._clients.arrived,
            received=self._clients.received,
            gone=self._clients.gone,
        )
