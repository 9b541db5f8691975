"""`roadstead rollout`: check a document, start it, look on, and order it about."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from base.clock import SystemClock
from roadstead.cli.common import EXIT_FAILED, json_option, print_json, print_table
from roadstead.cli.kinds import age, count, percent, span
from roadstead.cli.rebalance import moves_line
from roadstead.cli.where import Where, scheduler_call, system_options
from scheduler.core.document import Fault, render_faults
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout

__all__ = ["command", "document_of", "fail_with"]

PATH = "/v1/admin/rollouts"
FINAL = {"complete", "failed", "aborted"}
LOOK_S = 1.0
HISTORY_SHOWN = 5

_file = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.group("rollout")
def command() -> None:
    """Roll a version of the access nodes out, step by step, judged against the one before."""


@command.command("validate")
@json_option
@_file
def _validate(as_json: bool, file: Path) -> None:
    """Check a document, without a running system. Exit code 1, and a line for each fault, if it is not good."""
    parsed = parse_rollout(file.read_bytes())
    if isinstance(parsed, Rollout):
        steps = sum(not step.is_pause for step in parsed.steps)
        print_json(parsed) if as_json else click.echo(f"{parsed.name}: good, {count(steps, 'share')} to 100 %")
        return
    fail_with(file, parsed)


@command.command("create")
@system_options
@json_option
@_file
def _create(where: Where, as_json: bool, file: Path) -> None:
    """Start a rollout, or a new revision of one that is over. Exit code 1 if its document is not good."""
    document = document_of(file)
    parsed = parse_rollout(document)
    if not isinstance(parsed, Rollout):
        fail_with(file, parsed)
    shown = asyncio.run(scheduler_call(where, "POST", PATH, {"document": document}))
    print_json(shown) if as_json else click.echo(_line(shown))


@command.command("list")
@system_options
@json_option
def _list(where: Where, as_json: bool) -> None:
    """List the rollouts, in the order in which they are asked for a client."""
    listed = asyncio.run(scheduler_call(where, "GET", PATH))
    if as_json:
        print_json(listed)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("rollout", "version", "phase", "step", "share", "of new ones", "of live ones", "since"):
        table.add_column(column)
    now = SystemClock().realtime()
    for one in listed["rollouts"]:
        table.add_row(
            one["name"],
            one["version"],
            one["phase"],
            f"{one['step']}/{one['steps']}",
            f"{one['percent']:g} %",
            percent(one["assigned"]["minute_percent"]),
            percent(one["live"]["percent"]),
            age(one["since"], now),
        )
    print_table(table)
    for name, why in listed["unreadable"].items():
        click.echo(f"{name} cannot be read: {why}", err=True)


@command.command("status")
@system_options
@json_option
@click.option("--watch", is_flag=True, help="Look on until it is complete; exit code 1 if it fails or is aborted.")
@click.argument("name")
def _status(where: Where, as_json: bool, watch: bool, name: str) -> None:
    """Show how far a rollout is, its shares of new and of live connections, and what the last analysis found."""
    path = f"{PATH}/{quote(name, safe='')}"
    if watch:
        shown = asyncio.run(_watched(where, path, as_json=as_json))
        if shown["phase"] != "complete":
            raise click.exceptions.Exit(EXIT_FAILED)
        return
    shown = asyncio.run(scheduler_call(where, "GET", path))
    print_json(shown) if as_json else print_table(_table(shown))


async def _watched(where: Where, path: str, *, as_json: bool) -> dict[str, Any]:
    """Return how it ended. In a terminal what is shown is drawn anew, elsewhere each change is a line."""
    console = Console(highlight=False, markup=False)
    is_live = console.is_terminal and not as_json
    said = ""
    with Live(console=console, auto_refresh=False, transient=False) if is_live else _Nothing() as live:
        while True:
            shown: dict[str, Any] = await scheduler_call(where, "GET", path)
            line = _line(shown)
            if live is not None:
                live.update(_table(shown), refresh=True)
            elif as_json:
                print_json(shown)
            elif line != said:
                click.echo(line)
            said = line
            if shown["phase"] in FINAL:
                return shown
            await asyncio.sleep(LOOK_S)


class _Nothing:
    """What is used where nothing is drawn."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _order(name: str, meaning: str) -> None:
    @command.command(name, help=meaning)
    @system_options
    @json_option
    @click.argument("rollout")
    def order(where: Where, as_json: bool, rollout: str) -> None:
        shown = asyncio.run(scheduler_call(where, "POST", f"{PATH}/{quote(rollout, safe='')}/{name}"))
        print_json(shown) if as_json else click.echo(_line(shown))


_order("step", "Go to the next step now.")
_order("pause", "Stay at the step. The analysis goes on.")
_order("resume", "Go on after a pause.")
_order("promote", "Send all new connections to the canary now, and be done.")
_order("abort", "Send no new connections to the canary any more.")


@command.command("delete")
@system_options
@json_option
@click.argument("name")
def _delete(where: Where, as_json: bool, name: str) -> None:
    """Forget a rollout that is over: its nodes are like all others then."""
    answer = asyncio.run(scheduler_call(where, "DELETE", f"{PATH}/{quote(name, safe='')}"))
    print_json(answer) if as_json else click.echo(f"{name} is deleted")


# ---------------------------------------------------------------- documents


def document_of(file: Path) -> str:
    """Return the text of a document; its bytes as they are, where it is no UTF-8, are a fault of the document."""
    return file.read_bytes().decode(errors="surrogateescape")


def fail_with(file: Path, faults: tuple[Fault, ...]) -> NoReturn:
    """Say what is wrong with a document, as compilers do, and exit."""
    click.echo(render_faults(faults, str(file)), err=True)
    raise click.exceptions.Exit(EXIT_FAILED)


# ---------------------------------------------------------------- how it is shown


def _line(shown: dict[str, Any]) -> str:
    why = f" ({shown['reason']})" if shown["reason"] else ""
    assigned, live = shown["assigned"], shown["live"]
    return (
        f"{shown['name']}: {shown['phase']}{why}, step {shown['step']} of {shown['steps']} at {shown['percent']:g} %; "
        f"of new connections {percent(assigned['minute_percent'])}, of live ones {percent(live['percent'])}"
    )


def _table(shown: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in _rows(shown):
        table.add_row(name, value)
    return table


def _rows(shown: dict[str, Any]) -> Iterator[tuple[str, str]]:
    now = SystemClock().realtime()
    why = f": {shown['reason']}" if shown["reason"] else ""
    yield shown["name"], f"{shown['phase']} for {span(max(0, now - shown['since']))}{why}"
    yield "step", _step(shown)
    assigned, live, pool = shown["assigned"], shown["live"], shown["pool"]
    minute, since = percent(assigned["minute_percent"]), percent(assigned["percent"])
    yield "new", f"{minute} of new connections in the last minute, {since} since the scheduler started"
    yield "live", f"{percent(live['percent'])} of live connections: {live['connections']:,} of {live['total']:,}"
    nodes = f"{count(pool['nodes'], 'node')}, {pool['open_nodes']} of them open, room for {pool['capacity']:,}"
    yield "canary", f"version {shown['version']}: {nodes}"
    wanted = f" of at least {shown['connects_min']:,}" if shown["connects_min"] else ""
    yield "connects", f"{shown['connects']:,}{wanted} since the evidence began"
    yield from _analysis(shown, now)
    yield from _moves(shown["moves"])
    if shown["missing_lists"]:
        yield "lists", f"nobody has written {', '.join(shown['missing_lists'])}: nobody is in them"
    for line in reversed(shown["history"][-HISTORY_SHOWN:]):
        # A reason that names the operator again says nothing new.
        detail = line.get("detail", "")
        detail = f": {detail}" if detail and line["who"] not in detail else ""
        yield age(line["at"], now), f"{line['action']} by {line['who']}{detail}"


def _step(shown: dict[str, Any]) -> str:
    text = f"{shown['step']} of {shown['steps']}, {shown['percent']:g} % of new connections"
    if shown["left_ms"] is None:
        return text
    return f"{text}; held {span(shown['held_ms'])}, {span(shown['left_ms'])} left"


def _analysis(shown: dict[str, Any], now: int) -> Iterator[tuple[str, str]]:
    if not shown["checks"]:
        yield "analysis", "the document has no checks"
    elif shown["outcome"] is None:
        yield "analysis", "none yet"
    else:
        when = age(shown["judged_at"], now) if shown["judged_at"] else "before"
        failures = f"{shown['failures']} of {shown['failure_limit']} failures in this step"
        yield "analysis", f"{shown['outcome']} {when}, {failures}"
    for sentence in shown["findings"]:
        yield "", sentence


def _moves(moves: dict[str, Any]) -> Iterator[tuple[str, str]]:
    wanted, progress = moves["wanted"], moves["progress"]
    if wanted is not None:
        yield "moves", f"to {wanted['to']}, {wanted['per_s']:g}/s" + ("" if progress else "; not begun yet")
    if progress is not None:
        yield "", moves_line(progress)
