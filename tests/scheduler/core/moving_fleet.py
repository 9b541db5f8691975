"""A small fleet for tests of plans of moves.

It knows where each connection is. It reports once a second, tells who it is ordered to, and lets them go and arrive
after a while, or not.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from base.clock import Instant
from base.ids import NodeId
from scheduler.core.move_accounts import Totals
from scheduler.core.moving import Fleet, MovePlan, MoveRequest, Order
from scheduler.core.node import AccessNode

TICK = 500
NOWHERE = NodeId("nowhere")


def arm_of(node: AccessNode) -> str:
    return "v2" if node.version == "2" else "stable"


def request(kind: str = "rebalance", **fields: object) -> MoveRequest:
    arm = {} if kind == "rebalance" else {"arm": "v2"}
    return MoveRequest(**{"id": "m1", "kind": kind, "grace_ms": 10_000} | arm | fields)  # type: ignore[arg-type]


@dataclass
class World:
    """The nodes as they are, and as they last reported."""

    nodes: dict[NodeId, AccessNode]
    way_ms: int = 1_500
    loss: float = 0.0
    now: int = 1_000_000
    random: random.Random = field(default_factory=lambda: random.Random(7))
    admitted: Counter[NodeId] = field(default_factory=Counter)
    turned_away: Counter[NodeId] = field(default_factory=Counter)
    totals: dict[NodeId, Totals] = field(default_factory=dict)
    events: list[tuple[int, int, NodeId, NodeId]] = field(default_factory=list)
    view: Fleet = field(default_factory=lambda: Fleet(()))
    told: list[tuple[int, NodeId, NodeId, int]] = field(default_factory=list)
    silent: set[NodeId] = field(default_factory=set)
    is_panic: bool = False
    is_registry_away: bool = False

    def __post_init__(self) -> None:
        self.report()

    @property
    def instant(self) -> Instant:
        return Instant(self.now)

    def change(self, name: str, **fields: object) -> None:
        self.nodes[NodeId(name)] = replace(self.nodes[NodeId(name)], **fields)  # type: ignore[arg-type]

    def add(self, name: NodeId, count: int) -> None:
        self.change(name, connections=self.nodes[name].connections + count)

    def report(self) -> None:
        nodes = [replace(node, report=9, reported_at=self.now, uptime_ms=3_600_000) for node in self.nodes.values()]
        self.view = Fleet(nodes, dict(self.admitted), dict(self.turned_away))

    def fleet(self) -> Fleet:
        return replace(self.view, is_panic=self.is_panic, is_registry_away=self.is_registry_away)

    def carry_out(self, plan: MovePlan, order: Order) -> None:
        if order.source in self.silent:
            plan.failed(self.instant, order.source, was_sent=True)
            return
        for target, count in order.targets.items():
            self.told.append((self.now, order.source, target, count))
            for _ in range(count):
                is_lost = self.random.random() < self.loss
                at = self.now + self.random.randint(0, self.way_ms)
                heappush(self.events, (at, len(self.told), order.source, NOWHERE if is_lost else target))
        told, arrived, closed = self.totals.get(order.source, Totals())
        self.totals[order.source] = Totals(told + order.count, arrived, closed)
        plan.answered(self.instant, order.source, order.targets, self.totals[order.source])

    def tick(self, plan: MovePlan) -> tuple[Order, ...]:
        """Half a second: who is on the way goes on, the plan steps, orders are carried out."""
        self.now += TICK
        while self.events and self.events[0][0] <= self.now:
            _, _, source, target = heappop(self.events)
            if source in self.nodes:
                told, arrived, closed = self.totals[source]
                self.totals[source] = Totals(told, arrived + 1, closed)
                self.add(source, -1)
            if target in self.nodes:
                self.add(target, 1)
                self.admitted[target] += 1
        if self.now % 1_000 == 0:
            self.report()
        orders = plan.step(self.instant, self.fleet())
        for order in orders:
            self.carry_out(plan, order)
        for name in plan.to_ask(self.instant):
            if name in self.silent:
                plan.failed(self.instant, name, was_sent=False)
            elif name not in {order.source for order in orders}:
                plan.answered(self.instant, name, {}, self.totals.get(name, Totals()))
        plan.check_invariants()
        return orders

    def run(self, plan: MovePlan, seconds: int) -> None:
        for _ in range(seconds * 1_000 // TICK):
            self.tick(plan)


def world(**connections: int) -> World:
    """Nodes by name; those whose name begins with c are the canary."""
    return World(
        {
            NodeId(name): AccessNode(
                id=NodeId(name), url="", capacity=1_000, connections=count, version="2" if name[0] == "c" else "1"
            )
            for name, count in connections.items()
        }
    )


def worst_second(moves: list[tuple[int, int]]) -> int:
    """Return the most that went within any second. Moves, (when, how many), are in the order of time."""
    worst = within = oldest = 0
    for at, count in moves:
        within += count
        while moves[oldest][0] <= at - 1_000:
            within -= moves[oldest][1]
            oldest += 1
        worst = max(worst, within)
    return worst
