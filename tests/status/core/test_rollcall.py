"""Counting and listing who is online: what is told, what is named as not told, and a listing while partitions move."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.clock import Instant
from base.errors import BadRequest
from base.ids import Incarnation, NodeId
from status.api import REFUSED, UNKNOWN_SHOWN, Shown
from status.core import rollcall
from status.core.holding import Role
from status.core.partitions import PARTITIONS
from status.core.records import Kind, Life, PartitionRecords, Sources, packed
from status.core.rollcall import (
    CURSOR_CHARS_MAX,
    END,
    START,
    Bookmark,
    Listed,
    Listing,
    Tally,
    bookmark_of,
    cursor_of,
    page_of,
)
from tests.status.core.status_node import GATE, OTHER, A, B, at, entry, serving

NOW = Instant(0)
TOLD = {Role.SERVING, Role.RECOVERING}


class Keeper:
    """What a node knows of its partitions, and what it shows of that: all but the sessions of some access nodes."""

    def __init__(self) -> None:
        self.sources = Sources()
        self.roles: dict[int, Role] = {}
        self.dead: set[NodeId] = set()
        """Their sessions are known, and shown to nobody: they are over."""
        self.silent: set[NodeId] = set()
        """The same, and whether they are over is not known."""
        self._stores: dict[int, PartitionRecords] = {}
        self._conns = 0

    def has(self, partition: int, user: str, *nodes: NodeId) -> None:
        """Let the user have a session behind each of these."""
        self.roles.setdefault(partition, Role.SERVING)
        for node in nodes:
            self._conns += 1
            source = self.sources.prefix(Life(node, Incarnation(1)))
            made = source + packed(self._conns, 1, Kind.OPEN, b"session")
            self._stores.setdefault(partition, PartitionRecords()).merge(NOW, user, made)

    def saw(self, partition: int, user: str) -> None:
        """Let the user have been here."""
        self.store_of(partition).users[user] = 77

    def store_of(self, partition: int) -> PartitionRecords:
        return self._stores.setdefault(partition, PartitionRecords())

    # What the code under test asks of an `Ownership`.

    def role(self, _now: Instant, partition: int) -> Role:
        return self.roles.get(partition, Role.NONE)

    def store(self, partition: int) -> PartitionRecords | None:
        return self.store_of(partition) if partition in self.roles else None

    def lookup(self, now: Instant, partitions: Sequence[int], users: Sequence[str]) -> list[Shown]:
        return [self._show(now, partition, user) for partition, user in zip(partitions, users, strict=True)]

    def _show(self, now: Instant, partition: int, user: str) -> Shown:
        if self.role(now, partition) not in TOLD:
            return REFUSED
        store = self.store_of(partition)
        node_of = {one: self.sources.life(one[:2]).node for one in store.open_of(user)}
        shown = tuple(one for one, node in node_of.items() if node not in self.dead | self.silent)
        if len(shown) == len(node_of):
            return store.users[user]  # the very object, as in a clean partition
        if shown:
            return shown if len(shown) > 1 else shown[0]
        return UNKNOWN_SHOWN if self.silent & set(node_of.values()) else None


def tally(keeper: Keeper, *partitions: int) -> Tally:
    made = Tally(keeper)  # type: ignore[arg-type]
    for partition in partitions or sorted(keeper.roles):
        assert made.take(NOW, partition) > 0
    return made


def listing(
    keeper: Keeper, *partitions: int, node: NodeId = GATE, begin: Bookmark = START, limit: int = 100
) -> Listing:
    made = Listing(keeper, node, begin, limit)  # type: ignore[arg-type]
    for partition in partitions or sorted(keeper.roles):
        made.take(NOW, partition)
    return made


def users(found: Listing | Sequence[Listed]) -> list[str]:
    return [item.user for item in (found.items if isinstance(found, Listing) else found)]


# ---------------------------------------------------------------- counting


def test_users_and_sessions_are_counted_in_all_and_by_access_node():
    """A user with two sessions is one user; with sessions behind two access nodes, one of each."""
    keeper = Keeper()
    keeper.has(0, "ann", GATE)
    keeper.has(0, "ben", GATE, GATE, OTHER)
    keeper.has(1, "cleo", OTHER)
    keeper.saw(1, "dan")
    made = tally(keeper)
    assert made.users == 3
    assert made.sessions_of == {GATE: 3, OTHER: 2}
    assert made.users_of == {GATE: 2, OTHER: 2}
    assert (made.refused, made.unsure) == ([], [])


def test_what_a_node_may_not_answer_for_is_refused():
    """Whatever it is to the partition; asked of a partition that it does not even have, too."""
    keeper = Keeper()
    for partition, role in enumerate([Role.NONE, Role.FENCED, Role.SEALED, Role.SERVING]):
        keeper.has(partition, f"user-{partition}", GATE)
        keeper.roles[partition] = role
    made = tally(keeper, 0, 1, 2, 3, 4)
    assert (made.refused, made.users) == ([0, 1, 2, 4], 1)
    assert listing(keeper, 0, 1, 2, 3, 4).refused == [0, 1, 2, 4]


def test_a_recovering_partition_is_told_as_far_as_it_is_known():
    """And named."""
    keeper = Keeper()
    keeper.has(0, "ann", GATE)
    keeper.roles[0] = Role.RECOVERING
    assert (tally(keeper).users, tally(keeper).unsure) == (1, [0])
    assert (users(listing(keeper)), listing(keeper).unsure) == (["ann"], [0])


def test_sessions_of_a_dead_access_node_are_not_online():
    """They are known until they are swept out; nobody doubts that they are over."""
    keeper = Keeper()
    keeper.has(0, "ann", GATE)
    keeper.has(1, "ben", OTHER)
    keeper.dead = {GATE}
    made = tally(keeper)
    assert (made.users, made.sessions_of, made.unsure) == (1, {OTHER: 1}, [])
    assert (listing(keeper).items, listing(keeper).unsure) == ([], [])


def test_sessions_of_a_silent_access_node_leave_a_doubt():
    """Lookups say unknown of users who have only such; of one who has others, the silent ones are not shown."""
    keeper = Keeper()
    keeper.has(0, "ann", OTHER)
    keeper.has(1, "ben", GATE)
    keeper.has(2, "cleo", GATE, OTHER)
    keeper.has(2, "dan", GATE)
    keeper.silent = {GATE}
    made = tally(keeper)
    assert (made.users, made.sessions_of, made.unsure) == (2, {OTHER: 2}, [1, 2])
    assert (listing(keeper).items, listing(keeper).unsure) == ([], [1, 2])
    assert (users(listing(keeper, node=OTHER)), listing(keeper, node=OTHER).unsure) == (["ann", "cleo"], [2])


def test_a_doubt_about_a_recovering_partition_is_one_doubt():
    """It is named once."""
    keeper = Keeper()
    keeper.has(0, "ann", GATE)
    keeper.roles[0] = Role.RECOVERING
    keeper.silent = {GATE}
    assert tally(keeper).unsure == [0]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdef"), st.sampled_from([GATE, OTHER])), max_size=30),
    st.sampled_from([set(), {GATE}, {GATE, OTHER}]),
)
def test_a_count_is_that_of_all_lookups(sessions: list[tuple[int, str, NodeId]], dead: set[NodeId]):
    """A dumb twin looks at one session after the other."""
    keeper = Keeper()
    for partition, user, node in sessions:
        keeper.has(partition, user, node)
    keeper.dead = dead
    made = tally(keeper, 0, 1, 2, 3)
    online = [one for one in sessions if one[2] not in dead]
    assert made.users == len({(partition, user) for partition, user, _ in online})
    for node in (GATE, OTHER):
        there = [(partition, user) for partition, user, other in online if other == node]
        assert (made.sessions_of[node], made.users_of[node]) == (len(there), len(set(there)))


def test_a_real_node_is_asked_in_the_same_way():
    """The store, the roles and the lookups are those of `Ownership`."""
    node = serving(entry(1), entry(2))
    made = Tally(node.core)
    for partition in (0, 1):
        made.take(at(1), partition)
    assert (made.users, made.sessions_of, made.users_of) == (1, {GATE: 2}, {GATE: 1})
    assert (made.refused, made.unsure) == ([1], [])
    listed = Listing(node.core, GATE, START, 10)
    listed.take(at(1), 0)
    assert [(item.user, [one[2:] for one in item.entries]) for item in listed.items] == [("u", [entry(1), entry(2)])]


# ---------------------------------------------------------------- listing


def test_a_listing_is_in_order_and_of_one_access_node():
    """Of a user with sessions behind two, only those of this one are in it."""
    keeper = Keeper()
    keeper.has(1, "ben", OTHER)
    keeper.has(1, "zoe", GATE, OTHER)
    keeper.has(1, "ann", GATE, GATE)
    keeper.has(0, "max", GATE)
    keeper.saw(0, "old")
    made = listing(keeper)
    assert [(item.partition, item.user, len(item.entries)) for item in made.items] == [
        (0, "max", 1),
        (1, "ann", 2),
        (1, "zoe", 1),
    ]
    assert {keeper.sources.life(one[:2]).node for item in made.items for one in item.entries} == {GATE}
    assert (made.reached, listing(keeper, node=NodeId("nobody")).items) == (None, [])


def test_a_listing_ends_with_the_user_who_fills_it_and_goes_on_after():
    """A user's sessions are never parted."""
    keeper = Keeper()
    for user in ("ann", "ben", "cleo"):
        keeper.has(3, user, GATE, GATE)
    keeper.has(4, "dan", GATE)
    first = listing(keeper, limit=3)
    assert (users(first), first.reached) == (["ann", "ben"], Bookmark(3, "ben"))
    assert first.take(NOW, 4) == 0
    rest = listing(keeper, begin=Bookmark(3, "ben"))
    assert (users(rest), rest.reached) == (["cleo", "dan"], None)


def test_a_listing_looks_at_so_many_users_only(monkeypatch: pytest.MonkeyPatch):
    """Then the page is short; it goes on with the next partition."""
    monkeypatch.setattr(rollcall, "LOOKED_MAX", 2 * rollcall.PARTITION_COST + 1)
    keeper = Keeper()
    for partition in (2, 5, 9):
        keeper.has(partition, f"user-{partition}", GATE)
    made = listing(keeper)
    assert (users(made), made.reached) == (["user-2", "user-5"], Bookmark(6, ""))
    assert users(listing(keeper, begin=Bookmark(6, ""), limit=1)) == ["user-2"], "whom to ask is the asker's business"


# ---------------------------------------------------------------- cursors


@pytest.mark.parametrize("bookmark", [START, Bookmark(17, "zoë"), Bookmark(4_095, "u" * 128), END])
def test_a_cursor_comes_back(bookmark: Bookmark):
    """As a text for URLs."""
    cursor = cursor_of(NodeId("gate"), bookmark)
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert len(cursor) <= CURSOR_CHARS_MAX
    assert bookmark_of(cursor, NodeId("gate")) == bookmark


def test_without_a_cursor_a_listing_begins():
    """That is its start."""
    assert bookmark_of("", GATE) == START


@pytest.mark.parametrize(
    ("cursor", "message"),
    [
        ("nonsense!", "not one that was given out"),
        ("ä", "not one that was given out"),
        ("AAAA", "not one that was given out"),
        (urlsafe_b64encode(msgspec.msgpack.encode([2, "gate", 0, ""])).decode(), "not one that was given out"),
        (urlsafe_b64encode(msgspec.msgpack.encode([1, "gate", 4_097, ""])).decode(), "not one that was given out"),
        (urlsafe_b64encode(msgspec.msgpack.encode([1, "gate", 0, "", 1])).decode(), "not one that was given out"),
        (urlsafe_b64encode(b"\x94\x01\xa4gate\x00\xa1\xff").decode(), "not one that was given out"),
        ("A" * (CURSOR_CHARS_MAX + 1), "has 1001 characters"),
        (cursor_of(OTHER, START), "of the listing of other, not of gate"),
    ],
)
def test_other_texts_are_no_cursors(cursor: str, message: str):
    """Nor is another listing's."""
    with pytest.raises(BadRequest, match=message):
        bookmark_of(cursor, GATE)


# ---------------------------------------------------------------- pages


@dataclass
class Part:
    items: list[Listed]
    reached: Bookmark | None = None


def test_a_page_ends_where_the_first_part_does():
    """What others told of later is told again; what is missing later, missed later."""
    ann, ben, cleo, dan = (Listed(partition, user, ()) for partition, user in [(0, "a"), (1, "b"), (2, "c"), (3, "d")])
    page = page_of([Part([ann, cleo, dan]), Part([ben], Bookmark(2, "c"))], [5, 1, 2, 1])
    assert (page.items, page.end, page.gaps) == ([ann, ben, cleo], Bookmark(2, "c"), [1, 2])
    page = page_of([Part([ann, cleo, dan]), Part([ben], Bookmark(2, ""))], [2, 1])
    assert (page.items, page.end, page.gaps) == ([ann, ben], Bookmark(2, ""), [1])
    page = page_of([Part([dan]), Part([ann])], [4_095])
    assert (page.items, page.end, page.gaps) == ([ann, dan], END, [4_095])
    assert page_of([Part([], Bookmark(PARTITIONS, ""))], []).end == END


def test_with_nobody_to_tell_a_page_is_all_gap():
    """And the end, since what could follow?"""
    page = page_of([], range(4_094, PARTITIONS))
    assert (page.items, page.end, page.gaps) == ([], END, [4_094, 4_095])


Page = tuple[dict[int, NodeId], set[NodeId]]
"""Who owns what while a page is made, and who does not answer."""
OWNING = st.tuples(
    st.fixed_dictionaries({partition: st.sampled_from([A, B]) for partition in range(4)}),
    st.sets(st.sampled_from([A, B]), max_size=1),
)


@given(
    st.sets(st.tuples(st.integers(0, 3), st.sampled_from("abcdefgh"), st.sampled_from([GATE, OTHER]))),
    st.lists(st.tuples(OWNING, st.sets(st.tuples(st.integers(0, 3), st.sampled_from("stuvwxyz")))), min_size=1),
    st.integers(1, 4),
)
def test_who_is_open_all_the_time_is_listed_once_or_said_to_be_missed(
    stay: set[tuple[int, str, NodeId]], steps: list[tuple[Page, set[tuple[int, str]]]], limit: int
):
    """I1: partitions move between pages, nodes do not answer, others come and go."""
    seen: list[tuple[int, str]] = []
    gaps: set[int] = set()
    cursor, number = cursor_of(GATE, START), 0
    while (begin := bookmark_of(cursor, GATE)) != END:
        (owners, dead), passing = steps[number % len(steps)]
        number += 1
        keepers = {A: Keeper(), B: Keeper()}
        for partition, owner in owners.items():
            keepers[owner].roles[partition] = Role.SERVING
        for partition, user, node in [*stay, *((*one, GATE) for one in passing)]:
            keepers[owners[partition]].has(partition, user, node)
        asked = {
            node: [partition for partition in range(begin.partition, 4) if owners[partition] == node]
            for node in keepers
        }
        parts = [
            listing(keepers[node], *partitions, begin=begin, limit=limit)
            for node, partitions in asked.items()
            if partitions and node not in dead
        ]
        page = page_of(parts, [partition for node in dead for partition in asked[node]])
        assert begin < page.end, "I2"
        seen += [(item.partition, item.user) for item in page.items]
        gaps.update(page.gaps)
        cursor = cursor_of(GATE, page.end)
    assert seen == sorted(set(seen))
    wanted = {(partition, user) for partition, user, node in stay if node == GATE and partition not in gaps}
    assert wanted <= set(seen)
    assert {partition for partition, _ in seen} <= set(range(4))
