"""`up`: the whole system in one process: the same services, wired to an SQLite registry and store in one data folder.

Nothing here is special to one process but the wiring: the nodes find each other through the registry and talk over peer
streams on loopback, as they do on many machines. Further processes may join: they use this one's registry.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from access.config import AccessConfig
from access.service import AccessNode
from base.audit import Audit
from base.clock import SystemClock
from base.errors import ConfigError, StoreUnavailable
from base.http import Credentials, Role
from base.ids import NodeId
from base.keys import KeyList, KeyRing
from base.node import Node, next_incarnation
from base.registry import Registry
from base.registry.node import RegistryNode
from base.registry.sqlite import SqliteRegistry
from base.service import Service, run_services
from base.site import Site
from base.trust import Trust
from im.files import opener
from im.service import MessageService
from roadstead.agreed import publish_agreed
from roadstead.backends import access_side, lookups
from roadstead.config import Config
from roadstead.deployment import DataFolder, Endpoints, Secrets
from scheduler.service import Scheduler
from status.gateway import StatusGateway
from status.service import StatusNode

__all__ = ["run_up"]


async def run_up(
    config: Config, data: DataFolder, *, on_ready: Callable[[Endpoints], None], stop: asyncio.Event | None = None
) -> None:
    """Run until SIGTERM, SIGINT or `stop`.

    Raises:
        ConfigError: the folder, a port or a setting cannot be used; nothing was started.
    """
    data.claim()
    try:
        secrets = data.make_secrets()
        clock = SystemClock()
        try:
            registry = SqliteRegistry(clock, data.registry_db)
        except StoreUnavailable as error:
            raise ConfigError([f"the data folder {data.path} cannot be used: {error}"]) from error
        try:
            await publish_agreed(registry, config)
            nodes = await _Wiring(config, secrets, registry, clock).build(data.path)

            def ready() -> None:
                endpoints = nodes.endpoints()
                data.publish_endpoints(endpoints)
                on_ready(endpoints)

            await run_services(nodes.in_order(), on_ready=ready, stop=stop)
        finally:
            await registry.close()
    finally:
        data.release()


class _Nodes(msgspec.Struct):
    """The built services, by role."""

    registry: RegistryNode
    status: list[StatusNode] | list[StatusGateway]
    im: MessageService
    access: list[AccessNode]
    scheduler: Scheduler

    def in_order(self) -> list[Service]:
        """The order of starting: whoever is asked comes before whoever asks."""
        return [self.registry, *self.status, self.im, *self.access, self.scheduler]

    def endpoints(self) -> Endpoints:
        def urls(*services: Service) -> dict[str, str]:
            return {service.node.site.name: _url(service.node) for service in services}

        return Endpoints(
            os.getpid(),
            urls(self.scheduler),
            urls(*self.status),
            urls(*self.access),
            urls(self.im),
            urls(self.registry),
            {node.node.site.name: node.client_url for node in self.access},
        )


def _url(node: Node) -> str:
    assert node.http.url, "endpoints are told when every node listens"
    return node.http.url


class _Wiring:
    """Builds the services; all that they share stands here once."""

    def __init__(self, config: Config, secrets: Secrets, registry: Registry, clock: SystemClock) -> None:
        self._config = config
        # All of its nodes would advertise the same.
        self._node = msgspec.structs.replace(config.node, advertise_url="")
        self._secrets = secrets
        self._trust = Trust.of_key(secrets.peer_key)
        self._registry = registry
        self._clock = clock
        self._credentials = Credentials({secrets.api_key: Role.ADMIN})
        self._audit = Audit(config.security.audit_file)
        self._next_port = config.up.port

    async def build(self, folder: Path) -> _Nodes:
        config, secrets = self._config, self._secrets
        ticket_keys = KeyRing.of({secrets.ticket_kid: secrets.ticket_key})
        user_keys = KeyList.of(secrets.user_key)
        scheduler = Scheduler(
            config.scheduler, await self._site("scheduler-1"), user_keys=user_keys, ticket_keys=ticket_keys
        )
        im_site = await self._site("im-1")
        im = MessageService(
            config.im, im_site, open_shard=opener(folder, self._clock), statuses=lookups(config, im_site), folder=folder
        )
        access_sites = [await self._site(f"access-{number}") for number in range(1, config.up.access_nodes + 1)]
        status = await self._status()
        registry = RegistryNode(await self._site("registry-1"))
        access = [
            AccessNode(access_config, site, ticket_keys=ticket_keys, **access_side(config, site))
            for site, access_config in zip(access_sites, self._access_configs(len(access_sites)), strict=True)
        ]
        return _Nodes(registry, status, im, access, scheduler)

    def _access_configs(self, count: int) -> list[AccessConfig]:
        """Each has its own port for clients; and they stop together, so that there is nowhere to send clients to."""
        config = msgspec.structs.replace(self._config.access, stop_drain_ms=0)
        first = config.client_port or self._next_port
        return [msgspec.structs.replace(config, client_port=first + number if first else 0) for number in range(count)]

    async def _status(self) -> list[StatusNode] | list[StatusGateway]:
        config = self._config
        if config.status.backend == "redis":
            site = await self._site("status-1")
            return [StatusGateway(site, statuses=lookups(config, site))]
        # The first table has the first by name; the spares come after them, by name and in the order of starting. They
        # all stop together, so that there is nobody to hand anything over to.
        status_config = msgspec.structs.replace(
            config.status, bootstrap_nodes=config.up.status_nodes, stop_handover_ms=0
        )
        return [
            StatusNode(status_config, await self._site(f"status-{number}"))
            for number in range(1, config.up.status_nodes + config.up.spare_status_nodes + 1)
        ]

    async def _site(self, name: str) -> Site:
        port = self._next_port
        if port:
            self._next_port += 1
        return Site(
            name=NodeId(name),
            incarnation=await next_incarnation(self._registry, name, self._clock),
            host=self._config.up.host,
            port=port,
            registry=self._registry,
            clock=self._clock,
            trust=self._trust,
            credentials=self._credentials,
            audit=self._audit,
            open_metrics=self._config.security.open_metrics,
            config=self._node,
        )
