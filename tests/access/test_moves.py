"""Moves that somebody orders: who is listed, who is told what, who is closed, and what a drain does to all that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import msgspec
import pytest

from access.api import (
    ACCESS_CLIENTS,
    ACCESS_MOVE,
    PAGE_MAX,
    SERVICE,
    ClientEntry,
    ClientsMoved,
    ListClients,
    MoveClients,
    MoveOrder,
    NodeReport,
)
from access.core.protocol import Close
from access.drain import Drain
from access.moves import Moves
from access.redirect import Redirects
from base.core.registry import ServiceInstance
from base.errors import RemoteProtocolError
from base.keys import KeyRing
from scheduler.api import Ticket
from scheduler.client import TicketSigner, TicketVerifier
from tests.access.client_nodes import SETTLE_S, TICKET_KEY, ClientsNode, Wire, clients_node

GRACE_MS = 10_000
SIGNER = TicketSigner("k1", TICKET_KEY)


class Node:
    """A node's clients, its moves and its drain, beside other nodes that report what the test says."""

    def __init__(self, node: ClientsNode, signer: TicketSigner | None = SIGNER) -> None:
        self.node = node
        self.others: dict[str, ServiceInstance] = {}
        self.redirects = Redirects(
            node.site, region="local", version="", signer=lambda: signer, app_of=node.clients.app_of
        )
        self.moves = Moves(
            node.site,
            clients=node.clients,
            redirects=self.redirects,
            admission=node.admission,
            metrics=node.metrics,
        )
        self.drain = Drain(
            node.clients._config,
            node.site,
            clients=node.clients,
            admission=node.admission,
            redirects=self.redirects,
            announce=self._announce,
            on_start=self.moves.release,
            metrics=node.metrics,
        )
        self.tickets = 0

    async def _announce(self, is_draining: bool) -> None:  # noqa: FBT001 - as the node's
        del is_draining

    def other(self, name: str, *, capacity: int = 10, client_url: bool = True, **report: Any) -> None:
        """Another node says how it is."""
        meta = {"capacity": str(capacity)} | ({"client_url": f"http://{name}:80"} if client_url else {})
        note = msgspec.msgpack.encode(NodeReport(**report))
        self.others[name] = ServiceInstance(
            id=name, service=SERVICE, url=f"http://{name}:1", incarnation=1, meta=meta, note=note
        )
        self.redirects.saw(self.others.values())

    async def client(self, user: str = "ann", **claims: Any) -> Wire:
        """A client that is let in by a ticket."""
        self.tickets += 1
        now_s = self.node.clock.realtime() // 1000
        ticket = Ticket(sub=user, jti=f"t-{self.tickets}", exp=now_s + 60, **claims)
        wire = self.node.wire()
        await wire.send(id=1, connect={"token": SIGNER.sign(ticket)})
        assert "connect" in wire.told[0]
        return wire

    def listed(self, **wanted: Any) -> list[ClientEntry]:
        """All pages."""
        found: list[ClientEntry] = []
        after = ""
        while True:
            page = self.moves.list_clients(ListClients(after=after, **wanted), "scheduler-1")
            found += page.clients
            if not page.next:
                return found
            after = page.next

    def name_of(self, wire: Wire) -> str:
        """What the client is listed as."""
        client_id = wire.told[0]["connect"]["client"]
        (name,) = [client.id for client in self.listed() if client.id.endswith(client_id)]
        return name

    def order(self, *wires: Wire | str, node: str = "access-2", plan: str = "plan", arm: str = "") -> ClientsMoved:
        moves = [MoveOrder(wire if isinstance(wire, str) else self.name_of(wire), node, arm) for wire in wires]
        return self.moves.move(MoveClients(plan, GRACE_MS, moves), "scheduler-1")

    def counted(self, metric: str) -> dict[str, int]:
        shown = self.node.registry.render().decode()
        found = re.findall(rf'^\w*{metric}_total{{.*outcome="(\w+)".*}} (\S+)$', shown, re.MULTILINE)
        return {outcome: int(float(count)) for outcome, count in found if float(count)}


def told(wire: Wire) -> list[dict[str, Any]]:
    """Where the client was told to go."""
    return [one["push"]["message"]["data"]["move"] for one in wire.told if "message" in one.get("push", {})]


async def until(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not look():  # noqa: ASYNC110 - steps come by time
            await asyncio.sleep(0.01)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with clients_node() as clients, asyncio.TaskGroup() as tasks:
        made = Node(clients)
        running = [tasks.create_task(part.run()) for part in (made.moves, made.drain)]
        yield made
        for task in running:
            task.cancel()


# ---------------------------------------------------------------- who is here


async def test_a_listed_client_is_described(node: Node) -> None:
    """By what its ticket said; whoever has not been let in yet is not listed."""
    await node.client("ann", device="phone", platform="ios", app="5.1.0")
    await node.client("ben")
    node.node.wire()
    ann, ben = node.listed()
    assert (ann.user, ann.device, ann.platform, ann.app, ann.address) == ("ann", "phone", "ios", "5.1.0", "192.0.2.1")
    assert ann.since == node.node.clock.realtime()
    assert (ben.user, ben.app) == ("ben", "")


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_pages_list_who_stays_once_in_the_order_of_arrival(node: Node, limit: int, *, newest_first: bool) -> None:
    """While others come and go between any two pages."""
    random = Random(limit)
    here = {f"user-{number}": await node.client(f"user-{number}") for number in range(40)}
    for user in random.sample(sorted(here), 15):
        here.pop(user).go()
    stays = list(here)
    visitors = [await node.client("visitor") for _ in range(3)]
    found: list[str] = []
    after = ""
    while True:
        page = node.moves.list_clients(ListClients(after, limit, newest_first), "scheduler-1")
        assert len(page.clients) <= limit
        found += [client.user for client in page.clients]
        if not page.next:
            break
        after = page.next
        visitors.pop(0).go()
        visitors.append(await node.client("visitor"))
        if len(found) > 200:  # newcomers follow, in ascending order, as long as they come
            break
    expected = list(reversed(stays)) if newest_first else stays
    assert [user for user in found if user != "visitor"] == expected


async def test_an_empty_node_has_one_empty_page(node: Node) -> None:
    """And so has what follows the last client, or a number that nobody ever had."""
    for wanted in (ListClients(), ListClients(newest_first=True), ListClients(after="9" * 18)):
        assert node.moves.list_clients(wanted, "scheduler-1").clients == []
    await node.client()
    assert node.moves.list_clients(ListClients(after="9" * 18), "scheduler-1").clients == []
    (ann,) = node.moves.list_clients(ListClients(after="9" * 18, newest_first=True), "scheduler-1").clients
    assert ann.user == "ann"


@pytest.mark.parametrize("bad", [["x"], ["-1"], ["1" * 19], ["", 0], ["", PAGE_MAX + 1]])
def test_a_question_without_sense_is_refused_on_its_way_in(bad: list[Any]) -> None:
    """It is answered with an error, and costs nothing."""
    with pytest.raises(RemoteProtocolError):
        ACCESS_CLIENTS.decode_request(msgspec.Raw(msgspec.msgpack.encode(bad)))


# ---------------------------------------------------------------- orders


async def test_who_is_ordered_is_told_with_a_ticket_of_the_plan(node: Node) -> None:
    """Good at its target only, for the arm that was ordered, and for the same device and application."""
    node.other("access-2")
    ann, ben = await node.client("ann", device="phone", platform="ios", app="5.1.0"), await node.client("ben")
    moved = node.order(ann, plan="rollout-7", arm="canary")
    assert (moved.told, moved.absent, moved.refused, moved.waiting) == (1, [], [], 1)
    (move,) = told(ann)
    assert told(ben) == []
    assert (move["node"], move["url"]) == ("access-2", "ws://access-2:80/connection/websocket")
    assert move["after_ms"] == GRACE_MS
    ticket = TicketVerifier(KeyRing.of({"k1": TICKET_KEY}), node="access-2").verify(
        move["ticket"], node.node.clock.realtime()
    )
    assert (ticket.sub, ticket.device, ticket.platform, ticket.app) == ("ann", "phone", "ios", "5.1.0")
    assert (ticket.nodes, ticket.sid, ticket.arm) == (("access-2",), "rollout-7", "canary")
    assert ticket.exp * 1000 > node.node.clock.realtime() + GRACE_MS


async def test_who_went_in_time_has_arrived_and_who_did_not_is_closed(node: Node) -> None:
    """With 3001, once the grace is over and not before; the totals are the plan's, over all its orders."""
    node.other("access-2")
    wires = [await node.client(f"user-{number}") for number in range(3)]
    node.order(wires[0])
    node.order(*wires[1:])
    wires[0].go()
    node.node.clock.advance(GRACE_MS - 1)
    await asyncio.sleep(0.25)  # two steps; that nothing happens has no event
    assert [wire.closed for wire in wires] == [None] * 3
    node.node.clock.advance(1)
    await until(lambda: wires[1].closed is not None and wires[2].closed is not None)
    assert [wire.closed for wire in wires[1:]] == [Close.SHUTDOWN] * 2
    for wire in wires[1:]:
        wire.go()
    moved = node.order()
    assert (moved.told, moved.waiting, moved.arrived, moved.closed) == (0, 0, 1, 2)
    assert node.order(plan="another").arrived == 0
    assert node.counted("access_moves") == {"arrived": 1, "closed": 2}
    assert node.counted("access_move_orders") == {"told": 3}


async def test_who_is_not_here_or_was_told_already_is_absent(node: Node) -> None:
    """By the same plan or another one; also who is on its way in, to whom nothing may be said yet."""
    node.other("access-2")
    ann, gone = await node.client("ann"), await node.client("ben")
    ann_id, gone_id = node.name_of(ann), node.name_of(gone)
    gone.go()
    assert node.order(ann).told == 1
    node.node.im.holds = True
    arriving = node.node.wire()
    await arriving.connect("cat")
    (on_its_way,) = node.node.clients.of_user("cat")
    for plan in ("plan", "another"):
        absent = [ann_id, gone_id, f"3-{on_its_way.id}", "3-another-life", "nobody", "", "9" * 5_000, "²-x"]
        moved = node.order(*absent, plan=plan)
        assert (moved.told, moved.absent) == (0, absent)
    assert len(told(ann)) == 1
    assert arriving.told == []
    await node.node.im.answer()


@pytest.mark.parametrize("how", ["unknown", "draining", "full", "without an address"])
async def test_nobody_is_sent_to_a_node_that_takes_nobody(node: Node, how: str) -> None:
    """The order is told so; the client stays and may be ordered elsewhere."""
    node.other("access-3")
    match how:
        case "draining":
            node.other("access-2", is_draining=True)
        case "full":
            node.other("access-2", connections=10)
        case "without an address":
            node.other("access-2", client_url=False)
    ann = await node.client()
    moved = node.order(ann)
    assert (moved.told, moved.refused, moved.absent) == (0, [node.name_of(ann)], [])
    assert node.order(ann, node="access-3").told == 1


async def test_the_room_of_a_node_is_used_up_until_it_reports(node: Node) -> None:
    """Within one order, and by orders and drains together; its report tells how full it is."""
    node.other("access-2", capacity=5, number=1, connections=2)
    wires = [await node.client(f"user-{number}") for number in range(5)]
    first = node.order(*wires[:2])
    assert first.told == 2
    second = node.order(*wires[2:])
    assert (second.told, len(second.refused)) == (1, 2)
    node.other("access-2", capacity=5, number=1, connections=2)
    assert node.order(wires[3]).told == 0
    assert not node.drain.has_targets()
    node.other("access-2", capacity=5, number=2, connections=4)
    third = node.order(*wires[3:])
    assert (third.told, third.refused) == (1, [node.name_of(wires[4])])
    del node.others["access-2"]
    node.redirects.saw(node.others.values())
    assert node.order(wires[4]).told == 0


async def test_without_a_key_to_sign_with_clients_are_sent_to_the_scheduler() -> None:
    """All keys are public ones: the target cannot be promised."""
    async with clients_node() as clients:
        node = Node(clients, signer=None)
        node.other("access-2")
        ann = await node.client()
        assert node.order(ann).told == 1
        assert told(ann) == [{"after_ms": GRACE_MS}]


@pytest.mark.parametrize(
    "bad",
    [
        ["", 1_000, []],
        ["p" * 33, 1_000, []],
        ["a b", 1_000, []],
        ["é", 1_000, []],
        ["p", 99, []],
        ["p", 3_600_001, []],
        ["p", 1_000, [["c", "n"]] * 201],
        ["p", 1_000, [["c"]]],
    ],
)
def test_an_order_without_sense_is_refused_on_its_way_in(bad: list[Any]) -> None:
    """Nobody is told anything."""
    with pytest.raises(RemoteProtocolError):
        ACCESS_MOVE.decode_request(msgspec.Raw(msgspec.msgpack.encode(bad)))


# ---------------------------------------------------------------- drains win


async def test_a_drain_takes_over_who_was_told(node: Node) -> None:
    """It tells them in its turn, with its own grace; the plan closes nobody, and is told that nobody is here."""
    node.other("access-2")
    ann, ben = await node.client("ann"), await node.client("ben")
    node.order(ann)
    await node.drain.start(over_ms=1, grace_ms=5 * GRACE_MS)
    moved = node.order(ann, ben)
    assert (moved.told, moved.absent) == (0, [node.name_of(ann), node.name_of(ben)])
    assert (moved.waiting, moved.arrived, moved.closed) == (0, 0, 0)
    node.node.clock.advance(2 * GRACE_MS)
    await until(lambda: len(told(ann)) == 2 and len(told(ben)) == 1)
    await asyncio.sleep(0.25)  # past the plan's grace
    assert ann.closed is None
    ann.go()
    assert node.counted("access_moves") == {"arrived": 1}
    assert (node.drain.status().arrived, node.order().arrived) == (1, 0)


async def test_after_a_drain_that_was_aborted_moves_go_on(node: Node) -> None:
    """Who was told by it may be told by a plan."""
    node.other("access-2")
    ann = await node.client("ann")
    await node.drain.start(over_ms=1)
    node.node.clock.advance(1_000)
    await until(lambda: len(told(ann)) == 1)
    await node.drain.abort()
    assert node.order(ann).told == 1
    node.node.clock.advance(GRACE_MS)
    await until(lambda: ann.closed is Close.SHUTDOWN)


# ---------------------------------------------------------------- what a report says of all that


async def test_connections_are_counted_by_the_issuer_of_their_ticket(node: Node) -> None:
    """Those that came with an application's token by none, those of a backend's ticket by one without a name."""
    for sid in ("scheduler-1.1", "scheduler-1.1", "scheduler-2.4", ""):
        await node.client("ann", sid=sid)
    await node.node.wire().connect("ben")
    assert node.node.way_in.admitted.counts() == {"scheduler-1.1": 2, "scheduler-2.4": 1, "": 1}
    assert node.node.metrics.handshakes.total == 5


async def test_connections_that_were_let_in_and_ended_are_counted(node: Node) -> None:
    """Whoever ended them; and what was kept of them is gone."""
    ann, ben = await node.client("ann", app="5.1.0"), await node.client("ben")
    stranger = node.node.wire()
    await stranger.send(id=1, connect={"token": "forged"})
    node.node.im.holds = True
    on_its_way = node.node.wire()
    await on_its_way.connect("cat")
    assert node.node.clients.closed == 0
    for wire in (stranger, on_its_way, ann):
        wire.go()
    await node.node.im.answer()
    assert node.node.clients.closed == 1
    assert node.node.way_in.apps == {}
    (client,) = node.node.clients.of_user("ben")
    node.node.clients.close(client, Close.SHUTDOWN)
    ben.go()
    assert node.node.clients.closed == 2
