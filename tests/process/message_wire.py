"""The client's end of a connection: WebSocket frames of JSON lines, as the access nodes speak them."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import Protocol, cast

import msgspec

from access.core.handshake import ClientAccepted, check_response, encode_request
from access.core.websocket import FrameReader, Opcode, encode_frame

__all__ = ["Error", "Listener", "Publication", "Reply", "Result", "Socket", "Start"]

MESSAGE_BYTES_MAX = 1 << 22
MASK = b"mask"
"""There is no one here who must not guess it."""


class Result(msgspec.Struct):
    """The result of any call that changes something."""

    mid: str = ""
    cid: str = ""
    seq: int = 0
    read_seq: int = 0
    queued: bool = False


class Publication(msgspec.Struct):
    data: msgspec.Raw
    offset: int = 0


class Unsubscribe(msgspec.Struct):
    code: int


class Push(msgspec.Struct):
    channel: str = ""
    pub: Publication | None = None
    unsubscribe: Unsubscribe | None = None


class Start(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[Publication] = []


class Connected(msgspec.Struct):
    subs: dict[str, Start] = {}


class Error(msgspec.Struct):
    code: int
    message: str = ""
    temporary: bool = False


class RpcResult(msgspec.Struct):
    data: msgspec.Raw


class Reply(msgspec.Struct):
    """Whatever the server says."""

    id: int = 0
    push: Push | None = None
    rpc: RpcResult | None = None
    error: Error | None = None
    connect: Connected | None = None
    subscribe: Start | None = None


class Listener(Protocol):
    """Who is told what comes."""

    def upgraded(self, socket: Socket) -> None:
        """The WebSocket is open."""
        ...

    def take(self, reply: Reply) -> None:
        """A reply or a push came."""
        ...

    def heard(self) -> None:
        """Something came."""
        ...


_reply = msgspec.json.Decoder(Reply).decode


class Socket(asyncio.Protocol):
    """One connection of a device."""

    def __init__(self, listener: Listener, host: str, path: str) -> None:
        self.is_over = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self._listener = listener
        self._head = b""
        self._reader: FrameReader | None = None
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._request = encode_request(host=host, target=path, key=self._key)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            self._head += data
            response = check_response(self._head, key=self._key)
            if response is None:
                return
            if not isinstance(response, ClientAccepted):
                self.abort()
                return
            self._reader = FrameReader(is_server=False, message_bytes_max=MESSAGE_BYTES_MAX)
            data = self._head[response.length :]
            self._listener.upgraded(self)
        for opcode, payload in self._reader.feed(data):
            if opcode == Opcode.TEXT:
                for line in payload.split(b"\n"):
                    if line == b"{}":
                        self.write(b"{}")
                    elif line:
                        self._listener.take(_reply(line))
            elif opcode == Opcode.CLOSE:
                self.abort()
                return
        self._listener.heard()
        assert self._reader.violation is None, self._reader.violation

    def write(self, payload: bytes) -> None:
        if self.transport is not None:
            self.transport.write(encode_frame(Opcode.TEXT, payload, mask=MASK))

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the event loop's interface
        self.transport = None
        self.is_over.set()
