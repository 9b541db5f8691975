"""What operators ask and order over HTTP: the partition table, a resize, its progress, what is held.

    GET  /v1/admin/status/table     who owns what
    GET  /v1/admin/status/resize    how far a resize is
    POST /v1/admin/status/resize    change nodes and weights, or only plan it
    POST /v1/admin/status/pause     begin no moves and seal nothing more
    POST /v1/admin/status/resume    go on
    POST /v1/admin/status/abort     roll back the moves that can be, and pause
    GET  /v1/admin/status/digest    what is held of each access node

Any status node takes an order: it writes the operators' wish into the registry, which whoever leads follows. Somebody
else's change in between is never overwritten unseen: the order is decided once more, on what it left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from base.errors import BadRequest, CasConflict, NotReady
from base.http import Role, body_of, json_body, json_response
from base.ids import NodeId, name_order
from base.site import Site
from status.api import SERVICE
from status.census import CensusTaker
from status.core.migration import planned
from status.core.partitions import PartitionTable
from status.queries import check_names
from status.resize import ResizeRequest, nodes_of, plan_of, progress_of, uncommitted, wanted_by, weights_asked
from status.table import WISH_KEY, TableFollower, Wish

__all__ = ["ResizeApi"]

PAUSE_MS = 1_000
"""How long an abort waits for the leader's pause, after which no move begins."""
RETRY_AFTER_MS = 500


class NothingElse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an order that says everything by its path: none, or an empty object."""


Order = TypeVar("Order")


class ResizeApi:
    """The routes and what they do. Whoever adds them runs the table's follower and the census's streams."""

    def __init__(self, site: Site, table: TableFollower, census: CensusTaker) -> None:
        self._registry = site.registry
        self._credentials = site.credentials
        self._table = table
        self._census = census

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/status/table", self._get_table)
        router.add_get("/v1/admin/status/resize", self._get_resize)
        router.add_get("/v1/admin/status/digest", self._get_digest)
        router.add_post("/v1/admin/status/resize", self._post_resize)
        router.add_post("/v1/admin/status/pause", self._post_pause)
        router.add_post("/v1/admin/status/resume", self._post_resume)
        router.add_post("/v1/admin/status/abort", self._post_abort)

    # ---------------------------------------------------------------- looking

    async def _get_table(self, request: web.Request) -> web.Response:
        """Answer with the partition table as this node has it, and what it becomes if a resize is under way."""
        self._credentials.require(request, Role.VIEWER)
        table = self._known()
        progress = await self._progress()
        counts = table.counts()
        nodes: list[dict[str, Any]] = [
            {"node": node, "weight": weight, "partitions": counts[node]}
            for node, weight in zip(table.nodes, table.weights, strict=True)
        ]
        if not progress["is_done"]:
            weights = wanted_by(self._table.wish, table)
            rows = nodes_of(table, weights, planned(table, weights))
            wanted = {row["node"]: row["wanted_partitions"] for row in rows}
            nodes = [{**node, "wanted_partitions": wanted[node["node"]]} for node in nodes]
        moves = [
            {"partition": move.partition, "source": move.source, "target": move.target, "stage": move.stage.value}
            for move in table.moves
        ]
        return json_response({"epoch": table.epoch, "nodes": nodes, "moves": moves, "owners": table.owners})

    async def _get_resize(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        return json_response(await self._progress())

    async def _get_digest(self, request: web.Request) -> web.Response:
        """Answer with what all status nodes together hold of each life of an access node."""
        self._credentials.require(request, Role.VIEWER)
        table = self._known()
        total = await self._census.take(table)
        rows = [
            {
                "node": life.node,
                "incarnation": life.incarnation,
                "entries": digest.entries,
                "xor": f"{digest.xor:016x}",
            }
            for life, digest in sorted(total.lives.items(), key=lambda item: (name_order(item[0].node), item[0]))
        ]
        return json_response(
            {"epoch": table.epoch, "is_exact": total.is_exact, "unknown": total.unknown, "access_nodes": rows}
        )

    # ---------------------------------------------------------------- ordering

    async def _post_resize(self, request: web.Request) -> web.Response:
        """Check the order, write it unless it is only planned, and answer with the moves that it takes."""
        asked = await self._order(request, ResizeRequest)
        registered = await self._registered()

        def weighted(wish: Wish) -> Wish:
            try:
                weights = weights_asked(asked, wanted_by(wish, self._known()), registered)
            except BadRequest as error:
                if not self._known().is_filling:
                    raise
                raise NotReady(
                    f"{error}; the registry started over, and not every node is registered again",
                    retry_after_ms=RETRY_AFTER_MS,
                ) from error
            return msgspec.structs.replace(wish, weights=dict(sorted(weights.items())))

        before = wanted_by(self._table.wish, self._known())
        wish = weighted(self._table.wish) if asked.plan else await self._wish(weighted)
        table = self._known()
        weights = wanted_by(wish, table)
        plan = plan_of(table, weights, await self._census.take(table))
        return json_response({**plan, "is_planned_only": asked.plan, "is_paused": wish.is_paused, "before": before})

    async def _post_pause(self, request: web.Request) -> web.Response:
        await self._order(request, NothingElse)
        await self._wish(lambda wish: msgspec.structs.replace(wish, is_paused=True))
        return json_response(await self._progress())

    async def _post_resume(self, request: web.Request) -> web.Response:
        await self._order(request, NothingElse)
        await self._wish(lambda wish: msgspec.structs.replace(wish, is_paused=False))
        return json_response(await self._progress())

    async def _post_abort(self, request: web.Request) -> web.Response:
        """Pause, and roll back what is not committed. With no resize under way there is nothing to do."""
        await self._order(request, NothingElse)
        if (await self._progress())["is_done"]:
            return json_response({**await self._progress(), "rolled_back": 0})
        rolled_back = uncommitted(self._known())
        await self._wish(self._aborted)
        if await self._has_paused() and uncommitted(self._known()):
            # They began after the table by which the abort was asked. Now none begins any more.
            rolled_back = max(rolled_back, uncommitted(self._known()))
            await self._wish(self._aborted)
        return json_response({**await self._progress(), "rolled_back": rolled_back})

    def _aborted(self, wish: Wish) -> Wish:
        return msgspec.structs.replace(wish, is_paused=True, abort=self._known().epoch)

    async def _has_paused(self) -> bool:
        try:
            async with asyncio.timeout(PAUSE_MS / 1000):
                while not (table := self._known()).is_paused:
                    await self._table.wait_newer(table.epoch)
        except TimeoutError:
            return False  # nobody leads now: whoever does next follows the wish
        return True

    # ---------------------------------------------------------------- inside

    async def _order(self, request: web.Request, kind: type[Order]) -> Order:
        self._credentials.require(request, Role.OPERATOR)
        check_names(request)
        if kind is NothingElse and not await body_of(request):
            return kind()
        return await json_body(request, kind)

    def _known(self) -> PartitionTable:
        if self._table.table is None:
            raise NotReady("no partition table yet", retry_after_ms=RETRY_AFTER_MS)
        return self._table.table

    async def _progress(self) -> dict[str, Any]:
        return progress_of(self._known(), self._table.wish, await self._registered(), self._table.leader)

    async def _registered(self) -> frozenset[NodeId]:
        return frozenset(NodeId(instance.id) for instance in (await self._registry.services(SERVICE)).items)

    async def _wish(self, change: Callable[[Wish], Wish]) -> Wish:
        """Change the wish by compare-and-set, at most twice; return it. Raises CasConflict the second time."""
        try:
            return await self._try_wish(change)
        except CasConflict:
            pass
        try:
            return await self._try_wish(change)
        except CasConflict as error:
            raise CasConflict("somebody else gives orders too; look at the progress, then ask again") from error

    async def _try_wish(self, change: Callable[[Wish], Wish]) -> Wish:
        await self._table.read()
        wish = change(self._table.wish)
        if wish != self._table.wish:
            await self._registry.put(WISH_KEY, msgspec.msgpack.encode(wish), expect=self._table.wish_index)
            await self._table.read()  # whoever asks this node next sees its own order
        return wish
