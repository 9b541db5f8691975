"""Whether the loss of a region becomes a queue at the others, and no storm: conditions that are violated.

Simulated: 100,000 clients in three regions, one of which is lost, under one scheduler and under several that know
nothing of each other. In each run there are four conditions:

    in no second more newcomers are let in than the survivors' credit, rate * 1 s + a burst of 1 s
    everybody is given a slot
    everybody is connected in the end
    the last slot is within demand / credit + 10 %
"""

from __future__ import annotations

import sys

from bench.result import Comparison, Options, Result
from roadstead.sim.fleet.catalog import SCENARIOS
from roadstead.sim.fleet.losses import BACKOFF
from roadstead.sim.fleet.scenario import ENGINE
from roadstead.sim.fleet.scenario import Options as Simulated

NAME = "schedule_storm"
SCENARIO = SCENARIOS["region_loss"]
BURST_S = 1
LATE = 1.1
QUICK = (Simulated(schedulers=3),)
FULL = tuple(Simulated(seed=seed, schedulers=count) for seed in (1, 2, 3) for count in (1, 3, 8))


def run(options: Options) -> Result:
    """Measure and return the result."""
    broken: list[str] = []
    runs: list[dict[str, float | None]] = []
    for simulated in QUICK if options.quick else FULL:
        figures = SCENARIO.run(ENGINE, simulated).figures
        name = f"seed {simulated.seed}, {simulated.schedulers} schedulers"
        violated = _violated(figures)
        print(f"{name}: {violated or 'all conditions hold'}", file=sys.stderr)
        broken += [f"{name}: {condition}" for condition in violated]
        runs.append({"seed": simulated.seed, "schedulers": simulated.schedulers, **figures})
    alone = SCENARIO.run(BACKOFF, Simulated()).figures
    details = {"violated": broken, "runs": runs, "without_a_scheduler": alone}
    comparison = Comparison.of_known(
        unit=f"connection attempts in the worst second, ours of {len(runs)} runs",
        better="lower",
        ours=max(run["attempts_peak_per_s"] or 0.0 for run in runs),
        others={"clients that back off by themselves": alone["attempts_peak_per_s"]},
    )
    return Result(NAME, float(len(broken)), "violated conditions", 0.0, "lower", details, comparison)


def _violated(figures: dict[str, float | None]) -> list[str]:
    """Return the conditions that do not hold."""
    credit, ideal = figures["credit_per_s"], figures["ideal_s"]
    peak, last_slot = figures["accepts_peak_per_s"], figures["slot_last_s"]
    assert credit is not None
    assert ideal is not None
    violated = []
    if peak is None or peak > credit * (1 + BURST_S):
        violated.append(f"{peak} newcomers in a second, the credit is {credit * (1 + BURST_S)}")
    if figures["told_nothing"]:
        violated.append(f"{figures['told_nothing']} answers without a slot")
    if figures["back_all_s"] is None:
        violated.append("somebody is not connected in the end")
    if last_slot is None or last_slot > ideal * LATE:
        violated.append(f"the last slot is after {last_slot} s, and demand / credit {ideal:.1f} s")
    return violated
