"""What operators ask and order over HTTP: which process has which shard, and a shard's move.

GET  /v1/admin/im/shards                  the shard table, and what this process has of it
POST /v1/admin/im/shards/{shard}/move     move a shard of this process to another one; it goes on by itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from base.errors import BadRequest
from base.http import Credentials, Role, json_body, json_response
from base.ids import ID_BYTES_MAX
from im.core.shards import SHARDS_MAX
from im.moving import MoveStatus, Moving
from im.tables import ShardTables

__all__ = ["ShardMove", "ShardsAdmin", "ShardsView"]


class ShardMove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a shard is to go: the name of a process of the message services."""

    to: Annotated[str, Meta(min_length=1, max_length=ID_BYTES_MAX)]


class ShardsView(msgspec.Struct, frozen=True):
    """The table: `owners[n]` has shard n. `here` is what this process has, by shard; `move` its last move."""

    node: str
    epoch: int
    owners: tuple[str, ...]
    here: Mapping[str, Any]
    move: MoveStatus | None


class ShardsAdmin:
    """The routes and what they answer."""

    def __init__(
        self,
        node: str,
        tables: ShardTables,
        moving: Moving | None,
        credentials: Credentials,
        *,
        begin: Callable[[int, str], None],
        here: Callable[[], Mapping[str, Any]],
    ) -> None:
        """`begin` begins a move that `moving` allows; `here` says what this process has, by shard."""
        self._node = node
        self._tables = tables
        self._moving = moving
        self._credentials = credentials
        self._begin = begin
        self._here = here

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        router.add_get("/v1/admin/im/shards", self._get_shards)
        router.add_post("/v1/admin/im/shards/{shard}/move", self._post_move)

    async def _get_shards(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.VIEWER)
        return json_response(self._view())

    async def _post_move(self, request: web.Request) -> web.Response:
        self._credentials.require(request, Role.OPERATOR)
        move = await json_body(request, ShardMove)
        text = request.match_info["shard"]
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(SHARDS_MAX))):
            raise BadRequest("a shard is a number")
        if self._moving is None:
            raise BadRequest("a system of one shard has nothing to move")
        shard = int(text)
        await self._moving.check(shard, move.to)
        self._begin(shard, move.to)
        return json_response(self._view())

    def _view(self) -> ShardsView:
        table = self._tables.known
        status = self._moving.status if self._moving is not None else None
        return ShardsView(self._node, table.epoch, table.owners, self._here(), status)
