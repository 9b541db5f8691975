"""A status node or an access node in a process of its own, which joins the system that another process runs with `up`.

What the two share is that process's registry, used over a peer stream. Through it the nodes find each other, as they do
within one process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from access.api import SERVICE as ACCESS
from access.service import AccessNode
from base.clock import SystemClock
from base.errors import (
    ConfigError,
    PeerUnavailable,
    RoadsteadError,
    SessionLost,
    StoreUnavailable,
    Unauthenticated,
    UnknownMethod,
)
from base.http import Credentials, Role
from base.ids import NodeId
from base.node import next_incarnation
from base.peer.upgrade import connect
from base.registry import Registry
from base.registry.node import SERVICE as REGISTRY
from base.registry.remote import RemoteRegistry
from base.service import Service, run_services
from base.site import Site
from im.api import SERVICE as IM
from roadstead.agreed import require_agreed
from roadstead.backends import access_side
from roadstead.config import Config
from scheduler.service import SERVICE as SCHEDULER
from status.api import SERVICE as STATUS
from status.service import StatusNode

__all__ = ["Joined", "Place", "run_access_node", "run_status_node"]

ROLES = (STATUS, ACCESS, IM, SCHEDULER, REGISTRY)
CONNECT_TIMEOUT_S = 3.0

S = TypeVar("S", bound=Service)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The system to join, and as whom. Without an `api_key` the node's HTTP API refuses everybody."""

    registry: str
    """Base URL of the node that serves the registry."""
    peer_key: str
    api_key: str | None
    name: str
    port: int


class Joined(msgspec.Struct, frozen=True):
    """A node that is ready."""

    name: str
    url: str
    pid: int
    client_url: str | None = None
    """Where an access node's clients connect."""


async def run_status_node(
    config: Config, place: Place, *, on_ready: Callable[[Joined], None], stop: asyncio.Event | None = None
) -> None:
    """Run one status node until SIGTERM, SIGINT or `stop`.

    Raises what `_run` raises, and ConfigError when the backend has no status nodes.
    """
    if config.status.backend != "cluster":
        raise ConfigError([f'status.backend is "{config.status.backend}": there are no status nodes to add to'])
    status_config = msgspec.structs.replace(config.status, bootstrap_nodes=config.up.status_nodes)

    def ready(node: StatusNode) -> None:
        on_ready(Joined(place.name, node.node.http.url, os.getpid()))

    await _run(config, place, lambda site: StatusNode(status_config, site), on_ready=ready, stop=stop)


async def run_access_node(
    config: Config,
    place: Place,
    *,
    ticket_keys: Mapping[str, str],
    on_ready: Callable[[Joined], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Run one access node until SIGTERM, SIGINT or `stop`.

    `ticket_keys`: kid -> secret of every key that the system's schedulers sign tickets with. Raises what `_run` raises.
    """

    def build(site: Site) -> AccessNode:
        return AccessNode(config.access, site, ticket_keys=dict(ticket_keys), **access_side(config, site))

    def ready(node: AccessNode) -> None:
        on_ready(Joined(place.name, node.node.http.url, os.getpid(), node.client_url))

    await _run(config, place, build, on_ready=ready, stop=stop)


async def _run(
    config: Config,
    place: Place,
    build: Callable[[Site], S],
    *,
    on_ready: Callable[[S], None],
    stop: asyncio.Event | None,
) -> None:
    """Run the node that `build` makes, and the connection to the system's registry.

    Raises:
        ConfigError: the port or a setting cannot be used, a setting is not as in the system, or what was named is no
            registry.
        PeerUnavailable: the registry cannot be reached.
        Unauthenticated: the peer key is another one.
        SessionLost: a node of this name is alive, or one that was started later took the name over.
    """
    await _probe(place)
    registry = RemoteRegistry(place.registry, node=place.name, peer_key=place.peer_key)
    failure: RoadsteadError | None = None
    async with asyncio.TaskGroup() as tasks:
        connection = tasks.create_task(registry.run())
        try:
            service = build(await _site(config, place, registry))
            await run_services([service], on_ready=lambda: on_ready(service), stop=stop)
        except RoadsteadError as error:
            failure = error  # raised below, where no group of errors is made of it
        finally:
            connection.cancel()
    if failure is not None:
        raise failure


async def _probe(place: Place) -> None:
    """Connect once and hang up, to tell now what would be tried again and again later."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, _ = await connect(place.registry, node=place.name, peer_key=place.peer_key)
    except Unauthenticated as error:
        raise Unauthenticated(f"the registry at {place.registry} does not accept this peer key") from error
    except OSError as error:
        reason = error.strerror or str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
        raise PeerUnavailable(
            f"the registry at {place.registry} cannot be reached: {reason}; is `roadstead up` running?"
        ) from error
    transport.abort()


async def _site(config: Config, place: Place, registry: Registry) -> Site:
    try:
        await _require_free(registry, place.name)
        await require_agreed(registry, config.status)
        incarnation = await next_incarnation(registry, place.name)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, UnknownMethod):
            raise ConfigError([f"{place.registry} serves no registry: name the address of registry-1"]) from error
        raise PeerUnavailable(f"the registry at {place.registry} does not answer: {error}") from error
    return Site(
        name=NodeId(place.name),
        incarnation=incarnation,
        host=config.up.host,
        port=place.port,
        registry=registry,
        clock=SystemClock(),
        peer_key=place.peer_key,
        credentials=Credentials({place.api_key: Role.ADMIN} if place.api_key is not None else {}),
        config=config.node,
    )


async def _require_free(registry: Registry, name: str) -> None:
    """Refuse a name that a live node has: the registry would let this later life replace it.

    A registration outlives its process for a while. Nobody listening at its address any more, the name is free.
    """
    for role in ROLES:
        for instance in (await registry.services(role)).items:
            if instance.id == name and await _is_listening(instance.url):
                raise SessionLost(f"the name {name} is in use by a node at {instance.url}", instance=name)


async def _is_listening(url: str) -> bool:
    """Return False when that is certain: the machine answers, and the port is closed."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    writer.transport.abort()
    return True
