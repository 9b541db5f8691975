"""`roadstead access rebalance`: even out live connections, and see how moving them is getting on."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from roadstead.cli.common import EXIT_FAILED, json_option, print_json
from roadstead.cli.kinds import PERCENT, RATE, TIME, count, span
from roadstead.cli.where import Where, scheduler_call, system_options

__all__ = ["command", "moves_line"]

PATH = "/v1/admin/access/rebalance"
LOOK_S = 1.0


@click.group("rebalance")
def command() -> None:
    """Move live connections until all nodes of a region are equally full."""


@command.command("start")
@click.option("--rate", type=RATE, default="100/s", show_default=True, help="Tell so many clients to go.")
@click.option("--accept", type=RATE, default="20/s", show_default=True, help="Send at most so many to any one node.")
@click.option(
    "--tolerance", type=PERCENT, default="3%", show_default=True, help="How far from its share a node may be."
)
@click.option("--grace", "grace_ms", type=TIME, default="30s", show_default=True, help="How long a client may take.")
@click.option("--deadline", "deadline_ms", type=TIME, default="0s", help="Say so if it takes longer than this.")
@click.option("--region", default="", help="Only the nodes of this region.")
@click.option("--no-wait", is_flag=True, help="Return once it is ordered.")
@system_options
@json_option
def _start(
    rate: float,
    accept: float,
    tolerance: float,
    grace_ms: int,
    deadline_ms: int,
    region: str,
    no_wait: bool,
    where: Where,
    as_json: bool,
) -> None:
    """Even out live connections, with the fewest moves.

    Waits until it is done, through a pause too. Ctrl-C ends the waiting only. Exit code 1 if somebody aborts it.
    """
    order = {
        "rate_per_s": rate,
        "accept_per_s": accept,
        "tolerance": round(tolerance * 10),
        "grace_ms": grace_ms,
        "deadline_ms": deadline_ms,
        "region": region,
    }
    asyncio.run(_started(where, order, as_json=as_json, waits=not no_wait))


async def _started(where: Where, order: dict[str, Any], *, as_json: bool, waits: bool) -> None:
    seen = await scheduler_call(where, "POST", PATH, order)
    request = seen["order"]["request"]["id"]
    shown = ""
    while True:
        line = _line(seen)
        if as_json:
            print_json(seen)
        elif line != shown:
            click.echo(line)
        shown = line
        is_replaced = seen["order"] is None or seen["order"]["request"]["id"] != request
        if is_replaced or seen["order"]["is_aborted"]:
            click.echo("somebody aborted it", err=True)
            raise click.exceptions.Exit(EXIT_FAILED)
        if seen["is_over"] or not waits:
            return
        await asyncio.sleep(LOOK_S)
        seen = await scheduler_call(where, "GET", PATH)


@command.command("status")
@system_options
@json_option
def _status(where: Where, as_json: bool) -> None:
    """Show the last order, and how moving live connections is getting on."""
    seen = asyncio.run(scheduler_call(where, "GET", PATH))
    print_json(seen) if as_json else click.echo(_line(seen))


def _order(name: str, meaning: str) -> None:
    @command.command(name, help=meaning)
    @system_options
    @json_option
    def order(where: Where, as_json: bool) -> None:
        seen = asyncio.run(scheduler_call(where, "POST", f"{PATH}/{name}"))
        print_json(seen) if as_json else click.echo(_line(seen))


_order("pause", "Tell nobody more to go.")
_order("resume", "Go on, also after a pause that it made itself.")
_order("abort", "Tell nobody more to go, for good. Who was told goes.")


def _line(seen: dict[str, Any]) -> str:
    order, moves = seen["order"], seen["moves"]
    if order is None:
        return "nobody ordered to rebalance" + (f"; for a rollout: {moves_line(moves)}" if moves else "")
    if order["is_aborted"]:
        return f"aborted by {order['who']}"
    if moves is None or moves["request"] != order["request"]["id"]:
        return "ordered, and not begun yet"
    return moves_line(moves)


def moves_line(moves: dict[str, Any]) -> str:
    """Return how moves are getting on, in one line."""
    progress = moves["progress"]
    why = f" ({progress['reason']})" if progress["reason"] else ""
    eta = "" if progress["eta_ms"] is None or moves["is_complete"] else f", done in about {span(progress['eta_ms'])}"
    return (
        f"{progress['phase']}{why}: {count(progress['moved'], 'client')} told, {progress['verified']:,} arrived, "
        f"{progress['waiting']:,} on their way, {progress['closed']:,} closed, {progress['left']:,} left{eta}"
        f"{', late' if progress['is_late'] else ''}"
    )
