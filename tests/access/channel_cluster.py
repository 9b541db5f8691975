"""Several access nodes' channels in one process: the real code on simulated time and network.

The event loop is asyncio's own, except that nothing ever sleeps: when there is nothing to do, time jumps to the next
timer. Messages between nodes are encoded and decoded as on the wire, and may be late, lost or doubled. A node may be
killed: nothing of it goes on, and nobody is told but the registry, after a while.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from random import Random
from typing import Any

import msgspec

from access.channel_metrics import ChannelMetrics
from access.channels import Channels
from access.core.namespaces import ChannelSettings, Namespace
from access.core.outgoing import Form
from access.core.placement import Node, View
from access.core.protocol import (
    Close,
    HistoryRequest,
    HistoryResult,
    PublishRequest,
    ReplyError,
    SubscribeRequest,
    SubscribeResult,
)
from access.fanout import Fanout
from access.identity import SubscriptionClaims
from access.peers import COLLECT, DROP, HAPPENED, MOVED, NUDGE, REPLICATE
from base.clock import Instant, SystemClock, Timestamp
from base.errors import DeadlineExceeded, PeerUnavailable, RoadsteadError, TokenExpired, Unauthenticated, from_wire
from base.metrics import Metrics
from base.peer import Method

EPOCH_MS = 1_700_000_000_000
HARMLESS_TWICE = frozenset(method.name for method in (COLLECT, REPLICATE, DROP, NUDGE, HAPPENED, MOVED))
GONE_AFTER_S = 1.0
"""How long the registry takes to notice that a node is dead."""


class _Selector(selectors.SelectSelector):
    loop: SimLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for ever"
        self.loop.now += timeout
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when there is nothing to do."""

    def __init__(self) -> None:
        self.now = 1_000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self.failures: list[BaseException] = []
        self.set_exception_handler(self._failed)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(context.get("exception") or AssertionError(context["message"]))

    def time(self) -> float:
        return self.now


class SimTime:
    """The loop's time as a clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def monotonic(self) -> Instant:
        return Instant(round(self._loop.time() * 1000))

    def realtime(self) -> Timestamp:
        return Timestamp(EPOCH_MS + round(self._loop.time() * 1000))

    def stopwatch(self) -> float:
        return self._loop.time()

    async def sleep_until(self, instant: Instant) -> None:
        await asyncio.sleep(instant / 1000 - self._loop.time())


class Net:
    """Between the nodes. What is not set to be faulty takes a millisecond and keeps its order."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.nodes: dict[str, SimPeers] = {}
        self.late_permille = 0
        self.late_s = 0.4
        self.lost_permille = 0
        self.twice_permille = 0
        self.cut: set[frozenset[str]] = set()
        """Pairs of nodes that cannot reach each other."""
        self.last: dict[tuple[str, str], float] = {}

    def chance(self, permille: int) -> bool:
        return permille > 0 and self.random.randrange(1000) < permille

    def carry(self, sender: str, receiver: str, deliver: Callable[[], None]) -> None:
        """Bring a message to a live node, unless it is lost."""
        if self.chance(self.lost_permille):
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + 0.001
        if self.chance(self.late_permille):
            at += self.random.random() * self.late_s
        else:
            link = sender, receiver
            at = self.last[link] = max(at, self.last.get(link, 0.0) + 1e-6)
        to = self.nodes.get(receiver)

        def arrive() -> None:
            if to is not None and self.nodes.get(receiver) is to and frozenset((sender, receiver)) not in self.cut:
                deliver()

        loop.call_at(at, arrive)

    def is_up(self, sender: str, receiver: str) -> bool:
        return {sender, receiver} <= self.nodes.keys() and frozenset((sender, receiver)) not in self.cut


class SimPeers:
    """Implements `Peers`."""

    def __init__(self, net: Net, node: str, life: int) -> None:
        self.node = node
        self.life = life
        self.net = net
        self.tasks: set[asyncio.Task[None]] = set()
        self.handlers: dict[str, tuple[Method[Any, Any], Callable[[Any, str], Any]]] = {}
        self.view: Callable[[View], None] = lambda _view: None

    async def call(self, node: str, method: Method[Any, Any], request: Any, *, deadline_ms: int) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if not future.done():
                future.set_result(reply)

        self.ask(node, method, request, deadline_ms=deadline_ms, done=done)
        reply = await future
        if isinstance(reply, RoadsteadError):
            raise reply
        return reply

    def ask(
        self, node: str, method: Method[Any, Any], request: Any, *, deadline_ms: int, done: Callable[[Any], None]
    ) -> None:
        if not self.net.is_up(self.node, node):
            raise PeerUnavailable(f"no stream to {node}")
        body = msgspec.msgpack.encode(request)
        loop = asyncio.get_running_loop()
        answered = False

        def finish(reply: Any) -> None:
            nonlocal answered
            if not answered and self.net.nodes.get(self.node) is self:
                answered = True
                timer.cancel()
                done(reply)

        timer = loop.call_later(deadline_ms / 1000, lambda: finish(DeadlineExceeded("no reply in time")))

        def answer(reply: Any) -> None:
            if isinstance(reply, RoadsteadError):
                failure = from_wire(reply.code.number, reply.message, reply.detail)
                self.net.carry(node, self.node, lambda: finish(failure))
            else:
                encoded = msgspec.Raw(msgspec.msgpack.encode(reply))
                self.net.carry(node, self.node, lambda: finish(method.decode_reply(encoded)))

        def arrive() -> None:
            self.net.nodes[node].serve_one(method, body, self.node, answer)

        self.net.carry(self.node, node, arrive)
        if method.name in HARMLESS_TWICE and self.net.chance(self.net.twice_permille):
            self.net.carry(self.node, node, arrive)

    def push(self, node: str, method: Method[Any, Any], message: Any) -> None:
        if not self.net.is_up(self.node, node):
            raise PeerUnavailable(f"no stream to {node}")
        body = msgspec.msgpack.encode(message)

        def arrive() -> None:
            self.net.nodes[node].serve_one(method, body, self.node, lambda _reply: None)

        self.net.carry(self.node, node, arrive)
        if method.name in HARMLESS_TWICE and self.net.chance(self.net.twice_permille):
            self.net.carry(self.node, node, arrive)

    tell = push

    def serve_one(self, method: Method[Any, Any], body: bytes, peer: str, answer: Callable[[Any], None]) -> None:
        handler = self.handlers[method.name][1]
        try:
            reply = handler(method.decode_request(msgspec.Raw(body)), peer)
        except RoadsteadError as error:
            answer(error)
            return
        if hasattr(reply, "__await__"):
            task = asyncio.get_running_loop().create_task(self._answer_later(reply, answer))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            answer(reply)

    async def _answer_later(self, reply: Any, answer: Callable[[Any], None]) -> None:
        try:
            result = await reply
        except RoadsteadError as error:
            answer(error)
        else:
            answer(result)

    def serve(self, method: Method[Any, Any], handler: Callable[[Any, str], Any]) -> None:
        assert method.name not in self.handlers
        self.handlers[method.name] = method, handler

    hear = serve

    def on_view(self, listener: Callable[[View], None]) -> None:
        self.view = listener

    def on_connected(self, listener: Callable[[str], None]) -> None:
        self.connected = listener


class FakeConnection:
    """A connection that keeps what is written to it, in JSON lines."""

    form = Form.STREAM_JSON
    client: object | None = None
    code = 1006
    session = ""

    def __init__(self) -> None:
        self.pushes: list[dict[str, Any]] = []
        self.on_push: Callable[[dict[str, Any]], None] | None = None

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        del replaces
        push = msgspec.json.decode(frame)["push"]
        self.pushes.append(push)
        if self.on_push is not None:
            self.on_push(push)

    def close(self, close: Close) -> None:
        raise AssertionError(close)

    def abort(self) -> None:
        raise AssertionError("aborted")

    def queued(self) -> int:
        return 0


class FakeMember:
    """A client, as channels see it."""

    def __init__(self, client_id: str, user: str, info: bytes = b"") -> None:
        self.id = client_id
        self.user = user
        self.info = info
        self.connection = FakeConnection()

    def of(self, kind: str) -> list[Any]:
        """Return the pushes of a kind that were written."""
        return [push[kind] for push in self.connection.pushes if kind in push]


def verify(token: str, channel: str, user: str) -> SubscriptionClaims:
    """Take tokens that look like `channel/user`, `channel/user/expires_at`; `expired` is expired."""
    if token == "expired":
        raise TokenExpired("expired")
    of_channel, of_user, *rest = token.split("/")
    if (of_channel, of_user) != (channel, user):
        raise Unauthenticated("for another one")
    return SubscriptionClaims(b'{"by":"token"}', int(rest[0]) if rest else 0)


class SimNode:
    """One access node's channels."""

    def __init__(
        self,
        net: Net,
        name: str,
        life: int,
        namespaces: tuple[Namespace, ...],
        settings: ChannelSettings,
        **fanout: int,
    ) -> None:
        self.name = name
        self.life = life
        self.peers = SimPeers(net, name, life)
        self.metrics = Metrics(name)
        self.fanout = Fanout(SystemClock(), **fanout)
        self.time = SimTime(asyncio.get_running_loop())
        self.channels = Channels(
            self.peers,
            self.time,
            namespaces=namespaces,
            settings=settings,
            verify=verify,
            fanout=self.fanout,
            metrics=ChannelMetrics(self.metrics, node=name),
        )
        net.nodes[name] = self.peers
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.channels.run()), loop.create_task(self.fanout.run())]

    def kill(self) -> None:
        """End it at once; nothing of it goes on."""
        del self.peers.net.nodes[self.name]
        for task in (*self.tasks, *self.peers.tasks):
            task.cancel()

    @property
    def custody(self) -> Any:
        return self.channels._owner._custody

    async def subscribe(self, member: FakeMember, channel: str, **request: Any) -> SubscribeResult | ReplyError:
        """Subscribe, with the reply written."""
        result = await self.channels.subscribe(member, SubscribeRequest(channel, **request))
        if isinstance(result, SubscribeResult):
            self.channels.subscribed(member, channel, result)
        return result

    async def publish(self, member: FakeMember, channel: str, data: bytes) -> ReplyError | None:
        return await self.channels.publish(member, PublishRequest(channel, msgspec.Raw(data)))

    async def history(self, member: FakeMember, channel: str, **request: Any) -> Any:
        return await self.channels.history(member, HistoryRequest(channel, **request))


class Cluster:
    """The nodes and their registry."""

    def __init__(
        self,
        *namespaces: Namespace,
        settings: ChannelSettings | None = None,
        seed: int = 0,
        **fanout: int,
    ) -> None:
        self.random = Random(seed)
        self.net = Net(self.random)
        self.namespaces = namespaces
        self.settings = settings or ChannelSettings()
        self.nodes: dict[str, SimNode] = {}
        self.registered: dict[str, Node] = {}
        self.views = 0
        self.view_late_s = 0.0
        self._fanout = fanout
        self._seen: dict[str, int] = {}
        self._lives: dict[str, int] = {}

    def start(self, *names: str) -> None:
        """Start nodes, all at once; each knows of those before."""
        for name in names:
            life = self._lives[name] = self._lives.get(name, 0) + 1
            self.nodes[name] = SimNode(self.net, name, life, self.namespaces, self.settings, **self._fanout)
            self._seen.pop(name, None)
            self.registered[name] = Node(name, life)
            for other, node in self.nodes.items():
                if other != name:
                    node.peers.connected(name)
        self.publish_view()

    def drain(self, name: str) -> None:
        """The node says that it takes no more."""
        self.registered[name] = Node(name, self.nodes[name].life, is_draining=True)
        self.publish_view()

    def kill(self, name: str) -> None:
        """End a node at once; the registry notices later."""
        node = self.nodes.pop(name)
        node.kill()

        def forget() -> None:
            if self.registered.get(name) == Node(name, node.life) or name not in self.nodes:
                self.registered.pop(name, None)
                self.publish_view()

        asyncio.get_running_loop().call_later(GONE_AFTER_S, forget)

    def publish_view(self) -> None:
        """Tell every node who lives, in order, each after a while of its own."""
        self.views += 1
        number, view = self.views, View(self.registered.values())
        for name, node in self.nodes.items():

            def adopt(name: str = name, node: SimNode = node) -> None:
                if self.nodes.get(name) is node and self._seen.get(name, 0) < number:
                    self._seen[name] = number
                    node.peers.view(view)

            if self.view_late_s:
                asyncio.get_running_loop().call_later(self.random.random() * self.view_late_s, adopt)
            else:
                adopt()

    def owner(self, channel: str) -> str:
        owner = View(self.registered.values()).owner(channel)
        assert owner is not None
        return owner

    def check_invariants(self) -> None:
        for node in self.nodes.values():
            node.custody.check_invariants()
            node.channels._owner._roster.check_invariants()

    async def stop(self) -> None:
        """End all nodes, and raise what went wrong in one."""
        tasks = [task for node in self.nodes.values() for task in node.tasks]
        for node in tuple(self.nodes.values()):
            node.kill()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


def simulate(main: Callable[[], Any]) -> Any:
    """Run a coroutine function to its end on simulated time."""
    loop = SimLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(main())
    if loop.failures:
        raise loop.failures[0]
    return result


# ---------------------------------------------------------------- what tests have in common

FULL = Namespace(
    history_size=100,
    presence=True,
    join_leave=True,
    force_push_join_leave=True,
    force_recovery=True,
    allow_publish="subscriber",
    allow_history="subscriber",
    allow_presence="subscriber",
)
"""What the SDKs' own tests configure."""
SMALL = Namespace(name="small", history_size=2, force_recovery=True, allow_subscribe="anyone", allow_publish="anyone")
BARE = Namespace(name="bare", allow_subscribe="anyone", allow_publish="anyone")
PLAIN = Namespace(
    name="plain",
    history_size=10,
    join_leave=True,
    presence=True,
    allow_subscribe="anyone",
    allow_publish="anyone",
    allow_history="anyone",
    allow_presence="anyone",
)
NAMES = ("a", "b", "c")

Test = Callable[..., Coroutine[Any, Any, None]]


def simulated(test: Test) -> Callable[..., None]:
    """Run a test on simulated time."""

    @wraps(test)
    def run(**arguments: Any) -> None:
        simulate(lambda: test(**arguments))

    return run


def cluster(*names: str, settings: ChannelSettings | None = None, **fanout: int) -> Cluster:
    made = Cluster(FULL, SMALL, BARE, PLAIN, settings=settings, **fanout)
    made.start(*names)
    return made


def alice(number: int = 1) -> FakeMember:
    return FakeMember(f"alice-{number}", "alice", b'{"name":"A"}')


def bob() -> FakeMember:
    return FakeMember("bob-1", "bob")


def token(channel: str, member: FakeMember, *expires_at: int) -> str:
    return "/".join((channel, member.user, *map(str, expires_at)))


async def subscribed(nodes: Cluster, name: str, member: FakeMember, channel: str, **request: Any) -> SubscribeResult:
    if ":" not in channel and "token" not in request:
        request["token"] = token(channel, member)
    result = await nodes.nodes[name].subscribe(member, channel, **request)
    assert isinstance(result, SubscribeResult), result
    return result


async def a_moment() -> None:
    """Longer than a message takes, shorter than anything that is repeated."""
    await asyncio.sleep(0.05)


def datas(member: FakeMember) -> list[Any]:
    return [publication["data"] for publication in member.of("pub")]


def published(result: HistoryResult | SubscribeResult) -> list[Any]:
    return [msgspec.json.decode(publication.data) for publication in result.publications]
