"""One process of the message services: its shards, and the way to all others.

A send is acknowledged when it is durable, never before; pushes come after and may fail without harm. Any process takes
any call: what is of a shard that it has not, it passes on to the process that has it, once.

Start: listen, learn the shard table (the first process of a system makes it), open the shards, register. Run: commit in
groups, push, heartbeat. Drain: not ready, refuse new sends, commit what waits. Stop: deregister, close the stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from base.errors import ConfigError, LimitExceeded, RoadsteadError, Unavailable, UnknownMethod
from base.ids import entropy, new_epoch
from base.log import logger
from base.node import Node
from base.peer import PeerPool
from base.site import REGISTERED_AGAIN_MS, Site
from im.absence import Absence
from im.admin import ShardsAdmin
from im.api import (
    CONVERSATION,
    CONVERSATION_HEADS,
    CONVERSATIONS_MAX,
    HEADS,
    HEADS_USERS_MAX,
    RPC,
    SERVICE,
    TIMELINE,
    UNPROVEN,
    UNPROVEN_MAX,
    Conversation,
    ConversationHeads,
    ConversationReply,
    Heads,
    HeadsReply,
    Rpc,
    RpcReply,
    Taken,
    Timeline,
    TimelinePage,
    Unproven,
)
from im.config import ImConfig
from im.core.book import LedgerSettings
from im.core.model import Message
from im.core.offline import OfflineFeed
from im.core.quotas import Quotas
from im.core.shards import ShardTable, shard_of_call, shard_of_text, shard_of_user
from im.gathering import Shards, elsewhere
from im.http import ImApi
from im.methods import Caller, require_method
from im.metrics import ImMetrics
from im.moving import Moving
from im.outlet import Outlet
from im.ports import MessageStore
from im.search.search import Search
from im.shard import Shard, Shared
from im.shards_api import (
    CONVERSATIONS_OF,
    LISTED,
    MEMBERSHIP,
    MESSAGES,
    TAKE_OVER,
    ConversationsOf,
    ListedOf,
    ListedReply,
    MembershipOf,
    MembershipReply,
    MessagesOf,
    MessagesReply,
    TakenOver,
    TakeOver,
)
from im.tables import ShardTables
from im.workers import MessageNumbers
from status.client import StatusLookups

__all__ = ["MessageService", "OpenShard", "Opened"]

FORWARD_DEADLINE_MS = 4_000
OPEN_AGAIN_S = 2.0
FIRST_EPOCH = 1
"""Of the table that a system starts with: its shards' files are made. Those of later ones are somewhere."""


class Opened(NamedTuple):
    """The files of a shard, which the service closes."""

    store: MessageStore
    search: Search


class OpenShard(Protocol):
    """Opens the files of a shard."""

    async def __call__(self, shard: int, shards: int, settings: LedgerSettings, /, *, may_make: bool) -> Opened:
        """Return the files, which are made if they are missing and `may_make`.

        Raises:
            ConfigError: they cannot be used.
            StoreError: they are missing, or a newer release wrote them.
        """
        ...


class MessageService:
    """One process of the message services on its HTTP port."""

    def __init__(
        self,
        config: ImConfig,
        site: Site,
        *,
        open_shard: OpenShard,
        statuses: StatusLookups,
        folder: Path | None = None,
    ) -> None:
        """`statuses` finds the receivers' access nodes, and is run by this service; shards can be moved from and to the
        `folder` that `open_shard` has its files in.
        """
        self.node = Node(site, SERVICE, statistics=self.statistics)
        self._config = config
        self._open_shard = open_shard
        self._log = logger(node=site.name)
        self._metrics = metrics = ImMetrics(self.node.metrics)
        self._offline = OfflineFeed(new_epoch(), items_max=config.offline_items_max)
        self._tables = ShardTables(site, folder=folder, on_change=self._table_changed)
        self._ids = MessageNumbers(config.message_ids, site, entropy=entropy(), others=self._tables.others_in_doubt)
        self._pool = PeerPool(site, SERVICE)
        self._here: dict[int, Shard] = {}
        self._shards = Shards(site.name, self._pool, self._tables, self._here)
        self._outlet = Outlet(config, site, statuses=statuses, peers=self.node.peers, metrics=metrics)
        self._shared = Shared(
            config,
            site.name,
            site.clock,
            self._ids,
            self._outlet,
            metrics,
            Quotas(config.quota_settings),
            self._shards,
            self._missed,
        )
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[int, asyncio.Task[None]] = {}
        """Of each shard that is here."""
        self._absence = Absence()  # of shards that are being opened, or given away
        self._is_open = False  # whether `start` has opened what was ours then
        self._moving = None
        if folder is not None and config.shards > 1:
            self._moving = Moving(
                site,
                folder=folder,
                pool=self._pool,
                peers=self.node.peers,
                tables=self._tables,
                is_open=lambda shard: shard in self._here and shard not in self._absence,
                seal=self._close_shard,
                unseal=self._reopen,
                gone=self._absence.end,
            )
        metrics.shards.set_function(lambda: len(self._here))
        self._api = ImApi(
            self.call,
            offline=self._offline,
            shards=self._shards,
            credentials=site.credentials,
            has_previews=lambda: all(shard.has_previews() for shard in self._here.values()),
        )
        self._serve()

    def _serve(self) -> None:
        router, peers, site = self.node.http.app.router, self.node.peers, self.node.site
        self._api.add_to(router)
        ShardsAdmin(
            site.name,
            self._tables,
            self._moving,
            site.credentials,
            begin=self._begin_move,
            here=self._statistics_by_shard,
        ).add_to(router)
        peers.serve(RPC, self._rpc)
        peers.serve(TIMELINE, self._timeline)
        peers.serve(HEADS, self._heads)
        peers.serve(CONVERSATION, self._conversation)
        peers.serve(CONVERSATION_HEADS, self._conversation_heads)
        peers.serve(UNPROVEN, self._unproven)
        peers.serve(TAKE_OVER, self._take_over)
        peers.serve(CONVERSATIONS_OF, self._conversations_of)
        peers.serve(LISTED, self._listed)
        peers.serve(MEMBERSHIP, self._membership)
        peers.serve(MESSAGES, self._messages)

    async def start(self) -> None:
        """Listen, open this process' shards, join, and wait until receivers can be looked up.

        Raises:
            ConfigError: the port cannot be bound, or the system has another number of shards.
            StoreError: the registry does not answer, or a shard's files cannot be used.
        """
        site = self.node.site
        await self.node.listen()
        table = await self._tables.make(
            self._config.first_nodes or (site.name,),
            self._config.shards,
            look_ms=REGISTERED_AGAIN_MS if site.config.name else 0,
        )
        if table.shards != self._config.shards:
            raise ConfigError([f"im.shards is {self._config.shards} here and {table.shards} in the system"])
        for shard in table.owned_by(site.name):
            await self._open(shard, table)
        self._is_open = True
        self._table_changed(self._tables.known)
        await self._outlet.wait_ready()
        try:
            await self._ids.acquire()
        except Unavailable as error:  # it is tried again while this runs; sends are refused meanwhile
            self._log.error("no_worker_number", error=str(error))
        await self.node.join()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outlet.run())
            tasks.create_task(self._ids.run())
            tasks.create_task(self._tables.run())
            tasks.create_task(self._open_again())
            tasks.create_task(self.node.run())
            if self._config.shards > 1:
                tasks.create_task(self._pool.run())
            self._tasks = tasks
            for number, shard in self._here.items():
                self._running[number] = tasks.create_task(shard.run())

    async def drain(self) -> None:
        """Refuse new commands, commit what waits, and let other processes have what is for their users."""
        self.node.http.is_ready = False
        async with asyncio.TaskGroup() as tasks:
            for shard in self._here.values():
                tasks.create_task(shard.drain())
        async with asyncio.TaskGroup() as tasks:
            for shard in self._here.values():
                tasks.create_task(shard.settle())

    async def stop(self) -> None:
        """Deregister and close."""
        await self.node.close()
        await self._ids.release()
        while self._here:
            _, shard = self._here.popitem()
            await shard.close()

    def statistics(self) -> dict[str, Any]:
        """Return a snapshot for `/debug/statistics`."""
        table = self._tables.table
        return {
            "table_epoch": table.epoch if table is not None else 0,
            "shards": self._statistics_by_shard(),
            "followed": len(self._outlet.followed),
            "offline_items": len(self._offline),
            "streams": self.node.peers.statistics(),
        }

    def _statistics_by_shard(self) -> dict[str, Any]:
        return {str(number): self._here[number].statistics() for number in sorted(self._here)}

    # ------------------------------------------------------------ shards that come and go

    def _begin_move(self, shard: int, to: str) -> None:
        assert self._tasks is not None, "the service runs"
        self._tasks.create_task(self._move(shard, to))

    async def _move(self, shard: int, to: str) -> None:
        assert self._moving is not None
        with suppress(RoadsteadError):  # told in the log, and by the status of the move
            await self._moving.move(shard, to)

    async def _open(self, number: int, table: ShardTable) -> None:
        settings = self._config.ledger_settings(number, table.shards)
        opened = await self._open_shard(number, table.shards, settings, may_make=table.epoch == FIRST_EPOCH)
        shard = Shard(self._shared, number, table.shards, store=opened.store, search=opened.search)
        self._here[number] = shard
        if self._tasks is not None:
            self._running[number] = self._tasks.create_task(shard.run())

    def _table_changed(self, table: ShardTable) -> None:
        """Open what has become ours. What was ours has been given away by ourselves."""
        if not self._is_open or self._tasks is None:
            return
        for number in table.owned_by(self.node.site.name):
            if number not in self._here and number not in self._absence:
                self._absence.begin(number)
                self._tasks.create_task(self._take_on(number, table))

    async def _take_on(self, number: int, table: ShardTable) -> None:
        try:
            await self._open(number, table)
            self._log.info("shard_opened", shard=number, table=table.epoch)
            if self._moving is not None:
                await self._moving.opened(number)
        except RoadsteadError as error:
            self._log.error("shard_not_opened", shard=number, error=str(error))
        finally:
            self._absence.end(number)

    async def _open_again(self) -> None:
        """Try again what is ours and could not be opened, until cancelled."""
        while True:
            await asyncio.sleep(OPEN_AGAIN_S)
            if self._tables.table is not None:
                self._table_changed(self._tables.table)

    async def _close_shard(self, number: int) -> None:
        """Take a shard out of service: what it has begun is committed, and its files are closed.

        It is on its way from here on, whatever table comes by, until it is reopened or its new process has it.
        """
        assert number not in self._absence, "it has wholly come before it leaves"
        self._absence.begin(number)
        shard = self._here.pop(number)
        await shard.drain()
        running = self._running.pop(number)
        running.cancel()
        await asyncio.wait([running])
        await shard.close()

    async def _reopen(self, number: int) -> None:
        table = self._tables.known
        if number in table.owned_by(self.node.site.name):
            await self._take_on(number, table)
        else:
            self._absence.end(number)

    def _missed(self, user: str, message: Message) -> None:
        self._offline.add(user, message)
        self._metrics.missed.inc()
        self._api.offline_grew()

    # ------------------------------------------------------------ clients' calls

    def call(self, caller: Caller, name: str, data: bytes) -> Awaitable[bytes]:
        """Begin a call, wherever its shard is; what is awaited is its result as JSON. Raises as `Methods.call`."""
        require_method(name)
        number = shard_of_call(caller.user, name, data, self._config.shards)
        shard = self._here.get(number) if number not in self._absence else None
        return shard.call(caller, name, data) if shard is not None else self._forward(number, caller, name, data)

    async def _forward(self, number: int, caller: Caller, name: str, data: bytes) -> bytes:
        """Have the process carry it out that has the shard; this one, if the shard was on its way here."""
        await self._absence.wait(number)
        shard = self._here.get(number)
        if shard is not None:
            return await shard.call(caller, name, data)
        self._metrics.forwarded.inc()
        method = f"{SERVICE}.{name}"
        request = Rpc(caller.user, caller.device, method, data, is_backend=caller.is_backend, is_forwarded=True)
        return (await self._shards.call(number, RPC, request, deadline_ms=FORWARD_DEADLINE_MS)).data

    def _rpc(self, rpc: Rpc, peer: str) -> Awaitable[RpcReply]:
        service, _, name = rpc.method.partition(".")
        if service != SERVICE:
            raise UnknownMethod(f"there is no method {rpc.method}")
        caller = Caller(rpc.user, rpc.device, rpc.is_backend)
        number = shard_of_call(rpc.user, name, rpc.data, self._config.shards)
        shard = self._here.get(number)
        if number in self._absence and (shard is None or self._moving is None or self._moving.sender(number) != peer):
            return self._rpc_later(number, caller, name, rpc.data)
        if shard is not None and name == "send":
            return shard.send(caller, rpc.data)
        require_method(name)
        if shard is not None:
            return _as_reply(shard.call(caller, name, rpc.data))
        if rpc.is_forwarded:
            raise elsewhere(number)
        return _as_reply(self._forward(number, caller, name, rpc.data))

    async def _rpc_later(self, number: int, caller: Caller, name: str, data: bytes) -> RpcReply:
        """Carry a call out once the shard is somewhere. Who passed it on here could not know where: it is passed on."""
        await self._absence.wait(number)
        return RpcReply(await self.call(caller, name, data))

    # ------------------------------------------------------------ access nodes' calls

    async def _of_user(self, user: str) -> Shard:
        return await self._shard(shard_of_user(user, self._config.shards))

    async def _of_cid(self, cid: str) -> Shard:
        return await self._shard(shard_of_text(cid, self._config.shards))

    async def _shard(self, number: int) -> Shard:
        """Return a shard, once it is here if it is on its way. Raises Unavailable if it is not here then."""
        await self._absence.wait(number)
        shard = self._here.get(number)
        if shard is None:
            raise elsewhere(number)
        return shard

    async def _timeline(self, request: Timeline, _peer: str) -> TimelinePage:
        return await (await self._of_user(request.user)).timeline(request)

    async def _heads(self, request: Heads, _peer: str) -> HeadsReply:
        if len(request.users) > HEADS_USERS_MAX:
            raise LimitExceeded("too many users in one call", what="users", limit=HEADS_USERS_MAX)
        if not request.users:
            return HeadsReply("", [])
        return await (await self._of_user(request.users[0])).heads(request)

    async def _conversation(self, request: Conversation, _peer: str) -> ConversationReply:
        return await (await self._of_cid(request.cid)).conversation(request)

    async def _conversation_heads(self, request: ConversationHeads, _peer: str) -> HeadsReply:
        if len(request.cids) > CONVERSATIONS_MAX:
            raise LimitExceeded("too many conversations in one call", what="conversations", limit=CONVERSATIONS_MAX)
        if not request.cids:
            return HeadsReply("", [])
        return await (await self._of_cid(request.cids[0])).conversation_heads(request)

    async def _unproven(self, request: Unproven, _peer: str) -> Taken:
        """Hold that users missed what was written to them after their last sign of life."""
        if len(request.sessions) > UNPROVEN_MAX:
            raise LimitExceeded("too many sessions in one call", what="sessions", limit=UNPROVEN_MAX)
        for user, offset in request.sessions:
            await (await self._of_user(user)).missed_from(user, offset + 1)
        return Taken()

    # ------------------------------------------------------------ other processes' calls

    async def _take_over(self, request: TakeOver, _peer: str) -> TakenOver:
        return TakenOver(await (await self._shard(request.target)).take_over(request.source, request.entries))

    async def _conversations_of(self, request: ConversationsOf, _peer: str) -> ListedReply:
        return await self._shards.page_here(request)

    async def _listed(self, request: ListedOf, _peer: str) -> ListedReply:
        shard = await self._of_cid(str(request.cids[0])) if request.cids else None
        return ListedReply(await shard.store.listed(request.user, request.cids) if shard is not None else [])

    async def _membership(self, request: MembershipOf, _peer: str) -> MembershipReply:
        return MembershipReply(await (await self._of_cid(str(request.cid))).store.membership(request.cid, request.user))

    async def _messages(self, request: MessagesOf, _peer: str) -> MessagesReply:
        page = await (await self._of_cid(str(request.cid))).store.messages(request.cid, request.seqs)
        return MessagesReply(page.head, page.messages, tuple(page.overlays.values()))


async def _as_reply(result: Awaitable[bytes]) -> RpcReply:
    return RpcReply(await result)
