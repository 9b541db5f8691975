"""`roadstead cluster`: a whole cluster of processes on this machine, and what other terminals do with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from base import log, loop
from base.clock import SystemClock
from base.errors import ConfigError, NotFound, PeerUnavailable
from base.service import stop_signals
from roadstead.cli.common import data_option, json_option, print_json, print_table
from roadstead.cluster.child import Seen, State
from roadstead.cluster.control import Asked, ask
from roadstead.cluster.files import ClusterFiles
from roadstead.cluster.plan import Counts, made_plan
from roadstead.cluster.supervisor import CONSUL, SIGNALS, Cluster, Supervisor
from roadstead.cluster.view import ALL, LogView
from roadstead.consul import ConsulAgent
from roadstead.deployment import DataFolder

__all__ = ["command"]

ASK_DEADLINE_S = 5.0
CHANGE_DEADLINE_S = 90.0
"""How long a node may take to start, or to send its clients elsewhere and stop."""
END_DEADLINE_S = 120.0
LOOK_S = 0.1
"""Of a table that goes elsewhere than to a terminal."""
_COUNT = click.IntRange(1, 64)
_NAME = click.argument("name")


@click.group("cluster")
def command() -> None:
    """Run a whole cluster on this machine: Consul and a process a node, as in production. For trying and testing."""


@command.command("up")
@click.option("--status", type=_COUNT, default=3, show_default=True, help="Status nodes.")
@click.option("--access", type=_COUNT, default=2, show_default=True, help="Access nodes.")
@click.option("--im", type=_COUNT, default=2, show_default=True, help="Processes of the message services.")
@click.option("--scheduler", type=_COUNT, default=2, show_default=True, help="Schedulers.")
@click.option(
    "--tls/--no-tls", default=True, show_default=True, help="Mutual TLS between the nodes, by a CA of its own."
)
@click.option("--restart/--no-restart", default=True, show_default=True, help="Start again what ends by itself.")
@click.option("--consul", type=click.Path(path_type=Path), help="The program to use. [default: `consul` on PATH]")
@click.option(
    "--set", "flags", multiple=True, metavar="SECTION.FIELD=VALUE", help="Override one setting of all; repeatable."
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@data_option
@json_option
def up(
    *,
    tls: bool,
    restart: bool,
    consul: Path | None,
    flags: tuple[str, ...],
    log_level: str,
    log_format: str,
    data: DataFolder,
    as_json: bool,
    **counts: int,
) -> None:
    """Run a cluster until Ctrl-C, and show the logs of all processes as one.

    Everything that lasts is in the data folder. In another terminal, `roadstead cluster ps`, `kill`, `stop` and `start`
    look at the processes and handle them; all other commands work against the cluster with the same --data.
    """
    log.configure(level=log_level, as_json=log_format == "json")
    data.claim()
    try:
        files = ClusterFiles(data)
        plan = made_plan(Counts(**counts), has_tls=tls, former=files.former_plan())
        agent = ConsulAgent(
            folder=files.consul, name=CONSUL, program=consul, log_level="ERR" if log_level == "error" else "WARN"
        )
        files.write(plan, data.make_secrets(), consul_url=agent.url, log_level=log_level, log_format=log_format)
        names = [CONSUL, *(node.name for node in plan.nodes)]
        view = LogView(files.logs, names, stream=sys.stderr, as_json=log_format == "json")
        supervisor = Supervisor(
            files,
            plan,
            agent,
            view=view,
            flags=[part for flag in flags for part in ("--set", flag)],
            restarts=restart,
        )

        def ready(cluster: Cluster) -> None:
            if as_json:
                print_json(cluster)
            else:
                _show(cluster.nodes)
                click.secho(_hints(data), dim=True)

        try:
            loop.run(_run(supervisor, ready))
        finally:
            view.close()
    finally:
        data.release()


async def _run(supervisor: Supervisor, ready: Callable[[Cluster], None]) -> None:
    stop = asyncio.Event()
    with stop_signals(stop):
        await supervisor.run(on_ready=ready, stop=stop)


def _hints(data: DataFolder) -> str:
    folder = "" if data.path == Path("roadstead-data") else f" --data {data.path}"
    return (
        f"\nIn another terminal:  roadstead chat --user alice --to bob{folder}\n"
        f"                      roadstead cluster ps{folder}\n"
        f"API key for curl:     {data.path / 'api-key'}\n"
        "Stop with Ctrl-C."
    )


@command.command("ps")
@data_option
@json_option
def ps(data: DataFolder, as_json: bool) -> None:
    """List the processes of a cluster: how each is, where it listens, what it uses."""
    nodes = _ask(data, Asked("list"))
    if as_json:
        print_json(nodes)
    else:
        _show(nodes)


@command.command("kill")
@_NAME
@click.option("--signal", "number", type=click.Choice(SIGNALS), default="KILL", show_default=True)
@data_option
def kill(name: str, number: str, data: DataFolder) -> None:
    """Send a signal to one process: KILL ends it as a power cut would, STOP makes it hang, CONT go on."""
    _ask(data, Asked("signal", name, number))


@command.command("start")
@_NAME
@data_option
def start(name: str, data: DataFolder) -> None:
    """Start a process that was stopped, or has ended, and wait until it is ready."""
    _ask(data, Asked("start", name), deadline_s=CHANGE_DEADLINE_S)


@command.command("stop")
@click.argument("name", required=False)
@data_option
def stop(name: str | None, data: DataFolder) -> None:
    """Stop one process in an orderly way, or the whole cluster, and wait until that is done."""
    if name is not None:
        _ask(data, Asked("stop", name), deadline_s=CHANGE_DEADLINE_S)
        return
    _ask(data, Asked("end"))
    clock = SystemClock()
    give_up = clock.stopwatch() + END_DEADLINE_S
    while clock.stopwatch() < give_up:
        if data.is_free():
            return
        asyncio.run(asyncio.sleep(LOOK_S))
    raise PeerUnavailable(f"the cluster in {data.path} did not end within {END_DEADLINE_S:g} s")


@command.command("logs")
@click.argument("name", default=ALL)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=200, show_default=True, help="How many of the last lines."
)
@data_option
def logs(name: str, follow: bool, lines: int, data: DataFolder) -> None:
    """Show what one process wrote, or all: the last lines."""
    file = ClusterFiles(data).logs / f"{name}.log"
    if not file.is_file():
        raise NotFound(f"there is no log {file}")
    tail = shutil.which("tail")
    if tail is None:
        raise ConfigError(["there is no `tail` on PATH"])
    sys.stdout.flush()
    os.execv(tail, [tail, "-n", str(lines), *(["-F"] if follow else []), str(file)])  # noqa: S606 - a program of ours


def _ask(data: DataFolder, asked: Asked, *, deadline_s: float = ASK_DEADLINE_S) -> list[Seen]:
    return ask(ClusterFiles(data).folder, asked, deadline_s=deadline_s)


def _show(nodes: list[Seen]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("node", "state", "process", "restarts", "up", "memory", "CPU", "address", "for clients"):
        table.add_column(column, justify="right" if column in {"restarts", "up", "memory", "CPU"} else "left")
    styles = {State.READY: "green", State.STOPPED: "dim", State.DEAD: "red"}
    for node in nodes:
        use = node.usage
        table.add_row(
            node.name,
            Text(node.state, style=styles.get(node.state, "yellow")),
            str(node.pid or ""),
            str(node.restarts),
            f"{node.uptime_s:.0f} s" if node.pid else "",
            f"{use.resident_bytes / 1e6:.0f} MB" if use is not None else "",
            f"{use.cpu_s:.1f} s" if use is not None else "",
            node.url,
            node.client_url or "",
        )
    print_table(table)
