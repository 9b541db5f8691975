"""`python -m bench NAME`, `python -m bench all`, `python -m bench --list`."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from base import log
from bench.result import Options

NAMES = (
    "access_drain",
    "access_fanout",
    "access_idle",
    "access_memory",
    "access_million",
    "cluster_consul_outage",
    "cluster_scale",
    "first_message",
    "im_group",
    "im_ids",
    "im_sync",
    "im_throughput",
    "schedule_balance",
    "schedule_canary",
    "schedule_engine",
    "schedule_geo",
    "schedule_http",
    "schedule_scaleout",
    "schedule_storm",
    "status_balance",
    "status_events",
    "status_ghost",
    "status_heartbeat",
    "status_lookup",
    "status_memory",
    "status_migrate",
    "status_resize",
    "status_update",
)


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_all", is_flag=True, help="Name every benchmark.")
@click.option("--quick", is_flag=True, help="A few seconds, to prove that it runs; the figures mean little.")
@click.option("--connections", type=click.IntRange(1), help="How many connections, for benchmarks that hold them.")
def main(*, name: str | None, list_all: bool, quick: bool, connections: int | None) -> None:
    """Run one benchmark, or `all`; the last line of standard output is its result as JSON."""
    if list_all:
        for known in NAMES:
            claim = (import_module(f"bench.{known}").__doc__ or "").splitlines()[0]
            click.echo(f"{known}\t{claim}")
        return
    if name != "all" and name not in NAMES:
        raise click.UsageError(f"name one of: all, {', '.join(NAMES)}")
    log.configure(level="warning")
    for chosen in NAMES if name == "all" else (name,):
        result = import_module(f"bench.{chosen}").run(Options(quick=quick, connections=connections))
        click.echo(result.to_json())
        sys.stdout.flush()


if __name__ == "__main__":
    main()
