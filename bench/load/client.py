"""One connection of the load generator: from the socket to publications that are read, without a task or a timer.

A client of the access server keeps its position in its inbox and checks that what comes follows it: the load generator
is a witness, too. Told to move, it opens a second connection with its position, takes that over as soon as it is
accepted, and closes the first one then. So a client is one object a connection, and its successor inherits the rest.
"""

from __future__ import annotations

import asyncio
import base64
import os
from enum import IntEnum
from typing import Protocol, cast
from urllib.parse import urlsplit

import msgspec

from access.core.handshake import BadHead, ClientRefused, check_response, encode_request
from access.core.websocket import FrameReader, Opcode, Violation, encode_close, encode_frame, parse_close
from bench.load.wire import Kind, user_name

__all__ = ["Client", "Owner", "Stage", "Target", "target_of"]

CONNECT_ID = 1
PING = encode_frame(Opcode.TEXT, b"{}")
MESSAGE_BYTES_MAX = 1 << 20
NORMAL = 1000
NO_CODE = 1006
"""What RFC 6455, 7.1.5, calls a connection that ended without a close frame."""


class Stage(IntEnum):
    """How far a connection is."""

    IDLE = 0
    CONNECTING = 1
    UPGRADING = 2
    JOINING = 3
    OPEN = 4
    ENDED = 5


class Target(msgspec.Struct, frozen=True):
    """Where to connect."""

    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the header `Host`."""
        return f"{self.host}:{self.port}"


def target_of(url: str) -> Target:
    """Return the target of a `ws://` or `tcp://` address, which names its port."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Target(parts.hostname, parts.port, parts.path or "/")


class _Body(msgspec.Struct, frozen=True):
    at_ns: int = 0


class _Data(msgspec.Struct):
    """A message to somebody; its body is what a sender of ours put there."""

    to: str = ""
    body: _Body = _Body()


class _Publication(msgspec.Struct):
    data: _Data
    offset: int = 0


class _Move(msgspec.Struct):
    url: str
    ticket: str
    after_ms: int


class _Notice(msgspec.Struct):
    move: _Move | None = None


class _Message(msgspec.Struct):
    data: _Notice


class _Push(msgspec.Struct):
    channel: str = ""
    pub: _Publication | None = None
    message: _Message | None = None


class _Start(msgspec.Struct):
    """A subscription's beginning."""

    epoch: str = ""
    offset: int = 0
    was_recovering: bool = False
    recovered: bool = False
    publications: list[_Publication] = []


class _Connected(msgspec.Struct):
    subs: dict[str, _Start] = {}


class _Error(msgspec.Struct):
    code: int


class _Frame(msgspec.Struct):
    """Whatever the server says."""

    id: int = 0
    push: _Push | None = None
    error: _Error | None = None
    connect: _Connected | None = None


_decode = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.encode


class Owner(Protocol):
    """What a client needs of the process that it is in."""

    kind: Kind
    pings: int
    """How many came."""
    pong: bytes
    """The frame that answers one; the same for all, as there is no one here who must not guess its mask."""

    def ticket(self, number: int) -> str:
        """Sign a ticket for a client."""
        ...

    def now_ns(self) -> int:
        """A clock that all processes of the machine share."""
        ...

    def mask(self) -> bytes:
        """Four random bytes."""
        ...

    def count(self, what: str, by: int = 1) -> None:
        """Count something for the report."""
        ...

    def measured(self, what: str, since_ns: int) -> None:
        """Record the time since then."""
        ...

    def opened(self, client: Client) -> None:
        """It is open, and has taken its predecessor's place."""
        ...

    def failed(self, client: Client, *, retry_after_ms: int = 0) -> None:
        """It did not open."""
        ...

    def lost(self, client: Client) -> None:
        """It was open, and ended without our doing; if it has a successor, that goes on."""
        ...

    def moves(self, client: Client) -> None:
        """It is the successor of an open one, and wants to be connected."""
        ...

    def replied(self, command_id: int, error: int) -> None:
        """A command was answered; `error` is 0 or the error's code."""
        ...


class Client(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_handshake",
        "_reader",
        "_ticket",
        "attempts",
        "begun_ns",
        "epoch",
        "number",
        "offset",
        "other",
        "owner",
        "stage",
        "target",
        "transport",
    )

    def __init__(
        self, owner: Owner, number: int, target: Target, *, ticket: str = "", other: Client | None = None
    ) -> None:
        self.owner = owner
        self.number = number
        self.target = target
        self.stage = Stage.IDLE
        self.transport: asyncio.Transport | None = None
        self.offset = 0
        self.epoch = ""
        self.attempts = 0
        self.begun_ns = 0
        self.other = other
        """Its successor if it was told to move; its predecessor until it is open."""
        self._ticket = ticket
        self._handshake: tuple[str, bytes] | None = None
        """While upgrading: the key, and what came of the response."""
        self._reader: FrameReader | None = None

    @property
    def channel(self) -> str:
        """Its inbox."""
        return f"inbox:{user_name(self.number)}"

    def call(self, command_id: int, request: bytes) -> None:
        """Send a command; `request` is the rest of its JSON object after the id."""
        self._write(b'{"id":%d,%s}' % (command_id, request))

    def deafen(self) -> None:
        """Count what comes, and do not look at it."""
        self._reader = None

    def close(self) -> None:
        """End it in order."""
        is_told = self.stage in (Stage.JOINING, Stage.OPEN) and self.owner.kind is not Kind.TCP
        self.stage = Stage.ENDED
        if self.transport is not None:
            if is_told:
                self.transport.write(encode_close(NORMAL, mask=self.owner.mask()))
            self.transport.close()

    def give_up(self) -> None:
        """It takes too long to open."""
        if self.transport is not None:
            self.transport.abort()

    # ---------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's do not say so themselves
        if self.stage is Stage.ENDED:  # closed while it was being connected
            self.give_up()
            return
        if self.owner.kind is Kind.TCP:
            self._opened()
            return
        self.stage = Stage.UPGRADING
        key = base64.b64encode(os.urandom(16)).decode()
        self._handshake = (key, b"")
        self.transport.write(encode_request(host=self.target.authority, target=self.target.path, key=key))

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._handshake is not None:
            data = self._upgrade(*self._handshake, data)
        if self._reader is None:
            self.owner.count("bytes", len(data))
            return
        if data == PING and not self._reader.buffered and self.transport is not None:
            # What an idle connection gets; one machine that holds a million of them has no time for more.
            self.owner.pings += 1
            self.transport.write(self.owner.pong)
            return
        for opcode, payload in self._reader.feed(data):
            if opcode == Opcode.TEXT:
                self._text(payload)
            elif opcode == Opcode.CLOSE:
                parsed = parse_close(payload)
                self._closed_by_server(parsed.code if isinstance(parsed, Violation) else parsed[0])
                return
        if self._reader.violation is not None:
            self.owner.count("violations")
            self.give_up()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the event loop's interface
        """The socket is gone."""
        if self.stage is not Stage.ENDED:
            self._closed_by_server(NO_CODE)
        self.transport = None
        self._reader = None

    # ---------------------------------------------------------------- inside

    def _write(self, message: bytes) -> None:
        if self.transport is not None:
            self.transport.write(encode_frame(Opcode.TEXT, message, mask=self.owner.mask()))

    def _upgrade(self, key: str, before: bytes, data: bytes) -> bytes:
        """Read the response; return what came after it."""
        data = before + data
        response = check_response(data, key=key)
        if response is None:
            self._handshake = (key, data)
            return b""
        self._handshake = None
        if isinstance(response, BadHead | ClientRefused):
            self._refused(response)
            return b""
        if self.owner.kind is Kind.WEBSOCKET:
            self._opened()
            return data[response.length :]
        self.stage = Stage.JOINING
        self._reader = FrameReader(is_server=False, message_bytes_max=MESSAGE_BYTES_MAX)
        if self.other is not None:
            self.offset, self.epoch = self.other.offset, self.other.epoch
        ticket, self._ticket = self._ticket or self.owner.ticket(self.number), ""
        subs = {self.channel: {"recover": True, "epoch": self.epoch, "offset": self.offset}} if self.epoch else {}
        self._write(_encode({"id": CONNECT_ID, "connect": {"token": ticket, "subs": subs}}))
        return data[response.length :]

    def _refused(self, response: BadHead | ClientRefused) -> None:
        self.owner.count(f"refused {response.status}")
        after = response.headers.get("retry-after", "") if isinstance(response, ClientRefused) else ""
        self._end_unopened(retry_after_ms=int(after) * 1000 if after.isdecimal() else 0)

    def _text(self, payload: bytes) -> None:
        for line in payload.split(b"\n"):
            if line == b"{}":
                self.owner.pings += 1
                self._write(b"{}")
            elif line:
                self._take(_decode(line))

    def _take(self, frame: _Frame) -> None:
        if frame.push is not None:
            if frame.push.pub is not None:
                self._published(frame.push.channel, frame.push.pub)
            elif frame.push.message is not None and frame.push.message.data.move is not None:
                self._told_to_move(frame.push.message.data.move)
        elif frame.id == CONNECT_ID:
            if frame.error is not None:
                self.owner.count(f"error {frame.error.code}")
                self._end_unopened()
            elif frame.connect is not None:
                self._joined(frame.connect)
        else:
            self.owner.replied(frame.id, frame.error.code if frame.error is not None else 0)

    def _joined(self, connected: _Connected) -> None:
        start = connected.subs.get(self.channel, _Start())
        if self.other is not None:
            # The predecessor went on reading while this one was let in.
            self.offset = self.other.offset
        if start.was_recovering and not start.recovered:
            self.owner.count("unrecovered")
            self.offset = start.offset
        for publication in start.publications:
            if publication.offset > self.offset:
                self._published(self.channel, publication)
        if not start.was_recovering:
            self.offset = start.offset
        self.epoch = start.epoch
        predecessor, self.other = self.other, None
        self._opened()
        if predecessor is not None:
            predecessor.close()
            predecessor.other = None

    def _published(self, channel: str, publication: _Publication) -> None:
        if self.stage is Stage.ENDED:
            return  # its successor has it
        data = publication.data
        if publication.offset and channel == self.channel:
            if publication.offset != self.offset + 1:
                self.owner.count("duplicates" if publication.offset <= self.offset else "gaps")
            self.offset = max(self.offset, publication.offset)
            if data.to not in ("", user_name(self.number)):  # "" is a group
                return  # what it sent itself, for its other devices
        self.owner.count("received")
        if data.body.at_ns:
            self.owner.measured("push", data.body.at_ns)

    def _told_to_move(self, move: _Move) -> None:
        if self.stage is Stage.OPEN and self.other is None:
            self.owner.count("told to move")
            self.other = Client(self.owner, self.number, target_of(move.url), ticket=move.ticket, other=self)
            self.owner.moves(self.other)

    def _opened(self) -> None:
        self.stage = Stage.OPEN
        self.attempts = 0
        self.owner.measured("connect", self.begun_ns)
        self.owner.opened(self)

    def _closed_by_server(self, code: int) -> None:
        was_open = self.stage is Stage.OPEN
        self.owner.count(f"closed {code}")
        if not was_open:
            self._end_unopened()
            return
        self.stage = Stage.ENDED
        if self.transport is not None:
            self.transport.close()
        self.owner.count("closed untold" if self.other is None else "closed before arrival")
        self.owner.lost(self)

    def _end_unopened(self, *, retry_after_ms: int = 0) -> None:
        self.stage = Stage.ENDED
        self.give_up()
        self._handshake = None
        self.owner.failed(self, retry_after_ms=retry_after_ms)
