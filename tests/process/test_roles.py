"""Each role as a process of its own on a real Consul: started in any order, ended in order, and faults told well."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from roadstead.api import call_api
from roadstead.consul import ConsulAgent
from tests.contract.consul_agent import consul

__all__ = ["consul"]

pytestmark = pytest.mark.process

NOBODY = "http://127.0.0.1:9"
START_S = 30.0
KEYS = {
    "peer-keys": "a-peer-key-of-the-tests\n",
    "api-keys": "admin an-api-key-of-the-tests tests\n",
    "ticket-keys": "k1 a-ticket-key-of-the-tests-which-is-long-enough\n",
    "user-keys": "a-user-key-of-the-tests-which-is-long-enough\n",
}
API_KEY = KEYS["api-keys"].split()[1]


class Roles:
    """The configuration files of one system."""

    def __init__(self, folder: Path, consul_url: str) -> None:
        self.folder = folder
        self.consul_url = consul_url
        for name, text in KEYS.items():
            (folder / name).write_text(text)

    def config(self, name: str, **sections: dict[str, Any]) -> Path:
        """Write the file of one node."""
        settings: dict[str, dict[str, Any]] = {
            "node": {"name": name},
            "registry": {"consul_url": self.consul_url, "prefix": "roles"},
            "security": {f"{key.replace('-', '_')}_file": str(self.folder / key) for key in KEYS},
            "status": {"bootstrap_nodes": 1},
            "im": {"data": str(self.folder / name)},
        }
        for section, fields in sections.items():
            settings.setdefault(section, {}).update(fields)
        file = self.folder / f"{name}.toml"
        file.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in fields.items())
                for section, fields in settings.items()
            )
        )
        return file


@pytest.fixture
def roles(tmp_path: Path, consul: ConsulAgent) -> Roles:
    return Roles(tmp_path, consul.url)


class Node:
    """A role's process."""

    def __init__(self, role: str, file: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roadstead", role, "--json", "--config", str(file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ready(self) -> dict[str, Any]:
        """Wait until it says that it is ready."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and what it wrote."""
        self.process.send_signal(number)
        _, written = self.process.communicate(timeout=START_S)
        return self.process.returncode, written


@contextmanager
def running(role: str, file: Path, **environment: str) -> Iterator[Node]:
    """A node that ends with the block."""
    node = Node(role, file, {**os.environ, **environment})
    try:
        yield node
    finally:
        node.process.kill()
        node.process.communicate()


def refused(role: str, file: Path, *arguments: str) -> tuple[int, list[str]]:
    """The exit code and the errors of a node that does not start."""
    ran = subprocess.run(
        [sys.executable, "-m", "roadstead", role, "--config", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert ran.stdout == ""
    return ran.returncode, [line for line in ran.stderr.splitlines() if line.startswith("error: ")]


async def test_roles_start_in_any_order_and_end_in_order(roles: Roles) -> None:
    """Whoever needs others waits and says so; the service manager learns when it is ready, and when it stops."""
    with ExitStack() as stack:
        manager = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        manager.bind(str(roles.folder / "manager"))
        manager.settimeout(START_S)
        access = stack.enter_context(
            running("access", roles.config("access-1"), NOTIFY_SOCKET=str(roles.folder / "manager"))
        )
        im = stack.enter_context(running("im", roles.config("im-1")))
        scheduler = stack.enter_context(running("scheduler", roles.config("scheduler-1")))
        scheduler.ready()
        status = stack.enter_context(running("status", roles.config("status-1")))
        told = [node.ready() for node in (status, im, access)]
        assert [one["name"] for one in told] == ["status-1", "im-1", "access-1"]
        assert told[2]["client_url"].startswith("http://127.0.0.1:")
        assert manager.recv(100) == b"READY=1"
        for one in told:
            seen = await call_api("GET", f"{one['url']}/debug/statistics", credential=API_KEY)
            assert (seen["node"], seen["pid"]) == (one["name"], one["pid"])
        message = {"from": "ann", "to": "ben", "client_msg_id": "1", "body": "hello"}
        await call_api("POST", f"{told[1]['url']}/v1/messages", credential=API_KEY, body=message)
        code, written = await asyncio.to_thread(access.end)
        assert code == 0
        assert manager.recv(100) == b"STOPPING=1"
        assert "still_waiting" in written
        waited_for = ("the first partition table, which is made when 1 status nodes are there", "a node of the message")
        assert any(what in written for what in waited_for), "whichever was not there when it looked"
        for node in (scheduler, im, status):
            code, _ = await asyncio.to_thread(node.end)
            assert code == 0


def test_a_registry_that_is_not_there_is_waited_for_so_long(roles: Roles) -> None:
    """Then it is one error, exit code 3; SIGTERM ends the waiting at once, in order."""
    roles.consul_url = NOBODY
    late = roles.config("status-1", node={"start_deadline_ms": 1_500})
    with running("status", roles.config("status-2")) as waiting:
        code, errors = refused("status", late)
        assert code == 3
        (error,) = errors
        assert error.startswith(f"error: status-1 waited 1.5 s for the registry at {NOBODY}: ")
        assert "Cannot connect" in error
        code, written = waiting.end()
        assert (code, f"the registry at {NOBODY}: " in written) == (0, True)


def test_names_and_settings_of_the_system_are_guarded(roles: Roles) -> None:
    """A name in use, exit code 1; a setting that the others have otherwise, exit code 2. `up` is not bothered."""
    with running("status", roles.config("status-1")) as node:
        url = node.ready()["url"]
        code, errors = refused("status", roles.config("status-1"))
        assert (code, errors) == (1, [f"error: the name status-1 is in use by a node at {url}"])
        code, errors = refused("status", roles.config("status-2", status={"lease_ms": 2_800}))
        assert code == 2
        assert errors[0].startswith("error: status.lease_ms is 2800 here and 3000 in the system; ")
        assert node.end()[0] == 0
    # Nobody is there any more: now the first one to start says what the system has.
    with running("status", roles.config("status-2", status={"lease_ms": 2_800})) as node:
        node.ready()
        assert node.end()[0] == 0


def test_all_faults_of_a_file_are_told_at_once(roles: Roles) -> None:
    """Also those of the files that it names; `check-config --role` tells the same without starting anything."""
    (roles.folder / "ticket-keys").write_text("only-a-kid\n")
    bad = roles.config(
        "scheduler-1", node={"name": "", "host": "192.0.2.1"}, security={"peer_keys_file": "", "user_keys_file": "/no"}
    )
    code, errors = refused("scheduler", bad)
    assert code == 2
    assert len(errors) == 5
    for text in ("node.name is required", "192.0.2.1", "peer_keys_file", "line 1", "/no cannot be read"):
        assert any(text in error for error in errors), text
    checked = subprocess.run(
        [sys.executable, "-m", "roadstead", "check-config", "--role", "scheduler", "--config", str(bad)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr.splitlines()) == (2, errors)
    good = subprocess.run(
        [sys.executable, "-m", "roadstead", "check-config", "--role", "im", "--config", str(roles.config("im-1"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (good.returncode, good.stdout) == (0, "the configuration is good\n"), good.stderr
