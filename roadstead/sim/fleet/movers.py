"""Who moves live connections in a simulated fleet: the real plan of moves, and nodes that shed by a threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from base.clock import Instant
from base.ids import NodeId
from roadstead.sim.fleet.balancers import Choice
from roadstead.sim.fleet.fleet import Client, Fleet
from roadstead.sim.fleet.nodes import SimNode
from scheduler.core.moving import Fleet as Seen
from scheduler.core.moving import MovePlan, MoveRequest, Order, Totals
from scheduler.core.node import AccessNode

__all__ = ["DirectedMover", "Shedder"]

STEP_MS = 500
SECOND_MS = 1_000


class DirectedMover:
    """Carries out a plan of moves as one of the schedulers does, from what the registry shows it."""

    def __init__(self, fleet: Fleet, request: MoveRequest, *, arm_of: Callable[[AccessNode], str]) -> None:
        self._fleet = fleet
        self._arm_of = arm_of
        self._request = request
        self._told: Counter[NodeId] = Counter()
        self._arrived: Counter[NodeId] = Counter()
        self._by_second: Counter[int] = Counter()
        self._before = fleet.on_connect
        self.plan: MovePlan | None = None
        self.over_at: int | None = None
        """When the plan was complete."""

    @property
    def moves(self) -> int:
        """How many clients were told to move."""
        return self._told.total()

    @property
    def peak_per_s(self) -> int:
        """How many were told in the worst second."""
        return max(self._by_second.values(), default=0)

    def begin(self, now: int) -> None:
        """Start the plan."""
        self.plan = MovePlan(self._request, Instant(now), arm_of=self._arm_of)
        self._fleet.on_connect = self._on_connect
        self._step(now)

    def _step(self, now: int) -> None:
        fleet, plan = self._fleet, self.plan
        assert plan is not None
        nodes = fleet.view(0, now)
        admitted = {node.id: fleet.by_id[node.id].report.admitted[fleet.plan_issuer] for node in nodes}
        seen = Seen(nodes, admitted=admitted, is_registry_away=not fleet.is_registry_up)
        orders = {order.source: order for order in plan.step(Instant(now), seen)}
        for source in {**orders, **dict.fromkeys(plan.to_ask(Instant(now)))}:
            order = orders.get(source)
            sent = self._carry_out(order, now) if order else {}
            plan.answered(Instant(now), source, sent, Totals(self._told[source], self._arrived[source]))
        if plan.is_over:
            self.over_at = now
        else:
            fleet.at(now + STEP_MS, self._step)

    def _carry_out(self, order: Order, now: int) -> dict[NodeId, int]:
        """Tell the clients, as far as the source has so many who were not told yet."""
        source = self._fleet.by_id[order.source]
        free = source.connections - (self._told[order.source] - self._arrived[order.source])
        sent: dict[NodeId, int] = {}
        for target, wanted in order.targets.items():
            count = min(wanted, max(free, 0))
            free -= count
            sent[target] = count
            for _ in range(count):
                self._fleet.move(source, Choice((target,)), now, issuer=self._fleet.plan_issuer)
        self._told[order.source] += sum(sent.values())
        self._by_second[now // SECOND_MS] += sum(sent.values())
        return sent

    def _on_connect(self, client: Client, node: SimNode, now: int) -> None:
        if client.leaves is not None:
            self._arrived[client.leaves.id] += 1
        if self._before is not None:
            self._before(client, node, now)


class Shedder:
    """Each node by itself: while it is above the mean by more than a threshold, it sends some of its clients away.

    They ask a scheduler for another node. Each second at most `rate` of the mean goes.
    """

    def __init__(self, fleet: Fleet, *, threshold: float, rate: float) -> None:
        self._fleet = fleet
        self._threshold = threshold
        self._rate = rate
        self.moves = 0

    def begin(self, now: int) -> None:
        """Look each second from now on."""
        fleet = self._fleet
        view = fleet.view(0, now)
        mean = sum(node.connections for node in view) / len(view)
        for seen in view:
            node = fleet.by_id[seen.id]
            excess = node.connections - mean * (1 + self._threshold)
            for _ in range(int(min(excess, mean * self._rate))):
                fleet.move(node, Choice(()), now)
                self.moves += 1
        fleet.at(now + SECOND_MS, self.begin)
