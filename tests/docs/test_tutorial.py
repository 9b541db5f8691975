"""The tutorial's words, run: its client, its four terminals, and what they show, compared line by line."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial/first-chat.md").read_text()
FIRST_PORT = 18_640
LINE_S = 30.0
TERMINALS = ("system", "alice", "bob", "yours")

pytestmark = pytest.mark.process


class Step(NamedTuple):
    """A line of a console block: `$ ` and `> ` are typed, all others are awaited; `...` is any number of lines."""

    terminal: str
    line: str


def steps() -> list[Step]:
    """All console blocks in their order. The word after `console` is the terminal, none is yours."""
    blocks = re.findall(r"^```console ?(\w*)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [Step(terminal or "yours", line) for terminal, block in blocks for line in block.splitlines() if line]


def shape(line: str) -> str:
    """Return a line without what differs from run to run: numbers, which of two nodes, column widths."""
    return " ".join(re.sub(r"\d+", "N", line).split())


class Terminal:
    """A shell, to which lines are typed, and what it and its programs print."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, errors: Path) -> None:
        self._process = process
        self._name = name
        self._errors = errors
        self._skips = False

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def expect(self, line: str) -> None:
        """Wait for the line. Others may come only after `...`, or if they say that a client lost or found a node."""
        if line == "...":
            self._skips = True
            return
        while shape(printed := await self._line(line)) != shape(line):
            assert self._skips or printed.startswith(("[connection lost]", "[connected to ")), (
                f"{self._name}: {printed!r} instead of {line!r}; {self._errors.read_text()}"
            )
        self._skips = False

    async def _line(self, awaited: str) -> str:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(LINE_S):
                printed = await self._process.stdout.readline()
        except TimeoutError:
            pytest.fail(f"{self._name}: {awaited!r} did not come; {self._errors.read_text()}")
        assert printed, f"{self._name} ended before {awaited!r}; {self._errors.read_text()}"
        return printed.decode().rstrip()


@asynccontextmanager
async def terminal(name: str, folder: Path) -> AsyncIterator[Terminal]:
    """A shell in the folder; in the end, what runs in it is asked to end, and is waited for."""
    environment = {
        **os.environ,
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "COLUMNS": "200",
        "PYTHONUNBUFFERED": "1",
    }
    errors = folder / f"{name}.errors"
    with errors.open("w") as stream:
        process = await asyncio.create_subprocess_exec(
            "bash",
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield Terminal(process, name, errors)
    finally:
        with suppress(ProcessLookupError):  # it ended by itself, which the test has told
            os.killpg(process.pid, signal.SIGTERM)
        await process.communicate()


async def test_everything_in_the_tutorial_happens_as_it_says(tmp_path: Path) -> None:
    """The client is the page's, and so is each line that is typed and that appears, in its terminal and order."""
    (client,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "chat.py").write_text(client.replace("127.0.0.1:8700", f"127.0.0.1:{FIRST_PORT}"))
    # The environment is the one that this test runs in: `-o` has make leave it as it is.
    options = f'-o .venv/.runtime ARGS="--data {tmp_path}/roadstead-data --port {FIRST_PORT}"'
    up = f"make --no-print-directory -C {ROOT} up {options}"
    found = steps()
    assert {step.terminal for step in found} == set(TERMINALS)
    async with AsyncExitStack() as stack:
        terminals = {name: await stack.enter_async_context(terminal(name, tmp_path)) for name in TERMINALS}
        for name, line in found:
            if line.startswith("$ "):
                terminals[name].type(line[2:].replace("make up", up))
            elif line.startswith("> "):
                terminals[name].type(line[2:])
            else:
                await terminals[name].expect(line)
