"""CPU to keep 1,000,000 users online for a minute, against Redis keys refreshed every 30 s by pipelined SET EX: ratio.

Ours is a lease an access node: a beat a second to each status node, whatever the number of users. Measured: 20 access
nodes with all the users, their beats over real streams to one status node. Redis' cost is measured on a part of the two
million refreshes and scaled up. CPU seconds of all processes that take part.
"""

from __future__ import annotations

import asyncio
import sys
import time

from base import loop
from bench.redis_server import redis_server
from bench.result import Comparison, Options, Result
from bench.status_node import opened, status_bench

__all__ = ["run"]

USERS = 1_000_000
REFRESHES = 2 * USERS
ACCESS_NODES = 20
BATCH = 500


def run(options: Options) -> Result:
    """Measure, see the module."""
    users = 10_000 if options.quick else USERS
    idle_s = 3.0 if options.quick else 20.0
    ours = loop.run(_ours(users, idle_s))
    print(f"ours: {ours:.3f} CPU s a minute", file=sys.stderr)
    theirs = _theirs(10_000 if options.quick else 400_000)
    print(f"redis: {theirs:.1f} CPU s a minute", file=sys.stderr)
    return Result(
        name="status_heartbeat",
        value=round(theirs / ours, 1),
        unit="Redis CPU s / our CPU s",
        goal=100,
        better="higher",
        details={
            "our_cpu_s_a_minute": round(ours, 4),
            "redis_cpu_s_a_minute": round(theirs, 2),
            "users": users,
            "access_nodes": ACCESS_NODES,
            "measured_s": idle_s,
        },
        comparison=Comparison(
            unit="CPU seconds a minute",
            better="lower",
            ours=round(ours, 4),
            others={"Redis, SET EX every 30 s": round(theirs, 2)},
        ),
    )


async def _ours(users: int, idle_s: float) -> float:
    """CPU seconds a minute of all that keeps them online: 20 access nodes' beats, both ends, and the status node."""
    async with status_bench(access_nodes=ACCESS_NODES) as bench:
        for number in range(users):
            bench.publishers[number % ACCESS_NODES].report(opened(number))
        for number, publisher in enumerate(bench.publishers):
            assert await publisher.open(opened(users + number), deadline_ms=600_000)
            publisher.digest()  # hashes what was opened, once: that is no part of keeping it
        started = time.process_time()
        await asyncio.sleep(idle_s)
        return (time.process_time() - started) / idle_s * 60


def _theirs(sample: int) -> float:
    with redis_server() as server:
        started, started_server = time.process_time(), server.cpu_s()
        for begin in range(0, sample, BATCH):
            pipe = server.client.pipeline(transaction=False)
            for number in range(begin, begin + BATCH):
                pipe.set(f"user-{number:08d}", "online|phone|access-1", ex=90)
            pipe.execute()
        spent = time.process_time() - started + server.cpu_s() - started_server
        return spent / sample * REFRESHES
