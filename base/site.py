"""What a role is told by whoever starts it: its name and life, where to listen, and whom to trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from base.clock import Clock
from base.config import Section
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.registry.ports import Registry

__all__ = ["HEARTBEAT_MS", "NodeConfig", "Site"]

HEARTBEAT_MS = 1_000


class NodeConfig(Section, frozen=True, kw_only=True):
    """The `[node]` section: what all roles have in common."""

    registration_ttl_ms: Annotated[
        int,
        Meta(
            ge=3 * HEARTBEAT_MS,
            description="How long a node stays in the registry without a heartbeat (ms); it sends one a second. "
            "Raising it forgives longer silences and keeps a dead node listed for longer.",
        ),
    ] = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a role is told by whoever starts it."""

    name: NodeId
    incarnation: Incarnation
    host: str
    port: int
    """0 picks a free one."""
    registry: Registry
    clock: Clock
    peer_key: str
    """The cluster's shared secret, which opens peer streams."""
    credentials: Credentials
    config: NodeConfig
