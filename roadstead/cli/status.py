"""`roadstead status`: who is online, who owns what.

Its other commands are in `count`, `sessions`, `resize`, `digest`, `events`, `watch` and `serve`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from base.clock import SystemClock
from roadstead.cli.common import config_options, json_option, print_json, print_table
from roadstead.cli.count import count
from roadstead.cli.digest import digest
from roadstead.cli.events import events
from roadstead.cli.resize import abort, pause, progress, resize, resume
from roadstead.cli.roles import run_role_of_group
from roadstead.cli.serve import serve_status
from roadstead.cli.sessions import sessions
from roadstead.cli.watch import watch
from roadstead.cli.where import Where, status_call, system_options

__all__ = ["command"]

STRIP_CELLS = 32


@click.group("status", invoke_without_command=True)
@config_options
@json_option
@click.pass_context
def command(context: click.Context, /, *, file: Path | None, flags: tuple[str, ...], as_json: bool) -> None:
    """Ask the status cluster, and resize it; with --config and no command: run one status node."""
    run_role_of_group(context, "status", file, flags, as_json=as_json)


for _one in (count, sessions, resize, progress, pause, resume, abort, digest, events, serve_status, watch):
    command.add_command(_one)


@command.command("lookup")
@system_options
@json_option
@click.argument("users", nargs=-1, required=True)
def _lookup(where: Where, as_json: bool, users: tuple[str, ...]) -> None:
    """Show who is online, on which device, behind which access node."""
    body = {"users": list(users)}
    statuses = asyncio.run(status_call(where, "POST", "/v1/users/status", body))["statuses"]
    if as_json:
        print_json(statuses)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("user", "state", "device", "platform", "node", "since"):
        table.add_column(column)
    now = SystemClock().realtime()
    for status in statuses:
        sessions = status["sessions"] or [{}]
        for session in sessions:
            since = f"{(now - session['since']) / 1000:.0f} s ago" if session else ""
            table.add_row(
                status["user"],
                session.get("state", status["state"]),
                session.get("device", ""),
                session.get("platform", ""),
                session.get("node", ""),
                since,
            )
    print_table(table)


@command.command("table")
@system_options
@json_option
def _table(where: Where, as_json: bool) -> None:
    """Show who owns which partitions, how even the shares are, and what is on the move."""
    table = asyncio.run(status_call(where, "GET", "/v1/admin/status/table"))
    if as_json:
        print_json(table)
        return
    total_weight = sum(node["weight"] for node in table["nodes"])
    partitions = len(table["owners"])
    click.echo(f"epoch {table['epoch']}, {partitions} partitions, {len(table['nodes'])} nodes\n")
    for owner, strip in enumerate(_strips(table["owners"], len(table["nodes"]))):
        node = table["nodes"][owner]
        share = _share(node, partitions * node["weight"] / total_weight)
        name = click.style(f"{node['node']:<12}", bold=True)
        click.echo(f"{name} {share}  {strip}")
    for line in _moves(table["moves"]):
        click.echo(line)


def _share(node: dict[str, Any], even: float) -> str:
    owned = f"{node['partitions']:5d}"
    if "wanted_partitions" in node:
        return f"{owned}  becomes {node['wanted_partitions']:5d}"
    return f"{owned}  {node['partitions'] / even:6.1%} of its share" if even else f"{owned}  leaves"


def _moves(moves: list[dict[str, Any]]) -> list[str]:
    """A line for each pair of nodes: how many of its moves are in which stage."""
    pairs: dict[tuple[str, str], Counter[str]] = {}
    for move in moves:
        pairs.setdefault((move["source"], move["target"]), Counter())[move["stage"]] += 1
    return [
        f"moving {source} to {target}: {', '.join(f'{count} {stage}' for stage, count in stages.items())}"
        for (source, target), stages in sorted(pairs.items())
    ]


def _strips(owners: list[int], nodes: int) -> list[str]:
    """The key space from left to right in one line a node: the darker a cell, the more of it is the node's."""
    shades = " ░▒▓█"
    size = len(owners) // STRIP_CELLS
    strips = []
    for node in range(nodes):
        owned = [owners[cell * size : (cell + 1) * size].count(node) for cell in range(STRIP_CELLS)]
        strips.append("".join(shades[-(-count * (len(shades) - 1) // size)] for count in owned))
    return strips
