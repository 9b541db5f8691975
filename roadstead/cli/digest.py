"""`roadstead status digest`: do the status nodes have what the access nodes reported?

Each access node shows the digest of its own sessions, the status nodes together that of what they hold of its life.
Between a change and its beat the two differ for a moment, and so they do while a partition is handed over: a
difference counts once it lasts.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from access.api import SERVICE as ACCESS
from base.errors import RoadsteadError
from roadstead.cli.common import EXIT_FAILED, json_option, print_json, print_table
from roadstead.cli.where import Where, status_call, system_options

__all__ = ["digest"]

TRIES = 3
PAUSE_S = 2.0
NOTHING = {"entries": 0, "xor": f"{0:016x}"}


@click.command("digest")
@system_options
@json_option
def digest(where: Where, as_json: bool) -> None:
    """Compare what status nodes hold with what access nodes have. Exit code 1 if they differ at three looks."""
    compared = asyncio.run(_compare_until_equal(where))
    if as_json:
        print_json(compared)
    else:
        _show(compared)
    if not compared["is_ok"]:
        raise click.exceptions.Exit(EXIT_FAILED)


async def _compare_until_equal(where: Where) -> dict[str, Any]:
    for _ in range(TRIES - 1):
        compared = await _compare(where)
        if compared["is_ok"]:
            return compared
        await asyncio.sleep(PAUSE_S)
    return await _compare(where)


async def _compare(where: Where) -> dict[str, Any]:
    held = await status_call(where, "GET", "/v1/admin/status/digest")
    lives = {(life["node"], life["incarnation"]): life for life in held["access_nodes"]}
    rows = []
    for node, url in (await where.urls(ACCESS)).items():
        try:
            own = (await where.ask(url, "GET", "/debug/statistics"))["status_digest"]
        except RoadsteadError as error:
            rows.append({"node": node, "is_ok": False, "own": None, "held": None, "seen": str(error)})
            continue
        rows.append(_row(node, own, lives.pop((node, own["incarnation"]), NOTHING)))
    for (node, incarnation), life in lives.items():
        seen = f"life {incarnation} is over, or not of this deployment"
        rows.append({"node": node, "is_ok": False, "own": None, "held": _of(life), "seen": seen})
    is_ok = held["is_exact"] and all(row["is_ok"] for row in rows)
    return {"is_ok": is_ok, "is_exact": held["is_exact"], "unknown": held["unknown"], "access_nodes": rows}


def _row(node: str, own: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    is_ok = _of(own) == _of(held)
    return {"node": node, "is_ok": is_ok, "own": _of(own), "held": _of(held), "seen": "" if is_ok else "differs"}


def _of(life: dict[str, Any]) -> dict[str, Any]:
    return {"entries": life["entries"], "xor": life["xor"]}


def _show(compared: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "access node", "its sessions", "held by status nodes", "digest"):
        table.add_column(column)
    for row in compared["access_nodes"]:
        own, held = row["own"] or {}, row["held"] or {}
        mark = Text("OK", style="green") if row["is_ok"] else Text("bad", style="red")
        table.add_row(
            mark,
            row["node"],
            str(own.get("entries", "?")),
            str(held.get("entries", "?")),
            held.get("xor", "") if row["is_ok"] else row["seen"],
        )
    print_table(table)
    if compared["unknown"]:
        click.echo(f"did not answer: {', '.join(compared['unknown'])}")
    elif not compared["is_exact"]:
        click.echo("not every partition was counted once: a resize is under way")
