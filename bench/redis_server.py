"""A Redis server of its own, as the peer of a benchmark: no persistence, one process, its CPU time readable."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

__all__ = ["RedisServer", "redis_server"]

START_TIMEOUT_S = 10.0
PORT_MAX = 55_000
"""A cluster node also uses the port 10,000 above."""


class RedisServer:
    """A running server: a client for it, and what it cost so far."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.client = redis.Redis(port=port)
        self._pid = pid

    def cpu_s(self) -> float:
        """CPU seconds of the server process, user and system."""
        with open(f"/proc/{self._pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - a file of the kernel
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server until the block ends. Raises RuntimeError when redis-server is not installed.

    `options` are added to its command line.
    """
    path = shutil.which("redis-server")
    if path is None:
        raise RuntimeError("redis-server is not installed; `make bench` installs it, or your package manager does")
    port = PORT_MAX + 1
    while port > PORT_MAX:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            server = RedisServer(port, process.pid)
            give_up = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    server.client.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(0.02)
            yield server
            server.client.close()
        finally:
            process.terminate()
