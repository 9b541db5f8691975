"""The command as people meet it: what it prints, its exit codes, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from roadstead.local import System, UpProcess

pytestmark = pytest.mark.process


def roadstead(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "roadstead", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def free_range(count: int = 20) -> int:
    """The first of some ports of which none is in use, and none is given to whoever asks for any."""
    for first in range(21_000, 29_000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    process = UpProcess(tmp_path_factory.mktemp("up") / "data")
    yield process.start()
    assert process.stop() == 0, "SIGTERM ends it in order"


def test_a_message_sent_by_command_is_read_in_chat(system: System) -> None:
    """send, then chat of the receiver, which shows it once and remembers its place."""
    data = ["--data", str(system.data.path)]
    sent = roadstead("send", "--from", "ann", "--to", "ben", "--id", "k1", "--json", *data, "hello ben")
    assert json.loads(sent.stdout)["is_new"] is True
    again = roadstead("send", "--from", "ann", "--to", "ben", "--id", "k1", *data, "hello ben")
    assert again.stdout.startswith("was stored before: ")
    assert roadstead("chat", "--user", "ben", *data).stdout == "ann: hello ben\n"
    assert roadstead("chat", "--user", "ben", *data).stdout == ""


def test_chat_sends_the_lines_it_is_given(system: System) -> None:
    """Standard input that is no terminal: each line is stored before the command ends."""
    data = ["--data", str(system.data.path)]
    spoken = roadstead("chat", "--user", "cat", "--to", "dan", *data, stdin="one\n/to eve\ntwo\n")
    assert (spoken.returncode, spoken.stderr) == (0, "")
    assert roadstead("chat", "--user", "dan", *data).stdout == "cat: one\n"
    events = [json.loads(line) for line in roadstead("chat", "--user", "eve", "--json", *data).stdout.splitlines()]
    assert [(event["event"], event["body"], event["offset"]) for event in events] == [("message", "two", 1)]


def test_lookup_and_doctor_tell_how_it_is(system: System) -> None:
    """For people and for programs."""
    data = ["--data", str(system.data.path)]
    assert "offline" in roadstead("status", "lookup", "nobody", *data).stdout
    looked = json.loads(roadstead("status", "lookup", "nobody", "--json", *data).stdout)
    assert looked == [{"user": "nobody", "state": "offline", "sessions": [], "last_seen": None}]
    examined = roadstead("doctor", "--json", *data)
    assert examined.returncode == 0
    assert all(finding["is_ok"] for finding in json.loads(examined.stdout))
    assert "a message arrives" in roadstead("doctor", *data).stdout


def test_a_token_lets_a_client_ask_for_access(system: System) -> None:
    """Token prints nothing else, so that it can be used in a shell."""
    minted = roadstead("token", "--user", "ann", "--data", str(system.data.path)).stdout.strip()
    assert minted.count(".") == 2


def test_a_folder_in_use_and_a_port_in_use_are_one_line_each(system: System, tmp_path: Path) -> None:
    """Exit code 2 and what to do."""
    used = roadstead("up", "--port", "0", "--data", str(system.data.path))
    assert used.returncode == 2
    assert f"is in use by process {system.endpoints.pid}; stop it, or choose another with --data" in used.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_range()))
        taken.listen()
        port = taken.getsockname()[1]
        clash = roadstead("up", "--port", str(port), "--data", str(tmp_path / "data"))
    assert clash.returncode == 2
    (line,) = clash.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in line


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    ended = roadstead("up", "--port", "0", "--data", str(tmp_path / "file" / "data"))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "cannot be written" in line


def test_configuration_mistakes_are_all_listed(tmp_path: Path) -> None:
    """Unknown key, wrong type and a bound at once; bad TOML with its line; exit code 2."""
    file = tmp_path / "bad.toml"
    file.write_text("[access]\ncapacity = 0\ncapasity = 1\n[up]\nhost = '0.0.0.0'\n")
    checked = roadstead("check-config", "--config", str(file), ROADSTEAD_IM__BODY_BYTES_MAX="lots")
    assert checked.returncode == 2
    assert len(checked.stderr.splitlines()) == 4
    assert "did you mean access.capacity?" in checked.stderr
    assert "allow_remote" in checked.stderr
    file.write_text("[access\n")
    broken = roadstead("up", "--config", str(file))
    assert broken.returncode == 2
    assert "bad TOML" in broken.stderr
    assert "line 1" in broken.stderr
    assert roadstead("check-config").stdout == "the configuration is good\n"
    shown = json.loads(roadstead("print-config", "--json", "--set", "up.access_nodes=5").stdout)
    assert shown["up"]["access_nodes"] == 5
    assert "[access]\n" in roadstead("print-config").stdout
    masked = roadstead("print-config", "--set", "status.redis_url=redis://me:hush@host:6379/0").stdout
    assert "redis://me:***@host:6379/0" in masked


def test_commands_without_a_running_system_say_how_to_start_one(tmp_path: Path) -> None:
    """Exit code 3: not reachable. Also for a folder whose system was stopped."""
    nothing = roadstead("doctor", "--data", str(tmp_path))
    assert nothing.returncode == 3
    assert "start it with `roadstead up`" in nothing.stderr
    process = UpProcess(tmp_path / "data")
    process.start()
    process.stop()
    stopped = roadstead("send", "--from", "a", "--to", "b", "--data", str(tmp_path / "data"), "x")
    assert stopped.returncode == 3
    assert "cannot be reached" in stopped.stderr


def test_usage_mistakes_exit_with_two() -> None:
    """Unknown commands and missing options."""
    assert roadstead("nothing").returncode == 2
    assert roadstead("send", "hello").returncode == 2
    assert roadstead("--version").stdout.startswith("roadstead, version ")


def test_an_interrupt_ends_in_order(tmp_path: Path) -> None:
    """Ctrl-C is an orderly stop, exit code 0."""
    command = [sys.executable, "-m", "roadstead", "up", "--port", "0", "--json", "--data", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
