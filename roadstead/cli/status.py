"""`roadstead status`."""

from __future__ import annotations

import asyncio

import click
from rich.console import Console
from rich.table import Table

from base.clock import SystemClock
from roadstead.api import call_api
from roadstead.cli.common import data_option, json_option, print_json
from roadstead.deployment import DataFolder

__all__ = ["command"]

STRIP_CELLS = 32


@click.group("status")
def command() -> None:
    """Ask the status cluster."""


@command.command("lookup")
@data_option
@json_option
@click.argument("users", nargs=-1, required=True)
def _lookup(data: DataFolder, as_json: bool, users: tuple[str, ...]) -> None:
    """Show who is online, on which device, behind which access node."""
    url = next(iter(data.endpoints().status.values()))
    key = data.secrets().api_key

    body = {"users": list(users)}
    statuses = asyncio.run(call_api("POST", f"{url}/v1/users/status", credential=key, body=body))["statuses"]
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
    Console().print(table)


@command.command("table")
@data_option
@json_option
def _table(data: DataFolder, as_json: bool) -> None:
    """Show who owns which partitions, and how even the shares are."""
    url = next(iter(data.endpoints().status.values()))
    key = data.secrets().api_key
    table = asyncio.run(call_api("GET", f"{url}/v1/admin/status/table", credential=key))
    if as_json:
        print_json(table)
        return
    console = Console()
    total_weight = sum(node["weight"] for node in table["nodes"])
    partitions = len(table["owners"])
    console.print(f"epoch {table['epoch']}, {partitions} partitions, {len(table['nodes'])} nodes\n")
    for owner, strip in enumerate(_strips(table["owners"], len(table["nodes"]))):
        node = table["nodes"][owner]
        even = partitions * node["weight"] / total_weight
        share = f"{node['partitions']:5d}  {node['partitions'] / even:6.1%} of its share"
        console.print(f"[bold]{node['node']:<12}[/] {share}  {strip}", highlight=False)


def _strips(owners: list[int], nodes: int) -> list[str]:
    """The key space from left to right in one line a node: the darker a cell, the more of it is the node's."""
    shades = " ░▒▓█"
    size = len(owners) // STRIP_CELLS
    strips = []
    for node in range(nodes):
        owned = [owners[cell * size : (cell + 1) * size].count(node) for cell in range(STRIP_CELLS)]
        strips.append("".join(shades[-(-count * (len(shades) - 1) // size)] for count in owned))
    return strips
