"""Scenarios in which connections break or nodes go: a region is lost, a balancer reloads, a name's TTL is not over."""

from __future__ import annotations

from collections.abc import Callable

from access.core.drain import DrainPlan, Targets
from base.clock import Instant
from roadstead.sim.fleet.balancers import Choice
from roadstead.sim.fleet.chance import stream
from roadstead.sim.fleet.figures import Run, percentile
from roadstead.sim.fleet.fleet import Client, Fleet, FleetSettings
from roadstead.sim.fleet.nodes import NodeSpec, SimNode
from roadstead.sim.fleet.resolvers import Resolver
from roadstead.sim.fleet.scenario import ENGINE, Options, Scenario, fleet_of, shares

__all__ = ["BACKOFF", "SCENARIOS"]

REGIONS = ("north", "east", "south")
HELD = 1_010
"""Clients of a node: 100,000 on all 99."""
ACCEPTS_PER_S = 10.0
LOST_AT_MS = 600_000
"""Long enough for the schedulers to have learned how they share; earlier in a short run."""
BACKOFF = "backoff"
BACKOFF_MS = 3_000
BACKOFF_SPREAD = 0.3
"""What clients do that are told nothing: back after 3 s +- 30 %."""


def _region_loss(policy: str, options: Options) -> Run:
    count = options.nodes or 99
    seconds = options.seconds or 780
    lost_at = min(LOST_AT_MS, seconds * 300)
    settings = FleetSettings(
        seed=options.seed,
        seconds=seconds,
        nodes=tuple(
            NodeSpec(
                region=REGIONS[index % len(REGIONS)],
                capacity=2 * HELD,
                accepts_per_s=ACCEPTS_PER_S,
                connections=HELD,
            )
            for index in range(count)
        ),
        shares=shares(options.schedulers or 8, 0.5),
        arrivals_per_s=HELD * count / 3_600,
        lifetime_s=3_600,
        regions=tuple((region, 1 / len(REGIONS)) for region in REGIONS),
        backoff_ms=BACKOFF_MS if policy == BACKOFF else 1_000,
    )
    fleet = fleet_of("random" if policy == BACKOFF else policy, settings)
    lost = [node for node in fleet.nodes if node.spec.region == REGIONS[0]]
    demand: list[int] = []

    def lose(now: int) -> None:
        demand.append(sum(node.connections for node in lost))
        for node in lost:
            fleet.crash(node, now, spread=BACKOFF_SPREAD, after_ms=BACKOFF_MS if policy == BACKOFF else 0)

    back: list[int] = []
    slots: list[int] = []

    def on_connect(client: Client, _node: SimNode, now: int) -> None:
        if client.is_back:
            back.append(now)
            slots.append(client.slot)

    fleet.on_connect = on_connect
    fleet.at(lost_at, lose)
    fleet.run()
    fleet.check_invariants()
    survivors = count - len(lost)
    return Run(
        policy,
        {
            "demand": float(sum(demand)),
            "credit_per_s": survivors * ACCEPTS_PER_S,
            "ideal_s": sum(demand) / (survivors * ACCEPTS_PER_S),
            "slot_last_s": (max(slots) - lost_at) / 1_000,
            "back_p50_s": (percentile(back, 50) - lost_at) / 1_000,
            "back_p99_s": (percentile(back, 99) - lost_at) / 1_000,
            "back_all_s": (max(back) - lost_at) / 1_000 if len(back) == sum(demand) else None,
            "accepts_peak_per_s": float(max(fleet.recorder.series.accepts)),
            "attempts_peak_per_s": float(max(fleet.recorder.series.attempts)),
            "refused": float(fleet.recorder.refused),
            "told_nothing": float(fleet.in_vain),
            "asked_twice": float(fleet.asked_again),
        },
        fleet.recorder.series,
    )


# ---------------------------------------------------------------- names that are cached

NAMES_NODES = 20
DRAIN_AT_MS = 120_000
CRASH_AT_MS = 420_000
RESOLVERS = 50
TTLS_MS = {"dns_60s": 60_000, "dns_300s": 300_000}


def _dns_ttl(policy: str, options: Options) -> Run:
    count = options.nodes or NAMES_NODES
    is_dns = policy in TTLS_MS
    settings = FleetSettings(
        seed=options.seed,
        seconds=options.seconds or 840,
        nodes=(NodeSpec(capacity=15_000, connections=3_000),) * count,
        shares=shares(RESOLVERS if is_dns else options.schedulers or 8),
        arrivals_per_s=10.0 * count,
        lifetime_s=300,
    )
    if is_dns:
        fleet = Fleet(settings)
        ttl_ms = TTLS_MS[policy]
        fleet.balancers = [Resolver(stream(options.seed, f"dns {i}"), ttl_ms=ttl_ms) for i in range(RESOLVERS)]
    else:
        fleet = fleet_of(policy, settings)
    drained, dead = fleet.nodes[:2]
    fleet.at(DRAIN_AT_MS, lambda now: fleet.drain(drained, now))
    fleet.at(CRASH_AT_MS, lambda now: fleet.crash(dead, now))
    fleet.run()
    fleet.check_invariants()
    balance = fleet.recorder.balance(count)
    return Run(
        policy,
        {
            "to_drained": float(drained.vain),
            "drained_last_s": max(0, drained.vain_at - DRAIN_AT_MS) / 1_000,
            "to_dead": float(dead.vain),
            "dead_last_s": max(0, dead.vain_at - CRASH_AT_MS) / 1_000,
            "back_p99_s": percentile(fleet.waits_ms, 99) / 1_000,
            "max_over_mean": balance["max_over_mean"],
        },
        fleet.recorder.series,
    )


# ---------------------------------------------------------------- reloads

PROXIES = 10
RELOAD, ROLLING, DIRECTED = "reload", "rolling_reload", "directed_drain"
FIRST_RELOAD_MS = 60_000
RELOAD_EVERY_MS = 300_000
DRAIN_STEP_MS = 200
GRACE_MS = 30_000


def _l7_reload(policy: str, options: Options) -> Run:
    count = options.nodes or PROXIES
    held = 2_000
    settings = FleetSettings(
        seed=options.seed,
        seconds=options.seconds or 600,
        nodes=(NodeSpec(capacity=15_000, connections=held),) * count,
        shares=shares(options.schedulers or 8),
        arrivals_per_s=held * count / 3_600,
        lifetime_s=3_600,
        report_ms=1_000,
        backoff_ms=BACKOFF_MS,
    )
    fleet = fleet_of(ENGINE if policy == DIRECTED else "random", settings)
    broken: list[int] = []
    told: list[int] = []

    def reload(node: SimNode, now: int) -> None:
        broken.append(node.connections)
        fleet.drop(node, now, spread=BACKOFF_SPREAD, after_ms=BACKOFF_MS)

    slot_ms = RELOAD_EVERY_MS // count
    for since in range(FIRST_RELOAD_MS, settings.seconds * 1_000, RELOAD_EVERY_MS):
        for index, node in enumerate(fleet.nodes):
            at = since + (0 if policy == RELOAD else index * slot_ms)
            if policy == DIRECTED:
                fleet.at(at, _Drain(fleet, node, over_ms=slot_ms * 2 // 3, told=told, broken=broken).begin)
            else:
                fleet.at(at, _of(node, reload))
    fleet.run()
    fleet.check_invariants()
    series = fleet.recorder.series
    accepts = series.accepts
    return Run(
        policy,
        {
            "broken": float(sum(broken)),
            "moved": float(sum(told)),
            "accepts_peak_per_s": float(max(accepts)),
            "accepts_mean_per_s": sum(accepts) / len(accepts),
            "without_p99_s": percentile(fleet.waits_ms, 99) / 1_000,
            "max_over_mean": max(most / mean for most, mean in zip(series.most, series.mean, strict=True) if mean),
        },
        fleet.recorder.series,
    )


def _of(node: SimNode, action: Callable[[SimNode, int], None]) -> Callable[[int], None]:
    return lambda now: action(node, now)


class _Drain:
    """The real drain of one node, after which it is started anew."""

    def __init__(self, fleet: Fleet, node: SimNode, *, over_ms: int, told: list[int], broken: list[int]) -> None:
        self._fleet = fleet
        self._node = node
        self._over_ms = over_ms
        self._told = told
        self._broken = broken

    def begin(self, now: int) -> None:
        """Take nobody more, and begin to send away who is there."""
        self._fleet.drain(self._node, now)
        others = [node for node in self._fleet.nodes if node is not self._node]
        targets = Targets((node.id, node.connections, node.spec.capacity) for node in others)
        clients = map(str, range(self._node.connections))
        self._plan = DrainPlan(clients, Instant(now), over_ms=self._over_ms, grace_ms=GRACE_MS, targets=targets)
        self._step(now)

    def _step(self, now: int) -> None:
        step = self._plan.step(Instant(now))
        for move in step.move:
            self._fleet.move(self._node, Choice((move.target,) if move.target else ()), now)
        self._told.append(len(step.move))
        if self._node.connections and self._plan.progress(Instant(now)).pending:
            self._fleet.at(now + DRAIN_STEP_MS, self._step)
        else:
            self._fleet.at(now + self._over_ms // 3, self._restart)

    def _restart(self, now: int) -> None:
        self._broken.append(self._node.connections)
        self._fleet.drop(self._node, now)
        self._node.start(now)
        self._node.make_report(now)


SCENARIOS = (
    Scenario(
        name="region_loss",
        summary="One of three regions is lost, and 33,000 clients need another node.",
        policies=(ENGINE, BACKOFF),
        run=_region_loss,
        nodes_min=3,
        seconds_min=LOST_AT_MS // 1_000 + 60,
    ),
    Scenario(
        name="dns_ttl",
        summary="One node drains and another dies, while names are cached.",
        policies=(ENGINE, *TTLS_MS),
        run=_dns_ttl,
        nodes_min=3,
        seconds_min=CRASH_AT_MS // 1_000 + 60,
    ),
    Scenario(
        name="l7_reload",
        summary="Proxies with 20,000 connections get a new configuration every five minutes.",
        policies=(DIRECTED, RELOAD, ROLLING),
        run=_l7_reload,
        seconds_min=FIRST_RELOAD_MS // 1_000 + 60,
    ),
)
