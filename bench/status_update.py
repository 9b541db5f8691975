"""Session changes applied per CPU second, client and node together, against pipelined SET EX by redis-py: ratio.

A change is a session opened at an access node and applied at its status owner, confirmed; for Redis, one key set with a
time to live, in pipelines of 500. CPU seconds of all processes that take part.
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

CHANGES = 200_000
BATCH = 500


def run(options: Options) -> Result:
    """Measure, see the module."""
    changes = 5_000 if options.quick else CHANGES
    ours = loop.run(_ours(changes))
    print(f"ours: {ours:,.0f} changes per CPU second", file=sys.stderr)
    theirs = _theirs(changes)
    print(f"redis: {theirs:,.0f} changes per CPU second", file=sys.stderr)
    return Result(
        name="status_update",
        value=round(ours / theirs, 2),
        unit="our changes per CPU s / Redis'",
        goal=5,
        better="higher",
        details={"ours_per_cpu_s": round(ours), "redis_per_cpu_s": round(theirs), "batch": BATCH, "changes": changes},
        comparison=Comparison(
            unit="changes per CPU second",
            better="higher",
            ours=round(ours),
            others={"Redis, pipelined SET EX": round(theirs)},
        ),
    )


async def _ours(changes: int) -> float:
    async with status_bench() as bench:
        sessions = [opened(number) for number in range(changes)]
        assert await bench.publisher.open(opened(changes), deadline_ms=60_000)
        started = time.process_time()
        for begin in range(0, changes, BATCH):
            for session in sessions[begin : begin + BATCH]:
                bench.publisher.report(session)
            await asyncio.sleep(0)  # as in an access node, whose sockets are served in between
        assert await bench.publisher.open(opened(changes + 1), deadline_ms=60_000)
        return changes / (time.process_time() - started)


def _theirs(changes: int) -> float:
    with redis_server() as server:
        sessions = [opened(number) for number in range(changes)]
        started, started_server = time.process_time(), server.cpu_s()
        for begin in range(0, changes, BATCH):
            pipe = server.client.pipeline(transaction=False)
            for session in sessions[begin : begin + BATCH]:
                pipe.set(session.user, f"online|{session.device}|access-1|{session.since}", ex=60)
            pipe.execute()
        return changes / (time.process_time() - started + server.cpu_s() - started_server)
