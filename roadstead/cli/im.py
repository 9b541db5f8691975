"""`roadstead im`: run a process of the message services; see which has which shard, and move shards.

A move goes on by itself in the process that has the shard; the command only looks on, and may be ended at any time. A
list of moves is carried out one after the other: each takes a shard out of service for a moment.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from base.errors import Conflict, NotFound, PeerError, PeerUnavailable, RoadsteadError
from im.api import SERVICE as IM
from im.core.shard_plan import Move, moves_to_even
from roadstead.cli.common import config_options, json_option, print_json, print_table
from roadstead.cli.roles import run_role_of_group
from roadstead.cli.where import Where, system_options

__all__ = ["command"]

SHARDS = "/v1/admin/im/shards"
LOOK_S = 0.1


@click.group("im", invoke_without_command=True)
@config_options
@json_option
@click.pass_context
def command(context: click.Context, /, *, file: Path | None, flags: tuple[str, ...], as_json: bool) -> None:
    """See and move the shards of the message services; with --config and no command: run one process of them.

    A process joins the system of its registry. Stop it with SIGTERM or Ctrl-C.
    """
    run_role_of_group(context, "im", file, flags, as_json=as_json)


@command.command("table")
@system_options
@json_option
def table(where: Where, as_json: bool) -> None:
    """Show which process has which shards."""

    async def run() -> tuple[Any, dict[str, str]]:
        return await _table(where), await where.urls(IM)

    known, here = asyncio.run(run())
    if as_json:
        print_json({"epoch": known["epoch"], "owners": known["owners"]})
        return
    shown = Table(box=None, pad_edge=False)
    for column in ("process", "shards", ""):
        shown.add_column(column)
    for node in sorted({*known["owners"], *here}):
        shards = [str(shard) for shard, owner in enumerate(known["owners"]) if owner == node]
        shown.add_row(node, ", ".join(shards) or "none", "" if node in here else "is not there")
    print_table(shown)
    click.echo(f"epoch {known['epoch']}, {len(known['owners'])} shards")


@command.command("move")
@system_options
@json_option
@click.argument("shard", type=click.IntRange(min=0))
@click.argument("node")
def move(where: Where, as_json: bool, shard: int, node: str) -> None:
    """Move a shard to another process. It is out of service only while what changed meanwhile is copied."""

    async def run() -> list[Move]:
        owners = (await _table(where))["owners"]
        if shard >= len(owners):
            raise NotFound(f"there is no shard {shard}; there are {len(owners)}")
        return await _carry_out(where, [Move(shard, owners[shard], node)], is_told=not as_json)

    _done(asyncio.run(run()), as_json)


@command.command("drain")
@system_options
@json_option
@click.argument("node")
def drain(where: Where, as_json: bool, node: str) -> None:
    """Move all shards of a process to the others, so that it can be stopped and nobody waits for it."""

    async def run() -> list[Move]:
        owners = (await _table(where))["owners"]
        others = [other for other in await where.urls(IM) if other != node]
        if node not in owners:
            return []
        if not others:
            raise Conflict(f"{node} is the only process of the message services")
        return await _carry_out(where, moves_to_even(owners, others), is_told=not as_json)

    _done(asyncio.run(run()), as_json)


@command.command("rebalance")
@system_options
@json_option
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
def rebalance(where: Where, as_json: bool, dry_run: bool) -> None:
    """Let each process have as many shards as any other one, or one more, by the fewest moves."""

    async def run() -> list[Move]:
        moves = moves_to_even((await _table(where))["owners"], list(await where.urls(IM)))
        return moves if dry_run else await _carry_out(where, moves, is_told=not as_json)

    _done(asyncio.run(run()), as_json, what="to be moved" if dry_run else "moved")


async def _carry_out(where: Where, moves: list[Move], *, is_told: bool) -> list[Move]:
    """Move one shard after the other. Raises what ends the first move that fails."""
    for shard, source, target in moves:
        await _move(where, shard, source, target)
        if is_told:
            click.echo(f"shard {shard}: {source} -> {target}")
    return moves


async def _move(where: Where, shard: int, source: str, target: str) -> None:
    url = (await where.urls(IM)).get(source)
    if url is None:
        raise PeerUnavailable(f"{source} has shard {shard} and does not run", peer=source)
    order = {"to": target}
    await where.ask(url, "POST", f"{SHARDS}/{shard}/move", order)
    while True:
        # Asked where it comes from: there is how far it is, and why it failed. The target may be slower to look.
        seen = await where.ask(url, "GET", SHARDS)
        status = seen["move"]
        if status is None or status["shard"] != shard:
            raise RoadsteadError(f"{source} was started again while shard {shard} was moved; look at the table")
        if status["error"]:
            raise RoadsteadError(f"shard {shard} was not moved, at the stage {status['stage']}: {status['error']}")
        if status["stage"] == "done":
            return
        await asyncio.sleep(LOOK_S)


async def _table(where: Where) -> Any:
    """Return the newest table that any process tells. Raises what the last one raised, if none does."""
    newest: Any = None
    failure: RoadsteadError = PeerUnavailable("no process of the message services runs")
    for url in (await where.urls(IM)).values():
        try:
            known = await where.ask(url, "GET", SHARDS)
        except PeerError as error:
            failure = error
            continue
        if newest is None or known["epoch"] > newest["epoch"]:
            newest = known
    if newest is None:
        raise failure
    return newest


def _done(moves: list[Move], as_json: bool, *, what: str = "moved") -> None:
    if as_json:
        print_json([{"shard": shard, "from": source, "to": target} for shard, source, target in moves])
        return
    if what != "moved":
        for shard, source, target in moves:
            click.echo(f"shard {shard}: {source} -> {target}")
    click.echo(f"{len(moves)} shard{'s' if len(moves) != 1 else ''} {what}")
