"""`roadstead send`."""

from __future__ import annotations

import asyncio

import click

from base.ids import new_uuid
from im.api import SERVICE as IM
from roadstead.cli.common import json_option, print_json
from roadstead.cli.where import Where, system_options

__all__ = ["command"]


@click.command("send")
@click.option("--from", "sender", required=True, help="User who sends.")
@click.option("--to", required=True, help="User who receives.")
@click.option("--id", "client_msg_id", help="Idempotency key; the same key again stores nothing new.")
@system_options
@json_option
@click.argument("text")
def command(sender: str, to: str, client_msg_id: str | None, where: Where, as_json: bool, text: str) -> None:
    """Send one text message for a user, as a backend does. Returns when it is durable."""
    body = {"from": sender, "to": to, "client_msg_id": client_msg_id or new_uuid(), "body": text}
    result = asyncio.run(where.call(IM, "POST", "/v1/messages", body))  # each node takes any call
    if as_json:
        print_json(result)
    else:
        state = "stored" if result["is_new"] else "was stored before"
        click.echo(f"{state}: conversation {result['cid']}, message {result['seq']}, id {result['mid']}")
