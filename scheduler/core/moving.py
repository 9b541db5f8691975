"""Moving live connections from node to node: who tells how many, when, to go where; and when to stop.

One plan at a time, of three kinds:

    rebalance   all nodes of a group (a region's nodes of one arm) equally full, with the fewest moves
    to_canary   a share of all live connections on the canary; clients go whose arm it is
    to_stable   nobody left on the canary

A plan is a controller, not a list. Clients come and go meanwhile, so each step looks at the fleet as it is: connections
as reported, less those who were told to go since, plus those who are on their way. From that it computes what is still
to be moved, and tells the next part of it. What others did by themselves need not be moved any more.

The pace has four bounds: a rate over all; for each target a budget of newcomers, a part of what it takes, less while it
is young; how many may be on their way at once; and the breaker (`scheduler.core.breaker`). The deadline is not one of
them: a plan that is late says so, and does not hurry.

A move is *verified* when the target let somebody in with a ticket of this plan. That the client is gone from the source
says only that it left.

Invariants:
    I1  In any second at most max(1, rate) clients are told, and at most max(1, its budget) are sent to any one target.
    I2  At most max(1, rate * grace) clients are on their way when somebody is told.
    I3  Nobody is told while the plan is paused, aborted or complete, or its breaker open.
    I4  No source is told to give, and no target is sent, more than what the step computed for it.
    I5  Every client that was ordered is waiting, arrived, closed or written off; no count is below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from base.clock import Instant
from base.ids import NodeId
from scheduler.core.balance import TOLERANCE, Shares, apportion, pair, shares_by_group
from scheduler.core.breaker import Breaker, Condition, Sample
from scheduler.core.move_accounts import RATE_MIN, Pace, SourceAccount, TargetAccount, Totals
from scheduler.core.node import AccessNode
from scheduler.core.snapshot import STABLE

__all__ = ["Fleet", "MovePlan", "MoveRequest", "Order", "Progress", "Totals"]

FULL = 100_000
"""100 % in thousandths of a percent."""
SLOW_START_MS = 60_000
SLOW_START_FLOOR = 0.1
LOST_MS = 30_000
"""How long a node that was lost holds everything up: its clients look for new places just then."""
LATE_MS = 10_000
"""How long after its grace a client that was not heard of is given up."""
SILENT_MS = 15_000
"""How long a source that did not answer is left alone."""
EXHAUSTED_MS = 60_000
"""How long a source is left alone that has none of those who should go."""
OPENINGS_MAX = 3

Rate = Annotated[float, msgspec.Meta(gt=0, le=10_000_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Phase = Literal["running", "open", "probing", "paused", "aborted", "complete"]


class MoveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator, or a rollout, wants moved. JSON in the registry: names end with their unit."""

    id: Annotated[str, msgspec.Meta(pattern="^[!-,.-~]{1,16}$")]
    """Unique; 16 characters at most, so that the plan's own id fits into a ticket. A hyphen ends it there."""
    kind: Literal["rebalance", "to_canary", "to_stable"]
    rate_per_s: Rate = 100.0
    accept_per_s: Rate = 20.0
    """The most newcomers a second that any one target is sent."""
    accept_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50
    """The same, as a part of the connections a second that the target takes, where it names them."""
    grace_ms: Count = 30_000
    """How long a client that was told may stay."""
    deadline_ms: Count = 0
    """Until when it should be over; 0: whenever. A late plan is reported as such, and does not hurry."""
    tolerance: Count = TOLERANCE
    """How far from its share a node may stay, in thousandths of it."""
    arm: str = ""
    """The canary: name of a rollout. Not for a rebalance."""
    share: Count = 0
    """Of live connections on the canary, in thousandths of a percent; for `to_canary` alone."""
    region: str = ""
    """Only nodes of this region; "": all."""
    is_paused: bool = False
    resumes: Count = 0
    """How often an operator said to go on: one more lifts a pause that the plan made itself."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a step looks at. Nodes that are in no mapping count as 0."""

    nodes: Sequence[AccessNode]
    admitted: Mapping[NodeId, int] = field(default_factory=dict)
    """Connections let in with a ticket of this plan, in the node's life."""
    turned_away: Mapping[NodeId, int] = field(default_factory=dict)
    """Newcomers that were refused or whose connect command failed, in the node's life."""
    is_panic: bool = False
    is_registry_away: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """Tell `source` to send so many clients to each target. `arm` is what they belong to there."""

    source: NodeId
    arm: str
    targets: Mapping[NodeId, int]

    @property
    def count(self) -> int:
        """How many clients are to be told."""
        return sum(self.targets.values())


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a plan is, for an operator. Counts of clients."""

    phase: Phase
    reason: str
    """Why it is paused or held up; "" while it runs."""
    minimum: int
    """The fewest moves that would have sufficed when it began: what was moved is compared with it."""
    moved: int
    """Told to move, as their sources say."""
    waiting: int
    """Ordered to move, and not heard of as gone."""
    arrived: int
    """Gone before their deadline."""
    closed: int
    verified: int
    """Let in at their targets."""
    left: int
    """Still to be told, as things are now."""
    unanswered: int
    """Calls to sources that failed."""
    eta_ms: int | None
    """Time until it is over at the full pace. None while nothing moves."""
    is_late: bool


class MovePlan:
    """One plan. Call `step` every 500 ms, carry out its orders, and say what became of each before the next step."""

    def __init__(self, request: MoveRequest, now: Instant, *, arm_of: Callable[[AccessNode], str]) -> None:
        """`arm_of`: "stable", or the name of the rollout whose canary the node is."""
        assert request.rate_per_s > 0
        assert request.accept_per_s > 0
        assert request.grace_ms >= 0
        assert bool(request.arm) is (request.kind != "rebalance")
        self.request = request
        self._arm_of = arm_of
        self._began_at = now
        self._pace = Pace(now)
        self._in_flight_max = max(int(request.rate_per_s * request.grace_ms / 1_000), 1)
        self._breaker = Breaker()
        self._paused: str | None = None
        self._ended: Literal["aborted", "complete"] | None = None
        self._stepped_at = now
        self._sources: dict[NodeId, SourceAccount] = {}
        self._targets: dict[NodeId, TargetAccount] = {}
        self._members: dict[NodeId, AccessNode] = {}
        self._lost = ("", Instant(now - LOST_MS))
        self._orders: dict[NodeId, Order] = {}
        self._former = Totals()  # of sources that are not there any more
        self._verified = self._turned_away = self._unanswered = 0
        self._minimum: int | None = None
        self._left = 0
        self._can_move = False
        self._full_rate = request.rate_per_s

    # ---------------------------------------------------------------- what an operator does

    def pause(self, reason: str) -> None:
        """Tell nobody more until `resume`."""
        if self._paused is None:
            self._paused = reason

    def resume(self) -> None:
        """Go on, whatever the breaker saw before."""
        if self._paused is not None:
            self._paused = None
            self._breaker.reset()

    def abort(self) -> None:
        """Tell nobody more, for good. Who was told goes, or is closed when its grace is over."""
        self._ended = self._ended or "aborted"

    # ---------------------------------------------------------------- what the sources answer

    def answered(self, now: Instant, source: NodeId, sent: Mapping[NodeId, int], totals: Totals) -> None:
        """The source told so many of its order, by target, and has these totals now. Also without an order."""
        if (account := self._sources.get(source)) is not None:
            self._take_back(source, sent)
            account.answer(now, totals)

    def failed(self, now: Instant, source: NodeId, *, was_sent: bool) -> None:
        """The source did not answer. An order that was sent may have been carried out, and counts until it answers."""
        self._unanswered += 1
        if (account := self._sources.get(source)) is not None:
            if not was_sent:
                self._take_back(source, {})
            account.left_alone_until = Instant(now + SILENT_MS)
            account.is_exhausted = False

    def exhausted(self, now: Instant, source: NodeId) -> None:
        """The source has nobody left who should go: fewer than the order said, or none. After its answer."""
        if (account := self._sources.get(source)) is not None:
            account.left_alone_until = Instant(now + EXHAUSTED_MS)
            account.is_exhausted = True

    # ---------------------------------------------------------------- the steps

    def step(self, now: Instant, fleet: Fleet) -> tuple[Order, ...]:
        """Return what is to be told now, at most one order a source."""
        assert now >= self._stepped_at
        self._stepped_at = now
        self._orders = {}
        nodes = [node for node in fleet.nodes if self.request.region in ("", node.region)]
        self._see(now, nodes, fleet)
        loads = self._loads(nodes)
        wanted, self._left = self._wanted(now, nodes, loads)
        self._can_move = bool(wanted)
        if self._minimum is None and nodes:
            self._minimum = self._left
        if self._ended is None and self._is_done(nodes):
            self._ended = "complete"
        sample = Sample(now, self._told, self._verified, self._turned_away)
        if self._ended is None and self._paused is None:
            self._breaker.step(sample, self._condition(now, nodes, fleet))
            if self._breaker.openings >= OPENINGS_MAX:
                self.pause(f"{self._breaker.reason}; {OPENINGS_MAX} times in a row")
        if self.phase not in ("running", "probing"):
            return ()
        return self._order(now, fleet, wanted)

    @property
    def phase(self) -> Phase:
        """What the plan does now."""
        if self._ended is not None:
            return self._ended
        if self._paused is not None:
            return "paused"
        return "running" if self._breaker.state == "closed" else self._breaker.state

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do: it ended, and nobody is on the way any more."""
        return self._ended is not None and not self._in_flight

    def to_ask(self, now: Instant) -> tuple[NodeId, ...]:
        """Return the sources to be asked what became of those that they told; not who did not answer just now."""
        return tuple(
            node
            for node, source in self._sources.items()
            if source.waiting and (source.is_exhausted or source.left_alone_until <= now)
        )

    def progress(self, now: Instant) -> Progress:
        """Return how far the plan is."""
        totals = [self._former, *(source.totals for source in self._sources.values())]
        phase, eta = self.phase, None
        to_tell = 0 if self._ended is not None else self._left
        is_stuck = to_tell > 0 and not self._can_move
        if self._ended is not None or (phase in ("running", "probing") and not is_stuck):
            eta = int(to_tell * 1_000 / max(self._full_rate, RATE_MIN))
            eta += self.request.grace_ms if self._in_flight or to_tell else 0
        reason = ""
        if phase == "paused":
            reason = self._paused or ""
        elif phase in ("open", "probing"):
            reason = self._breaker.reason
        elif phase == "running" and is_stuck:
            reason = "no target has room, or no source answers"
        late_at = self._began_at + self.request.deadline_ms
        return Progress(
            phase=phase,
            reason=reason,
            minimum=self._minimum or 0,
            moved=self._told,
            waiting=self._in_flight,
            arrived=sum(one.arrived for one in totals),
            closed=sum(one.closed for one in totals),
            verified=self._verified,
            left=self._left,
            unanswered=self._unanswered,
            eta_ms=eta,
            is_late=self.request.deadline_ms > 0 and now > late_at and not self.is_over,
        )

    def check_invariants(self) -> None:
        """Assert what can be read off one state of I1 and I5."""
        assert self._pace.in_window <= max(self.request.rate_per_s, 1), "I1"
        for target in self._targets.values():
            assert target.pace.in_window <= max(self.request.accept_per_s, 1), "I1"
            assert all(count > 0 for _, count in target.coming), "I5"
        for source in self._sources.values():
            assert source.waiting >= 0, "I5"
            assert min(source.totals) >= 0, "I5"

    # ---------------------------------------------------------------- what is there

    @property
    def _told(self) -> int:
        return self._former.told + sum(source.totals.told for source in self._sources.values())

    @property
    def _in_flight(self) -> int:
        return sum(source.waiting for source in self._sources.values())

    def _see(self, now: Instant, nodes: Sequence[AccessNode], fleet: Fleet) -> None:
        """Take note of who is there, who was lost, and who arrived."""
        there = {node.id: node for node in nodes}
        for name, before in self._members.items():
            after = there.get(name)
            if after is None or after.incarnation != before.incarnation:
                if not before.is_draining:
                    self._lost = (name, now)
                self._forget(name)
        self._members = there
        give_up_before = now - self.request.grace_ms - LATE_MS
        for name, target in self._targets.items():
            arrived, away = target.look(fleet.admitted.get(name, 0), fleet.turned_away.get(name, 0))
            self._verified += arrived
            self._turned_away += away
            target.give_up(give_up_before)
        for source in self._sources.values():
            source.give_up(give_up_before)

    def _forget(self, name: NodeId) -> None:
        self._targets.pop(name, None)
        if (source := self._sources.pop(name, None)) is not None:
            pairs = zip(self._former, source.totals, strict=True)
            self._former = Totals(*(before + more for before, more in pairs))

    def _loads(self, nodes: Sequence[AccessNode]) -> dict[NodeId, int]:
        loads: dict[NodeId, int] = {}
        for node in nodes:
            source, target = self._sources.get(node.id), self._targets.get(node.id)
            leaving = source.leaving(node.reported_at) if source is not None else 0
            coming = target.on_their_way if target is not None else 0
            loads[node.id] = max(node.connections - leaving, 0) + coming
        return loads

    def _condition(self, now: Instant, nodes: Sequence[AccessNode], fleet: Fleet) -> Condition | None:
        if fleet.is_panic:
            return Condition("too many access nodes are away at once", counts=True)
        if fleet.is_registry_away:
            return Condition("the registry cannot be reached", counts=False)
        name, lost_at = self._lost
        if now - lost_at < LOST_MS:
            return Condition(f"{name} was lost", counts=True)
        for node in nodes:
            # A rollback takes clients off the canary, as a drain of one of its nodes does: these two are not at odds.
            is_emptied_anyway = self.request.kind == "to_stable" and self._arm_of(node) == self.request.arm
            if node.is_draining and node.connections and not is_emptied_anyway:
                return Condition(f"{node.id} drains", counts=False)
        return None

    # ---------------------------------------------------------------- what to move

    def _wanted(
        self, now: Instant, nodes: Sequence[AccessNode], loads: Mapping[NodeId, int]
    ) -> tuple[list[Shares], int]:
        """Return who should give and take how much, and how many are to be moved in all."""
        if self.request.kind == "rebalance":
            return self._wanted_shares(nodes, loads)
        giver, taker = self._arms
        can_give: dict[NodeId, int] = {}
        can_take: dict[NodeId, int] = {}
        on_canary = 0
        for node in nodes:
            arm, load = self._arm_of(node), loads[node.id]
            on_canary += load if arm == self.request.arm else 0
            if arm == giver and not node.is_draining and self._may_ask(now, node.id):
                can_give[node.id] = load
            elif arm == taker and not node.is_draining and not node.is_cordoned:
                can_take[node.id] = max(node.capacity - load, 0)
        left = on_canary
        if taker == self.request.arm:
            left = max(-(-sum(loads.values()) * self.request.share // FULL) - on_canary, 0)
        regions = {node.id: node.region for node in nodes}
        return _by_region(apportion(left, can_give), can_take, regions), left

    def _wanted_shares(self, nodes: Sequence[AccessNode], loads: Mapping[NodeId, int]) -> tuple[list[Shares], int]:
        found = shares_by_group(
            nodes, lambda node: (node.region, self._arm_of(node)), loads=loads, tolerance=self.request.tolerance
        )
        # How many left a source between its last answer and its report is not known. That is no reason to send them
        # back: while clients of a node are on their way, none go the other way.
        leaving = {node for node, source in self._sources.items() if source.waiting}
        coming = {node for node, target in self._targets.items() if target.coming}
        wanted = [
            Shares(
                {node: count for node, count in shares.gives.items() if node not in coming},
                {node: count for node, count in shares.takes.items() if node not in leaving},
            )
            for shares in found
        ]
        return [shares for shares in wanted if shares.moves], sum(shares.moves for shares in found)

    @property
    def _arms(self) -> tuple[str, str]:
        """The arm that gives and the one that takes; not of a rebalance."""
        return (self.request.arm, STABLE) if self.request.kind == "to_stable" else (STABLE, self.request.arm)

    def _is_done(self, nodes: Sequence[AccessNode]) -> bool:
        if not nodes or self._in_flight or any(target.coming for target in self._targets.values()):
            return False
        # Of those who left since a node's report, some may not be in it any more: then it counts more than it seems.
        accounts = ((self._sources.get(node.id), node.reported_at) for node in nodes)
        if any(source is not None and source.leaving(reported_at) for source, reported_at in accounts):
            return False
        if not self._left:
            return True
        if self.request.kind != "to_canary":
            return False
        # Shares of buckets are not exact: if nobody whose arm it is is left elsewhere, the share is reached.
        givers = [
            node.id for node in nodes if self._arm_of(node) == STABLE and node.connections and not node.is_draining
        ]
        return all((source := self._sources.get(node)) is not None and source.is_exhausted for node in givers)

    def _order(self, now: Instant, fleet: Fleet, wanted: Sequence[Shares]) -> tuple[Order, ...]:
        budgets = self._budgets(now, fleet, {node: None for shares in wanted for node in shares.takes})
        room = min(self._pace.room(now, self.request.rate_per_s), self._in_flight_max - self._in_flight)
        if (allowance := self._breaker.allowance) is not None:
            room = min(room, allowance)
        possible = [
            Shares(
                {node: count for node, count in shares.gives.items() if self._may_ask(now, node)},
                {node: min(count, budgets[node]) for node, count in shares.takes.items()},
            )
            for shares in wanted
        ]
        orders: dict[NodeId, dict[NodeId, int]] = {}
        for index, part in apportion(room, {index: shares.moves for index, shares in enumerate(possible)}).items():
            takes = {node: min(count, budgets[node]) for node, count in possible[index].takes.items()}
            for one in pair(apportion(part, possible[index].gives), apportion(part, takes)):
                budgets[one.target] -= one.count
                sent = orders.setdefault(one.source, {})
                sent[one.target] = sent.get(one.target, 0) + one.count
        for node, sent in orders.items():
            arm = self._arm_of(self._members[node]) if self.request.kind == "rebalance" else self._arms[1]
            self._charge(now, Order(node, arm, sent))
        assert not orders or self._in_flight <= self._in_flight_max, "I2"
        return tuple(self._orders.values())

    def _budgets(self, now: Instant, fleet: Fleet, targets: Mapping[NodeId, None]) -> dict[NodeId, int]:
        """Return how many each target may be sent now."""
        budgets: dict[NodeId, int] = {}
        full_rate = 0.0
        for name in targets:
            node = self._members[name]
            account = self._targets.get(name)
            if account is None:
                account = TargetAccount(Pace(now), fleet.turned_away.get(name, 0), fleet.admitted.get(name, 0))
                self._targets[name] = account
            rate = self.request.accept_per_s
            if node.accepts_per_s > 0:
                rate = min(rate, node.accepts_per_s * self.request.accept_percent / 100)
            full_rate += rate
            age_ms = node.uptime_ms + now - node.reported_at if node.report else 0
            budgets[name] = account.pace.room(now, rate * min(max(age_ms / SLOW_START_MS, SLOW_START_FLOOR), 1.0))
        self._full_rate = min(self.request.rate_per_s, full_rate or self.request.rate_per_s)
        return budgets

    def _may_ask(self, now: Instant, node: NodeId) -> bool:
        source = self._sources.get(node)
        return source is None or source.left_alone_until <= now

    def _charge(self, now: Instant, order: Order) -> None:
        self._orders[order.source] = order
        self._sources.setdefault(order.source, SourceAccount()).order(now, order.count)
        self._pace.take(now, order.count)
        self._breaker.spent(now, order.count)
        for target, count in order.targets.items():
            self._targets[target].send(now, count)

    def _take_back(self, source: NodeId, sent: Mapping[NodeId, int]) -> None:
        """Of the source's last order only these were told."""
        order = self._orders.pop(source, None)
        if order is None:
            return
        now = self._stepped_at
        for target, count in order.targets.items():
            unsent = count - sent.get(target, 0)
            assert unsent >= 0, "more were told than ordered"
            if unsent:
                self._sources[source].ordered -= unsent
                self._pace.take(now, -unsent)
                self._breaker.spent(now, -unsent)
                self._targets[target].take_back(now, unsent)


def _by_region(gives: Mapping[NodeId, int], takes: Mapping[NodeId, int], regions: Mapping[NodeId, str]) -> list[Shares]:
    """Let each region's givers give to its own takers, as far as they have room; the rest goes anywhere."""
    found: list[Shares] = []
    gives_left, takes_left = dict(gives), dict(takes)
    for region in sorted({regions[node] for node in gives}):
        here = Shares(
            {node: count for node, count in gives.items() if regions[node] == region},
            {node: count for node, count in takes.items() if regions[node] == region},
        )
        given = apportion(here.moves, here.gives)
        found.append(Shares(given, here.takes))
        for node, count in given.items():
            gives_left[node] -= count
        for node, count in apportion(here.moves, here.takes).items():
            takes_left[node] -= count
    found.append(Shares(gives_left, takes_left))
    return [shares for shares in found if shares.moves]
