"""One WebSocket connection: a protocol on the event loop, without a task or a timer of its own.

What the client sends goes through the codec (`core/websocket`) to the gateway; what is written goes straight to the
transport, and waits here only while that is full, or for the end of the event loop's step if it was written *soon*. The
frames of a push are made elsewhere, once for all clients.

An idle connection holds this object, a frame reader and the loop's transport, and nothing that grows with time.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from weakref import WeakKeyDictionary

from access.core.backlog import Backlog
from access.core.deflate import DeflateTerms
from access.core.outgoing import Form
from access.core.protocol import Close
from access.core.websocket import CloseHandshake, FrameReader, Opcode, Violation, encode_frame
from access.ports import ABNORMAL, Connection, Gateway

__all__ = ["PROTOBUF_SUBPROTOCOL", "SUBPROTOCOLS", "TransportLimits", "WebSocketConnection", "form_of", "write_soon"]

PROTOBUF_SUBPROTOCOL = "centrifuge-protobuf"
SUBPROTOCOLS = (PROTOBUF_SUBPROTOCOL, "centrifuge-json")

CLOSE_DEADLINE_S = 2.0
"""How long a client may take to answer a close, and to read what was written to it before."""

SOON_MAX = 8
"""Frames that wait for the end of a step at most: less than may wait for a client, also of the longest messages."""

_TEXT, _CLOSE, _PING = map(int, (Opcode.TEXT, Opcode.CLOSE, Opcode.PING))


class TransportLimits(NamedTuple):
    """Limits of each connection, in bytes; the configuration explains them."""

    frame_bytes_max: int
    write_bytes_max: int


def form_of(subprotocol: str | None, deflate: DeflateTerms | None) -> Form:
    """Return the form in which a client wants its messages, by what its handshake agreed on.

    A window that is smaller than the largest would need a compressor of its own: such a client is sent messages as
    they are, which the extension allows, and may compress its own.
    """
    is_deflated = deflate is not None and deflate.is_shared
    if subprotocol == PROTOBUF_SUBPROTOCOL:
        return Form.WS_PROTOBUF_DEFLATED if is_deflated else Form.WS_PROTOBUF
    return Form.WS_JSON_DEFLATED if is_deflated else Form.WS_JSON


class _Step:
    """One event loop's connections that are to be written to at the end of its present step.

    Together, as a callback for each would cost a fifth of what they save.
    """

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: list[WebSocketConnection] = []

    def add(self, connection: WebSocketConnection) -> None:
        """Have the connection flushed; once a step."""
        if not self._connections:
            asyncio.get_running_loop().call_soon(self._end)
        self._connections.append(connection)

    def _end(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.flush()


_steps: WeakKeyDictionary[asyncio.AbstractEventLoop, _Step] = WeakKeyDictionary()


def _step_of(loop: asyncio.AbstractEventLoop) -> _Step:
    step = _steps.get(loop)
    if step is None:
        step = _steps[loop] = _Step()
    return step


class WebSocketConnection(asyncio.Protocol):
    """See the module. Implements `Connection`; takes over its transport from whoever did the handshake."""

    __slots__ = (
        "_address",
        "_backlog",
        "_closing",
        "_gateway",
        "_is_gone",
        "_limits",
        "_reader",
        "_soon",
        "_step",
        "_transport",
        "client",
        "code",
        "form",
        "opcode",
    )
    session = ""

    def __init__(
        self,
        gateway: Gateway,
        transport: asyncio.Transport,
        *,
        form: Form,
        address: str,
        limits: TransportLimits,
        deflate: DeflateTerms | None = None,
    ) -> None:
        self.form = form
        self.client: object | None = None
        self.code = ABNORMAL
        self.opcode = _TEXT
        """In which kind of frame the message came that the gateway is given: text or binary."""
        self._gateway = gateway
        self._transport = transport
        self._address = address
        self._limits = limits
        self._reader = FrameReader(
            is_server=True,
            message_bytes_max=limits.frame_bytes_max,
            inflate=deflate.inflate(is_server=True) if deflate is not None else None,
        )
        self._backlog: Backlog | None = None
        self._closing: CloseHandshake | None = None
        self._soon: list[bytes] | None = None
        self._step = _step_of(asyncio.get_running_loop())
        self._is_gone = False

    def start(self, rest: bytes) -> None:
        """The handshake is done, and `rest` is what came behind it."""
        self._gateway.arrived(self, self._address)
        if rest:
            self.data_received(rest)

    # ---------------------------------------------------------------- the node's side

    def write(self, frame: bytes, replaces: int | None = None) -> None:
        """See `Connection`."""
        if self._soon is not None:
            self.flush()
        if self._closing is not None:
            return
        if self._backlog is None:
            self._transport.write(frame)
        elif not self._backlog.put(frame, replaces):
            self.close(Close.SLOW)

    def write_soon(self, frame: bytes) -> None:
        """See the function."""
        soon = self._soon
        if soon is None:
            self._soon = [frame]
            self._step.add(self)
        elif len(soon) < SOON_MAX:
            soon.append(frame)
        else:
            self.write(frame)

    def close(self, close: Close) -> None:
        """See `Connection`."""
        self.flush()
        self._close(close.code, close.reason, drops=close is Close.SLOW)
        if close is Close.NO_PONG or close is Close.SLOW:
            self._tell_gone()  # it will hardly answer: its session is not to wait for that

    def abort(self) -> None:
        """See `Connection`."""
        self._transport.abort()

    def queued(self) -> int:
        """Return how many bytes wait for the client: here, and in the transport."""
        return self._transport.get_write_buffer_size() + (self._backlog.size if self._backlog is not None else 0)

    # ---------------------------------------------------------------- the transport's side

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        for opcode, payload in self._reader.feed(data):
            if opcode < _CLOSE:  # a message
                if self._closing is None:
                    self.opcode = opcode
                    self._gateway.received(self, payload)
            elif opcode == _PING:
                self.write(encode_frame(Opcode.PONG, payload))
            elif opcode == _CLOSE:
                self._received_close(payload)
        violation = self._reader.violation
        if violation is not None:
            self._fail(violation)

    def pause_writing(self) -> None:
        """The transport is full: what is written waits here."""
        if self._backlog is None and self._closing is None:
            self._backlog = Backlog(self._limits.write_bytes_max)
            self._gateway.crowded(self)

    def resume_writing(self) -> None:
        """The transport has room again."""
        backlog, self._backlog = self._backlog, None
        self._gateway.relieved(self)
        if backlog:
            self._transport.write(b"".join(backlog.take()))

    def eof_received(self) -> bool:
        """The client sends nothing more, which for a WebSocket means that it is gone: let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        del exc
        if self._closing is None:
            self._closing = CloseHandshake()  # nothing is written any more
        self._backlog = self._soon = None
        self._tell_gone()

    def _tell_gone(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._gateway.gone(self)

    def flush(self) -> None:
        """Write what was to be written soon."""
        frames, self._soon = self._soon, None
        if frames is not None:
            self.write(frames[0] if len(frames) == 1 else b"".join(frames))

    # ---------------------------------------------------------------- closing

    def _close(self, code: int, reason: str, *, drops: bool = False) -> None:
        if self._closing is not None:
            return
        self.code = code
        self._closing = CloseHandshake()
        waiting = b"" if drops or self._backlog is None else b"".join(self._backlog.take())
        self._backlog = None
        self._transport.write(waiting + self._closing.start(code, reason))
        self._give_up_later()

    def _received_close(self, payload: bytes) -> None:
        self._backlog = None  # or it would be written behind the close frame
        if self._closing is None:
            self._closing = CloseHandshake()
        answer = self._closing.receive(payload)
        if answer:
            received = self._closing.received
            self.code = received[0] if received is not None else ABNORMAL
            self._transport.write(answer)
            self._give_up_later()
        if isinstance(self._closing.received, Violation):
            self._end_writing()
        else:
            self._transport.close()
        # What it sent just before the close may have begun something: that is to see at once that nobody waits for it.
        self._tell_gone()

    def _fail(self, violation: Violation) -> None:
        self._backlog = None
        if self._closing is None:
            self._closing = CloseHandshake()
            self.code = violation.code
        elif self._closing.is_done:
            return
        frame = self._closing.fail(violation)
        if frame:
            self._transport.write(frame)
        self._give_up_later()
        self._end_writing()
        self._tell_gone()

    def _end_writing(self) -> None:
        # Hanging up on what it still sends would reset the connection, and the frame that says why be lost with it.
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _give_up_later(self) -> None:
        # Only what is closing has a timer: without it, a client that is not there would be waited for.
        asyncio.get_running_loop().call_later(CLOSE_DEADLINE_S, self._transport.abort)


def write_soon(connection: Connection, frame: bytes) -> None:
    """Write as `Connection.write` does, in the same order, but by the end of this step of the event loop.

    What is written so to a WebSocket in one step leaves in one call of the kernel, which takes more time than all else
    about a short message. It is for replies, and whatever else concerns one client: for a frame to many it only costs.
    What is written to a client of HTTP waits for its request in any case.
    """
    if isinstance(connection, WebSocketConnection):
        connection.write_soon(frame)
    else:
        connection.write(frame)
