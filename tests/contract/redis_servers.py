"""Real Redis servers for tests: one, or a cluster of three, on free ports, to be killed, paused and started again."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from status.redis import WITNESSES

START_TIMEOUT_S = 10.0
SHARDS = ((0, 5460), (5461, 10922), (10923, 16383))


def free_ports() -> tuple[int, int]:
    """Two free ports: for clients, and for a cluster node's bus."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])


class RedisServer:
    """One server process without persistence: a new start is empty."""

    def __init__(self, folder: Path, *, is_cluster_node: bool = False) -> None:
        path = shutil.which("redis-server")
        assert path, "redis-server is not installed: `make test` installs it, or your package manager does"
        folder.mkdir(parents=True)
        self.port, self.bus_port = free_ports()
        self._command = [path, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._command += ["--dir", str(folder)]
        if is_cluster_node:
            self._command += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
            self._command += ["--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000"]
            self._command += ["--cluster-require-full-coverage", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        assert self._process is None
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - a fork, no more
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._answers():
                assert self._process.poll() is None, "redis-server ended"
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """It hangs: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def run(self, *command: object) -> object:
        """Run one command on this very server."""
        client = Redis(port=self.port, protocol=2, driver_info=None)
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()

    async def _answers(self) -> bool:
        try:
            return bool(await self.run("PING"))
        except (RedisError, OSError):
            return False


async def make_cluster(servers: list[RedisServer]) -> None:
    """Give the three servers their slots, let them meet, and wait until each sees all slots served."""
    for server, (first, last) in zip(servers, SHARDS, strict=True):
        await server.run("CLUSTER", "ADDSLOTSRANGE", first, last)
    for number, server in enumerate(servers[1:], start=2):
        await server.run("CLUSTER", "SET-CONFIG-EPOCH", number)
        await servers[0].run("CLUSTER", "MEET", "127.0.0.1", server.port, server.bus_port)
    async with asyncio.timeout(START_TIMEOUT_S):
        for server in servers:
            while not await _is_whole(server):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.02)


async def as_if_used_for_long(servers: list[RedisServer]) -> None:
    """Make the witnesses old: statuses were kept here since 1970, and nothing was lost."""
    for key in WITNESSES:
        slot = key_slot(key)
        (holder,) = (
            server
            for server, (first, last) in zip(servers, SHARDS, strict=False)
            if len(servers) == 1 or first <= slot <= last
        )
        await holder.run("SET", key, "old@1", "PX", 60_000)


async def _is_whole(server: RedisServer) -> bool:
    info = await server.run("CLUSTER", "INFO")
    text = info.decode() if isinstance(info, bytes) else str(info)
    return "cluster_state:ok" in text and "cluster_slots_assigned:16384" in text and "cluster_known_nodes:3" in text
