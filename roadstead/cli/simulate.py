"""`roadstead simulate`: what the scheduler does with a whole fleet, next to other ways of balancing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from base.errors import ConfigError
from roadstead.cli.common import json_option, print_json, print_table
from roadstead.sim.fleet.catalog import POLICIES, SCENARIOS
from roadstead.sim.fleet.figures import Run
from roadstead.sim.fleet.scenario import Options, Scenario

__all__ = ["command"]

FORMATS = (".svg", ".png", ".pdf")


@click.command("simulate")
@click.argument("scenario", required=False)
@click.option("--list", "list_all", is_flag=True, help="Name every scenario and policy.")
@click.option("--seed", type=int, default=1, show_default=True, help="Equal seeds give equal figures.")
@click.option("--nodes", type=click.IntRange(2), help="How many access nodes. [default: the scenario's]")
@click.option("--schedulers", type=click.IntRange(1), help="How many schedulers. [default: 8]")
@click.option("--seconds", type=click.IntRange(1), help="Simulated time. [default: the scenario's]")
@click.option("--policy", "policies", multiple=True, help="Only this one; repeatable. [default: the scenario's]")
@click.option(
    "--chart",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw what happened, as .svg, .png or .pdf; needs the extra `charts`.",
)
@json_option
def command(
    scenario: str | None,
    list_all: bool,
    seed: int,
    nodes: int | None,
    schedulers: int | None,
    seconds: int | None,
    policies: tuple[str, ...],
    chart: Path | None,
    as_json: bool,
) -> None:
    """Simulate a fleet and show how even it is and how hard its nodes are hit, under several policies.

    Takes up to some minutes. With --json: one line with the figures and the series of each run.
    """
    if list_all:
        _list(as_json=as_json)
        return
    if scenario not in SCENARIOS:
        raise click.UsageError(f"name one of: {', '.join(SCENARIOS)}; see --list")
    chosen = SCENARIOS[scenario]
    unknown = set(policies) - set(chosen.policies)
    if unknown:
        raise click.UsageError(f"{chosen.name} has no policy {min(unknown)}; it has: {', '.join(chosen.policies)}")
    if nodes is not None and nodes < chosen.nodes_min:
        raise click.UsageError(f"{chosen.name} needs {chosen.nodes_min} nodes or more")
    if seconds is not None and seconds < chosen.seconds_min:
        raise click.UsageError(f"{chosen.name} needs {chosen.seconds_min} seconds or more")
    if chart is not None:
        _check_chart(chart)
    options = Options(seed=seed, nodes=nodes, schedulers=schedulers, seconds=seconds)
    runs = []
    for policy in policies or chosen.policies:
        if sys.stderr.isatty():
            click.echo(f"{chosen.name}: {policy} ...", err=True)
        runs.append(chosen.run(policy, options))
    if chart is not None:
        from roadstead.sim.fleet.chart import draw

        draw(f"{chosen.name}: {chosen.summary}", runs, chart)
    if as_json:
        print_json(
            {
                "scenario": chosen.name,
                "seed": seed,
                "runs": [
                    {"policy": run.policy, "figures": run.figures, "series": run.series.thinned()} for run in runs
                ],
            }
        )
    else:
        _show(chosen, runs)


def _check_chart(chart: Path) -> None:
    """Find out before the simulation whether the chart can be drawn. Raises ConfigError."""
    if chart.suffix.lower() not in FORMATS:
        raise click.UsageError(f"--chart writes {', '.join(FORMATS)}, by the file's suffix")
    if not chart.absolute().parent.is_dir():
        raise click.UsageError(f"--chart: {chart.absolute().parent} is no folder")
    try:
        import matplotlib  # noqa: F401, ICN001 - only whether it is there
    except ImportError as error:
        raise ConfigError(["--chart needs matplotlib; the extra `charts` installs it: roadstead[charts]"]) from error


def _list(*, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "scenarios": {
                    one.name: {"summary": one.summary, "policies": one.policies} for one in SCENARIOS.values()
                },
                "policies": POLICIES,
            }
        )
        return
    table = Table("scenario", "what happens", "policies", box=None, pad_edge=False)
    for one in SCENARIOS.values():
        table.add_row(one.name, one.summary, ", ".join(one.policies))
    print_table(table, folds=True)
    click.echo()
    table = Table("policy", "what it does", box=None, pad_edge=False)
    for name, meaning in POLICIES.items():
        table.add_row(name, meaning)
    print_table(table, folds=True)


def _show(scenario: Scenario, runs: Sequence[Run]) -> None:
    click.echo(scenario.summary)
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.policy, justify="right", overflow="fold")
    for name in runs[0].figures:
        table.add_row(name.replace("_", " "), *(_number(run.figures[name]) for run in runs))
    print_table(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"
