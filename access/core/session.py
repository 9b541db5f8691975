"""One client's session, from the accepted socket to its close: a step machine without a socket.

```
    awaiting ──connect──▶ connecting ──accepted──▶ open ──close, no pong, shutdown──▶ closed
        │                     └──refused──▶ awaiting or closed                           ▲
        └──anything else, or no connect in time──────────────────────────────────────────┘
```

The shell gives it what arrives (`receive`), the results of what it asked for, and the time (`tick`); it returns
effects to carry out in their order. Commands are answered in any order, as the protocol allows, but started in
theirs. What the shell starts may go on after the client went: before it opens anything that the end of the session has
to close, it asks whether anybody still waits for it (`is_waiting`).

| phase      | connect      | subscribe, rpc, unsubscribe | send       | other commands | pong       | not a command |
|------------|--------------|-----------------------------|------------|----------------|------------|---------------|
| awaiting   | authenticate | close 3501                  | close 3501 | close 3501     | close 3501 | close 3501    |
| connecting | close 3501   | close 3501                  | close 3501 | close 3501     | close 3501 | close 3501    |
| open       | close 3501   | start                       | ignore     | error 108      | alive      | close 3501    |
| closed     | ignore       | ignore                      | ignore     | ignore         | ignore     | ignore        |

Invariants:
    I1  Nothing is written before the connect reply, nothing after the close.
    I2  At most `inflight_max` commands are under way; one more is answered with error 111.
    I3  Every started command gets exactly one reply, unless the session closes before.
    I4  An open session that did not answer a ping in time is closed with 3012.
    I5  Nobody waits for a command before its start, after its reply, or after the close.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from access.core.protocol import (
    PING_FRAME,
    ChannelRequest,
    ClientError,
    Close,
    Command,
    ConnectRequest,
    ConnectResult,
    ReplyError,
    RpcRequest,
    RpcResult,
    SubscribeRequest,
    SubscribeResult,
    decode_frame,
    encode_reply,
)
from base.clock import Instant

__all__ = ["Phase", "Session", "SessionPolicy"]


class Phase(Enum):
    """Where a session stands."""

    AWAITING = "awaiting"
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class SessionPolicy(msgspec.Struct, frozen=True):
    """Limits of every session; the configuration explains each."""

    connect_deadline_ms: int
    ping_interval_ms: int
    pong_deadline_ms: int
    inflight_max: int


# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Write:
    """Send these bytes as one text frame."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Check the token, then call `accepted` or `refused`, or `close`. Not if nobody waits for it any more."""

    command_id: int
    request: ConnectRequest


@dataclass(frozen=True, slots=True)
class StartRpc:
    """Call the method, then `finish` with the result or an error."""

    command_id: int
    request: RpcRequest


@dataclass(frozen=True, slots=True)
class StartSubscribe:
    """Read the channel from the asked position, then `finish` with the result or an error.

    Not if nobody waits for it any more.
    """

    command_id: int
    request: SubscribeRequest


@dataclass(frozen=True, slots=True)
class StartUnsubscribe:
    """End the subscription, then `finish`."""

    command_id: int
    request: ChannelRequest


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the socket with this code; the session is over."""

    close: Close


Effect = Write | Authenticate | StartRpc | StartSubscribe | StartUnsubscribe | Disconnect


class Session:
    """See the module. One per connection."""

    def __init__(self, session_id: str, now: Instant, policy: SessionPolicy) -> None:
        self.id = session_id
        self.phase = Phase.AWAITING
        self._policy = policy
        self._inflight: set[int] = set()
        self._deadline = Instant(now + policy.connect_deadline_ms)
        self._awaits_pong = False

    def next_deadline(self) -> Instant | None:
        """Return when `tick` must be called next, None once closed."""
        return None if self.phase is Phase.CLOSED else self._deadline

    def tick(self, now: Instant) -> list[Effect]:
        """Act on the time: ping, or close what is silent. Early calls do nothing."""
        if self.phase is Phase.CLOSED or now < self._deadline:
            return []
        if self.phase is not Phase.OPEN:
            return self._close(Close.STALE)
        if self._awaits_pong:
            return self._close(Close.NO_PONG)
        self._awaits_pong = True
        self._deadline = Instant(now + self._policy.pong_deadline_ms)
        return [Write(PING_FRAME)]

    def receive(self, now: Instant, frame: bytes | str) -> list[Effect]:
        """Take one frame from the client."""
        if self.phase is Phase.CLOSED:
            return []
        try:
            commands = decode_frame(frame)
        except (msgspec.MsgspecError, UnicodeError):
            return self._close(Close.BAD_REQUEST)
        if not commands:
            return self._close(Close.BAD_REQUEST)
        effects: list[Effect] = []
        for command in commands:
            effects.extend(self._step(now, command))
            if self.is_closed():
                break
        return effects

    def accepted(self, now: Instant, command_id: int, result: ConnectResult) -> list[Effect]:
        """The connect succeeded: the session is open."""
        if self.phase is not Phase.CONNECTING:
            return []
        self.phase = Phase.OPEN
        self._inflight.clear()
        self._deadline = Instant(now + self._policy.ping_interval_ms)
        return [Write(encode_reply(command_id, "connect", result))]

    def refused(self, command_id: int, error: ReplyError) -> list[Effect]:
        """The connect failed in a way that the client can mend on this connection or the next one."""
        if self.phase is not Phase.CONNECTING:
            return []
        self.phase = Phase.AWAITING
        self._inflight.clear()
        return [Write(encode_reply(command_id, "error", error))]

    def finish(
        self, command_id: int, kind: str, result: RpcResult | SubscribeResult | ReplyError | None
    ) -> list[Effect]:
        """A started command is done. `result` None stands for an empty one."""
        if self.phase is not Phase.OPEN or not self.is_waiting(command_id):
            return []
        self._inflight.remove(command_id)
        name = "error" if isinstance(result, ReplyError) else kind
        return [Write(encode_reply(command_id, name, result if result is not None else {}))]

    def is_waiting(self, command_id: int) -> bool:
        """Return whether the client waits for the reply to a command, the connect too: it is there, and had none."""
        return command_id in self._inflight

    def close(self, close: Close) -> list[Effect]:
        """End the session from this side: shutdown, slow consumer, bad ticket."""
        return [] if self.phase is Phase.CLOSED else self._close(close)

    def gone(self) -> None:
        """The socket is gone: nothing can be written any more."""
        self._end()

    def is_closed(self) -> bool:
        """Return whether the session is over."""
        return self.phase is Phase.CLOSED

    def _step(self, now: Instant, command: Command) -> list[Effect]:
        kind = command.kind()
        if self.phase is Phase.OPEN:
            return self._step_open(now, kind, command)
        if self.phase is Phase.AWAITING and command.connect is not None and command.id > 0:
            self.phase = Phase.CONNECTING
            self._inflight.add(command.id)
            return [Authenticate(command.id, command.connect)]
        return self._close(Close.BAD_REQUEST)

    def _step_open(self, now: Instant, kind: str | None, command: Command) -> list[Effect]:
        if kind is None:
            if command.id:
                return self._close(Close.BAD_REQUEST)
            self._awaits_pong = False
            self._deadline = Instant(now + self._policy.ping_interval_ms)
            return []
        if command.send is not None:
            return []  # a message without a reply, which nothing here listens to
        if command.connect is not None or command.id <= 0 or command.id in self._inflight:
            return self._close(Close.BAD_REQUEST)
        if len(self._inflight) >= self._policy.inflight_max:
            return [Write(encode_reply(command.id, "error", ClientError.TOO_MANY_REQUESTS.wire))]
        effect: Effect
        if command.rpc is not None:
            effect = StartRpc(command.id, command.rpc)
        elif command.subscribe is not None:
            effect = StartSubscribe(command.id, command.subscribe)
        elif command.unsubscribe is not None:
            effect = StartUnsubscribe(command.id, command.unsubscribe)
        else:
            return [Write(encode_reply(command.id, "error", ClientError.NOT_AVAILABLE.wire))]
        self._inflight.add(command.id)
        return [effect]

    def _close(self, close: Close) -> list[Effect]:
        self._end()
        return [Disconnect(close)]

    def _end(self) -> None:
        self.phase = Phase.CLOSED
        self._inflight.clear()
