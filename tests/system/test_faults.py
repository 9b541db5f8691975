"""Parts die and pushes get lost: what users see is what ARCHITECTURE.md promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from access.config import AccessConfig
from access.service import AccessNode
from base.clock import SystemClock, Timestamp
from base.http import Credentials, Role
from base.ids import NodeId
from base.keys import KeyList, KeyRing
from base.node import next_incarnation
from base.registry.memory import MemoryRegistry
from base.service import Service
from base.site import NodeConfig, Site
from base.trust import Trust
from im.config import ImConfig
from im.core.book import LedgerSettings
from im.core.commands import Appended, Draft
from im.search.search import Search
from im.service import MessageService, Opened
from im.store.memory import MemoryMessageStore
from roadstead.api import call_api
from roadstead.client import Client, Incoming
from scheduler.config import SchedulerConfig
from scheduler.service import Scheduler
from status.client import StatusClient, status_side
from status.config import StatusConfig
from status.service import StatusNode
from tests.system.conftest import eventually

KEY = "api-key"
TICKET_KEY = ("k1", "a-secret-of-at-least-thirty-two-bytes")


class Cluster:
    """The roles, each to be started, killed and started again by name; registry and message store outlive them."""

    def __init__(self, tasks: asyncio.TaskGroup, status: StatusConfig | None = None) -> None:
        self.registry = MemoryRegistry(SystemClock())
        self.store = MemoryMessageStore()
        self._folder = TemporaryDirectory(prefix="cluster-")
        self._searches: list[Search] = []
        self._status = msgspec.structs.replace(status or StatusConfig(), bootstrap_nodes=3)
        self._tasks = tasks
        self._running: dict[str, tuple[Service, asyncio.Task[None]]] = {}

    async def site(self, name: str) -> Site:
        return Site(
            name=NodeId(name),
            incarnation=await next_incarnation(self.registry, name, SystemClock()),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=SystemClock(),
            trust=Trust.of_key("peer-key"),
            credentials=Credentials({KEY: Role.ADMIN}),
            config=NodeConfig(registration_ttl_ms=3_000),
        )

    async def start(self, name: str) -> Service:
        """Start a role, as a new life if it ran before."""
        site = await self.site(name)
        service: Service
        match name.split("-", maxsplit=1)[0]:
            case "status":
                service = StatusNode(self._status, site)
            case "access":
                config = AccessConfig(audit_interval_ms=500)
                service = AccessNode(
                    config, site, ticket_keys=KeyRing.of(dict([TICKET_KEY])), **status_side(site, users_max=100)
                )
            case "im":
                search = await Search.open(
                    Path(self._folder.name) / f"search-{site.incarnation}.db", self.store, SystemClock()
                )
                self._searches.append(search)

                async def open_shard(_shard: int, _shards: int, _settings: LedgerSettings, **_: bool) -> Opened:
                    return Opened(self.store, search)

                service = MessageService(ImConfig(), site, open_shard=open_shard, statuses=StatusClient(site))
            case _:
                service = Scheduler(
                    SchedulerConfig(), site, user_keys=KeyList.of("x" * 32), ticket_keys=KeyRing.of(dict([TICKET_KEY]))
                )
        task = self._tasks.create_task(service.run())
        self._running[name] = (service, task)
        await service.start()
        return service

    async def kill(self, name: str) -> None:
        """End a role without goodbye: no drain, no deregistration; its sockets just close."""
        service, task = self._running.pop(name)
        task.cancel()
        await asyncio.wait([task])
        await service.node.peers.close()
        await service.node.http.close()
        if isinstance(service, AccessNode):
            await service.cut_off()

    def client_url(self, name: str) -> str:
        service = self._running[name][0]
        assert isinstance(service, AccessNode)
        return service.client_url

    def url(self, name: str) -> str:
        return self._running[name][0].node.http.url

    async def stop(self) -> None:
        for name in reversed(list(self._running)):
            await self.kill(name)
        for search in self._searches:
            await search.close()
        self._folder.cleanup()


class Reader:
    """A client of the wrapper that keeps what it got."""

    def __init__(self, cluster: Cluster, user: str) -> None:
        self.bodies: list[object] = []
        self.client = Client(cluster.url("scheduler-1"), user=user, credential=KEY, on_message=self._take)

    async def _take(self, incoming: Incoming) -> None:
        self.bodies.append(incoming.data["body"])

    async def has(self, *bodies: object) -> None:
        async def look() -> bool:
            return self.bodies == list(bodies)

        await eventually(look)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with asyncio.TaskGroup() as tasks:
        made = Cluster(tasks)
        try:
            for name in ("status-1", "status-2", "status-3", "im-1", "access-1", "scheduler-1"):
                await made.start(name)
            await eventually(lambda: _has_access(made))
            yield made
        finally:
            await made.stop()


async def _has_access(cluster: Cluster) -> bool:
    statistics = await call_api("GET", f"{cluster.url('scheduler-1')}/debug/statistics")
    return bool(statistics["access_nodes"])


async def status_of(cluster: Cluster, user: str, *, node: str) -> str:
    answer = await call_api("GET", f"{cluster.url(node)}/v1/users/{user}/status", credential=KEY)
    return str(answer["state"])


async def owner_of(cluster: Cluster, user: str) -> str:
    """The status node that owns the user."""
    entry = await cluster.registry.get("status/table")
    assert entry is not None
    table = msgspec.msgpack.decode(entry.value)
    from status.core.partitions import PartitionTable

    return msgspec.convert(table, PartitionTable).owner_of(user)


async def test_a_dead_status_node_makes_its_users_unknown_and_its_next_life_knows_them(cluster: Cluster) -> None:
    """Never offline; and nobody has to reconnect for it."""
    reader = Reader(cluster, "bob")
    await reader.client.connect()
    owner = await owner_of(cluster, "bob")
    asker = next(name for name in ("status-1", "status-2", "status-3") if name != owner)
    assert await status_of(cluster, "bob", node=asker) == "online"
    await cluster.kill(owner)
    assert await status_of(cluster, "bob", node=asker) == "unknown"
    await cluster.start(owner)
    seen = set()

    async def is_online() -> bool:
        seen.add(await status_of(cluster, "bob", node=asker))
        return "online" in seen

    await eventually(is_online)
    assert seen <= {"unknown", "online"}
    await reader.client.close()


async def test_a_message_sent_while_the_owner_is_dead_arrives_when_it_is_back(cluster: Cluster) -> None:
    """It was acknowledged, since it is durable; the push is told again."""
    sender, reader = Reader(cluster, "ann"), Reader(cluster, "bob")
    await sender.client.connect()
    await reader.client.connect()
    owner = await owner_of(cluster, "bob")
    await cluster.kill(owner)
    assert (await sender.client.send("bob", "hello"))["seq"] == 1
    await cluster.start(owner)
    await reader.has("hello")
    await sender.client.close()
    await reader.client.close()


async def test_a_dead_access_nodes_users_go_offline_within_its_lease(cluster: Cluster) -> None:
    """Without anybody deregistering anything."""
    reader = Reader(cluster, "bob")
    await reader.client.connect()
    lookup = StatusClient(await cluster.site("asker-1"))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(lookup.run())
        await lookup.wait_ready()

        async def state() -> str:
            return (await lookup.lookup(["bob"]))["bob"].state

        await eventually(lambda: _equals(state, "online"))
        await cluster.kill("access-1")
        started = asyncio.get_running_loop().time()
        await eventually(lambda: _equals(state, "offline"))
        assert asyncio.get_running_loop().time() - started < 2 * StatusConfig().lease_ms / 1000
        running.cancel()
    await reader.client.close()


async def _equals(state: object, wanted: str) -> bool:
    return (await state()) == wanted  # type: ignore[operator]


async def test_a_send_survives_a_restart_of_the_message_service(cluster: Cluster) -> None:
    """The client's retry under the same key is stored once."""
    sender, reader = Reader(cluster, "ann"), Reader(cluster, "bob")
    await sender.client.connect()
    await reader.client.connect()
    await sender.client.send("bob", 1)
    await cluster.kill("im-1")
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(sender.client.send("bob", 2))
        await asyncio.sleep(0)
        await cluster.start("im-1")
        assert (await sending)["seq"] == 2
    await reader.has(1, 2)
    await sender.client.close()
    await reader.client.close()


async def append_without_push(cluster: Cluster, *bodies: int) -> None:
    """Store messages behind the message service's back: as if every push of them were lost."""
    drafts = [
        Draft(10**6 + n, "eve", "x", "bob", 0, f"lost-{n}", "text", str(n).encode(), Timestamp(1)) for n in bodies
    ]
    outcomes = (await cluster.store.execute(drafts)).outcomes
    assert all(isinstance(outcome, Appended) and outcome.is_new for outcome in outcomes)


@pytest.mark.spec("PP-03")
async def test_a_lost_push_is_fetched_when_the_next_one_comes(cluster: Cluster) -> None:
    """The gap in the offsets tells; order is kept."""
    reader = Reader(cluster, "bob")
    await reader.client.connect()
    await append_without_push(cluster, 1, 2)
    await reader.client.send("bob", 3)
    await reader.has(1, 2, 3)
    await reader.client.close()


@pytest.mark.spec("PP-03")
async def test_a_lost_last_push_is_found_by_the_audit(cluster: Cluster) -> None:
    """No later push ever reveals it: positions are compared with the timelines' heads."""
    reader = Reader(cluster, "bob")
    await reader.client.connect()
    await append_without_push(cluster, 1)
    await reader.has(1)
    await reader.client.close()
