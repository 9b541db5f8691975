"""`roadstead access` as operators meet it: what it shows, what it orders, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from base.errors import RoadsteadError
from roadstead.client import Client, Incoming
from roadstead.local import System, UpProcess

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("goodbyes")]

SETTLE_S = 20.0


class Operator:
    """Runs `roadstead access` for one system."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._tail = ["--data", str(system.data.path)]
        self._environment = {**os.environ, "COLUMNS": "200"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "roadstead", "access", *arguments, *self._tail],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command to its end while clients go on; return its exit code and what it said."""
        with self.start(*arguments) as process:
            try:
                said, complained = await asyncio.to_thread(process.communicate, timeout=60)
            finally:
                process.kill()
        return process.returncode, said, complained

    async def json(self, *arguments: str) -> Any:
        """Run a command that ends well; return its last line."""
        code, said, complained = await self(*arguments, "--json")
        assert code == 0, complained
        return json.loads(said.splitlines()[-1])

    async def said(self, *arguments: str) -> str:
        """Run a command that ends well; return what it said."""
        code, said, complained = await self(*arguments)
        assert code == 0, complained
        return said


class User:
    """A user's client."""

    def __init__(self, operator: Operator, user: str, device: str) -> None:
        self.ended: asyncio.Future[RoadsteadError] = asyncio.get_running_loop().create_future()
        self.client = Client(
            operator.system.scheduler,
            user=user,
            credential=operator.system.data.secrets().api_key,
            on_message=self._take,
            on_end=self.ended.set_result,
            device=device,
        )

    async def _take(self, incoming: Incoming) -> None:
        """Nothing is sent here."""


@asynccontextmanager
async def users(operator: Operator, *names: str) -> AsyncIterator[list[User]]:
    """Connect users, each written `user/device`."""
    connected = [User(operator, *name.split("/")) for name in names]
    for user in connected:
        await user.client.connect()
    try:
        yield connected
    finally:
        for user in connected:
            await user.client.close()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    process = UpProcess(tmp_path_factory.mktemp("up") / "data", "--set", "up.access_nodes=2")
    yield process.start()
    assert process.stop() == 0


@pytest.fixture
def operator(system: System) -> Operator:
    return Operator(system)


async def connections(operator: Operator) -> dict[str, int]:
    return {node: (await operator.json("show", node))["connections"] for node in ("access-1", "access-2")}


async def test_the_nodes_are_listed(operator: Operator) -> None:
    """A line each, and what programs need."""
    header, *lines = (await operator.said("nodes")).splitlines()
    assert header.split()[:3] == ["node", "region", "clients"]
    assert [line.split()[0] for line in lines] == ["access-1", "access-2"]
    clients = operator.system.endpoints.clients
    for line in lines:
        assert "ready" in line.split()
        assert line.split()[-1] == clients[line.split()[0]]
    listed = await operator.json("nodes")
    assert {node["node"]: node["client_url"] for node in listed} == clients
    assert {node["node"]: node["url"] for node in listed} == operator.system.endpoints.access


async def test_a_node_is_shown(operator: Operator) -> None:
    """With its drain, of which there is none."""
    shown = await operator.said("show", "access-1")
    fields = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (fields["node"], fields["drain"], fields["is_draining"]) == ("access-1", "none", "False")
    assert (await operator.json("show", "access-1"))["drain"]["state"] == "none"


@pytest.mark.parametrize("what", ["show", "drain", "pause", "resume", "abort"])
async def test_an_unknown_node_is_one_line_that_names_those_there_are(operator: Operator, what: str) -> None:
    """Exit code 1."""
    code, said, complained = await operator(what, "access-9")
    assert (code, said) == (1, "")
    (line,) = complained.splitlines()
    assert "there is no access node access-9; there are: access-1, access-2" in line


@pytest.mark.parametrize("what", ["pause", "resume", "abort"])
async def test_where_nothing_drains_there_is_nothing_to_order(operator: Operator, what: str) -> None:
    """Exit code 1, and one line."""
    code, _, complained = await operator(what, "access-1")
    assert code == 1
    assert "this node is not draining" in complained


@pytest.mark.parametrize("time", ["60", "1.5s", "-1s", "s", "1d"])
async def test_a_time_needs_a_unit(operator: Operator, time: str) -> None:
    """Exit code 2."""
    code, _, complained = await operator("drain", "access-1", f"--over={time}")
    assert code == 2
    assert "is no time such as 60s, 5m or 500ms" in complained


async def test_a_drain_is_waited_for_and_aborted(operator: Operator) -> None:
    """The clients go to the other node by themselves; what is left of it is that no new ones come, until the abort."""
    async with users(operator, *(f"user-{number}/phone" for number in range(6))) as connected:
        before = await connections(operator)
        assert sum(before.values()) == 6
        code, said, complained = await operator("drain", "access-1", "--over", "1s")
        assert code == 0, complained
        *_, last, verdict = said.splitlines()
        assert verdict == "access-1 is empty and takes nobody: safe to remove"
        assert last.startswith(
            f"done: {before['access-1']} of {before['access-1']} went, 0 were told, 0 are to be told"
        )
        assert await connections(operator) == {"access-1": 0, "access-2": 6}
        listed = await operator.json("nodes")
        assert [node["is_draining"] for node in listed] == [True, False]
        assert "draining" in (await operator.said("nodes")).splitlines()[1]
        assert (await operator.said("abort", "access-1")).strip() == "none"
        assert (await operator.json("show", "access-1"))["is_draining"] is False
        assert not any(user.ended.done() for user in connected)


async def test_a_drain_is_paused_resumed_and_ended_by_others(operator: Operator) -> None:
    """Whoever waits for it is told that it was aborted, by exit code 1."""
    async with users(operator, *(f"user-{number}/phone" for number in range(8))):
        before = await connections(operator)
        busy = max(before, key=lambda node: before[node])
        began = await operator.json("drain", busy, "--over", "10m", "--no-wait")
        assert (began["state"], began["total"]) == ("draining", before[busy])
        assert (await operator.said("pause", busy)).startswith("paused: ")
        assert (await operator.json("show", busy))["drain"]["eta_ms"] is None
        assert (await operator.json("resume", busy))["drain"]["state"] == "draining"
        with operator.start("drain", busy) as waiting:
            try:
                assert waiting.stdout is not None
                assert (await asyncio.to_thread(waiting.stdout.readline)).startswith("draining: ")
                await operator.json("abort", busy)
                _, complained = await asyncio.to_thread(waiting.communicate, timeout=SETTLE_S)
            finally:
                waiting.kill()
        assert (waiting.returncode, complained) == (1, "somebody aborted it\n")
        assert await connections(operator) == before


async def test_a_users_connections_are_closed_wherever_they_are(operator: Operator) -> None:
    """Of one device or of all; who may come back does."""
    async with users(operator, "ann/phone", "ann/tablet", "ben/phone") as (phone, tablet, other):
        assert await operator.json("kick", "ann", "--device", "tv") == {
            "user": "ann",
            "kicked": 0,
            "failed": {},
        }
        assert await operator.said("kick", "ann", "--device", "phone") == "1 connection of ann closed\n"
        ended = await asyncio.wait_for(phone.ended, SETTLE_S)
        assert ended.detail["close_code"] == 3503
        assert (await operator.json("kick", "ann", "--reconnect"))["kicked"] == 1
        async with asyncio.timeout(SETTLE_S):
            while (await operator.json("kick", "ann", "--reconnect"))["kicked"] == 0:  # noqa: ASYNC110 - as from outside
                await asyncio.sleep(0.1)
        assert not tablet.ended.done()
        assert not other.ended.done()
        assert await operator.said("kick", "nobody") == "0 connections of nobody closed\n"


async def test_a_node_that_cannot_be_asked_is_named(operator: Operator, tmp_path: Any) -> None:
    """Exit code 1, and why: one that was started without the API key refuses. It may have the user, too."""
    peer_key, ticket_keys = tmp_path / "peer-key", tmp_path / "ticket-keys"
    secrets = operator.system.data.secrets()
    peer_key.write_text(secrets.peer_key)
    ticket_keys.write_text(f"{secrets.ticket_kid} {secrets.ticket_key}\n")
    ticket_keys.chmod(0o600)
    join = ["--join", operator.system.endpoints.registry["registry-1"], "--peer-key-file", str(peer_key)]
    command = [sys.executable, "-m", "roadstead", "access", "serve", "--json", "--name", "access-3", *join]
    with subprocess.Popen(  # noqa: ASYNC220 - quick, and nothing else goes on
        [*command, "--ticket-key-file", str(ticket_keys)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(await asyncio.to_thread(process.stdout.readline))["name"] == "access-3"
            async with asyncio.timeout(SETTLE_S):
                while len(await operator.json("nodes")) < 3:  # noqa: ASYNC110 - as from outside
                    await asyncio.sleep(0.1)
            code, said, complained = await operator("kick", "nobody")
            assert (code, said) == (1, "0 connections of nobody closed\n")
            assert complained.startswith("not at access-3: ")
            assert "API key" in complained
        finally:
            process.terminate()
