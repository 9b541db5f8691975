"""`roadstead status events`: the session event feed, for people to watch and for programs to follow.

Page by page through any status node; when that does not answer, the next one goes on from the same cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import click

from base.errors import PeerUnavailable
from roadstead.cli.common import json_option, print_json
from roadstead.cli.where import Where, system_options
from status.api import SERVICE as STATUS

__all__ = ["events", "pages"]

PAGE = 1_000
WAIT_MS = 20_000
WAIT_DEADLINE_S = 30.0
RETRY_S = 1.0


@click.command("events")
@system_options
@json_option
@click.option("--follow", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option(
    "--cursor",
    metavar="CURSOR",
    help='Go on after this cursor; "start" begins with all open sessions. Without it: from now on with --follow, else '
    "from the start.",
)
def events(where: Where, as_json: bool, follow: bool, cursor: str | None) -> None:
    """Show sessions as they come and go: connects, changes, disconnects.

    With --json each line is one page of the feed, with the cursor after it.
    """
    if cursor is None:
        cursor = "" if follow else "start"
    asyncio.run(_show_all(where, cursor, is_following=follow, as_json=as_json))


async def _show_all(where: Where, cursor: str, *, is_following: bool, as_json: bool) -> None:
    async for page in pages(where, cursor, is_following=is_following):
        if as_json:
            print_json(page)
        else:
            for event in page["events"]:
                _show(event)
        if page["missing"] and not is_following:
            click.echo(f"not reached: {', '.join(page['missing'])}", err=True)
        cursor = page["cursor"]
    if not as_json:
        click.echo(f"cursor: {cursor}", err=True)


async def pages(where: Where, cursor: str, *, is_following: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield page after page of the feed, from any status node that answers; without following, up to the first end."""
    urls = list((await where.urls(STATUS)).values())
    failures = 0
    while True:
        params = {"cursor": cursor, "limit": str(PAGE)}
        if is_following and cursor:  # from now on: the first answer says where that is
            params["wait_ms"] = str(WAIT_MS)
        try:
            page = await where.ask(urls[0], "GET", "/v1/events", params=params, deadline_s=WAIT_DEADLINE_S)
        except PeerUnavailable:
            failures += 1
            if failures >= len(urls):
                raise
            urls.append(urls.pop(0))
            await asyncio.sleep(RETRY_S)
            continue
        failures = 0
        cursor = page["cursor"]
        yield page
        if page["is_at_end"] and not is_following:
            return


def _show(event: dict[str, Any]) -> None:
    if event["kind"] == "resync":
        for session in event["sessions"]:
            _line(session["since"], "open", session)
    else:
        _line(event["at"], event["kind"], event)


def _line(at: int, what: str, session: dict[str, Any]) -> None:
    when = datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M:%S")
    where = f"{session['device']} ({session['platform']}) at {session['node']}"
    click.echo(f"{when}  {what:<10}  {session['user']}  {session['state']}  {where}")
