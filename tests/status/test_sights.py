"""What viewers see at the owner, over all that happens to it and to access nodes: hidden is never told from gone."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from base.clock import Instant
from status.api import Shown, State
from status.core.holding import Role
from status.core.partitions import Take, partition_of
from status.core.records import Kind, packed
from status.core.visibility import UNKNOWN, Audience, Presence
from status.ports import NoContacts
from status.sights import Sights, is_unknown
from tests.status.core.status_node import GATE, GRACE_MS, OTHER, TABLE, VOUCH_MS, A, Node, at, table

NOBODY, LISTED = Audience("nobody"), Audience("listed", ("cleo",))
HID_AT = 50


def users(count: int) -> list[str]:
    """Names of users of partition 0."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if partition_of(f"user-{number}") == 0:
            found.append(f"user-{number}")
        number += 1
    return found


HIDING, GONE, NEVER, SHOWN = users(4)


def session(
    conn: int, seq: int, *, state: State = "online", audience: Audience | None = None, said_at: int = 0
) -> bytes:
    is_hidden = state == "invisible" or (audience is not None and audience.mode != "everyone")
    body = (f"s{conn}", "phone", "ios", "gate", state, 1, said_at, audience)
    return packed(conn, seq, Kind.HIDDEN if is_hidden else Kind.OPEN, msgspec.msgpack.encode(body))


def closed(conn: int, seq: int, when: int) -> bytes:
    return packed(conn, seq, Kind.CLOSED, msgspec.msgpack.encode(when))


class Owner:
    """A status node that owns partition 0, and is told by two access nodes, unless they are silent."""

    def __init__(self) -> None:
        self.node = Node(A, GATE, OTHER)
        self.sights = Sights(self.node.core, NoContacts())
        self.node.read(at(0), TABLE)
        self.beats(0, GATE, OTHER, floor=0)

    def beats(self, ms: int, *gates: str, floor: int | None = None) -> None:
        for gate in gates:
            for _ in range(2):  # the second one vouches for what the first one told
                self.node.beat(at(ms), node=gate, floor=floor)  # type: ignore[arg-type]

    def tells(self, user: str, *entries: bytes, gate: str = GATE, ms: int = 0) -> None:
        for entry in entries:
            self.node.beat(at(ms), entry, node=gate, user=user)  # type: ignore[arg-type]

    def sees(self, viewer: str, user: str, ms: int) -> Presence:
        """What the viewer sees: the same by a lookup and by a watch."""
        (shown,) = self.lookup(at(ms), user)
        seen = self.sights.seen_by(at(ms), viewer, user, 0, shown)
        watched = self.sights.sight(at(ms), user)
        assert seen == (watched if isinstance(watched, Presence) else watched(viewer))
        assert is_unknown(watched) or seen != UNKNOWN
        return seen

    def lookup(self, now: Instant, user: str) -> list[Shown]:
        return self.node.core.lookup(now, [0], [user])


@pytest.fixture
def owner() -> Owner:
    """One user hides and another one left, both at the same time."""
    made = Owner()
    made.tells(HIDING, session(1, 1))
    made.tells(GONE, session(2, 2), closed(2, 3, HID_AT))
    return made


def looks_gone(owner: Owner, ms: int, viewers: Iterable[str] = ("alice",)) -> None:
    """Who hides looks like who left, byte for byte."""
    encode = msgspec.msgpack.encode
    for viewer in viewers:
        assert encode(owner.sees(viewer, HIDING, ms)) == encode(owner.sees(viewer, GONE, ms))


@pytest.mark.parametrize(
    "hides",
    [{"state": "invisible"}, {"audience": NOBODY}, {"audience": LISTED}, {"state": "invisible", "audience": LISTED}],
)
def test_who_hides_looks_like_who_left_whatever_happens(owner: Owner, hides: dict[str, object]):
    """While all is well, the access node is late, this node was stopped, its lease lapsed, the access node died."""
    owner.tells(HIDING, session(1, 4, said_at=HID_AT, **hides))  # type: ignore[arg-type]
    owner.beats(1_000, GATE, OTHER)
    assert owner.sees("alice", HIDING, 1_000) == Presence("offline", HID_AT)
    assert owner.sees(HIDING, HIDING, 1_000) == Presence(hides.get("state", "online"))  # type: ignore[arg-type]
    looks_gone(owner, 1_000)
    owner.node.is_leased = False
    owner.node.step(at(1_500))
    looks_gone(owner, 1_500)
    assert owner.sees("alice", HIDING, 1_500) == UNKNOWN
    owner.node.is_leased = True
    regained = 1_500 + VOUCH_MS
    owner.node.step(at(regained))
    assert owner.sees(HIDING, HIDING, regained) == UNKNOWN
    assert owner.sees("alice", HIDING, regained) == Presence("offline", HID_AT)
    looks_gone(owner, regained)
    owner.beats(regained + 100, GATE, OTHER)
    looks_gone(owner, regained + 100)
    for ms in range(regained + 600, regained + 100 + 3 * GRACE_MS, 500):
        owner.beats(ms, OTHER)
        looks_gone(owner, ms)
    (shown,) = owner.lookup(at(ms), HIDING)
    assert shown == HID_AT


def test_a_late_session_still_hides_the_others(owner: Owner):
    """The one that named the audience is at an access node whose lease lapsed for a moment."""
    owner.tells(HIDING, session(1, 1, audience=NOBODY, said_at=HID_AT), gate=OTHER)
    for ms in (500, 1_000, VOUCH_MS + 50, VOUCH_MS + 500):
        owner.beats(ms, GATE)
        looks_gone(owner, ms)
    (shown,) = owner.lookup(at(ms), HIDING)
    assert isinstance(shown, bytes), "the other one only"
    owner.beats(ms, OTHER)
    looks_gone(owner, ms)
    assert owner.sees("alice", HIDING, ms) == Presence("offline", HID_AT)


def test_who_may_see_a_late_session_is_told_that_it_is_not_known(owner: Owner):
    """Also if somebody else is denied: only the denied are told as of one who left."""
    owner.tells(SHOWN, session(3, 4))
    owner.tells(HIDING, session(1, 5, audience=LISTED, said_at=HID_AT))
    assert owner.sees("cleo", HIDING, 0) == owner.sees("alice", SHOWN, 0) == Presence("online")
    owner.node.is_leased = False
    owner.node.step(at(100))
    owner.node.is_leased = True
    owner.node.step(at(100 + VOUCH_MS))
    assert owner.sees("cleo", HIDING, 100 + VOUCH_MS) == owner.sees("cleo", SHOWN, 100 + VOUCH_MS) == UNKNOWN
    looks_gone(owner, 100 + VOUCH_MS)


def test_an_owner_that_does_not_know_all_says_so_to_the_denied_too():
    """Recovering: it cannot tell of who never came either."""
    owner = Owner()
    newer = table(Take(0, A))
    owner.node.read(at(1), newer)
    assert owner.node.role(at(1)) is not Role.SERVING
    assert owner.sees("alice", NEVER, 1) == owner.sees("alice", HIDING, 1) == UNKNOWN
    fresh = Node(A, GATE, OTHER)
    fresh.read(at(0), TABLE)
    fresh.beat(at(0), session(1, 1, audience=LISTED, said_at=HID_AT), floor=1, user=HIDING)
    fresh.beat(at(0))
    owner.node, owner.sights = fresh, Sights(fresh.core, NoContacts())
    assert fresh.role(at(0)) is Role.RECOVERING
    assert owner.sees("alice", HIDING, 0) == owner.sees("alice", NEVER, 0) == UNKNOWN
    assert owner.sees("cleo", HIDING, 0) == Presence("online")


def test_what_is_not_here_is_unknown(owner: Owner):
    """To everybody; the shell refuses it besides."""
    elsewhere = next(f"x{number}" for number in range(100_000) if partition_of(f"x{number}") == 1)
    assert owner.sights.sight(at(0), elsewhere) == UNKNOWN
