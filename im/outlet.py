"""Where the pushes of a process leave: the streams to access nodes, who is behind which, and what nodes follow.

The shards of a process share one, so that there is one stream to each access node, however many shards there are.
"""

from __future__ import annotations

import asyncio

from access.api import SERVICE as ACCESS_SERVICE
from base.peer import PeerPool, PeerServer
from base.site import Site
from im.config import ImConfig
from im.followed import Followed
from im.metrics import ImMetrics
from status.client import StatusLookups

__all__ = ["Outlet"]


class Outlet:
    """See the module."""

    def __init__(
        self, config: ImConfig, site: Site, *, statuses: StatusLookups, peers: PeerServer, metrics: ImMetrics
    ) -> None:
        """`statuses` is run here; `peers` serve `im.follow`."""
        self.statuses = statuses
        self.pool = PeerPool(site, ACCESS_SERVICE)
        self.followed = Followed(site, self.pool, peers=peers, pairs_max=config.followed_max, metrics=metrics)

    async def run(self) -> None:
        """Keep the streams until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.statuses.run())
            tasks.create_task(self.pool.run())

    async def wait_ready(self) -> None:
        """Return once statuses can be looked up."""
        await self.statuses.wait_ready()
        await self.pool.wait_ready()
