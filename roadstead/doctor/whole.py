"""Looks at what the nodes have together: the registry, the tables, the streams between them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from access.api import SERVICE as ACCESS
from access.api import NodeReport
from base.clock import Clock
from base.errors import RoadsteadError, StoreError, Unavailable
from im.api import SERVICE as IM
from im.core.shards import ShardTable
from roadstead.doctor.findings import Degraded
from roadstead.systems import System
from status.api import SERVICE as STATUS

__all__ = ["partition_table", "registry", "reports", "shard_table", "status_leader", "streams"]

AGREE_TRIES = 20
AGREE_PAUSE_S = 0.1
REGISTRY_SLOW_MS = 500
REPORT_LATE_MS = 2_500
"""Access nodes report every second."""
REPORTS_WAIT_MS = 5_000
SHARD_TABLE_KEY = "im/table"
CONNECTED = {STATUS: (ACCESS, IM), IM: (ACCESS,), ACCESS: (IM,)}
"""Whose nodes have streams to each node of a service."""


async def registry(system: System, clock: Clock) -> str:
    """The registry answers, and soon."""
    if system.registry_failure is not None:
        raise system.registry_failure
    began = clock.stopwatch()
    await system.registry.get(SHARD_TABLE_KEY)
    took_ms = round((clock.stopwatch() - began) * 1000)
    seen = f"{system.registry_url} answers in {took_ms} ms"
    if took_ms > REGISTRY_SLOW_MS:
        raise Degraded(seen)
    return seen


async def reports(system: System, clock: Clock) -> str:
    """What the registry has of each access node is new: by that schedulers decide."""
    names = {node.name for node in system.of(ACCESS) if node.instance is not None}
    if not names:
        raise Unavailable("no access node is registered")
    began = clock.monotonic()
    numbers: dict[str, int] = {}
    changed: dict[str, int] = {}
    after = -1
    while (left_ms := began + REPORTS_WAIT_MS - clock.monotonic()) > 0 and names - changed.keys():
        view = await system.registry.services(ACCESS, after=after, wait_ms=left_ms)
        after = view.index
        for instance in view.items:
            number = msgspec.msgpack.decode(instance.note, type=NodeReport).number if instance.note else 0
            if instance.id in numbers and number != numbers[instance.id]:
                changed.setdefault(instance.id, clock.monotonic() - began)
            numbers[instance.id] = number
    silent = sorted(names - changed.keys())
    if silent:
        raise Unavailable(f"no report of {', '.join(silent)} within {REPORTS_WAIT_MS} ms")
    late = {name: ms for name, ms in changed.items() if ms > REPORT_LATE_MS}
    if late:
        raise Degraded(", ".join(f"{name}: after {ms} ms" for name, ms in sorted(late.items())))
    return f"each of {len(names)} access nodes reported within {max(changed.values())} ms"


async def partition_table(system: System) -> str:
    """Every node gets to the newest table that any of them had. During a resize each is a little behind at times."""
    nodes = await _status_nodes(system)
    newest = max(node["epoch"] for node in nodes)
    for _ in range(AGREE_TRIES):
        if all(node["epoch"] >= newest for node in nodes):
            break
        await asyncio.sleep(AGREE_PAUSE_S)
        nodes = await _status_nodes(system)
    else:
        raise RoadsteadError(f"epochs differ: {sorted({node['epoch'] for node in nodes})}")
    partitions = sum(node["partitions"] for node in nodes)
    owners = sum(node["partitions"] > 0 for node in nodes)
    resizing = "; a resize is under way" if any(node.get("moves") for node in nodes) else ""
    return f"epoch {newest}, {partitions} partitions over {owners} nodes{resizing}"


async def status_leader(system: System) -> str:
    """Every node that owns partitions answers by the leader's grant. A change of the leader takes a moment."""
    for _ in range(AGREE_TRIES):
        nodes = [node for node in await _status_nodes(system) if "granter" in node]
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


async def _status_nodes(system: System) -> list[Any]:
    answers, _ = await system.statistics(STATUS)
    if not answers:
        raise Unavailable("no status node answers")
    return list(answers.values())


async def shard_table(system: System) -> str:
    """Every shard of the messages has a process that is there, and all processes know the newest table."""
    entry = await system.registry.get(SHARD_TABLE_KEY)
    if entry is None:
        raise Unavailable("there is no table of shards: no process of the message services was ever started")
    try:
        table = msgspec.json.decode(entry.value, type=ShardTable)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{SHARD_TABLE_KEY} is no table of shards: {error}") from error
    there = {node.name for node in system.of(IM) if node.instance is not None}
    missing = {owner: len(table.owned_by(owner)) for owner in table.owners if owner not in there}
    if missing:
        raise Unavailable(", ".join(f"{owner} is away, with {shards} shards" for owner, shards in missing.items()))
    for _ in range(AGREE_TRIES):
        answers, _ = await system.statistics(IM)
        behind = [name for name, answer in answers.items() if answer["table_epoch"] < table.epoch]
        if not behind:
            return f"epoch {table.epoch}, shards: {table.shards}, processes: {len(set(table.owners))}"
        await asyncio.sleep(AGREE_PAUSE_S)
    raise Degraded(f"{', '.join(behind)}: behind epoch {table.epoch}")


async def streams(system: System) -> str:
    """Whoever calls others has a stream to each of them."""
    missing: list[str] = []
    count = 0
    for _ in range(AGREE_TRIES):
        missing, count = [], 0
        for service, callers in CONNECTED.items():
            answers, _ = await system.statistics(service)
            for name, answer in answers.items():
                wanted = [node.name for node in system.of(*callers) if node.instance is not None]
                absent = [caller for caller in wanted if caller not in answer.get("streams", wanted)]
                missing += [f"{caller} to {name}" for caller in absent]
                count += len(wanted)
        if not missing:
            return f"{count} streams"
        await asyncio.sleep(AGREE_PAUSE_S)
    raise Unavailable(f"none from {', '.join(missing)}")
