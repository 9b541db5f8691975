"""The JavaScript wrapper: its own suite, and in a Node process against a real system."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.system.conftest import eventually
from tests.system.killable import CLIENTS_JS, MORTAL, Killable, install_sdk, killable, until

DRIVER = Path(__file__).with_name("javascript_client.mjs")
SUITE_TIMEOUT_S = 120
ANSWER_S = 20.0
USER = "bob"

pytestmark = pytest.mark.process


class JavaScriptClient:
    """The client in another process: its methods, and what it was told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.bodies: list[Any] = []
        self.states: list[Any] = []
        self.ends: list[Any] = []

    def say(self, line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(line) + b"\n")

    async def do(self, *call: Any) -> Any:
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        self.say({"id": number, "do": call})
        async with asyncio.timeout(ANSWER_S):
            return await self._answers[number]

    async def go_to_mortal(self, system: Killable) -> None:
        """Connect to the node that can be killed, and read ten messages."""
        await system.send(USER, *range(5))
        await self.do("connect")
        while not await system.is_mortal(USER):
            await self.do("connect")
        await system.send(USER, *range(5, 10))
        await until(10, self.bodies)

    async def read(self) -> None:
        """Sort what the client says."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = msgspec.json.decode(line)
            if "error" in said:
                self._answers.pop(said["id"]).set_exception(RuntimeError(said["error"]))
            elif "id" in said:
                self._answers.pop(said["id"]).set_result(said["result"])
            elif said["event"] == "end":
                self.ends.append(said)
            elif said["channel"] == f"inbox:{USER}":
                self.bodies.append(said["data"]["body"])
            else:
                self.states.append(said["data"]["state"])


@asynccontextmanager
async def javascript_client(system: Killable, **options: Any) -> AsyncIterator[JavaScriptClient]:
    """Start a Node process with a client, which is not connected yet."""
    process = await asyncio.create_subprocess_exec(
        "node", DRIVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    client = JavaScriptClient(process)
    options = {"user": USER, "credential": system.key, **options}
    client.say({"folder": str(install_sdk()), "scheduler": system.scheduler, "options": options})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.read())
        try:
            yield client
        finally:
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(ANSWER_S):
                await process.wait()


def test_the_suite_of_the_javascript_client_passes() -> None:
    """`npm test`, against nodes that do as they are told."""
    ran = subprocess.run(
        ["npm", "test", "--silent"],
        cwd=install_sdk(),
        capture_output=True,
        text=True,
        timeout=SUITE_TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4_000:] + ran.stderr[-1_000:]


def test_the_package_that_is_installed_has_all_of_the_javascript_client() -> None:
    """As `npm install --install-links` copies it, without its tests."""
    packing = ["npm", "pack", "--dry-run", "--json", "--silent"]
    packed = subprocess.run(packing, cwd=CLIENTS_JS, capture_output=True, timeout=SUITE_TIMEOUT_S, check=True)
    files = {file["path"] for file in msgspec.json.decode(packed.stdout)[0]["files"]}
    assert files == {path.name for path in CLIENTS_JS.glob("*.js")} | {"package.json", "README.md"}


async def test_after_kill_nine_of_its_node_javascript_has_every_message_once_and_in_order(tmp_path: Path) -> None:
    """Stored before, around and after the crash; its own sends and what it follows go on, too."""
    with killable(tmp_path / "data") as system:
        async with javascript_client(system) as client:
            await client.go_to_mortal(system)
            await client.do("subscribe", "presence:ann")
            await until(1, client.states)
            system.kill()
            await system.send(USER, *range(10, 15))
            await until(15, client.bodies)
            await client.do("send", USER, 15)
            await system.send(USER, *range(16, 20))
            await until(20, client.bodies)
            assert client.bodies == list(range(20))
            assert set(client.states) == {"offline"}
            assert client.ends == []
            assert await system.nodes_of(USER) != [MORTAL]


async def test_a_drain_moves_javascript_which_is_never_shown_offline(tmp_path: Path) -> None:
    """And every message arrives once and in order."""
    with killable(tmp_path / "data") as system:
        async with javascript_client(system) as client:
            await client.go_to_mortal(system)
            await system.drain()
            seen: list[list[str]] = []

            async def has_moved() -> bool:
                await system.send(USER, 10 + len(seen))
                seen.append(await system.nodes_of(USER))
                return seen[-1] == ["access-1"]

            await eventually(has_moved)
            assert all(seen), "at some node all the time"
            await until(10 + len(seen), client.bodies)
            assert client.bodies == list(range(10 + len(seen)))
            assert client.ends == []


async def test_a_new_javascript_client_reads_on_from_kept_positions(tmp_path: Path) -> None:
    """As a page that is loaded again."""
    with killable(tmp_path / "data") as system:
        await system.send(USER, *range(3))
        position = {f"inbox:{USER}": {"epoch": "", "offset": 2}}
        async with javascript_client(system, positions=position) as client:
            await client.do("connect")
            await until(1, client.bodies)
            assert client.bodies == [2]
