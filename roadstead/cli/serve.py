"""`roadstead status serve` and `roadstead access serve`: one node as a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from base import log, loop
from base.errors import ConfigError, PeerUnavailable
from base.site import is_base_url, is_node_name, is_unspecified
from roadstead.cli.common import config_options, data_option, json_option, load_config
from roadstead.cli.roles import tell_ready
from roadstead.config import Config
from roadstead.deployment import DataFolder

if TYPE_CHECKING:
    from roadstead.joined import Joining

__all__ = ["serve_access", "serve_status"]


def _name(_context: click.Context, _param: click.Parameter, value: str) -> str:
    if not is_node_name(value):
        raise click.BadParameter(f"{value!r} is no name; 1 to 64 letters, digits and . _ - make one, such as status-6")
    return value


def _url(_context: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_base_url(value):
        raise click.BadParameter(f"{value!r} is no address such as http://10.0.0.1:8709")
    return value.rstrip("/") if value is not None else None


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The options that both commands have."""

    name: str
    data: DataFolder
    join: str | None
    peer_key_file: Path | None
    api_key_file: Path | None
    file: Path | None
    flags: tuple[str, ...]
    host: str | None
    port: int
    as_json: bool


def _serve_options(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of `_Asked`; `example` is a name that the node may have."""
    key_file = click.Path(path_type=Path)
    options = [
        click.option(
            "--name", required=True, callback=_name, help=f"Name of the node, unique in the system: {example}."
        ),
        data_option,
        click.option(
            "--join", callback=_url, metavar="URL", help="Join the system whose registry is here, without --data."
        ),
        click.option("--peer-key-file", type=key_file, help="With --join: file with the system's peer key."),
        click.option("--api-key-file", type=key_file, help="With --join: file with the API key to accept."),
        config_options,
        click.option("--host", help="Address to listen on, where the other nodes reach this one; short for up.host."),
        click.option("--port", type=click.IntRange(0, 65_535), default=0, show_default=True, help="0: a free one."),
        json_option,
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command("serve")
@_serve_options("status-6")
@click.pass_context
def serve_status(context: click.Context, /, **options: Any) -> None:
    """Run one more status node, which joins a system that `roadstead up` runs.

    It owns nothing until `roadstead status resize` gives it something. Stop it with Ctrl-C.
    """
    from roadstead.joined import run_status_node

    asked = _Asked(**options)
    _require_one_system(context, asked)
    config, place = _prepared(asked)
    loop.run(run_status_node(config, place, on_ready=tell_ready(as_json=asked.as_json)))


@click.command("serve")
@_serve_options("access-3")
@click.option(
    "--ticket-key-file",
    type=click.Path(path_type=Path),
    help="With --join: file with a line `KID KEY` for each key that tickets are signed with.",
)
@click.option(
    "--client-port",
    type=click.IntRange(0, 65_535),
    help="Port for clients; short for access.client_port.",
)
@click.pass_context
def serve_access(
    context: click.Context, /, *, ticket_key_file: Path | None, client_port: int | None, **options: Any
) -> None:
    """Run one more access node, which joins a system that `roadstead up` runs.

    The scheduler sends it clients as soon as it is ready. Stop it with Ctrl-C: its clients go to the others.
    """
    from roadstead.joined import run_access_node

    asked = _Asked(**options)
    _require_one_system(context, asked, ticket_key_file)
    if asked.join is not None and ticket_key_file is None:
        raise click.UsageError("--join needs --ticket-key-file, with the keys that the scheduler signs tickets with")
    config, place = _prepared(asked, *([] if client_port is None else [f"access.client_port={client_port}"]))
    keys = _ticket_keys(ticket_key_file) if ticket_key_file is not None else _ticket_keys_of(asked.data)
    loop.run(run_access_node(config, place, ticket_keys=keys, on_ready=tell_ready(as_json=asked.as_json)))


def _require_one_system(context: click.Context, asked: _Asked, ticket_key_file: Path | None = None) -> None:
    files = {
        "--peer-key-file": asked.peer_key_file,
        "--api-key-file": asked.api_key_file,
        "--ticket-key-file": ticket_key_file,
    }
    given = [option for option, file in files.items() if file is not None]
    if asked.join is None and given:
        raise click.UsageError(f"{' and '.join(given)} can be given with --join only")
    if asked.join is not None and asked.peer_key_file is None:
        raise click.UsageError("--join needs --peer-key-file, such as the file peer-key of the system's data folder")
    if asked.join is not None and context.get_parameter_source("data") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--data and --join name two systems; give one of them")


def _prepared(asked: _Asked, *settings: str) -> tuple[Config, Joining]:
    """Load the settings, those of `settings` over all others, set up the log, and find the system."""
    host = () if asked.host is None else (f"up.host={asked.host}",)
    config = load_config(asked.file, (*asked.flags, *host, *settings))
    _require_an_address(config.up.host)
    place = _place(asked)
    log.configure(level=config.log.level, as_json=config.log.format == "json")
    return config, place


def _place(asked: _Asked) -> Joining:
    from roadstead.joined import Joining

    if asked.join is not None:
        assert asked.peer_key_file is not None
        api_key = _key(asked.api_key_file) if asked.api_key_file is not None else None
        peer_key = _key(asked.peer_key_file)
        return Joining(registry=asked.join, peer_key=peer_key, api_key=api_key, name=asked.name, port=asked.port)
    endpoints = asked.data.endpoints()
    registry = next(iter(endpoints.registry.values()), None)
    if registry is None and endpoints.consul:
        raise ConfigError([f"{asked.data.path} has a cluster: start its nodes with `roadstead ROLE --config FILE`"])
    if registry is None:
        raise PeerUnavailable(
            f"the system of {asked.data.path} does not share its registry; start it again with this version"
        )
    secrets = asked.data.secrets()
    return Joining(
        registry=registry, peer_key=secrets.peer_key, api_key=secrets.api_key, name=asked.name, port=asked.port
    )


def _ticket_keys_of(data: DataFolder) -> dict[str, str]:
    secrets = data.secrets()
    return {secrets.ticket_kid: secrets.ticket_key}


def _ticket_keys(file: Path) -> dict[str, str]:
    lines = [line.split() for line in _text(file).splitlines() if line.strip()]
    if not lines or any(len(line) != 2 for line in lines):
        raise ConfigError([f"{file} must have a line `KID KEY` for each ticket key"])
    return dict(lines)


def _key(file: Path) -> str:
    key = _text(file).strip()
    if not key or not key.isprintable() or " " in key:
        raise ConfigError([f"{file} holds no key"])
    return key


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError([f"{file} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file} holds no key"]) from error


def _require_an_address(host: str) -> None:
    """The other nodes connect to the address that this one listens on."""
    if is_unspecified(host):
        raise ConfigError([f"host is {host}, which is no address that other nodes can connect to; name one"])
