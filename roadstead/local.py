"""`roadstead up` in another process, or `roadstead cluster up` in many: for demos, benchmarks and tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import msgspec

from base.clock import SystemClock
from base.errors import PeerUnavailable
from roadstead.cluster.child import Seen, State
from roadstead.cluster.control import Asked, ask
from roadstead.cluster.files import ClusterFiles
from roadstead.cluster.supervisor import Cluster
from roadstead.deployment import DataFolder, Endpoints

__all__ = ["ClusterProcess", "System", "UpProcess", "running_system"]

STOP_TIMEOUT_S = 30.0
CLUSTER_STOP_TIMEOUT_S = 90.0
NODE_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 5.0
LOOK_S = 0.05


class System(msgspec.Struct, frozen=True):
    """A running system: where it listens and where its data is."""

    endpoints: Endpoints
    data: DataFolder

    @property
    def scheduler(self) -> str:
        """The scheduler's base URL."""
        return next(iter(self.endpoints.scheduler.values()))


class _Command:
    """A `roadstead` command in another process, which says that it is ready by a line on standard output."""

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "roadstead", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> bytes:
        """Start it and return its line. Raises PeerUnavailable when it ends instead."""
        assert self._process is None
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)  # noqa: S603 - our own command
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.end(signal.SIGTERM, STOP_TIMEOUT_S)
            raise PeerUnavailable(f"the system did not start, exit code {code}")
        return line

    def end(self, number: signal.Signals, timeout_s: float) -> int:
        """Send a signal and return the exit code. Idempotent; 0 when it was not running."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            process.send_signal(number)
            return process.wait(timeout=timeout_s)


class UpProcess:
    """A child process that runs `up` from a data folder. `start` returns when it serves."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.data = DataFolder(folder)
        self._up = _Command("up", "--json", "--port", "0", "--data", str(folder), *flags)

    def start(self) -> System:
        """Start and wait until it serves. Raises PeerUnavailable when it ends instead; its own words are on stderr."""
        return System(msgspec.json.decode(self._up.start(), type=Endpoints), self.data)

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL, no last words."""
        self._up.end(signal.SIGKILL, STOP_TIMEOUT_S)

    def stop(self) -> int:
        """End it in an orderly way and return its exit code. Idempotent; 0 when it was not running."""
        return self._up.end(signal.SIGTERM, STOP_TIMEOUT_S)


class ClusterProcess:
    """A child process that runs `cluster up` from a data folder, with a process a node. `start` returns when all serve.

    A node that is killed comes back by itself a second later, unless `--no-restart` is among the flags.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        """`flags` are passed to `roadstead cluster up`, such as `--access`, `3`, `--no-tls`."""
        self.data = DataFolder(folder)
        self._files = ClusterFiles(self.data)
        self._up = _Command("cluster", "up", "--json", "--data", str(folder), *flags)

    def start(self) -> System:
        """Start all and wait until they serve. Raises PeerUnavailable when it ends instead; its words are on stderr."""
        cluster = msgspec.json.decode(self._up.start(), type=Cluster)
        return System(cluster.endpoints, self.data)

    def stop(self) -> int:
        """End all in an orderly way and return the supervisor's exit code. Idempotent; 0 when it was not running."""
        return self._up.end(signal.SIGTERM, CLUSTER_STOP_TIMEOUT_S)

    def cut(self) -> None:
        """End all at once as a power cut would, the supervisor too."""
        self._up.end(signal.SIGKILL, STOP_TIMEOUT_S)

    @property
    def endpoints(self) -> Endpoints:
        """Where the nodes listen, or listened last."""
        return self.data.endpoints()

    def nodes(self) -> dict[str, Seen]:
        """Return how the processes are, by name; Consul is `consul-1`."""
        return {seen.name: seen for seen in self._ask(Asked("list"))}

    def node(self, name: str) -> Seen:
        """Return how one process is: its state, pid, address, and so on."""
        return self.nodes()[name]

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send one process a signal, and return when it has it. Raises PeerUnavailable when it does not run."""
        self._ask(Asked("signal", name, number.name.removeprefix("SIG")))

    def start_node(self, name: str) -> Seen:
        """Start a process that was stopped or ended, and return when it is ready."""
        return _named(self._ask(Asked("start", name), deadline_s=NODE_TIMEOUT_S), name)

    def stop_node(self, name: str) -> None:
        """Stop one process in an orderly way, and return when it has ended. It stays stopped."""
        self._ask(Asked("stop", name), deadline_s=NODE_TIMEOUT_S)

    def wait_ready(self, name: str, *, other_than: int | None = None, timeout_s: float = NODE_TIMEOUT_S) -> Seen:
        """Return when a process is ready: `other_than` names the process id of a former life, which does not count.

        Raises PeerUnavailable when that takes too long.
        """
        clock = SystemClock()
        give_up = clock.stopwatch() + timeout_s
        while (seen := self.node(name)).state is not State.READY or seen.pid == other_than:
            if clock.stopwatch() > give_up:
                raise PeerUnavailable(f"{name} was not ready within {timeout_s:g} s, it is {seen.state}")
            Event().wait(LOOK_S)
        return seen

    def log(self, name: str) -> str:
        """Return what a process has written; `all` is everybody's."""
        return (self._files.logs / f"{name}.log").read_text(encoding="utf-8")

    def _ask(self, asked: Asked, deadline_s: float = ASK_TIMEOUT_S) -> list[Seen]:
        return ask(self._files.folder, asked, deadline_s=deadline_s)


def _named(nodes: list[Seen], name: str) -> Seen:
    return next(seen for seen in nodes if seen.name == name)


@contextmanager
def running_system(*flags: str) -> Iterator[System]:
    """Run a system in a temporary folder until the block ends. `flags` are passed to `roadstead up`."""
    with TemporaryDirectory(prefix="roadstead-") as folder:
        process = UpProcess(Path(folder) / "data", *flags)
        try:
            yield process.start()
        finally:
            process.stop()
