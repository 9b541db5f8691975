"""`roadstead print-config`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from roadstead.cli.common import config_options, json_option, load_config, print_json

__all__ = ["command"]


@click.command("print-config")
@config_options
@json_option
def command(file: Path | None, flags: tuple[str, ...], as_json: bool) -> None:
    """Print every setting as it is in force: defaults, file, environment and flags."""
    settings = msgspec.to_builtins(load_config(file, flags))
    if as_json:
        print_json(settings)
        return
    for section, fields in settings.items():
        click.echo(f"[{section}]")
        for name, value in fields.items():
            click.echo(f"{name} = {msgspec.json.encode(value).decode()}")
        click.echo()
