"""A Consul agent of our own, on loopback: for the local cluster and for tests. Production uses the site's agents.

One server that elects itself, or a client that joins one. Its folder holds the configuration, the data and the log, so
that a start over the same folder goes on with what was known, as on a machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from base.clock import SystemClock
from base.errors import ConfigError, Unavailable
from roadstead.ports import LOOPBACK, free_ports

__all__ = ["CONSUL_VARIABLE", "ConsulAgent", "ConsulTls", "find_consul"]

CONSUL_VARIABLE = "ROADSTEAD_CONSUL"
"""The environment variable that names the program."""
INSTALLED = Path("consul/usr/bin/consul")
"""Where `deploy/consul/install.sh` puts it, in a virtual environment."""

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
LOOK_S = 0.05
CONNECTIONS_MAX = 4_096
"""From one address. All nodes of a local cluster share one agent, and each of them waits there for several things."""


def find_consul(program: Path | None = None) -> Path:
    """Return the program: the one that is named, else $ROADSTEAD_CONSUL, else on PATH, else in the environment.

    Raises:
        ConfigError: there is none.
    """
    named = program or (Path(os.environ[CONSUL_VARIABLE]) if os.environ.get(CONSUL_VARIABLE) else None)
    if named is not None:
        if not os.access(named, os.X_OK) or not named.is_file():
            raise ConfigError([f"{named} is no program that can be run; Consul was expected there"])
        return named
    on_path, installed = shutil.which("consul"), Path(sys.prefix) / INSTALLED
    if on_path is None and not os.access(installed, os.X_OK):
        ways = f"put it on PATH, name it by --consul or ${CONSUL_VARIABLE}, or run deploy/consul/install.sh"
        raise ConfigError([f"there is no Consul: {ways}"])
    return Path(on_path) if on_path is not None else installed


@dataclass(frozen=True, slots=True)
class ConsulTls:
    """PEM files of an agent that speaks HTTPS. `verify_clients` asks callers for a certificate of the same CA."""

    ca: Path
    certificate: Path
    key: Path
    verify_clients: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ports:
    http: int
    server: int
    serf_lan: int


@dataclass(slots=True, kw_only=True)
class ConsulAgent:
    """See the module. `start` returns once the agent serves reads and writes; ports stay the same over restarts."""

    folder: Path
    name: str = "consul-1"
    program: Path | None = None
    """None looks for it."""
    datacenter: str = "dc1"
    tls: ConsulTls | None = None
    token: str = ""
    """With one, nothing is allowed without a token, and everything is with this one (a UUID)."""
    joins: ConsulAgent | None = None
    """The server that this agent is a client of; None makes it a server by itself."""
    log_level: str = "INFO"
    before_exec: Callable[[], None] | None = None
    """Called in the new process before it becomes Consul, as `subprocess` does with its `preexec_fn`."""
    _ports: _Ports = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._ports = _free_ports()

    @property
    def url(self) -> str:
        """Where its HTTP API is."""
        return f"{'https' if self.tls else 'http'}://{LOOPBACK}:{self._ports.http}"

    @property
    def gossip_address(self) -> str:
        """Where other agents join it."""
        return f"{LOOPBACK}:{self._ports.serf_lan}"

    @property
    def log(self) -> Path:
        """The file with what it prints."""
        return self.folder / "consul.log"

    @property
    def pid(self) -> int | None:
        """Its process, None while it does not run."""
        return self._process.pid if self.is_running and self._process is not None else None

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            ConfigError: there is no Consul.
            Unavailable: it ended, or did not serve in time; the message has its last lines.
        """
        assert not self.is_running
        command = self.prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - a fork, no more
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self.before_exec,  # noqa: PLW1509 - it calls nothing but the kernel
                start_new_session=True,  # Ctrl-C of a terminal is for whoever runs it, who stops it last
            )
        try:
            await self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def prepare(self) -> list[str]:
        """Write its configuration and return the command that runs it, for whoever keeps the process himself.

        Raises ConfigError when there is no Consul.
        """
        program = find_consul(self.program)
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "agent.json"
        config.write_bytes(msgspec.json.format(msgspec.json.encode(self._config())))
        config.chmod(0o600)
        return [str(program), "agent", "-config-file", str(config)]

    async def wait_serving(self) -> str:
        """Return its URL once an agent that somebody else keeps serves reads and writes."""
        async with self._asking() as http:
            while not await self._serves(http):  # noqa: ASYNC110 - it cannot tell by itself
                await asyncio.sleep(LOOK_S)
        return self.url

    async def stop(self) -> None:
        """End it in an orderly way; its data stays. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def kill(self) -> None:
        """End it as a power cut would. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP makes it hang, SIGCONT go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def wipe(self) -> None:
        """Forget everything. Not while it runs."""
        assert not self.is_running
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def client_ssl(self) -> ssl.SSLContext | None:
        """What a client of it needs, None where it speaks HTTP. It shows the agent's own certificate."""
        if self.tls is None:
            return None
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        return context

    def _config(self) -> dict[str, Any]:
        tls, ports = self.tls, self._ports
        config: dict[str, Any] = {
            "node_name": self.name,
            "datacenter": self.datacenter,
            "data_dir": str(self.folder / "data"),
            "bind_addr": LOOPBACK,
            "client_addr": LOOPBACK,
            "ports": {
                "http": -1 if tls else ports.http,
                "https": ports.http if tls else -1,
                "dns": -1,
                "grpc": -1,
                "server": ports.server,
                "serf_lan": ports.serf_lan,
                "serf_wan": -1,
            },
            "server": self.joins is None,
            "performance": {"raft_multiplier": 1},
            "limits": {"http_max_conns_per_client": CONNECTIONS_MAX},
            "leave_on_terminate": False,
            "skip_leave_on_interrupt": True,
            "disable_update_check": True,
            "log_level": self.log_level,
        }
        if self.joins is None:
            config["bootstrap_expect"] = 1
        else:
            config["retry_join"] = [self.joins.gossip_address]
            config["retry_interval"] = "1s"
        if tls is not None:
            config |= {"ca_file": str(tls.ca), "cert_file": str(tls.certificate), "key_file": str(tls.key)}
            config["verify_incoming_https"] = tls.verify_clients
        if self.token:
            config["acl"] = {
                "enabled": True,
                "default_policy": "deny",
                "down_policy": "extend-cache",
                "tokens": {"master": self.token, "agent": self.token},
            }
        return config

    async def _wait_ready(self) -> None:
        clock = SystemClock()
        give_up = clock.stopwatch() + START_TIMEOUT_S
        async with self._asking() as http:
            while not await self._serves(http):
                if not self.is_running:
                    raise Unavailable(f"the Consul agent ended: {self._last_words()}")
                if clock.stopwatch() > give_up:
                    raise Unavailable(f"the Consul agent does not serve: {self._last_words()}")
                await asyncio.sleep(LOOK_S)

    def _asking(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self.client_ssl() or True)
        headers = {"X-Consul-Token": self.token} if self.token else {}
        return aiohttp.ClientSession(connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=2.0))

    async def _serves(self, http: aiohttp.ClientSession) -> bool:
        """Whether a leader answers, and knows this agent's node as healthy, which sessions need."""
        try:
            async with http.get(f"{self.url}/v1/health/node/{self.name}?consistent") as answer:
                checks = await answer.json() if answer.status == 200 else []
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return any(check["CheckID"] == "serfHealth" and check["Status"] == "passing" for check in checks)

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return "it said nothing"
        return " | ".join(lines[-5:])


def _free_ports() -> _Ports:
    http, server, serf_lan = free_ports([0, 0, 0])
    return _Ports(http=http, server=server, serf_lan=serf_lan)
