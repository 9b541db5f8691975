"""Operations that fail while Consul is gone for a minute and when it is back, for a cluster of processes under load.

Status nodes, access nodes, message services and schedulers are processes of their own; connected clients send each
other messages, users are looked up at every status node, and at every scheduler clients ask where to connect and do so.
Then Consul is killed, and started again after a minute, when it takes everybody's registration for lapsed. A failure is
a lookup that is refused or says anything but that a connected user is online, a send without an acknowledgement, an
assignment or a connection that does not come, a connection that is closed.

Meanwhile operators try what the registry is needed for: each order must be refused, with a reason that names the
registry. Afterwards nobody does anything but wait: how long until all are registered again, and until each of these
orders works. What fails while these are carried out is told apart and not in the value: a shard that moves refuses
sends for a moment, with an error after which clients try again, as the ones here do not.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from base.errors import RoadsteadError, from_wire
from base.registry import Registry
from bench.cluster_system import ClusterSystem, cluster_system
from bench.load.fleet import Fleet, fleet
from bench.load.histogram import Histogram
from bench.load.wire import Open, Send, user_name
from bench.result import Options, Result
from roadstead.api import call_api
from roadstead.client import Client

__all__ = ["run"]

SENDS_PER_S = 50
LOOKUPS_PER_S = 30
LOOKUP_USERS = 50
ASSIGNMENTS_PER_S = 20
CONNECTS_PER_S = 2
UNDER_WAY_MAX = 200
RECOVERY_S_MAX = 60.0
MOVE_S_MAX = 10.0
LOOK_S = 0.05
CONSUL = "consul-1"
COUNTS = {"scheduler": 2, "status": 3, "access": 2, "im": 2}
BAD = ("send ", "closed ", "gaps", "duplicates", "unrecovered", "refused ", "unreachable", "error ", "timed out")
"""How counts of connected clients begin that should be 0."""
PHASES = ("before", "during", "back", "orders")
"""Before the outage, during it, when Consul is back, and while orders are given that change the cluster."""
ROLLOUT = """
rollout: {name}
pool: {{version: none-has-{name}}}
steps: [{{percent: 0, hold: 1h}}, {{pause: manual}}, {{percent: 100}}]
"""


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long each phase is."""

    clients: int = 200
    settings: tuple[str, ...] = ()
    before_s: float = 10.0
    outage_s: float = 60.0
    back_s: float = 15.0
    """Longer than a registration lasts: whoever is taken for dead by then would be treated so."""
    orders_s: float = 15.0


# So short that an outage of a few seconds is one in which all registrations lapse.
_QUICK = _Plan(
    clients=40,
    settings=("node.registration_ttl_ms=3000",),
    before_s=0.5,
    outage_s=4.0,
    back_s=3.0,
    orders_s=1.0,
)


def run(options: Options) -> Result:
    """Measure, see the module."""
    plan = _QUICK if options.quick else _Plan()
    if options.connections is not None:
        plan = msgspec.structs.replace(plan, clients=options.connections)
    return asyncio.run(_measure(plan))


async def _measure(plan: _Plan) -> Result:
    async with AsyncExitStack() as stack:
        cluster = stack.enter_context(cluster_system(plan.settings, **COUNTS))
        connected = await stack.enter_async_context(fleet(1, ticket_key=cluster.ticket_key))
        order = Open(urls=cluster.websockets, first=0, count=plan.clients, rate=100, reconnects=True)
        opened = await connected.open(order)
        assert opened.open == plan.clients, opened.counts
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)))
        load = _Load(cluster, connected, http, plan.clients)
        operator = _Operator(cluster)
        await operator.create_rollout("known")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(load.run(plan.before_s + plan.outage_s + plan.back_s + plan.orders_s))
            await load.begin("before")
            await asyncio.sleep(plan.before_s)
            await load.begin("during")
            cluster.process.kill(CONSUL)
            _say("Consul is killed")
            begun = perf_counter()
            await asyncio.sleep(plan.outage_s / 3)
            refusals = await operator.try_all()
            await asyncio.sleep(max(0.0, plan.outage_s - (perf_counter() - begun)))
            await load.begin("back")
            begun = perf_counter()
            await asyncio.to_thread(cluster.process.start_node, CONSUL)
            recovery: dict[str, Any] = {"consul_serves_s": _since(begun)}
            _say("Consul serves again")
            recovery |= await _registered(cluster, begun, plan.back_s)
            await load.begin("orders")
            recovery |= await operator.until_all_work()
            _say(f"recovered: {recovery}")
            await running
        await load.end()
        lives = cluster.system.endpoints.pids
        ended = [
            seen.name
            for seen in cluster.process.nodes().values()
            if seen.name != CONSUL and seen.pid != lives[seen.name]
        ]
        assert not ended, f"these ended: {ended}"
    return _result(load, refusals, recovery, plan.outage_s)


def _result(load: _Load, refusals: dict[str, Any], recovery: dict[str, Any], outage_s: float) -> Result:
    accepted = [name for name, refusal in refusals.items() if not refusal["names_the_registry"]]
    return Result(
        name="cluster_consul_outage",
        value=load.failures(*PHASES[:-1]) + len(accepted),
        unit="operations that failed, and orders that were not refused with the reason",
        goal=0,
        better="lower",
        details={
            "outage_s": outage_s,
            "processes": COUNTS,
            "phases": {phase: load.shown(phase) for phase in PHASES},
            "failed_while_orders_were_carried_out": load.failures(PHASES[-1]),
            "orders_meanwhile": refusals,
            "recovery": recovery,
        },
    )


def _say(what: str) -> None:
    print(what, file=sys.stderr)


def _since(begun: float) -> float:
    return round(perf_counter() - begun, 2)


# ---------------------------------------------------------------- the load


@dataclass(slots=True)
class _Tally:
    """Operations of one kind in one phase, by when they were due."""

    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    latency_us: Histogram = field(default_factory=Histogram)

    def shown(self) -> dict[str, Any]:
        """Return the figures."""
        times = {f"p{p}_ms": round(self.latency_us.percentile(p) / 1000, 1) for p in (50, 99, 100)}
        return {"done": self.done, "failed": dict(self.failed), **times}


class _Failed(Exception):
    """An operation was answered, but not as it should be."""


class _Load:
    """Everything that clients and backends do, at constant rates that wait for nobody."""

    def __init__(self, cluster: ClusterSystem, clients: Fleet, http: aiohttp.ClientSession, users: int) -> None:
        endpoints = cluster.system.endpoints
        self._clients = clients
        self._http = http
        self._users = [user_name(number) for number in range(users)]
        self._key = cluster.api_key
        self._headers = {"Authorization": f"Bearer {cluster.api_key}"}
        self._schedulers = list(endpoints.scheduler.values())
        self._statuses = list(endpoints.status.values())
        self._random = random.Random(1)
        self._phase = PHASES[0]
        self._tallies: dict[str, dict[str, _Tally]] = {phase: {} for phase in PHASES}
        self._counts: Counter[str] = Counter()
        self._sends: Counter[int] = Counter()
        """What the clients counted when the last phase ended; times of sends by bucket."""
        self._cluster = cluster
        self._cpu: dict[str, dict[str, float]] = {}
        """CPU of each role's processes in each phase, in per cent of one."""
        self._since, self._cpu_before = perf_counter(), self._cpu_s()

    async def run(self, seconds: float) -> None:
        """Load the cluster for so long."""
        sends = Send(rate=SENDS_PER_S, seconds=seconds, first=0, count=len(self._users) - 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._clients.workers[0].call(sends))
            for name, rate, operation in (
                ("lookup", LOOKUPS_PER_S, self._look_up),
                ("assignment", ASSIGNMENTS_PER_S, self._assign),
                ("connect", CONNECTS_PER_S, self._connect),
            ):
                tasks.create_task(self._pace(name, rate, seconds, operation))

    async def begin(self, phase: str) -> None:
        """From here on it is this phase."""
        await self.end()
        self._phase = phase

    async def end(self) -> None:
        """Take what the clients counted in the phase that ends."""
        now, cpu_s = perf_counter(), self._cpu_s()
        self._cpu[self._phase] = {
            role: round((cpu_s[role] - before) / (now - self._since) * 100, 1)
            for role, before in self._cpu_before.items()
        }
        self._since, self._cpu_before = now, cpu_s
        total = await self._clients.look()
        # Differences, and nothing is cleared: what came between the look and that would be lost.
        counts = total.counts - self._counts
        sends = Counter(dict(total.latencies["send"].pairs())) if "send" in total.latencies else Counter[int]()
        tally = self._tally(self._phase, "send")
        tally.done += counts.pop("send done", 0)
        tally.latency_us.add((sends - self._sends).items())
        bad = (
            "send ",
            "closed ",
            "gaps",
            "duplicates",
            "unrecovered",
            "refused ",
            "unreachable",
            "error ",
            "timed out",
        )
        tally.failed.update({what: count for what, count in counts.items() if what.startswith(bad)})
        self._counts, self._sends = total.counts, sends

    def failures(self, *phases: str) -> int:
        """Return how many operations failed in these phases."""
        return sum(tally.failed.total() for phase in phases for tally in self._tallies[phase].values())

    def shown(self, phase: str) -> dict[str, Any]:
        """Return the figures of a phase."""
        shown = {name: tally.shown() for name, tally in sorted(self._tallies[phase].items())}
        return {**shown, "cpu_percent": self._cpu[phase]}

    def _cpu_s(self) -> dict[str, float]:
        return {role: self._cluster.cpu_s(role) for role in COUNTS}

    def _tally(self, phase: str, name: str) -> _Tally:
        return self._tallies[phase].setdefault(name, _Tally())

    async def _pace(self, name: str, rate: float, seconds: float, operation: Callable[[int], Awaitable[None]]) -> None:
        """Begin an operation whenever one is due, however long those before it take."""
        begun = perf_counter()
        under_way: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - perf_counter()))
                tally = self._tally(self._phase, name)
                if len(under_way) >= UNDER_WAY_MAX:
                    tally.failed["too many under way"] += 1
                    continue
                task = tasks.create_task(_carry_out(tally, due, operation(number)))
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    async def _look_up(self, number: int) -> None:
        users = self._random.sample(self._users, min(LOOKUP_USERS, len(self._users)))
        url = f"{self._statuses[number % len(self._statuses)]}/v1/users/status"
        async with self._http.post(url, json={"users": users}, headers=self._headers) as response:
            answer = await _answer(response)
        wrong = Counter(status["state"] for status in answer["statuses"] if status["state"] != "online")
        if wrong:
            raise _Failed(", ".join(sorted(wrong)))

    async def _assign(self, number: int) -> None:
        params = {"user": f"asks-{number}", "device": "bench", "platform": "bench"}
        url = f"{self._schedulers[number % len(self._schedulers)]}/v1/access"
        async with self._http.get(url, params=params, headers=self._headers) as response:
            answer = await _answer(response)
        if not answer["candidates"]:
            raise _Failed("no candidates")

    async def _connect(self, number: int) -> None:
        scheduler = self._schedulers[number % len(self._schedulers)]
        client = Client(scheduler, user=f"comes-{number}", credential=self._key, platform="bench")
        async with aclosing(_Closing(client)):
            await client.connect()


class _Closing:
    """A client as `aclosing` wants it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def aclose(self) -> None:
        await self._client.close()


async def _carry_out(tally: _Tally, due: float, operation: Awaitable[None]) -> None:
    try:
        await operation
    except RoadsteadError as error:
        tally.failed[f"{error.code.label}: {error}"] += 1
    except _Failed as error:
        tally.failed[str(error)] += 1
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        tally.failed[str(error) or type(error).__name__] += 1
    else:
        tally.done += 1
        tally.latency_us.record(int((perf_counter() - due) * 1e6))


async def _answer(response: aiohttp.ClientResponse) -> Any:
    answer = await response.json()
    if "error" in answer:
        failure = answer["error"]
        raise from_wire(failure["code"], failure["message"], failure.get("detail", {}))
    return answer


# ---------------------------------------------------------------- the operators


class _Operator:
    """Gives the orders that need the registry."""

    def __init__(self, cluster: ClusterSystem) -> None:
        endpoints = cluster.system.endpoints
        self._key = cluster.api_key
        self._scheduler = endpoints.scheduler["scheduler-1"]
        self._status = endpoints.status["status-1"]
        self._im = endpoints.im["im-1"]
        self._orders: dict[str, Callable[[], Awaitable[None]]] = {
            "resize": self._resize,
            "rollout_create": lambda: self.create_rollout("new"),
            "rollout_step": self._step,
            "cordon": self._cordon,
            "shard_move": self._move_shard,
        }

    async def try_all(self) -> dict[str, Any]:
        """Give each order once; return what became of it."""
        return {name: await self._try(order) for name, order in self._orders.items()}

    async def until_all_work(self) -> dict[str, float]:
        """Give each order again and again until it is carried out; return how long that took for each."""
        took = {}
        for name, order in self._orders.items():
            begun = perf_counter()
            while not (tried := await self._try(order))["is_done"]:
                assert perf_counter() - begun < RECOVERY_S_MAX, f"{name} does not work any more: {tried}"
                await asyncio.sleep(LOOK_S)
            took[f"{name}_s"] = _since(begun)
        return took

    async def create_rollout(self, name: str) -> None:
        """Start a rollout of a version that no node has."""
        await self._ask("POST", f"{self._scheduler}/v1/admin/rollouts", {"document": ROLLOUT.format(name=name)})

    async def _try(self, order: Callable[[], Awaitable[None]]) -> dict[str, Any]:
        begun = perf_counter()
        try:
            await order()
        except RoadsteadError as error:
            message = str(error)
            names = any(name in message.lower() for name in ("registry", "consul"))
            shown = {"is_done": False, "code": error.code.label, "message": message, "names_the_registry": names}
        else:
            shown = {"is_done": True, "names_the_registry": False}
        return {**shown, "took_s": _since(begun)}

    async def _resize(self) -> None:
        await self._ask("POST", f"{self._status}/v1/admin/status/resize", {"to": 2})
        begun = perf_counter()
        while not (await self._ask("GET", f"{self._status}/v1/admin/status/resize"))["is_done"]:
            assert perf_counter() - begun < RECOVERY_S_MAX, "the resize does not end"
            await asyncio.sleep(LOOK_S)

    async def _step(self) -> None:
        await self._ask("POST", f"{self._scheduler}/v1/admin/rollouts/known/step")

    async def _cordon(self) -> None:
        for order in ("cordon", "uncordon"):
            await self._ask("POST", f"{self._scheduler}/v1/admin/access/nodes/access-2/{order}")

    async def _move_shard(self) -> None:
        """Move a shard, and wait for its end; raises what its process says of it."""
        owners = (await self._ask("GET", f"{self._im}/v1/admin/im/shards"))["owners"]
        shard = owners.index("im-1")
        await self._ask("POST", f"{self._im}/v1/admin/im/shards/{shard}/move", {"to": "im-2"})
        begun = perf_counter()
        while perf_counter() - begun < MOVE_S_MAX:
            move = (await self._ask("GET", f"{self._im}/v1/admin/im/shards"))["move"]
            if move is not None and move["shard"] == shard and move["error"]:
                raise RoadsteadError(f"it failed after it began, while {move['stage']}: {move['error']}")
            if move is not None and move["shard"] == shard and move["stage"] == "done":
                return
            await asyncio.sleep(LOOK_S)
        raise RoadsteadError(f"it goes on: {move}")

    async def _ask(self, method: str, url: str, body: Any = None) -> Any:
        return await call_api(method, url, credential=self._key, body=body, operator="bench", deadline_s=20.0)


async def _registered(cluster: ClusterSystem, begun: float, seconds: float) -> dict[str, Any]:
    """Watch who is registered for a while; return what was missing at most, and since when everybody is there."""
    registry: Registry = cluster.site("operator").registry
    missing_max, since = 0, -1.0
    try:
        while perf_counter() - begun < seconds or since < 0:
            try:
                found = [len((await registry.services(role)).items) for role in COUNTS]
            except RoadsteadError:
                found = []
            missing = sum(COUNTS.values()) - sum(found)
            missing_max = max(missing_max, missing if found else 0)
            since = -1.0 if missing else since if since >= 0 else _since(begun)
            assert perf_counter() - begun < seconds + RECOVERY_S_MAX, f"registered are {found} of {COUNTS}"
            await asyncio.sleep(LOOK_S)
    finally:
        await registry.close()
    return {"not_registered_max": missing_max, "all_registered_s": since}
