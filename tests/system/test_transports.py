"""The stock JavaScript SDK without a WebSocket, and long poll, where what a client sends comes to another node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession

from roadstead.config import Config
from tests.system.conftest import SETTLE_S, System, eventually, running
from tests.system.killable import install_sdk

SCRIPT = Path(__file__).with_name("stock_client.mjs")

pytestmark = pytest.mark.process


@pytest.fixture(scope="session")
def sdk() -> Path:
    """The folder in which the stock SDK is installed."""
    return install_sdk()


class Script:
    """A client in a Node process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def say(self, line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(line) + b"\n")

    async def hear(self, *events: str) -> list[dict[str, Any]]:
        """Return the next lines, which must be these events in any order, in the order asked."""
        assert self._process.stdout is not None
        heard: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(SETTLE_S):
            for _ in events:
                said = msgspec.json.decode(await self._process.stdout.readline())
                heard[said.pop("event")] = said
        assert sorted(heard) == sorted(events), heard
        return [heard[event] for event in events]


@asynccontextmanager
async def stock_client(
    sdk: Path, answer: dict[str, Any], kind: str, *, token: str | None = None
) -> AsyncIterator[Script]:
    """Connect to the first candidate; what the client sends goes to the second one."""
    near, far = (candidate["urls"] for candidate in answer["candidates"])
    transport, _, encoding = kind.partition("+")
    process = await asyncio.create_subprocess_exec(
        "node", SCRIPT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    script = Script(process)
    setup = {
        "folder": str(sdk),
        "transport": transport,
        "endpoint": near[transport],
        "emulation": far["emulation"],
        "token": token or answer["ticket"],
        "protobuf": encoding == "protobuf",
    }
    script.say(setup)
    try:
        await script.hear("connecting")
        yield script
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


KINDS = pytest.mark.parametrize("kind", ["http_stream", "http_stream+protobuf", "sse"])


@pytest.mark.spec("RT-01")
@KINDS
async def test_the_stock_sdk_lives_without_a_websocket(system: System, sdk: Path, kind: str) -> None:
    """It connects, calls by way of the other node, gets its messages in order, and is offline when it has left."""
    async with stock_client(sdk, await system.access("alice"), kind) as script:
        (connected,) = await script.hear("connected")
        assert connected["transport"] == kind.partition("+")[0]
        assert (await system.status("alice"))["state"] == "online"
        script.say({"rpc": ["im.send", {"to": "bob", "client_msg_id": "m-1", "body": "out"}]})
        result, own = await script.hear("result", "publication")
        assert result["data"]["seq"] == 1
        assert (own["channel"], own["offset"], own["data"]["body"]) == ("inbox:alice", 1, "out")
        for number in range(20):
            await system.send("bob", "alice", f"in-{number}", {"text": "é\n" * number})
        for number in range(20):
            (publication,) = await script.hear("publication")
            assert (publication["offset"], publication["data"]["body"]) == (number + 2, {"text": "é\n" * number})
        script.say({"disconnect": True})
        assert await script.hear("disconnected") == [{"code": 0}]

        async def is_offline() -> bool:
            return bool((await system.status("alice"))["state"] == "offline")

        await eventually(is_offline)


@KINDS
async def test_pings_are_answered_by_way_of_the_other_node(tmp_path: Path, sdk: Path, kind: str) -> None:
    """Over some rounds, each of which would end a session that does not answer."""
    config = Config()
    access = msgspec.structs.replace(config.access, ping_interval_ms=1_000, pong_deadline_ms=500)
    async with running(tmp_path / "data", msgspec.structs.replace(config, access=access)) as system:
        answer = await system.access("alice")
        async with stock_client(sdk, answer, kind) as script:
            await script.hear("connected")
            await asyncio.sleep(3.5)  # time is what this is about
            script.say({"rpc": ["im.sync", {"since": 0}]})
            (result,) = await script.hear("result")
            assert result["data"]["head"] == 0


@KINDS
async def test_a_terminal_close_stops_the_sdk(system: System, sdk: Path, kind: str) -> None:
    """A token that is none is no reason to come again: the code comes before the end of the stream."""
    async with stock_client(sdk, await system.access("alice"), kind, token="no token") as script:
        assert await script.hear("disconnected") == [{"code": 3500}]


@pytest.fixture
async def brief_system(tmp_path: Path) -> AsyncIterator[System]:
    """A system that does not wait, at its end, for clients to move."""
    config = Config()
    access = msgspec.structs.replace(config.access, stop_drain_ms=0)
    async with running(tmp_path / "data", msgspec.structs.replace(config, access=access)) as made:
        yield made


@pytest.mark.spec("RT-01")
async def test_a_client_that_polls_sends_and_receives_at_either_node(brief_system: System) -> None:
    """By the contract of the how-to: by turns, now at one node, now at the other."""
    system = brief_system
    answer = await system.access("alice")
    near, far = (candidate["urls"]["poll"] for candidate in answer["candidates"])
    connect = {"id": 1, "connect": {"token": answer["ticket"]}}
    async with ClientSession() as http, asyncio.timeout(SETTLE_S):
        async with http.post(near, data=msgspec.json.encode(connect)) as response:
            opened = await response.json()
        (reply,) = opened["messages"]
        assert "inbox:alice" in reply["connect"]["subs"]
        commands = b'{"id":2,"rpc":{"method":"im.send","data":{"to":"bob","client_msg_id":"m","body":"hi"}}}'
        offsets: list[int] = []
        seqs: list[int] = []
        for turn in range(1, 13):
            params = {"node": opened["node"], "session": opened["session"], "turn": str(turn)}
            if turn > 1:  # so that no turn waits: each has something to bring, however much the ones before it brought
                await system.send("bob", "alice", f"in-{turn}")
            async with http.post(far if turn % 2 else near, params=params, data=commands) as response:
                assert response.status == 200
                for message in (await response.json())["messages"]:
                    if "push" in message:
                        offsets.append(message["push"]["pub"]["offset"])
                    elif message:
                        seqs.append(message["rpc"]["data"]["seq"])
            commands = b""
            if offsets == list(range(1, 10)):
                break
    assert seqs == [1]
    assert offsets == list(range(1, len(offsets) + 1))
    assert len(offsets) >= 9
