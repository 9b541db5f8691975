"""`roadstead explain`: where the scheduler sends a client, stage by stage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import click
from rich.table import Table

from roadstead.cli.common import json_option, print_json, print_table
from roadstead.cli.kinds import span
from roadstead.cli.where import Where, scheduler_call, system_options

__all__ = ["command", "stages_table"]


@click.command("explain")
@click.option("--user", help="What would be decided for this user now.")
@click.option("--address", "--ip", "address", help="The client's IP address.")
@click.option("--region", help="The region that the client says it is in.")
@click.option("--platform", help="What the client runs on.")
@click.option("--app", help="Version of the client's application.")
@click.option("--device", help="Which of the user's devices.")
@click.option("--decision", help="Why this decision was made, by the id that its answer had; it must be a late one.")
@system_options
@json_option
def command(where: Where, as_json: bool, decision: str | None, **client: str | None) -> None:
    """Explain what would be decided for a user now, or why a decision was made. Nobody is sent anywhere by it."""
    given = {name: value for name, value in client.items() if value is not None}
    if decision is not None and given:
        raise click.UsageError("with --decision goes nothing else: it says who asked")
    if decision is None and "user" not in given:
        raise click.UsageError("say for which client: --user USER, or which --decision ID")
    params = given if decision is None else {"decision": decision}
    shown = asyncio.run(scheduler_call(where, "GET", "/v1/admin/explain", params=params))
    if as_json:
        print_json(shown)
        return
    click.echo(_headline(shown))
    print_table(stages_table(shown["stages"]), folds=True)


def _headline(shown: Mapping[str, Any]) -> str:
    user = shown["request"]["user"]
    when = f"{user}, {span(shown['age_ms'])} ago" if shown["decision"] else f"{user}, if asking now"
    where = ", ".join(shown["candidates"]) or "nobody"
    wait = f" in {span(shown['not_before_ms'])}" if shown["not_before_ms"] else ""
    return f"{when}: {where}{wait}"


def stages_table(stages: Iterable[Mapping[str, Any]]) -> Table:
    """Return the stages of a decision, each with what it dropped below it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for stage in stages:
        table.add_row(stage["stage"], stage["says"])
        for dropped in stage["dropped"]:
            table.add_row("", f"  {dropped}", style="dim")
    return table
