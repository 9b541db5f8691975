"""The registry goes and comes back empty under a running system: nobody is answered wrongly, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from access.config import AccessConfig
from access.service import AccessNode
from base.clock import SystemClock
from base.errors import NotReady
from base.http import Credentials, Role
from base.ids import NodeId
from base.keys import KeyList, KeyRing
from base.node import next_incarnation
from base.service import Service
from base.site import NodeConfig, Site
from base.trust import Trust
from im.config import ImConfig
from im.files import opener
from im.service import MessageService
from roadstead.api import call_api
from roadstead.client import Client, Incoming
from scheduler.config import SchedulerConfig
from scheduler.service import Scheduler
from status.client import StatusClient, status_side
from status.config import StatusConfig
from status.core.partitions import PartitionTable
from status.service import StatusNode
from status.table import TABLE_KEY, WISH_KEY, Wish, decode_table
from tests.support.wiped_registry import WipedRegistry
from tests.system.conftest import eventually

KEY = "api-key"
TICKET_KEY = ("k1", "a-secret-of-at-least-thirty-two-bytes")
STATUS = ("status-1", "status-2", "status-3")
ALL = (*STATUS, "im-1", "im-2", "access-1", "access-2", "scheduler-1")
LOOK_S = 0.02


class System:
    """All roles in this process, each to be ended and started again by name, on one registry."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path) -> None:
        self.registry = WipedRegistry(SystemClock())
        self._tasks = tasks
        self._folder = folder
        self._running: dict[str, tuple[Service, asyncio.Task[None]]] = {}

    async def start(self, name: str) -> None:
        site = Site(
            name=NodeId(name),
            incarnation=await next_incarnation(self.registry, name, SystemClock()),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=SystemClock(),
            trust=Trust.of_key("peer-key"),
            credentials=Credentials({KEY: Role.ADMIN}),
            config=NodeConfig(name=name, registration_ttl_ms=3_000),
        )
        service = self._built(name, site)
        task = self._tasks.create_task(service.run())
        self._running[name] = (service, task)
        await service.start()

    def _built(self, name: str, site: Site) -> Service:
        tickets = KeyRing.of(dict([TICKET_KEY]))
        match name.split("-", maxsplit=1)[0]:
            case "status":
                return StatusNode(StatusConfig(bootstrap_nodes=3), site)
            case "access":
                return AccessNode(
                    AccessConfig(audit_interval_ms=500), site, ticket_keys=tickets, **status_side(site, users_max=100)
                )
            case "im":
                folder = self._folder / name
                config = ImConfig(shards=4, first_nodes=("im-1", "im-2"))
                return MessageService(
                    config, site, open_shard=opener(folder, site.clock), statuses=StatusClient(site), folder=folder
                )
            case _:
                return Scheduler(SchedulerConfig(), site, user_keys=KeyList.of("x" * 32), ticket_keys=tickets)

    async def kill(self, name: str) -> None:
        """End a role without goodbye: no drain, no deregistration; its sockets just close."""
        service, task = self._running.pop(name)
        task.cancel()
        await asyncio.wait([task])
        await service.node.peers.close()
        await service.node.http.close()
        if isinstance(service, AccessNode):
            await service.cut_off()
        if isinstance(service, MessageService):
            for shard in service._here.values():  # a process' files are closed when it ends
                await shard.close()

    async def restart(self, name: str) -> None:
        await self.kill(name)
        await self.start(name)

    async def stop(self) -> None:
        for name in reversed(list(self._running)):
            await self.kill(name)

    def url(self, name: str) -> str:
        url = self._running[name][0].node.http.url
        assert url
        return url

    def is_ready(self, name: str) -> bool:
        return name in self._running and self._running[name][0].node.http.is_ready

    async def api(self, method: str, node: str, path: str, **body: Any) -> Any:
        return await call_api(method, f"{self.url(node)}{path}", credential=KEY, body=body or None)

    async def state(self, user: str, node: str) -> str:
        return str((await self.api("GET", node, f"/v1/users/{user}/status"))["state"])

    async def table(self) -> PartitionTable | None:
        entry = await self.registry.get(TABLE_KEY)
        return decode_table(entry.value) if entry is not None else None

    async def is_restored(self) -> bool:
        """Whether there is a table again, and all status nodes go by it."""
        table = await self.table()
        if table is None:
            return False
        epochs = [(await self.api("GET", node, "/v1/admin/status/table"))["epoch"] for node in STATUS]
        return set(epochs) == {table.epoch}


class Person:
    """A client that keeps what it got."""

    def __init__(self, system: System, user: str) -> None:
        self.bodies: list[object] = []
        self.client = Client(system.url("scheduler-1"), user=user, credential=KEY, on_message=self._take)

    async def _take(self, incoming: Incoming) -> None:
        self.bodies.append(incoming.data["body"])

    async def has(self, *bodies: object) -> None:
        async def look() -> bool:
            return self.bodies == list(bodies)

        await eventually(look)


@asynccontextmanager
async def looked_up(system: System, user: str, *, seen: set[str]) -> AsyncIterator[None]:
    """Look an online user up at every status node, again and again, and note each answer."""

    async def look() -> None:
        while True:
            for node in STATUS:
                if system.is_ready(node):
                    with suppress(NotReady):  # a node that just began does not know the table yet, and says so
                        seen.add(await system.state(user, node))
            await asyncio.sleep(LOOK_S)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


@pytest.fixture
async def system() -> AsyncIterator[System]:
    with TemporaryDirectory(prefix="registry-lost-") as folder:
        async with asyncio.TaskGroup() as tasks:
            made = System(tasks, Path(folder))
            try:
                # Both message services wait for a table, and it for three status nodes: at once, as processes start.
                for name in ALL:
                    await made.start(name)
                await eventually(lambda: _has_access(made))
                yield made
            finally:
                await made.stop()


async def _has_access(system: System) -> bool:
    statistics = await call_api("GET", f"{system.url('scheduler-1')}/debug/statistics")
    return len(statistics["access_nodes"]) == 2


async def test_a_registry_that_lost_everything_is_hardly_noticed(system: System) -> None:
    """While it is away and after it came back empty: lookups are right, messages arrive, and a resize goes on."""
    ann, bob = Person(system, "ann"), Person(system, "bob")
    await ann.client.connect()
    await bob.client.connect()
    await eventually(lambda: _is(system.state("bob", "status-1"), "online"))
    await system.api("POST", "status-1", "/v1/admin/status/resize", to=2)
    await eventually(lambda: _is_done(system))
    await system.api("POST", "status-1", "/v1/admin/status/pause")
    await eventually(lambda: _is_paused(system))
    before = await system.table()
    assert before is not None
    seen: set[str] = set()
    async with looked_up(system, "bob", seen=seen):
        system.registry.go_away()
        await ann.client.send("bob", 1)
        await asyncio.sleep(1.0)
        await ann.client.send("bob", 2)
        system.registry.come_back(is_empty=True)
        await ann.client.send("bob", 3)
        await eventually(system.is_restored)
        await ann.client.send("bob", 4)
        await bob.has(1, 2, 3, 4)
    assert seen == {"online"}
    after = await system.table()
    assert after is not None
    assert (after.owners, after.nodes, after.is_paused) == (before.owners, before.nodes, True)
    assert after.epoch > before.epoch
    assert set(after.owned_since) == set(before.owned_since), "nobody had to ask the access nodes anew"
    wish = await system.registry.get(WISH_KEY)
    assert wish is not None
    assert msgspec.msgpack.decode(wish.value, type=Wish).is_paused
    await system.api("POST", "status-1", "/v1/admin/status/resume")
    await eventually(lambda: _is_ordered(system, to=3))
    await eventually(lambda: _is_done(system))
    await ann.client.send("bob", 5)
    await bob.has(1, 2, 3, 4, 5)
    await ann.client.close()
    await bob.client.close()


async def _is_ordered(system: System, **order: Any) -> bool:
    """Order a resize; False when it is refused, as not every node is registered again."""
    try:
        await system.api("POST", "status-2", "/v1/admin/status/resize", **order)
    except NotReady as error:
        return "the registry started over" not in str(error)
    return True


async def _is(state: Any, wanted: str) -> bool:
    return bool(await state == wanted)


async def _is_done(system: System) -> bool:
    return bool((await system.api("GET", "status-1", "/v1/admin/status/resize"))["is_done"])


async def _is_paused(system: System) -> bool:
    table = await system.table()
    return table is not None and table.is_paused


async def test_whoever_starts_while_the_registry_is_empty_begins_where_it_was(system: System) -> None:
    """Nobody is told to be offline who is not, whichever roles start again at that time; and messages go on."""
    ann, bob = Person(system, "ann"), Person(system, "bob")
    await ann.client.connect()
    await bob.client.connect()
    await eventually(lambda: _is(system.state("bob", "status-1"), "online"))
    sent: list[object] = []
    for roles in (STATUS[:1], STATUS, ("im-1", "im-2"), ("im-2", "scheduler-1")):
        epoch = await _epoch(system)
        for name in roles:
            await system.kill(name)
        await system.registry.start_over()
        seen: set[str] = set()
        async with looked_up(system, "bob", seen=seen):
            async with asyncio.TaskGroup() as tasks:
                for name in roles:
                    tasks.create_task(system.start(name))
            await eventually(system.is_restored)
            await ann.client.send("bob", [*roles])
            sent.append([*roles])
            await bob.has(*sent)
            await eventually(lambda: _is(system.state("bob", "status-1"), "online"))
            await eventually(lambda: _is_registered(system))
        assert seen <= {"online", "unknown"}
        assert await _epoch(system) > epoch
    await ann.client.close()
    await bob.client.close()


async def _epoch(system: System) -> int:
    table = await system.table()
    assert table is not None
    return table.epoch


async def test_a_system_that_stood_still_while_the_registry_was_wiped_has_all_messages(system: System) -> None:
    """Nobody lives who could put anything back: who has which messages is known from the message services' files."""
    ann = Person(system, "ann")
    await ann.client.connect()
    names = ("bob", "cem", "dan", "eva")
    sent = [(await ann.client.send(to, 1))["cid"] for to in names]
    await ann.client.close()
    for name in ALL:
        await system.kill(name)
    await system.registry.start_over()
    async with asyncio.TaskGroup() as tasks:
        for name in ALL:
            tasks.create_task(system.start(name))
    await eventually(lambda: _has_access(system))
    again = Person(system, "ann")
    await again.client.connect()
    for to, cid in zip(names, sent, strict=True):
        answer = await again.client.send(to, 2)
        assert (answer["cid"], answer["seq"]) == (cid, 2)
    await again.client.close()


async def _is_registered(system: System) -> bool:
    found = [
        instance.id
        for role in ("status", "im", "access", "scheduler")
        for instance in (await system.registry.services(role)).items
    ]
    return sorted(found) == sorted(ALL)
