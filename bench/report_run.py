"""Runs benchmarks one after the other, each in a process of its own.

So one that fails, hangs or leaks does not spoil the others: it has a deadline, it is told to stop before it is killed,
and what it started and left behind in its process group is killed after it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import msgspec

from bench.report_record import Outcome, Record
from bench.result import Options, Result

__all__ = ["command_of", "run_all", "run_alone"]

LOOK_S = 0.1
STOP_S = 100.0
"""A cluster that is told to stop may take 90 s."""
SAID_LINES = 30
"""Of standard error, kept of one that fails."""


def command_of(name: str, options: Options) -> list[str]:
    """Return the command line that runs one benchmark."""
    command = [sys.executable, "-m", "bench", name]
    if options.quick:
        command.append("--quick")
    if options.connections is not None:
        command += ["--connections", str(options.connections)]
    return command


def run_all(names: Sequence[str], options: Options, record: Record, *, deadline_s: float) -> None:
    """Run them in turn: print what comes of each as a line, and add it to the record."""
    for each in record.environments:
        print(msgspec.json.encode({"environment": each}).decode(), flush=True)
    for number, name in enumerate(names, 1):
        print(f"---- {name} ({number} of {len(names)})", file=sys.stderr, flush=True)
        outcome = run_alone(name, command_of(name, options), deadline_s=deadline_s)
        record.outcomes.append(outcome)
        print(outcome.to_json(), flush=True)
        if outcome.failed:
            print(f"---- {name} failed: {outcome.failed}", file=sys.stderr, flush=True)


def run_alone(name: str, command: list[str], *, deadline_s: float, stop_s: float = STOP_S) -> Outcome:
    """Run one benchmark to its end or deadline; what it says on standard error is passed on as it comes."""
    began = time.perf_counter()
    with TemporaryDirectory(prefix="bench-") as folder:
        # Files and no pipes: the end of a pipe never comes while somebody who was left behind holds it.
        out, err = Path(folder) / "out", Path(folder) / "err"
        with (
            out.open("wb") as stdout,
            err.open("wb") as stderr,
            err.open("r", encoding="utf-8", errors="replace") as reader,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            ) as process,
        ):
            try:
                in_time = _follow(process, reader, began + deadline_s)
            finally:
                _end(process, stop_s)
                _pass_on(reader)
        failed = f"no end after {deadline_s:g} s" if not in_time else ""
        said = [line for line in err.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if in_time and process.returncode:
            failed = f"exit code {process.returncode}" + (f": {said[-1].strip()}" if said else "")
        printed = out.read_text(encoding="utf-8", errors="replace").splitlines()
    seconds = round(time.perf_counter() - began, 1)
    if not failed:
        try:
            result = msgspec.json.decode(printed[-1] if printed else "", type=Result)
            return Outcome(name=name, result=result, seconds=seconds)
        except msgspec.MsgspecError as error:
            failed = f"its last line is no result: {error}"
    return Outcome(name=name, failed=failed, said="\n".join(said[-SAID_LINES:]), seconds=seconds)


def _follow(process: subprocess.Popen[bytes], reader: IO[str], until: float) -> bool:
    """Pass on what it says until it ends, and return whether it did in time."""
    while process.poll() is None:
        _pass_on(reader)
        if time.perf_counter() > until:
            return False
        time.sleep(LOOK_S)
    return True


def _pass_on(reader: IO[str]) -> None:
    sys.stderr.write(reader.read())
    sys.stderr.flush()


def _end(process: subprocess.Popen[bytes], stop_s: float) -> None:
    """Have a benchmark stop what it started, in whatever process groups; then kill what is left in its own."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(stop_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
