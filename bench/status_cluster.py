"""A status cluster of processes for benchmarks: each status node and each access node is one, to be killed by itself.

The benchmark's own process serves the registry and asks; the others reach it over peer streams on loopback, as they do
on one machine of an operator.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec

from base import log, loop
from base.clock import SystemClock
from base.core.registry import ServiceInstance
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.node import next_incarnation
from base.registry import Registry
from base.registry.memory import MemoryRegistry
from base.registry.node import RegistryNode
from base.registry.remote import RemoteRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from bench.status_node import opened
from status.client import StatusClient, StatusPublisher
from status.config import StatusConfig
from status.core.partitions import PartitionTable
from status.service import StatusNode
from status.table import LEADER_KEY, WISH_KEY, TableFollower, Wish

__all__ = ["Cluster", "Sessions", "bench_site", "churn", "cluster", "has_nodes", "wish"]

PEER_KEY = "bench"
READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Sessions:
    """Which sessions an access node opens, and how many of them it closes and opens anew each second."""

    first: int
    count: int
    changes_per_s: int = 0


class Cluster:
    """The processes, and the clients of the benchmark's own."""

    def __init__(self, registry: MemoryRegistry, url: str, client: StatusClient, table: TableFollower) -> None:
        self.client = client
        self.follower = table
        self._registry = registry
        self._url = url
        self._spawn = multiprocessing.get_context("spawn")
        self._processes: dict[str, BaseProcess] = {}

    @property
    def table(self) -> PartitionTable:
        """The newest partition table."""
        assert self.follower.table is not None
        return self.follower.table

    def start_status(self, name: str, *, nodes: int, env: Mapping[str, str] | None = None) -> None:
        """Start a status node; the first table is written when so many `nodes` are there."""
        self._start(name, _status_process, (self._url, name, nodes), env)

    async def start_access(self, name: str, sessions: Sessions, *, env: Mapping[str, str] | None = None) -> None:
        """Start an access node, and wait until its sessions are known to their owners."""
        ready = self._spawn.Event()
        self._start(name, _access_process, (self._url, name, sessions, ready), env)
        async with asyncio.timeout(READY_S):
            while not ready.is_set():  # noqa: ASYNC110 - another process' event cannot be awaited
                await asyncio.sleep(0.02)

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        process = self._processes.pop(name)
        process.kill()
        process.join()

    def freeze(self, name: str) -> None:
        """Stop a process where it is, as a stalled machine would."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a process that was stopped go on."""
        self._signal(name, signal.SIGCONT)

    def exit_code(self, name: str) -> int | None:
        """Return how a process ended by itself, which is forgotten then, or None while it is there."""
        code = self._processes[name].exitcode
        if code is not None:
            del self._processes[name]
        return code

    def cpu_s(self) -> float:
        """CPU seconds of all processes of the cluster so far, user and system."""
        ticks = 0
        for process in self._processes.values():
            fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def site(self, name: str) -> Site:
        """Return the place of a node in the benchmark's own process."""
        return bench_site(self._registry, name, Incarnation(1))

    async def wish(self, names: list[str]) -> None:
        """Ask for a resize to these nodes, at equal weights."""
        await wish(self._registry, names)

    def is_done(self, names: list[str]) -> bool:
        """Return whether the table is as wished."""
        return has_nodes(self.table, names)

    def stop(self) -> None:
        """End all processes."""
        for name in list(self._processes):
            self.kill(name)

    def _start(self, name: str, target: object, arguments: tuple[object, ...], env: Mapping[str, str] | None) -> None:
        process = self._spawn.Process(target=target, args=arguments, name=name, daemon=True)  # type: ignore[arg-type]
        with _environment(env or {}):
            process.start()
        self._processes[name] = process

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self._processes[name].pid
        assert pid is not None
        os.kill(pid, number)


@asynccontextmanager
async def cluster(
    nodes: list[str],
    *,
    spares: list[str] | None = None,
    leader: str | None = None,
    env: Mapping[str, Mapping[str, str]] | None = None,
) -> AsyncIterator[Cluster]:
    """Run a registry, and status nodes as processes, until the block ends.

    Args:
        nodes: those in the table.
        spares: those that are there beside them.
        leader: which of `nodes` leads, None for any.
        env: what the environment of each of them has, beside this process's.
    """
    env = env or {}
    registry = MemoryRegistry(SystemClock())
    site = bench_site(registry, "registry-1", Incarnation(1))
    served = RegistryNode(site)
    table = TableFollower(site)
    client = StatusClient(bench_site(registry, "client-1", Incarnation(1)), table=table)
    await served.start()
    made = Cluster(registry, served.node.http.url, client, table)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.run()) for one in (served, table, client)]
        try:
            if leader is not None:
                made.start_status(leader, nodes=len(nodes), env=env.get(leader))
                await _until_leads(registry, leader)
            for name in nodes:
                if name != leader:
                    made.start_status(name, nodes=len(nodes), env=env.get(name))
            async with asyncio.timeout(READY_S):
                await client.wait_ready()
            for name in spares or []:
                made.start_status(name, nodes=len(nodes), env=env.get(name))
            async with asyncio.timeout(READY_S):
                while len((await registry.services("status")).items) < len(nodes) + len(spares or []):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            yield made
        finally:
            made.stop()
            for task in running:
                task.cancel()
            await served.stop()


async def wish(registry: Registry, names: list[str]) -> None:
    """Ask for a resize to these nodes, at equal weights."""
    await registry.put(WISH_KEY, msgspec.msgpack.encode(Wish(dict.fromkeys(map(NodeId, names), 1))))


def has_nodes(table: PartitionTable | None, names: list[str]) -> bool:
    """Return whether the partitions are spread over these nodes, and none is on its way."""
    if table is None or table.moves or not set(table.nodes) == set(names) == set(table.wanted()):
        return False
    return max(table.counts().values()) - min(table.counts().values()) <= 1


def bench_site(registry: Registry, name: str, incarnation: Incarnation) -> Site:
    """Return the place of a node of this name on loopback."""
    return Site(
        name=NodeId(name),
        incarnation=incarnation,
        host="127.0.0.1",
        port=0,
        registry=registry,
        clock=SystemClock(),
        trust=Trust.of_key(PEER_KEY),
        credentials=Credentials({}),
        config=NodeConfig(),
    )


async def _until_leads(registry: Registry, name: str) -> None:
    async with asyncio.timeout(READY_S):
        while (entry := await registry.get(LEADER_KEY)) is None or entry.value.decode() != name:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Have these in the environment, for processes that begin meanwhile: modules read it when they are imported."""
    before = {key: os.environ.get(key) for key in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _status_process(url: str, name: str, nodes: int) -> None:
    log.configure(level="warning")

    async def run() -> None:
        registry = RemoteRegistry(url, node=name, trust=Trust.of_key(PEER_KEY))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(registry.run())
            site = bench_site(registry, name, await next_incarnation(registry, name, SystemClock()))
            node = StatusNode(StatusConfig(bootstrap_nodes=nodes), site)
            await node.start()
            await node.run()

    loop.run(run())


def _access_process(url: str, name: str, sessions: Sessions, ready: asyncio.Event) -> None:
    log.configure(level="warning")
    loop.run(_report(url, name, sessions, ready))


async def _report(url: str, name: str, sessions: Sessions, ready: asyncio.Event) -> None:
    registry = RemoteRegistry(url, node=name, trust=Trust.of_key(PEER_KEY))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(registry.run())
        site = bench_site(registry, name, await next_incarnation(registry, name, SystemClock()))
        # Registered, as every access node is: status nodes that take a partition over ask all of them.
        instance = ServiceInstance(id=name, service="access", url="http://127.0.0.1:9", incarnation=site.incarnation)
        await registry.register(instance, ttl_ms=10_000)
        tasks.create_task(_heartbeat(registry, instance))
        publisher = StatusPublisher(site)
        tasks.create_task(publisher.run())
        await publisher.wait_ready()
        numbers = range(sessions.first, sessions.first + sessions.count)
        for begin in range(0, sessions.count, 1_000):
            for number in numbers[begin : begin + 999]:
                publisher.report(opened(number))
            last = numbers[begin : begin + 1_000][-1]
            assert await publisher.open(opened(last), deadline_ms=60_000)
        ready.set()
        await churn(publisher, sessions)


async def _heartbeat(registry: Registry, instance: ServiceInstance) -> None:
    while True:
        await asyncio.sleep(1)
        await registry.heartbeat(instance.id, instance.incarnation)


async def churn(publisher: StatusPublisher, sessions: Sessions) -> None:
    """Change some sessions all the time; every one of them stays online but for an instant."""
    number = 0
    while True:
        for _ in range(sessions.changes_per_s // 50):
            number = (number + 1) % sessions.count
            session = opened(sessions.first + number)
            publisher.report(msgspec.structs.replace(session, state="away" if number % 2 else "busy"))
        await asyncio.sleep(0.02)
