"""The resize as operators meet it: the plan, the question, the waiting, and the exit codes that the how-to lists."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roadstead.local import System, UpProcess

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-m", "roadstead", "status"]


class Operator:
    """Runs `roadstead status` for one system."""

    def __init__(self, system: System) -> None:
        self._data = ["--data", str(system.data.path)]
        self.environment = {**os.environ, "COLUMNS": "200"}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, without a terminal."""
        return subprocess.run(
            [*COMMAND, *arguments, *self._data],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env=self.environment,
        )

    def json(self, *arguments: str) -> Any:
        """Run a command that ends well and return its last line."""
        ran = self(*arguments, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    def start(self, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen([*COMMAND, *arguments, *self._data], text=True, env=self.environment, **streams)

    def on_terminal(self, *arguments: str, typed: str) -> tuple[int, str]:
        """Run a command on a terminal, with something typed; return its exit code and what was shown."""
        master, slave = pty.openpty()
        with self.start(*arguments, stdin=slave, stdout=slave, stderr=slave) as process:
            os.close(slave)
            os.write(master, typed.encode())
            shown = b""
            while True:
                try:
                    part = os.read(master, 4_096)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                shown += part
            code = process.wait(timeout=90)
        os.close(master)
        return code, shown.decode()

    def back_to_three(self) -> None:
        """Leave the cluster as each test finds it: the first three nodes, nothing paused."""
        self("resume")
        assert self("resize", "--to", "3", "--yes").returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _interruptible() -> None:
    """Let the commands be interrupted even if these tests run in the background of a shell, which ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    process = UpProcess(tmp_path_factory.mktemp("up") / "data")
    yield process.start()
    assert process.stop() == 0


@pytest.fixture
def operator(system: System) -> Iterator[Operator]:
    made = Operator(system)
    yield made
    made.back_to_three()


def test_a_plan_is_shown_and_changes_nothing(operator: Operator) -> None:
    """A row a pair of nodes, and the totals."""
    planned = operator("resize", "--to", "5", "--plan")
    assert planned.returncode == 0
    lines = planned.stdout.splitlines()
    assert lines[0].split() == ["from", "to", "partitions", "sessions", "bytes"]
    assert len(lines) == 8
    assert lines[-1].startswith("1638 partitions move, 1638 is the least possible; 0 sessions, 0 bytes; about ")
    assert operator.json("resize", "--add", "status-4", "--weight", "status-4=3", "--plan")["partitions"] == 2_048
    assert operator.json("progress")["is_done"]
    assert [node["weight"] for node in operator.json("table")["nodes"]] == [1, 1, 1]


def test_a_resize_is_waited_for(operator: Operator) -> None:
    """Then the table, the digests and a second order of the same show that it is done."""
    resized = operator("resize", "--to", "5", "--yes")
    assert (resized.returncode, resized.stderr) == (0, "")
    assert resized.stdout.splitlines()[-1].startswith("done: 1638 partitions moved in ")
    assert resized.stdout.splitlines()[-1].endswith("; 4096 partitions over 5 nodes")
    assert operator("table").stdout.count("of its share") == 5
    assert operator("resize", "--to", "5", "--yes").stdout.endswith("nothing to do: it is as you ask\n")
    assert operator("progress").stdout == "no resize is under way; 4096 partitions over 5 nodes\n"
    compared = operator("digest")
    assert compared.returncode == 0
    assert compared.stdout.count("OK") == 2
    assert operator.json("digest")["is_ok"] is True
    ended = operator.json("resize", "--remove", "status-5", "--yes")
    assert (ended["is_done"], ended["spares"]) == (True, ["status-5"])


def test_pause_resume_and_abort_by_command(operator: Operator) -> None:
    """Who waits for a paused resize is told so, with exit code 4."""
    assert operator("pause").stdout == "no resize is under way; a resize would wait for `roadstead status resume`\n"
    waited = operator("resize", "--to", "4", "--yes")
    assert waited.returncode == 4
    assert waited.stdout.endswith("is paused: 1024 partitions are left to move; `roadstead status resume` goes on\n")
    assert operator("pause").stdout == "the resize is paused: 1024 partitions are left to move\n"
    assert operator("progress").returncode == 4
    assert operator("abort").stdout == (
        "the resize is aborted, 0 moves rolled back: 1024 partitions are left to move\n"
    )
    assert "becomes" in operator("table").stdout
    assert operator("resume").stdout.startswith("the resize goes on: ")
    assert operator("progress").returncode == 0
    assert operator.json("progress")["is_done"]


def test_ctrl_c_ends_the_waiting_and_not_the_resize(operator: Operator) -> None:
    """It is said, and `progress` goes on looking."""
    with operator.start("resize", "--to", "5", "--yes", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(8):
            process.stdout.readline()  # the plan; after it the order is given
        while operator.json("progress")["is_done"]:
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the resize goes on by itself" in errors
    assert operator("progress").returncode == 0
    assert len(operator.json("table")["nodes"]) == 5


def test_on_a_terminal_it_asks(operator: Operator) -> None:
    """No is no; yes goes on, with a bar."""
    code, shown = operator.on_terminal("resize", "--to", "4", typed="n\n")
    assert (code, "go on?" in shown, "nothing was changed" in shown) == (1, True, True)
    assert operator.json("progress")["is_done"]
    code, shown = operator.on_terminal("resize", "--to", "4", typed="y\n")
    assert code == 0
    assert "partitions" in shown
    assert "done: 1024 partitions moved in " in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "say what to change"),
        (["--to", "5"], 2, "there is no terminal to ask on; add --yes"),
        (["--to", "five"], 2, "not a valid integer"),
        (["--weight", "status-1"], 2, "is not NODE=WEIGHT"),
        (["--weight", "status-1=1", "--weight", "status-1=2"], 2, "two weights"),
        (["--to", "6", "--yes"], 1, "error: to is 6, but 5 status nodes are there; start more of them first"),
        (["--add", "status-9", "--plan"], 1, "error: no such status node: status-9; there are: status-1, "),
        (["--to", "2", "--add", "status-4", "--plan"], 1, "error: to chooses the nodes"),
    ],
)
def test_mistakes_are_one_clear_line(system: System, arguments: list[str], code: int, message: str) -> None:
    """Exit code 2 for wrong usage, 1 for what the cluster refuses."""
    ran = Operator(system)("resize", *arguments)
    assert ran.returncode == code
    assert message in ran.stderr


def test_without_a_system_every_command_says_how_to_start_one(tmp_path: Path) -> None:
    """Exit code 3."""
    for what in (["resize", "--to", "2", "--yes"], ["pause"], ["resume"], ["abort"], ["progress"], ["digest"]):
        ran = subprocess.run(
            [*COMMAND, *what, "--data", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 3
        assert "start it with `roadstead up`" in ran.stderr


def test_a_user_is_watched(operator: Operator) -> None:
    """The status now, then each change; a chat makes the user come and go."""
    chat = [sys.executable, "-m", "roadstead", "chat", "--user", "walter", *operator._data]
    with operator.start("watch", "walter", "--json", stdout=subprocess.PIPE) as watching:
        try:
            assert watching.stdout is not None
            assert json.loads(watching.stdout.readline())["state"] == "offline"
            with subprocess.Popen(chat, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
                assert json.loads(watching.stdout.readline())["state"] == "online"
            assert json.loads(watching.stdout.readline())["state"] == "offline"
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 130
        finally:
            watching.kill()
