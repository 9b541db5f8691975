"""`roadstead scheduler`."""

from __future__ import annotations

from pathlib import Path

import click

from roadstead.cli.common import config_options, json_option
from roadstead.cli.roles import run_role

__all__ = ["command"]


@click.command("scheduler")
@config_options
@json_option
def command(file: Path | None, flags: tuple[str, ...], as_json: bool) -> None:
    """Run one scheduler, which tells clients where to connect.

    It joins the system of its registry. Stop it with SIGTERM or Ctrl-C.
    """
    run_role("scheduler", file, flags, as_json=as_json)
