"""Nodes in processes of their own: they join a system that runs, end and die without anybody minding.

Mistakes are one clear line each, with the exit codes of all commands.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import centrifuge
import pytest

from base.registry.remote import RemoteRegistry
from base.trust import Trust
from roadstead.api import call_api
from roadstead.cli import main
from roadstead.local import System, UpProcess

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("goodbyes")]

ROADSTEAD = [sys.executable, "-m", "roadstead"]
TTL_MS = 3_000
SETTINGS = ["--set", f"node.registration_ttl_ms={TTL_MS}"]
NOBODY = "http://127.0.0.1:9"
FIRST_PORT = 18_800


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    few = ["--set", "up.spare_status_nodes=0", "--set", "up.access_nodes=1"]
    process = UpProcess(tmp_path_factory.mktemp("up") / "data", *few, *SETTINGS)
    yield process.start()
    assert process.stop() == 0


@contextmanager
def serving(*arguments: str, role: str = "status") -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A node that is ready, and what it said then."""
    command = [*ROADSTEAD, role, "serve", "--json", *SETTINGS, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr is not None else ""
            yield process, json.loads(line)
        finally:
            process.kill()


def refused(*arguments: str, role: str = "status") -> tuple[int, str]:
    """The exit code and the last line of a node that does not start."""
    ran = subprocess.run(
        [*ROADSTEAD, role, "serve", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.stdout == ""
    return ran.returncode, ran.stderr.splitlines()[-1]


def registry_of(system: System) -> str:
    return system.endpoints.registry["registry-1"]


def joining(system: System, folder: Path, key: str | None = None) -> list[str]:
    """The options of somebody who knows an address and has the key in a file."""
    file = folder / "key"
    file.write_text(key or system.data.secrets().peer_key)
    return ["--join", registry_of(system), "--peer-key-file", str(file)]


async def registered(system: System, role: str = "status") -> dict[str, str]:
    """The nodes of a role by the registry's word: name -> address."""
    registry = RemoteRegistry(registry_of(system), node="test", trust=Trust.of_key(system.data.secrets().peer_key))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(registry.run())
        found = await registry.services(role)
        running.cancel()
    return {instance.id: instance.url for instance in found.items}


async def until_registered(system: System, names: set[str], role: str = "status") -> float:
    """Return how many seconds it took until exactly these are registered beside the system's own."""
    began = time.monotonic()
    own = {"status": {"status-1", "status-2", "status-3"}, "access": {"access-1"}}
    wanted = own[role] | names
    async with asyncio.timeout(20):
        while {*await registered(system, role)} != wanted:  # noqa: ASYNC110 - seen as from another process
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


class Phone(centrifuge.ClientEventHandler):
    """A user's stock client, on a node of the test's choice."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()

    async def on_publication(self, ctx: centrifuge.ServerPublicationContext) -> None:
        self.messages.put_nowait(ctx.pub.data["body"])

    @asynccontextmanager
    async def connected(self, system: System, user: str, node: str) -> AsyncIterator[None]:
        """Go where the scheduler says, as soon as that is this node."""
        url = f"{system.scheduler}/v1/access"
        key = system.data.secrets().api_key
        async with asyncio.timeout(10):
            while True:
                answer = await call_api("GET", url, credential=key, params={"user": user})
                urls = {candidate["id"]: candidate["urls"] for candidate in answer["candidates"]}
                if node in urls:
                    break
                await asyncio.sleep(0.05)
        sdk = centrifuge.Client(urls[node]["websocket"], events=self, token=answer["ticket"], proxy=None)
        await sdk.connect()
        await sdk.ready()
        try:
            yield
        finally:
            await sdk.disconnect()


async def sessions(system: System, user: str) -> list[str]:
    """The access nodes behind which a user is."""
    url = f"{next(iter(system.endpoints.status.values()))}/v1/users/{user}/status"
    status = await call_api("GET", url, credential=system.data.secrets().api_key)
    return [session["node"] for session in status["sessions"]]


async def test_access_nodes_join_and_leave(system: System, tmp_path: Path) -> None:
    """The scheduler sends clients there, messages reach them, and whoever is behind a killed one goes offline."""
    secrets = system.data.secrets()
    keys = tmp_path / "ticket-keys"
    keys.write_text(f"{secrets.ticket_kid} {secrets.ticket_key}\nold nobody-signs-with-this-one\n")
    join = [*joining(system, tmp_path), "--ticket-key-file", str(keys)]
    ann, ben = Phone(), Phone()
    with (
        serving("--name", "access-2", "--data", str(system.data.path), "--client-port", "0", role="access") as (
            first,
            one,
        ),
        serving("--name", "access-3", *join, role="access") as (second, two),
    ):
        nodes = await registered(system, "access")
        assert (nodes["access-2"], nodes["access-3"]) == (one["url"], two["url"])
        async with ann.connected(system, "ann", "access-2"), ben.connected(system, "ben", "access-3"):
            for user, node, phone in (("ann", "access-2", ann), ("ben", "access-3", ben)):
                assert await sessions(system, user) == [node]
                message = {"from": "cat", "to": user, "client_msg_id": user, "body": f"to {user}"}
                url = next(iter(system.endpoints.im.values()))
                await call_api("POST", f"{url}/v1/messages", credential=secrets.api_key, body=message)
                async with asyncio.timeout(10):
                    assert await phone.messages.get() == f"to {user}"
            first.kill()
            async with asyncio.timeout(20):
                while await sessions(system, "ann"):  # noqa: ASYNC110 - see above
                    await asyncio.sleep(0.05)
            assert await sessions(system, "ben") == ["access-3"]
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=20) == 0
        assert second.stderr is not None
        assert second.stderr.read() == ""
        await until_registered(system, set(), "access")


async def test_a_node_outlives_the_system_and_finds_it_again(tmp_path: Path) -> None:
    """Without the registry it goes on as it is; after a restart at the same address it is registered again."""
    up = UpProcess(tmp_path / "data", *SETTINGS, "--set", "up.spare_status_nodes=0", "--port", str(FIRST_PORT))
    with ExitStack() as stack:
        stack.callback(up.stop)
        system = up.start()
        process, joined = stack.enter_context(serving("--name", "status-4", "--data", str(tmp_path / "data")))
        up.kill()
        seen = await statistics(joined["url"])
        assert seen["epoch"] == 1
        again = up.start()
        assert registry_of(again) == registry_of(system)
        await until_registered(again, {"status-4"})
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
    (tmp_path / "no-keys").write_text("only-a-kid\n")
    code, line = refused(*name, *join, "--ticket-key-file", str(tmp_path / "no-keys"), role="access")
    assert (code, line.endswith("no-keys must have a line `KID KEY` for each ticket key")) == (2, True)
    redis = ["--set", "status.backend=redis", "--set", "status.redis_url=redis://127.0.0.1:6379"]
    code, line = refused(*name, *join, *redis)
    assert (code, "there are no status nodes to add to" in line) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--join", NOBODY], "--join needs --peer-key-file"),
        (["--peer-key-file", "key"], "--peer-key-file can be given with --join only"),
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


def test_an_access_node_needs_the_ticket_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the data folder, or from a file, never both."""
    (tmp_path / "key").write_text("key")
    join = ["--join", NOBODY, "--peer-key-file", str(tmp_path / "key")]
    for arguments, message in (
        (join, "--join needs --ticket-key-file"),
        (["--ticket-key-file", "keys"], "--ticket-key-file can be given with --join only"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["access", "serve", "--name", "access-9", *arguments])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
