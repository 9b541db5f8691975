"""`roadstead token`."""

from __future__ import annotations

import click

from base.clock import SystemClock, Timestamp
from roadstead.cli.common import json_option, print_json
from roadstead.cli.where import Where, system_options
from scheduler.tokens import mint_user_token

__all__ = ["command"]


@click.command("token")
@click.option("--user", required=True, help="User that the token speaks for.")
@click.option("--ttl", "ttl_s", type=click.IntRange(1, 86_400), default=3_600, show_default=True, help="Seconds.")
@system_options
@json_option
def command(user: str, ttl_s: int, where: Where, as_json: bool) -> None:
    """Mint a user token with the deployment's key, as your backend would after a login."""
    expires_at = Timestamp(SystemClock().realtime() + ttl_s * 1000)
    token = mint_user_token(user, key=where.user_key(), expires_at=expires_at)
    if as_json:
        print_json({"user": user, "token": token, "expires_at": expires_at})
    else:
        click.echo(token)
