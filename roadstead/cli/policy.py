"""`roadstead policy`: by which rules the scheduler decides, and another policy that is tried in its shadow first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from base.clock import SystemClock
from roadstead.cli.common import json_option, print_json, print_table
from roadstead.cli.kinds import age, percent, span
from roadstead.cli.rollout import document_of, fail_with
from roadstead.cli.where import Where, scheduler_call, system_options
from scheduler.core.policy import parse_policy

__all__ = ["command", "difference_table"]

PATH = "/v1/admin/policy"
SHADOW = f"{PATH}/shadow"
HISTORY_SHOWN = 5

_file = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.group("policy")
def command() -> None:
    """Choose the rules by which the scheduler decides, and try others in their shadow first."""


@command.command("validate")
@json_option
@_file
def _validate(as_json: bool, file: Path) -> None:
    """Check a document, without a running system. Exit code 1, and a line for each fault, if it is not good."""
    parsed = parse_policy(file.read_bytes())
    if isinstance(parsed, tuple):
        fail_with(file, parsed)
    print_json(parsed) if as_json else click.echo(f"{parsed.name}: good")


@command.command("show")
@system_options
@json_option
def _show(where: Where, as_json: bool) -> None:
    """Show the policy in force, and who changed it last."""
    shown = asyncio.run(scheduler_call(where, "GET", PATH))
    if as_json:
        print_json(shown)
        return
    if shown["policy"]:
        print_table(_rules(shown["policy"]), folds=True)
    else:
        click.echo(shown["document"])
    if shown["unreadable"]:
        click.echo(f"cannot be read, the one before stays: {shown['unreadable']}", err=True)
    now = SystemClock().realtime()
    for line in reversed(shown["history"][-HISTORY_SHOWN:]):
        click.echo(f"{age(line['at'], now)}: {line['action']} by {line['who']}")


@command.command("set")
@system_options
@json_option
@_file
def _set(where: Where, as_json: bool, file: Path) -> None:
    """Decide by this document from now on. Exit code 1 if it is not good."""
    _put(where, PATH, file, as_json=as_json, becomes="is in force")


@command.command("reset")
@system_options
@json_option
def _reset(where: Where, as_json: bool) -> None:
    """Decide by the built-in policy again."""
    shown = asyncio.run(scheduler_call(where, "PUT", PATH, {"document": ""}))
    print_json(shown) if as_json else click.echo("the built-in policy is in force")


@command.command("shadow")
@system_options
@json_option
@_file
def _shadow(where: Where, as_json: bool, file: Path) -> None:
    """Evaluate this document beside the policy in force, and act on nothing of it. Exit code 1 if it is not good."""
    _put(where, SHADOW, file, as_json=as_json, becomes="is evaluated in the shadow")


@command.command("difference")
@system_options
@json_option
def _difference(where: Where, as_json: bool) -> None:
    """Show how the shadow policy differs, since it began."""
    shown = asyncio.run(scheduler_call(where, "GET", SHADOW))
    if as_json:
        print_json(shown)
    elif shown["difference"] is None:
        click.echo("it does not run yet")
    else:
        print_table(difference_table(shown["difference"], shown["policy"]["name"], "in force"))


@command.command("end-shadow")
@system_options
@json_option
def _end_shadow(where: Where, as_json: bool) -> None:
    """Evaluate no shadow policy any more."""
    shown = asyncio.run(scheduler_call(where, "DELETE", SHADOW))
    print_json(shown) if as_json else click.echo("there is no shadow policy any more")


def _put(where: Where, path: str, file: Path, *, as_json: bool, becomes: str) -> None:
    document = document_of(file)
    parsed = parse_policy(document)
    if isinstance(parsed, tuple):
        fail_with(file, parsed)
    shown = asyncio.run(scheduler_call(where, "PUT", path, {"document": document}))
    print_json(shown) if as_json else click.echo(f"{parsed.name} {becomes}")


def _rules(policy: dict[str, Any]) -> Table:
    table = Table(policy["name"], "strategies", "for", box=None, pad_edge=False)
    for rule in policy["rules"]:
        who = "everybody else" if rule["when"] is None else "who fulfils its condition"
        table.add_row(rule["name"], ", ".join(rule["strategies"]), who)
    return table


def difference_table(found: dict[str, Any], name: str, other: str) -> Table:
    """Return how the policy `name` differs from what stands in the column `other`; `found` is a `Difference`."""
    total = found["decisions"]
    table = Table(f"{total:,} decisions", other, f"by {name}", box=None, pad_edge=False)
    for meaning, field in (
        ("another arm", "other_arm"),
        ("another region", "other_region"),
        ("another first node", "other_first"),
        ("other candidates, or in another order", "other_candidates"),
        ("nobody instead of somebody", "nobody"),
        ("somebody instead of nobody", "somebody"),
    ):
        table.add_row(meaning, "", f"{found[field]:,} ({percent(100 * found[field] / max(1, total))})")
    table.add_row("fullest node, of the mean", f"{found['max_to_mean']:.3f}", f"{found['shadow_max_to_mean']:.3f}")
    waits = (span(found[field] / max(1, total)) for field in ("waited_ms", "shadow_waited_ms"))
    table.add_row("mean wait for a slot", *waits)
    return table
