"""A partition's entries: merging in any order, tombstones, floors and digests."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from base.clock import Instant, Timestamp
from base.ids import Incarnation, NodeId
from status.core.records import (
    TOMBSTONE_MS,
    Digest,
    Full,
    Kind,
    Life,
    Merged,
    PartitionRecords,
    Sources,
    body_of,
    conn_of,
    digest_of,
    kind_of,
    packed,
    seq_of,
)

NOW = Instant(1_000)
A, B = b"\x00\x01", b"\x00\x02"
AT = Timestamp(77)


def opened(conn: int, seq: int, *, source: bytes = A, mode: str = "") -> bytes:
    """An entry that everybody may see, of which the session says so or nothing."""
    body = (f"s{conn}", "phone", "ios", "gate", "online", seq, seq, (mode, ()) if mode else None)
    return source + packed(conn, seq, Kind.OPEN, msgspec.msgpack.encode(body))


def hidden(
    conn: int, seq: int, *, source: bytes = A, state: str = "online", mode: str = "nobody", at: int = 0
) -> bytes:
    """An entry that not everybody may see, as of `at`, by default its number; without a mode it names no audience."""
    body = (f"s{conn}", "phone", "ios", "gate", state, 1, at or seq, (mode, ()) if mode else None)
    return source + packed(conn, seq, Kind.HIDDEN, msgspec.msgpack.encode(body))


def invisible(conn: int, seq: int, *, source: bytes = A) -> bytes:
    return hidden(conn, seq, source=source, state="invisible", mode="")


def closed(conn: int, seq: int, *, source: bytes = A, at: int = 0) -> bytes:
    return source + packed(conn, seq, Kind.CLOSED, msgspec.msgpack.encode(at) if at else b"")


def floor(seq: int, *, source: bytes = A) -> bytes:
    return source + packed(0, seq, Kind.FLOOR)


def seen(at: int) -> bytes:
    return bytes(2) + packed(0, 0, Kind.SEEN, msgspec.msgpack.encode(at))


def store(*entries: bytes, user: str = "u") -> PartitionRecords:
    records = PartitionRecords()
    for entry in entries:
        records.merge(NOW, user, entry)
        records.check_invariants()
    return records


# ---------------------------------------------------------------- entries


def test_an_entry_says_its_parts():
    """Numbers are big-endian, so that bytes compare like them."""
    entry = A + packed(7, 1 << 40, Kind.OPEN, b"body")
    assert (conn_of(entry), seq_of(entry), kind_of(entry), body_of(entry)) == (7, 1 << 40, Kind.OPEN, b"body")
    assert packed(1, 255, Kind.OPEN) < packed(1, 256, Kind.OPEN)


def test_the_greater_number_wins_whatever_comes_first():
    """I1 and I2 over every order of open, change and close."""
    for order in permutations([opened(1, 1), opened(1, 2), closed(1, 3)]):
        assert store(*order).open_of("u") == ()
    for order in permutations([opened(1, 1), opened(1, 2)]):
        assert store(*order).open_of("u") == (opened(1, 2),)


def test_a_close_ends_its_connection_whatever_number_it_has():
    """The tombstones of a snapshot have none."""
    assert store(opened(1, 9), closed(1, 0)).open_of("u") == ()


def test_connections_of_different_lives_do_not_compare():
    """Their numbers come from different counters."""
    records = store(opened(1, 1), opened(1, 2, source=B))
    assert records.users["u"] == (opened(1, 1), opened(1, 2, source=B))
    assert records.merge(NOW, "u", closed(1, 3, source=B)) is Merged.CLOSED
    assert records.users["u"] == opened(1, 1)


def test_merging_says_what_it_changed():
    """What is no news is not forwarded."""
    records = PartitionRecords()
    merged = [
        records.merge(NOW, "u", entry)
        for entry in (opened(1, 1), opened(1, 1), opened(1, 2), closed(1, 3), closed(1, 3), closed(2, 4), floor(4))
    ]
    assert [one.name for one in merged] == ["OPENED", "STALE", "CHANGED", "CLOSED", "STALE", "NOTED", "NOTED"]
    assert not records.merge(NOW, "", floor(4))
    assert not records.merge(NOW, "u", closed(5, 4))
    assert not records.merge(NOW, "u", opened(5, 4))


def test_one_of_several_connections_changes_and_the_others_stay():
    """I1, among the connections of one user."""
    records = store(opened(1, 1), opened(2, 2), opened(3, 3))
    assert records.merge(NOW, "u", opened(2, 4)) is Merged.CHANGED
    assert not records.merge(NOW, "u", opened(2, 2))
    records.check_invariants()
    assert set(records.open_of("u")) == {opened(1, 1), opened(2, 4), opened(3, 3)}
    assert records.find("u", opened(2, 0)) == opened(2, 4)
    assert records.find("u", opened(9, 9)) == records.find("nobody", opened(1, 1)) == b""


# ---------------------------------------------------------------- tombstones and last sight


def test_a_tombstone_is_kept_for_a_minute_and_then_forgotten():
    """I3."""
    records = store(opened(1, 1), closed(1, 2))
    records.merge(Instant(NOW + 5), "u", closed(2, 3))
    assert records.expire(Instant(NOW + TOMBSTONE_MS - 1)) == 0
    assert records.statistics() == {"entries": 0, "tombstones": 2, "users": 0}
    assert not records.merge(NOW, "u", opened(1, 1))
    assert records.expire(Instant(NOW + TOMBSTONE_MS)) == 1
    assert [(conn_of(entry), kind_of(entry)) for _, entry in records.snapshot()] == [(2, Kind.CLOSED)]
    assert records.expire(Instant(NOW + 5 + TOMBSTONE_MS)) == 1
    assert records.snapshot() == []
    records.check_invariants()


def test_without_tombstones_an_older_entry_brings_the_connection_back():
    """What the sensitivity test of the simulator removes."""
    records = PartitionRecords(keeps_tombstones=False)
    records.merge(NOW, "u", opened(1, 1))
    assert records.merge(NOW, "u", closed(1, 2)) is Merged.CLOSED
    assert records.merge(NOW, "u", opened(1, 1)) is Merged.OPENED


def test_a_user_is_kept_as_the_end_of_the_last_connection():
    """Not of one of several, and not where the end is not known."""
    records = store(opened(1, 1), opened(2, 2), closed(1, 3, at=50))
    assert records.users["u"] == opened(2, 2)
    records.merge(NOW, "u", closed(2, 4, at=60))
    assert records.users == {"u": 60}
    assert records.open_of("u") == ()
    assert records.merge(NOW, "u", opened(3, 5)) is Merged.OPENED
    records.merge(NOW, "u", closed(3, 6))
    assert records.users == {}


def test_the_later_sight_wins_and_an_open_connection_over_any():
    """As a handoff brings them, in any order."""
    records = store(seen(50), seen(40))
    assert records.users == {"u": 50}
    assert records.merge(NOW, "u", seen(60)) is Merged.NOTED
    assert not records.merge(NOW, "u", seen(60))
    records.merge(NOW, "u", opened(1, 1))
    assert not records.merge(NOW, "u", seen(70))
    assert records.users == {"u": opened(1, 1)}


def test_users_who_were_not_seen_for_long_are_forgotten():
    """The open ones are not."""
    records = store(seen(50))
    records.merge(NOW, "v", seen(60))
    records.merge(NOW, "w", opened(1, 1))
    assert records.forget_seen(Timestamp(60)) == 1
    assert set(records.users) == {"v", "w"}


# ---------------------------------------------------------------- users who hide


def test_a_hidden_connection_is_like_any_other_while_it_is_open():
    """It counts, it is found, and it changes."""
    records = store(hidden(1, 1))
    assert (records.users["u"], records.digest(A).entries) == (hidden(1, 1), 1)
    assert records.merge(NOW, "u", hidden(1, 2)) is Merged.CHANGED
    assert not records.merge(NOW, "u", hidden(1, 1))
    assert records.merge(NOW, "u", closed(1, 3)) is Merged.CLOSED
    assert not records.merge(NOW, "u", hidden(1, 4))
    assert (records.users, records.last_visible("u")) == ({}, None)


def test_a_hidden_connection_changes_nothing_of_when_its_user_was_seen():
    """I5: neither its begin nor its end, whoever says it: the connection, a full list, a purge."""
    for entry in (hidden(1, 9), invisible(1, 9)):
        records = store(seen(7), entry)
        assert records.last_visible("u") == 7
        assert not records.merge(NOW, "u", seen(7))
        records.merge(NOW, "u", closed(1, 10, at=AT))
        assert records.users == {"u": 7}
        records = store(seen(7), entry)
        records.replace(NOW, A, Full(10, [], AT))
        assert records.users == {"u": 7}
        records = store(seen(7), entry)
        records.purge(A, AT)
        assert records.users == {"u": 7}
    assert store(seen(7)).last_visible("u") == 7
    assert store(seen(7), opened(1, 1)).last_visible("u") is None


def test_who_hides_left_at_that_moment():
    """By a change, a new connection that denies, or the last visible one's end; and what follows is not told."""
    for leaves in (
        [hidden(1, 5)],
        [hidden(2, 5)],
        [invisible(1, 5), invisible(2, 6)],
        [invisible(2, 4), closed(1, 5, at=5)],
    ):
        records = store(opened(1, 1), *leaves)
        assert records.last_visible("u") == 5
        for conn in (1, 2):
            records.merge(NOW, "u", closed(conn, 9, at=AT))
        assert records.users == {"u": 5}


def test_who_is_seen_by_another_connection_is_seen():
    """An invisible one does not hide the others, nor does one whose audience a later one replaced."""
    for hides in (invisible(2, 2), hidden(2, 2, at=1)):
        records = store(seen(7), hides, opened(1, 3, mode="everyone"))
        assert records.last_visible("u") is None
        assert not records.merge(NOW, "u", seen(8))
        records.merge(NOW, "u", closed(1, 4, at=AT))
        assert records.last_visible("u") == AT
    records = store(hidden(2, 2), opened(1, 3), closed(2, 4), closed(1, 5, at=AT))
    assert records.users == {"u": AT}


def test_who_shows_again_is_like_everybody_else():
    """The time of before is forgotten, as it is of who connects."""
    records = store(opened(1, 1), hidden(1, 5), opened(1, 6))
    assert records.last_visible("u") is None
    records.merge(NOW, "u", closed(1, 7, at=AT))
    assert records.users == {"u": AT}


def test_times_of_hidden_users_merge_and_are_forgotten():
    """The greatest stays, in any order; an old one is dropped, and nothing is left but the connection."""
    for order in permutations([seen(6), seen(7), hidden(1, 1)]):
        records = store(*order)
        assert records.last_visible("u") == 7
        assert records.forget_seen(Timestamp(7)) == 0
        assert records.forget_seen(Timestamp(8)) == 1
        assert records.forget_seen(Timestamp(8)) == 0
        assert records.last_visible("u") is None
        records.check_invariants()
        records.merge(NOW, "u", closed(1, 2, at=AT))
        assert records.users == {}


def test_what_comes_or_goes_at_once_is_visible_only_if_the_whole_is():
    """I5 over a full list, its end, a purge and a copy: the connection that denies comes first and goes last."""
    entries = [opened(1, 1), invisible(2, 2), hidden(3, 3), hidden(4, 4, mode="contacts")]
    for order in permutations(entries):
        records = store(seen(1))
        records.replace(NOW, A, Full(4, [("u", entry) for entry in order], AT))
        assert records.last_visible("u") == 1
        copy = PartitionRecords()
        for user, entry in records.snapshot():
            copy.merge(NOW, user, entry)
        copy.check_invariants()
        assert copy.snapshot() == records.snapshot()
        assert copy.last_visible("u") == 1
        records.replace(NOW, A, Full(5, [], AT))
        assert records.users == {"u": 1}
        copy.purge(A, AT)
        assert copy.users == {"u": 1}


def test_a_tombstone_in_a_full_list_is_no_session():
    """It has no say on the audience."""
    records = store(hidden(1, 1))
    records.replace(NOW, A, Full(3, [("u", closed(1, 2)), ("u", hidden(2, 3))], AT))
    assert records.open_of("u") == (hidden(2, 3),)


# ---------------------------------------------------------------- full lists and lives


def test_a_full_list_closes_what_it_does_not_name():
    """And the floor keeps out what is still on its way, but not what is newer."""
    records = store(opened(1, 1), opened(2, 2), opened(3, 3, source=B))
    items = [("u", opened(2, 2)), ("v", opened(4, 4))]
    ended = closed(1, 5, at=AT)
    assert records.replace(NOW, A, Full(5, items, AT)) == [
        ("v", opened(4, 4), Merged.OPENED, opened(4, 4)),
        ("u", ended, Merged.CLOSED, opened(1, 1)),
        ("", floor(5), Merged.NOTED, b""),
    ]
    records.check_invariants()
    assert not records.merge(NOW, "u", opened(5, 5))
    assert records.merge(NOW, "u", opened(6, 6))
    assert records.replace(NOW, A, Full(5, items, AT)) == []
    assert {conn_of(entry) for _, entry in records.entries()} == {2, 3, 4, 6}


def test_a_full_list_ends_the_last_connection_at_the_time_given():
    """Its real end is not known."""
    records = store(opened(1, 1))
    records.replace(NOW, A, Full(5, [], AT))
    assert records.users == {"u": AT}


def test_an_older_list_closes_nothing_newer():
    """A list that was long on its way."""
    records = store(opened(1, 7))
    records.replace(NOW, A, Full(5, [], AT))
    assert records.open_of("u") == (opened(1, 7),)


def test_a_floor_lets_an_open_connection_change():
    """What is above it is news, however old the connection."""
    records = store(opened(1, 1), floor(5))
    assert not records.merge(NOW, "u", opened(1, 1))
    assert records.merge(NOW, "u", opened(1, 6)) is Merged.CHANGED
    assert records.merge(NOW, "u", closed(1, 4)) is Merged.CLOSED


def test_a_purge_leaves_nothing_of_a_life():
    """No entry, no tombstone, no floor, no digest; others stay, and its number may be given to another."""
    records = store(opened(1, 1), opened(2, 2), closed(3, 3), floor(4), opened(1, 1, source=B), closed(3, 3, source=B))
    records.merge(NOW, "v", opened(9, 9))
    records.merge(NOW, "w", opened(2, 2, source=B))
    gone = records.purge(A, AT)
    records.check_invariants()
    assert (records.knows(A), records.knows(B)) == (False, True)
    assert gone == [("u", opened(1, 1)), ("u", opened(2, 2)), ("v", opened(9, 9))]
    assert records.users == {"u": opened(1, 1, source=B), "v": AT, "w": opened(2, 2, source=B)}
    assert records.sources() == [B]
    assert records.merge(NOW, "u", opened(3, 1)) is Merged.OPENED
    assert not records.merge(NOW, "u", opened(3, 1, source=B))
    assert PartitionRecords().purge(A, AT) == []


# ---------------------------------------------------------------- digests and snapshots


def test_digests_are_equal_for_equal_open_entries_only():
    """I4: tombstones do not count, since each node forgets them at its own time; nor does the source's number."""
    one = store(opened(1, 1), opened(1, 1, source=B), opened(2, 2), closed(2, 3))
    two = store(opened(1, 1, source=B), opened(1, 1))
    assert one.digest(A) == two.digest(A) == digest_of([opened(1, 1)[2:]])
    assert one.digest(b"\x00\x09") == Digest(0, 0)
    assert one.digest(A) != store(opened(1, 2)).digest(A)


def test_two_processes_with_other_numbers_mark_alike():
    """I4, over all lives but the gone."""
    lives = [Life(NodeId("a"), Incarnation(1)), Life(NodeId("b"), Incarnation(1))]
    here, there = Sources(), Sources()
    one = store(*(opened(conn, conn, source=here.prefix(life)) for conn, life in enumerate(lives, 1)))
    two = store(*(opened(3 - conn, 3 - conn, source=there.prefix(life)) for conn, life in enumerate(lives[::-1], 1)))
    assert here.prefix(lives[0]) != there.prefix(lives[0])
    assert one.mark(here) == two.mark(there)
    assert one.mark(here).entries == 2
    assert one.mark(here, frozenset(lives[:1])) == two.mark(there, frozenset(lives[:1])) != one.mark(here)
    two.merge(NOW, "u", closed(1, 9, source=there.prefix(lives[0])))
    assert one.mark(here, frozenset(lives[:1])) == two.mark(there)


def test_the_mark_knows_whose_an_entry_is():
    """The same entries of another life are another thing."""
    sources = Sources()
    a, b = (sources.prefix(Life(NodeId(name), Incarnation(1))) for name in "ab")
    assert store(opened(1, 1, source=a)).mark(sources) != store(opened(1, 1, source=b)).mark(sources)


def test_a_snapshot_makes_an_equal_store():
    """Tombstones included, floors last; and a tombstone that comes after its floor counts (I3)."""
    one = store(opened(1, 1), floor(3), opened(4, 4), opened(5, 5), closed(5, 6), opened(7, 7, source=B))
    one.merge(NOW, "v", seen(60))
    one.merge(NOW, "w", opened(8, 8))
    items = one.snapshot()
    assert [kind_of(entry) for _, entry in items[-2:]] == [Kind.CLOSED, Kind.FLOOR]
    for order in (items, [*items[:-2], items[-1], items[-2]]):
        two = PartitionRecords()
        for user, entry in order:
            two.merge(NOW, user, entry)
        two.check_invariants()
        assert two.snapshot() == items
        assert not two.merge(NOW, "u", opened(5, 5))


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    records = store(opened(1, 1))
    records._told[A].xor = 0
    with pytest.raises(AssertionError, match="I4"):
        records.check_invariants()
    records = store(opened(1, 1))
    records._closed[opened(1, 1)[:8]] = NOW
    with pytest.raises(AssertionError, match="I1"):
        records.check_invariants()
    records = store(hidden(1, 1))
    for wrong in ({}, {"u": None}):
        records._hidden = dict(wrong)
        with pytest.raises(AssertionError, match="I5"):
            records.check_invariants()


# ---------------------------------------------------------------- sources


def test_a_life_keeps_its_number_and_another_gets_another():
    """Both ways."""
    sources = Sources()
    one, two = Life(NodeId("a"), Incarnation(1)), Life(NodeId("a"), Incarnation(2))
    assert sources.prefix(one) == sources.prefix(one) != sources.prefix(two)
    assert (sources.life(sources.prefix(one)), sources.life(sources.prefix(two))) == (one, two)


def test_a_number_that_was_given_free_is_used_again_last():
    """Over the end of the numbers; and there are 65,536."""
    sources = Sources()
    lives = [Life(NodeId("a"), Incarnation(number)) for number in range(1 << 16)]
    prefixes = [sources.prefix(life) for life in lives[:-1]]
    sources.forget(prefixes[7])
    last = sources.prefix(lives[-1])
    assert last not in prefixes
    assert sources.prefix(Life(NodeId("b"), Incarnation(1))) == prefixes[7]
    with pytest.raises(AssertionError, match="more lives"):
        sources.prefix(Life(NodeId("b"), Incarnation(2)))
    with pytest.raises(KeyError):
        Sources().life(last)


# ---------------------------------------------------------------- any order, against a dictionary

CONNS = st.tuples(st.sampled_from([A, B]), st.integers(1, 3))
ENTRIES = st.lists(st.tuples(CONNS, st.integers(1, 4)), unique=True, max_size=12)


def user_of(conn: int) -> str:
    """Return whose connection it is: several of one user, and one of another."""
    return "v" if conn == 3 else "u"


@given(data=st.data(), entries=ENTRIES, ends=st.sets(CONNS, max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_order_with_repeats_and_gaps_gives_the_open_entries_of_a_dictionary(
    data: st.DataObject, entries: list[tuple[tuple[bytes, int], int]], ends: set[tuple[bytes, int]]
):
    """I1, I2 and I4 after each step: what is open depends on the set of what was merged alone."""
    universe = [opened(conn, seq, source=source) for (source, conn), seq in entries]
    universe += [closed(conn, 9, source=source) for source, conn in sorted(ends)]
    records = PartitionRecords()
    merged: set[bytes] = set()
    for entry in data.draw(st.lists(st.sampled_from(universe), max_size=30)) if universe else []:
        is_news = records.merge(NOW, user_of(conn_of(entry)), entry)
        assert not (is_news and entry in merged)
        merged.add(entry)
        newest: dict[bytes, bytes] = {}
        for one in sorted(merged):
            newest[one[:8]] = one  # the tombstone has the greatest number
        expected = {one for one in newest.values() if kind_of(one) is Kind.OPEN}
        assert {one for _, one in records.entries()} == expected
        assert all(user == user_of(conn_of(one)) for user, one in records.entries())
        for source in (A, B):
            assert records.digest(source) == digest_of(one[2:] for one in expected if one[:2] == source)
        records.check_invariants()


class OneLifeTellsItAll(RuleBasedStateMachine):
    """An access node whose changes and full lists come late, twice, out of order or never, and its dumb twin.

    The newest list makes the store what the access node has; an end that was heard of in any form is never undone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records = PartitionRecords()
        self.seq = 0
        self.open: dict[int, bytes] = {}
        self.changes: list[bytes] = []
        self.lists: list[tuple[int, dict[int, bytes]]] = []
        self.ended: set[int] = set()
        self.floor = -1
        self.best: dict[int, bytes] = {}
        self.lost: set[int] = set()

    @rule()
    def opens(self) -> None:
        self.seq += 1
        self.open[self.seq] = opened(self.seq, self.seq)
        self.changes.append(self.open[self.seq])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def changes_one(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(sorted(self.open)))
        self.seq += 1
        self.open[conn] = opened(conn, self.seq)
        self.changes.append(self.open[conn])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def closes_one(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(sorted(self.open)))
        self.seq += 1
        del self.open[conn]
        self.changes.append(closed(conn, self.seq))

    @rule()
    def lists_all(self) -> None:
        self.lists.append((self.seq, dict(self.open)))

    @precondition(lambda self: self.changes)
    @rule(data=st.data())
    def a_change_comes(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.changes))
        self.twin_takes(entry)
        self.records.merge(NOW, user_of(conn_of(entry) % 4), entry)

    def twin_takes(self, entry: bytes) -> None:
        conn = conn_of(entry)
        if kind_of(entry) is Kind.CLOSED:
            self.ended.add(conn)
            self.best.pop(conn, None)
        elif conn not in self.ended and (conn in self.best or seq_of(entry) > self.floor):
            self.best[conn] = max(entry, self.best.get(conn, b""))

    @precondition(lambda self: self.lists)
    @rule(data=st.data())
    def a_list_comes(self, data: st.DataObject) -> None:
        last, listed = data.draw(st.sampled_from(self.lists))
        for entry in listed.values():
            self.twin_takes(entry)
        self.ended |= {conn for conn, entry in self.best.items() if conn not in listed and seq_of(entry) <= last}
        self.best = {conn: entry for conn, entry in self.best.items() if conn not in self.ended}
        self.floor = max(self.floor, last)
        items = [(user_of(conn % 4), entry) for conn, entry in sorted(listed.items())]
        self.records.replace(NOW, A, Full(last, items, AT))

    @rule()
    def the_newest_list_comes(self) -> None:
        self.records.replace(NOW, A, Full(self.seq, [(user_of(conn % 4), one) for conn, one in self.open.items()], AT))
        self.ended |= set(range(1, self.seq + 1)) - set(self.open)
        self.floor, self.best = self.seq, dict(self.open)

    @rule()
    def moves(self) -> None:
        """A copy is as good as the original."""
        copy = PartitionRecords()
        for user, entry in self.records.snapshot():
            copy.merge(NOW, user, entry)
        self.records = copy

    @invariant()
    def the_store_has_what_the_twin_has(self) -> None:
        self.records.check_invariants()
        assert {conn_of(entry): entry for _, entry in self.records.entries()} == self.best
        assert self.records.digest(A) == digest_of(entry[2:] for entry in self.best.values())


TestOneLifeTellsItAll = OneLifeTellsItAll.TestCase
TestOneLifeTellsItAll.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
