"""The fleet simulator: it loses nobody, repeats itself, and tells good balancing from bad."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import ConfigError
from base.ids import NodeId
from roadstead.cli.simulate import command
from roadstead.sim.fleet.balancers import BASELINES, ArgMin, Balancer, Choice, OwnIncrements
from roadstead.sim.fleet.catalog import POLICIES, SCENARIOS
from roadstead.sim.fleet.chance import stream
from roadstead.sim.fleet.figures import Run, percentile
from roadstead.sim.fleet.fleet import FleetSettings
from roadstead.sim.fleet.nodes import NodeSpec, SimNode
from roadstead.sim.fleet.resolvers import ADDRESSES_MAX, Resolver
from roadstead.sim.fleet.scenario import ENGINE, LIMIT, Options, fleet_of, shares
from scheduler.core.node import AccessNode
from scheduler.core.request import Request

SMALL = Options(nodes=16, schedulers=4, seconds=36)


def told(run: Run) -> tuple[object, ...]:
    return run.figures, run.series.thinned()


def figure(scenario: str, policy: str, options: Options, name: str) -> float:
    value = SCENARIOS[scenario].run(policy, options).figures[name]
    assert value is not None
    return value


def report(name: str, connections: int, *, number: int = 1, capacity: int = 1_000) -> AccessNode:
    return AccessNode(id=NodeId(name), url="", capacity=capacity, connections=connections, report=number)


# ---------------------------------------------------------------- the simulation itself


@pytest.mark.parametrize("policy", [ENGINE, "own_increments"])
def test_a_seed_is_the_whole_run(policy: str) -> None:
    """Equal seeds tell equal stories, others another one."""
    options = Options(nodes=8, schedulers=3, seconds=12)
    again = Options(nodes=8, schedulers=3, seconds=12, seed=2)
    assert told(SCENARIOS["balance"].run(policy, options)) == told(SCENARIOS["balance"].run(policy, options))
    assert told(SCENARIOS["balance"].run(policy, options)) != told(SCENARIOS["balance"].run(policy, again))


@given(
    seed=st.integers(0, 1_000),
    policy=st.sampled_from([ENGINE, *BASELINES]),
    blows=st.lists(
        st.tuples(st.integers(1, 18), st.integers(0, 4), st.sampled_from(["crash", "drain", "drop", "move"]))
    ),
)
@settings(max_examples=25, deadline=None)
def test_every_client_is_in_one_place(seed: int, policy: str, blows: Sequence[tuple[int, int, str]]) -> None:
    """Whatever breaks, nobody is lost and nobody is in two places."""
    specs = [NodeSpec(capacity=60, connections=20, accepts_per_s=rate) for rate in (0.0, 3.0, 0.0, 5.0, 0.0)]
    fleet = fleet_of(
        policy,
        FleetSettings(
            seed=seed,
            seconds=20,
            nodes=tuple(specs),
            shares=shares(2, 0.7),
            arrivals_per_s=12.0,
            lifetime_s=15.0,
            connect_delay_ms=500,
            abandons=0.2,
            report_ms=1_000,
        ),
    )

    def blow(node: SimNode, kind: str, now: int) -> None:
        if kind == "crash" and node.is_up:
            fleet.crash(node, now)
        elif kind == "drain":
            fleet.drain(node, now)
        elif kind == "drop":
            fleet.drop(node, now, spread=0.3, after_ms=800)
        elif node.connections:
            fleet.move(node, Choice((fleet.nodes[0].id,)), now)

    for second, index, kind in blows:
        fleet.at(second * 1_000, lambda now, index=index, kind=kind: blow(fleet.nodes[index], kind, now))
    fleet.every(500, lambda _: fleet.check_invariants())
    fleet.run()
    fleet.check_invariants()
    assert fleet.newcomers > 100


@given(rate=st.integers(1, 40), attempts=st.lists(st.integers(0, 400), min_size=1, max_size=400))
def test_a_node_lets_in_what_it_may(rate: int, attempts: list[int]) -> None:
    """Not more than its capacity, nor than its rate and two seconds' burst; nobody while it drains."""
    node = SimNode(index=0, spec=NodeSpec(capacity=50, accepts_per_s=rate), issuers=1)
    now = 0
    for gap in attempts:
        now += gap
        node.admit(now, 0)
    assert node.accepts <= min(50, 2 * rate + rate * now / 1_000 + 1)
    assert node.accepts + node.refusals == len(attempts)
    node.make_report(now)
    assert node.seen_by(0, now).admitted == node.connections
    node.is_draining = True
    assert not node.admit(now + 60_000, 0)
    assert node.vain == 1


def test_draws_have_the_means_that_they_say() -> None:
    """Few and many events, and the time to connect, within four standard errors."""
    chance = stream(1, "test")
    for mean in (0.2, 5.0, 200.0):
        drawn = [chance.poisson(mean) for _ in range(4_000)]
        assert abs(sum(drawn) / len(drawn) - mean) < 4 * (mean / len(drawn)) ** 0.5
    delays = [chance.delay(2_000) for _ in range(4_000)]
    assert abs(sum(delays) / len(delays) - 2_000) < 4 * 2_000 / (2 * len(delays)) ** 0.5
    assert chance.poisson(0) == 0


def test_percentiles_are_by_the_nearest_rank() -> None:
    """Half of ten values are at or below the fifth; nothing has 0."""
    assert [percentile(range(10), p) for p in (0, 50, 99, 100)] == [0, 4, 9, 9]
    assert percentile([], 50) == 0


# ---------------------------------------------------------------- the ways to compare with


@given(st.lists(st.integers(0, 300), min_size=2, max_size=9))
def test_argmin_takes_the_least_loaded_and_own_increments_level_nodes(held: list[int]) -> None:
    """The first choices are those of a brute-force search, made anew for each client."""
    view = [report(f"n{index}", count) for index, count in enumerate(held)]
    least, level = ArgMin(stream(1, "a")), OwnIncrements(stream(1, "b"))
    least.observe(view, 0)
    level.observe(view, 0)
    counts = list(held)
    for _ in range(40):
        assert least.decide(Request("u"), 0).nodes[0] == f"n{held.index(min(held))}"
        best = counts.index(min(counts))
        choice = level.decide(Request("u"), 0)
        assert choice.nodes[0] == f"n{best}"
        assert len(set(choice.nodes)) == min(3, len(held))
        counts[best] += 1


def test_a_new_report_discards_own_increments() -> None:
    """What was sent there since is in it, or so the policy believes; an old report does not."""
    level = OwnIncrements(stream(1, "a"))
    level.observe([report("a", 0), report("b", 5)], 0)
    assert [level.decide(Request("u"), 0).nodes[0] for _ in range(3)] == ["a"] * 3
    level.observe([report("a", 0), report("b", 1, number=2)], 0)
    assert level.decide(Request("u"), 0).nodes[0] == "b"


@pytest.mark.parametrize("policy", list(BASELINES))
def test_nobody_is_sent_to_a_draining_node(policy: str) -> None:
    """And nobody anywhere if all drain."""
    balancer: Balancer = BASELINES[policy](stream(1, policy))
    drained = [SimNode(index=index, spec=NodeSpec(capacity=9), issuers=1) for index in range(3)]
    for node in drained[:2]:
        node.is_draining = True
    for node in drained:
        node.make_report(0)
    balancer.observe([node.seen_by(0, 0) for node in drained], 0)
    assert {balancer.decide(Request("u"), 0).nodes for _ in range(20)} == {("access-2",)}
    balancer.observe([node.seen_by(0, 0) for node in drained[:2]], 0)
    assert balancer.decide(Request("u"), 0).nodes == ()


@pytest.mark.spec("AL-02")
def test_a_resolver_keeps_its_answer_until_the_ttl_is_over() -> None:
    """The same eight addresses from each place in their order on, whatever the authoritative server knows by then."""
    resolver = Resolver(stream(1, "r"), ttl_ms=1_000)
    resolver.observe([report(f"n{index}", 0) for index in range(20)], 0)
    resolver.decide(Request("u"), 0)
    first = resolver.decide(Request("u"), 1_000).nodes
    resolver.observe([report("n20", 0)], 1_001)
    for now in (1_200, 1_999):
        assert set(resolver.decide(Request("u"), now).nodes) == set(first)
    assert len(set(first)) == ADDRESSES_MAX
    assert resolver.decide(Request("u"), 2_000).nodes == ("n20",)


# ---------------------------------------------------------------- the stories


@pytest.mark.spec("AL-05")
def test_the_engine_is_nearly_as_even_as_the_oracle_and_hits_no_node_hard() -> None:
    """In the hard circumstances: what exceeds the mean is far less than with any way to compare with."""
    runs = {policy: SCENARIOS["balance"].run(policy, SMALL).figures for policy in SCENARIOS["balance"].policies}
    excess = {policy: (figures["max_over_mean"] or 0) - 1 for policy, figures in runs.items()}
    peaks = {policy: figures["accept_peak_over_mean"] or 0 for policy, figures in runs.items()}
    assert excess[LIMIT] < excess[ENGINE] < 0.04
    assert excess["random"] > 1.2 * excess[ENGINE]
    assert excess["two_choices"] > 1.2 * excess[ENGINE]
    assert excess["own_increments"] > 1.5 * excess[ENGINE]
    assert excess["argmin"] > 20 * excess[ENGINE]
    assert peaks[ENGINE] < 3
    assert peaks["argmin"] > 5 * peaks[ENGINE]


def test_larger_nodes_hold_more() -> None:
    """In proportion to their capacity under the engine, as they come at random."""
    options = Options(nodes=9, schedulers=2, seconds=110)
    assert figure("mixed_capacity", ENGINE, options, "max_over_mean") < 1.05
    assert figure("mixed_capacity", "random", options, "max_over_mean") > 1.15


def test_a_fleet_stays_even_while_the_registry_is_away() -> None:
    """The engine goes on with what it knows, while the least loaded node of the last report gets everybody."""
    options = Options(nodes=12, schedulers=2, seconds=180)
    assert figure("registry_outage", ENGINE, options, "outage_max_over_mean") < 1.08
    assert figure("registry_outage", "argmin", options, "outage_max_over_mean") > 3


def test_a_lost_region_is_a_queue_with_the_scheduler_and_a_storm_without() -> None:
    """All of them get a slot; the worst second has a fraction of the attempts."""
    options = Options(nodes=12, schedulers=2, seconds=200)
    queue = SCENARIOS["region_loss"].run(ENGINE, options).figures
    storm = SCENARIOS["region_loss"].run("backoff", options).figures
    assert queue["told_nothing"] == 0
    assert (queue["accepts_peak_per_s"] or 0) <= 2 * (queue["credit_per_s"] or 0)
    assert (storm["attempts_peak_per_s"] or 0) > 5 * (queue["attempts_peak_per_s"] or 0)


@pytest.mark.spec("AL-02")
def test_names_that_are_cached_lead_to_drained_nodes_until_the_ttl_is_over() -> None:
    """The switch takes the TTL, and with the scheduler as long as clients take to connect."""
    options = Options(nodes=3, schedulers=2, seconds=480)
    ours = SCENARIOS["dns_ttl"].run(ENGINE, options).figures
    names = SCENARIOS["dns_ttl"].run("dns_60s", options).figures
    assert 40 < (names["drained_last_s"] or 0) < 75
    assert (ours["drained_last_s"] or 0) < 15
    assert (ours["to_drained"] or 0) < (names["to_drained"] or 0) / 5


@pytest.mark.spec("AL-03")
def test_a_reload_breaks_all_connections_and_a_directed_drain_none() -> None:
    """The storm after a reload is many times the even pace of a drain."""
    options = Options(nodes=4, schedulers=2, seconds=300)
    reload = SCENARIOS["l7_reload"].run("reload", options).figures
    drain = SCENARIOS["l7_reload"].run("directed_drain", options).figures
    assert drain["broken"] == 0
    assert (reload["broken"] or 0) > 7_000
    assert (drain["moved"] or 0) > 7_000
    assert (reload["accepts_peak_per_s"] or 0) > 5 * (drain["accepts_peak_per_s"] or 0)


def test_new_nodes_fill_with_the_fewest_moves() -> None:
    """Arrivals alone do not fill them, and moves that are directed are near the minimum."""
    options = Options(nodes=10, schedulers=2, seconds=540)
    moved = SCENARIOS["scaleout"].run("directed_moves", options).figures
    assert moved["balanced_s"] is not None
    assert moved["moves_over_minimum"] is not None
    assert 0.5 < moved["moves_over_minimum"] <= 1.1
    soon = Options(nodes=10, schedulers=2, seconds=180)
    alone = SCENARIOS["scaleout"].run("arrivals_only", soon).figures
    shed = SCENARIOS["scaleout"].run("threshold_shedding", soon).figures
    assert alone["moves"] == 0
    assert (alone["min_over_mean_at_end"] or 0) < (shed["min_over_mean_at_end"] or 0) < 0.5
    # Most of those whom a node sheds come back to one that is full, so that each one gained costs several moves.
    assert (shed["moves"] or 0) > 3 * (shed["min_over_mean_at_end"] or 0) * 9_000


@pytest.mark.spec("AR-1")
def test_a_bad_canary_gets_nobody_more_and_gives_back_whom_it_had() -> None:
    """Shares are those of the steps; a rollback moves everybody and closes nobody."""
    options = Options(nodes=10, schedulers=1, seconds=650)
    back = SCENARIOS["rollout"].run("move_back", options).figures
    share, live = back["assigned_at_10_percent"], back["live_at_10_percent"]
    assert share == pytest.approx(0.1, abs=3 * (0.1 * 0.9 / 6_000) ** 0.5)
    assert live is not None
    assert 0 < live < share
    assert (back["last_of_them_s"] or 0) <= 1
    assert back["broken"] == 0
    assert back["canary_empty_s"] is not None
    assert figure("rollout", "cut", options, "broken") > 100


# ---------------------------------------------------------------- the command


def test_the_list_names_every_scenario_and_what_each_policy_does() -> None:
    """Nothing that could be asked for is left out."""
    shown = json.loads(CliRunner().invoke(command, ["--list", "--json"]).output)
    assert set(shown["scenarios"]) == set(SCENARIOS)
    assert {policy for one in shown["scenarios"].values() for policy in one["policies"]} == set(POLICIES)
    text = CliRunner().invoke(command, ["--list"]).output
    assert all(name in text for name in (*SCENARIOS, *POLICIES))


def test_the_command_shows_a_table_and_draws_a_chart(tmp_path: Path) -> None:
    """A row for each figure, a column for each policy, and an SVG that names them."""
    chart = tmp_path / "balance.svg"
    small = [
        "balance",
        "--nodes",
        "6",
        "--schedulers",
        "2",
        "--seconds",
        "12",
        "--policy",
        ENGINE,
        "--policy",
        "random",
    ]
    shown = CliRunner().invoke(command, [*small, "--chart", str(chart)])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[1].split() == [ENGINE, "random"]
    assert len(next(line for line in lines if line.startswith("max over mean ")).split()) == 5
    assert "<svg" in chart.read_text()
    told = json.loads(CliRunner().invoke(command, [*small, "--json"]).output)
    assert [run["policy"] for run in told["runs"]] == [ENGINE, "random"]
    assert len(told["runs"][0]["series"]["mean"]) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "name one of: balance"),
        (["balance", "--policy", "magic"], "it has: engine"),
        (["scaleout", "--nodes", "5"], "needs 10 nodes or more"),
        (["rollout", "--seconds", "30"], "needs 610 seconds or more"),
        (["balance", "--chart", "chart.txt"], "--chart writes .svg"),
        (["balance", "--chart", "missing/chart.svg"], "is no folder"),
    ],
)
def test_what_cannot_be_simulated_is_said_at_once(arguments: list[str], message: str) -> None:
    """One line that says what would do."""
    shown = CliRunner().invoke(command, arguments)
    assert shown.exit_code == 2
    assert message in shown.output


def test_without_the_extra_a_chart_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before minutes of simulation, not after."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = CliRunner().invoke(command, ["balance", "--chart", str(tmp_path / "chart.svg")])
    assert isinstance(refused.exception, ConfigError)
    assert "roadstead[charts]" in str(refused.exception)
