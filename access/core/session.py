"""One client's session, from its arrival to its end: a step machine without a transport.

The shell says what happens (`receive` for what the client sent, `accepted`, `refused`, `finish` for what came of what
it was told to start, and what time or others did to the session) and carries out the effects that it gets back, in
their order. What a phase does with an event stands in one table, `TRANSITIONS`; whatever is not in it is ignored. The
reference has it as a diagram.

Commands are started in the order in which they came and answered in any, as the protocol allows. What a client sends
behind its connect command, without waiting for the reply, is held until it is accepted: some SDKs send all of their
subscriptions so. Of those that are too many to be started only the ids are held, for the answer.

What the shell starts may go on after the client went: before it opens anything that the end of the session has to
close, it asks whether anybody still waits for it (`is_waiting`).

Invariants:
    I1  Nothing is written before the connect's reply, nothing after the close.
    I2  At most `inflight_max` commands are under way; one more is answered with error 111.
    I3  Every started command gets exactly one reply, unless the session closes before; a `send` gets none.
    I4  A session that did not answer its last ping is closed with 3012 when it is looked at.
    I5  Nobody waits for a command before its start, after its reply, or after the close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from access.core.protocol import (
    EMPTY,
    ClientError,
    Close,
    Command,
    ConnectRequest,
    ConnectResult,
    ReplyError,
    Result,
)

__all__ = [
    "COMMANDS_MAX",
    "HELD_MAX",
    "TRANSITIONS",
    "Action",
    "Authenticate",
    "Disconnect",
    "Effect",
    "Event",
    "Phase",
    "Reply",
    "Session",
    "SessionPolicy",
    "Start",
    "Step",
]


_new_tuple = tuple.__new__  # the constructor of a named tuple is a function in Python
_PONG = Command()
_TOO_MANY = ClientError.TOO_MANY_REQUESTS.wire

COMMANDS_MAX = 2_000
"""Commands in one frame: as many as an SDK sends together. There is room for 65,536 of the shortest in 64 kB."""
HELD_MAX = 2_000
"""Commands that a client may send behind its connect: as many as fit into one frame, about."""


class Phase(Enum):
    """Where a session stands."""

    __hash__ = object.__hash__  # that of Enum is in Python, and each command needs it twice

    AWAITING = "awaiting"
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


class Event(Enum):
    """What happens to a session. The first five are what a client sends."""

    __hash__ = object.__hash__

    CONNECT = "connect"
    REQUEST = "request"
    """Any other command that wants a reply."""
    SEND = "send"
    """A command that wants none."""
    PONG = "pong"
    MALFORMED = "malformed"
    """Not a command, or one whose id cannot be answered."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    """The connect failed in a way that the client may try again, here or elsewhere."""
    STALE = "no connect in time"
    SILENT = "no pong in time"
    CLOSED = "closed by the node"
    """Bad credentials, shutdown, a slow client, and so on."""
    GONE = "transport gone"


class Action(Enum):
    """What is done about it."""

    AUTHENTICATE = "authenticate"
    HOLD = "hold"
    START = "start"
    NOTE = "note the answer"
    OPEN = "reply, start what was held"
    REPLY = "reply"
    CLOSE = "close"
    END = "end"


class Step(NamedTuple):
    """What a phase does with an event, and the phase after it."""

    action: Action
    phase: Phase


_AWAITING, _CONNECTING, _OPEN, _CLOSED = Phase.AWAITING, Phase.CONNECTING, Phase.OPEN, Phase.CLOSED
_CLOSE = Step(Action.CLOSE, _CLOSED)
_END = Step(Action.END, _CLOSED)

TRANSITIONS: Mapping[tuple[Phase, Event], Step] = {
    (_AWAITING, Event.CONNECT): Step(Action.AUTHENTICATE, _CONNECTING),
    (_AWAITING, Event.REQUEST): _CLOSE,
    (_AWAITING, Event.SEND): _CLOSE,
    (_AWAITING, Event.PONG): _CLOSE,
    (_AWAITING, Event.MALFORMED): _CLOSE,
    (_AWAITING, Event.STALE): _CLOSE,
    (_AWAITING, Event.CLOSED): _CLOSE,
    (_AWAITING, Event.GONE): _END,
    (_CONNECTING, Event.CONNECT): _CLOSE,
    (_CONNECTING, Event.REQUEST): Step(Action.HOLD, _CONNECTING),
    (_CONNECTING, Event.SEND): Step(Action.HOLD, _CONNECTING),
    (_CONNECTING, Event.PONG): _CLOSE,
    (_CONNECTING, Event.MALFORMED): _CLOSE,
    (_CONNECTING, Event.ACCEPTED): Step(Action.OPEN, _OPEN),
    (_CONNECTING, Event.REFUSED): Step(Action.REPLY, _AWAITING),
    (_CONNECTING, Event.STALE): _CLOSE,
    (_CONNECTING, Event.CLOSED): _CLOSE,
    (_CONNECTING, Event.GONE): _END,
    (_OPEN, Event.CONNECT): _CLOSE,
    (_OPEN, Event.REQUEST): Step(Action.START, _OPEN),
    (_OPEN, Event.SEND): Step(Action.START, _OPEN),
    (_OPEN, Event.PONG): Step(Action.NOTE, _OPEN),
    (_OPEN, Event.MALFORMED): _CLOSE,
    (_OPEN, Event.SILENT): _CLOSE,
    (_OPEN, Event.CLOSED): _CLOSE,
    (_OPEN, Event.GONE): _END,
}
"""Of events that are not here nothing comes: the session was closed before they could."""


class SessionPolicy(msgspec.Struct, frozen=True):
    """Limits of every session; the configuration explains each."""

    inflight_max: int


# ---------------------------------------------------------------- effects


class Reply(NamedTuple):
    """Write the reply to a command: `kind` is its name, or `error`."""

    command_id: int
    kind: str
    result: Result


class Authenticate(NamedTuple):
    """Check who it is, then call `accepted` or `refused`, or `close`. Not if nobody waits for it any more."""

    command_id: int
    request: ConnectRequest


class Start(NamedTuple):
    """Do what the command asks, then `finish` it if it has an id. Not if nobody waits for it any more."""

    command: Command
    kind: str


class Disconnect(NamedTuple):
    """Close the transport with this code; the session is over."""

    close: Close


Effect = Reply | Authenticate | Start | Disconnect


class Session:
    """See the module. One a client."""

    __slots__ = ("_awaits_pong", "_held", "_inflight", "_policy", "phase")

    def __init__(self, policy: SessionPolicy) -> None:
        self.phase = Phase.AWAITING
        self._policy = policy
        # Both are made when they are needed: most sessions are idle, and an empty set is as large as all the rest.
        self._inflight: set[int] | None = None
        self._held: list[Command | int] | None = None
        self._awaits_pong = False

    # ---------------------------------------------------------------- what the client sends

    def receive(self, commands: Sequence[Command]) -> list[Effect]:
        """Take the commands of one frame."""
        if not 0 < len(commands) <= COMMANDS_MAX:
            return self.malformed()
        if len(commands) == 1 and self.phase is Phase.OPEN:
            (command,) = commands
            # As the table has it, for what nearly all frames are that are no pongs.
            if command.rpc is not None and command.kind() == "rpc" and command.id and not self.is_waiting(command.id):
                return self._start(command, "rpc")
        effects: list[Effect] = []
        for command in commands:
            if command == _PONG and self.phase is Phase.OPEN:
                self._awaits_pong = False  # as in `pong`; nothing else is as short, so that there may be very many
                continue
            effects += self._receive(command)
            if self.phase is Phase.CLOSED:
                break
        return effects

    def malformed(self) -> list[Effect]:
        """The client sent something that is no frame of commands, or of too many."""
        return self._happen(Event.MALFORMED, Close.BAD_REQUEST)

    def pong(self) -> list[Effect]:
        """The client sent the answer to a ping."""
        if self.phase is Phase.OPEN:  # as the table has it, for the most frequent event of all
            self._awaits_pong = False
            return []
        return self._happen(Event.PONG, Close.BAD_REQUEST)

    # ---------------------------------------------------------------- what came of what was started

    def accepted(self, command_id: int, result: ConnectResult) -> list[Effect]:
        """The connect succeeded. After the effects, begin the subscriptions of the result, then `release`."""
        if TRANSITIONS.get((self.phase, Event.ACCEPTED)) is None:
            return []
        self._inflight = None
        self.phase = TRANSITIONS[self.phase, Event.ACCEPTED].phase
        return [Reply(command_id, "connect", result)]

    def release(self) -> list[Effect]:
        """Start what the client sent behind its connect."""
        held, self._held = self._held, None
        return [effect for command in held or () for effect in self._receive_held(command)]

    def refused(self, command_id: int, error: ReplyError) -> list[Effect]:
        """The connect failed in a way that the client can mend on this connection or the next one.

        What it sent behind its connect was for a session that there is not: the client has to send it anew.
        """
        step = TRANSITIONS.get((self.phase, Event.REFUSED))
        if step is None:
            return []
        self._inflight = self._held = None
        self.phase = step.phase
        return [Reply(command_id, "error", error)]

    def finish(self, command_id: int, kind: str, result: Result) -> list[Effect]:
        """A started command is done; a `ReplyError` as its result says that it failed."""
        if self.phase is not Phase.OPEN or self._inflight is None or command_id not in self._inflight:
            return []
        self._inflight.remove(command_id)
        if not self._inflight:
            self._inflight = None
        return [_new_tuple(Reply, (command_id, "error" if isinstance(result, ReplyError) else kind, result))]

    def is_waiting(self, command_id: int) -> bool:
        """Return whether the client waits for the reply to a command, the connect too: it is there, and had none."""
        return self._inflight is not None and command_id in self._inflight

    @property
    def has_answered(self) -> bool:
        """Whether the client has answered its last ping, or had none yet."""
        return not self._awaits_pong

    # ---------------------------------------------------------------- what time and others do

    def pinged(self) -> bool:
        """The client is about to be pinged; return whether to do so."""
        self._awaits_pong = self.phase is Phase.OPEN
        return self._awaits_pong

    def looked_at(self) -> list[Effect]:
        """It is time that the last ping was answered."""
        return self._happen(Event.SILENT, Close.NO_PONG) if self._awaits_pong else []

    def stale(self) -> list[Effect]:
        """It is time that the client is connected. One that asked to be, and waits for us, is to come back."""
        return self._happen(Event.STALE, Close.STALE if self.phase is Phase.AWAITING else Close.SERVER_ERROR)

    def close(self, close: Close) -> list[Effect]:
        """End the session from this side: shutdown, slow consumer, bad credentials."""
        return self._happen(Event.CLOSED, close)

    def gone(self) -> None:
        """The transport is gone: nothing can be written any more."""
        self._happen(Event.GONE, Close.CONNECTION_CLOSED)

    def is_closed(self) -> bool:
        """Return whether the session is over."""
        return self.phase is Phase.CLOSED

    # ---------------------------------------------------------------- inside

    def _receive(self, command: Command) -> list[Effect]:
        kind = command.kind()
        step = TRANSITIONS.get((self.phase, self._event_of(command, kind)))
        if step is None:
            return []
        match step.action:
            case Action.AUTHENTICATE:
                assert command.connect is not None
                self.phase = step.phase
                self._inflight = {command.id}
                return [Authenticate(command.id, command.connect)]
            case Action.HOLD:
                return self._hold(command, kind or "")
            case Action.START:
                return self._start(command, kind or "")
            case _:
                return self._happen(Event.MALFORMED, Close.BAD_REQUEST)

    def _event_of(self, command: Command, kind: str | None) -> Event:
        if kind is None:
            return Event.MALFORMED if command.id else Event.PONG
        if kind == "send":
            return Event.SEND
        if command.id <= 0 or self.is_waiting(command.id):
            return Event.MALFORMED
        return Event.CONNECT if kind == "connect" else Event.REQUEST

    def _hold(self, command: Command, kind: str) -> list[Effect]:
        if self._held is None:
            self._held = []
        count = len(self._held)
        if count < self._policy.inflight_max:
            self._held.append(command)
        elif count < HELD_MAX and kind != "send":
            self._held.append(command.id)
        else:
            return self._happen(Event.CLOSED, Close.BAD_REQUEST)
        return []

    def _receive_held(self, command: Command | int) -> list[Effect]:
        if isinstance(command, Command):
            return self._receive(command)
        if self.is_waiting(command):
            return self.malformed()
        return [] if self.is_closed() else [_too_many(command)]

    def _start(self, command: Command, kind: str) -> list[Effect]:
        if kind == "send":
            return [Start(command, kind)]
        if kind == "ping":
            return [Reply(command.id, kind, EMPTY)]
        if self._inflight is None:
            self._inflight = set()
        if len(self._inflight) >= self._policy.inflight_max:
            return [_too_many(command.id)]
        self._inflight.add(command.id)
        return [_new_tuple(Start, (command, kind))]

    def _happen(self, event: Event, close: Close) -> list[Effect]:
        step = TRANSITIONS.get((self.phase, event))
        if step is None:
            return []
        self.phase = step.phase
        self._inflight = self._held = None
        return [] if step.action is Action.END else [Disconnect(close)]


def _too_many(command_id: int) -> Reply:
    return Reply(command_id, "error", _TOO_MANY)
