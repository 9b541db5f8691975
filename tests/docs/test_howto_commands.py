"""The commands of the how-tos, run against one real system; those that need what a test cannot have are only read.

What a page shows is compared where it is a table (its head) or JSON (its fields): the rest differs from run to run, and
the README and the tutorial are where whole outputs are compared.
"""

from __future__ import annotations

import io
import os
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from roadstead.cli.main import main
from roadstead.local import System, UpProcess
from tests.docs.commands import DOCS, ROOT, Command, fault_of, fenced, inline

HOWTOS = sorted((DOCS / "howto").glob("*.md"))
OTHERS = [ROOT / "ARCHITECTURE.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

PAGES_ELSEWHERE = {
    "replay-a-day.md": "each plays minutes; tests/process/test_replay.py and the README's test play a part",
    "run-a-cluster.md": "it names files of a production machine; tests/process/test_roles.py runs such processes",
    "secure-a-cluster.md": "tests/docs/test_secure_a_cluster.py runs it",
}
ELSEWHERE = {
    r"--join http://10\.|up --set up\.host=10\.": "needs a second machine; tests/process/test_joined_nodes.py",
    r"roadstead cluster ": "needs Consul; tests/process/test_cluster_command.py runs each of them",
    r"roadstead im (--config|move|drain)": "needs a cluster's message services; tests/process/test_roles.py",
    r"roadstead history check": "needs a recording; tests/process/test_message_histories.py makes and checks them",
}
"""Commands that this test only reads, and why; what they need is elsewhere in the tests."""

FITTED = (
    (r"--over (5m|20s)", "--over 1s"),
    (r"--for 60s", "--for 2s"),
    (r"status resize (?!.*--plan)", "status resize --yes "),
)
"""What is changed before a command is run: nobody waits for so long, and nobody is at a terminal who could say yes."""

LASTING = re.compile(r"roadstead (access|status) serve |--follow|--user \w+ --device phone --json")
"""Commands that do not end by themselves: what they print first is waited for."""

READY_S = 30
CURL = 'curl -s -H "Authorization: Bearer $KEY"'
_DOCUMENT = re.compile(r"^```yaml\n((?:rollout|policy): (\S+)\n.*?)^```", flags=re.MULTILINE | re.DOTALL)


def is_elsewhere(command: Command) -> bool:
    """Whether the command is only read."""
    return Path(command.page).name in PAGES_ELSEWHERE or any(re.search(part, command.text) for part in ELSEWHERE)


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.name)
def test_each_command_of_a_how_to_is_one(page: Path) -> None:
    """The program has the command, its options take the values, nothing required is missing; requests have a path."""
    ours = [command for command in fenced(page) if Path(command.page).name != "secure-a-cluster.md"]
    faults = {str(command): fault for command in ours if (fault := fault_of(command, is_whole=True))}
    assert not faults


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_that_a_sentence_names_is_one(page: Path) -> None:
    """The same for what stands between backticks, where words in capitals stand for something and parts may lack."""
    faults = {str(command): fault for command in inline(page) if (fault := fault_of(command, is_whole=False))}
    assert not faults


def test_what_is_only_read_is_in_the_pages() -> None:
    """Each exception is of a page or command that there is."""
    commands = [command for page in HOWTOS for command in fenced(page)]
    assert set(PAGES_ELSEWHERE) <= {page.name for page in HOWTOS}
    for part in ELSEWHERE:
        assert any(re.search(part, command.text) for command in commands), part


# ---------------------------------------------------------------- a real system


class World:
    """A running system, in whose folder commands are run, with what the pages take to be there."""

    def __init__(self, system: System, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._nodes = list(system.endpoints.nodes().values())
        self._key = system.data.secrets().api_key
        self._stack = stack
        (folder / ".curlrc").write_text("fail-with-body\nmax-time = 20\n")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
            "CURL_HOME": str(folder),
            "KEY": self._key,
        }

    def prepare(self) -> None:
        """Two who chat, a group of four, and the lists and documents that the pages name."""
        self.shell("roadstead send --from alice --to bob 'lunch?'")
        group = '{"client_msg_id": "hikers-1", "name": "Hikers", "members": ["bob", "carol", "dave"]}'
        self.shell(f"{CURL} {self._nodes[1]}/v1/users/alice/im/group_create -d '{group}'")
        (self.folder / "staff.txt").write_text("ann\nben\n")
        for page in HOWTOS:
            for document, name in _DOCUMENT.findall(page.read_text()):
                (self.folder / f"{name}.yaml").write_text(document)
        for user in ("alice", "bob"):
            self.begin(f"roadstead chat --user {user} --device phone --json")

    def fitted(self, text: str) -> str:
        """Return the command as it is run here: with this system's addresses, and without long waits."""
        text = re.sub(r"http://127\.0\.0\.1:87(\d\d)", lambda port: self._nodes[int(port[1])], text)
        for pattern, by in FITTED:
            text = re.sub(pattern, by, text)
        if "--decision" in text:
            text = re.sub(r"--decision \S+", f"--decision {self.access()['decision']}", text)
        return text

    def access(self) -> dict[str, Any]:
        """Ask the scheduler for bob, as a backend does."""
        decoded: dict[str, Any] = msgspec.json.decode(self.shell(f'{CURL} "{self._nodes[0]}/v1/access?user=bob"'))
        return decoded

    def shell(self, text: str) -> str:
        """Run a command by bash and return what it prints. An error of HTTP is one."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def begin(self, text: str) -> str:
        """Begin a command that lasts until the test is over, and return its first line.

        It may be about what happens from now on: so somebody comes and goes until there is a line.
        """
        words = [sys.executable, "-m", *shlex.split(text, comments=True)]
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(_end, process)
        assert process.stdout is not None
        for _ in range(READY_S):
            if select.select([process.stdout], [], [], 1.0)[0]:
                line = process.stdout.readline()
                assert line, f"it ended with {process.wait()}"
                return line
            self.shell("roadstead chat --user visitor")
        raise AssertionError(f"nothing is printed within {READY_S} s")

    def run(self, text: str, capsys: pytest.CaptureFixture[str]) -> str:
        """Run a command of a page and return what it prints: ours within this process, which is quicker than a shell.

        But for those that connect as clients: the SDK closes connections in the background, when this loop has ended.
        """
        words = shlex.split(text, comments=True)
        if words[0] != "roadstead" or words[1] in {"chat", "doctor"} or {"<", ">", "|"} & set(words):
            return self.shell(text)
        capsys.readouterr()
        try:
            main(words[1:])
        except SystemExit as ended:
            printed = capsys.readouterr()
            raise AssertionError(f"exit code {ended.code}: {printed.out}{printed.err}") from None
        return capsys.readouterr().out


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.terminate()


@contextmanager
def clients(world: World) -> Iterator[None]:
    """Somebody asks the scheduler all the time, so that there is something to record and to judge."""
    asks = f'while :; do {CURL} "{world.fitted("http://127.0.0.1:8700/v1/access?user=")}$RANDOM"; sleep 0.1; done'
    with subprocess.Popen(["bash", "-c", asks], env=world.environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def unlike(shown: str, printed: str) -> str:
    """Return what of a page's output is not in the real one: the head of a table, a field of JSON. Empty if all is."""
    first = shown.partition("\n")[0]
    if shown.startswith("{"):
        missing = set(msgspec.json.decode(shown)) ^ set(msgspec.json.decode(printed))
        return f"fields {missing}" if missing else ""
    if re.fullmatch(r"[a-z][a-z ]*(  +[a-z ]+){2,}", first):
        heads = {tuple(line.split()) for line in printed.splitlines()}
        return "" if tuple(first.split()) in heads else f"the head is not {first!r}"
    return ""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A system with the namespaces of the how-to of channels, and with people."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (settings,) = re.findall(
        r"^```toml\n(.*?)^```", (DOCS / "howto/application-channels.md").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    (tmp_path / "roadstead.toml").write_text(settings)
    process = UpProcess(tmp_path / "roadstead-data", "--config", "roadstead.toml")
    with ExitStack() as stack:
        stack.callback(process.stop)
        made = World(process.start(), tmp_path, stack)
        made.prepare()
        stack.enter_context(clients(made))
        yield made


@pytest.mark.process
def test_the_commands_of_the_how_tos_do_what_the_pages_say(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of pages and lines, against one system: exit code 0, and tables and JSON as they are shown."""
    faults = {}
    commands = [command for page in HOWTOS for command in fenced(page) if not is_elsewhere(command)]
    assert len(commands) > 50
    for command in commands:
        text = world.fitted(command.text)
        try:
            if LASTING.search(text):
                world.begin(text)
            elif fault := unlike(command.shown, world.run(text, capsys)):
                faults[str(command)] = fault
        except AssertionError as error:
            faults[str(command)] = str(error)
    assert not faults, "\n".join(f"{command}\n    {fault}" for command, fault in faults.items())
