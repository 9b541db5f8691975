"""The samples in deploy/ are read without a complaint by the programs that they are for, where these are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
SAMPLES = {
    "haproxy/haproxy.cfg": ("haproxy", "-c", "-f"),
    "prometheus/prometheus.yml": ("promtool", "check", "config"),
    "envoy/envoy.yaml": ("envoy", "--mode", "validate", "--log-level", "error", "-c"),
    "keepalived/keepalived.conf": ("keepalived", "-t", "-f"),
    "systemd/roadstead.service": ("systemd-analyze", "verify"),
}
OWN = {"envoy"}
"""What comes with our own packages, and is not looked for elsewhere."""
PROGRAM = "/opt/roadstead/.venv/bin/roadstead"
"""What a unit starts has to be there for its check: something that is takes its place."""

pytestmark = pytest.mark.process


def check(sample: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Let the program look at a file."""
    program, *arguments = SAMPLES[sample]
    found = str(Path(sys.executable).parent / program) if program in OWN else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(
        [found, *arguments, str(file)], capture_output=True, text=True, timeout=60, check=False, cwd=file.parent
    )


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_good(sample: str, tmp_path: Path) -> None:
    """Its own program has nothing against it."""
    file = tmp_path / Path(sample).name
    file.write_text((DEPLOY / sample).read_text().replace(PROGRAM, sys.executable))
    ran = check(sample, file)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "warning" not in (ran.stdout + ran.stderr).lower()


@pytest.mark.parametrize("sample", ["haproxy/haproxy.cfg", "prometheus/prometheus.yml", "envoy/envoy.yaml"])
def test_the_check_would_see_a_slip(sample: str, tmp_path: Path) -> None:
    """A key that does not exist is found, so that the test above can fail."""
    slip = {"haproxy.cfg": "retries", "prometheus.yml": "scrape_interval", "envoy.yaml": "connect_timeout"}
    file = tmp_path / Path(sample).name
    word = slip[file.name]
    text = (DEPLOY / sample).read_text()
    assert word in text
    file.write_text(text.replace(word, f"{word}_x"))
    assert check(sample, file).returncode != 0


def test_every_sample_is_named_in_the_list() -> None:
    """deploy/README.md says what each is for, and each is checked here."""
    page = (DEPLOY / "README.md").read_text()
    files = {str(file.relative_to(DEPLOY)) for file in DEPLOY.rglob("*") if file.is_file() and file.suffix != ".md"}
    assert files == set(SAMPLES)
    for name in files:
        assert f"({name})" in page, name
