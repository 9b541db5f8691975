"""Running one role as a process of its own: what the commands `scheduler`, `status`, `access` and `im` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from base import log, loop
from roadstead.cli.common import load_config, print_json

if TYPE_CHECKING:
    from roadstead.role import Ready

__all__ = ["run_role", "run_role_of_group", "tell_ready"]


def run_role(role: str, file: Path | None, flags: tuple[str, ...], *, as_json: bool) -> None:
    """Run one node as its configuration says, until SIGTERM or Ctrl-C."""
    from roadstead.role import place_of, run_node

    config = load_config(file, flags)
    log.configure(level=config.log.level, as_json=config.log.format == "json")

    async def run() -> None:
        await run_node(role, config, place_of(role, config), on_ready=tell_ready(as_json=as_json))

    loop.run(run())


def run_role_of_group(
    context: click.Context, role: str, file: Path | None, flags: tuple[str, ...], *, as_json: bool
) -> None:
    """Do so for a group of commands, when it was called without a command."""
    if context.invoked_subcommand is None:
        if file is None:
            raise click.UsageError(f"name a command, or run this role with `roadstead {role} --config FILE`", context)
        run_role(role, file, flags, as_json=as_json)


def tell_ready(*, as_json: bool) -> Callable[[Ready], None]:
    """Return what says that a node is ready."""

    def tell(ready: Ready) -> None:
        if as_json:
            print_json(ready)
        else:
            clients = f", for clients at {ready.client_url}" if ready.client_url is not None else ""
            click.echo(f"{ready.name} is ready at {ready.url}{clients}, process {ready.pid}")

    return tell
