"""Which adapters the status ports have, by `status.backend`: the one place that knows the backends by name."""

from __future__ import annotations

from base.site import Site
from roadstead.config import Config
from status.client import StatusClient, StatusLookups, StatusSide, status_side

__all__ = ["access_side", "lookups"]


def access_side(config: Config, site: Site) -> StatusSide:
    """Return what an access node needs of the status backend."""
    if config.status.backend == "redis":
        from status.redis import RedisSessionReports

        reports = RedisSessionReports(config.status, site)
        return {"reports": reports, "statuses": lookups(config, site), "watches": None}
    return status_side(site, users_max=config.access.watches_max, grace_ms=config.status.offline_grace_ms)


def lookups(config: Config, site: Site) -> StatusLookups:
    """Return what looks users up in the status backend."""
    if config.status.backend == "redis":
        from status.redis import RedisStatusLookups

        return RedisStatusLookups(config.status, site)
    return StatusClient(site)
