"""`roadstead check-config`."""

from __future__ import annotations

from pathlib import Path

import click

from roadstead.cli.common import config_options, load_config

__all__ = ["command"]


@click.command("check-config")
@config_options
def command(file: Path | None, flags: tuple[str, ...]) -> None:
    """Check a configuration: file, environment and flags together. Lists every fault, exit code 2 if there is one."""
    load_config(file, flags)
    click.echo("the configuration is good")
