"""A system of its own for a benchmark: `roadstead up` in another process, on free ports, in a temporary folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from roadstead.deployment import DataFolder, Endpoints

__all__ = ["System", "running_system"]


class System(msgspec.Struct, frozen=True):
    """A running system: where it listens and where its data is."""

    endpoints: Endpoints
    data: DataFolder

    @property
    def scheduler(self) -> str:
        """The scheduler's base URL."""
        return next(iter(self.endpoints.scheduler.values()))


@contextmanager
def running_system(*flags: str) -> Iterator[System]:
    """Start a system and end it afterwards. `flags` are passed to `roadstead up`."""
    with TemporaryDirectory(prefix="roadstead-bench-") as folder:
        data = Path(folder) / "data"
        command = [sys.executable, "-m", "roadstead", "up", "--json", "--port", "0", "--data", str(data), *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the system did not start, exit code {process.wait()}")
                yield System(msgspec.json.decode(line, type=Endpoints), DataFolder(data))
            finally:
                process.terminate()
                process.wait()
