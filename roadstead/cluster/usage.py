"""What a process uses, as Linux tells it: resident memory and CPU time."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

__all__ = ["Usage", "usage_of"]


class Usage(msgspec.Struct, frozen=True):
    """Resident memory (bytes), and CPU time since the process began (seconds)."""

    resident_bytes: int
    cpu_s: float


def usage_of(pid: int) -> Usage | None:
    """Return what a process uses, None when it is gone or the system does not tell. Source: proc(5), /proc/PID/stat."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may have anything in it; the third field comes first
    user, system, resident = int(fields[11]), int(fields[12]), int(fields[21])
    return Usage(resident * os.sysconf("SC_PAGE_SIZE"), (user + system) / os.sysconf("SC_CLK_TCK"))
