"""`roadstead check-config`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from roadstead.cli.common import config_options, load_config
from roadstead.config import Config

__all__ = ["command"]


@click.command("check-config")
@config_options
@click.option(
    "--role",
    type=click.Choice(["scheduler", "status", "access", "im"]),
    help="Check also what a process of this role needs, and the files that are named.",
)
def command(file: Path | None, flags: tuple[str, ...], role: str | None) -> None:
    """Check a configuration: file, environment and flags together. Lists every fault, exit code 2 if there is one."""
    config = load_config(file, flags)
    if role is not None:
        asyncio.run(_check(role, config))
    click.echo("the configuration is good")


async def _check(role: str, config: Config) -> None:
    from roadstead.role import place_of

    place = place_of(role, config)
    await place.close()
