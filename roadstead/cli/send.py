"""`roadstead send`."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from base.ids import new_uuid
from roadstead.api import call_api
from roadstead.cli.common import answering, data_option, json_option, print_json
from roadstead.deployment import DataFolder

__all__ = ["command"]


@click.command("send")
@click.option("--from", "sender", required=True, help="User who sends.")
@click.option("--to", required=True, help="User who receives.")
@click.option("--id", "client_msg_id", help="Idempotency key; the same key again stores nothing new.")
@data_option
@json_option
@click.argument("text")
def command(sender: str, to: str, client_msg_id: str | None, data: DataFolder, as_json: bool, text: str) -> None:
    """Send one text message for a user, as a backend does. Returns when it is durable."""
    body = {"from": sender, "to": to, "client_msg_id": client_msg_id or new_uuid(), "body": text}
    result = asyncio.run(_send(data, body))
    if as_json:
        print_json(result)
    else:
        state = "stored" if result["is_new"] else "was stored before"
        click.echo(f"{state}: conversation {result['cid']}, message {result['seq']}, id {result['mid']}")


async def _send(data: DataFolder, body: dict[str, str]) -> Any:
    url = await answering(data.endpoints().im)  # each takes any call
    return await call_api("POST", f"{url}/v1/messages", credential=data.secrets().api_key, body=body)
