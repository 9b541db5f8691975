"""The drain as a node carries it out: who is told what, by which targets, and what it counts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from access.admission import Admission
from access.api import SERVICE, NodeReport
from access.client import Client
from access.clients import Clients
from access.config import AccessConfig
from access.core.outgoing import Form
from access.core.session import Phase, Session, SessionPolicy
from access.drain import Drain
from access.metrics import AccessMetrics
from access.ports import Connection
from access.redirect import Redirects
from base.clock import SystemClock, Timestamp
from base.core.registry import ServiceInstance
from base.errors import NotFound
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.keys import KeyRing
from base.metrics import Metrics
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.client import TicketSigner, TicketVerifier
from status.api import Opened

KEY = "a-secret-of-at-least-thirty-two-bytes"
SETTLE_S = 5.0


class Wire:
    """A connection that keeps what is written."""

    form = Form.STREAM_JSON
    client: object | None = None
    code = 1000
    session = ""

    def __init__(self) -> None:
        self.moves: list[dict[str, Any]] = []

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        assert replaces is None
        self.moves.append(json.loads(frame)["push"]["message"]["data"]["move"])


class Here:
    """The clients of the node, in the place of `Clients`."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.closed: list[str] = []
        self._gone: Callable[[Client], None] | None = None

    def __iter__(self) -> Iterator[Client]:
        return iter(tuple(self.clients.values()))

    def on_gone(self, listener: Callable[[Client], None]) -> None:
        self._gone = listener

    def add(self, name: str, phase: Phase = Phase.OPEN) -> Wire:
        wire = Wire()
        session = Session(SessionPolicy(8))
        session.phase = phase
        client = self.clients[name] = Client(name, cast("Connection", wire), session, address="127.0.0.1")
        client.user = name
        client.opened = Opened(name, name, 1, "phone", "ios", "online", Timestamp(0))
        return wire

    def go(self, name: str) -> None:
        assert self._gone is not None
        self._gone(self.clients.pop(name))

    def send_on(self, client: Client) -> None:
        self.closed.append(client.id)
        self.go(client.id)


class Node:
    """A drain, with what stands around it."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.others: dict[str, ServiceInstance] = {}
        self.here = Here()
        self.announced: list[bool] = []
        self.announces = asyncio.Event()
        self.announces.set()
        self._metrics = Metrics("access-1")
        metrics = AccessMetrics(self._metrics, node="access-1", connections=lambda: len(self.here.clients))
        config = AccessConfig(drain_grace_ms=60_000)
        self.admission = Admission(config, self.clock, metrics)
        site = Site(
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
        self.redirects = Redirects(
            site, region="local", version="", signer=lambda: TicketSigner("k1", KEY), app_of=lambda _: ""
        )
        self.drain = Drain(
            config,
            site,
            clients=cast("Clients", self.here),
            admission=self.admission,
            redirects=self.redirects,
            announce=self._announce,
            metrics=metrics,
        )

    async def _announce(self, is_draining: bool) -> None:  # noqa: FBT001 - as the node's
        self.announced.append(is_draining)
        await self.announces.wait()

    def moves(self) -> dict[str, int]:
        """How many clients were told to go, by how that ended."""
        found = re.findall(
            r'^\w*access_moves_total{.*outcome="(\w+)".*} (\S+)$', self._metrics.render().decode(), re.MULTILINE
        )
        return {outcome: int(float(count)) for outcome, count in found}

    def other(self, name: str, *, capacity: int = 10, region: str = "local", **report: Any) -> None:
        """Another node says how it is."""
        meta = {"capacity": str(capacity), "client_url": f"http://{name}:80", "region": region}
        note = msgspec.msgpack.encode(NodeReport(**report))
        instance = ServiceInstance(
            id=name, service=SERVICE, url=f"http://{name}:1", incarnation=1, meta=meta, note=note
        )
        self.others[name] = instance
        self.redirects.saw(self.others.values())

    def lose(self, name: str) -> None:
        """Another node is gone."""
        del self.others[name]
        self.redirects.saw(self.others.values())


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not look():  # noqa: ASYNC110 - steps come by time
            await asyncio.sleep(0.01)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.drain.run())
        yield made
        running.cancel()


async def test_a_move_has_a_ticket_for_its_target(node: Node) -> None:
    """Of the client's user and device, good there and for about as long as it may take."""
    node.other("access-2")
    await until(node.drain.has_targets)
    wire = node.here.add("ann")
    await node.drain.start(over_ms=1, grace_ms=10_000)
    await until(lambda: bool(wire.moves))
    (move,) = wire.moves
    assert move["node"] == "access-2"
    assert move["url"] == "ws://access-2:80/connection/websocket"
    ticket = TicketVerifier(KeyRing.of({"k1": KEY}), node="access-2").verify(move["ticket"], node.clock.realtime())
    assert (ticket.sub, ticket.device, ticket.platform, ticket.nodes) == ("ann", "phone", "ios", ("access-2",))
    assert 10 <= ticket.exp - ticket.iat <= 60


async def test_each_outcome_is_counted_once(node: Node) -> None:
    """Who went after it was told has arrived, who stayed was closed; who went before is neither."""
    went, stayed = node.here.add("went"), node.here.add("stayed")
    await node.drain.start(over_ms=1, grace_ms=400)
    await until(lambda: bool(went.moves and stayed.moves))
    assert set(went.moves[0]) == {"after_ms"}
    node.here.go("went")
    await until(lambda: node.drain.status().state == "done")
    assert node.here.closed == ["stayed"]
    assert node.moves() == {"arrived": 1, "closed": 1}
    status = node.drain.status()
    assert (status.total, status.arrived, status.closed, status.departed) == (2, 1, 1, 0)
    node.here.add("untold")
    await node.drain.abort()
    await node.drain.start(over_ms=600_000)
    node.here.go("untold")
    assert node.drain.status().departed == 1
    assert node.moves() == {"arrived": 1, "closed": 1}


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.CONNECTING, Phase.CLOSED])
async def test_nothing_is_written_to_a_client_that_is_not_let_in(node: Node, phase: Phase) -> None:
    """It is closed in the end like all others."""
    wire = node.here.add("ann", phase)
    await node.drain.start(over_ms=1, grace_ms=200)
    await until(lambda: bool(node.here.closed))
    assert wire.moves == []


@pytest.mark.parametrize("how", ["gone", "draining", "full"])
async def test_nobody_is_sent_to_a_node_that_takes_nobody_any_more(node: Node, how: str) -> None:
    """What happens to the target during the drain counts; the other target gets them."""
    node.other("access-2", capacity=1_000)
    node.other("access-3", capacity=100)
    await until(lambda: len(node.redirects.rooms()) == 2)
    wires = [node.here.add(f"user-{number}") for number in range(8)]
    await node.drain.start(over_ms=2_000)
    await until(lambda: any(wire.moves for wire in wires))
    assert {move["node"] for wire in wires for move in wire.moves} == {"access-2"}
    match how:
        case "gone":
            node.lose("access-2")
        case "draining":
            node.other("access-2", capacity=1_000, is_draining=True)
        case _:
            node.other("access-2", capacity=1_000, connections=1_000)
    await until(lambda: [name for name, free in node.redirects.rooms() if free > 0] == ["access-3"])
    told = sum(len(wire.moves) for wire in wires)
    assert told < len(wires)
    await until(lambda: all(wire.moves for wire in wires))
    nodes = [wire.moves[0].get("node") for wire in wires]
    assert nodes.count("access-3") == len(wires) - told


@pytest.mark.parametrize("other", [{"version": "2.4.0"}, {"region": "elsewhere"}])
async def test_clients_are_sent_to_nodes_of_the_same_kind_only(node: Node, other: dict[str, str]) -> None:
    """Another version may be a rollout's canary, and which region is next only the scheduler knows: it is asked."""
    node.other("access-2", capacity=1_000, **other)
    wire = node.here.add("ann")
    assert node.drain.has_targets()
    await node.drain.start(over_ms=1)
    await until(lambda: bool(wire.moves))
    assert [set(move) for move in wire.moves] == [{"after_ms"}]


async def test_two_orders_at_once_are_one_drain(node: Node) -> None:
    """Also while everybody is still being told of the first one."""
    node.here.add("ann")
    node.announces.clear()
    first = asyncio.ensure_future(node.drain.start(over_ms=600_000))
    await asyncio.sleep(0)
    assert node.admission.is_draining
    await node.drain.start(over_ms=1)
    assert node.drain.status().state == "draining"
    node.announces.set()
    await first
    await asyncio.sleep(0.3)  # three steps, in which the other pace would have told it
    assert node.drain.status().pending == 1
    assert node.announced == [True]


async def test_an_abort_takes_everything_back(node: Node) -> None:
    """Who was told is not closed, the next drain begins anew, and all is announced."""
    wire = node.here.add("ann")
    await node.drain.start(over_ms=1, grace_ms=300)
    await until(lambda: bool(wire.moves))
    await node.drain.abort()
    assert (node.admission.is_draining, node.drain.status().state) == (False, "none")
    await asyncio.sleep(0.5)  # past the grace
    assert node.here.closed == []
    for order in (node.drain.pause, node.drain.resume):
        with pytest.raises(NotFound):
            order()
    with pytest.raises(NotFound):
        await node.drain.abort()
    await node.drain.wait_over()
    await node.drain.start(over_ms=1, grace_ms=300)
    await asyncio.wait_for(node.drain.wait_over(), SETTLE_S)
    assert len(wire.moves) == 2
    assert node.here.closed == ["ann"]
    assert node.announced == [True, False, True]


async def test_a_pause_is_shown_and_keeps_its_promises(node: Node) -> None:
    """Nobody more is told; who was told is closed at its time all the same."""
    wires = [node.here.add(f"user-{number}") for number in range(3)]
    await node.drain.start(over_ms=1_000, grace_ms=200)
    await until(lambda: bool(wires[0].moves))
    node.drain.pause()
    told = sum(bool(wire.moves) for wire in wires)
    assert told < len(wires)
    assert (node.drain.status().state, node.drain.status().eta_ms) == ("paused", None)
    await until(lambda: len(node.here.closed) == told)
    node.drain.resume()
    assert node.drain.status().state == "draining"
    await asyncio.wait_for(node.drain.wait_over(), SETTLE_S)
    assert node.drain.status().closed == len(wires)


async def test_what_other_nodes_say_in_a_way_of_their_own_ends_nothing(node: Node) -> None:
    """Of another version, say: nobody is sent there."""
    for name, meta, note in (
        ("unreadable", {"capacity": "10", "client_url": "http://a:80"}, b"\xc1"),
        ("unlimited", {"capacity": "many", "client_url": "http://a:80"}, b""),
        ("nowhere", {"capacity": "10"}, b""),
    ):
        url = f"http://{name}:1"
        node.others[name] = ServiceInstance(id=name, service=SERVICE, url=url, incarnation=1, meta=meta, note=note)
    node.redirects.saw(node.others.values())
    assert not node.drain.has_targets()
    node.other("access-2")
    assert node.drain.has_targets()
