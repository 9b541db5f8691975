"""How other terminals talk to the supervisor of a local cluster: a request and an answer, a line of JSON each.

The socket is in the cluster's folder, which only its owner can enter. Its path may be longer than an address of a Unix
socket, so both ends go to it through a descriptor of the folder.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from base.errors import ConfigError, PeerUnavailable, RoadsteadError, from_wire
from roadstead.cluster.child import Seen

__all__ = ["Answer", "Asked", "ControlServer", "ask"]

SOCKET = "control.sock"
LINE_BYTES_MAX = 1_000_000


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request: list all; signal, start or stop one; or end the whole cluster."""

    do: Literal["list", "signal", "start", "stop", "end"]
    name: str = ""
    signal: str = "KILL"


class Failed(msgspec.Struct, frozen=True):
    """Why it was not done, by the codes of `base.errors`."""

    code: int
    message: str


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the processes are after it."""

    nodes: list[Seen] = []
    failed: Failed | None = None


class ControlServer:
    """The supervisor's end."""

    def __init__(self, folder: Path, do: Callable[[Asked], Awaitable[list[Seen]]]) -> None:
        self._folder = folder
        self._do = do
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. Raises ConfigError when that cannot be."""
        (self._folder / SOCKET).unlink(missing_ok=True)
        try:
            with _short(self._folder) as path:
                self._server = await asyncio.start_unix_server(self._serve, path, limit=LINE_BYTES_MAX)
        except OSError as error:
            raise ConfigError([f"{self._folder / SOCKET} cannot be made: {error.strerror}"]) from error

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            (self._folder / SOCKET).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(await reader.readline())
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except (OSError, ValueError):
            pass  # whoever asked went away, or sent no line
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            return Answer(await self._do(msgspec.json.decode(line, type=Asked)))
        except msgspec.MsgspecError as error:
            return Answer(failed=Failed(ConfigError.code.number, f"bad request: {error}"))
        except RoadsteadError as error:
            return Answer(failed=Failed(error.code.number, error.message))


def ask(folder: Path, asked: Asked, *, deadline_s: float) -> list[Seen]:
    """Ask the supervisor of the cluster in a folder.

    Raises:
        PeerUnavailable: none runs there, or it does not answer in time.
        RoadsteadError: what it answered, by its code.
    """
    nobody = f"no cluster runs from {folder.parent}; start it with `roadstead cluster up`, or name it with --data"
    try:
        with _short(folder) as path, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(deadline_s)
            connection.connect(path)
            connection.sendall(msgspec.json.encode(asked) + b"\n")
            with connection.makefile("rb") as answered:
                line = answered.readline()
    except TimeoutError as error:
        raise PeerUnavailable(f"the cluster in {folder.parent} does not answer within {deadline_s:g} s") from error
    except OSError as error:
        raise PeerUnavailable(nobody) from error
    if not line:
        raise PeerUnavailable(nobody)
    answer = msgspec.json.decode(line, type=Answer)
    if answer.failed is not None:
        raise from_wire(answer.failed.code, answer.failed.message, {})
    return answer.nodes


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Give a path of the socket that is short enough."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
