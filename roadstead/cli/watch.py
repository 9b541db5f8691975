"""`roadstead status watch`: what one user's status is, and each change of it.

The event feed says when to look, a lookup what there is to see; so what is shown is what any reader sees, and a change
that the feed tells twice is shown once.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import click

from base.clock import SystemClock
from roadstead.cli.common import json_option, print_json
from roadstead.cli.events import pages
from roadstead.cli.where import Where, status_call, system_options

__all__ = ["watch"]


@click.command("watch")
@system_options
@json_option
@click.argument("user")
def watch(where: Where, as_json: bool, user: str) -> None:
    """Show a user's status now and whenever it changes, until interrupted."""
    asyncio.run(_watch(where, user, as_json=as_json))


async def _watch(where: Where, user: str, *, as_json: bool) -> None:
    shown: dict[str, Any] | None = None
    # From before the first lookup, so that no change falls between the two.
    async for page in pages(where, "", is_following=True):
        if shown is not None and not any(_concerns(event, user) for event in page["events"]):
            continue
        status = (await status_call(where, "POST", "/v1/users/status", {"users": [user]}))["statuses"][0]
        if status != shown:
            shown = status
            _show(status, as_json=as_json)


def _concerns(event: dict[str, Any], user: str) -> bool:
    """Return whether the event may have changed the user's status; a resync says anew what a part of all users is."""
    return bool(event["kind"] == "resync" or event["user"] == user)


def _show(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    when = datetime.fromtimestamp(SystemClock().realtime() / 1000, UTC).strftime("%H:%M:%S")
    where = ", ".join(f"{session['device']} at {session['node']}" for session in status["sessions"])
    click.echo(f"{when}  {status['state']:<9}  {where}".rstrip())
