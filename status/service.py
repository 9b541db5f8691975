"""A status node: the shell around one `SessionTable`.

Start: listen, register, read the partition table, and learn from the registry which access nodes are alive, since each
of them may know users that this life of the node has not heard of.
Run: serve beats and lookups as they come (both are plain functions on memory, no task a call), and every TICK_MS end
what is over. Whatever runs first after a gap in the ticks notices this node's own stall and extends every lease by it.
Stop: deregister, close.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from base.clock import Instant
from base.errors import LimitExceeded, NotReady, StaleEpoch
from base.http import Role, json_response
from base.ids import NodeId
from base.node import Node
from base.site import Site
from status.api import BEAT, LOOKUP, LOOKUP_USERS_MAX, SERVICE, Beat, BeatReply, Lookup, LookupReply, UserStatus
from status.client import StatusClient, TableFollower
from status.config import StatusConfig
from status.core.sessions import SessionTable
from status.leader import Leader
from status.lookup_api import LookupApi
from status.metrics import StatusMetrics

__all__ = ["StatusNode"]

ACCESS_SERVICE = "access"
TICK_MS = 200
STALL_MS = 500


class StatusNode:
    """One node of the cluster. Its HTTP port carries the API, health, metrics and the peer streams."""

    def __init__(
        self,
        config: StatusConfig,
        site: Site,
    ) -> None:
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._registry = site.registry
        self._clock = site.clock
        self._credentials = site.credentials
        self._sessions = SessionTable(lease_ms=config.lease_ms)
        self._table = TableFollower(site)
        self._client = StatusClient(site)
        self._leader = Leader(site, bootstrap_nodes=config.bootstrap_nodes)
        self._metrics = StatusMetrics(self.node.metrics, self._sessions.statistics)
        self.node.peers.serve(BEAT, self._beat)
        self.node.peers.serve(LOOKUP, self._lookup)
        LookupApi(self._client, site.credentials).add_to(self.node.http.app.router)
        self.node.http.app.router.add_get("/v1/admin/status/table", self._get_table)
        self._observed = site.clock.monotonic()

    async def start(self) -> None:
        """Listen, join, and wait until there is a table."""
        await self.node.listen()
        alive = (await self._registry.services(ACCESS_SERVICE)).items
        self._sessions.await_nodes(self._clock.monotonic(), [NodeId(instance.id) for instance in alive])
        await self.node.join()

    async def run(self) -> None:
        """Follow the table, stand for leader, end leases."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._table.run())
            tasks.create_task(self._client.run())
            tasks.create_task(self._leader.run())
            tasks.create_task(self.node.run())
            tasks.create_task(self._tick())

    async def drain(self) -> None:
        """Take no new work. Its partitions move away by a resize, not by a drain."""
        self.node.http.is_ready = False

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        table = self._table.table
        return {
            "epoch": table.epoch if table else 0,
            "partitions": table.counts().get(self.node.site.name, 0) if table else 0,
            "is_leading": self._leader.is_leading,
            "table": self._sessions.statistics(),
            "streams": self.node.peers.statistics(),
        }

    # ---------------------------------------------------------------- peer methods

    def _beat(self, beat: Beat, _peer: str) -> BeatReply:
        outcome = self._sessions.beat(self._observe(), beat)
        if outcome.is_fenced:
            raise StaleEpoch(f"a newer life of {beat.node} than {beat.incarnation} is known here")
        self._metrics.beats.inc()
        self._metrics.deltas.inc(len(beat.deltas))
        if outcome.needs_resync:
            self._metrics.resyncs.inc()
        return BeatReply(outcome.needs_resync, self._epoch(), self._sessions.lease_ms)

    def _lookup(self, lookup: Lookup, _peer: str) -> LookupReply:
        if len(lookup.users) > LOOKUP_USERS_MAX:
            raise LimitExceeded("too many users in one lookup", what="users", limit=LOOKUP_USERS_MAX)
        table = self._table.table
        if table is None:
            raise NotReady("no partition table yet", retry_after_ms=TICK_MS)
        statuses: list[UserStatus | None] = list(self._sessions.lookup(self._observe(), lookup.users))
        if lookup.epoch != table.epoch:
            # With the same table the caller cannot have routed otherwise than we would.
            for index, user in enumerate(lookup.users):
                if table.owner_of(user) != self.node.site.name:
                    statuses[index] = None
                    self._metrics.misrouted.inc()
        self._metrics.lookups.inc(len(statuses))
        return LookupReply(table.epoch, statuses)

    # ---------------------------------------------------------------- HTTP

    async def _get_table(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/admin/status/table`: the partition table as this node has it."""
        self._credentials.require(request, Role.VIEWER)
        table = self._table.table
        if table is None:
            raise NotReady("no partition table yet", retry_after_ms=TICK_MS)
        counts = table.counts()
        nodes = [
            {"node": node, "weight": weight, "partitions": counts[node]}
            for node, weight in zip(table.nodes, table.weights, strict=True)
        ]
        return json_response({"epoch": table.epoch, "nodes": nodes, "owners": table.owners})

    # ---------------------------------------------------------------- background

    async def _tick(self) -> None:
        while True:
            self._sessions.expire(self._observe())
            await asyncio.sleep(TICK_MS / 1000)

    def _observe(self) -> Instant:
        """Read the clock; if this process did not run since the last tick, give everybody that time back first."""
        now = self._clock.monotonic()
        lag_ms = now - self._observed - TICK_MS
        if lag_ms > STALL_MS:
            self._sessions.stalled(lag_ms)
            self._metrics.stalls.inc(lag_ms)
            self.node.log.warning("stall_noticed", lag_ms=lag_ms)
        self._observed = now
        return now

    def _epoch(self) -> int:
        return self._table.table.epoch if self._table.table else 0
