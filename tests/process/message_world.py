"""A running system whose clients talk while everything breaks, up to the moment when nothing is missing any more."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

import aiohttp
import msgspec

from base.errors import PeerUnavailable
from roadstead.history.recorder import Recorder
from roadstead.local import System, UpProcess
from tests.process.message_clients import LightDevice
from tests.process.message_network import KINDS, Front
from tests.process.message_traffic import Group, GroupKind, SdkDevice, Traffic
from tests.process.message_witness import Entries, Page

__all__ = ["PAGE", "SETTINGS", "World", "flags_of", "until"]

T = TypeVar("T")
Step = tuple[int, Callable[[], Awaitable[None]]]
LIGHT_USERS = 24
SDK_USERS = 4
ABSENT = 108
"""Members of a group who never connect, so that it is too large to be pushed directly."""
SETTLE_S = 60.0
CONNECT_S = 10.0
PAGE = 1_000
SETTINGS = {
    "im.user_calls_per_second": 0,
    "im.device_calls_per_second": 0,
    "im.conversation_calls_per_second": 0,
    "access.ping_interval_ms": 1_500,
    "access.pong_deadline_ms": 1_000,
    "access.audit_interval_ms": 1_000,
    "access.recovery_entries_max": 300,
    "access.accepts_per_second": 0,
}


class _Made(msgspec.Struct, frozen=True):
    """A group, and the seq of what was done to it."""

    cid: str
    seq: int


async def until(holds: Callable[[], bool], deadline_s: float, how: Callable[[], str]) -> None:
    """Wait for something of this process."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < deadline, how()
        await asyncio.sleep(0.02)


def flags_of(settings: dict[str, object]) -> list[str]:
    """Return the flags of a command that set that."""
    return [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]


class Startable(Protocol):
    """The processes of a system."""

    def start(self) -> System:
        """Start them and wait until they serve."""
        ...

    def stop(self) -> int:
        """End them in order."""
        ...


async def _connected(device: SdkDevice) -> None:
    """Connect for the first time, to a system that has just started."""
    give_up = time.monotonic() + CONNECT_S
    while True:
        try:
            await device.client.connect()
        except PeerUnavailable:
            assert time.monotonic() < give_up, f"{device.user} could not connect"
            await asyncio.sleep(0.2)
        else:
            return


class World:
    """The system, its clients, and the history that they make."""

    proxied: tuple[str, ...] = ("access-1", "access-2")
    """Access nodes that clients reach through a proxy."""
    light_device = LightDevice

    def __init__(self, folder: Path, messages: int, *, seed: int, tasks: asyncio.TaskGroup) -> None:
        self.random = Random(seed)
        self.file = folder / "history.jsonl"
        self.recorder = Recorder(self.file, process="clients")
        self.messages = messages
        self.traffic = self.new_traffic()
        self.tls = ssl.create_default_context()
        """Whom to believe: the CA of the system's folder too, once it is there."""
        self.front = Front(self.random, tasks, self.tls)
        self.light: list[LightDevice] = []
        self.sdk: list[SdkDevice] = []
        self.faults: Counter[str] = Counter()
        self.up = UpProcess(folder / "data", *flags_of(SETTINGS))
        self.process: Startable = self.up
        self.system: System
        self.key = ""
        self.http: aiohttp.ClientSession
        self.errors: list[str] = []
        """Defects of the clients here."""
        self._tasks = tasks
        self._runs: list[asyncio.Task[None]] = []

    def new_traffic(self) -> Traffic:
        """Return the script of this history."""
        return Traffic(self.messages, self.random)

    @property
    def users(self) -> list[str]:
        """All users that connect."""
        return [*dict.fromkeys(device.user for device in self.light), *(device.user for device in self.sdk)]

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """The system can be asked by HTTP until the block ends."""
        timeout, connector = aiohttp.ClientTimeout(total=5.0), aiohttp.TCPConnector(ssl=self.tls)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self.http:
            yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything is started, and ended in the end."""
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: self.errors.append(f"{context['message']}: {context.get('exception')!r}")
        )
        async with self.front.running(self.proxied):
            try:
                await self.start()
                await self.populate()
                yield
            finally:
                self.errors += [f"{device.user} was ended: {end!r}" for device in self.sdk for end in device.ends]
                for run in self._runs:
                    run.cancel()
                for device in self.sdk:
                    await device.client.close()
                await asyncio.to_thread(self.process.stop)
                self.recorder.close()

    def counts(self) -> dict[str, int]:
        """What happened, and how often."""
        return {
            **self.faults,
            "connects": sum(device.connects for device in self.light),
            "late calls": sum(device.repeated for device in self.light),
            "messages by the SDK": sum(device.sent for device in self.sdk),
        }

    async def start(self) -> None:
        """Start the system, or start it again."""
        self.system = await asyncio.to_thread(self.process.start)
        if self.system.data.ca.exists():
            self.tls.load_verify_locations(self.system.data.ca)
        self.key = self.system.data.secrets().api_key
        self.front.serves(self.system)

    async def call(
        self, method: str, path: str, answer_type: type[T], body: object = None, *, params: dict[str, str] | None = None
    ) -> T:
        """Call the message services as a backend does, until they answer."""
        urls = cycle(self.system.endpoints.im.values())
        for _ in range(50):
            url = next(urls)
            headers = {"Authorization": f"Bearer {self.key}"}
            try:
                async with self.http.request(
                    method, f"{url}{path}", json=body, params=params, headers=headers
                ) as answer:
                    content = await answer.read()
                if answer.status == 200:
                    return msgspec.json.decode(content, type=answer_type)
                assert answer.status >= 500, (path, content)
            except (aiohttp.ClientError, TimeoutError):
                pass  # it is being killed, or stopped
            await asyncio.sleep(0.2)
        raise AssertionError(f"{path}: no answer")

    async def populate(self) -> None:
        """Connect everybody, and make the groups."""
        light = [f"u{number:02}" for number in range(LIGHT_USERS)]
        sdk = [f"s{number:02}" for number in range(SDK_USERS)]
        for number, user in enumerate([*light, *sdk]):
            everybody = [other for other in [*light, *sdk] if other != user]
            self.traffic.peers[user] = [everybody[(number * 5 + step * 7) % len(everybody)] for step in range(4)]
        for number, user in enumerate(sdk):
            device = SdkDevice(
                user,
                front=self.front.url,
                credential=self.key,
                tls=self.tls,
                recorder=self.recorder,
                traffic=self.traffic,
                has_view=number % 2 == 1,
            )
            await _connected(device)
            self.sdk.append(device)
        await self._make_groups(light, sdk)
        for number, user in enumerate(light):
            for name in ("phone", "desk", "pad")[: 3 if number % 8 == 0 else 2 if number % 3 == 0 else 1]:
                device = self.light_device(
                    user,
                    name,
                    front=self.front.url,
                    credential=self.key,
                    tls=self.tls,
                    recorder=self.recorder,
                    script=self.traffic,
                    random=self.random,
                )
                self.light.append(device)
        self._runs = [self._tasks.create_task(device.run()) for device in (*self.light, *self.sdk)]

    async def _make_groups(self, light: list[str], sdk: list[str]) -> None:
        await self._make_group("open", [*light[0:6], *sdk])
        await self._make_group("open", [*light[4:14], *sdk[1::2]])
        await self._make_group("read", [*light[8:20], *(f"x{number:02}" for number in range(ABSENT))])
        await self._make_group("read", light[16:24])
        await self._make_group("switched", [*light[2:12], *sdk[1::2]])
        await self._make_group("switched", [*light[12:18], *sdk[1::2]])

    async def _make_group(self, kind: GroupKind, members: list[str]) -> None:
        owner, *others = members
        key = f"group-{len(self.traffic.groups)}"
        attempt = self.recorder.invoke("create", user=owner, device="server", client_msg_id=key)
        arguments = {"client_msg_id": key, "name": key, "members": others}
        made = await self.call("POST", f"/v1/users/{owner}/im/group_create", _Made, arguments)
        cid = int(made.cid)
        self.recorder.ok(attempt, cid=cid, seq=made.seq)
        self.traffic.written[owner, key] = ""
        self.traffic.groups[cid] = Group(cid, kind, owner, tuple(members))
        if kind == "read":
            await self.switch(cid, "read")

    async def switch(self, cid: int, fan_out: str) -> None:
        """Have a conversation's strategy changed by the operator."""
        await self.call("POST", f"/v1/conversations/{cid}/changes", _Made, {"action": "fan_out", "value": fan_out})

    # ---------------------------------------------------------------- faults

    async def break_everything(self) -> None:
        """Break something after every so many messages."""
        plan = list(self._plan())
        for after, act in sorted(plan, key=lambda step: step[0]):
            await until(lambda after=after: self.traffic.begun >= after, 60, self._progress)
            await act()

    def _progress(self) -> str:
        stuck = [f"{one.user}/{one.name}: {one.state}" for one in self.light if not one.is_settled]
        return f"{self.traffic.begun} messages; {stuck}; {self.errors}"

    def _plan(self) -> Iterator[Step]:
        def times(every: int, least: int, act: Callable[[], Awaitable[None]]) -> Iterator[Step]:
            count = max(least, self.messages // every)
            for number in range(count):
                yield int(self.messages * 0.85 * (number + self.random.random()) / count), act

        yield from times(25_000, 3, self._kill)
        yield from times(25_000, 4, self._stop)
        yield from times(12_500, 4, self._switch)
        yield from times(400, 50, self._break_connection)
        yield from times(1_000, 20, self._leave)

    async def _kill(self) -> None:
        await asyncio.to_thread(self.up.kill)
        self._note("kill")
        await self.start()
        self._note("restart")

    async def _stop(self) -> None:
        os.kill(self.system.endpoints.pid, signal.SIGSTOP)
        self._note("stop")
        try:
            await asyncio.sleep(self.random.uniform(0.2, 2.0))
        finally:
            os.kill(self.system.endpoints.pid, signal.SIGCONT)
        self._note("continue")

    async def _switch(self) -> None:
        groups = [group.cid for group in self.traffic.groups.values() if group.kind == "switched"]
        number = self.faults["switch"]
        self.faults["switch"] += 1
        await self.switch(groups[number % 2], ("read", "write")[number // 2 % 2])

    async def _break_connection(self) -> None:
        proxy, kind = self.random.choice(list(self.front.proxies.values())), self.random.choice(KINDS)
        if proxy.break_one(kind):
            self._note(kind)

    async def _leave(self) -> None:
        self.random.choice(self.light).drop(self.random.uniform(0, 1.5))
        self._note("leave")

    def _note(self, kind: str) -> None:
        self.faults[kind] += 1
        self.recorder.fault(kind)

    # ---------------------------------------------------------------- the end

    async def settle(self) -> None:
        """Everything is mended; wait until everybody has everything."""
        for proxy in self.front.proxies.values():
            proxy.mend()
        async with asyncio.timeout(SETTLE_S):
            await asyncio.gather(*self._runs[len(self.light) :])
        deadline = time.monotonic() + SETTLE_S
        while (waiting := await self._unsettled()) and time.monotonic() < deadline:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.3)
        if waiting:
            self.errors.append(f"not settled: {waiting}")
        # What a view shows of groups with read fan-out no channel tells: it is judged as it is shown, and it ends where
        # the groups do.
        devices = [(device.user, device.name) for device in (*self.light, *self.sdk[::2])]
        self.recorder.quiet(devices=devices)

    async def _unsettled(self) -> list[str]:
        heads: dict[str, int] = {}
        for user in self.users:
            heads[user] = (await self.timeline(user, 0, 1)).head
        waiting = [f"{one.user}/{one.name}: {one.state}" for one in self.light if not one.is_settled]
        waiting += [f"{one.user}/{one.name}: inbox" for one in self.light if one.inbox.covered < heads[one.user]]
        waiting += [f"{one.user}/sdk" for one in self.sdk if one.client.position.offset < heads[one.user]]
        for group in self.traffic.groups.values():
            head = (await self.history(group.owner, group.cid, 0, 1)).head
            for one in self.light:
                track = one.conversations.get(group.cid)
                if track is not None and track.ends_at is None and track.covered < head:
                    waiting.append(f"{one.user}/{one.name}: {group.cid}")
            views = [one for one in self.sdk if one.has_view and group.cid in one.groups]
            waiting += [f"{one.user}/view: {group.cid}" for one in views if one.is_behind(group.cid, head)]
        return waiting

    async def timeline(self, user: str, since: int, limit: int) -> Page:
        """Read a page of a user's timeline."""
        params = {"since": str(since), "limit": str(limit)}
        return await self.call("GET", f"/v1/users/{user}/timeline", Page, params=params)

    async def history(self, user: str, cid: int, after: int, limit: int) -> Entries:
        """Read a page of a conversation as a user sees it."""
        arguments = {"cid": str(cid), "after": after, "limit": limit}
        return await self.call("POST", f"/v1/users/{user}/im/history", Entries, arguments)
