"""`roadstead access`: which access nodes there are, and what one of them does; drain one, cordon one, even out all.

The scheduler knows the nodes and takes orders about all of them; each is asked itself for the rest.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.table import Table

from base.errors import NotFound, RoadsteadError
from roadstead.cli.common import EXIT_FAILED, config_options, json_option, print_json, print_table
from roadstead.cli.kinds import TIME, count, percent
from roadstead.cli.rebalance import command as rebalance
from roadstead.cli.roles import run_role_of_group
from roadstead.cli.serve import serve_access
from roadstead.cli.where import Where, scheduler_call, system_options

__all__ = ["command"]

POLL_S = 0.5
NODES = "/v1/admin/access/nodes"


@click.group("access", invoke_without_command=True)
@config_options
@json_option
@click.pass_context
def command(context: click.Context, /, *, file: Path | None, flags: tuple[str, ...], as_json: bool) -> None:
    """Look at access nodes, drain, cordon and rebalance them; with --config and no command: run one."""
    run_role_of_group(context, "access", file, flags, as_json=as_json)


command.add_command(serve_access)
command.add_command(rebalance)


@command.command("nodes")
@system_options
@json_option
def nodes(where: Where, as_json: bool) -> None:
    """List the access nodes as they last reported, and the arms of rollouts with their shares."""
    listed = asyncio.run(scheduler_call(where, "GET", NODES))
    if as_json:
        print_json(listed["nodes"])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("node", "region", "clients", "arm", "version", "weight", "memory", "lag", "state", "for clients"):
        table.add_column(column)
    for node in listed["nodes"]:
        table.add_row(
            node["node"],
            node["region"],
            f"{node['connections']}/{node['capacity']}",
            node["arm"],
            node["version"],
            str(node["weight"]),
            f"{node['resident_bytes'] / 1e6:.0f} MB",
            f"{node['loop_lag_ms']} ms",
            _state(node),
            node["client_url"],
        )
    print_table(table)
    for line in _overview(listed):
        click.echo(line)


def _state(node: dict[str, Any]) -> str:
    cordon = node["cordon"]
    if cordon is not None and not node["is_draining"]:
        return f"cordoned{': ' + cordon['reason'] if cordon['reason'] else ''}"
    return node["left_out"] or "ready"


def _overview(listed: dict[str, Any]) -> list[str]:
    """Return what there is to say beside the nodes: nothing, where nothing is rolled out and all is well."""
    lines = []
    if len(listed["arms"]) > 1:
        for name, arm in listed["arms"].items():
            assigned = arm["assigned"]
            lines.append(
                f"{name}: {count(arm['nodes'], 'node')}, {percent(arm['live_percent'])} of live connections, of new "
                f"ones {percent(assigned['minute_percent'])} in the last minute, {percent(assigned['percent'])} in all"
            )
    if listed["is_panic"]:
        lines.append(
            f"panic: {', '.join(listed['vanished'])} vanished at once and still get clients; "
            "if they are dead: `roadstead access accept-loss`"
        )
    return lines


@command.command("cordon")
@system_options
@json_option
@click.option("--reason", default="", help="Why, for others who look.")
@click.argument("node")
def cordon(where: Where, as_json: bool, reason: str, node: str) -> None:
    """Send no newcomers to a node. Its clients stay."""
    ordered = asyncio.run(scheduler_call(where, "POST", f"{NODES}/{quote(node, safe='')}/cordon", {"reason": reason}))
    print_json(ordered) if as_json else click.echo(f"{node} gets no newcomers until it is uncordoned")


@command.command("uncordon")
@system_options
@json_option
@click.argument("node")
def uncordon(where: Where, as_json: bool, node: str) -> None:
    """Send newcomers to a node again."""
    ordered = asyncio.run(scheduler_call(where, "POST", f"{NODES}/{quote(node, safe='')}/uncordon"))
    print_json(ordered) if as_json else click.echo(f"{node} is not cordoned")


@command.command("accept-loss")
@system_options
@json_option
def accept_loss(where: Where, as_json: bool) -> None:
    """In panic: the nodes that vanished at once are dead, send nobody there any more."""
    done = asyncio.run(scheduler_call(where, "POST", "/v1/admin/access/panic/accept"))
    print_json(done) if as_json else click.echo(f"given up: {', '.join(done['lost']) or 'none'}")


@command.command("show")
@system_options
@json_option
@click.argument("node")
def show(where: Where, as_json: bool, node: str) -> None:
    """Show what one access node does, and how far its drain is."""
    shown = asyncio.run(_ask(where, node, "GET", ""))
    if as_json:
        print_json(shown)
        return
    drain = shown.pop("drain")
    for name, value in shown.items():
        click.echo(f"{name:<16}{value}")
    click.echo(f"{'drain':<16}{_progress(drain)}")


@command.command("drain")
@system_options
@json_option
@click.option("--over", "over_ms", type=TIME, default="60s", show_default=True, help="Tell all within this time.")
@click.option("--grace", "grace_ms", type=TIME, help="How long each client may take to go. [default: configured]")
@click.option("--no-wait", is_flag=True, help="Return once it has begun.")
@click.argument("node")
def drain(where: Where, as_json: bool, over_ms: int, grace_ms: int | None, no_wait: bool, node: str) -> None:
    """Send all clients of a node elsewhere, at an even pace, and take no new ones.

    Waits until it is done, through a pause too. Ctrl-C ends the waiting, not the drain: see `roadstead access abort`.
    Exit code 1 if somebody aborts it meanwhile.
    """
    order = {"over_ms": over_ms} | ({} if grace_ms is None else {"grace_ms": grace_ms})
    asyncio.run(_drain(where, node, order, as_json=as_json, waits=not no_wait))


def _order(name: str, meaning: str) -> None:
    @command.command(name, help=meaning)
    @system_options
    @json_option
    @click.argument("node")
    def order(where: Where, as_json: bool, node: str) -> None:
        shown = asyncio.run(_ask(where, node, "POST", f"/{name}"))
        print_json(shown) if as_json else click.echo(_progress(shown["drain"]))


_order("pause", "Pause the drain of a node: nobody more is told to go.")
_order("resume", "Go on with the drain of a node.")
_order("abort", "Stop the drain of a node, which takes clients again.")


@command.command("kick")
@system_options
@json_option
@click.option("--device", help="Only the connections of this device.")
@click.option("--reconnect", is_flag=True, help="The clients may come back by themselves.")
@click.argument("user")
def kick(where: Where, as_json: bool, device: str | None, reconnect: bool, user: str) -> None:
    """Close a user's connections, at whichever nodes they are. Exit code 1 if a node could not be asked."""
    kicked, failed = asyncio.run(_kick(where, {"user": user, "device": device, "reconnect": reconnect}))
    if as_json:
        print_json({"user": user, "kicked": kicked, "failed": failed})
    else:
        click.echo(f"{kicked} connection{'' if kicked == 1 else 's'} of {user} closed")
    for name, reason in failed.items():
        click.echo(f"not at {name}: {reason}", err=True)
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


# ---------------------------------------------------------------- asking


async def _nodes(where: Where) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await scheduler_call(where, "GET", NODES))["nodes"]
    return listed


async def _ask(where: Where, node: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    listed = await _nodes(where)
    url = next((one["url"] for one in listed if one["node"] == node), None)
    if url is None:
        known = ", ".join(one["node"] for one in listed)
        raise NotFound(f"there is no access node {node}; there are: {known or 'none'}")
    shown: dict[str, Any] = await where.ask(url, method, f"/v1/admin/access{path}", body)
    return shown


async def _drain(where: Where, node: str, order: dict[str, int], *, as_json: bool, waits: bool) -> None:
    shown = await _ask(where, node, "POST", "/drain", order)
    while True:
        if as_json:
            print_json(shown["drain"])
        else:
            click.echo(_progress(shown["drain"]))
        if not waits:
            return
        if shown["drain"]["state"] == "done":
            _say_if_safe(await _ask(where, node, "GET", ""), as_json=as_json)
            return
        if shown["drain"]["state"] == "none":
            click.echo("somebody aborted it", err=True)
            raise click.exceptions.Exit(EXIT_FAILED)
        await asyncio.sleep(POLL_S if shown["drain"]["total"] < 100 else 4 * POLL_S)
        shown = await _ask(where, node, "GET", "")


def _say_if_safe(shown: dict[str, Any], *, as_json: bool) -> None:
    """Say that the node may be stopped, or exit with 1: only a node that says itself that it is empty may."""
    if shown["connections"] or not shown["is_draining"]:
        left = shown["connections"]
        click.echo(f"{shown['node']} is not safe to remove: {left} connections are open", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)
    if not as_json:
        click.echo(f"{shown['node']} is empty and takes nobody: safe to remove")


async def _kick(where: Where, order: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """Return how many were closed, and which nodes could not be asked, and why."""
    kicked, failed = 0, dict[str, str]()
    for node in await _nodes(where):
        try:
            answer = await where.ask(node["url"], "POST", "/v1/admin/access/kick", order)
        except RoadsteadError as error:
            failed[node["node"]] = str(error)
        else:
            kicked += answer["kicked"]
    return kicked, failed


def _progress(drain: dict[str, Any]) -> str:
    if drain["state"] == "none":
        return "none"
    eta = f", done in at most {drain['eta_ms'] / 1000:.0f} s" if drain["eta_ms"] else ""
    return (
        f"{drain['state']}: {drain['arrived'] + drain['departed']} of {drain['total']} went, {drain['waiting']} were "
        f"told, {drain['pending']} are to be told, {drain['closed']} were closed" + eta
    )
