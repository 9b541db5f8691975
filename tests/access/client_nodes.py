"""The clients of a node in the hands of a test: what they are told, and backends that answer when the test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import jwt

from access.admission import Admission
from access.api import Deliver, InboxEntry
from access.brokers import Brokers
from access.channels import Channels
from access.clients import Clients
from access.commands import Commands
from access.config import AccessConfig
from access.connecting import WayIn
from access.conversations import Conversations
from access.core.outgoing import Form
from access.core.protocol import Close, Position, SubscribeResult
from access.fanout import Fanout
from access.identity import Identities
from access.inboxes import Inboxes
from access.metrics import AccessMetrics
from access.ports import Member
from access.presence import Presences
from access.refusing import RefusingBroker
from access.unproven import UnprovenSessions
from base.clock import SimClock
from base.errors import RoadsteadError
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.keys import KeyRing
from base.metrics import Metrics
from base.peer.stream import Done
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from im.api import TimelinePage
from im.client import Ends, ImClient
from scheduler.client import TicketVerifier
from status.api import Closed, Opened
from status.client import SessionReports, StatusLookups

TOKEN_KEY = "the application's secret, 32 bytes at least"
TICKET_KEY = "the scheduler's secret, 32 bytes at least"
SETTLE_S = 5.0


class Wire:
    """A client's connection, and the client at its other end."""

    form = Form.STREAM_JSON
    session = ""

    def __init__(self, node: ClientsNode) -> None:
        self.client: object | None = None
        self.code = 1006
        self.told: list[Any] = []
        self.closed: Close | None = None
        self._node = node
        node.clients.arrived(self, "192.0.2.1")

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        assert replaces is None
        assert self.closed is None
        self.told += [json.loads(line) for line in frame.splitlines()]

    def close(self, close: Close) -> None:
        assert self.closed is None
        self.closed = close
        self.code = close.code

    def abort(self) -> None:
        raise AssertionError("these tests abort nothing")

    def queued(self) -> int:
        return 0

    async def send(self, **command: Any) -> None:
        """Send a command, and let happen what comes of it at once."""
        self._node.clients.received(self, json.dumps(command).encode())
        await settle()

    async def connect(self, user: str = "ann", **claims: Any) -> None:
        await self.send(id=1, connect={"token": token(sub=user, **claims)})

    def go(self) -> None:
        self._node.clients.gone(self)

    def offsets(self, channel: str = "inbox:ann") -> list[int]:
        """The publications as the client has them in the end, from replies and pushes."""
        found = []
        for message in self.told:
            push = message.get("push", {})
            if push.get("channel") == channel:
                found.append(push["pub"]["offset"])
            found += [pub["offset"] for pub in message.get("subscribe", {}).get("publications", ())]
        return found


class FakeIm:
    """The timeline of one user, read when the test says so."""

    def __init__(self) -> None:
        self.epoch = "e"
        self.apart: dict[str, str] = {}
        """Users whose timelines are in another shard, with its epoch."""
        self.head = 0
        self.floor = 0
        """Entries up to here were trimmed."""
        self.versions: dict[str, int] = {}
        self.holds = False
        self.held: list[asyncio.Future[None]] = []
        self.told_unproven: list[list[tuple[str, int]]] = []
        self.untold: list[tuple[str, int]] = []
        """Sessions of shards that are away for one call."""
        self.failures: list[RoadsteadError] = []
        self.asked: list[tuple[str, str, str, bytes, Done]] = []
        self.waited: list[tuple[str, str, bytes]] = []
        self.refusal: RoadsteadError | None = None
        self.when_connected: list[Callable[[], None]] = []

    def on_connected(self, listener: Callable[[], None]) -> None:
        self.when_connected.append(listener)

    async def rpc(self, user: str, device: str, method: str, data: bytes) -> bytes:
        """What is called while no stream is up."""
        del device
        self.waited.append((user, method, data))
        return b'{"waited":true}'

    def ask(self, user: str, device: str, method: str, data: bytes, *, done: Done) -> None:
        """Keep who is to be told."""
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((user, device, method, data, done))

    async def unproven(self, sessions: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        self.told_unproven.append(list(sessions))
        if self.failures:
            raise self.failures.pop(0)
        untold, self.untold = self.untold, []
        return untold

    def shard_of(self, user: str) -> int:
        return int(user in self.apart)

    async def timeline(self, user: str, *, since: int, limit: int, bytes_max: int) -> TimelinePage:
        del bytes_max
        entries = [] if since < self.floor else [(n, b"1") for n in range(since + 1, self.head + 1)][:limit]
        page = TimelinePage(self.apart.get(user, self.epoch), self.head, entries)
        if self.holds:
            held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.held.append(held)
            await held
        return page

    async def heads(self, users: Sequence[str]) -> Ends:
        return Ends(dict.fromkeys(users, self.head), self.versions)

    async def answer(self, error: RoadsteadError | None = None) -> None:
        """Let the oldest reading go on."""
        held = self.held.pop(0)
        if error is None:
            held.set_result(None)
        else:
            held.set_exception(error)
        await settle()

    def store(self) -> Deliver:
        """Store an entry; return how it is pushed."""
        self.head += 1
        return Deliver(self.epoch, [InboxEntry("ann", self.head, b"1")])


class FakeReports:
    """Confirms each session at once, and keeps which are open."""

    def __init__(self) -> None:
        self.open_sessions: dict[str, Opened] = {}

    async def open(self, opened: Opened, *, deadline_ms: int) -> bool:
        del deadline_ms
        self.open_sessions[opened.session] = opened
        return True

    def close(self, closed: Closed) -> None:
        self.open_sessions.pop(closed.session, None)


class FakeChannels(RefusingBroker):
    """Application channels: who subscribed to what, and is broken where the test wants it."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[str, str]] = []
        self.breaks = ""

    def by_server(self, user: str) -> tuple[str, ...]:
        del user
        return ()

    async def subscribe_by_server(self, member: Member, channel: str, position: Position) -> SubscribeResult | None:
        del position
        self.subscriptions.append((member.user, channel))
        return SubscribeResult()

    def subscribed(self, member: Member, channel: str, result: SubscribeResult) -> None:
        del member, channel, result
        if self.breaks == "subscribed":
            raise ValueError("a defect")

    def unsubscribe(self, member: Member, channel: str) -> None:
        self.subscriptions.remove((member.user, channel))

    def gone(self, member: Member) -> None:
        if self.breaks == "gone":
            raise ValueError("a defect")
        self.subscriptions = [one for one in self.subscriptions if one[0] != member.user]


class ClientsNode:
    """`Clients` with what stands around it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = SimClock()
        self.im = FakeIm()
        self.reports = FakeReports()
        self.channels = FakeChannels()
        self.registry = Metrics("access-1")
        metrics = self.metrics = AccessMetrics(self.registry, node="access-1", connections=lambda: 0)
        config = AccessConfig(**{"token_key": TOKEN_KEY, **settings})
        site = self.site = Site(
            name=NodeId("access-1"),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=MemoryRegistry(self.clock),
            clock=self.clock,
            trust=Trust.of_key("peer-key"),
            credentials=Credentials({}),
            config=NodeConfig(),
        )
        im = cast("ImClient", self.im)
        reports = cast("SessionReports", self.reports)
        identities = Identities(
            TicketVerifier(KeyRing.of({"k1": TICKET_KEY}), node=site.name), token_key=config.token_key
        )
        self.inboxes = Inboxes(config, im, metrics, node=site.name)
        brokers = Brokers(
            inboxes=self.inboxes,
            conversations=Conversations(config, im, metrics, Fanout(self.clock), node=site.name),
            presences=Presences(config, self.clock, metrics, statuses=cast("StatusLookups", None), watches=None),
            channels=cast("Channels", self.channels),
        )
        self.admission = Admission(config, self.clock, metrics)
        self.way_in = WayIn(config, site, identities=identities, brokers=brokers, reports=reports, metrics=metrics)
        self.clients = Clients(
            config,
            site,
            admission=self.admission,
            way_in=self.way_in,
            commands=Commands(
                config, site, brokers=brokers, identities=identities, im=im, reports=reports, metrics=metrics
            ),
            brokers=brokers,
            reports=reports,
            metrics=metrics,
        )

        self.unproven = UnprovenSessions(im, metrics, node=site.name)
        self.clients.on_gone(self.unproven.gone)

    def wire(self) -> Wire:
        return Wire(self)

    async def let_pass(self, ms: int) -> None:
        self.clock.advance(ms)
        self.clients._tick(self.clock.monotonic())
        await settle()

    async def push(self, deliver: Deliver) -> None:
        self.inboxes.deliver(deliver, "im-1")
        await settle()


@asynccontextmanager
async def clients_node(**settings: Any) -> AsyncIterator[ClientsNode]:
    """Run the clients of a node. Whatever ends the node's own tasks ends the test."""
    node = ClientsNode(**settings)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(part.run()) for part in (node.clients, node.inboxes, node.unproven)]
        await settle()
        yield node
        for task in running:
            task.cancel()


def token(**claims: Any) -> str:
    return jwt.encode(claims, TOKEN_KEY, algorithm="HS256")


async def settle() -> None:
    """Let everything run that needs no clock."""
    for _ in range(20):
        await asyncio.sleep(0)
