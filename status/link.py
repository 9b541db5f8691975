"""What the parts of one access node share to use the status cluster: the partition table, a stream to each status node.

One stream each, because status nodes push on the newest that a node opened: whatever they say arrives in one order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from base.ids import NodeId
from base.peer import PeerPool
from base.site import Site
from status.api import SERVICE
from status.table import TableFollower

__all__ = ["StatusLink"]


class StatusLink:
    """See the module. Whoever shares it adds listeners and handlers before `run`."""

    def __init__(self, site: Site) -> None:
        self.table = TableFollower(site)
        self.pool = PeerPool(site, SERVICE, on_connected=self._connected)
        self._listeners: list[Callable[[NodeId], None]] = []

    def on_connected(self, listener: Callable[[NodeId], None]) -> None:
        """Call the listener with the status node's name each time a new stream to it is up."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Keep the table and the streams until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.table.run())
            tasks.create_task(self.pool.run())

    def _connected(self, node: str) -> None:
        for listener in self._listeners:
            listener(NodeId(node))
