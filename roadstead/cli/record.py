"""`roadstead record`: what the scheduler is told and decides, into a file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import click

from base.clock import SystemClock
from base.errors import ConfigError, PeerUnavailable, RoadsteadError, from_wire
from base.http import OPERATOR_HEADER
from roadstead.api import connector
from roadstead.cli.common import EXIT_FAILED, json_option, operator, print_json
from roadstead.cli.kinds import TIME, span
from roadstead.cli.where import Where, system_options
from scheduler.service import SERVICE as SCHEDULER

__all__ = ["command"]

CONNECT_S = 5.0
SLACK_S = 10.0
"""How much longer than it should take a recording may take."""
CHUNK_BYTES = 1 << 16


@click.command("record")
@click.option("--for", "for_ms", type=TIME, default="60s", show_default=True, help="How long, an hour at most.")
@click.option("--decisions", "decisions_max", type=click.IntRange(1), help="End it after so many decisions.")
@system_options
@json_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def command(where: Where, as_json: bool, for_ms: int, decisions_max: int | None, file: Path) -> None:
    """Record what the scheduler decides, for `roadstead replay decisions`. Ctrl-C ends it; what was recorded is good.

    Who may read the file can read who asked from which address. Exit code 1 if the recording was cut off.
    """
    try:
        # A recording of before is not lost by a slip of the hand; and this one is not for everybody's eyes.
        file.touch(mode=0o600, exist_ok=False)
    except FileExistsError as error:
        raise ConfigError([f"{file} is there already"]) from error
    except OSError as error:
        raise ConfigError([f"{file} cannot be written: {error.strerror}"]) from error
    params = {"for_ms": str(for_ms)} | ({} if decisions_max is None else {"decisions_max": str(decisions_max)})
    clock = SystemClock()
    began = clock.monotonic()
    try:
        is_whole = asyncio.run(_record(where, file, params, for_ms))
    except RoadsteadError:
        file.unlink()
        raise
    size, took_ms = file.stat().st_size, clock.monotonic() - began
    if as_json:
        print_json({"file": str(file), "bytes": size, "took_ms": took_ms, "is_whole": is_whole})
    else:
        click.echo(f"{file}: {size / 1e6:.1f} MB in {span(took_ms)}")
    if not is_whole:
        click.echo("it was cut off; what is there can be replayed", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)


async def _record(where: Where, file: Path, params: dict[str, str], for_ms: int) -> bool:
    """Return whether the recording came to its end."""
    url = f"{await where.answering(SCHEDULER)}/v1/admin/recording"
    headers = {"Authorization": f"Bearer {await where.api_key()}", OPERATOR_HEADER: operator()}
    timeout = aiohttp.ClientTimeout(total=for_ms / 1000 + SLACK_S, sock_connect=CONNECT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=connector(), timeout=timeout, headers=headers) as session,
            session.get(url, params=params) as answer,
        ):
            if answer.status != 200:
                failure = (await answer.json(content_type=None))["error"]
                raise from_wire(failure["code"], failure["message"], failure.get("detail", {}))
            return await _written(answer, file)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PeerUnavailable(f"{url} cannot be reached: {str(error) or 'no answer in time'}") from error


async def _written(answer: aiohttp.ClientResponse, file: Path) -> bool:
    try:
        with file.open("wb") as out:
            try:
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    out.write(chunk)
            except (aiohttp.ClientError, TimeoutError):
                return False
            except asyncio.CancelledError:  # Ctrl-C: the recording is what came until then
                return True
    except OSError as error:
        raise ConfigError([f"{file} cannot be written: {error.strerror}"]) from error
    return True
