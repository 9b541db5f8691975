"""What the commands share: options, output, exit codes."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from base.config import load
from base.errors import ConfigError, PeerError, PeerUnavailable, RoadsteadError
from roadstead.api import call_api, trust_ca
from roadstead.config import Config
from roadstead.deployment import DataFolder

__all__ = ["EXIT_FAILED", "EXIT_PAUSED", "EXIT_STUCK", "EXIT_UNREACHABLE", "EXIT_USAGE", "config_options"]
__all__ += [
    "answering",
    "data_option",
    "exit_code",
    "json_option",
    "load_config",
    "operator",
    "print_json",
    "scheduler_call",
]
__all__ += ["status_call"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_PAUSED = 4
"""A resize was waited for, and an operator paused it."""
EXIT_STUCK = 5
"""A resize was waited for, and cannot be done while a node that it wants is away."""

ANSWER_S = 1.0

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


async def answering(urls: Mapping[str, str]) -> str:
    """Return the URL of the first node that answers, of several that are as good. Raises PeerUnavailable."""
    first, *others = urls.values() or [""]
    if not others:
        return first  # it will tell by itself why it does not answer
    for url in (first, *others):
        with suppress(PeerUnavailable):
            await call_api("GET", f"{url}/healthz", deadline_s=ANSWER_S)
            return url
    raise PeerUnavailable(f"none of {', '.join(urls)} answers")


async def status_call(data: DataFolder, method: str, path: str, body: Any = None) -> Any:
    """Ask a status node of the running system. Raises what `call_api` raises."""
    url = await answering(data.endpoints().status)
    return await call_api(method, f"{url}{path}", credential=data.secrets().api_key, body=body)


async def scheduler_call(
    data: DataFolder, method: str, path: str, body: Any = None, *, params: dict[str, str] | None = None
) -> Any:
    """Ask the scheduler of the running system, in the operator's name. Raises what `call_api` raises."""
    url = await answering(data.endpoints().scheduler)
    key = data.secrets().api_key
    return await call_api(method, f"{url}{path}", credential=key, params=params, body=body, operator=operator())


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
