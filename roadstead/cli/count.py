"""`roadstead status count`: how many are online, in all and behind each access node."""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.table import Table

from roadstead.cli.common import json_option, print_json, print_table
from roadstead.cli.where import Where, status_call, system_options

__all__ = ["count"]


@click.command("count")
@system_options
@json_option
def count(where: Where, as_json: bool) -> None:
    """Count the users and sessions that are online, in all and behind each access node."""
    counted = asyncio.run(status_call(where, "GET", "/v1/status/count"))
    if as_json:
        print_json(counted)
    else:
        _show(counted)


def _show(counted: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("access node")
    for column in ("users", "sessions"):
        table.add_column(column, justify="right")
    for row in counted["access_nodes"]:
        table.add_row(row["node"], str(row["users"]), str(row["sessions"]))
    # Who has sessions behind two access nodes is one user, so the first column may add up to more.
    table.add_row("all", str(counted["users"]), str(counted["sessions"]), style="bold")
    print_table(table)
    if counted["unknown"]:
        click.echo(f"did not answer: {', '.join(counted['unknown'])}")
    if not counted["is_exact"]:
        click.echo(f"at least so many: only {counted['partitions']} partitions were counted completely")
