"""The session: its table cell by cell, then examples by invariant.

Random histories against a dumb twin are in the file beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import msgspec
import pytest

from access.core.protocol import (
    EMPTY,
    ChannelRequest,
    ClientError,
    Close,
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    PublishRequest,
    RefreshRequest,
    ReplyError,
    RpcRequest,
    RpcResult,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    SubscribeResult,
    error_of,
)
from access.core.session import (
    COMMANDS_MAX,
    HELD_MAX,
    TRANSITIONS,
    Action,
    Authenticate,
    Disconnect,
    Effect,
    Event,
    Phase,
    Reply,
    Session,
    SessionPolicy,
    Start,
)
from base.errors import Overloaded

POLICY = SessionPolicy(inflight_max=2)
WELCOME = ConnectResult("s", "v", 25, pong=True, session="s", node="access-1")
DONE = RpcResult(msgspec.Raw(b'"done"'))
FAILED = ReplyError(107, "no")
TOO_MANY = ClientError.TOO_MANY_REQUESTS.wire

REQUESTS: dict[str, Any] = {
    "subscribe": SubscribeRequest("c"),
    "unsubscribe": ChannelRequest("c"),
    "publish": PublishRequest("c"),
    "presence": ChannelRequest("c"),
    "presence_stats": ChannelRequest("c"),
    "history": HistoryRequest("c"),
    "rpc": RpcRequest("m"),
    "refresh": RefreshRequest("t"),
    "sub_refresh": SubRefreshRequest("c", "t"),
}
"""All commands with a reply that the shell is told to start."""
REST: dict[str, Any] = {"connect": ConnectRequest("t"), "ping": EMPTY, "send": SendRequest()}


def command(command_id: int, kind: str) -> Command:
    return Command(command_id, **{kind: (REQUESTS | REST)[kind]})


def rpcs(*ids: int) -> list[Command]:
    return [command(one, "rpc") for one in ids]


def starts(*ids: int) -> list[Effect]:
    return [Start(one, "rpc") for one in rpcs(*ids)]


def session_in(phase: Phase) -> Session:
    """A session that came to the phase in the usual way; its connect had the id 1."""
    session = Session(POLICY)
    if phase is not Phase.AWAITING:
        session.receive([command(1, "connect")])
    if phase is Phase.OPEN:
        session.accepted(1, WELCOME)
        session.release()
    if phase is Phase.CLOSED:
        session.close(Close.SHUTDOWN)
    assert session.phase is phase
    return session


@pytest.fixture
def session() -> Session:
    """An open session."""
    return session_in(Phase.OPEN)


# ---------------------------------------------------------------- the table, cell by cell

Happen = Callable[[Session], list[Effect]]


def receives(*commands: Command) -> Happen:
    return lambda session: session.receive(commands)


def is_not_answered(session: Session) -> list[Effect]:
    session.pinged()
    return session.looked_at()


def is_gone(session: Session) -> list[Effect]:
    session.gone()
    return []


STIMULI: dict[Event, dict[str, Happen]] = {
    Event.CONNECT: {"connect": receives(command(7, "connect"))},
    Event.REQUEST: {kind: receives(command(7, kind)) for kind in (*REQUESTS, "ping")},
    Event.SEND: {"with id": receives(command(7, "send")), "without": receives(command(0, "send"))},
    Event.PONG: {"alone": Session.pong, "among commands": receives(Command())},
    Event.MALFORMED: {
        "no commands": Session.malformed,
        "an empty frame": receives(),
        "an id and nothing": receives(Command(7)),
        "connect without id": receives(command(0, "connect")),
        "rpc without id": receives(command(0, "rpc")),
        "ping without id": receives(command(0, "ping")),
    },
    Event.ACCEPTED: {"": lambda session: session.accepted(1, WELCOME)},
    Event.REFUSED: {"": lambda session: session.refused(1, FAILED)},
    Event.STALE: {"": Session.stale},
    Event.SILENT: {"": is_not_answered},
    Event.CLOSED: {"": lambda session: session.close(Close.EVICTED)},
    Event.GONE: {"": is_gone},
}
CLOSES = {
    (Phase.AWAITING, Event.STALE): Close.STALE,
    (Phase.CONNECTING, Event.STALE): Close.SERVER_ERROR,
    **{(phase, Event.SILENT): Close.NO_PONG for phase in Phase},
    **{(phase, Event.CLOSED): Close.EVICTED for phase in Phase},
}
"""Others are the client's fault. It is none of its own that it waits for us: it is to come back."""


def cells() -> Iterator[Any]:
    for phase, event in product(Phase, Event):
        for name, happen in STIMULI[event].items():
            yield pytest.param(phase, event, name, happen, id=f"{phase.value}, {event.value} {name}")


@pytest.mark.parametrize(("phase", "event", "name", "happen"), [*cells()])
def test_each_cell_of_the_table_is_what_happens(phase: Phase, event: Event, name: str, happen: Happen):
    """The documentation is the specification. What is not in it is ignored."""
    session = session_in(phase)
    effects = happen(session)
    step = TRANSITIONS.get((phase, event))
    if step is None:
        assert effects == []
        assert session.phase is phase
        return
    expected: dict[Action, list[Effect]] = {
        Action.AUTHENTICATE: [Authenticate(7, ConnectRequest("t"))],
        Action.REPLY: [Reply(1, "error", FAILED)],
        Action.OPEN: [Reply(1, "connect", WELCOME)],
        Action.CLOSE: [Disconnect(CLOSES.get((phase, event), Close.BAD_REQUEST))],
    }
    if step.action is Action.START:
        kind = "send" if event is Event.SEND else name
        sent = command(0 if name == "without" else 7, kind)
        assert effects == ([Reply(7, "ping", EMPTY)] if kind == "ping" else [Start(sent, kind)])
    else:
        assert effects == expected.get(step.action, [])
    assert session.phase is step.phase
    assert session.is_closed() is (step.phase is Phase.CLOSED)


def test_the_table_says_what_a_client_may_do_in_every_phase_and_how_each_ends():
    """Nothing that can happen is left out: who is there may send anything, be closed, or go."""
    always = {
        Event.CONNECT,
        Event.REQUEST,
        Event.SEND,
        Event.PONG,
        Event.MALFORMED,
        Event.CLOSED,
        Event.GONE,
    }
    for phase in Phase:
        known = {event for of, event in TRANSITIONS if of is phase}
        assert (always <= known) is (phase is not Phase.CLOSED)
    assert not [event for phase, event in TRANSITIONS if phase is Phase.CLOSED]
    assert all(
        (step.action in (Action.CLOSE, Action.END)) is (step.phase is Phase.CLOSED) for step in TRANSITIONS.values()
    )


# ---------------------------------------------------------------- connecting


def test_a_refused_connect_may_be_tried_again_on_the_same_connection():
    """Its error says whether that is of use."""
    session = session_in(Phase.CONNECTING)
    assert session.refused(1, error_of(Overloaded("m"))) == [Reply(1, "error", ReplyError(111, "m", temporary=True))]
    assert session.receive([command(1, "connect")]) == [Authenticate(1, ConnectRequest("t"))]
    assert session.accepted(1, WELCOME) == [Reply(1, "connect", WELCOME)]


def test_a_connect_is_no_command_that_is_finished():
    """I1: it is accepted or refused."""
    session = session_in(Phase.CONNECTING)
    assert session.finish(1, "connect", DONE) == []
    assert session.accepted(1, WELCOME) == [Reply(1, "connect", WELCOME)]


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.OPEN, Phase.CLOSED])
def test_an_outcome_that_nobody_waits_for_is_dropped(phase: Phase):
    """I1: the client was closed while its token was checked."""
    session = session_in(phase)
    assert session.accepted(1, WELCOME) == []
    assert session.refused(1, FAILED) == []
    assert session.release() == []
    assert session.phase is phase


# ---------------------------------------------------------------- behind the connect


def test_what_comes_behind_the_connect_waits_for_it():
    """I1: in the same frame or in a later one; it is started in its order when it is released."""
    session = Session(POLICY)
    frame = [command(1, "connect"), command(2, "subscribe"), command(3, "ping")]
    assert session.receive(frame) == [Authenticate(1, ConnectRequest("t"))]
    assert session.accepted(1, WELCOME) == [Reply(1, "connect", WELCOME)]
    assert not session.is_waiting(2)
    assert session.release() == [Start(command(2, "subscribe"), "subscribe"), Reply(3, "ping", EMPTY)]
    assert session.is_waiting(2)
    assert session.release() == []


def test_of_what_is_held_as_much_is_started_as_may_be_under_way():
    """I2: an SDK that subscribes to very many channels behind its connect tries again with the others."""
    session = session_in(Phase.CONNECTING)
    assert session.receive(rpcs(*range(2, 2 + HELD_MAX))) == []
    session.accepted(1, WELCOME)
    told = [Reply(one, "error", TOO_MANY) for one in range(4, 2 + HELD_MAX)]
    assert session.release() == [*starts(2, 3), *told]
    assert session.finish(2, "rpc", DONE) == [Reply(2, "rpc", DONE)]
    assert session.receive(rpcs(4)) == starts(4)


def test_there_is_an_end_to_what_is_held():
    """Nobody can fill the memory before he is let in."""
    session = session_in(Phase.CONNECTING)
    session.receive(rpcs(*range(2, 2 + HELD_MAX)))
    assert session.receive(rpcs(9_999)) == [Disconnect(Close.BAD_REQUEST)]
    assert session.accepted(1, WELCOME) == []


def test_a_message_that_could_not_be_refused_is_not_lost_in_silence():
    """There is no reply to say so; the session ends."""
    session = session_in(Phase.CONNECTING)
    assert session.receive([command(0, "send"), command(0, "send")]) == []
    assert session.receive([command(0, "send")]) == [Disconnect(Close.BAD_REQUEST)]


@pytest.mark.parametrize("second", [3, 4, 9])
def test_an_id_that_comes_twice_behind_the_connect_breaks_the_protocol(second: int):
    """As it would later, wherever it waits; and nothing that waits behind it is started or answered."""
    session = session_in(Phase.CONNECTING)
    session.receive(rpcs(*(2 if one == second else one for one in range(2, 10))))
    session.accepted(1, WELCOME)
    effects = session.release()
    refused = [Reply(one, "error", TOO_MANY) for one in range(4, 10) if one < second]
    assert effects == [*(starts(2) if second == 3 else starts(2, 3)), *refused, Disconnect(Close.BAD_REQUEST)]
    assert not session.is_waiting(2)


def test_the_id_of_the_connect_is_in_use_while_it_is_under_way():
    """Two replies could not be told apart."""
    session = session_in(Phase.CONNECTING)
    assert session.receive(rpcs(1)) == [Disconnect(Close.BAD_REQUEST)]


def test_what_was_held_for_a_refused_connect_is_forgotten():
    """The client has to send it anew: it was told that there is no session."""
    session = session_in(Phase.CONNECTING)
    session.receive(rpcs(2))
    session.refused(1, FAILED)
    session.receive([command(3, "connect")])
    session.accepted(3, WELCOME)
    assert session.release() == []


def test_nothing_that_was_held_is_started_after_the_close():
    """I1: the first reply was too much for the client, say."""
    session = session_in(Phase.CONNECTING)
    session.receive(rpcs(*range(2, 8)))
    session.accepted(1, WELCOME)
    session.close(Close.SLOW)
    assert session.release() == []


# ---------------------------------------------------------------- commands


def test_commands_are_started_in_their_order_and_answered_in_any(session: Session):
    """Each reply has the id of its command, and the kind of its result."""
    assert session.receive([command(5, "rpc"), command(6, "subscribe")]) == [
        Start(command(5, "rpc"), "rpc"),
        Start(command(6, "subscribe"), "subscribe"),
    ]
    result = SubscribeResult(epoch="e", offset=3)
    assert session.finish(6, "subscribe", result) == [Reply(6, "subscribe", result)]
    assert session.finish(5, "rpc", FAILED) == [Reply(5, "error", FAILED)]


def test_a_command_is_answered_once(session: Session):
    """I3."""
    session.receive(rpcs(5))
    assert len(session.finish(5, "rpc", DONE)) == 1
    assert session.finish(5, "rpc", DONE) == []
    assert session.finish(6, "rpc", DONE) == []


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.CONNECTING, Phase.OPEN])
@pytest.mark.parametrize("one", [Command(), command(0, "send"), command(7, "ping")])
def test_a_frame_of_too_many_commands_is_none(phase: Phase, one: Command):
    """Nobody takes the node's time with a frame of pongs, of which there is room for very many."""
    assert session_in(phase).receive([one] * (COMMANDS_MAX + 1)) == [Disconnect(Close.BAD_REQUEST)]


def test_a_frame_of_as_many_commands_as_may_be_is_taken(session: Session):
    """A client that subscribes to very many channels at once sends them together."""
    assert session.receive([command(7, "ping")] * COMMANDS_MAX) == [Reply(7, "ping", EMPTY)] * COMMANDS_MAX


def test_behind_a_command_that_closes_nothing_is_looked_at(session: Session):
    """I1: nothing comes of it."""
    assert session.receive([command(0, "rpc"), *rpcs(5)]) == [Disconnect(Close.BAD_REQUEST)]


def test_a_message_without_a_reply_takes_no_place_and_gets_none(session: Session):
    """I2 and I3, whatever its id."""
    session.receive(rpcs(5, 6))
    assert session.receive([command(5, "send"), command(0, "send")]) == [
        Start(command(5, "send"), "send"),
        Start(command(0, "send"), "send"),
    ]
    assert session.finish(0, "send", EMPTY) == []


def test_one_command_too_many_is_told_so(session: Session):
    """I2: 111, until one of the others is done. A ping is answered all the same."""
    session.receive(rpcs(5, 6))
    assert session.receive([*rpcs(7), command(8, "ping")]) == [
        Reply(7, "error", TOO_MANY),
        Reply(8, "ping", EMPTY),
    ]
    session.finish(5, "rpc", DONE)
    assert session.receive(rpcs(7)) == starts(7)


@pytest.mark.parametrize("kind", ["rpc", "ping", "connect"])
def test_an_id_in_use_breaks_the_protocol(session: Session, kind: str):
    """Two replies could not be told apart; once answered, an id may come again."""
    session.receive(rpcs(5))
    session.finish(5, "rpc", DONE)
    assert session.receive(rpcs(5)) == starts(5)
    assert session.receive([command(5, kind)]) == [Disconnect(Close.BAD_REQUEST)]


def test_nothing_behind_a_fault_is_looked_at(session: Session):
    """What came before it in the frame was started."""
    assert session.receive([*rpcs(5), Command(9), *rpcs(6), Command(9)]) == [*starts(5), Disconnect(Close.BAD_REQUEST)]


# ---------------------------------------------------------------- pings


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.CONNECTING, Phase.CLOSED])
def test_only_an_open_session_is_pinged(phase: Phase):
    """I1; and nobody is closed for what he was not asked."""
    session = session_in(phase)
    assert not session.pinged()
    assert session.looked_at() == []


@pytest.mark.parametrize("answer", [Session.pong, receives(Command()), receives(*rpcs(5), Command())])
def test_an_answer_keeps_it_open(session: Session, answer: Happen):
    """Until the next ping, which wants its own answer."""
    assert session.has_answered
    assert session.pinged()
    assert not session.has_answered
    answer(session)
    assert session.has_answered
    assert session.looked_at() == []
    session.pinged()
    assert session.looked_at() == [Disconnect(Close.NO_PONG)]
    assert session.looked_at() == []


def test_other_commands_are_no_answer_to_a_ping(session: Session):
    """I4."""
    session.pinged()
    session.receive([*rpcs(5), command(6, "ping"), command(0, "send")])
    assert session.looked_at() == [Disconnect(Close.NO_PONG)]


def test_a_session_that_was_not_pinged_since_it_opened_is_not_closed(session: Session):
    """Its place in the round was pinged before it was there."""
    assert session.looked_at() == []


# ---------------------------------------------------------------- closing


@pytest.mark.parametrize("phase", [Phase.AWAITING, Phase.CONNECTING, Phase.OPEN])
def test_a_session_is_closed_once(phase: Phase):
    """With the first reason."""
    session = session_in(phase)
    assert session.close(Close.SLOW) == [Disconnect(Close.SLOW)]
    assert session.close(Close.SHUTDOWN) == []


@pytest.mark.parametrize("end", ["gone", "closed", "malformed"])
@pytest.mark.parametrize("phase", [Phase.CONNECTING, Phase.OPEN])
def test_nobody_waits_after_the_end(phase: Phase, end: str):
    """I1, I3 and I5: whoever ended it, what was under way gets no reply and must open nothing any more."""
    session = session_in(phase)
    command_id = 1
    if phase is Phase.OPEN:
        command_id = 2
        session.receive(rpcs(2))
    assert session.is_waiting(command_id)
    if end == "gone":
        session.gone()
    elif end == "closed":
        session.close(Close.SHUTDOWN)
    else:
        session.malformed()
    assert not session.is_waiting(command_id)
    assert session.finish(command_id, "rpc", DONE) == []


def test_a_client_waits_from_the_start_of_a_command_to_its_reply():
    """I5: the connect too, refused or accepted."""
    session = session_in(Phase.AWAITING)
    assert not session.is_waiting(1)
    session.receive([command(1, "connect"), *rpcs(2)])
    assert (session.is_waiting(1), session.is_waiting(2)) == (True, False)
    session.refused(1, FAILED)
    assert not session.is_waiting(1)
    session.receive([command(2, "connect")])
    session.accepted(2, WELCOME)
    assert not session.is_waiting(2)
    session.receive(rpcs(3))
    assert session.is_waiting(3)
    session.finish(3, "rpc", DONE)
    assert not session.is_waiting(3)
