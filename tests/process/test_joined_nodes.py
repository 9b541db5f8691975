"""Status nodes in processes of their own: they join a system that runs, end and die without anybody minding.

Mistakes are one clear line each, with the exit codes of all commands.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from base.registry.remote import RemoteRegistry
from roadstead.api import call_api
from roadstead.cli import main
from roadstead.local import System, UpProcess

pytestmark = pytest.mark.process

SERVE = [sys.executable, "-m", "roadstead", "status", "serve"]
TTL_MS = 3_000
SETTINGS = ["--set", f"node.registration_ttl_ms={TTL_MS}"]
NOBODY = "http://127.0.0.1:9"
FIRST_PORT = 18_800


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    process = UpProcess(tmp_path_factory.mktemp("up") / "data", "--set", "up.spare_status_nodes=0", *SETTINGS)
    yield process.start()
    assert process.stop() == 0


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A node that is ready, and what it said then."""
    command = [*SERVE, "--json", *SETTINGS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr is not None else ""
            yield process, json.loads(line)
        finally:
            process.kill()


def refused(*arguments: str) -> tuple[int, str]:
    """The exit code and the last line of a node that does not start."""
    ran = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr.splitlines()[-1]


def registry_of(system: System) -> str:
    return system.endpoints.registry["registry-1"]


def joining(system: System, folder: Path, key: str | None = None) -> list[str]:
    """The options of somebody who knows an address and has the key in a file."""
    file = folder / "key"
    file.write_text(key or system.data.secrets().peer_key)
    return ["--join", registry_of(system), "--peer-key-file", str(file)]


async def registered(system: System) -> dict[str, str]:
    """The status nodes by the registry's word: name -> address."""
    registry = RemoteRegistry(registry_of(system), node="test", peer_key=system.data.secrets().peer_key)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(registry.run())
        found = await registry.services("status")
        running.cancel()
    return {instance.id: instance.url for instance in found.items}


async def until_registered(system: System, names: set[str]) -> float:
    """Return how many seconds it took until exactly these are registered beside the system's own."""
    began = time.monotonic()
    wanted = {"status-1", "status-2", "status-3", *names}
    async with asyncio.timeout(20):
        while {*await registered(system)} != wanted:  # noqa: ASYNC110 - seen as from another process
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def statistics(url: str) -> dict[str, Any]:
    answer = await call_api("GET", f"{url}/debug/statistics")
    assert isinstance(answer, dict)
    return answer


async def test_nodes_join_and_leave(system: System, tmp_path: Path) -> None:
    """Registered and idle; one killed is gone after its TTL, one told to end at once; the table never changes."""
    before = await statistics(next(iter(system.endpoints.status.values())))
    join = joining(system, tmp_path)
    with (
        serving("--name", "status-4", "--data", str(system.data.path)) as (first, one),
        serving("--name", "status-5", *join) as (second, two),
    ):
        assert (one["name"], one["pid"], two["name"], two["pid"]) == ("status-4", first.pid, "status-5", second.pid)
        nodes = await registered(system)
        assert (nodes["status-4"], nodes["status-5"]) == (one["url"], two["url"])
        for joined in (one, two):
            seen = await statistics(joined["url"])
            assert (seen["partitions"], seen["epoch"], seen["is_leading"]) == (0, before["epoch"], False)
        # The one that was told the system's API key takes it; the other one knows no key.
        key = system.data.secrets().api_key
        status = await call_api("GET", f"{one['url']}/v1/users/ann/status", credential=key)
        assert status["state"] == "offline"

        first.kill()
        assert await until_registered(system, {"status-5"}) > TTL_MS / 1000 / 2
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=10) == 0
        assert await until_registered(system, set()) < 1
        assert second.stderr is not None
        assert second.stderr.read() == ""
    after = await statistics(next(iter(system.endpoints.status.values())))
    assert (after["epoch"], after["partitions"]) == (before["epoch"], before["partitions"])
    # The name of one that was killed is free as soon as nobody listens there, and its next life is a later one.
    with serving("--name", "status-4", *join) as (_, again):
        assert (await registered(system))["status-4"] == again["url"]


async def test_a_node_outlives_the_system_and_finds_it_again(tmp_path: Path) -> None:
    """Without the registry it goes on as it is; after a restart at the same address it is registered again."""
    up = UpProcess(tmp_path / "data", *SETTINGS, "--set", "up.spare_status_nodes=0", "--port", str(FIRST_PORT))
    system = up.start()
    with serving("--name", "status-4", "--data", str(tmp_path / "data")) as (process, joined):
        up.kill()
        seen = await statistics(joined["url"])
        assert seen["epoch"] == 1
        try:
            again = up.start()
            assert registry_of(again) == registry_of(system)
            await until_registered(again, {"status-4"})
        finally:
            up.stop()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0, "in order, also without the registry"


async def test_a_name_in_use_is_refused(system: System, tmp_path: Path) -> None:
    """Of whatever role; the node that has it does not notice."""
    join = joining(system, tmp_path)
    for name in ("status-1", "access-1", "registry-1"):
        code, line = refused("--name", name, *join)
        assert (code, line.startswith(f"error: the name {name} is in use by a node at http://")) == (1, True)
    await until_registered(system, set())


def test_wrong_systems_and_keys_are_one_line(system: System, tmp_path: Path) -> None:
    """Exit code 3 for what is not there, 1 for a key that is refused, 2 for what was mistyped."""
    name = ["--name", "status-9"]
    join = joining(system, tmp_path)
    code, line = refused(*name, "--data", str(tmp_path / "nothing"))
    assert (code, "start it with `roadstead up`" in line) == (3, True)
    code, line = refused(*name, "--join", NOBODY, *join[2:])
    assert code == 3
    assert line == f"error: the registry at {NOBODY} cannot be reached: Connection refused; is `roadstead up` running?"
    code, line = refused(*name, "--join", system.scheduler, *join[2:])
    assert (code, line) == (2, f"error: {system.scheduler} serves no registry: name the address of registry-1")
    code, line = refused(*name, *join, "--set", "status.lease_ms=2800")
    assert (code, line.startswith("error: status.lease_ms is 2800 here and 3000 in the system; ")) == (2, True)
    code, line = refused(*name, *joining(system, tmp_path, key="wrong"))
    assert (code, line) == (1, f"error: the registry at {registry_of(system)} does not accept this peer key")
    redis = ["--set", "status.backend=redis", "--set", "status.redis_url=redis://127.0.0.1:6379"]
    code, line = refused(*name, *join, *redis)
    assert (code, "there are no status nodes to add to" in line) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--join", NOBODY], "--join needs --peer-key-file"),
        (["--peer-key-file", "key"], "go with --join"),
        (["--join", NOBODY, "--peer-key-file", "key", "--data", "x"], "--data and --join name two systems"),
        (["--join", "status-1", "--peer-key-file", "key"], "'status-1' is no address such as"),
        (["--join", "http://a:b", "--peer-key-file", "key"], "'http://a:b' is no address such as"),
        (["--join", NOBODY, "--peer-key-file", "DIR/absent"], "absent cannot be read: No such file or directory"),
        (["--join", NOBODY, "--peer-key-file", "DIR/no-key"], "no-key holds no key"),
        (["--name", "a b"], "'a b' is no name"),
        (["--port", "70000"], "70000 is not in the range"),
        (["--host", "10.0.0.1"], "allow_remote"),
        (["--host", "::", "--set", "up.allow_remote=true"], "no address that other nodes can connect to"),
    ],
)
def test_usage_mistakes_exit_with_two(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is connected to, so that no process is needed to see them."""
    (tmp_path / "no-key").write_text("two words\n")
    with pytest.raises(SystemExit) as ended:
        main(["status", "serve", "--name", "status-9", *(part.replace("DIR", str(tmp_path)) for part in arguments)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
