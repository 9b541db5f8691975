"""What the scheduler knows at one moment, compiled for deciding: nodes, arms, pools, and who is left out and why.

Made anew from each view of the registry. Everything in it is settled but the counters of its pools, which the engine
moves on with each decision until the next one is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from scheduler.core.cohorts import Cohort
from scheduler.core.node import AccessNode
from scheduler.core.pools import Pool, slow_start
from scheduler.core.regions import Regions

__all__ = ["STABLE", "Settings", "Snapshot"]

STABLE = "stable"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can turn. Times in ms."""

    candidates: int = 3
    slow_start_ms: int = 60_000
    slow_start_floor: float = 0.1
    overprovision: float = 1.4
    """A region is left for the next one when its connections times this exceed its capacity."""
    report_fresh_ms: int = 15_000
    report_expiry_ms: int = 180_000
    connect_window_ms: int = 10_000
    accepts_per_s: float = 0.0
    """For nodes that name none; 0: no limit."""
    burst_ms: int = 1_000
    slot_horizon_ms: int = 600_000
    sticky_excess: float = 0.25
    """How far above the pool's mean load a user's node may be before the user goes to the next one."""
    panic_percent: int = 50
    panic_hold_ms: int = 600_000


class Snapshot:
    """See the module."""

    def __init__(
        self,
        nodes: Sequence[AccessNode],
        loads: Sequence[float],
        *,
        cohorts: Sequence[Cohort],
        regions: Regions,
        settings: Settings,
        share: float,
        now: int,
        generation: int,
    ) -> None:
        """Compile.

        Args:
            nodes: everybody who is alive.
            loads: estimated connections of each.
            cohorts: of the rollouts, in the order in which they are asked.
            regions: the operator's.
            settings: the operator's.
            share: this scheduler's part of all assignments.
            now: monotonic ms.
            generation: number of this snapshot.
        """
        self.nodes = tuple(nodes)
        self.index = {node.id: place for place, node in enumerate(self.nodes)}
        self.cohorts = tuple(cohorts)
        self.regions = regions
        self.at = now
        self.generation = generation
        self.share = share
        self.unit = 1.0 / share
        """Connections that one assignment stands for: the other schedulers are taken to have done likewise."""
        self.left_out: dict[int, str] = {}
        self.load = list(loads)
        """Estimated connections of each node; moved on with each decision."""
        self.per_unit = [1.0] * len(nodes)
        """What one connection means to each node: one over its weight."""
        self.step_ms = [0.0] * len(nodes)
        """Time between two newcomers of each node; 0: no limit."""
        self.next_at = [0.0] * len(nodes)
        """When each node takes the next newcomer; 0 without a limit."""
        self.vague = self._vague(settings)
        """How much to doubt each node's report, 0 to 1; None if no report is to be doubted."""
        self._arms = {cohort.rollout.version: cohort.rollout.name for cohort in reversed(self.cohorts)}
        self._rollouts = {cohort.rollout.name: cohort.rollout for cohort in self.cohorts}
        self.pools: dict[tuple[str, str], Pool] = {}
        """By arm and region."""
        self.homes: list[tuple[Pool, ...]] = [()] * len(nodes)
        """The pools that each node is in: its region's, and those of the carriers whose clients it takes."""
        self._compile(settings)
        self._orders: dict[tuple[str, str], tuple[Pool, ...]] = {}
        self._walks: dict[tuple[str, str], tuple[tuple[str, Pool | None, Pool | None], ...]] = {}

    def arm_of(self, node: AccessNode) -> str:
        """Return the arm that a node belongs to: the rollout whose version it reports, or "stable"."""
        return self._arms.get(node.version, STABLE)

    def order(self, arm: str, region: str) -> tuple[Pool, ...]:
        """Return the arm's pools in the order of preference of a client of the region."""
        found = self._orders.get((arm, region))
        if found is None:
            existing = [where for what, where in self.pools if what == arm]
            found = tuple(self.pools[arm, where] for where in self.regions.order(region, existing))
            self._orders[arm, region] = found
        return found

    def walk(self, arm: str, region: str) -> tuple[tuple[str, Pool | None, Pool | None], ...]:
        """Return (region, the arm's pool, stable's pool) in the order of preference of a client of the region."""
        found = self._walks.get((arm, region))
        if found is None:
            found = tuple(
                (where, self.pools.get((arm, where)), self.pools.get((STABLE, where)))
                for where in self.regions.order(region, [where for what, where in self.pools if what in {arm, STABLE}])
            )
            self._walks[arm, region] = found
        return found

    def every_pool(self) -> Iterator[Pool]:
        """Give all pools, and the parts of each in the carriers' networks."""
        for pool in self.pools.values():
            yield pool
            yield from pool.carriers.values()

    def weight_of(self, node: AccessNode) -> float:
        """Return how many connections a node may have now: its capacity times its slow start."""
        index = self.index[node.id]
        return self.nodes[index].capacity if index in self.left_out else 1.0 / self.per_unit[index]

    def totals(self) -> Mapping[str, float]:
        """Return the estimated connections of each arm, of nodes that are left out too."""
        totals = {STABLE: 0.0} | {cohort.rollout.name: 0.0 for cohort in self.cohorts}
        for node, load in zip(self.nodes, self.load, strict=True):
            totals[self.arm_of(node)] += load
        return totals

    # ---------------------------------------------------------------- inside

    def _vague(self, settings: Settings) -> list[float] | None:
        # Compared with the newest: where the registry is away, all are old alike, and what was assigned since is known.
        newest = max((node.reported_at for node in self.nodes), default=0)
        span = max(1, settings.report_expiry_ms - settings.report_fresh_ms)
        vague = [
            min(1.0, max(0.0, (newest - node.reported_at - settings.report_fresh_ms) / span)) for node in self.nodes
        ]
        return vague if any(vague) else None

    def _compile(self, settings: Settings) -> None:
        members: dict[tuple[str, str], list[int]] = {}
        for index, node in enumerate(self.nodes):
            reason = self._reason(index, node, settings.report_expiry_ms)
            if reason is None:
                members.setdefault((self.arm_of(node), node.region), []).append(index)
            else:
                self.left_out[index] = reason
        for (arm, region), indexes in members.items():
            self.pools[arm, region] = self._pool(arm, region, indexes, settings)

    def _reason(self, index: int, node: AccessNode, expiry_ms: int) -> str | None:
        if node.is_draining:
            return "draining"
        if node.is_cordoned:
            return "cordoned"
        # Without reports the estimate only grows: who left is not known, and so neither is whether the node is full.
        is_known = self.at - node.reported_at <= expiry_ms
        load = self.load[index] if is_known else float(node.connections)
        if load >= node.capacity:
            return f"full at {load:.0f} of {node.capacity}"
        return None

    def _pool(self, arm: str, region: str, indexes: list[int], settings: Settings) -> Pool:
        nodes = [self.nodes[index] for index in indexes]
        ramps = slow_start(nodes, self.at, window_ms=settings.slow_start_ms, floor=settings.slow_start_floor)
        for index, node, ramp in zip(indexes, nodes, ramps, strict=True):
            self.per_unit[index] = 1.0 / (node.capacity * ramp)
            accepts = (node.accepts_per_s or settings.accepts_per_s) * ramp * self.share
            self.step_ms[index] = 1000.0 / accepts if accepts else 0.0
        pool = self._bare(arm, region, "", indexes, settings)
        for carrier in sorted({node.carrier for node in nodes if node.carrier}):
            fits = [index for index, node in zip(indexes, nodes, strict=True) if node.carrier in {carrier, ""}]
            if len(fits) < len(nodes):
                pool.carriers[carrier] = self._bare(arm, region, carrier, fits, settings)
        return pool

    def _bare(self, arm: str, region: str, carrier: str, indexes: list[int], settings: Settings) -> Pool:
        nodes = [self.nodes[index] for index in indexes]
        capacity = float(sum(node.capacity for node in nodes))
        pool = Pool(
            arm,
            region,
            carrier,
            indexes,
            weights=[1.0 / self.per_unit[index] for index in indexes],
            capacity=capacity,
            heard_at=max(node.reported_at for node in nodes),
        )
        pool.used = sum(min(self.load[index], node.capacity) for index, node in zip(indexes, nodes, strict=True))
        steps = [self.step_ms[index] for index in indexes]
        pool.step_ms = 1.0 / sum(1.0 / step for step in steps) if all(steps) else 0.0
        if arm == STABLE:
            pool.limit = capacity / settings.overprovision
        else:
            pool.limit = capacity * self._rollouts[arm].max_share_of_capacity
        for index in indexes:
            self.homes[index] += (pool,)
        return pool
