"""`roadstead history`: what clients saw of the message services is judged against what they promise."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from base.errors import BadRequest
from roadstead.cli.common import EXIT_FAILED, json_option, print_json, print_table
from roadstead.history.check import INVARIANTS, check
from roadstead.history.recorder import load
from roadstead.history.report import NEEDED, Report

__all__ = ["command"]

SHOWN_MAX = 10
"""Violations of one invariant that are shown."""


@click.group("history")
def command() -> None:
    """Judge recorded histories of the message services."""


@command.command("check")
@click.option(
    "--need",
    "needed",
    multiple=True,
    type=click.Choice(list(INVARIANTS)),
    help="An invariant that must have had something to judge; may be repeated.  [default: I1 to I5]",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="The system's setting im.shards: timelines are in order for each shard.",
)
@json_option
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def _check(*, as_json: bool, shards: int, needed: tuple[str, ...], files: tuple[Path, ...]) -> None:
    """Check the files of one history. Exit code 1 if a promise was broken, or if the history proves too little."""
    if len({file.resolve() for file in files}) < len(files):
        raise BadRequest("a file is named twice")
    report = check(load(files), shards=shards)
    needs = frozenset(needed) or NEEDED
    holds = report.holds(needs)
    if as_json:
        print_json({"holds": holds, "missing": sorted(needs & report.vacuous), "report": report})
    else:
        _show(report, needs)
    if not holds:
        raise click.exceptions.Exit(EXIT_FAILED)


def _show(report: Report, needs: frozenset[str]) -> None:
    click.echo(", ".join(f"{count:,} {name}" for name, count in sorted(report.counts.items())) or "nothing happened")
    table = Table("", "judged", "", "violations", box=None, pad_edge=False)
    for finding in report.findings:
        table.add_row(finding.invariant, f"{finding.looked:,}", finding.what, f"{finding.found:,}")
    print_table(table)
    for finding in report.findings:
        for violation in finding.violations[:SHOWN_MAX]:
            click.echo(f"{violation.invariant} {violation.kind}: {violation.says}")
        if finding.found > SHOWN_MAX:
            click.echo(f"{finding.invariant}: {finding.found - SHOWN_MAX:,} more")
    for sentence in report.blind:
        click.echo(f"unknown: {sentence}")
    for name in sorted(needs & report.vacuous, key=list(INVARIANTS).index):
        click.echo(f"unproved: {name} had nothing to judge")
