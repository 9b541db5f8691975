"""A message service on the twin store, and access nodes' ends of it, over real streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from access.api import (
    DELIVER,
    DELIVER_CONVERSATION,
    ConversationEntry,
    ConversationsDelivered,
    Deliver,
    DeliverConversations,
    Delivered,
    InboxEntry,
)
from access.api import SERVICE as ACCESS
from base.clock import Clock, SystemClock, Timestamp
from base.errors import RoadsteadError
from base.http import Credentials, Role
from base.ids import Incarnation, NodeId
from base.node import Node
from base.peer import PeerClient
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from im.client import ImClient
from im.config import ImConfig
from im.core.book import LedgerSettings
from im.search.search import Search
from im.service import MessageService, Opened
from im.shard import Shard
from im.store.memory import MemoryMessageStore
from status.api import OFFLINE, UNKNOWN, SessionView, UserStatus

__all__ = ["TIMEOUT_S", "AccessEnd", "Cluster", "Statuses", "running", "send_json"]

TIMEOUT_S = 20
KEYS = {"api-key": Role.ADMIN}
NO_QUOTAS = {"user_calls_per_second": 0.0, "device_calls_per_second": 0.0, "conversation_calls_per_second": 0.0}


class Statuses:
    """Status lookups that find nobody but `online`, and nothing for as long as `is_stuck`."""

    def __init__(self) -> None:
        self.is_stuck = False
        self.online: dict[str, tuple[str, ...]] = {}
        """The access nodes of who is online."""
        self.unknown: set[str] = set()

    async def run(self) -> None:
        """Keep nothing."""

    async def wait_ready(self) -> None:
        """Wait for nothing."""

    async def lookup(self, users: Sequence[str], *, viewer: str | None = None) -> Mapping[str, UserStatus]:
        assert viewer is None
        if self.is_stuck:
            await asyncio.Event().wait()
        return {user: self._status(user) for user in users}

    def _status(self, user: str) -> UserStatus:
        if user in self.unknown:
            return UNKNOWN
        nodes = self.online.get(user, ())
        views = (SessionView(f"s{n}", "phone", "test", node, "online", Timestamp(1)) for n, node in enumerate(nodes))
        return UserStatus("online", tuple(views)) if nodes else OFFLINE


class AccessEnd:
    """What an access node has of the message services: its client of them, and what they push to it."""

    def __init__(self, site: Site) -> None:
        self.node = Node(site, ACCESS, statistics=dict)
        self.im = ImClient(site)
        self.failure: RoadsteadError | None = None
        self._pushes: asyncio.Queue[DeliverConversations] = asyncio.Queue()
        self._inboxes: asyncio.Queue[Deliver] = asyncio.Queue()
        self.node.peers.serve(DELIVER_CONVERSATION, self._take)
        self.node.peers.serve(DELIVER, self._take_inboxes)

    async def pushed(self) -> DeliverConversations:
        """Return the next push."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self._pushes.get()

    async def entries(self, count: int) -> list[ConversationEntry]:
        """Return the next entries, however they are pushed."""
        found: list[ConversationEntry] = []
        while len(found) < count:
            found += (await self.pushed()).entries
        return found

    async def inbox_push(self) -> Deliver:
        """Return the next push of timelines' entries."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self._inboxes.get()

    async def inbox(self, count: int) -> list[InboxEntry]:
        """Return the next entries of timelines, however they are pushed."""
        found: list[InboxEntry] = []
        while len(found) < count:
            found += (await self.inbox_push()).entries
        return found

    async def call(self, user: str, method: str, **arguments: Any) -> Any:
        """Call as a client does."""
        return msgspec.json.decode(await self.im.rpc(user, "phone", f"im.{method}", msgspec.json.encode(arguments)))

    async def send(self, sender: str, recipient: str, key: str) -> None:
        """Send as a client does, and return when the message is durable."""
        await self.im.rpc(sender, "phone", "im.send", send_json(recipient, key))

    def _take(self, deliver: DeliverConversations, _peer: str) -> ConversationsDelivered:
        if self.failure is not None:
            raise self.failure
        self._pushes.put_nowait(deliver)
        return ConversationsDelivered()

    def _take_inboxes(self, deliver: Deliver, _peer: str) -> Delivered:
        if self.failure is not None:
            raise self.failure
        self._inboxes.put_nowait(deliver)
        return Delivered([])


class Cluster:
    """A message service, of which there may be a next life, and access nodes."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path, **im: Any) -> None:
        """`im`: settings of the message services, which have no quotas here."""
        self.registry = MemoryRegistry(SystemClock())
        self.config = ImConfig(**{"push_retry_ms": 100, **NO_QUOTAS, **im})
        self._folder = folder
        self.store = MemoryMessageStore(self.config.ledger_settings())
        self.statuses = Statuses()
        self.service: MessageService
        self._searches: list[Search] = []
        self._tasks = tasks
        self._running: dict[str, tuple[Node, list[asyncio.Task[None]]]] = {}

    @property
    def shard(self) -> Shard:
        """The service's only shard."""
        return self.service._here[0]

    def site(self, name: str, life: int, clock: Clock | None = None) -> Site:
        return Site(
            name=NodeId(name),
            incarnation=Incarnation(life),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=clock or SystemClock(),
            trust=Trust.of_key("peer-key"),
            credentials=Credentials(KEYS),
            config=NodeConfig(),
        )

    async def start_service(self, *, life: int = 1, clock: Clock | None = None) -> None:
        site = self.site("im-1", life, clock)
        search = await Search.open(self._folder / f"search-{life}.db", self.store, SystemClock())
        self._searches.append(search)

        async def open_shard(_shard: int, _shards: int, _settings: LedgerSettings, *, may_make: bool) -> Opened:
            del may_make
            return Opened(self.store, search)

        self.service = MessageService(self.config, site, open_shard=open_shard, statuses=self.statuses)
        self._run("im-1", self.service.node, self.service.run())
        await self.service.start()

    async def start_access(self, name: str = "access-1", *, life: int = 1) -> AccessEnd:
        end = AccessEnd(self.site(name, life))
        await end.node.listen()
        self._run(name, end.node, end.im.run(), end.node.run())
        await end.im.wait_ready()
        await end.node.join()
        return end

    async def peer(self) -> PeerClient:
        """Connect a node that says whatever it is told to."""
        client = PeerClient(self.service.node.http.url, peer="im-1", node="access-7", trust=Trust.of_key("peer-key"))
        self._running["peer"] = self.service.node, [self._tasks.create_task(client.run())]
        return client

    async def stop(self, name: str) -> None:
        """End a role without goodbye: its sockets just close."""
        node, running = self._running.pop(name)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        await node.close()

    async def close(self) -> None:
        for name in reversed(list(self._running)):
            await self.stop(name)
        for search in self._searches:
            await search.close()

    async def followed(self, count: int) -> None:
        """Return once so many pairs of a node and a conversation are followed. For facts that arrive by themselves."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.service.statistics()["followed"] != count:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)

    def _run(self, name: str, node: Node, *work: Coroutine[Any, Any, None]) -> None:
        self._running[name] = node, [self._tasks.create_task(one) for one in work]


@asynccontextmanager
async def running(folder: Path, *, clock: Clock | None = None, **im: Any) -> AsyncIterator[Cluster]:
    async with asyncio.TaskGroup() as tasks:
        cluster = Cluster(tasks, folder, **im)
        await cluster.start_service(clock=clock)
        try:
            yield cluster
        finally:
            await cluster.close()


def send_json(recipient: str, key: str) -> bytes:
    return msgspec.json.encode({"to": recipient, "client_msg_id": key, "body": {"text": key}})
