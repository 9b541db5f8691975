"""Resident memory of an idle, authenticated connection in the access process: 15,000 of them with their inboxes.

The difference of the process' resident memory with and without them, divided; so it has the event loop's transport in
it, the session, its entry in the status reports, and what the allocator does not give back. The first figure is taken
when all are connected. The second one, which is the value, when their tickets have expired, so that the node need not
remember them any more: what is left is what an idle connection holds. Before, each process serves 200 connections, so
that code that is loaded at the first one does not count.

Beside it, in the same run, bare echo servers of aiohttp and websockets with as many connections, which authenticate
nobody and subscribe to nothing.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from bench.access_system import access_system
from bench.echo_server import LIBRARIES
from bench.load.fleet import Fleet, fleet
from bench.load.wire import Close, Kind, Open
from bench.process import Child, child
from bench.result import Comparison, Options, Result
from scheduler.client import LEEWAY_S

__all__ = ["run"]

CONNECTIONS = 15_000
WARM_UP = 200
RATE = 800
TICKET_TTL_S = 30
SETTLE_S = 2


def run(options: Options) -> Result:
    """Measure, see the module."""
    connections = options.connections or (1_000 if options.quick else CONNECTIONS)
    ttl_s = 2 if options.quick else TICKET_TTL_S
    ours, connected = asyncio.run(_ours(connections, ttl_s))
    peers = {library: asyncio.run(_peer(library, connections)) for library in LIBRARIES}
    return Result(
        name="access_memory",
        value=round(ours),
        unit="bytes per connection",
        goal=3_072,
        better="lower",
        details={
            "connections": connections,
            "while_tickets_are_remembered": round(connected),
            "peers": {library: round(spent) for library, spent in peers.items()},
            "to_better_peer": round(ours / min(peers.values()), 3),
            "to_better_peer_goal": 0.25,
        },
        comparison=Comparison(
            unit="bytes per connection",
            better="lower",
            ours=round(ours),
            others={library: round(spent) for library, spent in peers.items()},
        ),
    )


async def _ours(connections: int, ttl_s: int) -> tuple[float, float]:
    """Return the bytes per connection when tickets have expired, and before."""
    async with AsyncExitStack() as stack:
        system = stack.enter_context(access_system(1))
        clients = await stack.enter_async_context(fleet(1, ticket_key=system.ticket_key, ticket_ttl_s=ttl_s))
        (node,) = system.nodes
        before = await _warmed_up(node.child, clients, node.websocket, Kind.SESSION, ttl_s=ttl_s)
        await _open(clients, node.websocket, Kind.SESSION, connections)
        connected = node.child.resident()
        print(f"connected: {(connected - before) / connections:,.0f} bytes", file=sys.stderr)
        await asyncio.sleep(ttl_s + LEEWAY_S + SETTLE_S)
        # Tickets are forgotten when others come.
        await _open(clients, node.websocket, Kind.SESSION, 1, first=connections)
        idle = node.child.resident()
        total = await clients.look()
        assert total.open == connections + 1, total.counts
        print(f"idle: {(idle - before) / connections:,.0f} bytes", file=sys.stderr)
        return (idle - before) / connections, (connected - before) / connections


async def _peer(library: str, connections: int) -> float:
    """Return the bytes per connection of a peer."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(child([sys.executable, "-m", "bench.echo_server", library]))
        clients = await stack.enter_async_context(fleet(1))
        url = f"ws://127.0.0.1:{int(server.said)}"
        before = await _warmed_up(server, clients, url, Kind.WEBSOCKET)
        await _open(clients, url, Kind.WEBSOCKET, connections)
        await asyncio.sleep(SETTLE_S)
        spent = (server.resident() - before) / connections
        print(f"{library}: {spent:,.0f} bytes", file=sys.stderr)
        return spent


async def _warmed_up(server: Child, clients: Fleet, url: str, kind: Kind, *, ttl_s: int = 0) -> int:
    """Return the process' resident bytes without connections, after it had some."""
    await _open(clients, url, kind, WARM_UP)
    await clients.all(Close())
    await asyncio.sleep(ttl_s + LEEWAY_S + SETTLE_S)
    return server.resident()


async def _open(clients: Fleet, url: str, kind: Kind, count: int, *, first: int = 0) -> None:
    before = (await clients.look()).open
    total = await clients.open(Open(urls=[url], first=first, count=count, kind=kind, rate=RATE))
    assert total.open == before + count, total.counts
