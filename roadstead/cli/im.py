"""`roadstead im`: run a process of the message services; see which has which shard, and move shards.

A move goes on by itself in the process that has the shard; the command only looks on, and may be ended at any time. A
list of moves is carried out one after the other: each takes a shard out of service for a moment.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from base.errors import Conflict, NotFound, PeerError, PeerUnavailable, RoadsteadError
from im.core.shard_plan import Move, moves_to_even
from roadstead.api import call_api
from roadstead.cli.common import config_options, data_option, json_option, operator, print_json
from roadstead.cli.roles import run_role_of_group
from roadstead.deployment import DataFolder

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
@data_option
@json_option
def table(data: DataFolder, as_json: bool) -> None:
    """Show which process has which shards."""
    known = asyncio.run(_table(data))
    if as_json:
        print_json({"epoch": known["epoch"], "owners": known["owners"]})
        return
    shown = Table(box=None, pad_edge=False)
    for column in ("process", "shards", ""):
        shown.add_column(column)
    here = data.endpoints().im
    for node in sorted({*known["owners"], *here}):
        shards = [str(shard) for shard, owner in enumerate(known["owners"]) if owner == node]
        shown.add_row(node, ", ".join(shards) or "none", "" if node in here else "not known to this data folder")
    console = Console(highlight=False)
    console.print(shown)
    console.print(f"epoch {known['epoch']}, {len(known['owners'])} shards")


@command.command("move")
@data_option
@json_option
@click.argument("shard", type=click.IntRange(min=0))
@click.argument("node")
def move(data: DataFolder, as_json: bool, shard: int, node: str) -> None:
    """Move a shard to another process. It is out of service only while what changed meanwhile is copied."""

    async def run() -> list[Move]:
        owners = (await _table(data))["owners"]
        if shard >= len(owners):
            raise NotFound(f"there is no shard {shard}; there are {len(owners)}")
        return await _carry_out(data, [Move(shard, owners[shard], node)], is_told=not as_json)

    _done(asyncio.run(run()), as_json)


@command.command("drain")
@data_option
@json_option
@click.argument("node")
def drain(data: DataFolder, as_json: bool, node: str) -> None:
    """Move all shards of a process to the others, so that it can be stopped and nobody waits for it."""

    async def run() -> list[Move]:
        owners = (await _table(data))["owners"]
        others = [other for other in data.endpoints().im if other != node]
        if node not in owners:
            return []
        if not others:
            raise Conflict(f"{node} is the only process of the message services")
        return await _carry_out(data, moves_to_even(owners, others), is_told=not as_json)

    _done(asyncio.run(run()), as_json)


@command.command("rebalance")
@data_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
def rebalance(data: DataFolder, as_json: bool, dry_run: bool) -> None:
    """Let each process have as many shards as any other one, or one more, by the fewest moves."""

    async def run() -> list[Move]:
        moves = moves_to_even((await _table(data))["owners"], list(data.endpoints().im))
        return moves if dry_run else await _carry_out(data, moves, is_told=not as_json)

    _done(asyncio.run(run()), as_json, what="to be moved" if dry_run else "moved")


async def _carry_out(data: DataFolder, moves: list[Move], *, is_told: bool) -> list[Move]:
    """Move one shard after the other. Raises what ends the first move that fails."""
    for shard, source, target in moves:
        await _move(data, shard, source, target)
        if is_told:
            click.echo(f"shard {shard}: {source} -> {target}")
    return moves


async def _move(data: DataFolder, shard: int, source: str, target: str) -> None:
    url = data.endpoints().im.get(source)
    if url is None:
        raise PeerUnavailable(f"{source} has shard {shard} and does not run", peer=source)
    order = {"to": target}
    key = data.secrets().api_key
    await call_api("POST", f"{url}{SHARDS}/{shard}/move", credential=key, body=order, operator=operator())
    while True:
        # Asked where it comes from: there is how far it is, and why it failed. The target may be slower to look.
        seen = await call_api("GET", f"{url}{SHARDS}", credential=key)
        status = seen["move"]
        if status is None or status["shard"] != shard:
            raise RoadsteadError(f"{source} was started again while shard {shard} was moved; look at the table")
        if status["error"]:
            raise RoadsteadError(f"shard {shard} was not moved, at the stage {status['stage']}: {status['error']}")
        if status["stage"] == "done":
            return
        await asyncio.sleep(LOOK_S)


async def _table(data: DataFolder) -> Any:
    """Return the newest table that any process tells. Raises what the last one raised, if none does."""
    newest: Any = None
    failure: RoadsteadError = PeerUnavailable("no process of the message services runs")
    for url in data.endpoints().im.values():
        try:
            known = await call_api("GET", f"{url}{SHARDS}", credential=data.secrets().api_key)
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
