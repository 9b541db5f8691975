"""An access node of a message history, in small: sessions of clients, their inboxes, and one link to the services.

Who gets which entry is the real rule (`access.core.inbox`); the sockets are streams (`messages_link`). What is pushed
comes by datagrams, so that anything may be missing: it is found by the next entry, or by the audit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from access.core.inbox import InboxHub, Reader
from base.clock import Instant
from roadstead.client.rows import Publication
from roadstead.sim.host import Host
from roadstead.sim.messages_guards import Guards, Presence, Pushed
from roadstead.sim.messages_link import Answer, Call, Frame, Stream
from roadstead.sim.messages_store import Entries

__all__ = ["CLOSED", "PING", "SILENCE_MS", "AccessNode", "Begun", "Publications", "Subscribe"]

TICK_MS = 400
AUDIT_MS = 1_000
CALL_MS = 2_000
SILENCE_MS = 4_000
RECOVERY_MAX = 25
"""Entries that a subscription may begin with; who misses more reads pages."""
SERVICES = "im"
PING = "ping"
CLOSED = "closed"


class Subscribe(msgspec.Struct, frozen=True):
    """A client follows its inbox, from after a position on."""

    user: str
    device: str
    since: int

    def __str__(self) -> str:
        return f"subscribe {self.since}"


class Begun(msgspec.Struct, frozen=True):
    """The inbox begins with these entries, all after the position if it is recovered; else with what comes next."""

    is_recovered: bool
    head: int
    entries: Entries

    def __str__(self) -> str:
        return f"begun {self.is_recovered} {self.head}"


class Publications(msgspec.Struct, frozen=True):
    """Entries of the inbox, or with the offset 0 what has no place there."""

    entries: Entries

    def __str__(self) -> str:
        return f"publications {[offset for offset, _ in self.entries]}"


@dataclass(slots=True, eq=False)
class Session:
    """A client's connection. `reader` is there once it subscribed."""

    name: str
    stream: Stream
    user: str = ""
    device: str = ""
    reader: Reader[Session] | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What a call to the services is for: a client's own, or a reading of its inbox, or (no session) the audit."""

    session: Session | None
    since: Instant
    reader: Reader[Session] | None = None
    call: int = 0
    """The client's own number of its call."""
    position: int = 0
    is_start: bool = False


@dataclass(slots=True)
class AccessNode:
    """One life of an access node."""

    host: Host
    guards: Guards
    hub: InboxHub[Session] = field(default_factory=InboxHub)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    _calls: int = 0
    _opened: int = 0
    _link: Stream | None = None
    _told: tuple[str, ...] = ()
    _tick_at: Instant = Instant(0)
    _audit_at: Instant = Instant(0)

    # ------------------------------------------------------------ the actor

    def start(self, now: Instant) -> None:
        """Begin without any session."""
        self._open(now)
        self._tick_at = self._audit_at = now

    def receive(self, now: Instant, source: str, message: object) -> None:
        """Take a push, or a frame of a client's or of the services'."""
        if isinstance(message, Pushed):
            self._pushed(message, now)
            return
        assert isinstance(message, Frame)
        if source == SERVICES:
            link = self._link
            if link is not None and message.stream == link.number:
                for answer in link.take(message, now):
                    self._answered(answer, now)
            return
        session = self._sessions.get(source)
        if session is None or message.stream > session.stream.number:
            if session is not None:
                self._end(session)
            stream = Stream(message.stream, lambda frame: self.host.send(source, frame), now)
            session = self._sessions[source] = Session(source, stream)
        if message.stream == session.stream.number:
            for body in session.stream.take(message, now):
                self._taken(session, body, now)

    def wake(self, now: Instant) -> None:
        """Give up who is silent and what is not answered; compare positions now and then."""
        self._tick_at = Instant(now + TICK_MS)
        for session in list(self._sessions.values()):
            if session.stream.is_broken(now) or now - session.stream.heard_at > SILENCE_MS:
                self._end(session)
        link = self._link
        is_late = any(now - waiting.since > CALL_MS for waiting in self._waiting.values())
        if link is None or link.is_broken(now) or is_late:
            self._open(now)
        self._tell_presence(now)
        if self._audit_at <= now:
            self._audit_at = Instant(now + AUDIT_MS)
            users = self.hub.users()
            if users:
                self._call("heads", users, _Waiting(None, now))

    def next_deadline(self) -> Instant:
        """Return the next tick."""
        return self._tick_at

    # ------------------------------------------------------------ the services

    def _open(self, now: Instant) -> None:
        """Connect to the services anew. What was not answered fails."""
        self._opened += 1
        waiting, self._waiting = self._waiting, {}
        self._link = Stream(
            self.host.incarnation * 100_000 + self._opened, lambda frame: self.host.send(SERVICES, frame), now
        )
        self._told = ()
        for one in waiting.values():
            if one.session is None:
                continue
            if one.call:
                one.session.stream.send(Answer(one.call, error="unknown"))
            elif one.is_start:
                self._end(one.session)
            elif one.reader is not None:
                self.hub.load_failed(one.reader)
        self._tell_presence(now)

    def _tell_presence(self, _now: Instant) -> None:
        users = self.hub.users()
        if users != self._told and self._link is not None:
            self._told = users
            self._link.send(Presence(users))

    def _call(self, method: str, arguments: tuple[object, ...], waiting: _Waiting) -> None:
        assert self._link is not None
        self._calls += 1
        self._waiting[self._calls] = waiting
        session = waiting.session
        who = (session.user, session.device) if session is not None else ("", "")
        self._link.send(Call(self._calls, method, arguments, *who))

    def _answered(self, answer: Answer, now: Instant) -> None:
        waiting = self._waiting.pop(answer.id, None)
        if waiting is None:
            return
        session = waiting.session
        if session is None:
            self._audited(answer, now)
        elif waiting.call:
            session.stream.send(Answer(waiting.call, answer.value, answer.error))
        elif waiting.reader is not None and self.hub.has(waiting.reader):
            if waiting.is_start:
                self._begin(session, waiting, answer, now)
            else:
                self._fetched(session, waiting.reader, answer, now)

    def _audited(self, answer: Answer, now: Instant) -> None:
        heads: dict[str, int]
        versions: dict[str, int]
        heads, versions = answer.value
        for reader in self.hub.audit(heads) if self.guards.audit else ():
            self._fetch(reader, now)
        for user, version in versions.items() if self.guards.sync_versions else ():
            hint: Publication = {"kind": "sync", "sync_version": version}
            for session in self.hub.clients_of(user):
                if session.reader is not None and not session.reader.is_loading:
                    session.stream.send(Publications([(0, hint)]))

    # ------------------------------------------------------------ clients

    def _taken(self, session: Session, body: object, now: Instant) -> None:
        match body:
            case Subscribe(user, device, since):
                session.user, session.device = user, device
                if session.reader is not None:
                    self.hub.detach(session.reader)
                session.reader = self.hub.attach(session, user)
                waiting = _Waiting(session, now, session.reader, position=since, is_start=True)
                self._call("timeline", (user, since, RECOVERY_MAX), waiting)
                self._tell_presence(now)
            case Call(number, method, arguments, user, device):
                session.user, session.device = user, device
                self._call(method, arguments, _Waiting(session, now, call=number))
            case _:
                assert body == PING
                session.stream.send(PING)

    def _begin(self, session: Session, waiting: _Waiting, answer: Answer, now: Instant) -> None:
        head: int
        entries: Entries
        head, entries = answer.value
        reader = waiting.reader
        assert reader is not None
        reached = entries[-1][0] if entries else waiting.position
        is_recovered = reached == head
        session.stream.send(Begun(is_recovered, head, entries if is_recovered else []))
        if self.hub.loaded(reader, head):
            self._fetch(reader, now)

    def _end(self, session: Session) -> None:
        self._sessions.pop(session.name, None)
        if session.reader is not None:
            self.hub.detach(session.reader)
            session.reader = None

    # ------------------------------------------------------------ entries

    def _pushed(self, pushed: Pushed, now: Instant) -> None:
        for user, offset, data in pushed.entries:
            if not offset:
                for session in self.hub.clients_of(user):
                    if session.reader is not None and not session.reader.is_loading:
                        session.stream.send(Publications([(0, data)]))
                continue
            if not self.guards.cursor_closed:
                self._pass_on(user, offset, data)
            routing = self.hub.route(user, offset, has_data=True)
            for session in routing.write:
                session.stream.send(Publications([(offset, data)]))
            for reader in routing.fetch:
                self._fetch(reader, now)

    def _pass_on(self, user: str, offset: int, data: Publication) -> None:
        """Do without the guard: whatever is newer is passed on, and is the position then."""
        for session in self.hub.clients_of(user):
            reader = session.reader
            if reader is not None and not reader.is_loading and offset > reader.position:
                reader.position = offset
                session.stream.send(Publications([(offset, data)]))

    def _fetch(self, reader: Reader[Session], now: Instant) -> None:
        waiting = _Waiting(reader.client, now, reader, position=reader.position)
        self._call("timeline", (reader.user, reader.position, RECOVERY_MAX), waiting)

    def _fetched(self, session: Session, reader: Reader[Session], answer: Answer, now: Instant) -> None:
        head: int
        entries: Entries
        head, entries = answer.value
        if head > reader.position and not entries:
            # What follows was trimmed while the client was here: it has to begin anew.
            session.stream.send(CLOSED)
            self._end(session)
            return
        fresh = [(offset, data) for offset, data in entries if offset > reader.position]
        if fresh:
            session.stream.send(Publications(fresh))
        needs_more = self.hub.loaded(reader, entries[-1][0] if entries else reader.position)
        if needs_more and not entries:
            self.hub.load_failed(reader)
        elif needs_more:
            self._fetch(reader, now)
