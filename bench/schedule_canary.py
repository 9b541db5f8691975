"""Canary rollouts at a million users: who is on the canary, when it is stopped, and how its users come back.

The value is how many of these conditions are violated:
    shares          1 % and 10 % of 1,000,000 users are within 3 standard deviations of what hashing gives
    nobody back     raising the share takes nobody off the canary
    product         two rollouts at 10 % each overlap in 1.0 +- 0.05 % of the users
    flagd           the buckets are those of flagd's own evaluator, key by key
    false aborts    of 1,000 simulated rollouts of the same version at most 1 % fail
    stopped         a version with 5 % errors against 0.5 % fails within the interval times the failure limit
    everywhere      1 s later no scheduler sends anybody to it
    back            at least 99 % of its live connections are on stable within 120 s
    rate            no second has more moves than the document allows, nor than a fifth above it
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from random import Random

from base.core.histogram import Histogram
from bench.result import Options, Result
from roadstead.sim.fleet.catalog import SCENARIOS
from roadstead.sim.fleet.rollouts import BACK
from roadstead.sim.fleet.scenario import Options as Simulated
from scheduler.core.analysis import judge
from scheduler.core.buckets import bucket
from scheduler.core.cohorts import ActiveRollout, Cohort, export_flagd
from scheduler.core.ledger import Ledger, NodeTotals
from scheduler.core.request import Request
from scheduler.core.rollout import FULL, Analysis, Check, Rollout, Step
from scheduler.core.rollout_machine import RolloutState, command, judged, next_deadline, start, tick

SPEC = ("AR-1",)  # rows of docs/spec-coverage.md

USERS = 1_000_000
FLAGD_KEYS = 2_000
ROLLOUTS = 1_000
BAD_ROLLOUTS = 100
CONNECTS_PER_S = 200
INTERVAL_MS = 30_000
FAILURE_LIMIT = 3
BEGAN = 1_700_000_000_000
MINUTE_MS = 60_000


def run(options: Options) -> Result:
    """Look at each condition; what was seen is in the details."""
    users = USERS // 20 if options.quick else USERS
    rollouts = ROLLOUTS // 20 if options.quick else ROLLOUTS
    seen: dict[str, object] = {}
    violated: list[str] = []

    def check(name: str, found: object, *, holds: bool) -> None:
        seen[name] = found
        if not holds:
            violated.append(name)
        print(f"{name}: {found}{'' if holds else '  VIOLATED'}", file=sys.stderr)

    _shares(users, check)
    _flagd(check)
    _judging(rollouts, check)
    _coming_back(check)
    return Result(
        "schedule_canary",
        len(violated),
        "violated conditions",
        0,
        "lower",
        {"violated": violated, "users": users} | seen,
    )


_Say = Callable[..., None]


def _shares(users: int, check: _Say) -> None:
    one = [bucket("rollout-1", f"user-{number}") for number in range(users)]
    two = [bucket("rollout-2", f"user-{number}") for number in range(users)]
    for percent in (1, 10):
        p = percent / 100
        count = sum(found < percent * 1_000 for found in one)
        sigmas = (count - users * p) / math.sqrt(users * p * (1 - p))
        check(f"share at {percent} %", f"{count / users:.4%}, {sigmas:+.2f} sigma", holds=abs(sigmas) <= 3)
    rollout = _rollout("rollout-1")
    requests = [Request(f"user-{number}") for number in range(users // 5)]
    before: list[bool] = [False] * len(requests)
    back = 0
    for share in (1_000, 5_000, 10_000, 12_500, 50_000, FULL):
        cohort = Cohort(ActiveRollout(rollout, share))
        now = [cohort.place(request).is_canary for request in requests]
        back += sum(was and not is_there for was, is_there in zip(before, now, strict=True))
        before = now
    check("taken back while the share rose", back, holds=back == 0)
    both = sum(a < 10_000 and b < 10_000 for a, b in zip(one, two, strict=True)) / users
    spread = 3 * math.sqrt(0.01 * 0.99 / users)
    check("overlap of two at 10 %", f"{both:.4%}", holds=abs(both - 0.01) <= max(0.000_5, spread))


def _flagd(check: _Say) -> None:
    from openfeature.contrib.tools.flagd.core import FlagdCore
    from openfeature.evaluation_context import EvaluationContext

    differing = 0
    rollout = _rollout("golden")
    for percent in (1, 10, 50, 12.5):
        share = int(percent * 1_000)
        cohort = Cohort(ActiveRollout(rollout, share))
        core = FlagdCore()
        core.set_flags(export_flagd(rollout, share).flags)
        for number in range(FLAGD_KEYS):
            user = f"user-{number}"
            theirs = core.resolve_string_value(rollout.name, "", EvaluationContext(user)).value
            differing += (theirs == "canary") != cohort.place(Request(user)).is_canary
    check("buckets other than flagd's", f"{differing} of {4 * FLAGD_KEYS}", holds=differing == 0)


# ---------------------------------------------------------------- judging


def _judging(rollouts: int, check: _Say) -> None:
    same = _rollout(
        "same", Step(10_000, hold_ms=5 * MINUTE_MS, connects_min=500), Step(50_000, hold_ms=5 * MINUTE_MS), Step(FULL)
    )
    random = Random(5)
    phases = [_simulated(same, random, canary=0.005, stable=0.005).phase for _ in range(rollouts)]
    failed = phases.count("failed")
    check("false aborts", f"{failed} of {rollouts}", holds=failed <= rollouts // 100)
    ends = [_simulated(same, random, canary=0.05, stable=0.005) for _ in range(BAD_ROLLOUTS)]
    late = [end for end in ends if end.phase != "failed" or end.since - BEGAN > INTERVAL_MS * FAILURE_LIMIT]
    slowest = max((end.since - BEGAN for end in ends if end.phase == "failed"), default=0) / 1_000
    # Each has a fresh chance of an interval in which chance hides it; one of a hundred may need a fourth.
    check(
        "bad ones not stopped in time", f"{len(late)} of {BAD_ROLLOUTS}, slowest {slowest:.0f} s", holds=len(late) <= 1
    )


def _simulated(rollout: Rollout, random: Random, *, canary: float, stable: float) -> RolloutState:
    """Return how a rollout ends whose newcomers fail with these probabilities, judged at every interval."""
    ledger = Ledger(rollout.version)
    state, now = start(rollout, BEGAN), BEGAN
    counted = {"2": (0, 0), "1": (0, 0)}
    ledger.observe([_report(version, *counts) for version, counts in counted.items()])
    while state.phase == "running":
        if state.epoch != ledger.epoch:
            ledger.begin(state.epoch)
        due = next_deadline(rollout, state)
        assert due is not None
        connects = CONNECTS_PER_S * (due - now) // 1_000
        now = due
        share = connects * state.percent // FULL
        for version, trials, p in (("2", share, canary), ("1", connects - share, stable)):
            total, bad = counted[version]
            counted[version] = (total + trials, bad + _binomial(random, trials, p))
        ledger.observe([_report(version, *counts) for version, counts in counted.items()])
        verdict = judge(
            rollout, ledger, now=now, percent=state.percent, connects_min=rollout.steps[state.step].connects_min
        )
        state = tick(rollout, judged(rollout, state, verdict, now), now)
        if state.phase == "paused":  # in doubt; an operator looks and goes on
            resumed = command(rollout, state, "resume", now, who="operator")
            assert isinstance(resumed, RolloutState)
            state = resumed
    return state


def _report(version: str, total: int, bad: int) -> NodeTotals:
    return NodeTotals(
        node=version,
        incarnation=1,
        report=total + 1,
        version=version,
        accepted=total,
        rejected=bad,
        handshakes=Histogram([total - bad]),
    )


def _binomial(random: Random, trials: int, p: float) -> int:
    events = at = 0
    while True:
        at += 1 + int(math.log(1 - random.random()) / math.log(1 - p))
        if at > trials:
            return events
        events += 1


def _rollout(name: str, *steps: Step) -> Rollout:
    checks = (Check("connect_success", min=0.995, vs_stable=-0.002),)
    return Rollout(
        name=name,
        version="2",
        seed=name,
        steps=steps or (Step(FULL),),
        analysis=Analysis(INTERVAL_MS, FAILURE_LIMIT, "pause", checks),
    )


# ---------------------------------------------------------------- coming back


def _coming_back(check: _Say) -> None:
    figures = SCENARIOS["rollout"].run("move_back", Simulated()).figures
    last_s, empty_s, peak = (figures[name] for name in ("last_of_them_s", "canary_empty_s", "moves_peak_per_s"))
    check("last newcomer after the failure, s", last_s, holds=last_s is not None and last_s <= 1)
    check("99 % are back after, s", empty_s, holds=empty_s is not None and empty_s <= 120)
    check("moves in the worst second", peak, holds=peak is not None and peak <= BACK.rate_per_s * 1.2)
