"""How long a crash shows: from kill -9 of an access node to the last lookup that still says online, p99 in seconds.

Three status nodes and two access nodes as processes; lookups of the users of both go on without pause. Each round kills
an access node with its sessions and notes when the last of them was still said to be online; no user of the other may
be said to be offline meanwhile. In the details: from kill -9 of a status node until all lookups are right again, with
nothing wrong in between, only "unknown"; the node that leads is killed as often as any. And how many notices viewers of
1,000 users get, all of whom lose their connection and are back after five seconds: none, as that is within the grace.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

import msgspec

from base import loop
from bench.result import Options, Result
from bench.status_cluster import Cluster, Sessions, cluster
from bench.status_node import opened
from status.api import Closed, Opened
from status.client import status_side
from status.core.watches import GRACE_MS, JITTER_MS

__all__ = ["run"]

ROUNDS = 20
STATUS_ROUNDS = 9
USERS = 5_000
ASKED = 200
SETTLE_S = 20.0
RECONNECTING = 1_000
AWAY_S = 5.0


def run(options: Options) -> Result:
    """Measure, see the module."""
    rounds, status_rounds = (2, 1) if options.quick else (ROUNDS, STATUS_ROUNDS)
    ghosts, recoveries, wrong, notices = loop.run(_measure(rounds, status_rounds))
    return Result(
        name="status_ghost",
        value=_quantile(ghosts, 99),
        unit="s, p99",
        goal=3,
        better="lower",
        details={
            "access_node": _spread(ghosts),
            "status_node": _spread(recoveries),
            "status_node_goal_p99_s": 4,
            "wrong_answers": wrong,
            "notices_of_reconnects_after_5_s": notices,
            "users": USERS,
        },
    )


async def _measure(rounds: int, status_rounds: int) -> tuple[list[float], list[float], int, int]:
    ghosts: list[float] = []
    recoveries: list[float] = []
    wrong = 0
    names = ["status-1", "status-2", "status-3"]
    async with cluster(names) as made:
        await made.start_access("access-1", Sessions(0, USERS))
        rng = random.Random(1)
        notices = await _reconnect(made)
        print(f"{RECONNECTING} users reconnected: {notices} notices", file=sys.stderr)
        for number in range(rounds):
            name, first = f"access-{number + 2}", USERS * (number + 1)
            await made.start_access(name, Sessions(first, USERS))
            await asyncio.sleep(1.5 + rng.random())  # at any moment between two beats
            ghost, mistakes = await _kill_access(made, name, first, rng)
            ghosts.append(ghost)
            wrong += mistakes
            print(f"access node {number + 1}: {ghost:.3f} s", file=sys.stderr)
        for number in range(status_rounds):
            name = names[number % 3]
            await asyncio.sleep(4 + rng.random())
            recovery, mistakes = await _kill_status(made, name, rng)
            recoveries.append(recovery)
            wrong += mistakes
            print(f"{name}: {recovery:.3f} s", file=sys.stderr)
            made.start_status(name, nodes=3)
            await _until_spread(made, names)
    return ghosts, recoveries, wrong, notices


async def _reconnect(made: Cluster) -> int:
    """Return how many notices viewers get of users who were away for five seconds."""
    told: list[str] = []
    side = status_side(made.site("access-0"), users_max=RECONNECTING)
    reports, watches = side["reports"], side["watches"]
    assert watches is not None
    sessions = [opened(10_000_000 + number) for number in range(RECONNECTING)]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.run()) for one in (reports, watches)]
        await asyncio.gather(*(reports.open(session, deadline_ms=5_000) for session in sessions))
        seen = await asyncio.gather(*(watches.watch(one.user, "viewer", deadline_ms=5_000) for one in sessions))
        assert all(presence.state == "online" for presence in seen)
        watches.on_told(lambda user, _viewer, _state, _seen: told.append(user))
        for session in sessions:
            reports.close(Closed(session.user, session.session, session.conn_seq))
        await asyncio.sleep(AWAY_S)
        assert await _are(made, sessions, "offline"), "reading does not wait"
        for session in sessions:
            again = msgspec.structs.replace(session, session=f"again-{session.session}", conn_seq=session.conn_seq + 1)
            reports.report(again)
        await asyncio.sleep((GRACE_MS + JITTER_MS) / 1000 - AWAY_S + 1)
        assert await _are(made, sessions, "online")
        for task in running:
            task.cancel()
    return len(told)


async def _are(made: Cluster, sessions: list[Opened], state: str) -> bool:
    statuses = await made.client.lookup([session.user for session in sessions])
    return all(status.state == state for status in statuses.values())


async def _kill_access(made: Cluster, name: str, first: int, rng: random.Random) -> tuple[float, int]:
    """Return the seconds until nobody of it was said to be online any more, and how many answers were wrong."""
    wrong = 0
    made.kill(name)
    killed_at = time.perf_counter()
    last_online = killed_at
    while time.perf_counter() < last_online + 1.0 or time.perf_counter() < killed_at + 3.5:
        gone = [opened(first + rng.randrange(USERS)).user for _ in range(ASKED)]
        there = [opened(rng.randrange(USERS)).user for _ in range(ASKED)]
        statuses = await made.client.lookup([*gone, *there])
        if any(statuses[user].state == "online" for user in gone):
            last_online = time.perf_counter()
        wrong += sum(statuses[user].state == "offline" for user in there)
        await asyncio.sleep(0.005)
    return last_online - killed_at, wrong


async def _kill_status(made: Cluster, name: str, rng: random.Random) -> tuple[float, int]:
    """Return the seconds until all answers were right again, and how many were wrong rather than unknown."""
    wrong = 0
    made.kill(name)
    killed_at = time.perf_counter()
    last_unknown = killed_at
    while time.perf_counter() < max(last_unknown + 2.0, killed_at + 5.0):
        asked = [opened(rng.randrange(USERS)).user for _ in range(ASKED)]
        statuses = await made.client.lookup(asked)
        states = [status.state for status in statuses.values()]
        wrong += states.count("offline")
        if "unknown" in states:
            last_unknown = time.perf_counter()
        if last_unknown - killed_at > SETTLE_S:
            raise RuntimeError(f"{name} was killed, and after {SETTLE_S:g} s its users are not known yet")
        await asyncio.sleep(0.005)
    return last_unknown - killed_at, wrong


async def _until_spread(made: Cluster, names: list[str]) -> None:
    async with asyncio.timeout(60):
        while not made.is_done(names):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)


def _quantile(values: list[float], percent: int) -> float:
    return round(sorted(values)[min(len(values) - 1, len(values) * percent // 100)], 3)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "rounds": len(values),
        "p50_s": _quantile(values, 50),
        "p99_s": _quantile(values, 99),
        "max_s": round(max(values), 3),
    }
