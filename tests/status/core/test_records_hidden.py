"""When everybody could see a user last, over histories of sessions that hide, show, move, die and come back.

The twin keeps the sessions as they are and looks at all of them after each step. What it says must hold however the
store was told: entry by entry, in full lists, twice, or by a copy of another store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from base.clock import Instant, Timestamp
from status.core.records import Full, Kind, PartitionRecords, packed

NOW = Instant(1_000)
GATES = [b"\x00\x01", b"\x00\x02"]
STATES = st.sampled_from(["online", "away", "invisible"])
MODES = st.sampled_from([None, None, "everyone", "nobody", "listed"])


@dataclass(frozen=True)
class Session:
    """A session of the one user, as its access node reported it last."""

    gate: bytes
    conn: int
    seq: int
    at: int
    state: str
    mode: str | None

    @property
    def is_hidden(self) -> bool:
        return self.state == "invisible" or self.mode in {"nobody", "listed"}

    @property
    def entry(self) -> bytes:
        audience = (self.mode, ("w",) if self.mode == "listed" else ()) if self.mode else None
        body = (f"s{self.conn}", "phone", "ios", "gate", self.state, 1, self.at, audience)
        return self.gate + packed(self.conn, self.seq, Kind.HIDDEN if self.is_hidden else Kind.OPEN, _encode(body))


_encode = msgspec.msgpack.Encoder().encode


class WhoHides(RuleBasedStateMachine):
    """One user, two access nodes; each step is at a time of its own, which is also the number of what it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.records = PartitionRecords()
        self.sessions: dict[tuple[bytes, int], Session] = {}
        self.told: list[bytes] = []
        self.at = 0
        self.seen = 0

    def is_public(self) -> bool:
        """Whether everybody sees the user: somebody is there to be seen, and the last word is not against it."""
        held = list(self.sessions.values())
        said = [one for one in held if one.mode]
        last = max(said, key=lambda one: one.at).mode if said else "everyone"
        return last == "everyone" and any(one.state != "invisible" for one in held)

    def merge(self, entry: bytes) -> None:
        self.told.append(entry)
        self.records.merge(NOW, "u", entry)

    def after(self, changed: dict[tuple[bytes, int], Session], at: int) -> None:
        """Take the sessions as they are now; if nobody but some can see the user any more, that began at `at`."""
        was_public = self.is_public()
        self.sessions = changed
        if self.is_public():
            self.seen = 0
        elif was_public:
            self.seen = at

    @rule(gate=st.sampled_from(GATES), state=STATES, mode=MODES)
    def opens(self, gate: bytes, state: str, mode: str | None) -> None:
        self.at += 1
        one = Session(gate, self.at, self.at, self.at, state, mode)
        self.after({**self.sessions, (gate, one.conn): one}, self.at)
        self.merge(one.entry)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), state=STATES, mode=MODES)
    def changes(self, data: st.DataObject, state: str, mode: str | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.sessions)))
        self.at += 1
        before = self.sessions[key]
        one = replace(before, seq=self.at, at=self.at, state=state, mode=mode or before.mode)
        self.after({**self.sessions, key: one}, self.at)
        self.merge(one.entry)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def closes(self, data: st.DataObject) -> None:
        """Of a hidden session nobody is told when."""
        gate, conn = data.draw(st.sampled_from(sorted(self.sessions)))
        self.at += 1
        at = 0 if self.sessions[gate, conn].is_hidden else self.at
        self.after({key: one for key, one in self.sessions.items() if key != (gate, conn)}, at)
        self.merge(gate + packed(conn, self.at, Kind.CLOSED, _encode(at)))

    @rule(gate=st.sampled_from(GATES), is_life_over=st.booleans())
    def a_gate_loses_all(self, gate: bytes, *, is_life_over: bool) -> None:
        """It died, or says that it has nothing."""
        self.at += 1
        self.after({key: one for key, one in self.sessions.items() if key[0] != gate}, self.at)
        if is_life_over:
            self.records.purge(gate, Timestamp(self.at))
            self.told = [entry for entry in self.told if entry[:2] != gate]
        else:
            self.records.replace(NOW, gate, Full(self.at, [], Timestamp(self.at)))

    @rule(data=st.data(), gate=st.sampled_from(GATES), wanted=st.lists(st.tuples(STATES, MODES), max_size=3))
    def a_gate_tells_all(self, data: st.DataObject, gate: bytes, wanted: list[tuple[str, str | None]]) -> None:
        """In any order; some of it is new here. Whoever hides the user did so when it says."""
        new = []
        for state, mode in wanted:
            self.at += 1
            new.append(Session(gate, self.at, self.at, self.at, state, mode))
        hid_at = max((one.at for one in new if one.mode), default=0)
        self.after({**self.sessions, **{(gate, one.conn): one for one in new}}, hid_at)
        listed = data.draw(st.permutations([one.entry for key, one in self.sessions.items() if key[0] == gate]))
        self.told.extend(listed)
        items = [("u", entry) for entry in listed]
        self.records.replace(NOW, gate, Full(self.at, items, Timestamp(self.at)))

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def something_comes_again(self, data: st.DataObject) -> None:
        self.records.merge(NOW, "u", data.draw(st.sampled_from(self.told)))

    @rule(is_twice=st.booleans())
    def moves(self, *, is_twice: bool) -> None:
        """A copy is as good as the original, and a chunk may come twice."""
        items = self.records.snapshot()
        copy = PartitionRecords()
        for user, entry in items * (2 if is_twice else 1):
            copy.merge(NOW, user, entry)
        self.records = copy

    @rule(ago=st.integers(0, 5))
    def old_times_are_forgotten(self, ago: int) -> None:
        self.records.forget_seen(Timestamp(self.at - ago))
        if self.seen < self.at - ago:
            self.seen = 0

    @invariant()
    def what_there_is_to_see_is_what_the_twin_saw(self) -> None:
        self.records.check_invariants()
        assert {one for _, one in self.records.entries()} == {one.entry for one in self.sessions.values()}
        assert (self.records.last_visible("u") or 0) == self.seen


TestWhoHides = WhoHides.TestCase
TestWhoHides.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
