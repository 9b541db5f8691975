"""The session: its table cell by cell, examples by invariant, then random histories against a dumb twin."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from access.core import session as module
from access.core.protocol import (
    ChannelRequest,
    ClientError,
    Close,
    ConnectRequest,
    ConnectResult,
    ReplyError,
    RpcResult,
    SubscribeRequest,
    SubscribeResult,
    error_of,
)
from access.core.session import (
    Authenticate,
    Disconnect,
    Effect,
    Phase,
    Session,
    SessionPolicy,
    StartRpc,
    StartSubscribe,
    StartUnsubscribe,
    Write,
)
from base.clock import Instant
from base.errors import Overloaded

POLICY = SessionPolicy(connect_deadline_ms=1_000, ping_interval_ms=25_000, pong_deadline_ms=8_000, inflight_max=2)
WELCOME = ConnectResult("s", "v", 25, pong=True, session="s", node="access-1")
DONE = RpcResult(msgspec.Raw(b'"done"'))


def at(ms: int) -> Instant:
    return Instant(ms)


def command(command_id: int, name: str, /, **fields: Any) -> str:
    return json.dumps({"id": command_id, name: fields})


def session_in(phase: Phase) -> Session:
    """A session that came to the phase at 0, in the usual way."""
    session = Session("s", at(0), POLICY)
    if phase is not Phase.AWAITING:
        session.receive(at(0), command(1, "connect", token="t"))
    if phase is Phase.OPEN:
        session.accepted(at(0), 1, WELCOME)
    if phase is Phase.CLOSED:
        session.close(Close.SHUTDOWN)
    assert session.phase is phase
    return session


def replies(effects: list[Effect]) -> list[dict[str, Any]]:
    """What is written, decoded; anything else is an error of the test."""
    return [json.loads(effect.data) for effect in effects if isinstance(effect, Write)]


def error_reply(command_id: int, error: ClientError) -> dict[str, Any]:
    return {"id": command_id, "error": msgspec.to_builtins(error.wire)}


@pytest.fixture
def session() -> Session:
    """An open session."""
    return session_in(Phase.OPEN)


# ---------------------------------------------------------------- the table, cell by cell

FRAMES = {
    "connect": [command(7, "connect"), command(7, "connect", token="t", name="js")],
    "subscribe, rpc, unsubscribe": [
        command(7, "subscribe", channel="inbox:u"),
        command(7, "rpc", method="im.send", data={}),
        command(7, "unsubscribe", channel="inbox:u"),
    ],
    "send": [command(7, "send"), command(0, "send", data=1)],
    "other commands": [
        command(7, name, channel="c")
        for name in ("publish", "presence", "presence_stats", "history", "ping", "refresh", "sub_refresh")
    ],
    "pong": ["{}", b"{}"],
    "not a command": [
        "",
        "\n",
        "not json",
        b"\xff",
        "[]",
        '{"id":7}',
        '{"id":7,"unheard_of":{}}',
        command(0, "connect"),
        command(-1, "connect"),
        '{"connect":{}}',
        command(0, "rpc"),
        command(-1, "rpc"),
        '{"id":7,"rpc":{"data":' + "[" * 50_000 + "]" * 50_000 + "}}",
    ],
}
STARTED = {
    "subscribe": StartSubscribe(7, SubscribeRequest("inbox:u")),
    "unsubscribe": StartUnsubscribe(7, ChannelRequest("inbox:u")),
}


def table() -> dict[tuple[Phase, str], str]:
    """The cells of the table in the module's docstring."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (module.__doc__ or "").splitlines()
        if line.startswith("| ")
    ]
    (_, *kinds), *body = rows
    return {(Phase(phase), kind): cell for phase, *cells in body for kind, cell in zip(kinds, cells, strict=True)}


def test_the_table_has_a_cell_for_every_phase_and_kind():
    """Nothing is left to guess."""
    assert set(table()) == set(product(Phase, FRAMES))


@pytest.mark.parametrize(
    ("phase", "kind", "frame"),
    [(phase, kind, frame) for phase, kind in product(Phase, FRAMES) for frame in FRAMES[kind]],
)
def test_each_cell_of_the_table_is_what_happens(phase: Phase, kind: str, frame: str | bytes):
    """The documentation is the specification."""
    session = session_in(phase)
    before = session.next_deadline()
    effects = session.receive(at(500), frame)
    match table()[phase, kind]:
        case "authenticate":
            assert effects == [Authenticate(7, ConnectRequest(json.loads(frame)["connect"].get("token", "")))]
            assert session.phase is Phase.CONNECTING
        case "start":
            (effect,) = effects
            assert isinstance(effect, StartRpc | StartSubscribe | StartUnsubscribe)
            assert effect.command_id == 7
            assert session.phase is Phase.OPEN
        case "close 3501":
            assert effects == [Disconnect(Close.BAD_REQUEST)]
            assert session.phase is Phase.CLOSED
        case "error 108":
            assert replies(effects) == [error_reply(7, ClientError.NOT_AVAILABLE)]
            assert session.phase is Phase.OPEN
        case "alive":
            assert effects == []
            assert session.next_deadline() == 25_500
        case "ignore":
            assert effects == []
            assert session.phase is phase
            assert session.next_deadline() == before
        case other:
            pytest.fail(f"the table says {other}")


def test_what_is_started_carries_what_was_asked(session: Session):
    """The shell needs nothing else."""
    (call,) = session.receive(at(0), command(6, "rpc", method="im.sync", data=[1]))
    assert isinstance(call, StartRpc)
    assert (call.command_id, call.request.method, bytes(call.request.data)) == (6, "im.sync", b"[1]")
    session.finish(6, "rpc", DONE)
    for name, started in STARTED.items():
        assert session.receive(at(0), command(7, name, channel="inbox:u")) == [started]
        session.finish(7, name, None)


# ---------------------------------------------------------------- connecting


def test_the_connect_reply_is_the_first_thing_written():
    """I1; from then on the session is open and its pings begin."""
    session = session_in(Phase.CONNECTING)
    (effect,) = session.accepted(at(10), 1, WELCOME)
    assert isinstance(effect, Write)
    assert json.loads(effect.data)["connect"]["client"] == "s"
    assert (session.phase, session.next_deadline()) == (Phase.OPEN, 25_010)


def test_a_refused_connect_may_be_tried_again_on_the_same_connection():
    """Within the same deadline, which a client cannot push out."""
    session = session_in(Phase.CONNECTING)
    effects = session.refused(1, error_of(Overloaded("m")))
    assert replies(effects) == [{"id": 1, "error": {"code": 111, "message": "m", "temporary": True}}]
    assert (session.phase, session.next_deadline()) == (Phase.AWAITING, 1_000)
    assert session.receive(at(5), command(2, "connect", token="u")) == [Authenticate(2, ConnectRequest("u"))]


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.OPEN, Phase.CLOSED])
def test_an_outcome_that_nobody_waits_for_is_dropped(phase: Phase):
    """I1: the client was closed while its token was checked."""
    session = session_in(phase)
    assert session.accepted(at(0), 1, WELCOME) == []
    assert session.refused(1, ClientError.INTERNAL.wire) == []
    assert session.phase is phase


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.CONNECTING])
def test_who_does_not_connect_in_time_is_closed(phase: Phase):
    """3502, whether it said nothing or its token takes too long."""
    session = session_in(phase)
    assert session.tick(at(999)) == []
    assert session.tick(at(1_000)) == [Disconnect(Close.STALE)]


def test_a_command_behind_the_connect_in_one_frame_is_too_early():
    """The connect may be refused; the rest of the frame is not looked at."""
    session = session_in(Phase.AWAITING)
    frame = "\n".join([command(1, "connect"), command(2, "rpc"), command(3, "rpc")])
    assert session.receive(at(0), frame) == [Authenticate(1, ConnectRequest()), Disconnect(Close.BAD_REQUEST)]
    assert session.accepted(at(1), 1, WELCOME) == []


# ---------------------------------------------------------------- commands


def test_commands_are_started_in_their_order_and_answered_in_any(session: Session):
    """Each reply has the id of its command."""
    started = session.receive(at(0), command(5, "rpc") + "\n" + command(6, "subscribe"))
    assert [type(effect) for effect in started] == [StartRpc, StartSubscribe]
    result = SubscribeResult(epoch="e", offset=3)
    assert replies(session.finish(6, "subscribe", result)) == [{"id": 6, "subscribe": {"epoch": "e", "offset": 3}}]
    assert replies(session.finish(5, "rpc", DONE)) == [{"id": 5, "rpc": {"data": "done"}}]


def test_a_command_is_answered_once(session: Session):
    """I3."""
    session.receive(at(0), command(5, "rpc"))
    assert len(session.finish(5, "rpc", DONE)) == 1
    assert session.finish(5, "rpc", DONE) == []
    assert session.finish(6, "rpc", DONE) == []


def test_a_command_may_fail(session: Session):
    """An error in the place of the result."""
    session.receive(at(0), command(5, "rpc"))
    assert replies(session.finish(5, "rpc", ReplyError(107, "no"))) == [
        {"id": 5, "error": {"code": 107, "message": "no"}}
    ]


def test_a_command_may_have_an_empty_result(session: Session):
    """As an unsubscribe has."""
    session.receive(at(0), command(5, "unsubscribe"))
    assert replies(session.finish(5, "unsubscribe", None)) == [{"id": 5, "unsubscribe": {}}]


def test_one_command_too_many_is_told_so(session: Session):
    """I2: 111, until one of the others is done."""
    session.receive(at(0), command(5, "rpc") + "\n" + command(6, "rpc"))
    assert replies(session.receive(at(0), command(7, "rpc"))) == [error_reply(7, ClientError.TOO_MANY_REQUESTS)]
    session.finish(5, "rpc", DONE)
    assert [type(effect) for effect in session.receive(at(0), command(7, "rpc"))] == [StartRpc]


def test_an_id_in_use_breaks_the_protocol(session: Session):
    """Two replies could not be told apart; once answered, an id may come again."""
    session.receive(at(0), command(5, "rpc"))
    session.finish(5, "rpc", DONE)
    session.receive(at(0), command(5, "rpc"))
    assert session.receive(at(0), command(5, "rpc")) == [Disconnect(Close.BAD_REQUEST)]


# ---------------------------------------------------------------- pings


def test_a_quiet_session_is_pinged(session: Session):
    """And not before its time."""
    assert session.tick(at(24_999)) == []
    assert session.tick(at(25_000)) == [Write(b"{}")]
    assert session.next_deadline() == 33_000


def test_a_pong_keeps_it_open(session: Session):
    """The next ping comes an interval after it."""
    session.tick(at(25_000))
    assert session.receive(at(26_000), "{}") == []
    assert session.tick(at(33_000)) == []
    assert session.tick(at(51_000)) == [Write(b"{}")]


def test_without_a_pong_it_is_closed(session: Session):
    """I4: other commands are no answer to a ping."""
    session.tick(at(25_000))
    session.receive(at(26_000), command(5, "rpc"))
    assert session.tick(at(32_999)) == []
    assert session.tick(at(33_000)) == [Disconnect(Close.NO_PONG)]


# ---------------------------------------------------------------- closing


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.CONNECTING, Phase.OPEN])
def test_a_session_is_closed_once(phase: Phase):
    """With the first reason."""
    session = session_in(phase)
    assert session.close(Close.SLOW) == [Disconnect(Close.SLOW)]
    assert session.close(Close.SHUTDOWN) == []
    assert session.is_closed()
    assert session.next_deadline() is None


def test_nothing_is_written_after_the_close(session: Session):
    """I1 and I3: a command that was under way gets no reply."""
    session.receive(at(0), command(5, "rpc"))
    session.close(Close.SHUTDOWN)
    assert session.finish(5, "rpc", DONE) == []
    assert session.tick(at(99_999)) == []
    assert session.receive(at(99_999), command(6, "rpc")) == []


def test_a_socket_that_is_gone_ends_the_session_without_a_word(session: Session):
    """There is nobody to close."""
    session.gone()
    assert session.close(Close.SHUTDOWN) == []
    assert session.phase is Phase.CLOSED


# ---------------------------------------------------------------- who still waits


def test_a_client_waits_from_the_start_of_a_command_to_its_reply():
    """I5: the connect too, refused or accepted."""
    session = session_in(Phase.AWAITING)
    assert not session.is_waiting(1)
    session.receive(at(0), command(1, "connect"))
    assert (session.is_waiting(1), session.is_waiting(2)) == (True, False)
    session.refused(1, ClientError.INTERNAL.wire)
    assert not session.is_waiting(1)
    session.receive(at(0), command(2, "connect"))
    session.accepted(at(0), 2, WELCOME)
    assert not session.is_waiting(2)
    session.receive(at(0), command(3, "subscribe"))
    assert session.is_waiting(3)
    session.finish(3, "subscribe", DONE)
    assert not session.is_waiting(3)


@pytest.mark.parametrize("end", ["gone", "close", "nonsense"])
@pytest.mark.parametrize("phase", [Phase.CONNECTING, Phase.OPEN])
def test_nobody_waits_after_the_end(phase: Phase, end: str):
    """I5: whoever ended it; what was started must open nothing any more."""
    session = session_in(phase)
    command_id = 1
    if phase is Phase.OPEN:
        command_id = 2
        session.receive(at(0), command(command_id, "subscribe"))
    assert session.is_waiting(command_id)
    if end == "gone":
        session.gone()
    elif end == "close":
        session.close(Close.SHUTDOWN)
    else:
        session.receive(at(0), "nonsense")
    assert not session.is_waiting(command_id)


# ---------------------------------------------------------------- random histories


SELDOM = st.sampled_from([False] * 9 + [True])


class SessionAgainstTwin(RuleBasedStateMachine):
    """The twin keeps the list of everything that was started and written, and reads the invariants off it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Instant(0)
        self.session = Session("s", self.now, POLICY)
        self.policy = POLICY
        self.started: list[tuple[int, str]] = []
        self.answered: list[int] = []
        self.connects: list[int] = []
        self.is_welcome = False
        self.closes: list[Close] = []
        self.pinged_at: int | None = None

    @initialize(inflight_max=st.integers(1, 3), is_open=st.booleans())
    def begin(self, inflight_max: int, *, is_open: bool) -> None:
        self.policy = msgspec.structs.replace(POLICY, inflight_max=inflight_max)
        self.session = Session("s", self.now, self.policy)
        if is_open:
            self.connect(1)
            self.accept()

    def under_way(self) -> list[tuple[int, str]]:
        """What was started and not answered. An id may be used again, so each answer takes one away."""
        left = list(self.started)
        for command_id in self.answered:
            left.remove(next(one for one in left if one[0] == command_id))
        return left

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert not self.closes, "I1: nothing after the close"
            match effect:
                case Write(b"{}"):
                    assert self.is_welcome, "I1"
                    assert self.pinged_at is None, "I4"
                    self.pinged_at = self.now
                case Write(data):
                    self.take_reply(json.loads(data))
                case Authenticate(command_id, _):
                    assert not self.is_welcome
                    self.connects.append(command_id)
                case StartRpc(command_id, _) | StartSubscribe(command_id, _) | StartUnsubscribe(command_id, _):
                    assert self.is_welcome
                    kind = re.sub("Start", "", type(effect).__name__).lower()
                    self.started.append((command_id, kind))
                case Disconnect(Close.NO_PONG):
                    assert self.pinged_at == self.now - self.policy.pong_deadline_ms, "I4"
                    self.closes.append(Close.NO_PONG)
                case Disconnect(close):
                    self.closes.append(close)

    def take_reply(self, reply: dict[str, Any]) -> None:
        if "connect" in reply:
            assert not self.is_welcome
            assert reply["id"] == self.connects[-1]
            self.is_welcome = True
        elif "error" not in reply:
            assert self.is_welcome, "I1"
        elif reply["error"]["code"] == ClientError.TOO_MANY_REQUESTS.value[0]:
            assert len(self.under_way()) == self.policy.inflight_max, "I2"

    @precondition(lambda self: not self.is_welcome)
    @rule(command_id=st.integers(1, 3))
    def connect(self, command_id: int) -> None:
        self.carry_out(self.session.receive(self.now, command(command_id, "connect")))

    @precondition(lambda self: self.is_welcome)
    @rule(
        ids=st.sets(st.integers(1, 6), min_size=1, max_size=4),
        name=st.sampled_from(["rpc", "subscribe", "unsubscribe", "publish", "send"]),
    )
    def commands(self, ids: set[int], name: str) -> None:
        """With ids that are free; of what started nothing is counted that finished."""
        free = ids - {command_id for command_id, _ in self.under_way()}
        if free:
            before = len(self.under_way())
            self.carry_out(self.session.receive(self.now, "\n".join(command(one, name) for one in sorted(free))))
            if name not in ("publish", "send") and not self.session.is_closed():
                assert len(self.under_way()) == min(before + len(free), self.policy.inflight_max), "I2"

    @rule(frame=st.sampled_from(["nonsense", '{"id":1}', command(0, "rpc"), command(1, "connect")]), is_sent=SELDOM)
    def junk(self, frame: str, *, is_sent: bool) -> None:
        """Whatever comes behind it in its frame is not looked at."""
        if is_sent:
            self.carry_out(self.session.receive(self.now, "\n".join([frame, command(9, "rpc"), frame])))

    @rule()
    def pong(self) -> None:
        if self.is_welcome:
            self.carry_out(self.session.receive(self.now, "{}"))
            self.pinged_at = None

    @rule()
    def accept(self) -> None:
        if self.connects:
            self.carry_out(self.session.accepted(self.now, self.connects[-1], WELCOME))

    @rule()
    def refuse(self) -> None:
        if self.connects:
            self.carry_out(self.session.refused(self.connects[-1], ClientError.INTERNAL.wire))

    @rule(data=st.data(), result=st.sampled_from([DONE, None, ReplyError(107, "no")]))
    def finish(self, data: st.DataObject, result: RpcResult | ReplyError | None) -> None:
        """I3: exactly one reply, with the result or the error, unless the session is over."""
        if not self.under_way():
            return
        command_id, kind = data.draw(st.sampled_from(self.under_way()))
        effects = self.session.finish(command_id, kind, result)
        name = "error" if isinstance(result, ReplyError) else kind
        assert [(reply["id"], name in reply) for reply in replies(effects)] == (
            [] if self.session.is_closed() else [(command_id, True)]
        )
        self.carry_out(effects)
        self.answered.append(command_id)
        assert self.session.finish(command_id, kind, result) == []

    @rule(ms=st.sampled_from([1, 500, 8_000, 25_000, 40_000]), is_deaf=st.booleans())
    def pass_time(self, ms: int, *, is_deaf: bool) -> None:
        """At each deadline on the way a tick."""
        until = self.now + (ms if self.is_welcome else ms // 10)
        while (deadline := self.session.next_deadline()) is not None and deadline <= until:
            self.now = deadline
            self.carry_out(self.session.tick(self.now))
            if not is_deaf:
                self.pong()
        self.now = Instant(until)
        assert self.session.tick(self.now) == []

    @rule(is_gone=st.booleans(), happens=SELDOM)
    def end(self, *, is_gone: bool, happens: bool) -> None:
        if happens and is_gone:
            self.session.gone()
        elif happens:
            self.carry_out(self.session.close(Close.SHUTDOWN))

    @invariant()
    def at_most_so_many_are_under_way(self) -> None:
        """I2."""
        assert self.session.is_closed() or len(self.under_way()) <= self.policy.inflight_max

    @invariant()
    def who_does_not_answer_a_ping_is_closed(self) -> None:
        """I4; and who does not connect in time is, too."""
        assert self.session.is_closed() or self.is_welcome or self.now < 1_000
        if self.pinged_at is not None and not self.session.is_closed():
            assert self.now < self.pinged_at + self.policy.pong_deadline_ms

    @invariant()
    def a_client_waits_for_what_is_under_way(self) -> None:
        """I5."""
        waiting = {one for one, _ in self.under_way()} if not self.session.is_closed() else set()
        if self.session.phase is Phase.CONNECTING:
            waiting = {self.connects[-1]}
        assert {one for one in range(10) if self.session.is_waiting(one)} == waiting

    @invariant()
    def it_is_closed_with_one_code(self) -> None:
        assert len(self.closes) <= 1
        assert not self.closes or self.session.is_closed()


TestSessionAgainstTwin = SessionAgainstTwin.TestCase
TestSessionAgainstTwin.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
