"""What a process and the kernel use, as Linux counts it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

__all__ = ["Child", "KernelMemory", "child", "cpu_s", "kernel_memory", "resident_bytes"]

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class KernelMemory(msgspec.Struct, frozen=True):
    """Of the whole machine, in bytes: what the kernel holds in slabs and in TCP's buffers, what could be had yet."""

    slab: int
    tcp_buffers: int
    available: int
    tcp_sockets: int


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far, user and system, to the nanosecond.

    Source: clock_getcpuclockid(3), whose C library makes the clock's number from the process id like this.
    """
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def kernel_memory() -> KernelMemory:
    """Return how it is now, by /proc/meminfo and /proc/net/sockstat."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    memory = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}
    lines = Path("/proc/net/sockstat").read_text(encoding="ascii").splitlines()
    (tcp,) = (line.split()[1:] for line in lines if line.startswith("TCP:"))
    values = dict(zip(tcp[::2], map(int, tcp[1::2]), strict=True))
    return KernelMemory(
        slab=memory["Slab:"],
        tcp_buffers=values["mem"] * PAGE_BYTES,
        available=memory["MemAvailable:"],
        tcp_sockets=values["inuse"],
    )


class Child(msgspec.Struct, frozen=True):
    """A process of ours, and the line by which it said that it is ready."""

    process: subprocess.Popen[bytes]
    said: bytes

    def tell(self) -> None:
        """Send an empty line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return cpu_s(self.process.pid)

    def resident(self) -> int:
        """Resident bytes."""
        return resident_bytes(self.process.pid)


@contextmanager
def child(command: Sequence[str]) -> Iterator[Child]:
    """Run a process from its first line on standard output on until the block ends; then it is killed."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said, f"{' '.join(command)} ended instead of starting"
            yield Child(process, said)
        finally:
            process.kill()
