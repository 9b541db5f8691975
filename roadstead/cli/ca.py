"""`roadstead ca`: a certificate authority in a folder, for the TLS between nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table

from base.clock import SystemClock, Timestamp
from roadstead.ca import CA_DAYS, NODE_DAYS, CertificateAuthority, Issued
from roadstead.cli.common import json_option, print_json, print_table

__all__ = ["command"]

DAY_MS = 86_400_000
SOON_DAYS = 14
"""A certificate that ends within so many days is shown to be due."""

_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@click.group("ca")
def command() -> None:
    """Make certificates for the TLS between nodes."""


@command.command("init")
@_folder
@click.option(
    "--days", type=click.IntRange(1, 36_500), default=CA_DAYS, show_default=True, help="How long the CA is valid."
)
@json_option
def init(folder: Path, days: int, as_json: bool) -> None:
    """Make a CA in DIR: ca.pem, which every node trusts, and ca.key, which you keep."""
    authority = CertificateAuthority.create(folder, now=_now(), days=days)
    made = authority.listed()[0]
    if as_json:
        print_json(_shown(made))
    else:
        click.echo(f"{made.certificate} is valid until {_day(made)}; keep {made.key} away from the nodes")


@command.command("issue")
@_folder
@click.argument("name")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="DNS name or address under which the node is reached; repeatable. localhost and 127.0.0.1 are there anyway.",
)
@click.option(
    "--days", type=click.IntRange(1, 3_650), default=NODE_DAYS, show_default=True, help="How long it is valid."
)
@json_option
def issue(folder: Path, name: str, hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make the certificate of the node NAME, or a new one: a node that runs loads it."""
    made = CertificateAuthority.open(folder).issue(name, now=_now(), hosts=hosts, days=days)
    if as_json:
        print_json(_shown(made))
    else:
        click.echo(f"{made.certificate} and {made.key} are valid until {_day(made)}, for {', '.join(made.hosts)}")


@command.command("show")
@_folder
@json_option
def show(folder: Path, as_json: bool) -> None:
    """List the certificates in DIR, and when they end."""
    listed = CertificateAuthority.open(folder).listed()
    if as_json:
        print_json([_shown(made) for made in listed])
        return
    now = _now()
    table = Table("name", "ends", "in days", "for", box=None, pad_edge=False)
    for made in listed:
        days = (made.not_after - now) // DAY_MS
        style = "red" if days < 0 else "yellow" if days < SOON_DAYS else ""
        table.add_row(made.name, _day(made), str(days), ", ".join(made.hosts), style=style)
    print_table(table)


def _now() -> Timestamp:
    return SystemClock().realtime()


def _day(made: Issued) -> str:
    return f"{datetime.fromtimestamp(made.not_after / 1000, UTC):%Y-%m-%d}"


def _shown(made: Issued) -> dict[str, object]:
    return {
        "name": made.name,
        "hosts": made.hosts,
        "serial": made.serial,
        "not_after": made.not_after,
        "certificate": str(made.certificate),
        "key": str(made.key),
    }
