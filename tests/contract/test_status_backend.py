"""One suite for the status ports, run on every backend: our cluster, and real Redis under each profile."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from base.clock import SystemClock, Timestamp
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.registry import ServiceInstance
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from status.api import OFFLINE, Closed, Opened, UserStatus
from status.client import StatusClient, StatusPublisher
from status.config import StatusConfig
from status.core.refreshing import lane_of
from status.ports import SessionReports, StatusLookups
from status.redis import RedisSessionReports, RedisStatusLookups
from status.service import StatusNode
from tests.contract.redis_servers import RedisServer, as_if_used_for_long, make_cluster

TTL_MS = 3_000
SETTLE_S = 15.0
OPEN_MS = 5_000


class Backend(ABC):
    """A backend under test: it can be taken away, given back empty, and asked for both ports."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.registry = MemoryRegistry(SystemClock())
        self._tasks = tasks
        self._running: list[asyncio.Task[None]] = []

    def site(self, name: str, incarnation: int = 1) -> Site:
        return Site(
            name=NodeId(name),
            incarnation=Incarnation(incarnation),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=SystemClock(),
            trust=Trust.of_key("peer-key"),
            credentials=Credentials({}),
            config=NodeConfig(registration_ttl_ms=3_000),
        )

    async def reporter(self, name: str = "access-1", incarnation: int = 1) -> Reporter:
        """An access node's life. It is registered, as every access node is: status nodes that start want to know."""
        instance = ServiceInstance(id=name, service="access", url=f"http://{name}", incarnation=incarnation)
        await self.registry.register(instance, ttl_ms=60_000)
        reports = self.make_reports(self.site(name, incarnation))
        task = self._run(reports)
        async with asyncio.timeout(SETTLE_S):
            await reports.wait_ready()
        return Reporter(reports, task)

    async def lookups(self) -> StatusLookups:
        lookups = self.make_lookups(self.site("asker-1"))
        self._run(lookups)
        async with asyncio.timeout(SETTLE_S):
            await lookups.wait_ready()
        return lookups

    def _run(self, port: SessionReports | StatusLookups) -> asyncio.Task[None]:
        task = self._tasks.create_task(port.run())
        self._running.append(task)
        return task

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.wait(self._running)
        await self.take_away()

    @abstractmethod
    def make_reports(self, site: Site) -> SessionReports: ...

    @abstractmethod
    def make_lookups(self, site: Site) -> StatusLookups: ...

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def take_away(self) -> None:
        """From now on it cannot be reached, and it has forgotten everything."""

    @abstractmethod
    async def give_back(self) -> None: ...

    @abstractmethod
    async def forget(self) -> None:
        """Lose everything while the users look on."""


class Reporter:
    """One life of an access node, to be killed."""

    def __init__(self, reports: SessionReports, task: asyncio.Task[None]) -> None:
        self.reports = reports
        self._task = task

    async def open(self, opened: Opened) -> None:
        assert await self.reports.open(opened, deadline_ms=OPEN_MS)

    async def kill(self) -> None:
        """End it without a word."""
        self._task.cancel()
        await asyncio.wait([self._task])


class Cluster(Backend):
    """Three status nodes of ours."""

    async def start(self) -> None:
        self._nodes: list[tuple[StatusNode, asyncio.Task[None]]] = []
        self._lives = 0
        await self.give_back()

    def make_reports(self, site: Site) -> SessionReports:
        return StatusPublisher(site)

    def make_lookups(self, site: Site) -> StatusLookups:
        return StatusClient(site)

    async def take_away(self) -> None:
        for node, task in self._nodes:
            task.cancel()
            await asyncio.wait([task])
            await node.node.peers.close()
            await node.node.http.close()
        self._nodes.clear()

    async def give_back(self) -> None:
        self._lives += 1
        for number in (1, 2, 3):
            config = StatusConfig(bootstrap_nodes=3, lease_ms=TTL_MS)
            node = StatusNode(config, self.site(f"status-{number}", self._lives))
            self._nodes.append((node, self._tasks.create_task(node.run())))
            await node.start()

    async def forget(self) -> None:
        await self.take_away()
        await self.give_back()


class OnRedis(Backend):
    """One Redis, as the profile `single` or `codis` sees it, or three of them as a Redis Cluster."""

    def __init__(self, tasks: asyncio.TaskGroup, folder: Path, profile: str) -> None:
        super().__init__(tasks)
        is_cluster = profile == "cluster"
        self.servers = [
            RedisServer(folder / str(number), is_cluster_node=is_cluster) for number in range(3 if is_cluster else 1)
        ]
        self._is_cluster = is_cluster
        self._config = StatusConfig(
            backend="redis",
            redis_url=self.servers[0].url,
            redis_profile=profile,  # type: ignore[arg-type]
            redis_ttl_ms=TTL_MS,
        )
        assert not list(self._config.problems())

    async def start(self) -> None:
        await self.give_back()
        if self._is_cluster:
            await make_cluster(self.servers)
        await as_if_used_for_long(self.servers)

    def make_reports(self, site: Site) -> SessionReports:
        return RedisSessionReports(self._config, site)

    def make_lookups(self, site: Site) -> StatusLookups:
        return RedisStatusLookups(self._config, site)

    async def take_away(self) -> None:
        for server in self.servers:
            server.kill()

    async def give_back(self) -> None:
        for server in self.servers:
            await server.start()

    async def forget(self) -> None:
        for server in self.servers:
            await server.run("FLUSHALL")


async def made(name: str, folder: Path) -> AsyncIterator[Backend]:
    async with asyncio.TaskGroup() as tasks:
        backend = Cluster(tasks) if name == "cluster" else OnRedis(tasks, folder, name.removeprefix("redis-"))
        try:
            await backend.start()
            yield backend
        finally:
            await backend.stop()


@pytest.fixture(params=["cluster", "redis-single", "redis-cluster", "redis-codis"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    async for backend in made(request.param, tmp_path):
        yield backend


@pytest.fixture(params=["redis-single", "redis-cluster", "redis-codis"])
async def on_redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OnRedis]:
    async for backend in made(request.param, tmp_path):
        assert isinstance(backend, OnRedis)
        yield backend


def opened(user: str, conn_seq: int = 1, *, session: str = "", device: str = "phone", state: str = "online") -> Opened:
    return Opened(user, session or f"{user}-{conn_seq}", conn_seq, device, "ios", state, Timestamp(conn_seq))  # type: ignore[arg-type]


def closed(one: Opened) -> Closed:
    return Closed(one.user, one.session, one.conn_seq)


async def status_of(lookups: StatusLookups, user: str) -> UserStatus:
    return (await lookups.lookup([user]))[user]


async def eventually(look: Callable[[], Awaitable[bool]]) -> float:
    """Return how many seconds it took until `look` was true; fail after SETTLE_S."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(SETTLE_S):
        while not await look():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)
    return loop.time() - started


async def until_state(lookups: StatusLookups, user: str, state: str, *, by_way_of: set[str] | None = None) -> float:
    """Wait for a state; on the way only the states `by_way_of` may be seen, if given."""

    async def look() -> bool:
        seen = (await status_of(lookups, user)).state
        assert by_way_of is None or seen == state or seen in by_way_of
        return seen == state

    return await eventually(look)


# ---------------------------------------------------------------- sessions


@pytest.mark.spec("PR-02")
async def test_a_session_is_found_once_it_is_confirmed(backend: Backend) -> None:
    """With everything that was said of it, and not a moment later."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice", 7))
    status = await status_of(lookups, "alice")
    (view,) = status.sessions
    assert status.state == "online"
    assert (view.session, view.device, view.platform, view.node, view.since) == (
        "alice-7",
        "phone",
        "ios",
        "access-1",
        7,
    )


async def test_a_viewer_sees_no_sessions_and_nobody_invisible(backend: Backend) -> None:
    """The user itself sees that it is; who never came looks the same to others."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice", state="busy"))
    await access.open(opened("bob", state="invisible"))
    seen = await lookups.lookup(["alice", "bob", "nobody"], viewer="cleo")
    assert dict(seen) == {"alice": UserStatus("busy"), "bob": OFFLINE, "nobody": OFFLINE}
    assert (await lookups.lookup(["bob"], viewer="bob"))["bob"] == UserStatus("invisible")


async def test_a_closed_session_is_gone(backend: Backend) -> None:
    """At once, not when it would have expired."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    access.reports.close(closed(opened("alice")))
    assert await until_state(lookups, "alice", "offline", by_way_of={"online"}) < TTL_MS / 1000


async def test_nobody_is_offline_rather_than_an_error(backend: Backend) -> None:
    """Whatever the name is made of; a brace and a percent sign are no special characters to the caller."""
    access, lookups = await backend.reporter(), await backend.lookups()
    names = ["nobody", "}", "{}", "a}b{c", "%7D", "\u6f22\u5b57", "u" * 128]
    await eventually(lambda: _all_are(lookups, names, "offline"))
    for number, name in enumerate(names[:-1]):
        await access.open(opened(name, number + 1))
    assert [(await status_of(lookups, name)).state for name in names] == ["online"] * 6 + ["offline"]


async def test_a_user_has_a_session_for_each_device_wherever_it_is(backend: Backend) -> None:
    """The best state counts, and each leaves alone."""
    one, two = await backend.reporter("access-1"), await backend.reporter("access-2")
    lookups = await backend.lookups()
    phone, desk = opened("alice", 1, state="away"), opened("alice", 2, device="desk", state="busy")
    await one.open(phone)
    await two.open(desk)
    status = await status_of(lookups, "alice")
    assert status.state == "busy"
    assert {(view.device, view.node) for view in status.sessions} == {("phone", "access-1"), ("desk", "access-2")}
    two.reports.close(closed(desk))
    await until_state(lookups, "alice", "away", by_way_of={"busy"})


@pytest.mark.spec("CC-07")
async def test_a_changed_state_replaces_the_one_before(backend: Backend) -> None:
    """One session, one view."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    access.reports.report(opened("alice", state="busy"))
    await until_state(lookups, "alice", "busy", by_way_of={"online"})
    assert len((await status_of(lookups, "alice")).sessions) == 1


async def test_a_thousand_users_are_looked_up_at_once(backend: Backend) -> None:
    """Each of them, online or not, and asked for twice or not."""
    access, lookups = await backend.reporter(), await backend.lookups()
    async with asyncio.TaskGroup() as tasks:
        for number in range(0, 1_000, 2):
            tasks.create_task(access.open(opened(f"user-{number}", number + 1)))
    asked = [f"user-{number}" for number in range(1_000)] + ["user-0"]
    async with asyncio.timeout(20):
        found = await lookups.lookup(asked)
        while any(status.state == "unknown" for status in found.values()):  # not in time: a busy machine
            found = await lookups.lookup(asked)
    assert [found[f"user-{number}"].state for number in range(1_000)] == ["online", "offline"] * 500


async def test_a_late_close_of_an_earlier_connection_hides_nothing(backend: Backend) -> None:
    """A client is back on the same session before the end of its old connection was noticed."""
    access, lookups = await backend.reporter(), await backend.lookups()
    before, after = opened("alice", 1, session="s"), opened("alice", 2, session="s")
    await access.open(before)
    await access.open(after)
    access.reports.close(closed(before))
    await access.open(opened("bob", 3))
    await access.open(opened("alice", 4, device="desk"))
    assert {view.since for view in (await status_of(lookups, "alice")).sessions} == {2, 4}


# ---------------------------------------------------------------- access nodes


@pytest.mark.spec("PR-01")
async def test_sessions_stay_for_as_long_as_their_node_lives(backend: Backend) -> None:
    """No client has to do anything for it; nobody flickers."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    loop = asyncio.get_running_loop()
    enough = loop.time() + 1.5 * TTL_MS / 1000

    async def outlived() -> bool:
        assert (await status_of(lookups, "alice")).state == "online"
        return loop.time() > enough

    await eventually(outlived)


@pytest.mark.spec("CC-07", "PR-01")
async def test_a_dead_nodes_users_are_offline_within_the_time_to_live(backend: Backend) -> None:
    """Nobody reports it."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    await access.kill()
    took = await until_state(lookups, "alice", "offline", by_way_of={"online"})
    assert took < TTL_MS / 1000 + 1.0


async def test_a_restarted_nodes_new_life_counts(backend: Backend) -> None:
    """Who is back is there once, through the new life; who is not is offline within the time to live."""
    lookups = await backend.lookups()
    before = await backend.reporter(incarnation=1)
    await before.open(opened("alice", 8))
    await before.open(opened("bob", 9))
    await before.kill()
    after = await backend.reporter(incarnation=2)
    await after.open(opened("alice", 1))
    assert [view.session for view in (await status_of(lookups, "alice")).sessions] == ["alice-1"]
    await until_state(lookups, "bob", "offline")
    assert (await status_of(lookups, "alice")).state == "online"


# ---------------------------------------------------------------- the backend dies


@pytest.mark.spec("PR-01")
async def test_without_the_backend_everybody_is_unknown_and_then_as_before(backend: Backend) -> None:
    """Never offline, though it comes back empty; what happened meanwhile is told, and nobody reconnects."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    await access.open(opened("bob", 2))
    await backend.take_away()
    assert {user: status.state for user, status in (await lookups.lookup(["alice", "nobody"])).items()} == {
        "alice": "unknown",
        "nobody": "unknown",
    }
    assert not await access.reports.open(opened("carol", 3), deadline_ms=100)
    access.reports.close(closed(opened("bob", 2)))
    await backend.give_back()
    await until_state(lookups, "alice", "online", by_way_of={"unknown"})
    await until_state(lookups, "carol", "online", by_way_of={"unknown"})
    await until_state(lookups, "bob", "offline", by_way_of={"unknown"})
    await until_state(lookups, "nobody", "offline", by_way_of={"unknown"})


async def test_a_backend_that_forgot_everything_is_told_again(backend: Backend) -> None:
    """FLUSHALL, or new nodes: unknown until then, never offline."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    assert (await status_of(lookups, "alice")).state == "online"
    await backend.forget()
    await until_state(lookups, "alice", "online", by_way_of={"unknown"})


async def test_two_changes_of_one_session_are_both_confirmed(backend: Backend) -> None:
    """A client that sets its state twice, without waiting, is not told that it failed."""
    access, lookups = await backend.reporter(), await backend.lookups()
    await access.open(opened("alice"))
    async with asyncio.TaskGroup() as tasks:
        for state in ("away", "busy", "away", "online", "busy"):
            tasks.create_task(access.open(opened("alice", state=state)))
    assert (await status_of(lookups, "alice")).state == "busy"


# ---------------------------------------------------------------- Redis only


async def test_a_reader_that_starts_just_after_a_loss_knows_of_it(on_redis: OnRedis) -> None:
    """Nobody is offline to it who was never away, whichever reader saw the loss."""
    access, old = await on_redis.reporter(), await on_redis.lookups()
    users = [f"user-{number}" for number in range(24)]
    for number, user in enumerate(users):
        await access.open(opened(user, number + 1))
    assert (await status_of(old, "nobody")).state == "offline"
    await on_redis.forget()
    assert (await status_of(old, "nobody")).state == "unknown"  # and with that there are witnesses again
    new = await on_redis.lookups()
    assert (await status_of(new, "nobody")).state == "unknown"
    for user in users:
        await until_state(new, user, "online", by_way_of={"unknown"})
    took = await until_state(new, "nobody", "offline", by_way_of={"unknown"})
    assert took < 1.5 * TTL_MS / 1000


@pytest.mark.spec("PR-01")
async def test_a_redis_that_hangs_is_as_one_that_is_away(on_redis: OnRedis) -> None:
    """Lookups and opens end at their deadlines; afterwards everything is as before."""
    access, lookups = await on_redis.reporter(), await on_redis.lookups()
    await access.open(opened("alice"))
    for server in on_redis.servers:
        server.pause()
    try:
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert (await status_of(lookups, "alice")).state == "unknown"
        assert not await access.reports.open(opened("bob", 2), deadline_ms=200)
        assert loop.time() - started < 2.5
    finally:
        for server in on_redis.servers:
            server.resume()
    await until_state(lookups, "alice", "online", by_way_of={"unknown"})
    await until_state(lookups, "bob", "online", by_way_of={"unknown"})


async def test_nothing_is_left_behind(on_redis: OnRedis) -> None:
    """Every key has a time to live; that of a user no longer than a session's."""
    access, lookups = await on_redis.reporter(), await on_redis.lookups()
    await access.open(opened("alice"))
    await status_of(lookups, "alice")
    keys = 0
    for server in on_redis.servers:
        found = await server.run("KEYS", "*")
        assert isinstance(found, list)
        for key in found:
            keys += 1
            left_ms = await server.run("PTTL", key)
            assert isinstance(left_ms, int)
            assert 0 < left_ms <= (TTL_MS if key == b"status:{alice}" else 60_000)
    assert keys > 1


@pytest.mark.spec("PR-02")
async def test_only_commands_that_every_profile_takes_are_sent(on_redis: OnRedis) -> None:
    """By the servers' own statistics: no MULTI, no script by its hash, no PUB/SUB, no SCAN, no CLIENT."""
    access, lookups = await on_redis.reporter(), await on_redis.lookups()
    async with asyncio.TaskGroup() as tasks:
        for number in range(200):
            tasks.create_task(access.open(opened(f"user-{number}", number + 1)))
    await lookups.lookup([f"user-{number}" for number in range(200)])
    access.reports.close(closed(opened("user-0")))
    await until_state(lookups, "user-0", "offline", by_way_of={"online"})
    sent: set[str] = set()
    for server in on_redis.servers:
        statistics = await server.run("INFO", "commandstats")
        assert isinstance(statistics, dict)
        sent |= {name.removeprefix("cmdstat_") for name in statistics}
    scripted = {"time", "zremrangebyscore", "zrem", "zadd", "pttl", "pexpire", "zrangebyscore", "set", "get"}
    of_this_test = {"info", "ping"}
    of_the_topology = {name for name in sent if name.split("|")[0] in {"cluster", "command", "readonly", "asking"}}
    assert "eval" in sent
    assert sent <= {"eval"} | scripted | of_this_test | of_the_topology
    if len(on_redis.servers) == 1:
        assert not of_the_topology


@pytest.mark.spec("PR-02")
@pytest.mark.parametrize("on_redis", ["redis-cluster"], indirect=True)
async def test_a_lost_shard_loses_its_own_users_only(on_redis: OnRedis) -> None:
    """They are unknown until it is back; for everybody else nothing happened."""
    access, lookups = await on_redis.reporter(), await on_redis.lookups()
    users = [f"user-{number}" for number in range(24)]
    for number, user in enumerate(users):
        await access.open(opened(user, number + 1))
    on_redis.servers[0].kill()  # the first third of the slots
    lost = {user for user in users if lane_of(user) < 2}
    safe = {user for user in users if lane_of(user) > 3}
    assert lost
    assert safe
    loop = asyncio.get_running_loop()
    enough = loop.time() + 1.5 * TTL_MS / 1000

    async def outlived() -> bool:
        found = await lookups.lookup(users)
        assert {found[user].state for user in safe} == {"online"}
        assert {found[user].state for user in lost} == {"unknown"}
        return loop.time() > enough

    await eventually(outlived)
    await access.open(opened(next(iter(safe)), 100, device="desk"))
    await on_redis.servers[0].start()
    for user in lost:
        await until_state(lookups, user, "online", by_way_of={"unknown"})


async def _all_are(lookups: StatusLookups, users: list[str], state: str) -> bool:
    return {status.state for status in (await lookups.lookup(users)).values()} == {state}
