"""A running system as it is found from outside: by its data folder, or by the configuration of any of its nodes.

Which nodes there are is what the registry says, and, for a data folder, what was started from it: so its commands find
the nodes too that joined later, and go on when the registry is away. Who calls nodes believes their CA before
(`roadstead.api.trust_ca`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from access.api import SERVICE as ACCESS
from base.core.registry import ServiceInstance
from base.credentials import Role
from base.errors import ConfigError, RoadsteadError, Unavailable
from base.http import is_loopback
from base.registry import Registry
from base.registry.node import SERVICE as REGISTRY
from base.reload import lines_of
from base.trust import SecurityConfig, Trust
from im.api import SERVICE as IM
from roadstead.api import call_api
from roadstead.cluster.files import ClusterFiles
from roadstead.config import Config
from roadstead.deployment import DataFolder
from roadstead.registries import OpenedRegistry, PeerRegistry, opened_registry
from scheduler.service import SERVICE as SCHEDULER
from status.api import SERVICE as STATUS

__all__ = ["OPERATOR", "SERVICES", "Node", "System", "of_config", "of_data"]

SERVICES = (SCHEDULER, IM, ACCESS, STATUS, REGISTRY)
OPERATOR = "roadstead-operator"
"""As whom to open streams to an `up`."""
KEY_SETTING = "security.api_keys_file"


class Node(msgspec.Struct, frozen=True):
    """A node: where it is by the registry's word, or by that of the data folder if it is not registered."""

    name: str
    service: str
    url: str
    instance: ServiceInstance | None

    @property
    def client_url(self) -> str | None:
        """Where an access node's clients connect."""
        return None if self.instance is None else self.instance.meta.get("client_url")


class System(msgspec.Struct):
    """What is known before anything is looked at."""

    node: str
    """As whom to open streams."""
    trust: Trust
    api_key: str
    registry: Registry
    registry_url: str
    nodes: list[Node]
    registry_failure: RoadsteadError | None
    """Why the registry could not be read; `nodes` are those of the data folder then."""
    im_folders: list[Path]
    """Folders of messages on this machine."""

    def of(self, *services: str) -> list[Node]:
        """Return the nodes of some services."""
        return [node for node in self.nodes if node.service in services]

    def url(self, service: str) -> str:
        """Return where one of a service's nodes is. Raises Unavailable when there is none."""
        for node in self.of(service):
            return node.url
        raise Unavailable(f"there is no {service} node")

    async def statistics(self, *services: str) -> tuple[dict[str, Any], list[str]]:
        """Ask the nodes of some services, of all if none is named: what each says by name, and who does not answer."""
        answers: dict[str, Any] = {}
        silent: list[str] = []

        async def ask(node: Node) -> None:
            try:
                answers[node.name] = await self.call(node, "/debug/statistics")
            except RoadsteadError:
                silent.append(node.name)

        async with asyncio.TaskGroup() as tasks:
            for node in self.of(*(services or SERVICES)):
                tasks.create_task(ask(node))
        return dict(sorted(answers.items())), sorted(silent)

    async def call(self, node: Node, path: str, *, answers: Collection[int] = ()) -> Any:
        """Ask a node by HTTP; `answers` and what is raised are those of `call_api`."""
        return await call_api("GET", f"{node.url}{path}", credential=self.api_key, answers=answers)

    def is_local(self, node: Node) -> bool:
        """Return whether a node is reached on loopback, and so runs here."""
        return is_loopback(urlsplit(node.url).hostname or "")


@asynccontextmanager
async def of_data(data: DataFolder, *services: str) -> AsyncIterator[System]:
    """Find the system that runs from a data folder: the nodes of some services, of all if none is named.

    Raises PeerUnavailable when none was ever started there.
    """
    endpoints, secrets = data.endpoints(), data.secrets()
    named = {
        SCHEDULER: endpoints.scheduler,
        IM: endpoints.im,
        ACCESS: endpoints.access,
        STATUS: endpoints.status,
        REGISTRY: endpoints.registry,
    }
    expected = [Node(name, service, url, None) for service, nodes in named.items() for name, url in nodes.items()]
    if endpoints.consul:
        config = ClusterFiles(data).operator_config()
        folders = [data.path / name for name in endpoints.im]
        async with _of_config(config, secrets.api_key, expected, folders, services) as system:
            yield system
        return
    trust = Trust.of_key(secrets.peer_key)
    url = next(iter(endpoints.registry.values()), "")
    registry = PeerRegistry(url, node=OPERATOR, trust=trust)
    known = System(OPERATOR, trust, secrets.api_key, registry.registry, registry.url, expected, None, [data.path])
    async with _seen(known, registry, services):
        yield known


@asynccontextmanager
async def of_config(config: Config, *services: str) -> AsyncIterator[System]:
    """Find the system of a node by its configuration: the nodes of some services, of all if none is named.

    Raises ConfigError when its files cannot be used.
    """
    if not config.node.name:
        raise ConfigError(["node.name is required: the system is looked at as this node does"])
    folders = [Path(config.im.data)] if config.im.data else []
    async with _of_config(config, _strongest_key(config.security), [], folders, services) as system:
        yield system


@asynccontextmanager
async def _of_config(
    config: Config, api_key: str, expected: list[Node], folders: list[Path], services: Sequence[str]
) -> AsyncIterator[System]:
    node, security = config.node.name, config.security
    trust = Trust.load(security)
    registry = opened_registry(config.registry, node=node, trust=trust)
    known = System(node, trust, api_key, registry.registry, registry.url, expected, None, folders)
    async with _seen(known, registry, services):
        yield known


@asynccontextmanager
async def _seen(system: System, opened: OpenedRegistry, services: Sequence[str]) -> AsyncIterator[None]:
    """Let the registry say which nodes there are, beside those that are known; it stays open within the block."""
    async with asyncio.TaskGroup() as tasks:
        connection = tasks.create_task(opened.run())
        try:
            nodes = {one.name: one for one in system.nodes}
            try:
                await opened.probe()  # who cannot be reached is told at once
                for service in services or SERVICES:
                    for instance in (await opened.registry.services(service)).items:
                        nodes[instance.id] = Node(instance.id, service, instance.url, instance)
            except RoadsteadError as error:
                system.registry_failure = error
            system.nodes = sorted(nodes.values(), key=lambda one: SERVICES.index(one.service))
            yield
        finally:
            connection.cancel()
            await opened.registry.close()


def _strongest_key(security: SecurityConfig) -> str:
    """Return the API key that allows most. Raises ConfigError when there is none."""
    if not security.api_keys_file:
        raise ConfigError([f"{KEY_SETTING} must name a file: without a key the nodes tell nothing"])
    lines = [words for _, words in lines_of(Path(security.api_keys_file), KEY_SETTING) if len(words) >= 2]
    keys = {Role[words[0].upper()]: words[1] for words in reversed(lines) if words[0].upper() in Role.__members__}
    if not keys:
        raise ConfigError([f"{KEY_SETTING}: {security.api_keys_file} has no key"])
    return keys[max(keys)]
