"""The status role over a backend that is not ours: the same HTTP interface, and no state.

Start: listen, wait for the backend, register. Run: keep the lookups going. Stop: deregister, close.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from aiohttp import web

from base.errors import NotFound
from base.http import Credentials, Role
from base.node import Node
from base.site import Site
from status.api import SERVICE
from status.events_api import NoEventsApi
from status.lookup_api import LookupApi
from status.ports import StatusLookups
from status.rollcall_api import NoCountApi

__all__ = ["StatusGateway"]


class StatusGateway:
    """One process that answers for statuses kept elsewhere. Any number of them may run."""

    def __init__(self, site: Site, *, statuses: StatusLookups) -> None:
        """`statuses` is run by this role."""
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._statuses = statuses
        self._credentials: Credentials = site.credentials
        LookupApi(statuses, site.credentials).add_to(self.node.http.app.router)
        NoEventsApi(site.credentials).add_to(self.node.http.app.router)
        NoCountApi(site.credentials).add_to(self.node.http.app.router)
        self.node.http.app.router.add_route("*", "/v1/admin/status/{what}", self._refuse)

    async def start(self) -> None:
        """Listen, wait for the backend, join."""
        await self.node.listen()
        await self._statuses.wait_ready()
        await self.node.join()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._statuses.run())
            tasks.create_task(self.node.run())

    async def drain(self) -> None:
        """Take no new work."""
        self.node.http.is_ready = False

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`. There is no table: epoch 0, and nothing owned."""
        return {"epoch": 0, "partitions": 0, "streams": self.node.peers.statistics()}

    async def _refuse(self, request: web.Request) -> NoReturn:
        self._credentials.require(request, Role.VIEWER)
        raise NotFound("with this status backend there is no partition table")
