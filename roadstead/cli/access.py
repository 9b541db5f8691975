"""`roadstead access`: which access nodes there are, and what one of them does; drain one, close a user's connections.

The scheduler knows the nodes; each is asked itself for the rest.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from base.errors import NotFound, RoadsteadError
from roadstead.api import call_api
from roadstead.cli.common import EXIT_FAILED, data_option, json_option, print_json
from roadstead.cli.serve import serve_access
from roadstead.deployment import DataFolder

__all__ = ["command"]

POLL_S = 0.5
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


@click.group("access")
def command() -> None:
    """Look at access nodes, drain them, run one more."""


command.add_command(serve_access)


class _Duration(click.ParamType[int]):
    """A time such as 60s, 5m or 500ms, in ms."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+)(ms|s|m|h)", str(value))
        if found is None:
            self.fail(f"{value!r} is no time such as 60s, 5m or 500ms", param, ctx)
        return int(found[1]) * _UNITS_MS[found[2]]


@command.command("nodes")
@data_option
@json_option
def nodes(data: DataFolder, as_json: bool) -> None:
    """List the access nodes as they last reported."""
    listed = asyncio.run(_nodes(data))
    if as_json:
        print_json(listed)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("node", "region", "clients", "memory", "lag", "state", "for clients"):
        table.add_column(column)
    for node in listed:
        table.add_row(
            node["node"],
            node["region"],
            f"{node['connections']}/{node['capacity']}",
            f"{node['resident_bytes'] / 1e6:.0f} MB",
            f"{node['loop_lag_ms']} ms",
            "draining" if node["is_draining"] else "ready",
            node["client_url"],
        )
    Console(highlight=False).print(table)


@command.command("show")
@data_option
@json_option
@click.argument("node")
def show(data: DataFolder, as_json: bool, node: str) -> None:
    """Show what one access node does, and how far its drain is."""
    shown = asyncio.run(_ask(data, node, "GET", ""))
    if as_json:
        print_json(shown)
        return
    drain = shown.pop("drain")
    for name, value in shown.items():
        click.echo(f"{name:<16}{value}")
    click.echo(f"{'drain':<16}{_progress(drain)}")


@command.command("drain")
@data_option
@json_option
@click.option(
    "--over", "over_ms", type=_Duration(), default="60s", show_default=True, help="Tell all within this time."
)
@click.option(
    "--grace", "grace_ms", type=_Duration(), help="How long each client may take to go. [default: configured]"
)
@click.option("--no-wait", is_flag=True, help="Return once it has begun.")
@click.argument("node")
def drain(data: DataFolder, as_json: bool, over_ms: int, grace_ms: int | None, no_wait: bool, node: str) -> None:
    """Send all clients of a node elsewhere, at an even pace, and take no new ones.

    Waits until it is done, through a pause too. Ctrl-C ends the waiting, not the drain: see `roadstead access abort`.
    Exit code 1 if somebody aborts it meanwhile.
    """
    order = {"over_ms": over_ms} | ({} if grace_ms is None else {"grace_ms": grace_ms})
    asyncio.run(_drain(data, node, order, as_json=as_json, waits=not no_wait))


def _order(name: str, meaning: str) -> None:
    @command.command(name, help=meaning)
    @data_option
    @json_option
    @click.argument("node")
    def order(data: DataFolder, as_json: bool, node: str) -> None:
        shown = asyncio.run(_ask(data, node, "POST", f"/{name}"))
        print_json(shown) if as_json else click.echo(_progress(shown["drain"]))


_order("pause", "Pause the drain of a node: nobody more is told to go.")
_order("resume", "Go on with the drain of a node.")
_order("abort", "Stop the drain of a node, which takes clients again.")


@command.command("kick")
@data_option
@json_option
@click.option("--device", help="Only the connections of this device.")
@click.option("--reconnect", is_flag=True, help="The clients may come back by themselves.")
@click.argument("user")
def kick(data: DataFolder, as_json: bool, device: str | None, reconnect: bool, user: str) -> None:
    """Close a user's connections, at whichever nodes they are. Exit code 1 if a node could not be asked."""
    kicked, silent = asyncio.run(_kick(data, {"user": user, "device": device, "reconnect": reconnect}))
    if as_json:
        print_json({"user": user, "kicked": kicked, "did_not_answer": silent})
    else:
        click.echo(f"{kicked} connection{'' if kicked == 1 else 's'} of {user} closed")
    if silent:
        click.echo(f"did not answer: {', '.join(silent)}", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)


# ---------------------------------------------------------------- asking


async def _nodes(data: DataFolder) -> list[dict[str, Any]]:
    url = next(iter(data.endpoints().scheduler.values()))
    answer = await call_api("GET", f"{url}/v1/admin/access/nodes", credential=data.secrets().api_key)
    listed: list[dict[str, Any]] = answer["nodes"]
    return listed


async def _ask(data: DataFolder, node: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    listed = await _nodes(data)
    url = next((one["url"] for one in listed if one["node"] == node), None)
    if url is None:
        known = ", ".join(one["node"] for one in listed)
        raise NotFound(f"there is no access node {node}; there are: {known or 'none'}")
    shown: dict[str, Any] = await call_api(
        method, f"{url}/v1/admin/access{path}", credential=data.secrets().api_key, body=body
    )
    return shown


async def _drain(data: DataFolder, node: str, order: dict[str, int], *, as_json: bool, waits: bool) -> None:
    shown = await _ask(data, node, "POST", "/drain", order)
    while True:
        if as_json:
            print_json(shown["drain"])
        else:
            click.echo(_progress(shown["drain"]))
        if not waits or shown["drain"]["state"] == "done":
            return
        if shown["drain"]["state"] == "none":
            click.echo("somebody aborted it", err=True)
            raise click.exceptions.Exit(EXIT_FAILED)
        await asyncio.sleep(POLL_S if shown["drain"]["total"] < 100 else 4 * POLL_S)
        shown = await _ask(data, node, "GET", "")


async def _kick(data: DataFolder, order: dict[str, Any]) -> tuple[int, list[str]]:
    kicked, silent = 0, []
    for node in await _nodes(data):
        try:
            url = f"{node['url']}/v1/admin/access/kick"
            answer = await call_api("POST", url, credential=data.secrets().api_key, body=order)
        except RoadsteadError:
            silent.append(node["node"])
        else:
            kicked += answer["kicked"]
    return kicked, silent


def _progress(drain: dict[str, Any]) -> str:
    if drain["state"] == "none":
        return "none"
    eta = f", done in at most {drain['eta_ms'] / 1000:.0f} s" if drain["eta_ms"] else ""
    return (
        f"{drain['state']}: {drain['arrived'] + drain['departed']} of {drain['total']} went, {drain['waiting']} were "
        f"told, {drain['pending']} are to be told, {drain['closed']} were closed" + eta
    )
