"""A wall clock for one process, which the test moves while the process runs."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from pathlib import Path

__all__ = ["WallClock"]

SOURCE = Path(__file__).with_name("wall_clock.c")
NS = 1_000_000_000


class WallClock:
    """See the module. The monotonic clock, by which all waiting is done, is left alone."""

    def __init__(self, folder: Path) -> None:
        """Build in the folder what the process needs; that takes a C compiler."""
        library, file = folder / "wall_clock.so", folder / "wall_clock"
        command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, 8)
        self._map = mmap.mmap(descriptor, 8)
        os.close(descriptor)
        self.env = {"LD_PRELOAD": str(library), "ROADSTEAD_TEST_CLOCK": str(file)}
        """What makes a process go by it."""

    def set(self, ahead_s: int) -> None:
        """Have it be so much ahead of the machine's, at once."""
        self._map[:] = struct.pack("=q", ahead_s * NS)

    def close(self) -> None:
        """Forget it."""
        self._map.close()
