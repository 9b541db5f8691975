"""How many connections are moved until ten new nodes among a hundred have their part, over the fewest that suffice.

Simulated: ninety nodes with 10,000 clients each who stay for two hours, and ten empty ones that join. The fleet is
balanced when each node has 0.9 to 1.05 of the mean; the fewest moves are those that would make it so at the beginning.
Where that takes longer than ten minutes the goal is missed, whatever it took: the value is then 1,000.
"""

from __future__ import annotations

import sys

from bench.result import Comparison, Options, Result
from roadstead.sim.fleet.catalog import SCENARIOS
from roadstead.sim.fleet.scaling import DIRECTED
from roadstead.sim.fleet.scenario import Options as Simulated

NAME = "schedule_scaleout"
GOAL = 1.1
MINUTES_MAX = 10
MISSED = 1_000.0
QUICK = Simulated(nodes=30, schedulers=3, seconds=560)


def run(options: Options) -> Result:
    """Measure and return the result."""
    scenario = SCENARIOS["scaleout"]
    details = {}
    for policy in (DIRECTED,) if options.quick else scenario.policies:
        details[policy] = scenario.run(policy, QUICK if options.quick else Simulated()).figures
        print(f"{policy}: {details[policy]}", file=sys.stderr)
    ours = details[DIRECTED]
    seconds, moves = ours["balanced_s"], ours["moves_over_minimum"]
    is_in_time = seconds is not None and seconds <= MINUTES_MAX * 60
    value = moves if moves is not None and is_in_time else MISSED
    comparison = Comparison.of_known(
        unit="moves / minimum, of those that balance",
        better="lower",
        ours=moves,
        others={policy: figures["moves_over_minimum"] for policy, figures in details.items() if policy != DIRECTED},
    )
    return Result(NAME, value, "moves / minimum", GOAL, "lower", details, comparison)
