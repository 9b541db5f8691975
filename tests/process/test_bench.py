"""Every benchmark runs to its end and says what it measured. No time is asserted: a benchmark is no test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.__main__ import NAMES

pytestmark = pytest.mark.process


@pytest.mark.spec("AR-9")
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs(name: str) -> None:
    """Its last line on standard output is the promised JSON."""
    ran = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert set(result) - {"comparison", "series"} == {"name", "value", "unit", "goal", "better", "ok", "details"}
    assert result["name"] == name
    assert result["better"] in ("lower", "higher")
    assert isinstance(result["ok"], bool)


def test_the_list_names_every_benchmark_with_its_claim() -> None:
    """`--list` is made from the modules' first lines."""
    ran = subprocess.run([sys.executable, "-m", "bench", "--list"], capture_output=True, text=True, check=True)
    lines = [line.split("\t") for line in ran.stdout.splitlines()]
    assert [name for name, _ in lines] == list(NAMES)
    assert all(claim for _, claim in lines)
