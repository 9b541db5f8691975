"""The registries that a process of one role can use, by `registry.backend`: the one place that knows them by name."""

from __future__ import annotations

import asyncio
from typing import Protocol

from base.clock import SystemClock
from base.errors import PeerUnavailable, Unauthenticated
from base.metrics import Metrics
from base.peer.upgrade import connect
from base.registry import Registry
from base.registry.config import RegistryConfig
from base.registry.consul import ConsulRegistry
from base.registry.consul.metrics import ConsulMetrics
from base.registry.remote import RemoteRegistry
from base.trust import Trust

__all__ = ["ConsulBacked", "OpenedRegistry", "PeerRegistry", "opened_registry"]

CONNECT_TIMEOUT_S = 3.0


class OpenedRegistry(Protocol):
    """A registry that is used from this process, and what keeps it connected."""

    @property
    def registry(self) -> Registry:
        """The registry."""
        ...

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        ...

    async def probe(self) -> None:
        """Return when it can be reached.

        Raises PeerUnavailable or StoreUnavailable when it cannot, and anything else that waiting would not mend.
        """
        ...

    def count_in(self, metrics: Metrics, node: str) -> None:
        """Count its calls in the metrics of a node."""
        ...

    async def run(self) -> None:
        """Keep it connected until cancelled."""
        ...


def opened_registry(config: RegistryConfig, *, node: str, trust: Trust) -> OpenedRegistry:
    """Return the registry that a configuration names. Nothing is connected yet. Raises ConfigError."""
    if config.backend == "peer":
        return PeerRegistry(config.peer_url, node=node, trust=trust)
    return ConsulBacked(config, node=node)


class ConsulBacked:
    """Consul, by way of an agent."""

    def __init__(self, config: RegistryConfig, *, node: str) -> None:
        """Raises ConfigError when files that the configuration names cannot be used."""
        self.url = config.consul_url
        self._consul = ConsulRegistry(config, SystemClock(), node=node)
        self.registry: Registry = self._consul

    async def probe(self) -> None:
        """Ask for something. Raises StoreUnavailable when Consul does not answer, or refuses the token."""
        await self.registry.get("settings/")

    def count_in(self, metrics: Metrics, node: str) -> None:
        """Count its calls in the metrics of a node."""
        self._consul.count_in(ConsulMetrics(metrics, node=node))

    async def run(self) -> None:
        """Nothing has to be kept: each call connects by itself."""


class PeerRegistry:
    """The registry of a `roadstead up`, used over a peer stream."""

    def __init__(self, url: str, *, node: str, trust: Trust) -> None:
        self.url = url
        self.registry = RemoteRegistry(url, node=node, trust=trust)
        self._node = node
        self._trust = trust

    async def probe(self) -> None:
        """Connect once and hang up, to tell now what would be tried again and again later.

        Raises PeerUnavailable, and Unauthenticated when the key is another one.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                transport, _ = await connect(self.url, node=self._node, trust=self._trust)
        except Unauthenticated as error:
            raise Unauthenticated(f"the registry at {self.url} does not accept this peer key") from error
        except OSError as error:
            reason = error.strerror or str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            raise PeerUnavailable(
                f"the registry at {self.url} cannot be reached: {reason}; is `roadstead up` running?"
            ) from error
        transport.abort()

    def count_in(self, metrics: Metrics, node: str) -> None:
        """Nothing is counted here: the node that serves the registry does."""

    async def run(self) -> None:
        """Connect and reconnect until cancelled."""
        await self.registry.run()
