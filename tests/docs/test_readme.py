"""The README's words, run: `make up`, then every command of the tour, and its output compared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIRST_PORT = 18_700

pytestmark = pytest.mark.process


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def tour() -> list[tuple[str, str]]:
    """(command, expected output) of every `$ ` line in a console block."""
    steps = []
    for block in blocks("console"):
        for step in block.strip().split("$ ")[1:]:
            command, _, output = step.partition("\n")
            steps.append((command.replace("127.0.0.1:8700", f"127.0.0.1:{FIRST_PORT}"), output))
    return steps


def shape(output: str) -> list[str]:
    """Output without what differs from run to run: numbers, ids, tickets, which of two nodes, column widths."""
    text = re.sub(r'"ticket":"[^"]*"', '"ticket":"..."', output)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", text)
    text = re.sub(r"\d+", "N", text)
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `roadstead-data` in it, of a system that `make up` runs, as the README says."""
    folder = tmp_path_factory.mktemp("tour")
    arguments = f"ARGS=--data {folder}/roadstead-data --port {FIRST_PORT}"
    with subprocess.Popen(
        ["make", "--no-print-directory", "up", arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = ""
        while "Stop with Ctrl-C." not in printed:
            line = process.stdout.readline()
            assert line, "make up ended"
            printed += line
        assert shape(printed)[0] == "Roadstead is up"
        promised = next(block for block in blocks("") if block.startswith("Roadstead is up"))
        assert shape(printed)[1:12] == shape(promised)[1:12]
        yield folder
        process.send_signal(signal.SIGTERM)


def test_the_tour_does_what_the_readme_shows(folder: Path) -> None:
    """Every command in its order, in one shell's environment; output equal but for what differs from run to run."""
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "COLUMNS": "200"}
    assert len(tour()) >= 6
    for command, expected in tour():
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, f"{command}: {ran.stderr}"
        assert shape(ran.stdout) == shape(expected), command


def test_the_demo_ends_well() -> None:
    """`make demo` checks itself and says so; here with a part of its day, and without operations."""
    arguments = "ARGS=--day 2018-05-11 --conversations 8 --speed 20000 --no-operations"
    ran = subprocess.run(
        ["make", "--no-print-directory", "demo", arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    promised = next(block for block in blocks("") if block.startswith("messages  "))
    printed = ran.stdout.splitlines()
    assert printed[-1] == promised.splitlines()[-1]
    assert {line.split("  ")[0] for line in promised.splitlines()} <= {line.split("  ")[0] for line in printed}


def test_the_python_example_uses_what_exists() -> None:
    """The block compiles, and names the path and methods that the system serves."""
    (example,) = blocks("python")
    compile(example, "README.md", "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT
    assert "/v1/access" in example
    assert "im.send" in example
