"""From asking the scheduler to the first message in the other client's hands, fresh clients, one process: p99 in ms.

Each of 200 clients is new: it asks `GET /v1/access` over a new connection, connects with the stock SDK, sends one
message to a receiver that is online, and the clock stops when the receiver's handler has it. One after the other, so
that the figure is latency and not queueing; clients and server share the machine. `details` splits the time at the
borders between the steps.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter

import centrifuge

from bench.result import Options, Result, percentile
from roadstead.api import call_api
from roadstead.client import Client, Incoming
from roadstead.local import System, running_system

__all__ = ["run"]

CLIENTS = 200
WARM_UP = 20


def run(options: Options) -> Result:
    """Measure, see the module."""
    clients = 20 if options.quick else CLIENTS
    with running_system() as system:
        steps = asyncio.run(_measure(system, clients))
    totals = sorted(sum(step) for step in steps)
    names = ("ask_ms", "connect_ms", "deliver_ms")
    split = {name: round(percentile(sorted(s[i] for s in steps), 50) * 1000, 2) for i, name in enumerate(names)}
    return Result(
        name="first_message",
        value=round(percentile(totals, 99) * 1000, 2),
        unit="ms (p99)",
        goal=50,
        better="lower",
        details={
            "clients": clients,
            "p50_ms": round(percentile(totals, 50) * 1000, 2),
            "max_ms": round(totals[-1] * 1000, 2),
            "median_of_steps": split,
        },
    )


async def _measure(system: System, clients: int) -> list[tuple[float, float, float]]:
    key = system.data.secrets().api_key
    arrived: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    async def take(incoming: Incoming) -> None:
        arrived.put_nowait((incoming.data["client_msg_id"], perf_counter()))

    receiver = Client(system.scheduler, user="receiver", credential=key, on_message=take)
    await receiver.connect()
    steps = []
    for number in range(WARM_UP + clients):
        step = await _first_message(system.scheduler, key, f"fresh-{number}", arrived)
        if number >= WARM_UP:
            steps.append(step)
        if number % 50 == 0:
            print(f"client {number}: {sum(step) * 1000:.1f} ms", file=sys.stderr)
    await receiver.close()
    return steps


async def _first_message(
    scheduler: str, key: str, user: str, arrived: asyncio.Queue[tuple[str, float]]
) -> tuple[float, float, float]:
    started = perf_counter()
    answer = await call_api("GET", f"{scheduler}/v1/access", credential=key, params={"user": user})
    asked = perf_counter()
    sdk = centrifuge.Client(answer["candidates"][0]["urls"]["websocket"], token=answer["ticket"], proxy=None)
    await sdk.connect()
    await sdk.ready()
    connected = perf_counter()
    await sdk.rpc("im.send", {"to": "receiver", "client_msg_id": user, "body": "hello"})
    async with asyncio.timeout(10):
        message, at = await arrived.get()
    assert message == user
    await sdk.disconnect()
    return asked - started, connected - asked, at - connected
