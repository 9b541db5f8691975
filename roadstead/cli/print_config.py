"""`roadstead print-config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec

from roadstead.cli.common import config_options, json_option, load_config, print_json

__all__ = ["command"]

_URL_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")


@click.command("print-config")
@config_options
@json_option
def command(file: Path | None, flags: tuple[str, ...], as_json: bool) -> None:
    """Print every setting as it is in force: defaults, file, environment and flags."""
    settings = _masked(msgspec.to_builtins(load_config(file, flags)))
    if as_json:
        print_json(settings)
        return
    for section, fields in settings.items():
        click.echo(f"[{section}]")
        for name, value in fields.items():
            click.echo(f"{name} = {msgspec.json.encode(value).decode()}")
        click.echo()


def _masked(value: Any) -> Any:
    """The settings with the passwords of URLs left out: what is printed ends up in tickets and chats."""
    if isinstance(value, dict):
        return {name: _masked(below) for name, below in value.items()}
    return _URL_PASSWORD.sub(r"\1:***@", value) if isinstance(value, str) else value
