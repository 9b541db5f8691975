"""Catching up: pages of 100 entries that one server process answers in a second (`im.sync`).

`roadstead up` runs as it is, with one access node, on a store that was filled before; clients call over WebSockets,
several at once for the value, else one. What they are told is checked for holes, and read no further.

The details have the other ways to catch up. A reconnect with a position, as the stock protocol has it, after 1,000
missed messages and after more than an access node hands over at once, when pages follow. The list of a user with 1,000
conversations, as a client that knows nothing asks for it: the first page, and all of it. What such a client asks while
nothing happens, and what it would cost if it asked each conversation for news (the article's periodic pull). And what a
client gets that waits for each acknowledgement before it sends the next message: one a round trip.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from access.api import transport_urls
from base import loop
from base.clock import Timestamp
from base.ids import new_uuid
from bench.process import cpu_s
from bench.result import Options, Result, percentile
from bench.rpc import RpcClient, rpc_client
from im.core.commands import Appended, Draft
from im.store.sqlite import SqliteMessageStore
from roadstead.client import Client
from roadstead.deployment import DataFolder
from roadstead.local import System, UpProcess

__all__ = ["run"]

SPEC = ("FO-09", "MI-09", "PP-06", "OR-02", "MD-03")  # rows of docs/spec-coverage.md

READER, LISTER, SENDER = "reader", "lister", "sender"
ENTRIES = 20_000
PAGE = 100
LARGEST_PAGE = 500
CALLERS = 4
SECONDS = 5.0
ROUNDS = 3
CONVERSATIONS = 1_000
IN_CONVERSATION = 3
MISSED = 1_000
"""What an access node hands over at most with a reconnect (`access.recovery_entries_max`)."""
MISSED_MORE = 2_500
RECOVERIES = 50
CALLS = 200
SENDS = 500
IN_FLIGHT = 32
IDLE_S = 60.0
QUIET_S = 0.5
POLL_EVERY_S = 30
"""How often a client of the old kind would ask each conversation."""
GROUP = 256
BODY = b'{"text":"' + b"x" * 64 + b'"}'
AT = Timestamp(1_700_000_000_000)
SETTINGS = ("up.access_nodes=1", "im.user_calls_per_second=0", "im.device_calls_per_second=0")


class _Entry(msgspec.Struct, frozen=True):
    offset: int


class _Page(msgspec.Struct, frozen=True):
    head: int
    has_more: bool
    entries: list[_Entry]


class _Conversation(msgspec.Struct, frozen=True):
    cid: str
    max_seq: int


class _List(msgspec.Struct, frozen=True):
    conversations: list[_Conversation]
    next: str


_page = msgspec.json.Decoder(_Page).decode
_list = msgspec.json.Decoder(_List).decode


class _Scale(msgspec.Struct, frozen=True):
    """How much of everything."""

    rounds: int = ROUNDS
    seconds: float = SECONDS
    recoveries: int = RECOVERIES
    calls: int = CALLS
    sends: int = SENDS
    idle_s: float = IDLE_S
    entries: int = ENTRIES


QUICK = _Scale(rounds=1, seconds=0.5, recoveries=3, calls=5, sends=50, idle_s=0.5, entries=3_000)


def run(options: Options) -> Result:
    """Measure, see the module."""
    scale = QUICK if options.quick else _Scale()
    return loop.run(_measure(scale))


async def _measure(scale: _Scale) -> Result:
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(_bench(scale))
        rounds = [await bench.pages(scale.seconds) for _ in range(scale.rounds)]
        typical = sorted(rounds, key=lambda one: one["a_second"])[len(rounds) // 2]
        details = {
            "page": PAGE,
            "callers": CALLERS,
            "rounds_a_second": [one["a_second"] for one in rounds],
            "cpu_us": typical["cpu_us"],
            "page_ms": typical["ms"],
            "recovery": await bench.recoveries(scale.recoveries),
            "cold_start": await bench.lists(scale.calls),
            "idle": await bench.idle(scale.idle_s),
            "waiting_for_each_acknowledgement": await bench.sends(scale.sends),
        }
    return Result(
        name="im_sync", value=typical["a_second"], unit="pages a second", goal=2_000, better="higher", details=details
    )


class _Bench:
    """A running system over a store that is filled."""

    def __init__(self, system: System) -> None:
        self._system = system
        (client_url,) = system.endpoints.clients.values()
        self._url = transport_urls(client_url)["websocket"]
        (self._im,) = system.endpoints.im.values()

    # ---------------------------------------------------------------- pages

    async def pages(self, seconds: float) -> dict[str, Any]:
        """Have several callers read the timeline over and over."""
        times: list[float] = []
        async with AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(self._client(READER, f"d{n}")) for n in range(CALLERS)]
            cpu, began = self._cpu_s(), time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for caller in callers:
                    tasks.create_task(self._read_until(caller, began + seconds, times))
            took, cpu = time.perf_counter() - began, self._cpu_s() - cpu
        made = {"a_second": round(len(times) / took), "cpu_us": round(cpu / len(times) * 1e6), "ms": _summary(times)}
        _say(f"pages: {made}")
        return made

    async def _read_until(self, caller: RpcClient, end: float, times: list[float]) -> None:
        since = 0
        while time.perf_counter() < end:
            began = time.perf_counter()
            page = await self._page(caller, since, PAGE)
            times.append(time.perf_counter() - began)
            since = page.entries[-1].offset if page.has_more else 0

    async def _page(self, caller: RpcClient, since: int, limit: int) -> _Page:
        page = _page(await caller.call("im.sync", {"since": since, "limit": limit}))
        wanted = range(since + 1, min(since + limit, page.head) + 1)
        assert [entry.offset for entry in page.entries] == list(wanted), "a page with a hole"
        return page

    # ---------------------------------------------------------------- reconnects

    async def recoveries(self, count: int) -> dict[str, Any]:
        """Reconnect with a position, near enough to the end to be told the rest at once, and further away."""
        async with self._client(READER) as client:
            start = client.start

        async def recover(missed: int) -> int:
            """Return how many pages it took beside."""
            position = {"epoch": start.epoch, "offset": start.offset - missed}
            async with self._client(READER, position=position) as client:
                if client.start.recovered:
                    assert len(client.start.publications) == missed
                    return 0
                assert not client.start.publications
                since, pages = start.offset - missed, 0
                while since < start.offset:
                    since = (await self._page(client, since, LARGEST_PAGE)).entries[-1].offset
                    pages += 1
                return pages

        recovered = {}
        for missed, wanted in ((MISSED, 0), (MISSED_MORE, MISSED_MORE // LARGEST_PAGE)):
            assert await recover(missed) == wanted
            measured = await self._timed(partial(recover, missed), count)
            recovered[f"missed_{missed}"] = {**measured, "pages_of_500": wanted}
        _say(f"recovery: {recovered}")
        return recovered

    # ---------------------------------------------------------------- lists

    async def lists(self, count: int) -> dict[str, Any]:
        """Ask for the list of a user with many conversations."""
        async with self._client(LISTER) as client:

            async def first(limit: int) -> None:
                page = _list(await client.call("im.conversations", {"limit": limit}))
                assert len(page.conversations) == limit

            async def whole() -> None:
                found, after = 0, ""
                while after or not found:
                    page = _list(await client.call("im.conversations", {"limit": 1_000, "after": after}))
                    found, after = found + len(page.conversations), page.next
                assert found == CONVERSATIONS, found

            measured = {
                "first_20": await self._timed(lambda: first(20), count),
                "first_100": await self._timed(lambda: first(100), count),
                "all": await self._timed(whole, count),
            }
        for one in measured.values():
            one["a_second_a_core"] = round(1e6 / one["cpu_us"], 1)
        _say(f"a list of {CONVERSATIONS}: {measured}")
        return {"conversations": CONVERSATIONS, **measured}

    # ---------------------------------------------------------------- nothing happens

    async def idle(self, seconds: float) -> dict[str, Any]:
        """Count what a client with many conversations asks once it shows them, and what asking for news would cost."""
        key = self._system.data.secrets().api_key
        client = Client(self._system.scheduler, user=LISTER, credential=key, on_update=lambda _update: None)
        await client.connect()
        try:
            before = -1
            while before != (now := self._calls()):  # it reads its list, and follows what is in it
                before = now
                await asyncio.sleep(QUIET_S)
            assert len(client.view.conversations()) == CONVERSATIONS
            await asyncio.sleep(seconds)
            calls = self._calls() - before
        finally:
            await client.close()
        polled = await self._polled()
        per_minute = CONVERSATIONS * 60 / POLL_EVERY_S
        told = {
            "conversations": CONVERSATIONS,
            "seconds": seconds,
            "calls_a_minute": round(calls / seconds * 60, 2),
            "periodic_pull": {
                "every_s": POLL_EVERY_S,
                "calls_a_minute": round(per_minute),
                "cpu_us_a_call": polled["cpu_us"],
                "users_a_core": round(60e6 / polled["cpu_us"] / per_minute, 1),
            },
        }
        _say(f"idle: {told}")
        return told

    async def _polled(self) -> dict[str, Any]:
        """Ask conversations for entries after the newest one: there are none."""
        async with self._client(LISTER) as client:
            listed = _list(await client.call("im.conversations", {"limit": PAGE}))
            known = iter(listed.conversations * 2)

            async def poll() -> None:
                one = next(known)
                answer = await client.call("im.history", {"cid": one.cid, "after": one.max_seq})
                assert not msgspec.json.decode(answer)["entries"]

            return await self._timed(poll, PAGE)

    def _calls(self) -> int:
        """Return how many calls of clients the message services have answered."""
        with urllib.request.urlopen(f"{self._im}/metrics") as answer:  # noqa: S310 - our own
            text = answer.read().decode()
        found = re.findall(r"^roadstead_im_(?:call|send)_seconds_count{.*} (\S+)$", text, re.MULTILINE)
        return int(sum(map(float, found)))

    # ---------------------------------------------------------------- one at a time

    async def sends(self, count: int) -> dict[str, Any]:
        """Send from one client: one at a time, and with some under way."""
        async with self._client(SENDER) as client:
            trips = []
            began = time.perf_counter()
            for _ in range(count):
                sent = time.perf_counter()
                await client.call("im.send", _message())
                trips.append(time.perf_counter() - sent)
            took = time.perf_counter() - began
            began = time.perf_counter()
            for number in range(count + IN_FLIGHT):
                if number < count:
                    await client.send("im.send", _message())
                if number >= IN_FLIGHT:
                    assert (await client.receive()).rpc is not None
            took_many = time.perf_counter() - began
        told = {
            "round_trip_ms": _summary(trips),
            "one_over_mean_round_trip": round(len(trips) / sum(trips)),
            "a_second": round(count / took),
            f"a_second_with_{IN_FLIGHT}_under_way": round(count / took_many),
        }
        _say(f"one at a time: {told}")
        return told

    # ---------------------------------------------------------------- inside

    @asynccontextmanager
    async def _client(
        self, user: str, device: str = "rpc", *, position: dict[str, Any] | None = None
    ) -> AsyncIterator[RpcClient]:
        async with rpc_client(self._system, self._url, user, device=device, position=position) as client:
            yield client

    async def _timed(self, work: Callable[[], Awaitable[object]], count: int) -> dict[str, Any]:
        """Do it so often, one after the other; return the times and the server's CPU for one."""
        times = []
        cpu = self._cpu_s()
        for _ in range(count):
            began = time.perf_counter()
            await work()
            times.append(time.perf_counter() - began)
        return {**_summary(times), "cpu_us": round((self._cpu_s() - cpu) / count * 1e6)}

    def _cpu_s(self) -> float:
        return cpu_s(self._system.endpoints.pid)


def _message() -> dict[str, Any]:
    return {"to": "receiver", "client_msg_id": new_uuid(), "body": {"text": "x" * 64}}


def _summary(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in ms."""
    ordered = sorted(seconds)
    made = {f"p{p}_ms": round(percentile(ordered, p) * 1000, 2) for p in (50, 99)}
    return made | {"mean_ms": round(sum(ordered) / len(ordered) * 1000, 2)}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@asynccontextmanager
async def _bench(scale: _Scale) -> AsyncIterator[_Bench]:
    with TemporaryDirectory(prefix="roadstead-") as name:
        folder = Path(name) / "data"
        folder.mkdir(mode=0o700)
        await _fill(DataFolder(folder).messages_db, scale.entries)
        up = UpProcess(folder, *(part for setting in SETTINGS for part in ("--set", setting)))
        try:
            yield _Bench(up.start())
        finally:
            up.stop()


async def _fill(path: Path, entries: int) -> None:
    """Write a long timeline of one user, and many conversations of another."""
    store = await SqliteMessageStore.open(path)
    try:
        drafts = [_draft(n, f"friend-{n % 50}", READER) for n in range(entries)]
        for _ in range(IN_CONVERSATION):
            drafts += [_draft(len(drafts) + n, f"friend-{n}", LISTER) for n in range(CONVERSATIONS)]
        for first in range(0, len(drafts), GROUP):
            executed = await store.execute(drafts[first : first + GROUP])
            assert all(isinstance(outcome, Appended) for outcome in executed.outcomes)
    finally:
        await store.close()
    _say(f"{len(drafts)} messages are stored")


def _draft(number: int, sender: str, to: str) -> Draft:
    return Draft(number + 1, sender, "d", to, 0, f"m{number}", "text", BODY, Timestamp(AT + number))
