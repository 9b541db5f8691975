"""The system that a crowd uses: one process or a cluster of them, in a folder that is gone afterwards, or what runs.

What is done to it is done as an operator would: by `roadstead` commands from another process, and by signals. So the
report can show them, and whoever wants to can give them by hand.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from base.errors import ConfigError, PeerUnavailable, RoadsteadError
from base.ids import entropy, new_secret
from roadstead.api import call_api
from roadstead.cluster.files import ClusterFiles
from roadstead.deployment import DataFolder, Endpoints
from roadstead.local import ClusterProcess, UpProcess
from roadstead.ports import free_ports
from roadstead.replay.core.figures import Sample
from roadstead.replay.doors import Doors

__all__ = ["ClusterStage", "OperatedStage", "RunningStage", "Stage", "UpStage"]

COMMAND_S = 90.0
READY_S = 60.0
SAMPLE_S = 2.0
STATUS_NODES, SPARES = 3, 2
THIRD, CANARY, BAD = "access-3", "access-4", "access-5"
"""Access nodes: one that is killed, one of a new version, and one of that version that is set up badly."""
UP_PORTS = 16
"""In a row; `up` needs fewer."""
TRIES = 50
QUIET = ("--set", "log.level=error")
"""Nodes are killed on purpose: what the others warn of is not news."""

# What people do in a minute is done in a second here: the limits of one user's calls are those of people.
SETTINGS = {
    "im.user_calls_per_second": 100_000,
    "im.user_calls_burst": 100_000,
    "im.device_calls_per_second": 100_000,
    "im.device_calls_burst": 100_000,
}


class Stage(ABC):
    """A system that people can use."""

    kind: str
    """For people."""
    doors: Doors
    """Where they find it, once it was started."""

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        """`folder` is for its files; `data`: the system's, where that is elsewhere."""
        self.folder = folder
        self.data = DataFolder(data or folder / "data")

    @abstractmethod
    async def start(self) -> None:
        """Start it, and return when it serves. Raises PeerUnavailable when it does not."""

    @abstractmethod
    async def stop(self) -> None:
        """End everything in an orderly way."""

    def find(self, endpoints: Endpoints) -> None:
        """Know from here on where a system that runs is found."""
        self.doors = Doors(
            list(endpoints.scheduler.values()), list(endpoints.status.values()), self.data.secrets().api_key
        )

    async def sample(self, at_ms: int) -> Sample | None:
        """Return how many connections each access node reports; None: nobody answers."""
        for url in self.doors.schedulers:
            with suppress(RoadsteadError):
                answer: dict[str, Any] = await call_api(
                    "GET", f"{url}/v1/admin/access/nodes", credential=self.doors.credential, deadline_s=SAMPLE_S
                )
                return Sample(at_ms, {node["node"]: node["connections"] for node in answer["nodes"]})
        return None


class OperatedStage(Stage):
    """One of our own, to which anything may be done. `extra`: its access nodes in processes of their own."""

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        super().__init__(folder, data)
        self.extra: dict[str, asyncio.subprocess.Process] = {}

    @abstractmethod
    def serve_command(self, name: str, settings: Sequence[str], wrong_keys: Path | None) -> list[str]:
        """Return the arguments that run one more access node; with `wrong_keys` it believes no ticket."""

    @property
    def flags(self) -> list[str]:
        """The settings, as arguments."""
        return [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]

    async def command(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """Run a `roadstead` command against the system and return what it said.

        Raises PeerUnavailable when it does not end in time, or with another exit code.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "roadstead", *arguments, "--data", str(self.data.path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_S):
                said, _ = await process.communicate()
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise PeerUnavailable(f"`roadstead {' '.join(arguments)}` did not end in {COMMAND_S:g} s") from error
        text = said.decode().strip()
        if process.returncode not in codes:
            raise PeerUnavailable(f"`roadstead {' '.join(arguments)}` ended with {process.returncode}: {text}")
        return text

    async def begin_node(self, name: str, *settings: str, is_bad: bool = False) -> None:
        """Run one more access node, and return when it is ready. `is_bad`: with keys that no ticket is signed with.

        Raises PeerUnavailable when it does not get ready.
        """
        wrong_keys = self.folder / "wrong-ticket-keys" if is_bad else None
        if wrong_keys is not None:
            wrong_keys.write_text(f"{self.data.secrets().ticket_kid} {new_secret()}\n", encoding="ascii")
            wrong_keys.chmod(0o600)
        flags = [part for setting in settings for part in ("--set", setting)]
        arguments = self.serve_command(name, flags, wrong_keys)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "roadstead", *arguments, *QUIET, "--json"), stdout=asyncio.subprocess.PIPE
        )
        self.extra[name] = process
        assert process.stdout is not None
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
        if not line:
            await self.end_node(name, signal.SIGKILL)
            raise PeerUnavailable(f"{name} did not start")

    async def end_node(self, name: str, number: signal.Signals) -> None:
        """Send such a node a signal, and wait until it has ended."""
        process = self.extra.pop(name)
        with suppress(ProcessLookupError):
            process.send_signal(number)
        await process.wait()

    async def end_nodes(self) -> None:
        """End all such nodes."""
        for name in tuple(self.extra):
            await self.end_node(name, signal.SIGTERM)


class UpStage(OperatedStage):
    """All in one process, and one access node beside it."""

    kind = "one process, and an access node beside it"

    async def start(self) -> None:
        """Start both."""
        self.process = UpProcess(
            self.data.path,
            *("--port", str(_ports_in_a_row())),
            *("--set", f"up.status_nodes={STATUS_NODES}", "--set", f"up.spare_status_nodes={SPARES}"),
            *QUIET,
            *self.flags,
        )
        await self.start_process()
        await self.begin_node(THIRD)

    async def start_process(self) -> None:
        """Start the one process, again where it was."""
        system = await asyncio.to_thread(self.process.start)
        self.find(system.endpoints)

    async def stop(self) -> None:
        """End both."""
        await self.end_nodes()
        await asyncio.to_thread(self.process.stop)

    def serve_command(self, name: str, settings: Sequence[str], wrong_keys: Path | None) -> list[str]:
        """It joins by the data folder; with other keys, by the registry's address."""
        if wrong_keys is None:
            return ["access", "serve", "--name", name, "--data", str(self.data.path), *settings]
        (registry,) = self.data.endpoints().registry.values()
        keys = ["--peer-key-file", str(self.data.path / "peer-key"), "--ticket-key-file", str(wrong_keys)]
        return ["access", "serve", "--name", name, "--join", registry, *keys, *settings]


class ClusterStage(OperatedStage):
    """A process a node, on Consul."""

    kind = "a cluster of processes on Consul: 5 status nodes, 3 access nodes, 2 message processes, 2 schedulers"

    async def start(self) -> None:
        """Start them, and have three status nodes own everything."""
        self.process = ClusterProcess(
            self.data.path,
            *("--status", str(STATUS_NODES + SPARES), "--access", "3", "--im", "2", "--scheduler", "2", "--no-tls"),
            *("--log-level", "error"),
            *self.flags,
        )
        self.files = ClusterFiles(self.data)
        system = await asyncio.to_thread(self.process.start)
        self.find(system.endpoints)
        await self.command("status", "resize", "--to", str(STATUS_NODES), "--yes")

    async def stop(self) -> None:
        """End all."""
        await self.end_nodes()
        await asyncio.to_thread(self.process.stop)

    def serve_command(self, name: str, settings: Sequence[str], wrong_keys: Path | None) -> list[str]:
        """It has the file of another one, but for its name and its ports."""
        port, client_port = free_ports([0, 0])
        own = {
            "node.name": name,
            "node.port": port,
            "access.client_port": client_port,
            "security.audit_file": self.folder / f"{name}.audit.log",
        } | ({} if wrong_keys is None else {"security.ticket_keys_file": wrong_keys})
        flags = [part for field, value in own.items() for part in ("--set", f"{field}={value}")]
        return ["access", "--config", str(self.files.config_of("access-1")), *flags, *settings]

    async def kill(self, name: str) -> None:
        """End a node at once, and return when the supervisor has brought it back."""
        before = await asyncio.to_thread(self.process.node, name)
        await self.command("cluster", "kill", name)
        await asyncio.to_thread(self.process.wait_ready, name, other_than=before.pid)


class RunningStage(Stage):
    """What runs already, from a data folder. Nothing is done to it but to use it."""

    kind = "the system that runs there"

    async def start(self) -> None:
        """Find it. Raises ConfigError when nothing was started from the folder, PeerUnavailable when it is away."""
        self.find(self.data.endpoints())
        for url in self.doors.schedulers:
            with suppress(PeerUnavailable):
                await call_api("GET", f"{url}/healthz", deadline_s=SAMPLE_S)
                return
        raise PeerUnavailable(f"no scheduler of the system in {self.data.path} answers")

    async def stop(self) -> None:
        """Leave it as it is."""


def _ports_in_a_row() -> int:
    """Return the first of some free ports. Raises ConfigError when there are none."""
    for _ in range(TRIES):
        wanted = range(first := 10_000 + entropy().randrange(20_000), first + UP_PORTS)
        if free_ports(wanted) == list(wanted):
            return first
    raise ConfigError([f"no {UP_PORTS} free ports in a row were found"])
