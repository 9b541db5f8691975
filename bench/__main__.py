"""`python -m bench NAME`, `python -m bench all --report FILE`, `python -m bench --list`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TextIO

import click

from base import log
from bench.report_record import Record, look_around, read
from bench.report_run import run_all
from bench.result import Options

NAMES = (
    "access_drain",
    "access_fanout",
    "access_idle",
    "access_memory",
    "access_million",
    "cluster_consul_outage",
    "cluster_scale",
    "first_message",
    "im_group",
    "im_ids",
    "im_sync",
    "im_throughput",
    "replay",
    "schedule_balance",
    "schedule_canary",
    "schedule_engine",
    "schedule_geo",
    "schedule_http",
    "schedule_scaleout",
    "schedule_storm",
    "status_balance",
    "status_events",
    "status_ghost",
    "status_heartbeat",
    "status_lookup",
    "status_memory",
    "status_migrate",
    "status_resize",
    "status_update",
)
DEADLINE_S = 1_800
"""Of one benchmark among all."""


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_all", is_flag=True, help="Name every benchmark.")
@click.option("--quick", is_flag=True, help="A few seconds, to prove that it runs; the figures mean little.")
@click.option("--connections", type=click.IntRange(1), help="How many connections, for benchmarks that hold them.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="With `all`: write a page of all results, in HTML; in Markdown without charts, if its name ends in `.md`.",
)
@click.option(
    "--from",
    "recorded",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="With --report: run nothing, make the page of what `all` printed once.",
)
@click.option(
    "--deadline-s",
    type=click.FloatRange(min=0, min_open=True),
    default=DEADLINE_S,
    show_default=True,
    help="With `all`: how long one benchmark may take before it is stopped and has failed.",
)
def main(
    *,
    name: str | None,
    list_all: bool,
    quick: bool,
    connections: int | None,
    report: Path | None,
    recorded: TextIO | None,
    deadline_s: float,
) -> None:
    """Run one benchmark, or `all`; the last line of standard output is its result as JSON.

    `all` runs each in a process of its own, and prints a line for each. The exit code is 1 if one did not run to its
    end; a goal that is missed is a result like any other.
    """
    if list_all:
        for known in NAMES:
            claim = (import_module(f"bench.{known}").__doc__ or "").splitlines()[0]
            click.echo(f"{known}\t{claim}")
        return
    if recorded is not None:
        _report_again(recorded, report)
        return
    if name != "all" and name not in NAMES:
        raise click.UsageError(f"name one of: all, {', '.join(NAMES)}")
    if report is not None and name != "all":
        raise click.UsageError("--report is of `all`, or of what was printed --from it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped as after Ctrl-C
    log.configure(level="warning")
    options = Options(quick=quick, connections=connections)
    if name == "all":
        sys.exit(_run_all(options, deadline_s=deadline_s, report=report))
    click.echo(import_module(f"bench.{name}").run(options).to_json())
    sys.stdout.flush()


def _run_all(options: Options, *, deadline_s: float, report: Path | None) -> int:
    """Run all, write the page even when interrupted, and return the exit code."""
    record = Record([look_around(quick=options.quick)], [])
    write = _page_writer(report) if report is not None else None
    if write is not None:
        write(record)  # where that does not work, it is known now and not in an hour
    try:
        run_all(NAMES, options, record, deadline_s=deadline_s)
    finally:
        if write is not None:
            write(record)
    return int(any(outcome.failed for outcome in record.outcomes))


def _report_again(recorded: TextIO, report: Path | None) -> None:
    if report is None:
        raise click.UsageError("--from needs --report, the page to write")
    try:
        record = read(recorded)
    except ValueError as error:
        raise click.ClickException(f"{recorded.name}: {error}") from error
    _page_writer(report)(record)


def _page_writer(report: Path) -> Callable[[Record], None]:
    try:
        from bench.report import page
        from bench.report_table import table
    except ImportError as error:
        raise click.ClickException("--report needs what the group `dev` has: matplotlib and MarkupSafe") from error

    def write(record: Record) -> None:
        try:
            text = table(record, name=report.name) if report.suffix == ".md" else page(record)
            report.write_text(text, encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{report}: {error.strerror}") from error

    return write


if __name__ == "__main__":
    main()
