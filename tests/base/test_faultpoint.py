"""A process dies at the point that was armed, and at no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from base.faultpoint import CRASH_AT

PASSES = "from base.faultpoint import reach; reach('one'); print('after one'); reach('two'); print('after two')"


def run(point: str | None) -> tuple[int, bytes]:
    armed = {} if point is None else {CRASH_AT: point}
    command = [sys.executable, "-u", "-c", PASSES]
    done = subprocess.run(command, env={**os.environ, **armed}, capture_output=True, timeout=30, check=False)
    return done.returncode, done.stdout


def test_an_armed_point_kills_the_process_there() -> None:
    """By a signal that nothing can catch: whatever it had in memory is gone."""
    assert run("two") == (-signal.SIGKILL, b"after one\n")
    assert run("one") == (-signal.SIGKILL, b"")


def test_other_points_do_nothing() -> None:
    """As without any."""
    assert run(None) == run("three") == (0, b"after one\nafter two\n")
