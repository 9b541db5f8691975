"""The role that lets other processes use the registry of this one. It comes first and goes last: all others need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from base.metrics import Metrics
from base.node import Node
from base.registry.remote import RegistryServer
from base.site import Site

__all__ = ["SERVICE", "RegistryMetrics", "RegistryNode"]

SERVICE = "registry"


class RegistryMetrics:
    """Declared once; the help text is its documentation."""

    def __init__(self, metrics: Metrics, *, processes: Callable[[], int]) -> None:
        metrics.gauge(
            "registry_processes", "Other processes that are connected to the registry of this one.", processes
        )


class RegistryNode:
    """Serves the registry of its site to whoever has the peer key. Its port carries health, metrics and the streams."""

    def __init__(self, site: Site) -> None:
        self.node = Node(site, SERVICE, statistics=self.statistics)
        RegistryServer(site.registry).serve(self.node.peers)
        RegistryMetrics(self.node.metrics, processes=lambda: len(self.node.peers.statistics()))

    async def start(self) -> None:
        """Listen and register."""
        await self.node.listen()
        await self.node.join()

    async def run(self) -> None:
        """Heartbeat until cancelled."""
        await self.node.run()

    async def drain(self) -> None:
        """Be used to the end: others give back what they hold."""
        self.node.http.is_ready = False

    async def stop(self) -> None:
        """Deregister, end the streams, close."""
        await self.node.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`: who uses the registry."""
        return {"streams": self.node.peers.statistics()}
