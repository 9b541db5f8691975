"""A scheduler's orders at real nodes: clients go where they are told, are online meanwhile, and miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from access.api import (
    ACCESS_CLIENTS,
    ACCESS_MOVE,
    SERVICE,
    ClientEntry,
    ListClients,
    MoveClients,
    MoveOrder,
    NodeReport,
    report_of,
)
from access.service import AccessNode
from base.core.histogram import Histogram
from base.core.registry import ServiceInstance
from base.peer import PeerPool
from roadstead.api import call_api
from tests.system.conftest import eventually
from tests.system.test_drain import TwoNodes, Watched, _has_targets, cluster_of
from tests.system.test_faults import KEY

OLD, NEW = "access-1", "access-2"
PLAN = "rebalance-1"
CLIENTS = 9
MOVED = 6
DEADLINE_MS = 2_000


@asynccontextmanager
async def peers_of(cluster: TwoNodes) -> AsyncIterator[tuple[PeerPool, dict[str, ServiceInstance]]]:
    """The streams that a scheduler has to the access nodes, and the nodes as it sees them."""
    seen: dict[str, ServiceInstance] = {}

    def saw(instances: tuple[ServiceInstance, ...]) -> None:
        seen.update({instance.id: instance for instance in instances})

    pool = PeerPool(await cluster.site("mover-1"), SERVICE, on_change=saw)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pool.run())
        await pool.wait_ready()
        yield pool, seen
        running.cancel()


async def clients_at(pool: PeerPool, node: str) -> list[ClientEntry]:
    """All clients of a node, in pages of two."""
    found: list[ClientEntry] = []
    after = ""
    while True:
        page = await pool.get(node).call(ACCESS_CLIENTS, ListClients(after, 2), deadline_ms=DEADLINE_MS)
        found += page.clients
        if not page.next:
            return found
        after = page.next


async def test_clients_that_are_ordered_to_go_are_online_all_the_time_and_miss_nothing() -> None:
    """In small orders, with messages all the while; the others stay where they are."""
    async with AsyncExitStack() as stack:
        cluster, (old,) = await stack.enter_async_context(cluster_of(OLD))
        watched = await stack.enter_async_context(
            Watched(cluster.url("scheduler-1"), cluster.url("status-1"), KEY, CLIENTS)
        )
        new = await cluster.start(NEW)
        assert isinstance(new, AccessNode)
        await eventually(lambda: _has_targets(old))
        pool, seen = await stack.enter_async_context(peers_of(cluster))
        sent: list[int] = []

        async def order(*clients: ClientEntry) -> int:
            moves = [MoveOrder(client.id, NEW, "canary") for client in clients]
            reply = await pool.get(OLD).call(ACCESS_MOVE, MoveClients(PLAN, 5_000, moves), deadline_ms=DEADLINE_MS)
            assert (reply.told, reply.absent, reply.refused, reply.closed) == (len(clients), [], [], 0)
            return reply.arrived

        listed = await clients_at(pool, OLD)
        assert [client.user for client in listed] == watched.users
        chosen = listed[:MOVED]
        for first in range(0, MOVED, 2):
            await order(*chosen[first : first + 2])
            await send_to_all(cluster, watched, sent)
        # A message may reach the new node as a part of what a client missed; a report counts only what was delivered.
        while await order() < MOVED or pushed(seen, NEW) == 0:
            await send_to_all(cluster, watched, sent)
        await watched.have(*sent)
        assert watched.ends == []
        assert sorted(client.user for client in await clients_at(pool, NEW)) == sorted(client.user for client in chosen)
        assert [client.user for client in await clients_at(pool, OLD)] == watched.users[MOVED:]
        await reports_say(seen)


async def send_to_all(cluster: TwoNodes, watched: Watched, sent: list[int]) -> None:
    """Send the next message to every user."""
    for user in watched.users:
        message = {"from": "sender", "to": user, "client_msg_id": f"{user}-{len(sent)}", "body": len(sent)}
        await call_api("POST", f"{cluster.url('im-1')}/v1/messages", credential=KEY, body=message)
    sent.append(len(sent))


def reported(seen: dict[str, ServiceInstance], node: str) -> NodeReport:
    """What the node said of itself when it last renewed its registration."""
    return report_of(seen[node].note)


def pushed(seen: dict[str, ServiceInstance], node: str) -> int:
    """How many deliveries the node has reported."""
    return Histogram.decode(reported(seen, node).pushes).total


async def reports_say(seen: dict[str, ServiceInstance]) -> None:
    """The nodes' own reports tell the same, soon: they are made at different times, and all has to be true at once."""
    told: list[Any] = []

    async def all_is_told() -> bool:
        old, new = reported(seen, OLD), reported(seen, NEW)
        told[:] = [
            (old.connections, old.closed, list(old.admitted.values()), Histogram.decode(old.handshakes).total),
            (new.connections, new.closed, new.admitted, Histogram.decode(new.handshakes).total),
        ]
        return told == [(CLIENTS - MOVED, MOVED, [CLIENTS], CLIENTS), (MOVED, 0, {PLAN: MOVED}, MOVED)]

    try:
        await eventually(all_is_told)
    except TimeoutError:
        raise AssertionError(told) from None
    for node in (OLD, NEW):
        assert pushed(seen, node) > 0
        assert 0 < reported(seen, node).uptime_ms < 60_000
        assert seen[node].meta["accepts_per_second"] == "1000"
        assert seen[node].meta["carrier"] == ""
