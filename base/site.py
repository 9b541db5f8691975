"""What a role is told by whoever starts it: its name and life, where to listen, and whom to trust."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from base.audit import Audit
from base.clock import Clock
from base.config import Section
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.registry.ports import Registry
from base.trust import Trust

__all__ = ["HEARTBEAT_MS", "REGISTERED_AGAIN_MS", "NodeConfig", "Site", "is_base_url", "is_node_name", "is_unspecified"]

HEARTBEAT_MS = 1_000
REGISTERED_AGAIN_MS = 2 * HEARTBEAT_MS
"""Nodes that live are registered again so long after a registry that started over can be reached."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_node_name(name: str) -> bool:
    """Return whether a node may be called so: 1 to 64 letters, digits and `. _ -`, a letter or digit first."""
    return _NAME.fullmatch(name) is not None


class NodeConfig(Section, frozen=True, kw_only=True):
    """The `[node]` section: what all roles have in common."""

    name: Annotated[
        str,
        Meta(
            description="Name of the node, unique in the system and the same at each start: 1 to 64 letters, digits "
            "and `. _ -`. For a role in a process of its own; `up` names its nodes itself."
        ),
    ] = ""
    host: Annotated[
        str,
        Meta(
            description="Address that a role's process listens on, where the other nodes reach it. Anything beyond "
            "loopback needs TLS, or `allow_remote`."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port of a role's process; 0 picks a free one.")] = 0
    advertise_url: Annotated[
        str,
        Meta(
            description="Base URL under which the other nodes and operators reach a role's process, such as "
            "`https://10.0.0.7:8710`, if it is another one than where it listens."
        ),
    ] = ""
    allow_remote: Annotated[
        bool,
        Meta(description="Let a role's process listen beyond loopback without TLS. Only for a network that you trust."),
    ] = False
    start_deadline_ms: Annotated[
        int,
        Meta(
            ge=0,
            description="How long a role's process waits at its start for what it needs, such as the registry or the "
            "first status nodes (ms), before it ends with an error; 0 for ever.",
        ),
    ] = 60_000
    registration_ttl_ms: Annotated[
        int,
        Meta(
            ge=3 * HEARTBEAT_MS,
            description="How long a node stays in the registry without a heartbeat (ms); it sends one a second. "
            "Raising it forgives longer silences and keeps a dead node listed for longer.",
        ),
    ] = 10_000

    def problems(self) -> Iterable[str]:
        """Whatever others could not connect to."""
        if self.name and not is_node_name(self.name):
            yield f"name is {self.name!r}; 1 to 64 letters, digits and . _ - make one, such as access-1"
        if is_unspecified(self.host) and not self.advertise_url:
            yield f"host is {self.host}, which is no address that other nodes can connect to; set advertise_url"
        if self.advertise_url and not is_base_url(self.advertise_url):
            yield f"advertise_url is {self.advertise_url!r}, which is no address such as https://10.0.0.7:8710"


def is_unspecified(host: str) -> bool:
    """Return whether a host means all addresses of a machine, so that nobody can connect to it by that name."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_base_url(url: str) -> bool:
    """Return whether a text is the address of a node: scheme, host, perhaps a port, and nothing behind."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    is_base = parts.path in {"", "/"} and not parts.query and not parts.fragment and url.isprintable()
    return is_base and parts.scheme in {"http", "https"} and bool(parts.hostname)


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
    trust: Trust
    """What opens connections between nodes, both ways."""
    credentials: Credentials
    audit: Audit = field(default_factory=Audit)
    open_metrics: bool = False
    """Whether beyond loopback, too, everybody may read metrics and statistics."""
    config: NodeConfig
