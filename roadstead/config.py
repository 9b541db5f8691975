"""The whole configuration: one section a service, and what `up` itself needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta

from access.config import AccessConfig
from base.config import Section
from base.http import is_loopback
from base.registry.config import RegistryConfig
from base.site import NodeConfig
from base.trust import SecurityConfig
from im.config import ImConfig
from scheduler.config import SchedulerConfig
from status.config import StatusConfig

__all__ = ["Config", "LogConfig", "UpConfig"]


class UpConfig(Section, frozen=True, kw_only=True):
    """The `[up]` section: all services in one process."""

    host: Annotated[
        str, Meta(description="Address that every listener binds. Anything beyond loopback needs `allow_remote`.")
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Meta(
            ge=0,
            le=65_000,
            description="Port of the scheduler; the other nodes take the ports after it: im, then access, then status, "
            "then the registry, and last the access nodes' ports for clients. 0 picks free ones.",
        ),
    ] = 8700
    allow_remote: Annotated[
        bool, Meta(description="Let listeners bind beyond loopback, without TLS. Only for a network that you trust.")
    ] = False
    access_nodes: Annotated[int, Meta(ge=1, le=64, description="How many access nodes to run.")] = 2
    status_nodes: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="How many status nodes the first partition table has. With `status.backend = redis` one runs, "
            "which only asks.",
        ),
    ] = 3
    spare_status_nodes: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="How many status nodes to run beside them, which own nothing until a resize adds them: "
            "`roadstead status resize`.",
        ),
    ] = 2

    def problems(self) -> Iterable[str]:
        """Nothing beyond loopback unless asked for."""
        if not is_loopback(self.host) and not self.allow_remote:
            yield f"host is {self.host}, which is not loopback; set up.allow_remote = true if you mean it"


class LogConfig(Section, frozen=True, kw_only=True):
    """The `[log]` section."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severe event to log.")] = (
        "warning"
    )
    format: Annotated[
        Literal["text", "json"], Meta(description="Lines for people, or one JSON object a line for programs.")
    ] = "text"


class Config(Section, frozen=True, kw_only=True):
    """The root."""

    up: UpConfig = UpConfig()
    log: LogConfig = LogConfig()
    node: NodeConfig = NodeConfig()
    registry: RegistryConfig = RegistryConfig()
    security: SecurityConfig = SecurityConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    status: StatusConfig = StatusConfig()
    access: AccessConfig = AccessConfig()
    im: ImConfig = ImConfig()
