"""A status node or an access node in a process of its own, which joins the system that another process runs with `up`.

What the two share is that process's registry, used over a peer stream. Through it the nodes find each other, as they do
within one process. Beyond that the node starts as any role does (`roadstead.role`), but for this: it joins what runs,
and so does not wait for a registry that is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from access.api import SERVICE as ACCESS
from base.errors import ConfigError
from base.http import Credentials, Role
from base.keys import KeyRing
from base.trust import Trust
from roadstead.config import Config
from roadstead.keys import Keys
from roadstead.registries import PeerRegistry
from roadstead.role import Place, Ready, run_node
from status.api import SERVICE as STATUS

__all__ = ["Joining", "run_access_node", "run_status_node"]


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """The system to join, and as whom. Without an `api_key` the node's HTTP API refuses everybody."""

    registry: str
    """Base URL of the node that serves the registry."""
    peer_key: str
    api_key: str | None
    name: str
    port: int


async def run_status_node(
    config: Config, joining: Joining, *, on_ready: Callable[[Ready], None], stop: asyncio.Event | None = None
) -> None:
    """Run one status node until SIGTERM, SIGINT or `stop`.

    Raises what `run_node` raises, and ConfigError when the backend has no status nodes.
    """
    if config.status.backend != "cluster":
        raise ConfigError([f'status.backend is "{config.status.backend}": there are no status nodes to add to'])
    status = msgspec.structs.replace(config.status, bootstrap_nodes=config.up.status_nodes)
    config = msgspec.structs.replace(config, status=status)
    await run_node(STATUS, config, _place(config, joining, None), on_ready=on_ready, stop=stop)


async def run_access_node(
    config: Config,
    joining: Joining,
    *,
    ticket_keys: Mapping[str, str],
    on_ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Run one access node until SIGTERM, SIGINT or `stop`.

    `ticket_keys`: kid -> secret of every key that the system's schedulers sign tickets with. Raises what `run_node`
    raises.
    """
    await run_node(ACCESS, config, _place(config, joining, KeyRing.of(ticket_keys)), on_ready=on_ready, stop=stop)


def _place(config: Config, joining: Joining, ticket_keys: KeyRing | None) -> Place:
    trust = Trust.of_key(joining.peer_key)
    return Place(
        name=joining.name,
        host=config.up.host,
        port=joining.port,
        keys=Keys(
            node=joining.name,
            trust=trust,
            credentials=Credentials({joining.api_key: Role.ADMIN} if joining.api_key is not None else {}),
            ticket_keys=ticket_keys,
        ),
        registry=PeerRegistry(joining.registry, node=joining.name, trust=trust),
        start_deadline_ms=config.node.start_deadline_ms,
        is_patient=False,
    )
