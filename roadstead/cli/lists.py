"""`roadstead lists`: the named lists of users and the like that rollouts and policies name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import click
from rich.table import Table

from base.errors import BadRequest
from roadstead.cli.common import json_option, print_json, print_table
from roadstead.cli.kinds import count
from roadstead.cli.where import Where, scheduler_call, system_options

__all__ = ["command"]

PATH = "/v1/admin/lists"


@click.group("lists")
def command() -> None:
    """Write the lists of users and the like that rollouts and policies name."""


@command.command("list")
@system_options
@json_option
def _list(where: Where, as_json: bool) -> None:
    """Show which lists there are, how long they are, and what names them."""
    listed = asyncio.run(scheduler_call(where, "GET", PATH))
    if as_json:
        print_json(listed)
        return
    table = Table("list", "values", "named by", box=None, pad_edge=False)
    for name, one in listed["lists"].items():
        size = "nobody has written it" if name in listed["missing"] else f"{one['values']:,}"
        table.add_row(name, size, ", ".join(one["used_by"]))
    print_table(table)
    for name, why in listed["unreadable"].items():
        click.echo(f"{name} cannot be read, the one before stays: {why}", err=True)


@command.command("show")
@system_options
@json_option
@click.argument("name")
def _show(where: Where, as_json: bool, name: str) -> None:
    """Print the values of a list, one a line."""
    shown = asyncio.run(scheduler_call(where, "GET", _path(name)))
    if as_json:
        print_json(shown)
        return
    for value in shown["values"]:
        click.echo(value)


@command.command("write")
@system_options
@json_option
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
def _write(where: Where, as_json: bool, name: str, file: Path) -> None:
    """Write a list anew: from a file with one value a line, or from standard input (`-`)."""
    with click.open_file(str(file), "rb") as source:
        raw = source.read()
    try:
        values = [line.strip() for line in raw.decode().split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file} is not UTF-8") from error
    written = asyncio.run(scheduler_call(where, "PUT", _path(name), values))
    print_json(written) if as_json else click.echo(f"{name}: {count(written['values'], 'value')}")


@command.command("delete")
@system_options
@json_option
@click.argument("name")
def _delete(where: Where, as_json: bool, name: str) -> None:
    """Forget a list that nothing names."""
    answer = asyncio.run(scheduler_call(where, "DELETE", _path(name)))
    print_json(answer) if as_json else click.echo(f"{name} is deleted")


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"
