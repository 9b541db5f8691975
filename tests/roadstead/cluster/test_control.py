"""Other terminals and the supervisor: a request, an answer. Errors arrive as they were; long paths do not matter."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from base.errors import ConfigError, NotFound, PeerUnavailable
from roadstead.cluster.child import Seen, State
from roadstead.cluster.control import LINE_BYTES_MAX, SOCKET, Asked, ControlServer, _short, ask

IM = Seen(name="im-1", role="im", state=State.READY, pid=7, restarts=0, exit_code=None, uptime_s=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deep = tmp_path / ("long" * 30) / "cluster"
    deep.mkdir(parents=True)
    return deep


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[list[Asked]]:
    """A supervisor that writes down what it is asked, and has no access nodes."""
    asked: list[Asked] = []

    async def do(request: Asked) -> list[Seen]:
        asked.append(request)
        if request.name.startswith("access"):
            raise NotFound("there is no such process")
        if request.name == "slow":
            await asyncio.sleep(60)
        return [IM]

    server = ControlServer(folder, do)
    await server.open()
    try:
        yield asked
    finally:
        await server.close()


async def test_a_request_is_answered(folder: Path):
    """With how the processes are after it; the socket is gone at the end."""
    async with serving(folder) as asked:
        signal = Asked("signal", "im-1", "STOP")
        assert await asyncio.to_thread(ask, folder, signal, deadline_s=5) == [IM]
        assert asked == [signal]
        with pytest.raises(NotFound, match="there is no such process"):
            await asyncio.to_thread(ask, folder, Asked("start", "access-1"), deadline_s=5)
        with pytest.raises(PeerUnavailable, match=r"does not answer within 0\.05 s"):
            await asyncio.to_thread(ask, folder, Asked("start", "slow"), deadline_s=0.05)
    assert not (folder / SOCKET).exists()


async def test_a_folder_without_a_cluster_is_one_error(folder: Path):
    """Whether nothing ever ran there, or what ran is gone."""
    for place in (folder, folder / "absent"):
        with pytest.raises(PeerUnavailable, match="start it with `roadstead cluster up`"):
            ask(place, Asked("list"), deadline_s=1)
    async with serving(folder):
        pass
    with pytest.raises(PeerUnavailable, match="no cluster runs from"):
        ask(folder, Asked("list"), deadline_s=1)


async def test_what_is_no_request_is_refused(folder: Path):
    """And whoever says nothing, or too much, is hung up on; the next one is served."""
    async with serving(folder) as asked:

        def say(text: bytes) -> bytes:
            with _short(folder) as path, socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(path)
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as answer:
                    return answer.read()

        said = await asyncio.to_thread(say, b'{"do": "dance"}\n')
        await asyncio.to_thread(say, b"x" * LINE_BYTES_MAX)
        assert b"bad request" in said
        assert asked == []
        assert await asyncio.to_thread(ask, folder, Asked("list"), deadline_s=5) == [IM]


async def test_a_folder_that_cannot_be_used_is_an_error(tmp_path: Path):
    """Before anything is started."""
    with pytest.raises(ConfigError, match=r"control\.sock cannot be made"):
        await ControlServer(tmp_path / "absent", lambda _asked: asyncio.sleep(0, [])).open()
