"""`roadstead status sessions`: who is behind an access node, page by page, to the end.

A page that a status node did not take part in says so; what is known is shown, and the exit code tells that it is not
all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import click
from rich.table import Table

from base.clock import SystemClock
from roadstead.cli.common import EXIT_FAILED, json_option, print_json, print_table
from roadstead.cli.where import Where, status_call, system_options

__all__ = ["sessions"]

PAGE = 1_000


@click.command("sessions")
@system_options
@json_option
@click.option("--node", required=True, metavar="NODE", help="The access node.")
def sessions(where: Where, as_json: bool, node: str) -> None:
    """List the users and sessions behind an access node. Exit code 1 if some could not be listed.

    With --json each line is one page.
    """
    missing = asyncio.run(_list(where, node, as_json=as_json))
    if missing:
        click.echo(f"{missing} partitions are not, or not completely, listed; try again", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)


async def _list(where: Where, node: str, *, as_json: bool) -> int:
    """Show all pages; return of how many partitions something may be missing."""
    table = Table(box=None, pad_edge=False)
    for column in ("user", "state", "device", "platform", "since"):
        table.add_column(column)
    users: set[str] = set()
    missing: set[int] = set()
    unknown: set[str] = set()
    is_registered = False
    async for page in _pages(where, node):
        missing.update(page["missing_partitions"])
        unknown.update(page["unknown"])
        is_registered = page["is_registered"]
        users.update(session["user"] for session in page["sessions"])
        if as_json:
            print_json(page)
        else:
            _add(table, page["sessions"])
    if not as_json:
        print_table(table)
        click.echo(f"{table.row_count} sessions of {len(users)} users behind {node}")
        if not is_registered:
            click.echo(f"no access node {node} is registered now", err=True)
    if unknown:
        click.echo(f"did not answer: {', '.join(sorted(unknown))}", err=True)
    return len(missing)


async def _pages(where: Where, node: str) -> AsyncIterator[dict[str, Any]]:
    cursor: str | None = ""
    while cursor is not None:
        query = urlencode({"node": node, "limit": PAGE, "cursor": cursor})
        page = await status_call(where, "GET", f"/v1/admin/status/sessions?{query}")
        yield page
        cursor = page["cursor"]


def _add(table: Table, listed: list[dict[str, Any]]) -> None:
    now = SystemClock().realtime()
    for session in listed:
        since = f"{(now - session['since']) / 1000:.0f} s ago"
        told = (session[name] for name in ("user", "state", "device", "platform"))
        table.add_row(*told, since)
