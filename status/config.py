"""Configuration of the status service, whichever backend it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from base.config import Section

__all__ = ["StatusConfig"]

LEASE_MS_MIN = 2_700
"""A beat vouches for 90 % of the lease, from an answer that is up to two beats old when the next one is due (2.2 s)."""


class StatusConfig(Section, frozen=True, kw_only=True):
    """The `[status]` section."""

    backend: Annotated[
        Literal["cluster", "redis"],
        Meta(
            description="Where statuses are kept: in our own status nodes, or in Redis. When to choose which: "
            "docs/explanation/status-backends.md."
        ),
    ] = "cluster"
    redis_url: Annotated[
        str,
        Meta(
            description="Where Redis is, for the backend redis: `redis://host:6379/0`, `rediss://` for TLS, "
            "`unix://` for a socket; for a Redis Cluster any one of its nodes."
        ),
    ] = ""
    redis_profile: Annotated[
        Literal["single", "cluster", "codis"],
        Meta(description="What Redis is: one server, a Redis Cluster, or behind a Codis proxy."),
    ] = "single"
    redis_ttl_ms: Annotated[
        int,
        Meta(
            ge=1_500,
            le=600_000,
            description="How long sessions stay online in Redis without being refreshed (ms); each is refreshed every "
            "third of it. Raising it lowers the load on Redis and keeps the users of a crashed access node online for "
            "longer.",
        ),
    ] = 9_000
    lease_ms: Annotated[
        int,
        Meta(
            ge=500,
            description="How long an access node's sessions stay online without a heartbeat (ms). Raising it forgives "
            "longer silences and keeps the users of a crashed access node online for longer.",
        ),
    ] = 3_000
    stop_handover_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="How long a status node that is told to stop may take to hand its partitions to the others "
            "(ms), so that nobody's status is unknown meanwhile; they come back when it does. With 0 they are unknown "
            "until it is back, or the others have rebuilt them.",
        ),
    ] = 10_000
    bootstrap_nodes: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="How many status nodes must be registered before the first partition table is written.",
        ),
    ] = 3

    offline_grace_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="How long the news that somebody went offline waits for a return (ms): who is back by then was "
            "never away for those who watch. Reads do not wait.",
        ),
    ] = 8_000
    offline_jitter_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="Up to how much longer it waits (ms), at random, so that the users of an access node that died "
            "do not all go at once.",
        ),
    ] = 2_000
    device_policy: Annotated[
        Literal["all", "one_per_platform", "one"],
        Meta(
            description="How many devices of one user may be connected: all of them, one of each platform, or one. "
            "The others are closed with 3503. Needs the backend cluster."
        ),
    ] = "all"
    device_winner: Annotated[
        Literal["newest", "oldest"],
        Meta(
            description="Which of too many devices stays. With `oldest`, who comes back from a lost connection may be "
            "refused until the old connection is known to be dead: up to `status.lease_ms` after an access node died."
        ),
    ] = "newest"

    def problems(self) -> Iterable[str]:
        """A lease must outlive two lost beats of a second each; Redis must be named to be used."""
        if self.lease_ms < LEASE_MS_MIN:
            yield f"lease_ms is {self.lease_ms}; below {LEASE_MS_MIN} a late heartbeat would show every user offline"
        if self.backend == "redis":
            yield from self._redis_problems()

    def _redis_problems(self) -> Iterable[str]:
        if self.device_policy != "all":
            yield f'device_policy is "{self.device_policy}", which needs backend = "cluster"'
        if not self.redis_url:
            yield 'backend is "redis", which needs redis_url, such as redis://127.0.0.1:6379'
            return
        try:
            url = urlsplit(self.redis_url)
            _ = url.port
        except ValueError as error:
            yield f"redis_url is no URL: {error}"
            return
        schemes = ("redis", "rediss") if self.redis_profile == "cluster" else ("redis", "rediss", "unix")
        if url.scheme not in schemes:
            yield f"redis_url must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
        elif url.scheme != "unix" and not url.hostname:
            yield "redis_url names no host"
        if self.redis_profile == "cluster" and url.path not in {"", "/", "/0"}:
            yield "redis_url names a database, and a Redis Cluster has only database 0"
