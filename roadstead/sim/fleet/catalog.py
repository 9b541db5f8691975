"""All scenarios of the fleet, by name, and all policies, by what they do."""

from __future__ import annotations

from roadstead.sim.fleet import losses, rollouts, scaling, steady
from roadstead.sim.fleet.scenario import Scenario

__all__ = ["POLICIES", "SCENARIOS"]

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for module in (steady, scaling, losses, rollouts) for scenario in module.SCENARIOS
}

POLICIES = {
    "engine": "the scheduler's own engine",
    "oracle": "knows all nodes and all clients on their way at each moment: the limit, not a policy",
    "random": "any node",
    "argmin": "the fewest connections in the reports",
    "own_increments": "the same, plus what the scheduler itself sent there since the report",
    "two_choices": "two nodes at random, the one with fewer connections in the reports",
    "directed_moves": "the engine, and a plan that moves live connections",
    "arrivals_only": "the engine, and nothing is moved",
    "threshold_shedding": "the engine, and nodes above the mean by 2 % send clients away",
    "backoff": "no scheduler: clients go anywhere after 3 s +- 30 %",
    "dns_60s": "names that resolvers keep for 60 s",
    "dns_300s": "names that resolvers keep for 300 s",
    "directed_drain": "the engine, and one node after the other is drained and started anew",
    "reload": "all proxies reload at once, and drop their connections",
    "rolling_reload": "one proxy after the other reloads, and drops its connections",
    "move_back": "the canary gets nobody more, and who is on it is moved back",
    "stop_only": "the canary gets nobody more",
    "cut": "the canary's connections are closed",
}
