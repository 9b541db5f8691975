"""Keys moved per second between two nodes while they serve, against `redis-cli --cluster reshard`: ratio.

Ours: two status nodes as processes, all users at the first; a resize gives half of them to the second, while 2,000
users a second are looked up and 500 sessions a second change. Redis: two cluster nodes with one key a user, and half of
the slots resharded by redis-cli with 1,000 keys a command. In the details, beside: how long 1,000,000 users take from
three nodes to four, and what the lookups saw meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import redis

from base import loop
from bench.redis_server import RedisServer, redis_server
from bench.result import Comparison, Options, Result
from bench.status_cluster import Cluster, Sessions, cluster
from bench.status_node import opened

__all__ = ["run"]

USERS = 400_000
USERS_AT_LARGE = 1_000_000
LOOKUPS_PER_S = 2_000
CHANGES_PER_S = 500
SLOTS = 16_384
RESIZE_S_MAX = 120.0


@dataclass(slots=True)
class Seen:
    """A resize, as who looks users up sees it."""

    seconds: float = 0.0
    moved: int = 0
    lookups: int = 0
    not_online: int = 0
    lookup_p99_ms: float = 0.0


def run(options: Options) -> Result:
    """Measure, see the module."""
    users = 5_000 if options.quick else USERS
    ours = loop.run(_ours(users, ["status-1"], "status-2"))
    print(f"ours: {ours}", file=sys.stderr)
    at_large = ours
    if not options.quick:
        at_large = loop.run(_ours(USERS_AT_LARGE, ["status-1", "status-2", "status-3"], "status-4"))
        print(f"3 to 4 nodes: {at_large}", file=sys.stderr)
    theirs = _theirs(users)
    print(f"redis: {theirs:,.0f} keys/s", file=sys.stderr)
    return Result(
        name="status_migrate",
        value=round(ours.moved / ours.seconds / theirs, 2),
        unit="our keys/s / Redis Cluster reshard's keys/s",
        goal=5,
        better="higher",
        details={
            "users": users,
            "our_keys_per_s": round(ours.moved / ours.seconds),
            "redis_keys_per_s": round(theirs),
            "two_nodes": asdict(ours),
            "three_to_four_nodes": asdict(at_large),
        },
        comparison=Comparison(
            unit="keys moved a second",
            better="higher",
            ours=round(ours.moved / ours.seconds),
            others={"Redis Cluster, redis-cli reshard": round(theirs)},
        ),
    )


async def _ours(users: int, nodes: list[str], added: str) -> Seen:
    async with cluster(nodes, spares=[added]) as made:
        half = users // 2
        await asyncio.gather(
            made.start_access("access-1", Sessions(0, half, CHANGES_PER_S // 2)),
            made.start_access("access-2", Sessions(half, users - half, CHANGES_PER_S // 2)),
        )
        seen = Seen()
        rng = random.Random(1)
        spent: list[float] = []
        began = time.perf_counter()
        await made.wish([*nodes, added])
        while not made.is_done([*nodes, added]):
            seen.seconds = time.perf_counter() - began
            if seen.seconds > RESIZE_S_MAX:
                raise RuntimeError(f"the resize did not end: {made.table.counts()}, {len(made.table.moves)} moves")
            await _look(made, rng, users, seen, spent)
        seen.seconds = round(time.perf_counter() - began, 3)
        seen.moved = round(users * made.table.counts()[made.table.nodes[-1]] / len(made.table.owners))
        spent.sort()
        seen.lookup_p99_ms = round(spent[len(spent) * 99 // 100] * 1000, 2)
        return seen


async def _look(made: Cluster, rng: random.Random, users: int, seen: Seen, spent: list[float]) -> None:
    asked = [opened(rng.randrange(users)).user for _ in range(LOOKUPS_PER_S // 100)]
    begun = time.perf_counter()
    statuses = await made.client.lookup(asked)
    spent.append(time.perf_counter() - begun)
    seen.lookups += len(asked)
    seen.not_online += sum(status.state in {"offline", "unknown"} for status in statuses.values())
    await asyncio.sleep(max(0.0, 0.01 - spent[-1]))


def _theirs(users: int) -> float:
    with _two_nodes() as (first, second):
        client = redis.RedisCluster(host="127.0.0.1", port=first.port)
        pipe = client.pipeline(transaction=False)  # type: ignore[no-untyped-call]
        for number in range(users):
            session = opened(number)
            pipe.set(session.user, f"online|{session.device}|access-1|{session.since}")
            if number % 2_000 == 0:
                pipe.execute()
        pipe.execute()
        client.close()
        ids = {server.port: _do(server, "CLUSTER MYID").decode() for server in (first, second)}
        command = [shutil.which("redis-cli") or "redis-cli", "--cluster", "reshard", f"127.0.0.1:{first.port}"]
        command += ["--cluster-from", ids[first.port], "--cluster-to", ids[second.port], "--cluster-yes"]
        command += ["--cluster-slots", str(SLOTS // 2), "--cluster-pipeline", "1000"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        spent = time.perf_counter() - began
        moved = int(second.client.dbsize())
        if done.returncode or not moved:
            raise RuntimeError(f"redis-cli failed: {done.stdout[-500:]} {done.stderr[-500:]}")
        return moved / spent


@contextmanager
def _two_nodes() -> Iterator[tuple[RedisServer, RedisServer]]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                redis_server("--cluster-enabled", "yes", "--dir", stack.enter_context(tempfile.TemporaryDirectory()))
            )
            for _ in range(2)
        ]
        first, second = servers
        _do(first, "CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
        _do(second, "CLUSTER SET-CONFIG-EPOCH", 2)
        _do(first, "CLUSTER MEET", "127.0.0.1", second.port)
        give_up = time.monotonic() + 10
        while not all(map(_is_whole, servers)):
            if time.monotonic() > give_up:
                raise RuntimeError("the two Redis nodes did not find each other")
            time.sleep(0.05)
        yield first, second


def _do(server: RedisServer, *command: str | int) -> Any:
    return server.client.execute_command(*command)  # type: ignore[no-untyped-call]


def _is_whole(server: RedisServer) -> bool:
    info = server.client.cluster("INFO")
    return (info["cluster_known_nodes"], info["cluster_state"]) == ("2", "ok")
