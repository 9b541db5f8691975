"""Connections held on one machine, by as many access processes as it takes: `--connections 1000000`, by default 20,000.

Each access process and each load process has at most 19,000 of them, as a process may open 20,000 files. Scheduler,
status node and message service share one process of their own. Every client is authenticated, is pinged every 25 s, is
online at the status node and has its inbox. After each step it is told how it is, and it stops early when the machine's
memory is at its end; then what was held is the result. When all are there, they are held for two rounds of pings, in
which the round trip of a small command is measured from clients in turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from bench.access_system import AccessSystem, access_system
from bench.load.fleet import WORKER_CONNECTIONS_MAX, Fleet, Total, fleet
from bench.load.wire import Clear, Look, Open, Probe
from bench.process import KernelMemory, cpu_s, kernel_memory, resident_bytes
from bench.result import Options, Result, Series

__all__ = ["run"]

CONNECTIONS = 20_000
RATE = 3_000
IN_FLIGHT = 400
STEP_DEADLINE_S = 180
PING_MS = 25_000
HOLD_S = 2 * PING_MS / 1000
PROBES_PER_S = 200
AVAILABLE_MIN = 1_500_000_000
MB = 1_000_000


def run(options: Options) -> Result:
    """Measure, see the module."""
    connections = options.connections or (1_000 if options.quick else CONNECTIONS)
    return asyncio.run(_measure(connections, hold_s=3.0 if options.quick else HOLD_S))


async def _measure(connections: int, *, hold_s: float) -> Result:
    processes = -(-connections // WORKER_CONNECTIONS_MAX)
    async with AsyncExitStack() as stack:
        kernel = kernel_memory()
        system = stack.enter_context(access_system(processes, f"access.ping_interval_ms={PING_MS}"))
        clients = await stack.enter_async_context(fleet(processes, ticket_key=system.ticket_key))
        watch = _Watch(system, clients, kernel)
        started = await watch.tell("started")
        began = perf_counter()
        steps = await _open(watch, connections)
        opening_s = perf_counter() - began
        total = await clients.look()
        connect_ms = total.latency_ms("connect")
        await clients.all(Clear())
        await watch.tell("held from now on")
        await clients.all(Probe(rate=PROBES_PER_S / processes, seconds=hold_s))
        total = await clients.look()
        held = await watch.tell("held")
    return Result(
        name="access_million",
        value=total.open,
        unit="connections",
        goal=connections,
        better="higher",
        details={
            "processes": processes,
            "opened_per_s": round(total.open / opening_s),
            "connect_ms": connect_ms,
            "round_trip_ms": total.latency_ms("probe"),
            "bytes_per_connection": {
                what: round((held[f"{what}_mb"] - started[f"{what}_mb"]) * MB / max(1, total.open))
                for what in ("servers", "rest", "clients", "kernel")
            },
            "started": started,
            "held": held,
            "steps": steps,
            "counts": dict(total.counts),
        },
        series=Series(
            of="memory, MB",
            over="connections",
            lines={
                what: [(step["open"], step[f"{name}_mb"]) for step in (started, *steps)]
                for name, what in (("servers", "access nodes"), ("rest", "the other services"), ("kernel", "kernel"))
            },
        ),
    )


async def _open(watch: _Watch, connections: int) -> list[dict[str, Any]]:
    """Open them process by process, and return how it was after each.

    Not a few in each at a time: two cores that switch between a hundred processes do little else, and open a third.
    """
    steps = []
    for number, (worker, node) in enumerate(zip(watch.clients.workers, watch.system.nodes, strict=True)):
        if kernel_memory().available < AVAILABLE_MIN:
            print("the machine's memory is at its end", file=sys.stderr)
            break
        first = number * WORKER_CONNECTIONS_MAX
        count = min(WORKER_CONNECTIONS_MAX, connections - first)
        order = Open(
            urls=[node.websocket],
            first=first,
            count=count,
            rate=RATE,
            in_flight=IN_FLIGHT,
            deadline_s=STEP_DEADLINE_S,
        )
        total = await Fleet([worker]).open(order)
        steps.append(await watch.tell("opened"))
        if total.open < count:
            print(f"not all could be opened: {dict(total.counts)}", file=sys.stderr)
            break
    return steps


class _Watch:
    """Looks at all processes and the kernel, and says how it is since it looked last."""

    def __init__(self, system: AccessSystem, clients: Fleet, kernel: KernelMemory) -> None:
        self.system = system
        self.clients = clients
        self._kernel = kernel
        self._at = perf_counter()
        self._cpu: dict[str, float] = {}

    async def tell(self, what: str) -> dict[str, Any]:
        """Say on standard error what was done and how it is now, and return that."""
        total = await self.clients.all(Look())
        now = perf_counter()
        spent_s, self._at = now - self._at, now
        cpu = {
            "servers": sum(node.child.cpu_s() for node in self.system.nodes),
            "rest": cpu_s(self.system.system.endpoints.pid),
            "clients": total.cpu_s,
        }
        cores = {f"{name}_cores": round((seen - self._cpu.get(name, seen)) / spent_s, 3) for name, seen in cpu.items()}
        self._cpu = cpu
        seen = {"open": total.open, "seconds": round(spent_s, 1), **cores, **self._memory(total)}
        print(f"{what}: {json.dumps(seen)}", file=sys.stderr, flush=True)
        return seen

    def _memory(self, total: Total) -> dict[str, int]:
        kernel = kernel_memory()
        slab, buffers = kernel.slab - self._kernel.slab, kernel.tcp_buffers - self._kernel.tcp_buffers
        return {
            "servers_mb": sum(node.child.resident() for node in self.system.nodes) // MB,
            "rest_mb": resident_bytes(self.system.system.endpoints.pid) // MB,
            "clients_mb": total.resident // MB,
            "kernel_mb": (slab + buffers) // MB,
            "tcp_buffers_mb": buffers // MB,
            "tcp_sockets": kernel.tcp_sockets,
            "available_mb": kernel.available // MB,
        }
