"""What the commands share: options, output, exit codes."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from base.config import load
from base.errors import ConfigError, PeerError, RoadsteadError
from roadstead.api import trust_ca
from roadstead.config import Config
from roadstead.deployment import DataFolder

__all__ = ["EXIT_FAILED", "EXIT_PAUSED", "EXIT_STUCK", "EXIT_UNREACHABLE", "EXIT_USAGE"]
__all__ += [
    "config_options",
    "data_option",
    "exit_code",
    "json_option",
    "load_config",
    "operator",
    "print_json",
    "print_table",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_PAUSED = 4
"""A resize was waited for, and an operator paused it."""
EXIT_STUCK = 5
"""A resize was waited for, and cannot be done while a node that it wants is away."""

TABLE_COLUMNS_MAX = 10_000

F = TypeVar("F", bound=Callable[..., Any])


def exit_code(error: RoadsteadError) -> int:
    """Return the exit code that stands for the error."""
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    if isinstance(error, PeerError):
        return EXIT_UNREACHABLE
    return EXIT_FAILED


def print_json(value: object) -> None:
    """Print one JSON document on a line of standard output."""
    click.echo(msgspec.json.encode(value).decode())


def print_table(table: Table, *, folds: bool = False) -> None:
    """Print a table with a line a row, however narrow the terminal is: a node's name or address must be whole.

    Cells that are strings are shown as they are, whatever is in them; `rich.text.Text` has a style.

    `folds`: sentences are in it, which a terminal may show in several lines.
    """
    console = Console(highlight=False, markup=False)
    if not (folds and console.is_terminal):
        wide = console.options.update(max_width=TABLE_COLUMNS_MAX)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def operator() -> str:
    """Return who runs the command, for audit logs: `user@host`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def data_option(command: F) -> F:
    """Add `--data`, passed on as a DataFolder."""

    def to_folder(_context: click.Context, _param: click.Parameter, value: Path) -> DataFolder:
        data = DataFolder(value)
        if data.ca.exists():
            trust_ca(data.ca)
        return data

    return click.option(
        "--data",
        type=click.Path(path_type=Path),
        default=Path("roadstead-data"),
        envvar="ROADSTEAD_DATA",
        show_default=True,
        callback=to_folder,
        help="Folder with the deployment's data and secrets. [env: ROADSTEAD_DATA]",
    )(command)


def config_options(command: F) -> F:
    """Add `--config` and `--set`."""
    command = click.option(
        "--set", "flags", multiple=True, metavar="SECTION.FIELD=VALUE", help="Override one setting; repeatable."
    )(command)
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        envvar="ROADSTEAD_CONFIG",
        help="TOML file with settings. [env: ROADSTEAD_CONFIG]",
    )(command)


def load_config(file: Path | None, flags: tuple[str, ...]) -> Config:
    """Load the configuration from its three sources. Raises ConfigError."""
    return load(Config, file=file, env=os.environ, flags=flags)
