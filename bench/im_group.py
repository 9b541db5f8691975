"""A message to a group of 10,000, all online: from the send to the last delivery, in ms.

The whole way over real sockets: a member sends over its connection, the message is made durable with one row, an access
node is told once, and writes it to its connections; two access nodes in processes of their own, and what else `up` runs
in a third. The load generator's two processes hold the members, who subscribe to the conversation; a third one has
single chats, whose senders and receivers are on the same access nodes. All share the machine, so the time is also the
generator's; `services_us` and `access_us` are the servers' alone.

The value is the median over messages that are sent one at a time. The details have what a message costs the store by
strategy and size (`bench.store_costs`); groups with write fan-out, whose entries go over the members' inboxes; how late
single chats are when nothing else happens, when a message goes to the group every second, and when the next one leaves
as soon as the last one is delivered; and the arithmetic of telling members one by one (`bench.push_arithmetic`).

While 10,000 clients on two cores read what they get, single chats wait for them more than for the servers. So there is
a fourth run, in which the members' processes are stopped: what goes to them waits in their sockets, and is counted
afterwards.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import msgspec

from base import loop
from base.ids import new_uuid
from bench.access_system import AccessSystem, access_system
from bench.load.fleet import Fleet, Total, fleet
from bench.load.wire import Clear, Open, Send, Subscribe, user_name
from bench.process import cpu_s
from bench.push_arithmetic import needed, pushes, slept_ms, virtual_ms, waited_ms
from bench.result import Options, Result, percentile
from bench.rpc import RpcClient, rpc_client
from bench.store_costs import MEASURED, store_costs
from im.core.book import DIRECT_MAX
from roadstead.api import call_api

__all__ = ["run"]

SPEC = ("FO-09", "RT-03")  # rows of docs/spec-coverage.md

MEMBERS = 10_000
NODES = 2
WRITTEN = (10, 100, 500)
"""Sizes of groups with write fan-out."""
INVITED = 1_000
MESSAGES = 20
SUBSCRIBES_A_SECOND = 400
"""Of each load process. Each is a call to the message services, which refuse what is too much at once."""
PAD = "x" * 64
SINGLES = 200
SINGLES_A_SECOND = 200
SECONDS = 10.0
RUNS: tuple[tuple[str, float | None, bool], ...] = (
    ("idle", None, False),
    ("a_message_a_second", 1.0, False),
    ("one_after_the_other", 0.0, False),
    ("members_stopped", 0.2, True),
)
"""How often a message goes to the group, and whether its members are stopped. With 10,000 of them, 0.2 s is half a core
of writing."""
POLL_S = 0.01
LAST_DEADLINE_S = 30.0
T_ONE_MS = 2.0
T_TOTAL_MS = 10.0
SCALE = 10
"""A pool of 2,000 workers waits ten times as long as it should, since its event loop is no tenth of a millisecond."""
SETTINGS = (
    "access.ping_interval_ms=3600000",
    "im.user_calls_per_second=0",
    "im.device_calls_per_second=0",
    "im.conversation_calls_per_second=0",
)


class Pushed(msgspec.Struct, frozen=True):
    """One message to a group: times from when it was sent."""

    acked_ms: float
    first_ms: float
    median_ms: float
    last_ms: float
    services_us: float
    """CPU of the process with the message services, for the message; without what it takes when nothing happens."""
    access_us: float
    """CPU of the access nodes, for each delivery; likewise."""


def run(options: Options) -> Result:
    """Measure, see the module."""
    members = options.connections or (300 if options.quick else MEMBERS)
    if members <= DIRECT_MAX:
        raise ValueError(f"a group of up to {DIRECT_MAX} is told directly; take more --connections")
    arithmetic = _arithmetic(quick=options.quick)
    costs = [
        msgspec.structs.asdict(store_costs(fan_out, size, messages=4 if options.quick else 20))
        for fan_out, size in MEASURED
        if not options.quick or size <= 500
    ]
    _say("the store is measured")
    measured = loop.run(_measure(members, quick=options.quick))
    return Result(
        name="im_group",
        value=measured["push"]["last_ms"]["p50"],
        unit="ms to the last delivery (median)",
        goal=1_000,
        better="lower",
        details={"members": members, "access_nodes": NODES, **measured, "store": costs, "arithmetic": arithmetic},
    )


class _Bench:
    """A running system, its members and its single chats."""

    def __init__(self, system: AccessSystem, workers: Fleet, sender: RpcClient) -> None:
        self._system = system
        self.members = Fleet(workers.workers[:-1])
        self.singles = Fleet(workers.workers[-1:])
        self._sender = sender
        self._idle = (0.0, 0.0)
        """Cores that the services' process and the access nodes take when nothing happens."""
        (self._im,) = system.system.endpoints.im.values()

    async def rest(self, seconds: float) -> dict[str, float]:
        """See what the servers take when nothing happens."""
        before = self._cpu_s()
        await asyncio.sleep(seconds)
        services, access = ((now - then) / seconds for now, then in zip(self._cpu_s(), before, strict=True))
        self._idle = (services, access)
        return {"services_cores": round(services, 4), "access_cores": round(access, 4)}

    async def push(self, cid: str, size: int) -> Pushed:
        """Send a message to a group, and return when its last member has it."""
        await self.members.all(Clear())
        before = self._cpu_s()
        began = time.monotonic_ns()
        await self._send(cid)
        acked_ms = (time.monotonic_ns() - began) / 1e6
        total = await self._received(size)
        took_s = (time.monotonic_ns() - began) / 1e9
        services_s, access_s = (
            now - then - idle * took_s for now, then, idle in zip(self._cpu_s(), before, self._idle, strict=True)
        )
        times = total.latencies["push"]
        return Pushed(
            acked_ms=acked_ms,
            first_ms=times.percentile(0) / 1000,
            median_ms=times.percentile(50) / 1000,
            last_ms=times.percentile(100) / 1000,
            services_us=services_s * 1e6,
            access_us=access_s / size * 1e6,
        )

    async def push_many(self, cid: str, size: int, count: int) -> dict[str, Any]:
        """Send so many, one at a time, and return what they have in common."""
        await self.push(cid, size)  # warms up
        before = self._calls()
        pushed = [await self.push(cid, size) for _ in range(count)]
        told = {name: round((now - before[name]) / count, 2) for name, now in self._calls().items()}
        _say(f"a message to {size}: the last one has it after {pushed[-1].last_ms:.1f} ms")
        return {**_summary(pushed), "size": size, "pushed_a_message": told}

    async def single_chats(
        self, cid: str, size: int, seconds: float, *, every_s: float | None, stopped: bool = False
    ) -> dict[str, Any]:
        """Return how late single chats are while messages go to the group, or none (None).

        Args:
            cid: the group.
            size: how many are in it.
            seconds: how long the chats go on.
            every_s: from one message to the next, or longer: no message leaves before the last one is delivered.
            stopped: the members are stopped, and so nobody waits for that.
        """
        await self.singles.all(Clear())
        await self.members.all(Clear())
        order = Send(rate=SINGLES_A_SECOND, seconds=seconds, first=size + 1, count=SINGLES)
        pushed = 0
        with ExitStack() as stack:
            if stopped:
                stack.enter_context(self.members.frozen())
            async with asyncio.TaskGroup() as tasks:
                chats = tasks.create_task(self.singles.all(order))
                while every_s is not None and not chats.done():
                    began = time.monotonic()
                    await (self._send(cid) if stopped else self.push(cid, size))
                    pushed += 1
                    await asyncio.wait([chats], timeout=max(0.0, began + every_s - time.monotonic()))
        total = chats.result()
        assert not total.counts["send unanswered"], total.counts
        assert not total.counts["gaps"], total.counts
        if stopped:
            await self._received(pushed * size)
        _say(f"single chats while {pushed} messages go to the group: {total.latency_ms('push')}")
        return {"group_messages": pushed, "delivery_ms": total.latency_ms("push"), "ack_ms": total.latency_ms("send")}

    async def _send(self, cid: str) -> None:
        body = {"at_ns": time.monotonic_ns(), "pad": PAD}
        await self._sender.call("im.send", {"cid": cid, "client_msg_id": new_uuid(), "body": body})

    async def _received(self, count: int) -> Total:
        """Wait until the members have received so many."""
        async with asyncio.timeout(LAST_DEADLINE_S):
            total = await self.members.look()
            while total.counts["received"] < count:
                await asyncio.sleep(POLL_S)
                total = await self.members.look()
        assert total.counts["received"] == count, total.counts
        return total

    def _cpu_s(self) -> tuple[float, float]:
        return cpu_s(self._system.system.endpoints.pid), sum(node.child.cpu_s() for node in self._system.nodes)

    def _calls(self) -> dict[str, float]:
        """Return how many entries of timelines, and messages of conversations, access nodes were told so far."""
        with urllib.request.urlopen(f"{self._im}/metrics") as answer:  # noqa: S310 - our own
            text = answer.read().decode()
        found = {}
        for name, metric in (("timeline_entries", "im_pushes"), ("conversation_messages", "im_conversation_pushes")):
            sample = re.search(rf"^roadstead_{metric}_total{{.*}} (\S+)$", text, re.MULTILINE)
            assert sample is not None, metric
            found[name] = float(sample.group(1))
        return found


async def _measure(members: int, *, quick: bool) -> dict[str, Any]:
    messages, seconds = (3, 0.7) if quick else (MESSAGES, SECONDS)
    async with AsyncExitStack() as stack:
        system = stack.enter_context(access_system(NODES, *SETTINGS))
        groups = {size: await _group(system, size) for size in WRITTEN if size < members}
        groups[members] = await _group(system, members, reads=True)
        urls = [node.websocket for node in system.nodes]
        workers = await stack.enter_async_context(fleet(3, ticket_key=system.ticket_key))
        sender = await stack.enter_async_context(rpc_client(system.system, urls[0], user_name(0), device="sender"))
        bench = _Bench(system, workers, sender)
        await _open(bench.members, Open(urls=urls, first=0, count=members, rate=1_500))
        await _open(bench.singles, Open(urls=urls, first=members, count=SINGLES, rate=1_500))
        total = await bench.members.all(Subscribe(channel=f"conv:{groups[members]}", rate=SUBSCRIBES_A_SECOND))
        assert total.counts["subscribe done"] == members, total.counts
        _say(f"{members} members are there")
        idle_cores = await bench.rest(seconds)
        push = await bench.push_many(groups[members], members, messages)
        written = [await bench.push_many(groups[size], size, messages) for size in WRITTEN if size < members]
        chats = {}
        for name, every_s, stopped in RUNS:
            chats[name] = await bench.single_chats(groups[members], members, seconds, every_s=every_s, stopped=stopped)
    idle = chats["idle"]["delivery_ms"]["p99"]
    return {
        "idle": idle_cores,
        "push": push,
        "write_fan_out": written,
        "single_chats_a_second": SINGLES_A_SECOND,
        "single_chats": chats,
        "single_chats_p99_ratio": {name: round(one["delivery_ms"]["p99"] / idle, 2) for name, one in chats.items()},
        "single_chats_p99_ratio_goal": 2,
        "stages": _stages(push, members),
    }


def _stages(push: dict[str, Any], members: int) -> dict[str, Any]:
    """Return what a core does in each stage, and how often one message a second to the group fits into that."""
    services_us, access_us = push["services_us"]["p50"], push["access_us"]["p50"]
    return {
        "store_and_push": {
            "messages_a_second_a_core": round(1e6 / services_us),
            "p99_ms": push["acked_ms"]["p99"],
            "headroom": round(1e6 / services_us, 1),
        },
        "access": {
            "deliveries_a_second_a_core": round(1e6 / access_us),
            "p99_ms": push["last_ms"]["p99"],
            "headroom": round(1e6 / access_us / members, 1),
        },
    }


async def _group(system: AccessSystem, size: int, *, reads: bool = False) -> str:
    """Make a group of the first users and return its cid; `reads`: with read fan-out, however few they are."""
    (im,) = system.system.endpoints.im.values()
    owner, users = user_name(0), [user_name(number) for number in range(1, size)]

    async def post(path: str, arguments: Any) -> Any:
        url = f"{im}/v1/{path}"
        return await call_api("POST", url, credential=system.api_key, body=arguments, deadline_s=LAST_DEADLINE_S)

    async def call(method: str, arguments: Any) -> Any:
        return await post(f"users/{owner}/im/{method}", arguments)

    arguments = {"client_msg_id": f"group-{size}", "name": f"of {size}", "members": users[:INVITED]}
    made = await call("group_create", arguments)
    for first in range(INVITED, len(users), INVITED):
        arguments = {"cid": made["cid"], "action": "invite", "users": users[first : first + INVITED]}
        made = await call("group_change", arguments)
    cid: str = made["cid"]
    if reads:
        await post(f"conversations/{cid}/changes", {"action": "fan_out", "value": "read"})
    return cid


async def _open(clients: Fleet, order: Open) -> None:
    total = await clients.open(order)
    assert total.open == order.count, total.counts


def _arithmetic(*, quick: bool) -> dict[str, Any]:
    """Return what one worker after the other, and 2,000 of them, make of 10,000 members."""
    one_by_one = 100 if quick else MEMBERS
    workers = needed(MEMBERS, T_TOTAL_MS, T_ONE_MS)
    _say(f"one worker sleeps {one_by_one} times {T_ONE_MS:g} ms")
    slept = slept_ms(one_by_one, T_ONE_MS) / one_by_one * MEMBERS
    waited = sorted(loop.run(waited_ms(MEMBERS, workers, T_ONE_MS * SCALE)) for _ in range(1 if quick else 5))
    return {
        "pushes": MEMBERS,
        "one_push_ms": T_ONE_MS,
        "one_worker_virtual_ms": virtual_ms(MEMBERS, 1, T_ONE_MS),
        "one_worker_real_ms": round(slept),
        "one_worker_real_pushes": one_by_one,
        "wanted_ms": T_TOTAL_MS,
        "workers_needed": workers,
        "needed_virtual_ms": virtual_ms(MEMBERS, workers, T_ONE_MS),
        "needed_real_ms_scaled": round(percentile(waited, 50) / SCALE, 1),
        "needed_real_scale": SCALE,
        "calls_by_access_nodes": {str(nodes): pushes(MEMBERS, nodes, batch_max=MEMBERS) for nodes in (1, 2, 10, 100)},
        "one_worker_by_access_nodes_ms": {str(nodes): virtual_ms(nodes, 1, T_ONE_MS) for nodes in (1, 2, 10, 100)},
    }


def _summary(pushed: Sequence[Pushed]) -> dict[str, Any]:
    summary = {}
    for field in Pushed.__struct_fields__:
        values = sorted(getattr(one, field) for one in pushed)
        summary[field] = {f"p{p}": round(percentile(values, p), 2) for p in (50, 99)}
    return summary


def _say(text: str) -> None:
    print(text, file=sys.stderr)
