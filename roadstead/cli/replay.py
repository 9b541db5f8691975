"""`roadstead replay`: what was recorded happens again: what a scheduler decided, or a day of people's chats."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from base import loop
from base.errors import ConfigError
from base.ids import new_secret
from roadstead.api import trust_ca
from roadstead.cli.common import EXIT_FAILED, json_option, print_json
from roadstead.cli.replay_decisions import command as decisions
from roadstead.deployment import DataFolder
from roadstead.replay.core.day import DAY_S, Choice, chosen, renamed
from roadstead.replay.core.figures import Mark
from roadstead.replay.core.plan import Pace, Plan, planned
from roadstead.replay.dataset import read
from roadstead.replay.operations import NOT_IN_ONE_PROCESS, script_of
from roadstead.replay.report import VIOLATIONS_SHOWN, facts_of, written
from roadstead.replay.run import Outcome, most_active, replayed
from roadstead.replay.stage import ClusterStage, RunningStage, UpStage

__all__ = ["command"]

PREFIX_CHARS = 8
"""Of the names of people who use a system that runs: so many that nobody was there before."""
EPOCH_DAY = 719_163
"""1970-01-01 in the days of the proleptic Gregorian calendar, as `datetime.toordinal` counts them."""


@click.group("replay")
def command() -> None:
    """Have what was recorded happen again: a scheduler's decisions, or people's chats."""


command.add_command(decisions)


class _TimeOfDay(click.ParamType[int]):
    """`HH:MM`, as seconds since midnight."""

    name = "HH:MM"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([01]\d|2[0-4]):([0-5]\d)", str(value))
        if found is None:
            self.fail(f"{value!r} is no time of day such as 17:30", param, ctx)
        return (int(found[1]) * 3_600 + int(found[2]) * 60) % DAY_S


@command.command("chitchat")
@click.option("--speed", type=click.FloatRange(0.1, 100_000), default=100.0, show_default=True, help="How much faster.")
@click.option(
    "--day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="One real day, from 2018-04-10 to 2018-11-16. [default: all of them, laid on one day]",
)
@click.option("--from", "begin_s", type=_TimeOfDay(), default="00:00", help="Only from this time of day on, in UTC.")
@click.option("--to", "end_s", type=_TimeOfDay(), default="00:00", help="Only until then.")
@click.option("--conversations", "most", type=click.IntRange(1), help="Only so many of them.")
@click.option("--cluster", is_flag=True, help="On a cluster of processes on Consul, not on one process.")
@click.option(
    "--data",
    "running",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="On the system that runs from there, with people who are new to it; nothing is done to it meanwhile.",
)
@click.option(
    "--operations/--no-operations", default=True, show_default=True, help="Resize, drain, kill ... meanwhile."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write a page with charts; needs the extra `replay`.",
)
@json_option
def _chitchat(
    *,
    speed: float,
    day: datetime | None,
    begin_s: int,
    end_s: int,
    most: int | None,
    cluster: bool,
    running: Path | None,
    operations: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Have the people of the Chit-Chat data set talk through a system of its own, which is operated on meanwhile.

    Each device is a stock client. In the end everything that anybody saw is compared with what was sent: exit code 1 if
    a message is missing, doubled, out of order or miscounted, or if an operation failed.
    """
    if report is not None:
        _check_charts()
    if cluster and running is not None:
        raise click.UsageError("either --cluster or --data")
    choice = Choice(day.toordinal() - EPOCH_DAY if day is not None else None, begin_s, end_s, most)
    plan = _plan(choice, speed, prefix=f"{new_secret()[:PREFIX_CHARS]}-" if running is not None else "")
    console = Console(highlight=False, stderr=as_json)
    kind = RunningStage if running is not None else ClusterStage if cluster else UpStage
    operates = operations and running is None
    if running is not None and (ca := DataFolder(running).ca).exists():
        trust_ca(ca)
    title = (
        f"{len(plan.messages):,} messages of {len(plan.people):,} people, "
        f"{f'of {day:%Y-%m-%d}' if day is not None else 'of 101 days laid on one'}, {speed:g} times as fast"
    )
    console.print(f"[bold]{title}[/]: about {plan.end_ms / 1_000:.0f} s, on {kind.kind}", soft_wrap=True)
    outcome = loop.run(_run(plan, kind, running, console, operates=operates))
    left_out = NOT_IN_ONE_PROCESS if operates and not cluster else ()
    files = written(report, title, outcome, left_out) if report is not None else []
    if as_json:
        print_json({"title": title, "took_ms": outcome.took_ms, "proof": outcome.proof, "operations": outcome.marks})
    else:
        _show(console, outcome)
        for file in files:
            console.print(f"wrote {file}")
    if not outcome.is_right:
        sys.stdout.flush()
        raise click.exceptions.Exit(EXIT_FAILED)


def _check_charts() -> None:
    """Find out before the replay whether its charts can be drawn. Raises ConfigError."""
    try:
        import matplotlib  # noqa: F401, ICN001 - only whether it is there
    except ImportError as error:
        raise ConfigError(["--report needs matplotlib; the extra `replay` installs it: roadstead[replay]"]) from error


def _plan(choice: Choice, speed: float, *, prefix: str) -> Plan:
    """Return what is to be done. Raises ConfigError when the data set is not there, UsageError when nothing is left."""
    recorded = renamed(read(), prefix)
    made = chosen(recorded, choice)
    if not made:
        raise click.UsageError("there is no message on that day and in that time")
    senders = {said.sender for one in recorded for said in one.said} if len(made) == 1 else set()
    return planned(made, Pace(speed), senders=senders)


async def _run(
    plan: Plan,
    kind: type[UpStage | ClusterStage | RunningStage],
    data: Path | None,
    console: Console,
    *,
    operates: bool,
) -> Outcome:
    def tell(mark: Mark) -> None:
        style = "green" if mark.is_done else "red"
        took_s = (mark.end_ms - mark.begin_ms) / 1_000
        console.print(
            f"{mark.begin_ms / 1_000:6.1f} s  [{style}]{mark.name}[/], {took_s:.1f} s: {escape(mark.says)}",
            soft_wrap=True,
        )

    with TemporaryDirectory(prefix="roadstead-") as folder:
        stage = kind(Path(folder), data)
        try:
            await stage.start()
            script = [] if isinstance(stage, RunningStage) or not operates else script_of(stage, most_active(plan))
            return await replayed(plan, stage, script, tell=tell)
        finally:
            await stage.stop()


def _show(console: Console, outcome: Outcome) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in facts_of(outcome).rows:
        table.add_row(*row)
    console.print(table)
    violations = outcome.proof.violations
    for violation in violations[:VIOLATIONS_SHOWN]:
        console.print(f"[red]{escape(str(violation))}[/]", soft_wrap=True)
    if len(violations) > VIOLATIONS_SHOWN:
        console.print(f"[red]and {len(violations) - VIOLATIONS_SHOWN} more[/]")
    failed = [mark.name for mark in outcome.marks if not mark.is_done]
    if failed:
        console.print(f"[bold red]failed: {', '.join(failed)}[/]")
    if violations:
        console.print("[bold red]not as it should be[/]")
    elif not failed:
        console.print("[bold green]every message is at every device, once and in order[/]")
