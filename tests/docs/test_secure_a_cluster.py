"""The commands of the how-to of a secured cluster, run in order: what they print, and that nodes can use the files."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from base.credentials import Credentials, Role
from base.keys import KeyList, KeyRing
from base.trust import SecurityConfig, Trust
from roadstead.cli.main import main
from scheduler.tokens import TicketSigners

PAGE = (Path(__file__).parents[2] / "docs/howto/secure-a-cluster.md").read_text()


def steps(heading: str) -> list[tuple[str, str]]:
    """(command, expected output) of the console block of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```console\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    found = [step.partition("\n") for step in block.split("$ ", 1)[1].split("\n$ ")]
    return [(command, output) for command, _, output in found]


def shape(output: str) -> list[str]:
    """Output without dates, counts of days, and the widths of columns."""
    text = re.sub(r"\d{4}-\d\d-\d\d", "DATE", output)
    text = re.sub(r"DATE +\d+", "DATE N", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def printed(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in the folder: ours within this process, any other by a shell."""
    program, *arguments = shlex.split(command)
    if program == "roadstead":
        main(arguments)
        return capsys.readouterr().out
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_the_commands_make_files_that_nodes_can_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates, each kind of key, a renewal, and a change of the peer key; nobody else can read the keys."""
    folder = tmp_path
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(heading: str) -> None:
        for command, output in steps(heading):
            assert shape(printed(command, folder, capsys)) == shape(output), command

    run("Certificates")
    run("Keys")
    keys = folder / "keys"
    credentials = Credentials(file=str(keys / "api-keys"), setting="security.api_keys_file")
    credentials.load()
    secret = (keys / "api-keys").read_text().split()[1]
    assert credentials.role_of(secret) is Role.ADMIN
    tickets = KeyRing(str(keys / "ticket-keys"), setting="security.ticket_keys_file")
    tickets.load()
    signer = TicketSigners(tickets).signer()
    assert signer is not None
    assert signer.kid == "t1"
    KeyList(str(keys / "user-keys"), setting="security.user_keys_file", verifies=True).load()
    config = SecurityConfig(
        peer_keys_file=str(keys / "peer-keys"),
        tls_certificate=str(folder / "ca/access-1.pem"),
        tls_key=str(folder / "ca/access-1.key"),
        tls_ca=str(folder / "ca/ca.pem"),
    )
    before, certificate = Trust.load(config), (folder / "ca/access-1.pem").read_bytes()
    run("Renew a certificate")
    run("Change a key")
    after = Trust.load(config)
    assert (folder / "ca/access-1.pem").read_bytes() != certificate
    assert after.peer_key == (keys / "new").read_text().strip()
    assert not after.accepts(before.peer_key)
    assert {file.stat().st_mode & 0o077 for file in (folder / "ca").iterdir()} == {0}
