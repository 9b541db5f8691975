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
from roadstead.api import call_api
from roadstead.cli.common import data_option, json_option, print_json
from roadstead.deployment import DataFolder

__all__ = ["events", "pages"]

PAGE = 1_000
WAIT_MS = 20_000
WAIT_DEADLINE_S = 30.0
RETRY_S = 1.0


@click.command("events")
@data_option
@json_option
@click.option("--follow", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option(
    "--cursor",
    metavar="CURSOR",
    help='Go on after this cursor; "start" begins with all open sessions. Without it: from now on with --follow, else '
    "from the start.",
)
def events(data: DataFolder, as_json: bool, follow: bool, cursor: str | None) -> None:
    """Show sessions as they come and go: connects, changes, disconnects.

    With --json each line is one page of the feed, with the cursor after it.
    """
    if cursor is None:
        cursor = "" if follow else "start"
    asyncio.run(_show_all(data, cursor, is_following=follow, as_json=as_json))


async def _show_all(data: DataFolder, cursor: str, *, is_following: bool, as_json: bool) -> None:
    async for page in pages(data, cursor, is_following=is_following):
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


async def pages(data: DataFolder, cursor: str, *, is_following: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield page after page of the feed, from any status node that answers; without following, up to the first end."""
    urls = list(data.endpoints().status.values())
    key = data.secrets().api_key
    failures = 0
    while True:
        params = {"cursor": cursor, "limit": str(PAGE)}
        if is_following and cursor:  # from now on: the first answer says where that is
            params["wait_ms"] = str(WAIT_MS)
        try:
            page = await call_api(
                "GET", f"{urls[0]}/v1/events", credential=key, params=params, deadline_s=WAIT_DEADLINE_S
            )
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
