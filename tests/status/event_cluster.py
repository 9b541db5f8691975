"""For tests of the event feed: a cluster of status nodes, access nodes that report to it, a program that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from base.clock import SystemClock, Timestamp
from base.http import Credentials, Role
from base.ids import Incarnation, NodeId
from base.registry import ServiceInstance
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from roadstead.api import call_api
from status.api import OFFLINE, Closed, Opened, UserStatus
from status.client import StatusPublisher
from status.config import StatusConfig
from status.gateway import StatusGateway
from status.service import StatusNode
from status.table import WISH_KEY, Wish

SETTLE_S = 30.0
LEASE_MS = 2_700
KEY, VIEWER_KEY, OPERATOR_KEY = "backend-key", "viewer-key", "operator-key"


class Access:
    """An access node's life as far as status nodes see it, and the sessions that it has."""

    def __init__(self, publisher: StatusPublisher, task: asyncio.Task[None]) -> None:
        self._publisher = publisher
        self._task = task
        self._conn_seq = 0
        self.open: dict[str, Opened] = {}

    async def connect(self, user: str) -> None:
        self._conn_seq += 1
        opened = Opened(user, f"{user}/1", self._conn_seq, "phone", "ios", "online", Timestamp(7))
        self.open[user] = opened
        assert await self._publisher.open(opened, deadline_ms=10_000)

    def change(self, user: str) -> None:
        self.open[user] = msgspec.structs.replace(self.open[user], state="away")
        self._publisher.report(self.open[user])

    def disconnect(self, user: str) -> None:
        opened = self.open.pop(user)
        self._publisher.close(Closed(user, opened.session, opened.conn_seq))

    async def kill(self) -> None:
        """It ends without a word, and its sessions with it."""
        self.open.clear()
        self._task.cancel()
        await asyncio.wait([self._task])


class Cluster:
    """Status nodes on free ports, to be killed and started again, and access nodes that report to them."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.registry = MemoryRegistry(SystemClock())
        self.nodes: dict[str, tuple[StatusNode, asyncio.Task[None]]] = {}
        self._tasks = tasks
        self._lives: dict[str, int] = {}
        self._running: list[asyncio.Task[None]] = []

    def site(self, name: str) -> Site:
        self._lives[name] = self._lives.get(name, 0) + 1
        return Site(
            name=NodeId(name),
            incarnation=Incarnation(self._lives[name]),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=SystemClock(),
            trust=Trust.of_key("peer-key"),
            credentials=Credentials({KEY: Role.BACKEND, VIEWER_KEY: Role.VIEWER, OPERATOR_KEY: Role.OPERATOR}),
            config=NodeConfig(registration_ttl_ms=60_000),
        )

    async def start_node(self, name: str) -> None:
        node = StatusNode(StatusConfig(bootstrap_nodes=3, lease_ms=LEASE_MS, stop_handover_ms=0), self.site(name))
        self.nodes[name] = (node, self._tasks.create_task(node.run()))
        await node.start()

    async def kill_node(self, name: str) -> None:
        """It stays registered: nobody is told."""
        node, task = self.nodes.pop(name)
        task.cancel()
        await asyncio.wait([task])
        await node.node.peers.close()
        await node.node.http.close()

    async def start_access(self, name: str = "access-1") -> Access:
        site = self.site(name)
        instance = ServiceInstance(id=name, service="access", url=f"http://{name}", incarnation=site.incarnation)
        await self.registry.register(instance, ttl_ms=60_000)
        publisher = StatusPublisher(site)
        task = self._tasks.create_task(publisher.run())
        self._running.append(task)
        async with asyncio.timeout(SETTLE_S):
            await publisher.wait_ready()
        return Access(publisher, task)

    async def wish(self, weights: dict[str, int]) -> None:
        wish = Wish(weights={NodeId(name): weight for name, weight in weights.items()})
        entry = await self.registry.get(WISH_KEY)
        await self.registry.put(WISH_KEY, msgspec.msgpack.encode(wish), expect=entry.index if entry else 0)

    def url(self, name: str = "") -> str:
        return self.nodes[name or next(iter(self.nodes))][0].node.http.url

    async def events(self, cursor: str = "", node: str = "", **params: Any) -> dict[str, Any]:
        query = {"cursor": cursor, **{name: str(value) for name, value in params.items()}}
        url = f"{self.url(node)}/v1/events"
        answer = await call_api("GET", url, credential=KEY, params=query, deadline_s=30)
        assert isinstance(answer, dict)
        return answer

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        for name in list(self.nodes):
            await self.kill_node(name)


class Reader:
    """A program that follows the feed and keeps the one rule; it remembers all that it was told."""

    def __init__(self, cluster: Cluster, cursor: str = "start") -> None:
        self.cluster = cluster
        self.cursor = cursor
        self.node = ""
        self.is_missing_any = False
        self.pages: list[tuple[str, list[dict[str, Any]]]] = []
        self._open: dict[int, dict[str, str]] = {}
        self.newest: dict[int, str] = {}

    @property
    def open(self) -> dict[str, str]:
        """The state of each user's session."""
        return {user: state for sessions in self._open.values() for user, state in sessions.items()}

    @property
    def told(self) -> list[tuple[str, str]]:
        events = [event for _, page in self.pages for event in page]
        return [(event["kind"], event["user"]) for event in events if event["kind"] != "resync"]

    async def read(self, **params: Any) -> dict[str, Any]:
        page = await self.cluster.events(self.cursor, self.node, **params)
        self.pages.append((self.cursor, page["events"]))
        self.is_missing_any = bool(page["missing"])
        for event in page["events"]:
            self.take(event)
        self.cursor = page["cursor"]
        return page

    async def read_all(self, limit: int = 1_000) -> None:
        while not (await self.read(limit=limit))["is_at_end"]:
            pass

    def take(self, event: dict[str, Any]) -> None:
        partition, seq = event["partition"], event["user_seq"]
        if event["kind"] == "resync":
            if seq >= self.newest.get(partition, ""):
                self.newest[partition] = seq
                self._open[partition] = {session["user"]: session["state"] for session in event["sessions"]}
        elif seq > self.newest.get(partition, ""):
            self.newest[partition] = seq
            sessions = self._open.setdefault(partition, {})
            if event["kind"] == "disconnect":
                sessions.pop(event["user"], None)
            else:
                sessions[event["user"]] = event["state"]

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Follow the feed until that is so."""
        async with asyncio.timeout(SETTLE_S):
            while not wanted():
                await self.read(wait_ms=1_000, limit=1_000)


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not await look():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


class _Nobody:
    """Another status backend, where nobody is online."""

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def wait_ready(self) -> None:
        pass

    async def lookup(self, users: list[str]) -> dict[str, UserStatus]:
        return dict.fromkeys(users, OFFLINE)


@asynccontextmanager
async def without_cluster() -> AsyncIterator[str]:
    """Serve the status API on another backend; return its URL."""
    async with asyncio.TaskGroup() as tasks:
        gateway = StatusGateway(Cluster(tasks).site("status-1"), statuses=_Nobody())  # type: ignore[arg-type]
        await gateway.start()
        try:
            yield gateway.node.http.url
        finally:
            await gateway.stop()
