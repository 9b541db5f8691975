"""`roadstead doctor`: is it running, is it well, and what to do if not."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from base.errors import LimitExceeded, PeerUnavailable, RoadsteadError
from base.ids import new_uuid
from roadstead.api import call_api
from roadstead.cli.common import EXIT_FAILED, data_option, json_option, print_json
from roadstead.client import Client, Incoming, Position
from roadstead.deployment import DataFolder, Endpoints, Secrets

__all__ = ["command"]

PROBE_USER = "roadstead-doctor"
AGREE_TRIES = 20
AGREE_PAUSE_S = 0.1
FILES_WANTED = 16_384
LEASES_ADVICE = "bring the registry back, or the status nodes that are away; until then nothing can be resized"
FILES_ADVICE = f"raise it: `ulimit -n {FILES_WANTED}`; each connection takes one"


class Finding(msgspec.Struct, frozen=True):
    """One check: what was looked at, whether it is well, what was seen, what to do if it is not.

    A warning is ok, since everything is served, and there is something to do all the same.
    """

    check: str
    is_ok: bool
    seen: str
    advice: str = ""
    is_warning: bool = False


class Degraded(RoadsteadError):
    """Everything is served, and something that it stands on is away."""


@click.command("doctor")
@data_option
@json_option
def command(data: DataFolder, as_json: bool) -> None:
    """Check a running system: every node, one table, one message all the way. Exit code 1 if anything is wrong.

    A warning is not wrong: everything is served.
    """
    findings = asyncio.run(_examine(data.endpoints(), data.secrets()))
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    if not all(finding.is_ok for finding in findings):
        raise click.exceptions.Exit(EXIT_FAILED)


async def _examine(endpoints: Endpoints, secrets: Secrets) -> list[Finding]:
    findings = [await _checked("open files allowed", partial(_file_limit, endpoints.pid), FILES_ADVICE)]
    for name, url in endpoints.nodes().items():
        findings.append(await _checked(f"{name} is ready", partial(_ready, url), "start it: `roadstead up`"))
    findings.append(
        await _checked("status nodes agree on the table", partial(_tables, endpoints), "look at the status nodes' logs")
    )
    findings.append(await _checked("status nodes have a leader", partial(_leases, endpoints), LEASES_ADVICE))
    findings.append(
        await _checked("a message arrives", partial(_round_trip, endpoints, secrets), "see the failed checks above")
    )
    return findings


async def _checked(check: str, look: Callable[[], Coroutine[Any, Any, str]], advice: str) -> Finding:
    try:
        return Finding(check, is_ok=True, seen=await look())
    except Degraded as warning:
        return Finding(check, is_ok=True, seen=str(warning), advice=advice, is_warning=True)
    except (RoadsteadError, TimeoutError) as error:
        return Finding(check, is_ok=False, seen=str(error) or type(error).__name__, advice=advice)


async def _file_limit(pid: int) -> str:
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except ProcessLookupError as error:
        raise PeerUnavailable(f"process {pid} is gone") from error
    except PermissionError:
        return f"process {pid} belongs to another user; not looked at"
    if soft < FILES_WANTED:
        raise LimitExceeded(f"{soft} for process {pid}", what="open_files")
    return f"{soft} for process {pid}"


async def _ready(url: str) -> str:
    answer = await call_api("GET", f"{url}/readyz")
    if answer["status"] != "ready":
        raise RoadsteadError(f"{url} is {answer['status']}")
    return url


async def _tables(endpoints: Endpoints) -> str:
    """Every node gets to the newest table that any of them had. During a resize each is a little behind at times."""
    nodes = await _status_nodes(endpoints)
    newest = max(node["epoch"] for node in nodes)
    for _ in range(AGREE_TRIES):
        if all(node["epoch"] >= newest for node in nodes):
            break
        await asyncio.sleep(AGREE_PAUSE_S)
        nodes = await _status_nodes(endpoints)
    else:
        raise RoadsteadError(f"epochs differ: {sorted({node['epoch'] for node in nodes})}")
    partitions = sum(node["partitions"] for node in nodes)
    owners = sum(node["partitions"] > 0 for node in nodes)
    resizing = "; a resize is under way" if any(node.get("moves") for node in nodes) else ""
    return f"epoch {newest}, {partitions} partitions over {owners} nodes{resizing}"


async def _leases(endpoints: Endpoints) -> str:
    """Every node that owns partitions answers by the leader's grant. A change of the leader takes a moment."""
    for _ in range(AGREE_TRIES):
        nodes = [node for node in await _status_nodes(endpoints) if "granter" in node]
        granters = {node["node"]: node["granter"] for node in nodes if node["partitions"]}
        unled = [node for node, granter in granters.items() if granter != "leader"]
        away = [node["node"] for node in nodes if not node["is_registry_reachable"]]
        if not nodes:
            return "this status backend needs none"
        if not unled and not away:
            return f"{next((node['node'] for node in nodes if node['is_leading']), 'a node of another process')} leads"
        await asyncio.sleep(AGREE_PAUSE_S)
    silent = [node for node in unled if granters[node] == "nobody"]
    if silent:
        raise RoadsteadError(f"{', '.join(silent)}: may not answer, by the leader or by a majority of the nodes")
    seen = [f"{', '.join(unled)}: by the grants of a majority of the nodes only"] if unled else []
    seen += [f"{', '.join(away)}: cannot read the registry"] if away else []
    raise Degraded("; ".join(seen))


async def _status_nodes(endpoints: Endpoints) -> list[Any]:
    return [await call_api("GET", f"{url}/debug/statistics") for url in endpoints.status.values()]


async def _round_trip(endpoints: Endpoints, secrets: Secrets) -> str:
    """A message to oneself: scheduler, access node, status cluster, store and push all take part."""
    arrived = asyncio.Event()
    probe_id = new_uuid()

    async def take(incoming: Incoming) -> None:
        if incoming.data["client_msg_id"] == probe_id:
            arrived.set()

    (im,) = endpoints.im.values()
    page = await call_api("GET", f"{im}/v1/users/{PROBE_USER}/timeline", credential=secrets.api_key)
    client = Client(
        next(iter(endpoints.scheduler.values())),
        user=PROBE_USER,
        credential=secrets.api_key,
        on_message=take,
        device=probe_id,
        position=Position(page["epoch"], page["head"]),  # what earlier examinations sent is of no interest
    )
    try:
        async with asyncio.timeout(10):
            await client.connect()
            await client.send(PROBE_USER, "doctor", client_msg_id=probe_id)
            await arrived.wait()
    finally:
        await client.close()
    return "sent, stored, pushed and received"


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "seen", "what to do"):
        table.add_column(column)
    for finding in findings:
        mark = "[yellow]warn[/]" if finding.is_warning else "[green]ok[/]" if finding.is_ok else "[red]bad[/]"
        table.add_row(mark, finding.check, finding.seen, finding.advice)
    Console().print(table)
