"""A node of a local cluster in surroundings of its own: another network, another clock, a point at which it dies.

The cluster's supervisor stops the node, and the test runs it instead, with the same name, configuration and ports.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from base.errors import PeerUnavailable

__all__ = ["Apart"]

PR_SET_PDEATHSIG = 1
READY_S = 40.0
STOP_S = 40.0


class Apart:
    """See the module. Blocking calls."""

    def __init__(
        self,
        name: str,
        *,
        folder: Path,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        enter: Callable[[], None] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            name: of the node, `ROLE-NUMBER`.
            folder: the cluster's, with the node's configuration.
            flags: more options of the role's command.
            env: is added to this process' environment.
            enter: called in the new process before it becomes the node.
        """
        self.name = name
        self._log = folder / "logs" / f"{name}.apart.log"
        self._command = [
            *(sys.executable, "-m", "roadstead", name.partition("-")[0]),
            *("--json", "--config", str(folder / f"{name}.toml"), *flags),
        ]
        self._env = {**os.environ, **(env or {})}
        self._enter = enter
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        """Start it and return when it is ready. Raises PeerUnavailable when it ended instead."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
                start_new_session=True,
                preexec_fn=self._before(os.getpid()),  # noqa: PLW1509 - it calls nothing but the kernel
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            code = self.end(signal.SIGKILL)
            raise PeerUnavailable(f"{self.name} did not start, exit code {code}, see {self._log}")

    async def until_dead(self, within_s: float) -> int:
        """Return its exit code once it has ended. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while (code := self.exit_code) is None:  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.02)
        self.end(signal.SIGKILL)
        return code

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and return its exit code. Idempotent; 0 when it was not running."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with process:
            process.send_signal(number)
            try:
                return process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def _before(self, parent: int) -> Callable[[], None]:
        libc, enter = ctypes.CDLL(None), self._enter

        def before() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            if enter is not None:
                enter()

        return before
