"""`roadstead up` in another process, on free ports: for demos, benchmarks and tests of whole processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from base.errors import PeerUnavailable
from roadstead.deployment import DataFolder, Endpoints

__all__ = ["System", "UpProcess", "running_system"]

STOP_TIMEOUT_S = 30.0


class System(msgspec.Struct, frozen=True):
    """A running system: where it listens and where its data is."""

    endpoints: Endpoints
    data: DataFolder

    @property
    def scheduler(self) -> str:
        """The scheduler's base URL."""
        return next(iter(self.endpoints.scheduler.values()))


class UpProcess:
    """A child process that runs `up` from a data folder. `start` returns when it serves."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.data = DataFolder(folder)
        self._command = [
            sys.executable,
            "-m",
            "roadstead",
            "up",
            "--json",
            "--port",
            "0",
            "--data",
            str(folder),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> System:
        """Start and wait until it serves. Raises PeerUnavailable when it ends instead; its own words are on stderr."""
        assert self._process is None
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)  # noqa: S603 - our own command
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.stop()
            raise PeerUnavailable(f"the system did not start, exit code {code}")
        return System(msgspec.json.decode(line, type=Endpoints), self.data)

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL, no last words."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it in an orderly way and return its exit code. Idempotent; 0 when it was not running."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            process.send_signal(number)
            return process.wait(timeout=STOP_TIMEOUT_S)


@contextmanager
def running_system(*flags: str) -> Iterator[System]:
    """Run a system in a temporary folder until the block ends. `flags` are passed to `roadstead up`."""
    with TemporaryDirectory(prefix="roadstead-") as folder:
        process = UpProcess(Path(folder) / "data", *flags)
        try:
            yield process.start()
        finally:
            process.stop()
