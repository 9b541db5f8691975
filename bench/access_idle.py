"""CPU of holding idle connections that are pinged every 25 s: cores of the access processes per 1,000,000 of them.

One access node holds 10,000 connections for 75 s, three rounds of pings; its CPU in that time is extrapolated. Nothing
is subtracted: what the node does besides (heartbeats, reports, the audit of its inboxes) belongs to holding them. The
CPU of the same node without connections is in the details.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from time import perf_counter

from bench.access_system import AccessProcess, access_system
from bench.load.fleet import fleet
from bench.load.wire import Clear, Open
from bench.result import Options, Result

__all__ = ["run"]

CONNECTIONS = 10_000
PING_MS = 25_000
ROUNDS = 3
EMPTY_S = 20.0
QUICK_PING_MS = 1_000
TICKET_TTL_S = 10
SETTLE_S = 15.0
RATE = 1_000


def run(options: Options) -> Result:
    """Measure, see the module."""
    if options.quick:
        return asyncio.run(_measure(options.connections or 500, QUICK_PING_MS, empty_s=1.0, settle_s=1.0))
    return asyncio.run(_measure(options.connections or CONNECTIONS, PING_MS, empty_s=EMPTY_S, settle_s=SETTLE_S))


async def _measure(connections: int, ping_ms: int, *, empty_s: float, settle_s: float) -> Result:
    settings = [f"access.ping_interval_ms={ping_ms}", f"access.pong_deadline_ms={min(ping_ms - 500, 10_000)}"]
    async with AsyncExitStack() as stack:
        system = stack.enter_context(access_system(1, *settings))
        clients = await stack.enter_async_context(fleet(1, ticket_key=system.ticket_key, ticket_ttl_s=TICKET_TTL_S))
        (node,) = system.nodes
        empty, _ = await _cores(node, empty_s)
        total = await clients.open(Open(urls=[node.websocket], first=0, count=connections, rate=RATE))
        assert total.open == connections, total.counts
        await asyncio.sleep(settle_s)
        print(f"empty: {empty * 100:.2f} % of a core; {connections} connections are open", file=sys.stderr)
        await clients.all(Clear())
        before = total.cpu_s
        held, spent_s = await _cores(node, ROUNDS * ping_ms / 1000)
        total = await clients.look()
        assert total.open == connections, total.counts
    million = 1_000_000 / connections
    return Result(
        name="access_idle",
        value=round(held * million, 3),
        unit="cores per 1,000,000 connections",
        goal=0.6,
        better="lower",
        details={
            "connections": connections,
            "seconds": round(spent_s, 1),
            "pings": total.counts["pings"],
            "node_cores": round(held, 5),
            "empty_node_cores": round(empty, 5),
            "without_empty_node": round((held - empty) * million, 3),
            "us_per_ping": round(held * spent_s / max(1, total.counts["pings"]) * 1e6, 2),
            "client_cores_per_million": round((total.cpu_s - before) / spent_s * million, 3),
        },
    )


async def _cores(node: AccessProcess, seconds: float) -> tuple[float, float]:
    """Return how many cores the node is busy, and for how long that was looked at."""
    began, before = perf_counter(), node.child.cpu_s()
    await asyncio.sleep(seconds)
    spent_s = perf_counter() - began
    return (node.child.cpu_s() - before) / spent_s, spent_s
