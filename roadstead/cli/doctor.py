"""`roadstead doctor`: is it running, is it well, and what to do if not."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from functools import partial

import click
from rich.table import Table
from rich.text import Text

from base.clock import SystemClock
from roadstead.cli.common import EXIT_FAILED, json_option, print_json, print_table
from roadstead.cli.where import Where, system_options
from roadstead.doctor import nodes, whole
from roadstead.doctor.findings import Finding, found
from roadstead.doctor.message import round_trip
from roadstead.systems import System

__all__ = ["command"]

START_ADVICE = "start it, or look at its log for why it does not start"
REGISTRY_ADVICE = "bring the registry back; until then nobody joins, leaves or leads"
REPORTS_ADVICE = "look at those nodes' logs: the registry does not get what they report"
LEASES_ADVICE = "bring the registry back, or the status nodes that are away; until then nothing can be resized"
SHARDS_ADVICE = "start the processes that are away: nobody else has their shards"
STREAMS_ADVICE = "look at both logs: a firewall, a certificate or a peer key is in the way"
API_KEY_ADVICE = "give all nodes the same security.api_keys_file"
PEER_KEY_ADVICE = "add the key to security.peer_keys_file of those nodes, and to all before one is used first"
VERSIONS_ADVICE = "finish the upgrade, or take it back"
CLOCKS_ADVICE = "run NTP on those machines: tickets, ids and times of messages go by the clock"
FILES_ADVICE = f"raise it: `ulimit -n {nodes.FILES_WANTED}`, or LimitNOFILE; each connection takes one"
DISK_ADVICE = "make room, or give the message services a larger disk: a full one refuses messages"
TLS_ADVICE = "renew the certificates: `roadstead ca issue`, or your CA's way; running nodes load them"


@click.command("doctor")
@system_options
@json_option
def command(where: Where, as_json: bool) -> None:
    """Check a running system: every node, what they agree on, one message all the way.

    Exit code 1 if anything is wrong. A warning is not: everything is served, and there is something to do.
    """
    findings = asyncio.run(_examine(where.open()))
    if as_json:
        print_json(findings)
    else:
        _show(findings)
    if not all(finding.is_ok for finding in findings):
        raise click.exceptions.Exit(EXIT_FAILED)


async def _examine(opened: AbstractAsyncContextManager[System]) -> list[Finding]:
    clock = SystemClock()
    async with opened as system:
        looks = [
            ("the registry answers", partial(whole.registry, system, clock), REGISTRY_ADVICE),
            *((f"{node.name} is ready", partial(nodes.is_ready, system, node), START_ADVICE) for node in system.nodes),
            ("nodes are of one version", partial(nodes.versions, system), VERSIONS_ADVICE),
            ("clocks agree", partial(nodes.clocks, system, clock), CLOCKS_ADVICE),
            ("open files allowed", partial(nodes.file_limits, system), FILES_ADVICE),
            ("room for messages", partial(nodes.disk_space, system), DISK_ADVICE),
            ("certificates are valid", partial(nodes.certificates, system, clock), TLS_ADVICE),
            ("the API key is accepted", partial(nodes.api_key_accepted, system), API_KEY_ADVICE),
            ("the peer key is accepted", partial(nodes.peer_key_accepted, system), PEER_KEY_ADVICE),
            ("access nodes report", partial(whole.reports, system, clock), REPORTS_ADVICE),
            (
                "status nodes agree on the table",
                partial(whole.partition_table, system),
                "look at the status nodes' logs",
            ),
            ("status nodes have a leader", partial(whole.status_leader, system), LEASES_ADVICE),
            ("every shard has its process", partial(whole.shard_table, system), SHARDS_ADVICE),
            ("nodes are connected", partial(whole.streams, system), STREAMS_ADVICE),
            ("a message arrives", partial(round_trip, system), "see the failed checks above"),
        ]
        return [await found(*look) for look in looks]


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "seen", "what to do"):
        table.add_column(column)
    for finding in findings:
        word, style = ("warn", "yellow") if finding.is_warning else ("ok", "green") if finding.is_ok else ("bad", "red")
        table.add_row(Text(word, style=style), finding.check, finding.seen, finding.advice)
    print_table(table, folds=True)
