"""What a run of all benchmarks prints, a JSON object a line, and how that is read again.

    {"environment": {...}}                    the machine and when, before all others
    {"name", "value", ..., "seconds"}         a benchmark that ran to its end: its own line, and how long it took
    {"name", "failed", "said", "seconds"}     one that did not: why, and its last lines on standard error

Lines of `python -m bench NAME` on the same machine can be added by hand: of a name that comes twice, the last counts.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.result import Result

__all__ = ["Environment", "Outcome", "Record", "look_around", "read"]

GIT_TIMEOUT_S = 10


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when benchmarks ran."""

    began: str
    """ISO 8601, UTC."""
    cpu: str
    cores: int
    """That this process may use."""
    memory_bytes: int
    kernel: str
    python: str
    commit: str
    """Of the checkout, with `+` after it if files differ from it; empty where there is none."""
    load: float
    """How many processes ran or wanted to in the minute before, of whomever: what else the machine was doing."""
    quick: bool


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one benchmark: a result, or why there is none."""

    name: str
    result: Result | None = None
    failed: str = ""
    said: str = ""
    """The last lines on standard error of one that failed."""
    seconds: float | None = None

    def to_json(self) -> str:
        """The line to print."""
        line: dict[str, Any]
        if self.result is None:
            line = {"name": self.name, "failed": self.failed, "said": self.said}
        else:
            line = msgspec.json.decode(self.result.to_json())
        return msgspec.json.encode(line if self.seconds is None else line | {"seconds": self.seconds}).decode()


class Record(msgspec.Struct, frozen=True):
    """All that a report is made of."""

    environments: list[Environment]
    outcomes: list[Outcome]


def read(lines: Iterable[str]) -> Record:
    """Read what was printed. Raises ValueError, which names the first line that is none of the three kinds."""
    environments: list[Environment] = []
    outcomes: dict[str, Outcome] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
            if "environment" in fields:
                environments.append(msgspec.convert(fields["environment"], Environment))
                continue
            seen = msgspec.convert(fields, Outcome)
            if not seen.failed:
                seen = msgspec.structs.replace(seen, result=msgspec.convert(fields, Result))
        except msgspec.MsgspecError as error:
            raise ValueError(f"line {number} is no result of a benchmark: {error}") from error
        outcomes[seen.name] = seen
    return Record(environments, list(outcomes.values()))


def look_around(*, quick: bool) -> Environment:
    """Return where and when this process runs, on Linux."""
    return Environment(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=_field("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=int(_field("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        commit=_commit(),
        load=round(os.getloadavg()[0], 2),
        quick=quick,
    )


def _field(file: str, name: str) -> str:
    """Return what stands behind the colon in the first such line of a file of the kernel, or nothing."""
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _commit() -> str:
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except OSError:
        return ""  # no git here
    return ran.stdout.strip() if ran.returncode == 0 else ""
