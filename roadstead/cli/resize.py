"""`roadstead status resize` and what goes with it: pause, resume, abort, progress.

The cluster resizes by itself once it was told to; a command that waits only looks on, and may be ended at any time.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from base.clock import Instant, SystemClock
from base.errors import PeerError, StoreError, Unavailable
from base.site import NodeConfig
from roadstead.cli.common import EXIT_FAILED, EXIT_PAUSED, EXIT_STUCK, json_option, print_json, print_table
from roadstead.cli.where import Where, status_call, system_options

__all__ = ["abort", "pause", "progress", "resize", "resume"]

EXIT_INTERRUPTED = 130
RESIZE = "/v1/admin/status/resize"
LOOK_S = 0.2
PATIENCE_MS = 10_000
"""How long to go on looking while no status node answers."""
AWAY_MS = NodeConfig().registration_ttl_ms
"""How long a wanted node must have been out of the registry, with nothing moving, to be waited for no more: whoever was
started again is back by then."""


def _weights(_context: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    weights: dict[str, int] = {}
    for value in values:
        node, _, weight = value.rpartition("=")
        if not node or not weight.isdecimal():
            raise click.BadParameter(f"{value!r} is not NODE=WEIGHT, such as status-1=2")
        if node in weights:
            raise click.BadParameter(f"{node} is given two weights")
        weights[node] = int(weight)
    return weights


@click.command("resize")
@click.option("--to", type=int, metavar="N", help="Have so many nodes: those there are, then spares, by name.")
@click.option("--add", multiple=True, metavar="NODE", help="Let this node own partitions too; repeatable.")
@click.option("--remove", multiple=True, metavar="NODE", help="Let this node own none; repeatable.")
@click.option(
    "--weight",
    multiple=True,
    metavar="NODE=W",
    callback=_weights,
    help="Let a node own W times what one of weight 1 owns; repeatable.",
)
@click.option("--plan", "is_plan", is_flag=True, help="Show what would move, and change nothing.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Return as soon as it was ordered.")
@system_options
@json_option
def resize(
    to: int | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    weight: dict[str, int],
    is_plan: bool,
    is_sure: bool,
    no_wait: bool,
    where: Where,
    as_json: bool,
) -> None:
    """Change which status nodes own partitions, and with which weights, while they serve.

    Shows the plan, asks, and waits until all has moved. Ctrl-C ends the waiting, not the resize. Exit code 4: somebody
    paused it. Exit code 5: a node that shall own partitions is gone, and nothing moves any more. With --json the plan
    is one line and the progress at the end another.
    """
    if to is None and not (add or remove or weight):
        raise click.UsageError("say what to change: --to, --add, --remove or --weight")
    if not (is_plan or is_sure or sys.stdin.isatty()):
        raise click.UsageError("there is no terminal to ask on; add --yes, or --plan to look only")
    asked = {"add": add, "remove": remove, "weight": weight, **({"to": to} if to is not None else {})}
    plan = asyncio.run(status_call(where, "POST", RESIZE, {**asked, "plan": True}))
    if as_json:
        print_json(plan)
    else:
        _show_plan(plan)
    if is_plan:
        return
    if not plan["partitions"] and plan["weights"] == plan["before"]:
        if not as_json:
            click.echo("nothing to do: it is as you ask")
        return
    if not is_sure and not click.confirm("go on?", err=as_json):
        click.echo("nothing was changed", err=as_json)
        raise click.exceptions.Exit(EXIT_FAILED)
    # What was shown is what is ordered, whatever somebody else ordered in between.
    ordered = asyncio.run(status_call(where, "POST", RESIZE, {"weights": plan["weights"]}))
    if no_wait:
        if not as_json:
            click.echo("ordered; `roadstead status progress` shows how far it is")
        return
    _follow(where, total=ordered["partitions"], as_json=as_json)


@click.command("progress")
@system_options
@json_option
def progress(where: Where, as_json: bool) -> None:
    """Watch the resize that is under way until it is done. With --json: print how far it is, and return.

    Exit codes 4 and 5: it is paused, or cannot be done, as with `resize`.
    """
    seen = asyncio.run(status_call(where, "GET", RESIZE))
    if as_json:
        print_json(seen)
    elif seen["is_done"]:
        click.echo(f"no resize is under way; {_owners(seen)}")
    else:
        _follow(where, total=seen["left"], as_json=False)


@click.command("pause")
@system_options
@json_option
def pause(where: Where, as_json: bool) -> None:
    """Begin no more moves and commit none. What is copied stays; `roadstead status resume` goes on."""
    _told(_order(where, "pause"), as_json, "is paused")


@click.command("resume")
@system_options
@json_option
def resume(where: Where, as_json: bool) -> None:
    """Go on with a resize that was paused or aborted."""
    _told(_order(where, "resume"), as_json, "goes on")


@click.command("abort")
@system_options
@json_option
def abort(where: Where, as_json: bool) -> None:
    """Roll back the moves that are not committed, and pause. What moved stays where it is.

    `roadstead status resume` goes on after all; a resize to the nodes and weights of before goes back.
    """
    seen = _order(where, "abort")
    _told(seen, as_json, f"is aborted, {seen['rolled_back']} moves rolled back")


def _order(where: Where, what: str) -> Any:
    return asyncio.run(status_call(where, "POST", f"/v1/admin/status/{what}"))


def _told(seen: dict[str, Any], as_json: bool, becomes: str) -> None:
    if as_json:
        print_json(seen)
    elif seen["is_done"]:
        paused = "; a resize would wait for `roadstead status resume`" if seen["is_paused"] else ""
        click.echo(f"no resize is under way{paused}")
    else:
        click.echo(f"the resize {becomes}: {_left(seen)}")


def _left(seen: dict[str, Any]) -> str:
    return f"{seen['left']} partitions are left to move"


def _owners(seen: dict[str, Any]) -> str:
    nodes = [node for node in seen["nodes"] if node["partitions"]]
    return f"{sum(node['partitions'] for node in nodes)} partitions over {len(nodes)} nodes"


# ---------------------------------------------------------------- the plan


def _show_plan(plan: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("from")
    table.add_column("to")
    for column in ("partitions", "sessions", "bytes"):
        table.add_column(column, justify="right")
    for move in plan["moves"]:
        table.add_row(
            move["source"],
            move["target"],
            *("unknown" if move[key] is None else str(move[key]) for key in ("partitions", "sessions", "bytes")),
        )
    if plan["moves"]:
        print_table(table)
    click.echo(
        f"{plan['partitions']} partitions move, {plan['minimum']} is the least possible; "
        f"{plan['sessions']} sessions, {plan['bytes']} bytes; about {plan['expected_s']:g} s"
    )
    if plan["unknown"]:
        click.echo(f"did not answer, so their sessions are not counted: {', '.join(plan['unknown'])}")


# ---------------------------------------------------------------- looking on


def _follow(where: Where, *, total: int, as_json: bool) -> None:
    """Look on until the resize is done; exit where it is paused or stuck, or the waiting is interrupted."""
    try:
        seen, taken_s = asyncio.run(_look_on(where, total, is_quiet=as_json))
    except KeyboardInterrupt:
        click.echo("\nthe resize goes on by itself; `roadstead status progress` shows how far it is", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(seen)
    elif seen["is_done"]:
        click.echo(f"done: {total} partitions moved in {taken_s:.1f} s; {_owners(seen)}")
    elif seen["is_paused"]:
        click.echo(f"the resize is paused: {_left(seen)}; `roadstead status resume` goes on")
    else:
        away = _away(seen)
        click.echo(
            f"the resize cannot be done: {', '.join(away)} not there, {_left(seen)}; start again what is not there, "
            f"or `roadstead status resize {' '.join(f'--remove {node}' for node in away)}`"
        )
    if not seen["is_done"]:
        raise click.exceptions.Exit(EXIT_PAUSED if seen["is_paused"] else EXIT_STUCK)


class StuckWatch:
    """Tells a resize that takes its time from one that waits for a node which is gone."""

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] = ()
        self._since = Instant(0)

    def is_stuck(self, now: Instant, seen: dict[str, Any]) -> bool:
        """Return whether, for `AWAY_MS` by now, nothing moved or changed and the same wanted nodes were away."""
        shape = (seen["epoch"], sum(seen["moves"].values()), _away(seen))
        if shape != self._seen:
            self._seen, self._since = shape, now
        return bool(_away(seen)) and not any(seen["moves"].values()) and now >= self._since + AWAY_MS


async def _look_on(where: Where, total: int, *, is_quiet: bool) -> tuple[dict[str, Any], float]:
    """Return the last progress and how long it took: done, paused or stuck."""
    clock = SystemClock()
    began = answered_at = clock.monotonic()
    stuck = StuckWatch()
    console = Console(stderr=is_quiet)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("partitions {task.fields[rate]:.0f}/s"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[stages]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=is_quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate=0.0, stages="")
        while True:
            try:
                seen = await status_call(where, "GET", RESIZE)
                answered_at = clock.monotonic()
            except (PeerError, StoreError, Unavailable):
                if clock.monotonic() > answered_at + PATIENCE_MS:
                    raise
            else:
                taken_s = (answered_at - began) / 1000
                if seen["is_done"] or seen["is_paused"] or stuck.is_stuck(answered_at, seen):
                    return seen, taken_s
                moved = max(0, total - seen["left"])
                bar.update(task, completed=moved, rate=moved / max(taken_s, 0.001), stages=_stages(seen))
            await asyncio.sleep(LOOK_S)


def _away(seen: dict[str, Any]) -> list[str]:
    """Return the nodes that shall own partitions and are not registered."""
    return [node["node"] for node in seen["nodes"] if node["weight"] and not node["is_registered"]]


def _stages(seen: dict[str, Any]) -> str:
    moves = [f"{count} {stage}" for stage, count in seen["moves"].items() if count]
    missing = _away(seen)
    return ", ".join(moves) + (f"; {', '.join(missing)} not there" if missing else "")
