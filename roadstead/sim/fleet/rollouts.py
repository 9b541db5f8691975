"""Scenario: a new version gets 1 %, then 10 % of the users, and turns out to be bad."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from roadstead.sim.fleet.balancers import Choice
from roadstead.sim.fleet.engines import EngineBalancer
from roadstead.sim.fleet.figures import Run
from roadstead.sim.fleet.fleet import Fleet, FleetSettings
from roadstead.sim.fleet.movers import DirectedMover
from roadstead.sim.fleet.nodes import NodeSpec
from roadstead.sim.fleet.scenario import ENGINE, Options, Scenario, fleet_of, shares
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.moving import MoveRequest
from scheduler.core.node import AccessNode
from scheduler.core.request import Request
from scheduler.core.rollout import Rollout, Step
from scheduler.core.snapshot import STABLE

__all__ = ["SCENARIOS"]

MOVE_BACK, STOP, CUT = "move_back", "stop_only", "cut"
CANARY, BEFORE = "2.0.0", "1.0.0"
CANARY_PART = 10
"""One node of so many runs the new version."""
HELD, LIFETIME_S = 1_000, 600
STEPS_MS = ((60_000, 1_000), (240_000, 10_000))
"""From when on which share of the users is on the canary, in thousandths of a percent."""
FAILED_AT_MS = 600_000
CONFIG_LAG_MS = 1_000
"""Within what time all schedulers know of a change."""
ROLLOUT = Rollout(name="access-2", version=CANARY, seed="access-2", steps=tuple(Step(percent=p) for _, p in STEPS_MS))
BACK = MoveRequest(id="rollback", kind="to_stable", arm=ROLLOUT.name, rate_per_s=100.0, accept_per_s=20.0)


class _Counted:
    """An engine, and when it sent how many to the canary."""

    def __init__(self, inner: EngineBalancer) -> None:
        self.inner = inner
        self.decided: list[tuple[int, bool]] = []

    def observe(self, nodes: Sequence[AccessNode], now: int) -> None:
        self.inner.observe(nodes, now)

    def decide(self, request: Request, now: int) -> Choice:
        choice = self.inner.decide(request, now)
        self.decided.append((now, choice.arm == ROLLOUT.name))
        return choice


def _arm_of(node: AccessNode) -> str:
    return ROLLOUT.name if node.version == CANARY else STABLE


def _share(balancers: Sequence[_Counted], since: int, until: int) -> float:
    """Return which part of the decisions of that time was for the canary."""
    arms = [is_canary for one in balancers for at, is_canary in one.decided if since <= at < until]
    return sum(arms) / len(arms) if arms else 0.0


def _rollout(policy: str, options: Options) -> Run:
    count = options.nodes or 100
    settings = FleetSettings(
        seed=options.seed,
        seconds=options.seconds or 900,
        nodes=tuple(
            NodeSpec(
                capacity=15_000,
                version=BEFORE if index % CANARY_PART else CANARY,
                connections=HELD if index % CANARY_PART else 0,
            )
            for index in range(count)
        ),
        shares=shares(options.schedulers or 8, 0.5),
        arrivals_per_s=HELD * count / LIFETIME_S,
        lifetime_s=LIFETIME_S,
    )
    fleet = fleet_of(ENGINE, settings)
    engines = [balancer for balancer in fleet.balancers if isinstance(balancer, EngineBalancer)]
    counted = [_Counted(engine) for engine in engines]
    mover = DirectedMover(fleet, BACK, arm_of=_arm_of)
    fleet.balancers = list(counted)
    canaries = [node for node in fleet.nodes if node.spec.version == CANARY]
    live: dict[int, int] = {}
    broken: list[int] = []

    def configure(at: int, percent: int, *, is_failed: bool = False) -> None:
        active = ActiveRollout(ROLLOUT, percent, is_failed)
        for index, engine in enumerate(engines):
            lag = CONFIG_LAG_MS * index // len(engines)
            fleet.at(at + lag, partial(engine.configure, [active]))

    def fail(now: int) -> None:
        if policy == MOVE_BACK:
            mover.begin(now)
        elif policy == CUT:
            for node in canaries:
                broken.append(node.connections)
                fleet.drop(node, now)

    configure(0, 0)
    for at, percent in STEPS_MS:
        configure(at, percent)
    configure(FAILED_AT_MS, 0, is_failed=True)
    fleet.at(FAILED_AT_MS + CONFIG_LAG_MS, fail)
    fleet.every(1_000, lambda now: live.update({now: sum(node.connections for node in canaries)}))
    fleet.run()
    fleet.check_invariants()
    figures = _figures(fleet, counted, live, mover.moves, sum(broken))
    figures["moves_peak_per_s"] = float(mover.peak_per_s)
    return Run(policy, figures, fleet.recorder.series)


def _figures(
    fleet: Fleet, counted: Sequence[_Counted], live: dict[int, int], moves: int, broken: int
) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    ends = [at for at, _ in STEPS_MS[1:]] + [FAILED_AT_MS]
    for (since, percent), until in zip(STEPS_MS, ends, strict=True):
        name = f"{percent // 1_000}_percent"
        figures[f"assigned_at_{name}"] = _share(counted, since + CONFIG_LAG_MS, until)
        figures[f"live_at_{name}"] = live[until] / (fleet.recorder.series.mean[until // 1_000 - 1] * len(fleet.nodes))
    after = [at for one in counted for at, is_canary in one.decided if is_canary and at > FAILED_AT_MS]
    few = live[FAILED_AT_MS] // 100
    gone = next((at for at, count in live.items() if at > FAILED_AT_MS and count <= few), None)
    late = [accepts for s, accepts in _seconds(fleet) if s * 1_000 > FAILED_AT_MS]
    figures["canary_assigned_after_failure"] = float(len(after))
    figures["last_of_them_s"] = max(after, default=FAILED_AT_MS) / 1_000 - FAILED_AT_MS / 1_000
    figures["canary_empty_s"] = (gone - FAILED_AT_MS) / 1_000 if gone is not None else None
    figures["moved"] = float(moves)
    figures["broken"] = float(broken)
    figures["accepts_peak_per_s"] = float(max(late, default=0))
    return figures


def _seconds(fleet: Fleet) -> list[tuple[int, int]]:
    series = fleet.recorder.series
    return list(zip(series.second, series.accepts, strict=True))


SCENARIOS = (
    Scenario(
        name="rollout",
        summary="A new version gets 1 %, then 10 % of the users, and is found to be bad.",
        policies=(MOVE_BACK, STOP, CUT),
        run=_rollout,
        nodes_min=CANARY_PART,
        seconds_min=FAILED_AT_MS // 1_000 + 10,
    ),
)
