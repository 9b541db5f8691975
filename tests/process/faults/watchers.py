"""Who looks, all the time, and knows what must not be said: statuses at every status node, assignments, calls.

A watcher tells apart what is *wrong* - said of somebody although it is known not to be so - from what is only *not
normal*: an unknown status, a refusal, an answer that takes long. Recovery is over when nothing is not normal any more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from tests.process.faults.people import Person

__all__ = ["ASSIGNMENTS", "CLIENTS", "LOOKUPS", "SENDS", "Watch"]

LOOKUPS, SENDS, ASSIGNMENTS, CLIENTS = "lookups", "sends", "assignments", "clients"
LOOK_S = 0.05
ASSIGN_S = 0.1
ANSWER_S = 1.0
"""A lookup or an assignment that takes longer has failed."""
SLOW_S = 1.0
"""A call of a client that takes longer was delayed by a fault."""
SHOWN_S = 0.5
"""So long after it was connected a client may not yet be shown."""
GONE_S = 3.0
"""So long after it was gone a client may still be shown."""
WRONG_MAX = 20
"""More are counted only."""


class _Session(msgspec.Struct, frozen=True):
    node: str


class _Shown(msgspec.Struct, frozen=True):
    user: str
    state: str
    sessions: list[_Session] = []


class _Statuses(msgspec.Struct, frozen=True):
    statuses: list[_Shown]


_statuses = msgspec.json.Decoder(_Statuses).decode


class Watch:
    """See the module. `run` belongs into a TaskGroup."""

    def __init__(self, people: Sequence[Person], *, key: str, tls: ssl.SSLContext) -> None:
        self.wrong: list[str] = []
        self.wrong_count = 0
        self.counts: Counter[str] = Counter()
        """What was asked, and what was answered that is not normal."""
        self.last_bad: dict[str, float] = {}
        """When each kind of thing was not normal last."""
        self.examples: dict[str, str] = {}
        """The last thing of each kind that was not normal."""
        self.down: set[str] = set()
        """Nodes that are known not to answer: they are asked, and nothing follows from what they say or do not."""
        self.doubtful: set[str] = set()
        """Client addresses of access nodes that may have lost their clients without anybody's knowing."""
        self.latencies_ms: dict[str, list[float]] = {LOOKUPS: [], SENDS: [], ASSIGNMENTS: []}
        self._people = people
        self._users = list(dict.fromkeys(one.user for one in people))
        self._headers = {"Authorization": f"Bearer {key}"}
        self._tls = tls
        self._loop = asyncio.get_running_loop()

    async def run(self, statuses: Mapping[str, str], schedulers: Mapping[str, str], front: str) -> None:
        """Look until cancelled."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        connector = aiohttp.TCPConnector(ssl=self._tls)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=self._headers, connector=connector) as http,
            asyncio.TaskGroup() as tasks,
        ):
            for name, url in statuses.items():
                tasks.create_task(self._look_at(http, name, url))
            for name, url in {**schedulers, "": front}.items():
                tasks.create_task(self._assign_at(http, name, url))
            tasks.create_task(self._mind_calls())

    def bad(self, kind: str, what: str) -> None:
        """Something was not normal just now."""
        self.last_bad[kind] = self._loop.time()
        self.examples[kind] = what
        self.counts[f"{kind}: {what.partition(':')[0]}"] += 1

    # ---------------------------------------------------------------- statuses

    async def _look_at(self, http: aiohttp.ClientSession, name: str, url: str) -> None:
        body = msgspec.json.encode({"users": self._users})
        while True:
            asked_at = self._loop.time()
            was_down = name in self.down
            try:
                async with http.post(f"{url}/v1/users/status", data=body) as answer:
                    content = await answer.read()
                    assert answer.status == 200, f"{answer.status} {content[:200]!r}"
            except (aiohttp.ClientError, OSError, TimeoutError, AssertionError) as error:
                if not was_down and name not in self.down:
                    self.bad(LOOKUPS, f"no answer: {name} {type(error).__name__} {error}")
            else:
                took_s = self._loop.time() - asked_at
                self.latencies_ms[LOOKUPS].append(took_s * 1_000)
                self._judge(name, _statuses(content).statuses, asked_at, is_down=was_down or name in self.down)
            await asyncio.sleep(max(0.001, asked_at + LOOK_S - self._loop.time()))

    def _judge(self, name: str, shown: Iterable[_Shown], asked_at: float, *, is_down: bool) -> None:
        """Compare an answer with what is known. A node that is down for others must not say what is wrong, either."""
        now = self._loop.time()
        devices: dict[str, list[Person]] = {}
        for one in self._people:
            devices.setdefault(one.user, []).append(one)
        self.counts["users looked up"] += len(self._users)
        for one in shown:
            mine = devices[one.user]
            here = [it for it in mine if it.open_since is not None and it.open_since + SHOWN_S < asked_at]
            is_gone = all(it.gone_since is not None and it.gone_since + GONE_S < asked_at for it in mine)
            if one.state == "unknown":
                if not is_down:
                    self.bad(LOOKUPS, f"unknown: {one.user} at {name}")
            elif here and one.state == "offline":
                since = here[0].open_since or 0
                said = f"offline: {one.user} at {name}, connected to {here[0].where} for {now - since:.2f} s"
                if all(it.where in self.doubtful for it in here):
                    self.bad(LOOKUPS, said)
                else:
                    self._be_wrong(said)
            elif is_gone and one.state != "offline":
                self._be_wrong(f"{one.state}: {one.user} at {name}, gone for {now - (mine[0].gone_since or 0):.2f} s")
            if one.state == "offline" and not is_gone and not any(it.stays_away for it in mine):
                self.counts["offline for a moment"] += 1
            self.counts["known online"] += bool(here)
            self.counts["known offline"] += is_gone

    def _be_wrong(self, what: str) -> None:
        self.wrong_count += 1
        self.bad(LOOKUPS, f"WRONG {what}")
        if len(self.wrong) < WRONG_MAX:
            self.wrong.append(f"{what} at {self._loop.time():.3f}")

    # ---------------------------------------------------------------- assignments

    async def _assign_at(self, http: aiohttp.ClientSession, name: str, url: str) -> None:
        """Ask a scheduler; "" is whichever answers, as clients ask."""
        params = {"user": "nobody", "device": "watch", "platform": "light"}
        while True:
            asked_at = self._loop.time()
            try:
                async with http.get(f"{url}/v1/access", params=params) as answer:
                    content = await answer.read()
                    assert answer.status == 200, f"{answer.status} {content[:200]!r}"
            except (aiohttp.ClientError, OSError, TimeoutError, AssertionError) as error:
                if name not in self.down:
                    self.bad(ASSIGNMENTS, f"no answer: {name or 'any'} {type(error).__name__} {error}")
            else:
                self.latencies_ms[ASSIGNMENTS].append((self._loop.time() - asked_at) * 1_000)
                self.counts["assignments"] += 1
            await asyncio.sleep(max(0.001, asked_at + ASSIGN_S - self._loop.time()))

    # ---------------------------------------------------------------- calls of clients

    async def _mind_calls(self) -> None:
        while True:
            now = self._loop.time()
            for one in self._people:
                took, one.took = one.took, []
                for began, ended in took:
                    self.counts["calls"] += 1
                    self.latencies_ms[SENDS].append((ended - began) * 1_000)
                    if ended - began > SLOW_S:
                        self.bad(SENDS, f"slow: {one.user} {ended - began:.1f} s")
                oldest = min(one.waiting.values(), default=now)
                if now - oldest > SLOW_S:
                    self.bad(SENDS, f"waiting: {one.user}/{one.name} for {now - oldest:.1f} s, {one.state}")
                if not one.is_open and not (one.stays_away and one.gone_since is not None):
                    self.bad(CLIENTS, f"not connected: {one.user}/{one.name} to {one.where}")
            await asyncio.sleep(LOOK_S)

    def take_latencies(self) -> dict[str, list[float]]:
        """Return how long everything took since this was asked last (ms)."""
        taken = self.latencies_ms
        self.latencies_ms = {name: [] for name in taken}
        return taken


async def cancelled(task: asyncio.Task[Any]) -> None:
    """End a task."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
