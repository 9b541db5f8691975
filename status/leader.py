"""One status node leads: it alone writes the partition table.

Whoever holds the registry lock `status/leader` leads, for as long as its session was renewed in time, counted from when
it *asked*. A leader that cannot renew stops leading by itself before the registry lets another one in.

The leader writes the first table, once enough nodes are there.
"""

from __future__ import annotations

import asyncio

import msgspec

from base.clock import Instant
from base.core.lease import HeldLease
from base.errors import CasConflict, SessionLost, StoreError
from base.ids import Epoch, NodeId
from base.log import logger
from base.site import Site
from status.api import SERVICE, TABLE_KEY
from status.core.partitions import plan_table

__all__ = ["Leader"]

LOCK_KEY = "status/leader"
SESSION_TTL_MS = 10_000
ROUND_MS = 3_000
assert ROUND_MS * 3 < SESSION_TTL_MS


class Leader:
    """A status node's standing candidacy. `run` campaigns, renews and acts."""

    def __init__(self, site: Site, *, bootstrap_nodes: int) -> None:
        """`bootstrap_nodes`: how many status nodes must be registered before the first table is written."""
        self._registry = site.registry
        self._clock = site.clock
        self._node = site.name
        self._bootstrap_nodes = bootstrap_nodes
        self._held = HeldLease()
        self._session: str | None = None
        self._log = logger(node=site.name)

    @property
    def is_leading(self) -> bool:
        """Whether this node may write the table at this instant."""
        return self._held.is_valid(self._clock.monotonic())

    async def run(self) -> None:
        """Campaign until cancelled; give the lock back at the end."""
        try:
            while True:
                try:
                    await self._round()
                except StoreError as error:
                    self._log.warning("leader_round_failed", error=str(error))
                # While there is no table nobody can be looked up, so look again soon.
                await asyncio.sleep((ROUND_MS if await self._has_table() else 20) / 1000)
        finally:
            await self._step_down()

    async def _round(self) -> None:
        asked_at = self._clock.monotonic()
        if self._session is None:
            self._session = await self._registry.open_session(self._node, ttl_ms=SESSION_TTL_MS)
        else:
            try:
                await self._registry.renew_session(self._session)
            except SessionLost:
                self._lost()
                raise
        if self._held.epoch is not None:
            self._held.granted(asked_at, self._held.epoch, SESSION_TTL_MS)
        else:
            await self._campaign(asked_at, self._session)
        if self.is_leading:
            await self._write_first_table()

    async def _campaign(self, asked_at: Instant, session: str) -> None:
        token = await self._registry.acquire(LOCK_KEY, session, self._node.encode())
        if token is not None:
            self._held.granted(asked_at, Epoch(token), SESSION_TTL_MS)
            self._log.info("leader_elected", term=token)

    async def _write_first_table(self) -> None:
        if await self._has_table():
            return
        nodes = (await self._registry.services(SERVICE)).items
        if len(nodes) < self._bootstrap_nodes:
            return
        table = plan_table({NodeId(instance.id): 1 for instance in nodes})
        try:
            await self._registry.put(TABLE_KEY, msgspec.msgpack.encode(table), expect=0)
        except CasConflict:
            return  # another leader was first; its table is as good
        self._log.info("table_written", epoch=table.epoch, nodes=table.nodes)

    async def _has_table(self) -> bool:
        try:
            return await self._registry.get(TABLE_KEY) is not None
        except StoreError:
            return True  # unknown: no reason to hurry

    def _lost(self) -> None:
        if self._held.epoch is not None:
            self._log.warning("leader_deposed")
        self._session = None
        self._held.lost()

    async def _step_down(self) -> None:
        session, self._session = self._session, None
        self._held.lost()
        if session is not None:
            await self._registry.close_session(session)
