"""A cluster of processes on a real Consul for benchmarks, and what each role's processes use.

No TLS: it would be in every figure, and be the same in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from access.api import transport_urls
from base.clock import SystemClock
from base.credentials import Credentials
from base.ids import Incarnation, NodeId
from base.registry.config import RegistryConfig
from base.registry.consul import ConsulRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from bench.process import cpu_s
from roadstead.local import ClusterProcess, System

__all__ = ["ClusterSystem", "cluster_system"]


class ClusterSystem:
    """A running cluster."""

    def __init__(self, process: ClusterProcess, system: System) -> None:
        self.process = process
        self.system = system
        secrets = system.data.secrets()
        self.api_key = secrets.api_key
        self.ticket_key = (secrets.ticket_kid, secrets.ticket_key)

    @property
    def websockets(self) -> list[str]:
        """Where clients connect, an address an access node."""
        clients = self.system.endpoints.clients
        return [transport_urls(clients[name])["websocket"] for name in sorted(clients)]

    def pids(self, *roles: str) -> dict[str, int]:
        """Return the processes of these roles, by name."""
        names = {name for role in roles for name in getattr(self.system.endpoints, role)}
        return {name: pid for name, pid in self.system.endpoints.pids.items() if name in names}

    def cpu_s(self, *roles: str) -> float:
        """Return the CPU seconds of all processes of these roles so far."""
        return sum(cpu_s(pid) for pid in self.pids(*roles).values())

    def site(self, name: str) -> Site:
        """Return the place of a node in the benchmark's own process, on the cluster's registry; to be closed there."""
        (url,) = self.system.endpoints.consul.values()
        clock = SystemClock()
        return Site(
            name=NodeId(name),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=ConsulRegistry(RegistryConfig(consul_url=url), clock, node=name),
            clock=clock,
            trust=Trust.of_key(self.system.data.secrets().peer_key),
            credentials=Credentials({}),
            config=NodeConfig(),
        )


@contextmanager
def cluster_system(
    settings: Sequence[str] = (), /, *, status: int = 1, access: int = 1, im: int = 1, scheduler: int = 1
) -> Iterator[ClusterSystem]:
    """Run a cluster of so many processes a role until the block ends. None that ends by itself is started again.

    `settings` are `section.field=value`, for all of them.
    """
    counts = {"status": status, "access": access, "im": im, "scheduler": scheduler}
    flags = [part for role, count in counts.items() for part in (f"--{role}", str(count))]
    # Clients that are there when a benchmark is over need not be moved.
    flags += [part for setting in ("access.stop_drain_ms=0", *settings) for part in ("--set", setting)]
    with TemporaryDirectory(prefix="cluster-") as folder:
        process = ClusterProcess(Path(folder) / "data", "--no-tls", "--no-restart", *flags)
        try:
            yield ClusterSystem(process, process.start())
        finally:
            process.stop()
