"""The pause of a partition while a cluster grows from three to five nodes and shrinks to two, under load: p99 in ms.

Status nodes and access nodes are processes; 200,000 sessions, of which 5,000 a second change, and 20,000 users a second
looked up in batches of 200. A pause is the time between the table that seals a partition and the one that commits it.
Every answer is checked: all users are online all the time, so that "offline" is wrong and "unknown" is an error that a
client sees. In the details, beside: the same with all nodes in one process.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from base import loop
from base.clock import SystemClock
from base.ids import Incarnation, NodeId
from base.registry.memory import MemoryRegistry
from bench.result import Options, Result
from bench.status_cluster import Sessions, bench_site, churn, cluster, has_nodes, wish
from bench.status_node import opened
from status.client import StatusClient, StatusPublisher
from status.config import StatusConfig
from status.core.partitions import PartitionTable, Stage
from status.service import StatusNode
from status.table import TableFollower

__all__ = ["Seen", "resize_processes", "run"]

SPEC = ("PR-04",)  # rows of docs/spec-coverage.md

SESSIONS = 200_000
LOOKUPS_PER_S = 20_000
CHANGES_PER_S = 5_000
BATCH = 200
OUTSTANDING_MAX = 200
"""Batches that wait for their answer at once; one more is left out, and shows as a lower rate."""
NAMES = [f"status-{number}" for number in range(1, 6)]
RESIZE_S_MAX = 120.0


@dataclass(slots=True)
class Seen:
    """What a client saw of both resizes."""

    lookups: int = 0
    wrong: int = 0
    unknown: int = 0
    seconds: list[float] = field(default_factory=list)
    pauses_ms: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    outstanding: int = 0
    outstanding_max: int = 0

    def details(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "lookups": self.lookups,
            "lookups_per_s": round(self.lookups / sum(self.seconds)),
            "outstanding_max": self.outstanding_max,
            "wrong": self.wrong,
            "unknown": self.unknown,
            "seconds_3_to_5": round(self.seconds[0], 2),
            "seconds_5_to_2": round(self.seconds[1], 2),
            "partitions_moved": len(self.pauses_ms),
            "pause_p50_ms": _quantile(self.pauses_ms, 50),
            "pause_p99_ms": _quantile(self.pauses_ms, 99),
            "lookup_batch_p50_ms": _quantile(self.latencies_ms, 50),
            "lookup_batch_p99_ms": _quantile(self.latencies_ms, 99),
        }


def run(options: Options) -> Result:
    """Measure, see the module."""
    sessions, rate = (5_000, 10) if options.quick else (SESSIONS, 1)
    processes = loop.run(resize_processes(sessions, LOOKUPS_PER_S // rate, CHANGES_PER_S // rate))
    print(f"processes: {processes.details()}", file=sys.stderr)
    embedded = loop.run(_embedded(sessions, LOOKUPS_PER_S // rate, CHANGES_PER_S // rate))
    print(f"one process: {embedded.details()}", file=sys.stderr)
    return Result(
        name="status_resize",
        value=_quantile(processes.pauses_ms, 99),
        unit="ms, p99",
        goal=20,
        better="lower",
        details={"sessions": sessions, "processes": processes.details(), "one_process": embedded.details()},
    )


async def resize_processes(sessions: int, lookups_per_s: int, changes_per_s: int) -> Seen:
    """Resize a cluster of processes twice, under load; return what a client saw."""
    async with cluster(NAMES[:3], spares=NAMES[3:]) as made:
        half = sessions // 2
        async with asyncio.TaskGroup() as tasks:
            for number in range(2):
                part = Sessions(half * number, half, changes_per_s // 2)
                tasks.create_task(made.start_access(f"access-{number + 1}", part))
        return await _resize_twice(made.client, made.follower, made.wish, half * 2, lookups_per_s)


async def _embedded(sessions: int, lookups_per_s: int, changes_per_s: int) -> Seen:
    """The same with all nodes in this process."""
    registry = MemoryRegistry(SystemClock())
    nodes = [StatusNode(StatusConfig(bootstrap_nodes=3), bench_site(registry, name, Incarnation(1))) for name in NAMES]
    publishers = [StatusPublisher(bench_site(registry, f"access-{number}", Incarnation(1))) for number in (1, 2)]
    table = TableFollower(bench_site(registry, "client-1", Incarnation(1)))
    client = StatusClient(bench_site(registry, "client-1", Incarnation(1)), table=table)
    half = sessions // 2
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            await node.start()
        runs = [node.run() for node in nodes] + [publisher.run() for publisher in publishers]
        running = [tasks.create_task(run) for run in (*runs, table.run(), client.run())]
        await client.wait_ready()
        for number, publisher in enumerate(publishers):
            await publisher.wait_ready()
            part = Sessions(half * number, half, changes_per_s // 2)
            for begin in range(part.first, part.first + part.count, 500):
                for session in range(begin, min(begin + 500, part.first + part.count)):
                    publisher.report(opened(session))
                await asyncio.sleep(0)
            assert await publisher.open(opened(part.first), deadline_ms=60_000)
            running.append(tasks.create_task(churn(publisher, part)))
        seen = await _resize_twice(client, table, lambda names: wish(registry, names), half * 2, lookups_per_s)
        for task in running:
            task.cancel()
        for node in nodes:
            await node.stop()
    return seen


async def _resize_twice(
    client: StatusClient,
    table: TableFollower,
    ask: Callable[[list[str]], Awaitable[None]],
    sessions: int,
    lookups_per_s: int,
) -> Seen:
    seen = Seen()
    table.on_change(_Pauses(seen.pauses_ms).read)
    for names in (NAMES, NAMES[:2]):
        await asyncio.sleep(4)
        began = time.perf_counter()
        await ask(names)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(_look_at_pace(client, sessions, lookups_per_s, seen))
            while not has_nodes(table.table, names):
                if time.perf_counter() - began > RESIZE_S_MAX:
                    raise RuntimeError(f"no end after {RESIZE_S_MAX:g} s: {table.table and table.table.counts()}")
                await asyncio.sleep(0.01)
            seen.seconds.append(time.perf_counter() - began)
            looking.cancel()
    return seen


async def _look_at_pace(client: StatusClient, sessions: int, per_s: int, seen: Seen) -> None:
    """Send a batch whenever one is due, however long those before it take; latency counts from when it was due."""
    rng = random.Random(1)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        while True:
            if seen.outstanding < OUTSTANDING_MAX:
                tasks.create_task(
                    _look(client, [opened(rng.randrange(sessions)).user for _ in range(BATCH)], due, seen)
                )
            due += BATCH / per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _look(client: StatusClient, users: list[str], due: float, seen: Seen) -> None:
    seen.outstanding += 1
    seen.outstanding_max = max(seen.outstanding_max, seen.outstanding)
    try:
        statuses = await client.lookup(users)
    finally:
        seen.outstanding -= 1
    seen.latencies_ms.append((time.perf_counter() - due) * 1000)
    states = [status.state for status in statuses.values()]
    seen.lookups += len(states)
    seen.wrong += states.count("offline")
    seen.unknown += states.count("unknown")


class _Pauses:
    """How long each partition was sealed, by the tables that come by."""

    def __init__(self, pauses_ms: list[float]) -> None:
        self._pauses_ms = pauses_ms
        self._sealed: dict[int, tuple[NodeId, float]] = {}

    def read(self, table: PartitionTable) -> None:
        now = time.perf_counter()
        sealed = {move.partition: move.source for move in table.moves if move.stage is Stage.SEAL}
        for partition in [partition for partition in self._sealed if partition not in sealed]:
            source, since = self._sealed.pop(partition)
            if table.owner(partition) != source:
                self._pauses_ms.append((now - since) * 1000)
        for partition, source in sealed.items():
            self._sealed.setdefault(partition, (source, now))


def _quantile(values: list[float], percent: int) -> float:
    return round(sorted(values)[min(len(values) - 1, len(values) * percent // 100)], 2) if values else 0.0
