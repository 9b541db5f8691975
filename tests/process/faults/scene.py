"""A cluster of processes with clients and watchers, on which one fault after the other is tried and measured."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from roadstead.cluster.files import ClusterFiles
from roadstead.cluster.plan import Plan
from roadstead.history.check import check
from roadstead.history.recorder import load
from roadstead.history.report import Report
from roadstead.local import ClusterProcess
from tests.process.faults.people import PacedTraffic, Person
from tests.process.faults.watchers import ASSIGNMENTS, CLIENTS, LOOKUPS, SENDS, Watch, cancelled
from tests.process.message_logs import told, write_lists_down, write_logs_down, write_views_down
from tests.process.message_world import SETTINGS, World, flags_of

__all__ = ["Outcome", "Scene", "add_result", "judged", "scene"]

MESSAGES_PER_S = 25.0
SHARDS = 4
CALM_S = 1.5
"""So long nothing may be out of order until it counts as over."""
SETTLED_S = 60.0
RESULTS = os.environ.get("ROADSTEAD_TEST_RECOVERIES", "")
"""A file that every outcome is added to, a line of JSON each."""


class Outcome(msgspec.Struct, frozen=True):
    """What a fault cost. Times are ms from the fault, or from its end, until the last answer that was not normal."""

    fault: str
    node: str
    bound_ms: int
    """Of the longest of `recovery_ms`; 0: none is promised."""
    lasted_ms: int
    """How long the fault itself went on; 0 for one of a moment."""
    recovery_ms: dict[str, int]
    """By what was not normal; from the end of a fault that went on."""
    meanwhile_ms: dict[str, int]
    """The same from the start of a fault that went on: `lasted_ms` where it did not become normal before its end."""
    wrong: int
    says: list[str] = []


@dataclass(slots=True)
class Fault:
    """A fault that is being measured."""

    name: str
    node: str
    bound_ms: int
    began: float
    ended: float | None = None
    at_end: dict[str, float] = field(default_factory=dict)


class Scene(World):
    """See the module."""

    proxied = ()
    light_device = Person

    def __init__(
        self,
        folder: Path,
        *,
        counts: dict[str, int],
        flags: Sequence[str],
        settings: dict[str, object],
        tasks: asyncio.TaskGroup,
    ) -> None:
        super().__init__(folder, 0, seed=1, tasks=tasks)
        self.folder = folder / "data" / "cluster"
        self.shards = SHARDS
        self.settings = flags_of(
            {**SETTINGS, "im.shards": SHARDS, "access.stop_drain_ms": 0, "status.stop_handover_ms": 0, **settings}
        )
        numbers = [flag for role, count in counts.items() for flag in (f"--{role}", str(count))]
        self.process = self.cluster = ClusterProcess(folder / "data", *numbers, *flags, *self.settings)
        self.outcomes: list[Outcome] = []
        self._fault: Fault | None = None
        self._since = 0.0
        self.watch: Watch
        self.lag_ms = 0.0
        """How late this process itself was at worst since the last fault: the machine had no time for it."""

    def new_traffic(self) -> PacedTraffic:
        return PacedTraffic(self.random, messages_per_s=MESSAGES_PER_S)

    @property
    def people(self) -> list[Person]:
        """All light clients."""
        return [one for one in self.light if isinstance(one, Person)]

    @property
    def urls(self) -> dict[str, str]:
        """All nodes' base URLs by name."""
        return self.system.endpoints.nodes()

    def clients_of(self, access: str) -> str:
        """Return the host and port at which an access node's clients connect."""
        return self.system.endpoints.clients[access].rpartition("//")[2].rstrip("/")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Have clients talk and watchers look until the block ends."""
        assert isinstance(self.traffic, PacedTraffic)
        self.watch = Watch(self.people, key=self.key, tls=self.tls)
        endpoints = self.system.endpoints
        pacing = self._tasks.create_task(self.traffic.run())
        measuring = self._tasks.create_task(self._measure_lag())
        await self._connected()
        watching = self._tasks.create_task(self.watch.run(endpoints.status, endpoints.scheduler, self.front.url))
        self.disturb()
        try:
            await self.calm()
            yield
        finally:
            self.traffic.end()
            for task in (pacing, watching, measuring):
                await cancelled(task)

    async def _connected(self) -> None:
        give_up = time.monotonic() + SETTLED_S
        while not all(one.is_open for one in self.people):
            assert time.monotonic() < give_up, [one.state for one in self.people if not one.is_open]
            await asyncio.sleep(0.05)
        await asyncio.sleep(CALM_S)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.01)
            self.lag_ms = max(self.lag_ms, (loop.time() - began - 0.01) * 1_000)

    # ---------------------------------------------------------------- measuring

    async def calm(self, within_s: float = SETTLED_S) -> None:
        """Return when everything has been normal for a while."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + within_s
        while loop.time() < max([self._since, *self.watch.last_bad.values()]) + CALM_S:
            assert loop.time() < give_up, f"not normal after {within_s:g} s: {self.watch.examples}"
            await asyncio.sleep(0.05)

    def disturb(self) -> None:
        """Whatever may come of what happens now is waited for by `calm`."""
        self._since = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def fault(
        self,
        name: str,
        node: str = "",
        *,
        bound_ms: int = 0,
        down: Iterable[str] = (),
        doubtful: Iterable[str] = (),
        within_s: float = SETTLED_S,
    ) -> AsyncIterator[Fault]:
        """Measure what is done in the block. It calls `over` where a fault that goes on ends.

        Args:
            name: what it is.
            node: to whom it happens.
            bound_ms: within what all is to be normal.
            down: nodes that do not answer by themselves until the block ends.
            doubtful: access nodes that may lose their clients without the clients' knowing.
            within_s: when to give up.
        """
        await self.calm()
        loop, watch = asyncio.get_running_loop(), self.watch
        wrong, self.lag_ms = watch.wrong_count, 0.0
        watch.last_bad.clear()
        watch.examples.clear()
        watch.down |= {*down}
        watch.doubtful |= {self.clients_of(one) for one in doubtful}
        self._note(f"{name} {node}")
        self.disturb()
        fault = self._fault = Fault(name, node, bound_ms, loop.time())
        yield fault
        self.disturb()
        await self.calm(within_s)
        if watch.down & {*down}:
            watch.down -= {*down}
            self.disturb()
            await self.calm(within_s)
        watch.doubtful.clear()
        outcome = self._outcome(fault, watch.wrong_count - wrong)
        self.outcomes.append(outcome)
        await asyncio.to_thread(add_result, outcome)

    def restart(self) -> None:
        """What is measured begins here: what led to it does not count."""
        assert self._fault is not None
        self.watch.last_bad.clear()
        self._fault.began = asyncio.get_running_loop().time()

    def over(self, fault: Fault) -> None:
        """The fault ends here."""
        fault.ended = asyncio.get_running_loop().time()
        fault.at_end = dict(self.watch.last_bad)

    def _outcome(self, fault: Fault, wrong: int) -> Outcome:
        kinds = (LOOKUPS, SENDS, ASSIGNMENTS, CLIENTS)
        last, ended = self.watch.last_bad, fault.ended

        def since(at: float | None, moment: float) -> int:
            return 0 if at is None else max(0, round((at - moment) * 1_000))

        return Outcome(
            fault=fault.name,
            node=fault.node,
            bound_ms=fault.bound_ms,
            lasted_ms=0 if ended is None else since(ended, fault.began),
            recovery_ms={kind: since(last.get(kind), fault.began if ended is None else ended) for kind in kinds},
            meanwhile_ms={} if ended is None else {kind: since(fault.at_end.get(kind), fault.began) for kind in kinds},
            wrong=wrong,
            says=[f"{kind}: {what}" for kind, what in self.watch.examples.items()],
        )

    async def spread(self) -> None:
        """Have everybody connect anew, to the access nodes that there are."""
        for person in self.people:
            person.drop(0.1)
        self.disturb()
        await self.calm()

    # ---------------------------------------------------------------- what can be done to a node

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a node's process a signal; return the process id."""
        seen = await asyncio.to_thread(self.cluster.node, name)
        assert seen.pid is not None
        os.kill(seen.pid, number)
        return seen.pid

    async def back(self, name: str, *, other_than: int | None = None) -> None:
        """Wait until a node is ready, in another life than that process' if there is one."""
        await asyncio.to_thread(self.cluster.wait_ready, name, other_than=other_than)

    async def leader(self) -> str:
        """Return which status node leads."""
        for name, url in self.system.endpoints.status.items():
            told = await self.ask("GET", f"{url}/debug/statistics")
            if told is not None and '"is_leading":true' in msgspec.json.encode(told).decode():
                return name
        raise AssertionError("no status node leads")

    async def ask(self, method: str, url: str, body: object = None) -> Any:
        """Call an admin API once. None: no answer, or no good one."""
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            async with self.http.request(method, url, json=body, headers=headers) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        return msgspec.json.decode(content) if answer.status < 300 else None

    # ---------------------------------------------------------------- how the system is

    @property
    def plan(self) -> Plan:
        """The cluster's processes and ports."""
        plan = ClusterFiles(self.system.data).former_plan()
        assert plan is not None
        return plan

    @property
    def consul_port(self) -> int:
        """Where Consul's HTTP API is."""
        (url,) = self.system.endpoints.consul.values()
        return int(url.rpartition(":")[2])

    @contextmanager
    def absent(self, *names: str) -> Iterator[None]:
        """These nodes are stopped and started in the block, and nothing follows from what they do not say."""
        self.watch.down |= {*names}
        try:
            yield
        finally:
            self.watch.down -= {*names}
            self.disturb()

    async def registered(self) -> None:
        """Return once the registry knows all nodes again."""
        (consul,) = self.system.endpoints.consul.values()
        services = [f"roadstead-{role}" for role in ("scheduler", "status", "access", "im")]
        wanted = {*self.urls}
        async with asyncio.timeout(SETTLED_S):
            while True:
                said = b"".join([await self._healthy(f"{consul}/v1/health/service/{name}") for name in services])
                found = {name for name in wanted if f'"roadstead-{name}-'.encode() in said}
                if found == wanted:
                    return
                await asyncio.sleep(0.1)

    async def _healthy(self, url: str) -> bytes:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self.http.get(url, params={"passing": "true"}) as answer:
                return await answer.read()
        return b""

    async def resize(self, names: list[str]) -> None:
        """Have these status nodes own everything."""
        url = next(iter(self.system.endpoints.status.values()))
        answer = await self.ask("POST", f"{url}/v1/admin/status/resize", {"weights": dict.fromkeys(names, 100)})
        assert answer is not None

    async def stages(self) -> set[str]:
        """Return in which stages partitions are, as any status node knows."""
        for url in self.system.endpoints.status.values():
            progress = await self.ask("GET", f"{url}/v1/admin/status/resize")
            if progress is not None:
                return {stage for stage, count in progress["moves"].items() if count}
        return set()

    async def resized(self, names: list[str]) -> None:
        """Return once these nodes own everything, and nothing moves."""
        async with asyncio.timeout(SETTLED_S):
            while True:
                for url in self.system.endpoints.status.values():
                    table = await self.ask("GET", f"{url}/v1/admin/status/table")
                    if table is None or table["moves"]:
                        break
                    if {row["node"] for row in table["nodes"] if row["partitions"]} != {*names}:
                        break
                else:
                    return
                await asyncio.sleep(0.05)

    async def owners(self) -> list[str]:
        """Return which process has each shard of the messages."""
        for url in self.system.endpoints.im.values():
            view = await self.ask("GET", f"{url}/v1/admin/im/shards")
            if view is not None:
                return list(view["owners"])
        raise AssertionError("no process of the message services answers")

    async def move(self, shard: int, source: str, target: str) -> None:
        """Begin to move a shard of the messages, once the process has done with the one before."""
        url = f"{self.system.endpoints.im[source]}/v1/admin/im/shards/{shard}/move"
        async with asyncio.timeout(SETTLED_S):
            while await self.ask("POST", url, {"to": target}) is None:  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.02)

    async def moved(self, shard: int, target: str) -> None:
        """Return once it is there."""
        async with asyncio.timeout(SETTLED_S):
            while str(shard) not in await self._shards_at(target):  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.05)

    async def at_one_place(self, shard: int) -> None:
        """Return once exactly one process has a shard, that which the table names; it must never be two."""
        async with asyncio.timeout(SETTLED_S):
            while True:
                holders = [name for name in self.system.endpoints.im if str(shard) in await self._shards_at(name)]
                assert len(holders) < 2, holders
                if holders and (await self.owners())[shard] == holders[0]:
                    return
                await asyncio.sleep(0.05)

    async def _shards_at(self, name: str) -> dict[str, Any]:
        view = await self.ask("GET", f"{self.system.endpoints.im[name]}/v1/admin/im/shards")
        return {} if view is None else view["here"]


@asynccontextmanager
async def scene(
    folder: Path,
    *,
    counts: dict[str, int],
    flags: Sequence[str] = ("--no-tls",),
    settings: dict[str, object] | None = None,
) -> AsyncIterator[Scene]:
    """Run a scene until the block ends; then everything that anybody saw is judged."""
    async with asyncio.TaskGroup() as tasks:
        made = Scene(folder, counts=counts, flags=flags, settings=settings or {}, tasks=tasks)
        async with made.asking(), made.running():
            async with made.watched():
                yield made
            await made.settle()
            write_views_down(made)
            await write_lists_down(made)
            await write_logs_down(made)


def add_result(result: object) -> None:
    """Add a line to the file of results, if one is wanted."""
    if RESULTS:
        with Path(RESULTS).open("ab") as file:
            file.write(msgspec.json.encode(result) + b"\n")


def judged(made: Scene) -> Report:
    """Judge what everybody saw: no status was wrong, and no message lost, doubled or out of order."""
    assert made.watch.wrong_count == 0, "\n".join(made.watch.wrong)
    assert made.errors == []
    report = check(load([made.file]), shards=made.shards)
    assert not report.violations, told(report)
    return report
