"""ARCHITECTURE.md says who may import whom; import-linter holds the code to that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.spec("AR-6")
def test_imports_go_down_only_and_cores_do_no_io() -> None:
    """As `make check` has it; here because the document promises it."""
    command = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([command, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
