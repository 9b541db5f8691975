"""An access node: one HTTP port with the clients' WebSockets, peer streams, health and metrics.

Start: listen, register. Run: clients, their inboxes, reports to the status backend, a report to the registry each
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
from base.errors import BadRequest, Draining, Overloaded, StoreError
from base.node import Node
from base.site import Site
from im.client import ImClient
from scheduler.client import TicketVerifier
from status.client import SessionReports, StatusLookups, StatusWatches

__all__ = ["AccessNode"]

LAST_FRAMES_S = 1.0


class AccessNode:
    """One access node."""

    def __init__(
        self,
        config: AccessConfig,
        site: Site,
        *,
        ticket_keys: dict[str, str],
        reports: SessionReports,
        statuses: StatusLookups,
        watches: StatusWatches | None,
    ) -> None:
        """Build it.

        Args:
            config: its settings.
            site: its place.
            ticket_keys: kid -> secret of every key that the scheduler may sign tickets with.
            reports: where sessions are reported; run by this node, as are the other two.
            statuses: where users are looked up.
            watches: where users are watched; None if the status backend has no watches.
        """
        self.node = Node(site, SERVICE, statistics=self.statistics, note=self._report)
        self._config = config
        self._is_draining = False
        self._heartbeats = 0
        self._metrics = AccessMetrics(self.node.metrics, connections=lambda: len(self._clients))
        self._reports = reports
        self._statuses = statuses
        self._watches = watches
        self._im = ImClient(site)
        self._clients = Clients(
            config,
            site,
            verifier=TicketVerifier(ticket_keys, node=site.name),
            reports=reports,
            statuses=statuses,
            watches=watches,
            im=self._im,
            metrics=self._metrics,
        )
        reports.on_evict(self._clients.evict)
        self.node.peers.serve(DELIVER, self._clients.inboxes.deliver)
        self.node.http.app.router.add_get(WEBSOCKET_PATH, self._websocket)

    async def start(self) -> None:
        """Listen, wait for the status backend and the message services' addresses, join."""
        await self.node.listen()
        await self._reports.wait_ready()
        await self._im.wait_ready()
        await self.node.join({"region": self._config.region, "capacity": str(self._config.capacity)})

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reports.run())
            tasks.create_task(self._statuses.run())
            if self._watches is not None:
                tasks.create_task(self._watches.run())
            tasks.create_task(self._im.run())
            tasks.create_task(self._clients.run())
            tasks.create_task(self.node.run())

    async def drain(self) -> None:
        """Tell the scheduler, then close everybody in a way that makes them come back elsewhere."""
        self.node.http.is_ready = False
        self._is_draining = True
        try:
            await self.node.heartbeat()
        except StoreError as error:
            self.node.log.warning("registry_unreachable", error=str(error))
        self._clients.close_all(Close.SHUTDOWN)
        try:
            async with asyncio.timeout(LAST_FRAMES_S):
                while len(self._clients):  # noqa: ASYNC110 - sockets end one by one, there is no one event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self.node.log.info("clients_left_behind", connections=len(self._clients))

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        return {
            "connections": len(self._clients),
            "is_draining": self._is_draining,
            "inboxes": self._clients.inboxes.hub.statistics(),
            "presence": self._clients.presences.statistics(),
            "status_links": self._reports.statistics(),
            "status_digest": self._status_digest(),
            "streams": self.node.peers.statistics(),
        }

    def _status_digest(self) -> dict[str, Any] | None:
        """What this life reported, in the form in which status nodes tell what they hold of it."""
        digest = self._reports.digest()
        if digest is None:
            return None
        return {"incarnation": self.node.site.incarnation, "entries": digest.entries, "xor": f"{digest.xor:016x}"}

    def _report(self) -> bytes:
        self._heartbeats += 1
        return msgspec.msgpack.encode(NodeReport(self._heartbeats, len(self._clients), self._is_draining))

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Admit before the upgrade: a refusal is an HTTP status with Retry-After, never a socket closed at once."""
        if self._is_draining:
            self._metrics.refused.labels(self.node.site.name, "draining").inc()
            raise Draining("this access node is draining; ask the scheduler for another", retry_after_ms=1_000)
        if len(self._clients) >= self._config.capacity:
            self._metrics.refused.labels(self.node.site.name, "full").inc()
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
