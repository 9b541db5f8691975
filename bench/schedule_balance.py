"""How even a cold fleet becomes under eight schedulers with old reports, next to other ways of balancing.

Simulated: 100 nodes with 500 clients each, reports every 10 s, 2 s on average from a decision to the connection, a
tenth of the clients who never come, one scheduler with half of all clients. The value is the mean over the last two
thirds of the greatest number of connections of any node over the mean. `oracle` is the limit of what a balancer could
do; `churn` is the same for clients who leave after 28 s, where a third of a report's connections have ended.
"""

from __future__ import annotations

import sys

from bench.result import Comparison, Options, Result
from roadstead.sim.fleet.catalog import SCENARIOS
from roadstead.sim.fleet.scenario import ENGINE, LIMIT
from roadstead.sim.fleet.scenario import Options as Simulated

SPEC = ("AL-05",)  # rows of docs/spec-coverage.md

NAME = "schedule_balance"
GOAL = 1.03
SHOWN = ("max_over_mean", "max_over_mean_p99", "min_over_mean", "accept_peak_over_mean")
QUICK = Simulated(nodes=40, schedulers=4, seconds=40)
CHURN_POLICIES = (ENGINE, LIMIT, "own_increments")
CHURN = Simulated(seconds=240)


def run(options: Options) -> Result:
    """Measure and return the result."""
    hard = SCENARIOS["balance"]
    simulated = QUICK if options.quick else Simulated()
    seen = {policy: _shown("balance", policy, simulated) for policy in hard.policies}
    details: dict[str, object] = dict(seen)
    if not options.quick:
        details["churn"] = {policy: _shown("churn", policy, CHURN) for policy in CHURN_POLICIES}
    unevenness = {policy: shown["max_over_mean"] for policy, shown in seen.items()}
    ours = unevenness[ENGINE]
    assert ours is not None
    comparison = Comparison.of_known(
        unit="max / mean connections",
        better="lower",
        ours=ours,
        others={policy: figure for policy, figure in unevenness.items() if policy != ENGINE},
    )
    return Result(NAME, ours, "max / mean", GOAL, "lower", details, comparison)


def _shown(scenario: str, policy: str, simulated: Simulated) -> dict[str, float | None]:
    figures = SCENARIOS[scenario].run(policy, simulated).figures
    shown = {name: _rounded(figures[name]) for name in SHOWN}
    print(f"{scenario} {policy}: {shown}", file=sys.stderr)
    return shown


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
