"""`roadstead status`."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from base.clock import SystemClock
from roadstead.api import call_api
from roadstead.cli.common import data_option, json_option, print_json
from roadstead.deployment import DataFolder

__all__ = ["command"]


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

    async def ask() -> list[dict[str, Any]]:
        return [await call_api("GET", f"{url}/v1/users/{user}/status", credential=key) for user in users]

    statuses = asyncio.run(ask())
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
