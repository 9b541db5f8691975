"""Redis as the status backend uses it: batches of scripts, each on one key, each batch with a deadline.

Three profiles:
    single    one Redis server, or what looks like one
    cluster   Redis Cluster: a batch is sent to each shard that it concerns, and a shard that fails fails its own part
    codis     a Codis proxy, or any other that refuses MULTI, SCRIPT, PUB/SUB and SCAN

All three send the same commands: EVAL in plain pipelines, and nothing else; that is what every one of them takes. A
script's text travels each time and is compiled once by the server. Connections are opened without HELLO and CLIENT,
which proxies refuse. Scripts read the server's clock before they write, which wants replication by effects: the only
kind from Redis 5 on, and asked for where it is not (Codis builds on Redis 3.2).

The driver's own retries are off: what to repeat, and when, is decided above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisClusterException, RedisError

from base.clock import Clock, Instant
from base.core.backoff import Backoff
from base.ids import entropy
from base.log import logger

__all__ = ["Call", "Failed", "RedisLink", "Script"]

Profile = Literal["single", "cluster", "codis"]

TOPOLOGY_DEADLINE_MS = 2_000
TOPOLOGY_INTERVAL_MS = 500
CLOSE_DEADLINE_MS = 1_000

_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)


class Script(msgspec.Struct, frozen=True):
    """A Lua script on one key, KEYS[1]."""

    text: str


class Call(msgspec.Struct, frozen=True):
    """One script to run on one key."""

    script: Script
    key: bytes
    arguments: tuple[bytes | int | str, ...] = ()


class Failed(msgspec.Struct, frozen=True):
    """In place of an answer: what went wrong. Whether the script ran is unknown."""

    reason: str


class RedisLink:
    """Connections to one Redis, of whatever profile, while `run` runs."""

    def __init__(self, url: str, profile: Profile, *, clock: Clock, connections_max: int, timeout_ms: int) -> None:
        """Nothing is opened yet. `timeout_ms` bounds each step of making a connection."""
        self._clock = clock
        self._backoff = Backoff(entropy(), ceiling_ms=TOPOLOGY_DEADLINE_MS)
        self._topology_doubted = asyncio.Event()
        self._log = logger(backend="redis")
        common: dict[str, Any] = {
            "protocol": 2,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 0),
            "max_connections": connections_max,
            "socket_timeout": timeout_ms / 1000,
            "socket_connect_timeout": timeout_ms / 1000,
        }
        self._cluster: RedisCluster | None = None
        self._client: Redis | None = None
        if profile == "cluster":
            self._cluster = RedisCluster.from_url(url, require_full_coverage=False, **common)
        else:
            self._client = Redis.from_url(url, **common)

    async def run(self) -> None:
        """Learn a cluster's topology anew whenever it is doubted, and close all connections when cancelled."""
        try:
            while True:
                await self._topology_doubted.wait()
                self._topology_doubted.clear()
                wait_ms = TOPOLOGY_INTERVAL_MS
                if self._cluster is not None and not await self._learn_topology(self._cluster):
                    wait_ms += self._backoff.next_ms()
                await self._clock.sleep_until(Instant(self._clock.monotonic() + wait_ms))
        finally:
            await self._close()

    async def execute(self, calls: Sequence[Call], *, deadline_ms: int) -> list[Any]:
        """Run the scripts, one key's in the order given, and return their answers, `Failed` for those without one."""
        answers = await self._execute(calls, deadline_ms)
        _go_if_cancelled()
        return answers

    async def _execute(self, calls: Sequence[Call], deadline_ms: int) -> list[Any]:
        answers: list[Any] = [Failed("no answer in time")] * len(calls)
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                groups = await self._groups(calls)
                if len(groups) == 1:
                    await self._send(calls, groups[0], answers)
                    return answers
                async with asyncio.TaskGroup() as tasks:
                    for group in groups:
                        tasks.create_task(self._send(calls, group, answers))
        except _FAILURES as error:
            self._topology_doubted.set()
            reason = Failed(str(error) or "no answer in time")
            return [reason if isinstance(answer, Failed) else answer for answer in answers]
        return answers

    async def _groups(self, calls: Sequence[Call]) -> list[list[int]]:
        """Part the calls by who serves their keys."""
        if self._cluster is None:
            return [list(range(len(calls)))]
        await self._cluster.initialize()
        by_shard: dict[str, list[int]] = {}
        for index, call in enumerate(calls):
            try:
                shard = self._cluster.get_node_from_key(call.key)  # type: ignore[arg-type]
                name = shard.name if shard is not None else ""
            except RedisClusterException:
                name = ""  # nobody serves this slot now
            by_shard.setdefault(name, []).append(index)
        if by_shard.pop("", None):
            self._topology_doubted.set()
        return list(by_shard.values())

    async def _send(self, calls: Sequence[Call], group: list[int], answers: list[Any]) -> None:
        pipeline: Any
        if self._cluster is not None:
            pipeline = self._cluster.pipeline()
        else:
            assert self._client is not None
            pipeline = self._client.pipeline(transaction=False)
        for index in group:
            call = calls[index]
            pipeline.execute_command("EVAL", call.script.text, 1, call.key, *call.arguments)
        try:
            results = await pipeline.execute(raise_on_error=False)
        except _FAILURES as error:
            results = [error] * len(group)
        for index, result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                self._topology_doubted.set()
                answers[index] = Failed(f"{type(result).__name__}: {result}")
            else:
                answers[index] = result
        if self._client is not None and any(isinstance(result, ReadOnlyError) for result in results):
            # This was the primary once. Who is it now, a new connection finds out.
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _learn_topology(self, cluster: RedisCluster) -> bool:
        """Ask the cluster who serves what, without closing what works."""
        try:
            async with asyncio.timeout(TOPOLOGY_DEADLINE_MS / 1000):
                await cluster.initialize()
                await cluster.nodes_manager.initialize()
        except _FAILURES as error:
            self._log.warning("redis_topology_unknown", error=str(error) or "no answer in time")
            return False
        self._backoff.reset()
        return True

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_MS / 1000):
                if self._cluster is not None:
                    await self._cluster.aclose()
                if self._client is not None:
                    await self._client.aclose()
        except _FAILURES as error:
            self._log.info("redis_close_failed", error=str(error) or "no answer in time")


def _go_if_cancelled() -> None:
    """Raise CancelledError if this task was cancelled.

    The library closes a connection on which a task is cancelled, and what comes of that can take the place of the
    cancellation. Whoever goes on then is never cancelled again.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
