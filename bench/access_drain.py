"""An access node with 10,000 clients is drained over a minute to another one: moves in the worst second / even pace.

Each client is told where to go, connects there first and closes then. Meanwhile messages are sent to a fifth of the
users, each of whom checks that the offsets it gets have no hole; and all users are looked up at the status node again
and again, by somebody who must never see one offline. The details tell what was seen of that; all of it should be 0.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack
from time import perf_counter

import aiohttp

from bench.access_system import AccessProcess, AccessSystem, access_system
from bench.load.fleet import Fleet, Total, fleet
from bench.load.wire import Clear, Open, Report, Send, user_name
from bench.result import Options, Result
from roadstead.api import call_api

__all__ = ["run"]

CONNECTIONS = 10_000
OVER_S = 60.0
SENDERS = 20
MESSAGES_PER_S = 200
SAMPLE_PART = 5
RATE = 1_000
LOOK_S = 0.1
LOOKUP_USERS = 1_000
END_S = 60.0


def run(options: Options) -> Result:
    """Measure, see the module."""
    connections = options.connections or (300 if options.quick else CONNECTIONS)
    return asyncio.run(_measure(connections, over_s=4.0 if options.quick else OVER_S))


async def _measure(connections: int, *, over_s: float) -> Result:
    async with AsyncExitStack() as stack:
        system = stack.enter_context(access_system(2))
        clients = await stack.enter_async_context(fleet(1, ticket_key=system.ticket_key))
        senders = await stack.enter_async_context(fleet(1, ticket_key=system.ticket_key, first_worker=1))
        old, new = system.nodes
        order = Open(urls=[old.websocket], fallbacks=[new.websocket], first=0, count=connections, rate=RATE)
        total = await clients.open(order)
        assert total.open == connections, total.counts
        await senders.open(Open(urls=[new.websocket], first=connections, count=SENDERS, rate=100))
        await clients.all(Clear())
        messages = Send(rate=MESSAGES_PER_S, seconds=over_s, first=0, count=max(1, connections // SAMPLE_PART))
        poller = _Poller(system, connections)
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(poller.run())
            sending = tasks.create_task(senders.workers[0].call(messages))
            moved = await _drain(system, old, clients, connections, over_s=over_s)
            sent = await sending
            total = await _until_arrived(clients, sent)
            polling.cancel()
        left = await _connections(old)
    acked = sent.counts.get("send done", 0)
    return Result(
        name="access_drain",
        value=round(_worst_second(moved) / (connections / over_s), 3),
        unit="moves in the worst second / even pace",
        goal=1.2,
        better="lower",
        details={
            "connections": connections,
            "over_s": over_s,
            "took_s": round(moved[-1][0], 1),
            "told": total.counts["told to move"],
            "arrived": total.open,
            "left_at_the_old_node": left,
            "closed_untold": total.counts["closed untold"],
            "closed_before_arrival": total.counts["closed before arrival"],
            "messages_acknowledged": acked,
            "messages_lost": acked - total.counts["received"],
            "holes": total.counts["gaps"],
            "repeated": total.counts["duplicates"],
            "unrecovered": total.counts["unrecovered"],
            "seen_offline": poller.seen["offline"],
            "seen": dict(poller.seen),
            "message_ms": total.latency_ms("push"),
            "reconnect_ms": total.latency_ms("connect"),
        },
    )


async def _drain(
    system: AccessSystem, node: AccessProcess, clients: Fleet, connections: int, *, over_s: float
) -> list[tuple[float, int]]:
    """Drain, and return how many had been told to move at which time (s), until all are gone or it takes too long."""
    url = f"{node.joined.url}/v1/admin/access/drain"
    began = perf_counter()
    await call_api("POST", url, credential=system.api_key, body={"over_ms": int(over_s * 1000)})
    seen = [(0.0, 0)]
    while seen[-1][0] < over_s + END_S:
        total = await clients.look()
        seen.append((perf_counter() - began, total.counts["told to move"]))
        if total.counts["told to move"] >= connections and not total.flying and not await _connections(node):
            break
        if len(seen) % 50 == 0:
            print(f"{seen[-1][0]:.0f} s: {seen[-1][1]} told to move, {total.open} connected", file=sys.stderr)
        await asyncio.sleep(LOOK_S)
    return seen


async def _until_arrived(clients: Fleet, sent: Report) -> Total:
    """Return how it is when every acknowledged message has arrived, or does not seem to do so any more."""
    for _ in range(100):
        total = await clients.look()
        if total.counts["received"] >= sent.counts.get("send done", 0):
            break
        await asyncio.sleep(LOOK_S)
    return total


async def _connections(node: AccessProcess) -> int:
    statistics = await call_api("GET", f"{node.joined.url}/debug/statistics")
    return int(statistics["connections"])


def _worst_second(seen: list[tuple[float, int]]) -> float:
    """Return the greatest rate over a second or the little more that two looks are apart."""
    worst, first = 0.0, 0
    for at, count in seen:
        while first + 1 < len(seen) and at - seen[first + 1][0] >= 1:
            first += 1
        began, before = seen[first]
        if at - began >= 1:
            worst = max(worst, (count - before) / (at - began))
    return worst


class _Poller:
    """Looks all users up again and again."""

    def __init__(self, system: AccessSystem, users: int) -> None:
        self.seen: Counter[str] = Counter()
        """How often which state."""
        self._url = f"{next(iter(system.system.endpoints.status.values()))}/v1/users/status"
        self._headers = {"Authorization": f"Bearer {system.api_key}"}
        self._users = [user_name(number) for number in range(users)]

    async def run(self) -> None:
        """Look until cancelled."""
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while True:
                for first in range(0, len(self._users), LOOKUP_USERS):
                    body = {"users": self._users[first : first + LOOKUP_USERS]}
                    async with session.post(self._url, json=body) as response:
                        statuses = (await response.json())["statuses"]
                    self.seen.update(status["state"] for status in statuses)
                    await asyncio.sleep(LOOK_S)
