"""The streams of one node to all nodes of a service, by the registry's word.

Follows the service in the registry: a new instance gets a client, a changed address or a new life a fresh one, a node
that left is closed. What a registry outage hides stays connected, and what it lost stays so until it is there again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from base.core.registry import ServiceInstance
from base.errors import PeerUnavailable, StoreError
from base.log import logger
from base.peer.client import PeerClient
from base.peer.stream import Serve
from base.peer.wire import Method
from base.registry import follow_services
from base.site import Site

__all__ = ["PeerPool"]

Req = TypeVar("Req")
Rep = TypeVar("Rep")


@dataclass(frozen=True, slots=True)
class _Member:
    instance: ServiceInstance
    client: PeerClient
    task: asyncio.Task[None]


class PeerPool:
    """Clients by node id. `run` follows the registry; `get` finds the client of a node."""

    def __init__(
        self,
        site: Site,
        service: str,
        *,
        on_change: Callable[[tuple[ServiceInstance, ...]], None] | None = None,
        on_connected: Callable[[str], None] | None = None,
    ) -> None:
        """`on_change` gets the live instances after each change; `on_connected` a node's id for each new stream."""
        self._site = site
        self._service = service
        self._on_change = on_change
        self._on_connected = on_connected
        self._handlers: dict[str, tuple[Method[Any, Any], Serve]] = {}
        self._members: dict[str, _Member] = {}
        self._nodes: tuple[str, ...] = ()
        self._seen = asyncio.Event()
        self._log = logger(node=site.name, service=service)

    def serve(self, method: Method[Req, Rep], handler: Serve) -> None:
        """Answer calls and pushes that come from the nodes over these streams, as `PeerServer.serve`. Before `run`."""
        assert method.name not in self._handlers
        self._handlers[method.name] = (method, handler)

    def get(self, node_id: str) -> PeerClient:
        """Return the client of a node. Raises PeerUnavailable when the registry knows no such node."""
        member = self._members.get(node_id)
        if member is None:
            raise PeerUnavailable(f"{node_id} is not registered", peer=node_id)
        return member.client

    def nodes(self) -> tuple[str, ...]:
        """Return the ids of the live nodes, sorted."""
        return self._nodes

    async def wait_ready(self) -> None:
        """Return once the registry was read for the first time."""
        await self._seen.wait()

    async def run(self) -> None:
        """Follow the service until cancelled; closes every stream at the end. It may be run again then."""
        try:
            async with asyncio.TaskGroup() as tasks:
                async for instances in follow_services(
                    self._site.registry,
                    self._service,
                    self._site.clock,
                    keep_ms=self._site.config.registration_ttl_ms,
                    on_outage=self._outage,
                ):
                    self._update(instances, tasks)
                    self._seen.set()
                    if self._on_change is not None:
                        self._on_change(instances)
        finally:
            self._members.clear()
            self._nodes = ()

    def _update(self, instances: tuple[ServiceInstance, ...], tasks: asyncio.TaskGroup) -> None:
        wanted = {instance.id: instance for instance in instances}
        for node_id, member in list(self._members.items()):
            now = wanted.get(node_id)
            if now is None or (now.url, now.incarnation) != (
                member.instance.url,
                member.instance.incarnation,
            ):
                member.task.cancel()
                del self._members[node_id]
        for node_id, instance in wanted.items():
            if node_id not in self._members:
                client = PeerClient(
                    instance.url,
                    peer=node_id,
                    node=self._site.name,
                    trust=self._site.trust,
                    on_connected=self._connected(node_id),
                )
                for method, handler in self._handlers.values():
                    client.serve(method, handler)
                self._members[node_id] = _Member(instance, client, tasks.create_task(client.run()))
        self._nodes = tuple(sorted(self._members))

    def _connected(self, node_id: str) -> Callable[[], None]:
        def tell() -> None:
            if self._on_connected is not None:
                self._on_connected(node_id)

        return tell

    def _outage(self, error: StoreError) -> None:
        self._log.debug("registry_unreachable", error=str(error))
