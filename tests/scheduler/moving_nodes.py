"""Access nodes in memory, for tests of movers, in simulated time.

They answer at once or not at all; clients that are told go a second later.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as counting
from typing import Any

from access.api import (
    ACCESS_CLIENTS,
    ACCESS_MOVE,
    ClientEntry,
    ClientsListed,
    ClientsMoved,
    ListClients,
    MoveClients,
    MoveOrder,
)
from base.clock import SimClock
from base.errors import PeerUnavailable, RoadsteadError, StoreUnavailable
from base.http import Credentials
from base.ids import Incarnation, NodeId
from base.metrics import Metrics
from base.registry.memory import MemoryRegistry
from base.site import NodeConfig, Site
from base.trust import Trust
from scheduler.core.moving import Fleet
from scheduler.core.node import AccessNode
from scheduler.movers import Movers

serial = counting(1)


@dataclass
class FakeNode:
    """An access node that knows its clients by name, oldest first."""

    fleet: FakeFleet
    name: NodeId
    version: str = "1"
    clients: dict[str, ClientEntry] = field(default_factory=dict)
    moving: dict[str, NodeId] = field(default_factory=dict)
    totals: dict[str, list[int]] = field(default_factory=dict)
    admitted: Counter[str] = field(default_factory=Counter)
    error: RoadsteadError | None = None
    refuses: bool = False
    orders: list[MoveClients] = field(default_factory=list)
    listed: list[ListClients] = field(default_factory=list)
    on_list: Callable[[], None] = lambda: None

    def let_in(self, user: str, app: str = "1") -> None:
        entry = ClientEntry(f"k{next(serial)}", user, "d", "p", app, "192.0.2.1", 0)
        self.clients[entry.id] = entry

    async def call(self, method: Any, request: Any, *, deadline_ms: int) -> Any:
        assert deadline_ms > 0
        if method is ACCESS_CLIENTS:
            self.listed.append(request)
            self.on_list()
            if self.error is not None:
                raise self.error
            ordered = list(self.clients.values())[:: -1 if request.newest_first else 1]
            start = int(request.after or 0)
            end = start + request.limit
            return ClientsListed(ordered[start:end], str(end) if end < len(ordered) else "")
        assert method is ACCESS_MOVE
        self.orders.append(request)
        if self.error is not None:
            raise self.error
        return self.move(request)

    def move(self, request: MoveClients) -> ClientsMoved:
        absent, refused = [], []
        totals = self.totals.setdefault(request.plan, [0, 0, 0])
        for order in request.moves:
            if order.client not in self.clients or order.client in self.moving:
                absent.append(order.client)
            elif self.refuses or order.node not in self.fleet.nodes:
                refused.append(order.client)
            else:
                self.moving[order.client] = NodeId(order.node)
                totals[0] += 1
                self.fleet.going.append((self.fleet.clock.monotonic() + 1_000, self, request.plan, order))
        told = len(request.moves) - len(absent) - len(refused)
        return ClientsMoved(told, absent, totals[0] - totals[1] - totals[2], totals[1], totals[2], refused)


class FakeFleet:
    """All access nodes; also the pool of their peers, and the view of a scheduler."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.registry = MemoryRegistry(self.clock)
        self.nodes: dict[NodeId, FakeNode] = {}
        self.going: list[tuple[int, FakeNode, str, MoveOrder]] = []
        self.arms: dict[str, str] = {}
        self.chosen: dict[str, NodeId] = {}

    def add(self, name: str, clients: int = 0, *, version: str = "1") -> FakeNode:
        node = self.nodes[NodeId(name)] = FakeNode(self, NodeId(name), version)
        for number in range(clients):
            node.let_in(f"{name}-{number}")
        return node

    def get(self, node_id: str) -> FakeNode:
        if NodeId(node_id) not in self.nodes:
            raise PeerUnavailable(f"{node_id} is not registered")
        return self.nodes[NodeId(node_id)]

    def view(self, plan: str) -> Fleet:
        now = self.clock.monotonic()
        nodes = [
            AccessNode(
                id=node.name,
                url="",
                version=node.version,
                capacity=1_000,
                connections=len(node.clients),
                report=1,
                reported_at=now,
                uptime_ms=3_600_000,
            )
            for node in self.nodes.values()
        ]
        return Fleet(nodes, {node.name: node.admitted[plan] for node in self.nodes.values()})

    def go(self) -> None:
        """Whoever was told a second ago is at its target now."""
        now = self.clock.monotonic()
        due = [one for one in self.going if one[0] <= now]
        self.going = [one for one in self.going if one[0] > now]
        for _, source, plan, order in due:
            entry = source.clients.pop(order.client)
            del source.moving[order.client]
            source.totals[plan][1] += 1
            if target := self.nodes.get(NodeId(order.node)):
                target.let_in(entry.user)
                target.admitted[plan] += 1

    def movers(self, name: str = "scheduler-1") -> Movers:
        site = Site(
            name=NodeId(name),
            incarnation=Incarnation(1),
            host="127.0.0.1",
            port=0,
            registry=self.registry,
            clock=self.clock,
            trust=Trust.of_key("peer-key"),
            credentials=Credentials({}),
            config=NodeConfig(),
        )
        return Movers(
            site,
            self,
            Metrics(name),
            fleet=self.view,
            node_arm=lambda node: "v2" if node.version == "2" else "stable",
            client_arm=lambda entry, _source: self.arms.get(entry.user, "stable"),
            choose=lambda entry, _source, _arm: self.chosen.get(entry.user),
        )

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.clock.advance(250)
            self.go()
            for _ in range(25):
                await asyncio.sleep(0)

    def loads(self) -> dict[str, int]:
        return {name: len(node.clients) for name, node in self.nodes.items()}


class Outage:
    """A registry that can be cut off."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._registry = registry
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        if self.is_away:
            return self._fail
        return getattr(self._registry, name)

    async def _fail(self, *_args: object, **_fields: object) -> None:
        raise StoreUnavailable("away")
