"""The session against a dumb twin: random histories of what clients, time and the node may do.

The table and the examples are in the file beside this one.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from access.core.protocol import (
    EMPTY,
    ClientError,
    Close,
    Command,
    ConnectRequest,
    ConnectResult,
    PublishRequest,
    ReplyError,
    Result,
    RpcRequest,
    RpcResult,
    SendRequest,
    SubscribeRequest,
)
from access.core.session import HELD_MAX, Authenticate, Disconnect, Effect, Reply, Session, SessionPolicy, Start

WELCOME = ConnectResult("s", "v", 25, pong=True, session="s", node="access-1")
DONE = RpcResult(msgspec.Raw(b'"done"'))
FAILED = ReplyError(107, "no")
TOO_MANY = ClientError.TOO_MANY_REQUESTS.wire
REQUESTS: dict[str, Any] = {
    "connect": ConnectRequest("t"),
    "ping": EMPTY,
    "publish": PublishRequest("c"),
    "rpc": RpcRequest("m"),
    "send": SendRequest(),
    "subscribe": SubscribeRequest("c"),
}


def command(command_id: int, kind: str) -> Command:
    return Command(command_id, **{kind: REQUESTS[kind]})


class Twin:
    """A session without a table: lists of what is held and under way, and a case for everything."""

    def __init__(self, inflight_max: int) -> None:
        self.inflight_max = inflight_max
        self.state = "awaiting"
        self.connect_id = 0
        self.held: list[Command] = []
        self.under_way: list[int] = []
        self.owes_pong = False

    def end(self, close: Close) -> list[Effect]:
        if self.state == "closed":
            return []
        self.state = "closed"
        return [Disconnect(close)]

    def frame(self, commands: list[Command]) -> list[Effect]:
        effects: list[Effect] = []
        for one in commands:
            effects += self.one(one)
        return effects if commands else self.end(Close.BAD_REQUEST)

    def one(self, sent: Command) -> list[Effect]:
        kind = sent.kind()
        if self.state == "closed":
            return []
        is_answered = kind not in (None, "send")
        if (kind is None and sent.id) or (is_answered and not sent.id):
            return self.end(Close.BAD_REQUEST)
        if self.state == "awaiting":
            if kind != "connect":
                return self.end(Close.BAD_REQUEST)
            self.state, self.connect_id = "connecting", sent.id
            return [Authenticate(sent.id, ConnectRequest("t"))]
        if self.state == "connecting":
            fits = len(self.held) < (self.inflight_max if kind == "send" else HELD_MAX)
            if kind in (None, "connect") or (is_answered and sent.id == self.connect_id) or not fits:
                return self.end(Close.BAD_REQUEST)
            self.held.append(sent)
            return []
        return self.open(sent, kind)

    def open(self, sent: Command, kind: str | None) -> list[Effect]:
        if kind is None:
            self.owes_pong = False
            return []
        if kind == "send":
            return [Start(sent, kind)]
        if kind == "connect" or sent.id in self.under_way:
            return self.end(Close.BAD_REQUEST)
        if kind == "ping":
            return [Reply(sent.id, kind, EMPTY)]
        if len(self.under_way) == self.inflight_max:
            return [Reply(sent.id, "error", TOO_MANY)]
        self.under_way.append(sent.id)
        return [Start(sent, kind)]

    def release(self) -> list[Effect]:
        held, self.held = self.held, []
        effects: list[Effect] = []
        for place, sent in enumerate(held):
            if place < self.inflight_max or self.state == "closed":
                effects += self.one(sent)
            elif sent.id in self.under_way:
                effects += self.end(Close.BAD_REQUEST)
            else:
                effects.append(Reply(sent.id, "error", TOO_MANY))
        return effects


IDS = st.integers(1, 6)
KINDS = st.sampled_from(["rpc", "rpc", "subscribe", "publish", "ping", "send", "pong", "pong"])
SELDOM = st.sampled_from([False] * 9 + [True])


class SessionAgainstTwin(RuleBasedStateMachine):
    """Both are told the same. What the session says is also kept, and the invariants are read off that."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(2, is_open=False)

    @initialize(inflight_max=st.integers(1, 4), is_open=st.booleans())
    def begin(self, inflight_max: int, *, is_open: bool) -> None:
        self.session = Session(SessionPolicy(inflight_max))
        self.twin = Twin(inflight_max)
        self.said: list[Effect] = []
        self.answered: list[int] = []
        if is_open:
            self.send([command(1, "connect")])
            self.accept(is_slow=False)

    def takes(self, effects: list[Effect], expected: list[Effect]) -> None:
        assert effects == expected
        self.said += effects

    def send(self, commands: list[Command]) -> None:
        self.takes(self.session.receive(commands), self.twin.frame(commands))

    @precondition(lambda self: self.twin.state == "awaiting")
    @rule(connect_id=IDS, behind=st.lists(st.tuples(st.integers(1, 12), KINDS), max_size=10))
    def connect(self, connect_id: int, behind: list[tuple[int, str]]) -> None:
        """With commands behind it, more than may be under way at times, and an id twice."""
        kept = [command(one, kind) for one, kind in behind if one != connect_id and kind not in ("pong", "send")]
        self.send([command(connect_id, "connect"), *kept])

    @precondition(lambda self: self.twin.state != "awaiting")
    @rule(sent=st.lists(st.tuples(IDS, KINDS), min_size=1, max_size=5, unique_by=lambda one: one[0]))
    def commands(self, sent: list[tuple[int, str]]) -> None:
        """With ids that are free."""
        taken = {*self.twin.under_way, *(one.id for one in self.twin.held), self.twin.connect_id}
        if self.twin.state == "connecting":
            sent = [(one, kind) for one, kind in sent if one not in taken and kind not in ("pong", "send")]
        self.send(
            [
                Command() if kind == "pong" else command(one, kind)
                for one, kind in sent
                if one not in self.twin.under_way
            ]
            or [command(99, "ping")]
        )

    @rule(
        junk=st.sampled_from([[], [Command(3)], [command(0, "rpc")], [command(0, "connect")], [command(1, "connect")]]),
        id_twice=IDS,
        is_sent=SELDOM,
    )
    def misbehave(self, junk: list[Command], id_twice: int, *, is_sent: bool) -> None:
        if is_sent:
            self.send([*junk, command(id_twice, "rpc"), command(id_twice, "rpc")] if junk else [])

    @precondition(lambda self: self.twin.state == "connecting")
    @rule(is_slow=SELDOM)
    def accept(self, *, is_slow: bool) -> None:
        """As the shell does it; at times the reply is too much for the client."""
        self.twin.state = "open"
        self.takes(
            self.session.accepted(self.twin.connect_id, WELCOME), [Reply(self.twin.connect_id, "connect", WELCOME)]
        )
        if is_slow:
            self.close()
        self.takes(self.session.release(), self.twin.release())

    @precondition(lambda self: self.twin.state == "connecting")
    @rule()
    def refuse(self) -> None:
        self.twin.state, self.twin.held = "awaiting", []
        self.takes(self.session.refused(self.twin.connect_id, FAILED), [Reply(self.twin.connect_id, "error", FAILED)])

    @precondition(lambda self: self.twin.under_way)
    @rule(data=st.data(), result=st.sampled_from([DONE, EMPTY, FAILED]))
    def finish(self, data: st.DataObject, result: Result) -> None:
        """I3: exactly one reply, with the result or the error, unless the session is over; a second one never."""
        command_id = data.draw(st.sampled_from(self.twin.under_way))
        self.twin.under_way.remove(command_id)
        kind = "error" if result is FAILED else "rpc"
        is_over = self.twin.state == "closed"
        self.takes(self.session.finish(command_id, "rpc", result), [] if is_over else [Reply(command_id, kind, result)])
        assert self.session.finish(command_id, "rpc", result) == []
        self.answered.append(command_id)

    @rule()
    def ping(self) -> None:
        self.twin.owes_pong = self.twin.state == "open"
        assert self.session.pinged() is self.twin.owes_pong

    @rule()
    def pong(self) -> None:
        """From a client that knows that it is let in."""
        if self.twin.state in ("open", "closed"):
            self.twin.owes_pong = False
            self.takes(self.session.pong(), [])

    @rule(is_now=SELDOM)
    def look(self, *, is_now: bool) -> None:
        if is_now or not self.twin.owes_pong:
            expected = self.twin.end(Close.NO_PONG) if self.twin.owes_pong else []
            self.takes(self.session.looked_at(), expected)

    @rule(happens=SELDOM)
    def wait_for_the_connect(self, *, happens: bool) -> None:
        if happens:
            close = Close.STALE if self.twin.state == "awaiting" else Close.SERVER_ERROR
            self.takes(self.session.stale(), [] if self.twin.state == "open" else self.twin.end(close))

    @rule(happens=SELDOM, is_gone=st.booleans())
    def end(self, *, happens: bool, is_gone: bool) -> None:
        if happens and is_gone:
            self.session.gone()
            self.twin.state = "closed"
        elif happens:
            self.close()

    def close(self) -> None:
        self.takes(self.session.close(Close.SHUTDOWN), self.twin.end(Close.SHUTDOWN))

    @invariant()
    def nothing_is_written_too_early_or_too_late(self) -> None:
        """I1."""
        closes = [at for at, effect in enumerate(self.said) if isinstance(effect, Disconnect)]
        assert closes in ([], [len(self.said) - 1])
        for effect in self.said:
            if isinstance(effect, Reply) and effect.kind == "connect":
                break
            assert isinstance(effect, Authenticate | Disconnect) or effect == Reply(effect_id(effect), "error", FAILED)

    @invariant()
    def at_most_so_many_are_under_way(self) -> None:
        """I2 and I3: of what was said to be started, counted from there."""
        started = [effect.command.id for effect in self.said if isinstance(effect, Start) and effect.kind != "send"]
        for command_id in self.answered:
            started.remove(command_id)
        assert len(started) == len(set(started)) <= self.twin.inflight_max

    @invariant()
    def a_client_waits_for_what_is_under_way(self) -> None:
        """I5."""
        waiting = {"connecting": {self.twin.connect_id}, "open": {*self.twin.under_way}}.get(self.twin.state, set())
        assert {one for one in range(100) if self.session.is_waiting(one)} == waiting
        assert self.session.phase.value == self.twin.state


def effect_id(effect: Effect) -> int:
    assert isinstance(effect, Reply)
    return effect.command_id


TestSessionAgainstTwin = SessionAgainstTwin.TestCase
TestSessionAgainstTwin.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
