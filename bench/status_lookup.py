"""Users looked up per CPU second in batches of 500, client and node together, against Redis MGET by redis-py: ratio.

Both sides hold the same users; half of those asked for are online. Ours answers with state, device, access node and
since; Redis with one value a key. CPU seconds of all processes that take part.
"""

from __future__ import annotations

import random
import sys
import time

from base import loop
from bench.redis_server import redis_server
from bench.result import Comparison, Options, Result
from bench.status_node import StatusBench, opened, status_bench

__all__ = ["run"]

SPEC = ("RT-04",)  # rows of docs/spec-coverage.md

USERS = 100_000
BATCH = 500


def run(options: Options) -> Result:
    """Measure, see the module."""
    users = 5_000 if options.quick else USERS
    rounds = 20 if options.quick else 1_000
    rng = random.Random(1)
    batches = [[f"user-{rng.randrange(2 * users):08d}" for _ in range(BATCH)] for _ in range(rounds)]
    ours, single_p99_ms = loop.run(_ours(users, batches))
    print(f"ours: {ours:,.0f} users per CPU second", file=sys.stderr)
    theirs = _theirs(users, batches)
    print(f"redis: {theirs:,.0f} users per CPU second", file=sys.stderr)
    return Result(
        name="status_lookup",
        value=round(ours / theirs, 2),
        unit="our users looked up per CPU s / Redis'",
        goal=3,
        better="higher",
        details={
            "ours_per_cpu_s": round(ours),
            "redis_per_cpu_s": round(theirs),
            "batch": BATCH,
            "users": users,
            "single_lookup_p99_ms": single_p99_ms,
        },
        comparison=Comparison(
            unit="users looked up per CPU second",
            better="higher",
            ours=round(ours),
            others={"Redis, MGET": round(theirs)},
        ),
    )


async def _ours(users: int, batches: list[list[str]]) -> tuple[float, float]:
    async with status_bench() as bench:
        await _fill(bench, users)
        started = time.process_time()
        for batch in batches:
            await bench.client.lookup(batch)
        spent = time.process_time() - started
        found = await bench.client.lookup(batches[0])
        assert {status.state for status in found.values()} == {"online", "offline"}
        singles = []
        for batch in batches:
            begun = time.perf_counter()
            await bench.client.lookup(batch[:1])
            singles.append(time.perf_counter() - begun)
        singles.sort()
        return len(batches) * BATCH / spent, round(singles[len(singles) * 99 // 100] * 1000, 3)


async def _fill(bench: StatusBench, users: int) -> None:
    for number in range(users):
        bench.publisher.report(opened(number))
    assert await bench.publisher.open(opened(users), deadline_ms=60_000)


def _theirs(users: int, batches: list[list[str]]) -> float:
    with redis_server() as server:
        pipe = server.client.pipeline(transaction=False)
        for number in range(users):
            session = opened(number)
            pipe.set(session.user, f"online|{session.device}|access-1|{session.since}", ex=600)
        pipe.execute()
        started, started_server = time.process_time(), server.cpu_s()
        for batch in batches:
            server.client.mget(batch)
        spent = time.process_time() - started + server.cpu_s() - started_server
        return len(batches) * BATCH / spent
