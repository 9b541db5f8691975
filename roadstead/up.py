"""`up`: the whole system in one process: the same services, wired to an SQLite registry and store in one data folder.

Nothing here is special to one process but the wiring: the nodes find each other through the registry and talk over peer
streams on loopback, as they do on many machines. Further processes may join: they use this one's registry.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import msgspec

from access.config import AccessConfig
from access.service import AccessNode
from base.clock import SystemClock
from base.errors import ConfigError, StoreUnavailable
from base.http import Credentials, Role
from base.ids import NodeId
from base.node import Node, next_incarnation
from base.registry import Registry
from base.registry.node import RegistryNode
from base.registry.sqlite import SqliteRegistry
from base.service import Service, run_services
from base.site import Site
from im.search.search import Search
from im.service import MessageService
from im.store.sqlite import SqliteMessageStore
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
            store = await SqliteMessageStore.open(data.messages_db, settings=config.im.ledger_settings)
        except StoreUnavailable as error:
            raise ConfigError([f"the data folder {data.path} cannot be used: {error}"]) from error
        search = None
        try:
            await publish_agreed(registry, config.status)
            search = await Search.open(data.search_db, store, clock)
            nodes = await _Wiring(config, secrets, registry, clock).build(store, search)

            def ready() -> None:
                endpoints = nodes.endpoints()
                data.publish_endpoints(endpoints)
                on_ready(endpoints)

            await run_services(nodes.in_order(), on_ready=ready, stop=stop)
        finally:
            if search is not None:
                await search.close()
            await store.close()
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
        self._secrets = secrets
        self._registry = registry
        self._clock = clock
        self._credentials = Credentials({secrets.api_key: Role.ADMIN})
        self._next_port = config.up.port

    async def build(self, store: SqliteMessageStore, search: Search) -> _Nodes:
        config, secrets = self._config, self._secrets
        ticket_key = (secrets.ticket_kid, secrets.ticket_key)
        scheduler = Scheduler(
            config.scheduler, await self._site("scheduler-1"), user_key=secrets.user_key, ticket_key=ticket_key
        )
        im_site = await self._site("im-1")
        im = MessageService(config.im, im_site, store=store, search=search, statuses=lookups(config, im_site))
        access_sites = [await self._site(f"access-{number}") for number in range(1, config.up.access_nodes + 1)]
        status = await self._status()
        registry = RegistryNode(await self._site("registry-1"))
        access = [
            AccessNode(access_config, site, ticket_keys=dict([ticket_key]), **access_side(config, site))
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
        # The first table has the first by name; the spares come after them, by name and in the order of starting.
        status_config = msgspec.structs.replace(config.status, bootstrap_nodes=config.up.status_nodes)
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
            incarnation=await next_incarnation(self._registry, name),
            host=self._config.up.host,
            port=port,
            registry=self._registry,
            clock=self._clock,
            peer_key=self._secrets.peer_key,
            credentials=self._credentials,
            config=self._config.node,
        )
