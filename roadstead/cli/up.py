"""`roadstead up`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from base import log, loop
from roadstead.cli.common import config_options, data_option, json_option, load_config, print_json, print_table
from roadstead.deployment import DataFolder, Endpoints
from roadstead.up import run_up

__all__ = ["command"]


@click.command("up")
@config_options
@data_option
@click.option("--port", type=int, help="Short for --set up.port=PORT; 0 picks free ports.")
@json_option
def command(file: Path | None, flags: tuple[str, ...], data: DataFolder, port: int | None, as_json: bool) -> None:
    """Run the whole system in one process: scheduler, status nodes, access nodes, message services.

    Everything that lasts is in the data folder. Stop it with Ctrl-C.
    """
    if port is not None:
        flags = (*flags, f"up.port={port}")
    config = load_config(file, flags)
    log.configure(level=config.log.level, as_json=config.log.format == "json")

    def ready(endpoints: Endpoints) -> None:
        if as_json:
            print_json(endpoints)
        else:
            _show(endpoints, data)

    loop.run(run_up(config, data, on_ready=ready))


def _show(endpoints: Endpoints, data: DataFolder) -> None:
    table = Table(title="Roadstead is up", title_justify="left", box=None, pad_edge=False)
    table.add_column("node", style="bold")
    table.add_column("address")
    table.add_column("try")
    for name, url in endpoints.nodes().items():
        hint = {
            "scheduler": "/v1/access",
            "im": "/v1/messages",
            "status": "/v1/users/USER/status",
            "registry": "/debug/statistics",
        }
        clients = endpoints.clients.get(name)
        table.add_row(name, url, f"clients: {clients}" if clients else hint[name.split("-")[0]])
    print_table(table)
    folder = "" if data.path == Path("roadstead-data") else f" --data {data.path}"
    click.echo(f"\nIn another terminal:  roadstead chat --user alice --to bob{folder}")
    click.echo(f"API key for curl:     {data.path / 'api-key'}")
    click.secho("Stop with Ctrl-C.", dim=True)
