"""Access nodes in processes of their own, and stock clients that publish and subscribe at all of them.

Each client keeps a copy of every channel, as an application would, and publishes into all of them; a backend does so
over HTTP. Clients reach the nodes through an address that stands for all of them, since a stock SDK knows only one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import centrifuge
import jwt

from access.core import placement
from base.errors import RoadsteadError
from roadstead.api import call_api
from roadstead.local import System, UpProcess

TOKEN_KEY = "k" * 32
SETTLE_S = 20.0
PAUSE_S = 0.2
"""Between two publications of one client into one channel."""
BACKEND = "backend"
CONFIGURATION = f"""
[node]
registration_ttl_ms = 3000
[access]
token_key = "{TOKEN_KEY}"
subscribe_inbox = false
stop_drain_ms = 1000
drain_grace_ms = 1000
[[access.namespaces]]
name = "room"
history_size = 10000
force_recovery = true
presence = true
allow_subscribe = "anyone"
allow_publish = "subscriber"
allow_history = "subscriber"
allow_presence = "subscriber"
"""


class Node:
    """An access node in a process of its own; or, without one, that of `up`."""

    def __init__(self, name: str, url: str, client_url: str, process: subprocess.Popen[str] | None = None) -> None:
        self.name = name
        self.url = url
        address = urlsplit(client_url)
        self.address = (address.hostname, address.port)
        self.process = process

    def kill(self) -> None:
        """End it at once: kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def drain(self) -> None:
        """Tell it to end, and wait until it has. It has nothing to complain about."""
        assert self.process is not None
        assert self.process.stderr is not None
        self.process.terminate()
        assert await asyncio.to_thread(self.process.wait, SETTLE_S) == 0
        assert self.process.stderr.read() == ""

    async def owned(self) -> int:
        """How many channels it owns."""
        owned: int = (await call_api("GET", f"{self.url}/debug/statistics"))["channels"]["custody"]["owned"]
        return owned


class Cluster:
    """The access nodes that there are, and an API key for them."""

    def __init__(self, system: System, config: Path, processes: AsyncExitStack) -> None:
        self.key = system.data.secrets().api_key
        (name,) = system.endpoints.access
        self.nodes = [Node(name, system.endpoints.access[name], system.endpoints.clients[name])]
        self._command = [sys.executable, "-m", "roadstead", "access", "serve", "--json", "--client-port", "0"]
        self._command += ["--data", str(system.data.path), "--config", str(config)]
        self._processes = processes

    async def add(self, *names: str) -> list[Node]:
        """Start nodes, and return when all are ready."""
        started = [self._start(name) for name in names]
        added = []
        for process in started:
            assert process.stdout is not None
            ready = json.loads(await asyncio.to_thread(process.stdout.readline))
            added.append(Node(ready["name"], ready["url"], ready["client_url"], process))
        self.nodes += added
        return added

    def view(self) -> placement.View:
        """Who owns what, of these nodes."""
        return placement.View(placement.Node(node.name, 1) for node in self.nodes)

    def _start(self, name: str) -> subprocess.Popen[str]:
        command = [*self._command, "--name", name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._processes.enter_context(process)
        self._processes.callback(process.kill)
        return process

    def is_shared(self, channels: Sequence[str]) -> Callable[[], Awaitable[bool]]:
        """Return whether each node owns what it should."""
        view = self.view()
        shares = [sum(view.owner(channel) == node.name for channel in channels) for node in self.nodes]

        async def look() -> bool:
            return [await node.owned() for node in self.nodes] == shares

        return look

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask any node, and another one if that does not answer."""
        while True:
            for node in tuple(self.nodes):
                with suppress(RoadsteadError):
                    return await call_api(method, node.url + path, credential=self.key, body=body)
            await asyncio.sleep(0.05)


class Pool:
    """One address for all nodes: each connection goes to the next node that takes it, the first one to `home`."""

    def __init__(self, cluster: Cluster, home: Node) -> None:
        self._cluster = cluster
        self._next = cluster.nodes.index(home)
        self._open = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen, and yield where."""
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/connection/websocket"
        async with asyncio.timeout(SETTLE_S):
            while self._open:  # noqa: ASYNC110 - connections end one by one, there is no one event
                await asyncio.sleep(0.01)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            there_reader, there_writer = await self._dial()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, there_writer))
                tasks.create_task(_pump(there_reader, writer))
        finally:
            self._open -= 1

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            node = self._cluster.nodes[self._next % len(self._cluster.nodes)]
            self._next += 1
            with suppress(OSError):
                return await asyncio.open_connection(*node.address)
            await asyncio.sleep(0)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


def said(publication: centrifuge.Publication) -> Any:
    """What was published. An SDK that speaks protobuf leaves it as it came."""
    return json.loads(publication.data) if isinstance(publication.data, bytes) else publication.data


class Copy(centrifuge.SubscriptionEventHandler):
    """What a client has of one channel."""

    def __init__(self) -> None:
        self.epoch = ""
        self.begin = 0
        """What is up to here is in the history, which an application loads when it starts over."""
        self.offset = 0
        self.data: dict[int, Any] = {}
        self.restarts = 0
        self.faults: list[str] = []

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        position = ctx.stream_position
        assert position is not None
        if ctx.recovered:
            if position.epoch != self.epoch:
                self.faults.append(f"recovered from {self.epoch} into {position.epoch}")
            return
        self.restarts += bool(self.epoch)
        self.epoch, self.begin, self.offset = position.epoch, position.offset, position.offset
        self.data.clear()

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        if ctx.pub.offset != self.offset + 1:
            self.faults.append(f"{ctx.pub.offset} after {self.offset}")
        self.offset = ctx.pub.offset
        self.data[self.offset] = said(ctx.pub)


class Phone(centrifuge.ClientEventHandler):
    """A user's stock client, subscribed to all channels."""

    def __init__(self, user: str, home: Node, *, is_protobuf: bool) -> None:
        self.user = user
        self.home = home
        self.id = ""
        self.is_protobuf = is_protobuf
        self.copies: dict[str, Copy] = defaultdict(Copy)
        self.connects = 0
        self.subscriptions: dict[str, centrifuge.Subscription] = {}

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        self.id = ctx.client
        self.connects += 1

    async def publish(self, channel: str, number: int) -> None:
        """Raises CentrifugeError if it was not acknowledged."""
        data = {"by": self.user, "n": number}
        await self.subscriptions[channel].publish(json.dumps(data).encode() if self.is_protobuf else data)

    @asynccontextmanager
    async def subscribed(self, cluster: Cluster, channels: Sequence[str]) -> AsyncIterator[None]:
        """Connect to its home, and stay connected somewhere."""
        async with Pool(cluster, self.home).listening() as address:
            token = jwt.encode({"sub": self.user}, TOKEN_KEY, "HS256")
            sdk = centrifuge.Client(
                address, events=self, token=token, use_protobuf=self.is_protobuf, max_reconnect_delay=0.5, proxy=None
            )
            await sdk.connect()
            for channel in channels:
                made = sdk.new_subscription(channel, events=self.copies[channel], max_resubscribe_delay=0.5)
                self.subscriptions[channel] = made
                await made.subscribe()
                await made.ready(timeout=SETTLE_S)
            try:
                yield
            finally:
                await sdk.disconnect()


class Traffic:
    """Everybody publishes into every channel, one publication after the other; what is refused is not sent again.

    The backend's is: under the same key, until it is acknowledged.
    """

    def __init__(self, cluster: Cluster, phones: list[Phone], channels: Sequence[str]) -> None:
        self.phones = phones
        self.channels = channels
        self.cluster = cluster
        self.acknowledged: dict[tuple[str, str], list[int]] = defaultdict(list)
        """(channel, who) -> the numbers."""
        self.acknowledged_at: dict[str, dict[float, float]] = defaultdict(dict)
        """Channel -> when a client began a publication that was acknowledged -> when it was."""
        self.unknown = 0
        """Publications answered with an error: they may appear, or not."""
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Publish until the block ends, and everything is answered."""
        async with asyncio.TaskGroup() as tasks:
            for channel in self.channels:
                tasks.create_task(self._publish_for_backend(channel))
                for phone in self.phones:
                    tasks.create_task(self._publish(phone, channel))
            yield
            self._stop.set()

    async def _publish(self, phone: Phone, channel: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            began = time.monotonic()
            try:
                await phone.publish(channel, number)
            except centrifuge.ReplyError:
                self.unknown += 1
            except centrifuge.CentrifugeError:
                pass  # its own connection ended
            else:
                self.acknowledged[channel, phone.user].append(number)
                self.acknowledged_at[channel][began] = time.monotonic()
            await asyncio.sleep(PAUSE_S)

    async def _publish_for_backend(self, channel: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            body = {"channel": channel, "data": {"by": BACKEND, "n": number}, "idempotency_key": str(number)}
            await self.cluster.call("POST", "/v1/channels/publish", body)
            self.acknowledged[channel, BACKEND].append(number)
            await asyncio.sleep(PAUSE_S)

    async def recovered(self, since: float) -> dict[str, float]:
        """How many seconds after an instant each channel acknowledged what a client began to publish after it."""
        took: dict[str, float] = {}
        async with asyncio.timeout(SETTLE_S):
            while len(took) < len(self.channels):
                for channel in self.channels:
                    ends = [end for began, end in self.acknowledged_at[channel].items() if began > since]
                    if ends:
                        took.setdefault(channel, min(ends) - since)
                await asyncio.sleep(0.02)
        return took


@contextmanager
def running(folder: Path) -> Iterator[tuple[System, Path]]:
    """The system, with one access node of its own, and its configuration."""
    config = folder / "roadstead.toml"
    config.write_text(CONFIGURATION)
    few = ["up.access_nodes=1", "up.status_nodes=1", "up.spare_status_nodes=0"]
    flags = [part for setting in few for part in ("--set", setting)]
    process = UpProcess(folder / "data", "--config", str(config), *flags)
    try:
        yield process.start(), config
    finally:
        process.stop()


@asynccontextmanager
async def cluster_of(folder: Path, *names: str) -> AsyncIterator[Cluster]:
    """A system and these access nodes, which know each other."""
    with running(folder) as (system, config):
        async with AsyncExitStack() as processes:
            cluster = Cluster(system, config, processes)
            await cluster.add(*names)
            yield cluster


@asynccontextmanager
async def connected(cluster: Cluster, phones: list[Phone], channels: Sequence[str]) -> AsyncIterator[Traffic]:
    """All of them subscribed to everything."""
    async with AsyncExitStack() as stack:
        for phone in phones:
            await stack.enter_async_context(phone.subscribed(cluster, channels))
        yield Traffic(cluster, phones, channels)
