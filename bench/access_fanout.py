"""CPU of one push to 10,000 connections, beside a C program's loop of send() on as many sockets: our CPU / its.

A push is a WebSocket frame with 124 bytes. Three senders take turns, round by round, so that whatever the machine does
meanwhile happens to all of them, and ratios are taken within a round: the C program; the write path alone, one frame
that was encoded before, written to every connection of the production class; and a whole access node, to which a
backend publishes over HTTP, in a channel that all 10,000 are subscribed to, so with taking the request, finding the
subscribers and encoding. The value is the second one's ratio, the third one's is in the details; its goal is 1.5.

Receivers are processes of their own, which are stopped while a round is sent: one that reads at the same time makes a
send cost what it costs to wake it up, or not, as the machine's scheduler likes. Then they go on, and a round begins
when all bytes of the one before it have arrived. Only the senders' CPU is counted, user and system.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.access_system import access_system
from bench.load.fleet import Fleet, fleet
from bench.load.wire import Clear, Deafen, Kind, Open, Subscribe
from bench.process import Child, child
from bench.result import Comparison, Options, Result
from roadstead.api import call_api

__all__ = ["run"]

SPEC = ("RT-04",)  # rows of docs/spec-coverage.md

CONNECTIONS = 10_000
ROUNDS = 40
PAYLOAD_BYTES = 124
HEADER_BYTES = 2
PING_BYTES = 4
PINGS_MAX = 10
OURS = ("write", "node")
CHANNEL = "bench"
LOOKS_MAX = 1_000
POLL_S = 0.02
SETTLE_S = 0.1
IDLE_CORES = 0.03
"""A busy sender takes many times that, an idle node a fifth."""
SETTINGS = (
    "access.ping_interval_ms=3600000",
    "access.pong_deadline_ms=3000000",  # receivers that do not read do not answer
    'access.namespaces=[{"allow_subscribe": "anyone"}]',
)
PAD_BYTES = 48
"""Of what is published, so that the push has as many bytes."""


def run(options: Options) -> Result:
    """Measure, see the module."""
    connections = options.connections or (300 if options.quick else CONNECTIONS)
    rounds = 5 if options.quick else ROUNDS
    cpu_us = asyncio.run(_measure(connections, rounds))
    ratios = {name: median(ours / c for ours, c in zip(cpu_us[name], cpu_us["c"], strict=True)) for name in OURS}
    us_per_push = {name: round(median(seen), 3) for name, seen in cpu_us.items()}
    quartiles = sorted(cpu_us["c"])
    return Result(
        name="access_fanout",
        value=round(ratios["write"], 3),
        unit="our CPU / C send() loop's",
        goal=1.25,
        better="lower",
        details={
            "connections": connections,
            "rounds": rounds,
            "node_ratio": round(ratios["node"], 3),
            "node_ratio_goal": 1.5,
            "us_per_push": us_per_push,
            "noise": round(quartiles[3 * rounds // 4] / quartiles[rounds // 4], 3),
        },
        comparison=Comparison(
            unit="us of CPU a push",
            better="lower",
            ours=us_per_push["write"],
            others={"a whole access node of ours": us_per_push["node"], "send() loop in C": us_per_push["c"]},
            what="our write path",
        ),
    )


async def _measure(connections: int, rounds: int) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="send-loop-")))
        c = stack.enter_context(child([_compiled(folder), str(connections), str(PAYLOAD_BYTES)]))
        write = stack.enter_context(child([sys.executable, "-m", "bench.fanout_server", str(PAYLOAD_BYTES)]))
        system = stack.enter_context(access_system(1, *SETTINGS))
        receivers = await stack.enter_async_context(fleet(3, ticket_key=system.ticket_key))
        of_c, of_write, of_node = (Fleet([worker]) for worker in receivers.workers)
        (node,) = system.nodes
        await _open(of_c, f"tcp://127.0.0.1:{int(c.said)}", Kind.TCP, connections)
        await _open(of_write, f"ws://127.0.0.1:{int(write.said)}", Kind.WEBSOCKET, connections)
        await _open(of_node, node.websocket, Kind.SESSION, connections)
        total = await of_node.all(Subscribe(channel=CHANNEL))
        assert total.counts["subscribe done"] == connections, total.counts
        await of_node.all(Deafen())

        async def publish() -> None:
            body = {"channel": CHANNEL, "data": {"pad": "x" * PAD_BYTES}}
            await call_api("POST", f"{node.joined.url}/v1/channels/publish", credential=system.api_key, body=body)

        async def tell(server: Child) -> None:
            server.tell()

        cpu_us: dict[str, list[float]] = {"c": [], "write": [], "node": []}
        for number in range(-1, rounds):
            for name, server, fleet_, send in (
                ("c", c, of_c, lambda: tell(c)),
                ("write", write, of_write, lambda: tell(write)),
                ("node", node.child, of_node, publish),
            ):
                spent = await _round(server, fleet_, send, connections)
                if number >= 0:  # the first one warms up
                    cpu_us[name].append(spent)
            if number % 10 == 0:
                print(f"round {number}: {', '.join(f'{k} {v[-1]:.2f} us' for k, v in cpu_us.items())}", file=sys.stderr)
        return cpu_us


async def _open(receivers: Fleet, url: str, kind: Kind, count: int) -> None:
    total = await receivers.open(Open(urls=[url], first=0, count=count, kind=kind, rate=1_500))
    assert total.open == count, total.counts
    print(f"{count} connections to {url}", file=sys.stderr)


async def _round(server: Child, receivers: Fleet, send: Callable[[], Awaitable[None]], connections: int) -> float:
    """Return the CPU of one push to one connection, in us."""
    await receivers.all(Clear())
    with receivers.frozen():
        before = server.cpu_s()
        await send()
        spent_s = await _settled(server) - before
    wanted = connections * (PAYLOAD_BYTES + HEADER_BYTES)
    for _ in range(LOOKS_MAX):
        seen = (await receivers.look()).counts["bytes"]
        if seen >= wanted:
            break
        await asyncio.sleep(POLL_S)
    # A client that is new may be pinged once, however rarely that is.
    assert 0 <= seen - wanted <= PINGS_MAX * PING_BYTES, f"{seen} bytes instead of {wanted}"
    return spent_s / connections * 1e6


async def _settled(server: Child) -> float:
    """Return the CPU seconds of a process when it does nothing any more but what it does anyway."""
    before, now = -1.0, server.cpu_s()
    while now - before > IDLE_CORES * SETTLE_S:
        await asyncio.sleep(SETTLE_S)
        before, now = now, server.cpu_s()
    return now


def _compiled(folder: Path) -> str:
    """Compile the C program and return its path."""
    program = folder / "send_loop"
    source = Path(__file__).with_name("send_loop.c")
    subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    return str(program)
