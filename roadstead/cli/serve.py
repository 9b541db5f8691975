"""`roadstead status serve`: one status node as a process of its own."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from base import log, loop
from base.errors import ConfigError, PeerUnavailable
from roadstead.cli.common import config_options, data_option, json_option, load_config, print_json
from roadstead.deployment import DataFolder

if TYPE_CHECKING:
    from roadstead.joined import Joined, Place

__all__ = ["serve"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _name(_context: click.Context, _param: click.Parameter, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no name; 1 to 64 letters, digits and . _ - make one, such as status-6")
    return value


def _url(_context: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    wrong = click.BadParameter(f"{value!r} is no address such as http://10.0.0.1:8709")
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise wrong from None
    is_base = parts.path in {"", "/"} and not parts.query and not parts.fragment and value.isprintable()
    if not is_base or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise wrong
    return value.rstrip("/")


@click.command("serve")
@click.option("--name", required=True, callback=_name, help="Name of the node, unique in the system: status-6.")
@data_option
@click.option("--join", callback=_url, metavar="URL", help="Join the system whose registry is here, without --data.")
@click.option("--peer-key-file", type=click.Path(path_type=Path), help="With --join: file with the system's peer key.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="With --join: file with the API key to accept.")
@config_options
@click.option("--host", help="Address to listen on, at which the other nodes reach this one; short for up.host.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, show_default=True, help="0 picks a free one.")
@json_option
@click.pass_context
def serve(
    context: click.Context,
    *,
    name: str,
    data: DataFolder,
    join: str | None,
    peer_key_file: Path | None,
    api_key_file: Path | None,
    file: Path | None,
    flags: tuple[str, ...],
    host: str | None,
    port: int,
    as_json: bool,
) -> None:
    """Run one more status node, which joins a system that `roadstead up` runs.

    It owns nothing until `roadstead status resize` gives it something. Stop it with Ctrl-C.
    """
    from roadstead.joined import Place, run_status_node

    if join is None and (peer_key_file or api_key_file):
        raise click.UsageError("--peer-key-file and --api-key-file go with --join")
    if join is not None and peer_key_file is None:
        raise click.UsageError("--join needs --peer-key-file, such as the file peer-key of the system's data folder")
    if join is not None and context.get_parameter_source("data") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--data and --join name two systems; give one of them")
    if host is not None:
        flags = (*flags, f"up.host={host}")
    config = load_config(file, flags)
    _require_an_address(config.up.host)
    if join is None:
        place = _of_folder(data, name, port)
    else:
        assert peer_key_file is not None
        api_key = _key(api_key_file) if api_key_file is not None else None
        place = Place(registry=join, peer_key=_key(peer_key_file), api_key=api_key, name=name, port=port)
    log.configure(level=config.log.level, as_json=config.log.format == "json")

    def ready(joined: Joined) -> None:
        if as_json:
            print_json(joined)
        else:
            click.echo(f"{joined.name} is ready at {joined.url}, process {joined.pid}")

    loop.run(run_status_node(config, place, on_ready=ready))


def _of_folder(data: DataFolder, name: str, port: int) -> Place:
    """A place in the system that runs from a folder."""
    from roadstead.joined import Place

    registry = next(iter(data.endpoints().registry.values()), None)
    if registry is None:
        raise PeerUnavailable(
            f"the system of {data.path} does not share its registry; start it again with this version"
        )
    secrets = data.secrets()
    return Place(registry=registry, peer_key=secrets.peer_key, api_key=secrets.api_key, name=name, port=port)


def _key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError([f"{file} cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file} holds no key"]) from error
    if not key or not key.isprintable() or " " in key:
        raise ConfigError([f"{file} holds no key"])
    return key


def _require_an_address(host: str) -> None:
    """The other nodes connect to the address that this one listens on."""
    try:
        is_none = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        is_none = False
    if is_none:
        raise ConfigError([f"host is {host}, which is no address that other nodes can connect to; name one"])
