"""CPU of a lookup and of a message as a cluster grows from one process to eight, of the dearer: ratio of 8 to 1.

Processes on a real Consul, found through it, on real sockets. Two series, each at a constant offered rate far below
saturation, so that the only thing that grows is the number of processes:

- status nodes: users are looked up in batches of 200, as the message services do it; CPU of all status nodes and of the
  asking process, a user. Beside, the same in batches of 1,000: what a request costs grows with the nodes, as a batch is
  a request to each of them; what a user costs does not.
- message services, with eight shards throughout: clients send each other messages; CPU of all message services, access
  nodes and status nodes, a message.

What the processes use while nothing is asked (heartbeats, Consul, pings) is measured apart, just before: the value is
without it, the details have both. Sizes take turns over several rounds, as the machine is not equally fast all the
time; each figure is the median of its rounds.

Beside, to tell what comes of the number of processes from what comes of each one's having less to do: one process with
as little to do as each of eight has, that is with an eighth of the users a batch and of the messages a second.

Beside: what the division into shards costs. The same messages with one shard and with eight, all in one process, as
many as it takes.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import msgspec

from base import loop
from bench.cluster_system import ClusterSystem, cluster_system
from bench.load.messenger import messenger
from bench.result import Options, Result, Series
from bench.status_node import opened
from status.client import StatusClient, StatusPublisher

__all__ = ["run"]

SPEC = ("RT-04",)  # rows of docs/spec-coverage.md

SIZES = (1, 2, 4, 8)
ROUNDS = 3
SECONDS = 6.0
IDLE_S = 4.0
WARM_UP_PART = 1.5
"""Of what is measured."""
SETTLE_S = 2.0
"""After the start, until what belongs to it is over."""
SHARDS = 8
USERS = 20_000
USERS_PER_S = 20_000
BATCH = 200
SHARE = 8
"""A share is what each of so many processes has to do."""
LOOKUPS = ((BATCH, USERS_PER_S), (1_000, USERS_PER_S))
"""Users a batch, and a second."""
LOOKUPS_OF_SHARE = ((BATCH // SHARE, USERS_PER_S // SHARE),)
CONNECTIONS = 400
MESSAGES_PER_S = 300
IN_FLIGHT = 400
LIMITS = (
    "access.accepts_per_second=0",
    "im.user_calls_per_second=100000",
    "im.user_calls_burst=100000",
    "im.device_calls_per_second=100000",
    "im.device_calls_burst=100000",
)
"""As few clients as there are play many more: the limits are kept, at what those would not reach."""


class Cost(msgspec.Struct, frozen=True):
    """What operations took, of so many."""

    operations: int
    seconds: float
    roles_s: dict[str, float]
    """CPU seconds of each role's processes."""
    idle: float
    """CPU seconds a second of all, while nothing was asked."""

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all."""
        return sum(self.roles_s.values())

    @property
    def whole_us(self) -> float:
        """CPU an operation."""
        return self.cpu_s / self.operations * 1e6

    @property
    def us(self) -> float:
        """The same without what is used anyway."""
        return (self.cpu_s - self.idle * self.seconds) / self.operations * 1e6


class _Meter:
    """CPU of roles' processes, and of this one, which asks."""

    def __init__(self, cluster: ClusterSystem, *roles: str) -> None:
        self.idle = 0.0
        self._cluster = cluster
        self._roles = roles
        self._before: dict[str, float] = {}
        self._begun = 0.0

    def begin(self) -> None:
        """Count from here on."""
        self._before, self._begun = self._now(), time.perf_counter()

    def turn(self) -> dict[str, float]:
        """Return what was used since, by role, and count from here on."""
        now = self._now()
        used = {role: now[role] - before for role, before in self._before.items()}
        self.begin()
        return used

    def is_idle(self) -> None:
        """What was used since is what is used anyway."""
        seconds = time.perf_counter() - self._begun
        self.idle = sum(self.turn().values()) / seconds

    def cost(self, operations: int) -> Cost:
        """Return what so many operations took since."""
        seconds = time.perf_counter() - self._begun
        return Cost(operations, seconds, self.turn(), self.idle)

    def _now(self) -> dict[str, float]:
        return {**{role: self._cluster.cpu_s(role) for role in self._roles}, "asking": time.process_time()}


def run(options: Options) -> Result:
    """Measure, see the module."""
    if options.quick:
        with cluster_system(status=2, im=2) as cluster:
            found = [{2: [cost]} for cost in loop.run(_lookups(cluster, 0.5, 0.5, LOOKUPS + LOOKUPS_OF_SHARE))]
            found += [{2: [cost]} for cost in _messages(cluster, 0.5, 0.5, OPEN, OPEN_OF_SHARE, CLOSED)]
    else:
        found = _series("lookups", SIZES, lambda nodes: _lookups_on(nodes, LOOKUPS))
        found += _series("lookups of a share", (1,), lambda nodes: _lookups_on(nodes, LOOKUPS_OF_SHARE))
        found += _series("messages", SIZES, lambda nodes: _messages_on(nodes, OPEN))
        found += _series("messages of a share", (1,), lambda nodes: _messages_on(nodes, OPEN_OF_SHARE))
        found += _series("shards", (1, SHARDS), _messages_in)
    users, users_in_large_batches, users_of_share, messages, messages_of_share, shards = found
    return Result(
        name="cluster_scale",
        value=max(_ratio(users), _ratio(messages)),
        unit=f"CPU of an operation on {max(users)} processes / on {min(users)}",
        goal=1.15,
        better="lower",
        details={
            "user_looked_up": {"batch": BATCH, **_shown(users)},
            "user_looked_up_in_large_batches": {"batch": LOOKUPS[1][0], **_shown(users_in_large_batches)},
            "users_per_s": USERS_PER_S,
            "message": _shown(messages),
            "messages_per_s": MESSAGES_PER_S,
            "one_process_with_a_share_of_eight": {
                "user_looked_up": _shown(users_of_share),
                "message": _shown(messages_of_share),
            },
            "one_process_by_shards": {
                str(count): {
                    "messages_per_s": round(median(one.operations / one.seconds for one in costs)),
                    "cpu_us": round(median(one.whole_us for one in costs), 1),
                }
                for count, costs in shards.items()
            },
        },
        series=Series(
            of="CPU of an operation / on the fewest",
            over="processes",
            lines={
                "a user looked up": _growth(users),
                "the same, large batches": _growth(users_in_large_batches),
                "a message": _growth(messages),
            },
        ),
    )


def _series(name: str, sizes: Sequence[int], measure: Callable[[int], Sequence[Cost]]) -> list[dict[int, list[Cost]]]:
    """Measure all sizes in turn, the smallest and the greatest next to each other.

    `measure` returns a cost for each kind of operation; there is a table for each, by size, with a cost for each round.
    """
    order = sorted(sizes, key=lambda size: min(size - sizes[0], sizes[-1] - size))
    rounds: list[tuple[int, Sequence[Cost]]] = []
    for size in (size for _ in range(ROUNDS) for size in order):
        costs = measure(size)
        rounds.append((size, costs))
        shown = ", ".join(f"{cost.us:.1f} us ({cost.whole_us:.1f} with what is used anyway)" for cost in costs)
        print(f"{name}, {size}: {shown}", file=sys.stderr)
    kinds = range(len(rounds[0][1]))
    return [{size: [costs[kind] for found, costs in rounds if found == size] for size in sizes} for kind in kinds]


def _us(costs: list[Cost]) -> float:
    return median(cost.us for cost in costs)


def _ratio(costs: dict[int, list[Cost]]) -> float:
    return round(_us(costs[max(costs)]) / _us(costs[min(costs)]), 3)


def _growth(costs: dict[int, list[Cost]]) -> list[tuple[float, float]]:
    least = _us(costs[min(costs)])
    return [(size, round(_us(costs[size]) / least, 3)) for size in sorted(costs)]


def _shown(costs: dict[int, list[Cost]]) -> dict[str, Any]:
    whole = {size: median(cost.whole_us for cost in found) for size, found in costs.items()}
    return {
        "ratio": _ratio(costs),
        "ratio_with_idle": round(whole[max(whole)] / whole[min(whole)], 3),
        "cpu_us": {str(size): round(_us(found), 2) for size, found in costs.items()},
        "cpu_us_with_idle": {str(size): round(us, 2) for size, us in whole.items()},
        "cpu_us_with_idle_by_role": {
            str(size): {
                role: round(median(cost.roles_s[role] / cost.operations * 1e6 for cost in found), 2)
                for role in found[0].roles_s
            }
            for size, found in costs.items()
        },
        "idle_cpu_percent": {str(size): round(median(cost.idle for cost in costs[size]) * 100, 2) for size in costs},
        "rounds_us": {str(size): [round(cost.us, 2) for cost in found] for size, found in costs.items()},
    }


# ---------------------------------------------------------------- lookups


def _lookups_on(nodes: int, loads: Sequence[tuple[int, int]]) -> list[Cost]:
    with cluster_system(status=nodes) as cluster:
        return loop.run(_lookups(cluster, SECONDS, IDLE_S, loads))


async def _lookups(
    cluster: ClusterSystem, seconds: float, idle_s: float, loads: Sequence[tuple[int, int]]
) -> list[Cost]:
    site = cluster.site("asking-1")
    client, publisher = StatusClient(site), StatusPublisher(site)
    meter = _Meter(cluster, "status")
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.run()) for one in (client, publisher)]
        await client.wait_ready()
        await publisher.wait_ready()
        await _fill(publisher)
        await asyncio.sleep(min(SETTLE_S, seconds))
        meter.begin()
        await asyncio.sleep(idle_s)
        meter.is_idle()
        costs = []
        for batch, users_per_s in loads:
            meter.begin()
            costs.append(meter.cost(await _ask(client, batch, users_per_s, seconds)))
        for task in running:
            task.cancel()
    await site.registry.close()
    return costs


async def _fill(publisher: StatusPublisher) -> None:
    for begin in range(0, USERS, 1_000):
        for number in range(begin, begin + 999):
            publisher.report(opened(number))
        assert await publisher.open(opened(begin + 999), deadline_ms=60_000)


async def _ask(client: StatusClient, batch: int, users_per_s: int, seconds: float) -> int:
    """Send batches by a schedule that waits for nobody; half of the users are online. Return how many were asked."""
    rng, begun = random.Random(1), time.perf_counter()
    rate = users_per_s / batch

    async def look(users: list[str]) -> None:
        states = {status.state for status in (await client.lookup(users)).values()}
        assert states == {"online", "offline"}, states

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * rate)):
            users = [opened(rng.randrange(2 * USERS)).user for _ in range(batch)]
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            tasks.create_task(look(users))
    return int(seconds * rate) * batch


# ---------------------------------------------------------------- messages


OPEN = ("open", MESSAGES_PER_S)
OPEN_OF_SHARE = ("open", MESSAGES_PER_S / SHARE)
CLOSED = ("closed", IN_FLIGHT)


def _messages_on(nodes: int, order: tuple[str, float]) -> list[Cost]:
    with cluster_system((f"im.shards={SHARDS}", *LIMITS), im=nodes) as cluster:
        return _messages(cluster, SECONDS, IDLE_S, order)


def _messages_in(shards: int) -> list[Cost]:
    with cluster_system((f"im.shards={shards}", *LIMITS)) as cluster:
        return _messages(cluster, SECONDS, IDLE_S, CLOSED)


def _messages(cluster: ClusterSystem, seconds: float, idle_s: float, *orders: tuple[str, float]) -> list[Cost]:
    """Return what messages take, by each order: at a rate, or with so many under way that the server is never idle."""
    meter = _Meter(cluster, "im", "access", "status")

    def measured(kind: str, amount: float) -> Cost:
        # Conversations are there when the warm-up is over, most of them.
        run, _, cost = clients.run(kind, amount, WARM_UP_PART * seconds, seconds, count=meter.turn)
        assert not run.errors
        assert not run.gaps
        return Cost(run.done, run.seconds, cost, meter.idle)

    (websocket,) = cluster.websockets
    with messenger(websocket, CONNECTIONS, cluster.ticket_key) as clients:
        time.sleep(min(SETTLE_S, seconds))
        meter.begin()
        time.sleep(idle_s)
        meter.is_idle()
        return [measured(*order) for order in orders]
