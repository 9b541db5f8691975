"""`roadstead chat`: a user in the terminal, through the stock SDK, as any client connects."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import msgspec

from base.clock import SystemClock, Timestamp
from base.errors import RoadsteadError
from roadstead.cli.common import json_option, print_json
from roadstead.cli.where import Where, system_options
from roadstead.client import Client, Incoming, Position
from scheduler.service import SERVICE as SCHEDULER
from scheduler.tokens import mint_user_token

__all__ = ["command"]

HELP = "Type a message and Enter. /to USER chooses the receiver, /quit leaves."
TOKEN_TTL_MS = 86_400_000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Shown for what would order the terminal about: what others write is text."""


@click.command("chat")
@click.option("--user", required=True, help="Who you are.")
@click.option("--to", help="Whom you write to first; changed by /to USER.")
@click.option("--device", default="terminal", show_default=True, help="Name of this device; each keeps its own place.")
@system_options
@json_option
def command(user: str, to: str | None, device: str, where: Where, as_json: bool) -> None:
    """Chat as a user. Shows what arrived while you were away, then what arrives.

    When standard input is not a terminal its lines are sent, and the command ends when all of them are stored.
    """
    asyncio.run(_Chat(user, to, device, where, as_json=as_json).run())


class _Chat:
    def __init__(self, user: str, to: str | None, device: str, where: Where, *, as_json: bool) -> None:
        self._user = user
        self._to = to
        self._as_json = as_json
        self._device = device
        self._where = where
        self._place = _Place(where.folder() / "chat", user, device)
        self._client: Client

    async def run(self) -> None:
        expires_at = Timestamp(SystemClock().realtime() + TOKEN_TTL_MS)
        self._client = Client(
            list((await self._where.urls(SCHEDULER)).values()),
            user=self._user,
            credential=mint_user_token(self._user, key=self._where.user_key(), expires_at=expires_at),
            on_message=self._show,
            device=self._device,
            position=self._place.read(),
        )
        await self._client.connect()
        if sys.stdin.isatty():
            click.echo(f"You are {self._user}. {HELP}", err=True)
        try:
            async for line in _lines():
                if line == "/quit":
                    break
                await self._typed(line)
        finally:
            await self._client.close()

    async def _typed(self, line: str) -> None:
        if line.startswith("/to "):
            self._to = line.removeprefix("/to ").strip()
        elif line.startswith("/"):
            click.echo(HELP, err=True)
        elif self._to is None:
            click.echo("To whom? Say /to USER first.", err=True)
        elif line:
            try:
                result = await self._client.send(self._to, line)
            except RoadsteadError as error:
                click.echo(f"not sent: {error}", err=True)
                return
            if self._as_json:
                print_json({"event": "sent", "to": self._to, **result})

    async def _show(self, incoming: Incoming) -> None:
        data = incoming.data
        if incoming.is_start:
            click.echo("What came before is not kept any more.", err=True)
        elif self._as_json:
            print_json({"event": data["kind"], "offset": incoming.position.offset, **data})
        elif data["kind"] == "message" and data["from"] != self._user:
            click.echo(f"{data['from']}: {_text(data)}")
            self._to = self._to or data["from"]
        self._place.write(incoming.position)


class _Place:
    """How far this device has read, kept beside what else is known of the system."""

    def __init__(self, folder: Path, user: str, device: str) -> None:
        # Hex, since a user id may have characters that a file name may not.
        self._file = folder / f"{user.encode().hex()}-{device.encode().hex()}.json"

    def read(self) -> Position:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Position)
        except (OSError, msgspec.MsgspecError):
            return Position()  # reading again from the beginning loses nothing

    def write(self, position: Position) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._file.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(position))
        partial.replace(self._file)


def _text(data: dict[str, Any]) -> str:
    body = data["body"]
    if data.get("recalled"):
        return "[recalled]"
    text = body if isinstance(body, str) else f"[{data['type']}] {msgspec.json.encode(body).decode()}"
    return "".join([char if char.isprintable() or char in "\n\t" else REPLACEMENT for char in text])


async def _lines() -> AsyncIterator[str]:
    """Lines of standard input, read in a thread of its own.

    Not by the event loop: it cannot watch files or /dev/null, and a terminal must be left as it was found. The thread
    is a daemon, since nothing can wake a read of a terminal when the chat ends.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\r\n"))
        loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line
