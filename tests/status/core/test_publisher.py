"""The publisher of an access node: examples by invariant."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from base.clock import Instant, Timestamp
from base.errors import Overloaded
from base.ids import Epoch, Incarnation, NodeId
from status.api import (
    Audit,
    Beat,
    BeatReply,
    Closed,
    Opened,
    SessionView,
    Stamp,
    pack_partitions,
    unpack_partitions,
)
from status.core import partitions
from status.core.partitions import Advance, Begin, Change, Members, PartitionTable, Stage, Take, diff, partition_of
from status.core.publisher import (
    AUDIT_PARTITIONS,
    AUDITS_PER_BEAT,
    BEAT_MS,
    BYTES_PER_BEAT,
    ENTRIES_PER_BEAT,
    LISTED_BYTES_MAX,
    PENDING_MAX,
    RETRY_MS,
    ROOM_AFTER_MS,
    SPREAD_MS,
    Answered,
    Publisher,
)
from status.core.records import Kind, digest_of, kind_of
from status.core.visibility import Audience

A, B = NodeId("a"), NodeId("b")
GATE, LIFE = NodeId("gate"), Incarnation(4)
NOW = Instant(10_000)
TABLE = PartitionTable(Epoch(1), (A, B), (1, 1), (0, 1, 0, 1))
STAMP = Stamp(Incarnation(9), Instant(5), Instant(3))


def user_in(partition: int, *, of: int = 4) -> str:
    return next(user for user in (f"u{number}" for number in range(10_000)) if partition_of(user) % of == partition)


def opened(session: str, conn_seq: int = 1, *, partition: int = 0, user: str = "") -> Opened:
    return Opened(user or user_in(partition), session, conn_seq, "phone", "ios", "online", Timestamp(7), Timestamp(8))


def closed(session: str, conn_seq: int = 1, *, partition: int = 0, user: str = "") -> Closed:
    return Closed(user or user_in(partition), session, conn_seq)


def new_publisher(table: PartitionTable | None = TABLE) -> Publisher:
    publisher = Publisher(GATE, LIFE, Random(1), partitions=len((table or TABLE).owners))
    if table is not None:
        assert publisher.adopt(NOW, table)
    return publisher


def beat_to(publisher: Publisher, node: NodeId = A, now: Instant = NOW) -> Beat:
    """Return the beat that is due for a node."""
    beats = dict(publisher.beats(now))
    for other, beat in beats.items():
        if other != node:
            publisher.failed(now, other, beat)
    publisher.check_invariants()
    return beats[node]


def reply(
    *,
    refused: tuple[int, ...] = (),
    mismatched: tuple[int, ...] = (),
    table: PartitionTable | None = None,
    stamp: Stamp = STAMP,
    is_heard: bool = True,
) -> BeatReply:
    change = diff(TABLE, table) if table is not None else None
    packed_refused, packed_mismatched = pack_partitions(refused), pack_partitions(mismatched)
    return BeatReply(is_heard, stamp, TABLE.epoch, 2_000, packed_refused, packed_mismatched, change)


def told(beat: Beat) -> list[tuple[int, Kind, str]]:
    """Return partition, kind and session (empty for a close) of what a beat tells."""
    found = []
    for partition, entry in zip(unpack_partitions(beat.partitions), beat.entries, strict=True):
        kind = kind_of(bytes(2) + entry)
        found.append(
            (partition, kind, msgspec.msgpack.decode(entry[13:], type=SessionView).session if kind == 1 else "")
        )
    return found


def settled(*sessions: Opened) -> Publisher:
    """Return a publisher whose sessions were told to node a, which answered with its stamp."""
    publisher = new_publisher()
    for one in sessions:
        publisher.open(one)
    publisher.answered(NOW, A, beat_to(publisher), reply())
    publisher.answered(NOW, A, beat_to(publisher), reply())
    return publisher


# ---------------------------------------------------------------- the first beats


def test_before_the_first_table_there_is_nobody_to_tell():
    """What is open by then is told with it, and of what ended nobody hears."""
    publisher = new_publisher(None)
    publisher.open(opened("s"))
    publisher.open(opened("t", partition=1))
    publisher.close(closed("t", partition=1), Timestamp(1))
    assert publisher.beats(NOW) == []
    assert publisher.next_deadline() is None
    assert publisher.relies_on(A) == frozenset()
    publisher.adopt(NOW, TABLE)
    publisher.check_invariants()
    beats = dict(publisher.beats(NOW))
    assert (told(beats[A]), told(beats[B])) == ([(0, Kind.OPEN, "s")], [])
    publisher.failed(NOW, A, beats[A])
    publisher.adopt(NOW, TABLE.with_changes([Take(0, B)]))
    assert publisher.statistics()["b"]["pending"] == 1


def test_the_first_beat_tells_all_and_says_so():
    """Up to which number it is all, and the digests; nothing is echoed before that was answered."""
    publisher = new_publisher()
    publisher.open(opened("s"))
    publisher.open(opened("t", partition=2))
    beat = beat_to(publisher)
    assert (beat.incarnation, beat.epoch, beat.echo, beat.floor) == (LIFE, TABLE.epoch, Stamp(), 2)
    assert beat.users == [user_in(0), user_in(2)]
    assert set(unpack_partitions(beat.floors)) == {0, 2}
    everything = publisher.sessions(0) + publisher.sessions(2)
    assert beat.entries == everything
    assert beat.audits == (Audit(pack_partitions([0, 2]), *digest_of(everything)),)


def test_the_digest_of_all_sessions_follows_each_change():
    """I4, over all partitions."""
    publisher = settled(opened("s"), opened("t", partition=1))
    publisher.open(opened("s", 2))
    publisher.open(opened("w", partition=2))
    publisher.close(closed("t", partition=1), Timestamp(1))
    assert publisher.digest() == digest_of(publisher.sessions(0) + publisher.sessions(2))
    assert publisher.digest().entries == 2


def test_the_stamp_is_echoed_as_soon_as_all_was_told():
    """At once then, since nothing is vouched for before."""
    publisher = new_publisher()
    answered = publisher.answered(NOW, A, beat_to(publisher), reply())
    assert answered.until == NOW + 1_800
    beat = beat_to(publisher)
    assert (beat.echo, beat.floors) == (STAMP, b"")
    publisher.answered(NOW, A, beat, reply())
    due = publisher.next_deadline()
    assert due is not None
    publisher.answered(NOW, B, beat_to(publisher, B, Instant(NOW + RETRY_MS)), reply())
    assert not [node for node, _ in publisher.beats(Instant(NOW + BEAT_MS - SPREAD_MS - 1)) if node == A]
    assert [node for node, _ in publisher.beats(Instant(NOW + BEAT_MS + SPREAD_MS)) if node == A]


def test_a_status_node_that_does_not_know_this_life_is_told_all_again():
    """A new life of it, or one that had given us up: what was told before this beat is not known there."""
    for stamp in (Stamp(Incarnation(10), Instant(6), Instant(6)), Stamp(STAMP.incarnation, Instant(6), Instant(6))):
        publisher = settled(opened("s"))
        publisher.open(opened("t"))
        beat = beat_to(publisher)
        assert told(beat) == [(0, Kind.OPEN, "t")]
        assert publisher.answered(NOW, A, beat, reply(stamp=stamp)).opened == ()
        assert publisher.relies_on(A) == frozenset()
        beat = beat_to(publisher)
        assert (beat.echo, told(beat)) == (Stamp(), [(0, Kind.OPEN, "s"), (0, Kind.OPEN, "t")])
        publisher.answered(NOW, A, beat, reply(stamp=stamp))
        beat = beat_to(publisher)
        assert beat.echo == stamp
        assert set(publisher.answered(NOW, A, beat, reply(stamp=stamp)).opened) == {"s", "t"}


def test_very_much_is_told_in_several_beats():
    """A partition is told whole; nothing is echoed before the last one."""
    publisher = new_publisher()
    for number in range(ENTRIES_PER_BEAT + 1):
        publisher.open(opened(f"s{number}", user=user_in(0)))
    publisher.open(opened("t", partition=2))
    first = beat_to(publisher)
    assert (len(first.entries), list(unpack_partitions(first.floors))) == (ENTRIES_PER_BEAT + 1, [0])
    publisher.answered(NOW, A, first, reply())
    assert publisher.relies_on(A) == {0}
    second = beat_to(publisher)
    assert (second.echo, list(unpack_partitions(second.floors))) == (Stamp(), [2])
    publisher.answered(NOW, A, second, reply())
    assert publisher.relies_on(A) == {0, 2}
    third = beat_to(publisher)
    assert third.echo == STAMP
    assert len(publisher.answered(NOW, A, third, reply()).opened) == ENTRIES_PER_BEAT + 2


def test_a_session_is_confirmed_with_a_beat_that_vouches_for_it():
    """Taken in is not shown yet; and by then its newest change may be another, or it may be over."""
    publisher = new_publisher()
    for name in ("s", "t", "w"):
        publisher.open(opened(name))
    assert publisher.answered(NOW, A, beat_to(publisher), reply()).opened == ()
    publisher.close(closed("s"), Timestamp(1))
    beat = beat_to(publisher)
    publisher.open(opened("t", 2))
    answered = publisher.answered(NOW, A, beat, reply())
    assert (answered.opened, answered.closed) == (("w",), ("s",))
    assert publisher.answered(NOW, A, beat_to(publisher), reply()).opened == ("t",)


def test_what_was_taken_in_and_moved_on_is_confirmed_by_the_new_owner():
    """The former one vouches for it no more, and may even be gone."""
    publisher = new_publisher()
    publisher.open(opened("s"))
    publisher.open(opened("t"))
    publisher.answered(NOW, B, beat_to(publisher, B), reply())
    publisher.answered(NOW, A, beat_to(publisher, A, Instant(NOW + RETRY_MS)), reply())
    publisher.open(opened("t", 2))
    publisher.adopt(NOW, TABLE.with_changes([Take(0, B), Take(2, B)]).with_changes([Members(((B, 1),))]))
    beat = beat_to(publisher, B)
    assert told(beat) == [(0, Kind.OPEN, "t"), (0, Kind.OPEN, "s")]
    assert publisher.answered(NOW, B, beat, reply()).opened == ("t", "s")


# ---------------------------------------------------------------- changes


def test_changes_go_at_once_and_together():
    """The order of the sessions is that of their first change."""
    publisher = settled(opened("s"))
    publisher.open(opened("t"))
    publisher.open(opened("w", partition=2))
    publisher.close(closed("s"), Timestamp(50))
    beat = beat_to(publisher)
    assert told(beat) == [(0, Kind.OPEN, "t"), (2, Kind.OPEN, "w"), (0, Kind.CLOSED, "")]
    assert msgspec.msgpack.decode(beat.entries[2][13:]) == 50
    assert publisher.answered(NOW, A, beat, reply()) == Answered(("t", "w"), ("s",), None, Instant(NOW + 1_800))


def test_one_beat_is_in_flight_to_a_node():
    """I1: what happens meanwhile waits, and only the newest of a session is told."""
    publisher = settled(opened("s"))
    publisher.open(opened("s", 2))
    beat = beat_to(publisher)
    publisher.open(opened("s", 3))
    publisher.open(opened("s", 4))
    assert A not in dict(publisher.beats(Instant(NOW + 5 * BEAT_MS)))
    assert publisher.relies_on(A) == frozenset({2})
    assert publisher.answered(NOW, A, beat, reply()).opened == ()
    after = beat_to(publisher)
    assert after.entries == publisher.sessions(0)
    assert publisher.answered(NOW, A, after, reply()).opened == ("s",)


def test_an_older_connection_of_a_session_changes_nothing():
    """Its messages came late."""
    publisher = settled(opened("s", 5))
    before = publisher.sessions(0)
    publisher.open(opened("s", 4))
    publisher.close(closed("s", 4), Timestamp(1))
    publisher.close(closed("nobody"), Timestamp(1))
    assert publisher.sessions(0) == before
    assert publisher.statistics() == {
        "a": {"pending": 0, "full": 0, "partitions": 2},
        "b": {"pending": 0, "full": 2, "partitions": 2},
    }


def test_a_session_that_comes_back_while_its_end_is_told_again_is_told_as_well():
    """I2: a closed session and a new one of the same name are two, whatever becomes of the beat."""
    for is_refused in (False, True):
        publisher = settled(opened("s"))
        publisher.close(closed("s"), Timestamp(1))
        beat = beat_to(publisher)
        publisher.open(opened("s", 2))
        if is_refused:
            publisher.answered(NOW, A, beat, reply(refused=(0,)))
        else:
            publisher.failed(NOW, A, beat)
        after = beat_to(publisher, now=Instant(NOW + RETRY_MS))
        assert sorted(told(after)) == [(0, Kind.OPEN, "s"), (0, Kind.CLOSED, "")]
        answered = publisher.answered(NOW, A, after, reply())
        assert (answered.opened, answered.closed) == (("s",), ("s",))


def test_a_session_that_ends_before_it_was_told_is_told_as_ended():
    """Once: an earlier beat may have carried its opening."""
    publisher = settled()
    publisher.open(opened("s"))
    publisher.close(closed("s"), Timestamp(1))
    publisher.check_invariants()
    assert told(beat_to(publisher)) == [(0, Kind.CLOSED, "")]


def test_more_changes_than_fit_go_with_the_next_beat():
    """And audits wait for them, since the digests count them."""
    publisher = settled()
    for number in range(ENTRIES_PER_BEAT + 1):
        publisher.open(opened(f"s{number}", user=user_in(0)))
    beat = beat_to(publisher)
    assert (len(beat.entries), beat.audits) == (ENTRIES_PER_BEAT, ())
    publisher.answered(NOW, A, beat, reply())
    beat = beat_to(publisher, now=Instant(NOW + BEAT_MS))
    assert (len(beat.entries), len(beat.audits)) == (1, 1)


def test_beats_are_bounded_by_bytes_too():
    """An audience may make an entry long, and a beat that is too large would be refused for ever."""
    publisher = settled()
    audience = Audience("listed", tuple(f"{number:0128d}" for number in range(100)))
    for number in range(200):
        publisher.open(msgspec.structs.replace(opened(f"s{number}", user=user_in(0)), audience=audience))
    sizes = []
    for _ in range(3):
        beat = beat_to(publisher)
        sizes.append(len(beat.entries))
        assert sum(map(len, beat.entries)) < BYTES_PER_BEAT + 20_000
        publisher.answered(NOW, A, beat, reply())
    assert (sum(sizes), sizes[2]) == (200, 200 - 2 * sizes[0])
    publisher.answered(NOW, A, beat_to(publisher, now=Instant(NOW + 2 * BEAT_MS)), reply(mismatched=(0, 2)))
    publisher.open(opened("t", user=user_in(2)))
    full = beat_to(publisher)
    assert unpack_partitions(full.floors).tolist() == [0], "a partition is told whole, and nothing beside so much"
    assert len(full.entries) == 200


def test_no_audience_makes_a_partition_longer_than_a_message_may_be():
    """It is told whole, so one that does not fit could never be told again. Who lists nobody always has room."""
    publisher = settled()
    longest = Audience("listed", tuple(f"{number:0128d}" for number in range(125)))
    crowd = [msgspec.structs.replace(opened(f"s{number}", user=user_in(0)), audience=longest) for number in range(260)]
    fit = LISTED_BYTES_MAX // len(_entry_of(crowd[100]))
    for one in crowd[:fit]:
        publisher.open(one)
    entries = publisher.sessions(0)
    with pytest.raises(Overloaded) as refused:
        publisher.open(crowd[fit])
    assert publisher.sessions(0) == entries
    assert refused.value.detail == {"what": "partition_bytes", "retry_after_ms": ROOM_AFTER_MS}
    assert sum(map(len, entries)) <= LISTED_BYTES_MAX
    publisher.check_invariants()
    publisher.open(msgspec.structs.replace(crowd[0], state="away"))  # in the place of what it listed before
    publisher.open(opened("t", user=user_in(0)))
    publisher.open(msgspec.structs.replace(opened("h", user=user_in(0)), audience=Audience("nobody")))
    with pytest.raises(Overloaded):
        publisher.open(msgspec.structs.replace(crowd[0], session="h"))
    assert len(publisher.sessions(0)) == fit + 2
    publisher.close(closed("s0"), Timestamp(99))
    publisher.open(crowd[fit])


def _entry_of(one: Opened) -> bytes:
    publisher = new_publisher()
    publisher.open(one)
    (entry,) = publisher.sessions(0)
    return entry


def test_a_full_beat_takes_no_changes():
    """They wait for the next one."""
    publisher = settled()
    for number in range(ENTRIES_PER_BEAT):
        publisher.open(opened(f"s{number}", user=user_in(0)))
    publisher.answered(NOW, A, beat_to(publisher), reply(mismatched=(0,)))
    publisher.open(opened("t", user=user_in(2)))
    beat = beat_to(publisher)
    assert (len(beat.entries), unpack_partitions(beat.floors).tolist()) == (ENTRIES_PER_BEAT, [0])


def test_what_waits_for_an_owner_that_is_away_is_bounded():
    """Beyond that its partitions are told in full, which says the same of sessions that ended."""
    publisher = settled()
    for number in range(PENDING_MAX // 2 + 1):
        publisher.open(opened(f"s{number}", user=user_in(0)))
    publisher.failed(NOW, A, beat_to(publisher))
    assert publisher.statistics()[A]["pending"] == PENDING_MAX // 2 + 1
    for number in range(PENDING_MAX // 2 + 1):
        publisher.close(closed(f"s{number}", user=user_in(0)), Timestamp(1))
        publisher.open(opened(f"t{number}", user=user_in(0)))
    publisher.failed(NOW, A, beat_to(publisher, now=Instant(NOW + RETRY_MS)))
    assert publisher.statistics()[A]["pending"] == 0
    publisher.check_invariants()
    beat = beat_to(publisher, now=Instant(NOW + 2 * RETRY_MS))
    assert unpack_partitions(beat.floors).tolist() == [0]
    assert len(beat.entries) == PENDING_MAX // 2 + 1


# ---------------------------------------------------------------- answers that are no confirmation


def test_what_was_not_answered_is_told_again_soon():
    """I2: the changes, the full lists and the audits."""
    publisher = new_publisher()
    publisher.open(opened("s"))
    beat = beat_to(publisher)
    publisher.failed(NOW, A, beat)
    publisher.failed(NOW, A, beat)
    assert publisher.next_deadline() == NOW + RETRY_MS
    assert publisher.beats(Instant(NOW + RETRY_MS - 1)) == []
    again = beat_to(publisher, now=Instant(NOW + RETRY_MS))
    assert (again.floors, again.entries) == (beat.floors, beat.entries)
    assert again.audits[0] == beat.audits[0]
    publisher = settled(opened("s"))
    publisher.open(opened("s", 2))
    publisher.open(opened("t"))
    beat = beat_to(publisher, now=Instant(NOW + BEAT_MS))
    publisher.open(opened("t", 2))
    publisher.failed(NOW, A, beat)
    assert publisher.relies_on(A) == frozenset()
    again = beat_to(publisher, now=Instant(NOW + RETRY_MS))
    assert sorted(again.entries) == sorted(publisher.sessions(0))


def test_a_beat_that_was_not_heard_is_as_good_as_lost():
    """But the newer table that came with the answer is taken."""
    publisher = settled()
    publisher.open(opened("s"))
    newer = TABLE.with_changes([Begin(1, A)])
    answered = publisher.answered(NOW, A, beat_to(publisher), reply(is_heard=False, table=newer))
    assert answered == Answered(table=newer)
    assert publisher.statistics()["a"]["pending"] == 1


def test_late_answers_say_nothing():
    """To another beat than the one in flight, or of a node that has left."""
    publisher = settled()
    old = beat_to(publisher, now=Instant(NOW + 2 * BEAT_MS))
    publisher.failed(NOW, A, old)
    assert publisher.answered(NOW, A, old, reply()) == Answered()
    new = beat_to(publisher, now=Instant(NOW + 2 * BEAT_MS))
    assert publisher.answered(NOW, A, old, reply()) == Answered()
    assert publisher.answered(NOW, NodeId("gone"), new, reply()) == Answered()
    publisher.failed(NOW, NodeId("gone"), new)
    assert publisher.answered(NOW, A, new, reply()).until == NOW + 2 * BEAT_MS + 1_800


def test_refused_partitions_are_told_again_soon():
    """In full if they were told so; of the others the answer is a confirmation."""
    publisher = new_publisher()
    publisher.open(opened("s"))
    publisher.open(opened("t", partition=2))
    publisher.answered(NOW, A, beat_to(publisher), reply(refused=(0,)))
    assert publisher.relies_on(A) == {2}
    assert A not in dict(publisher.beats(NOW))
    beat = beat_to(publisher, now=Instant(NOW + RETRY_MS))
    assert (list(unpack_partitions(beat.floors)), told(beat)) == ([0], [(0, Kind.OPEN, "s")])
    assert publisher.answered(NOW, A, beat, reply(refused=(0,))).opened == ("t",)


def test_a_refused_change_waits_for_the_newer_table_not_for_the_clock():
    """It goes to the new owner at once."""
    publisher = settled(opened("s"))
    publisher.answered(NOW, B, beat_to(publisher, B, Instant(NOW + RETRY_MS)), reply())
    publisher.open(opened("s", 2))
    newer = TABLE.with_changes([Take(0, B)])
    answered = publisher.answered(NOW, A, beat_to(publisher), reply(refused=(0,), table=newer))
    assert (answered.opened, answered.table) == ((), newer)
    publisher.adopt(NOW, newer)
    assert (0, Kind.OPEN, "s") in told(beat_to(publisher, B))


def test_of_mismatched_partitions_everything_is_told():
    """And they are not relied on before."""
    publisher = settled(opened("s"), opened("t"), opened("w", partition=2))
    beat = beat_to(publisher, now=Instant(NOW + 2 * BEAT_MS))
    publisher.answered(NOW, A, beat, reply(mismatched=(0, 1)))
    assert publisher.relies_on(A) == {2}
    beat = beat_to(publisher)
    assert publisher.relies_on(A) == frozenset()
    assert (beat.echo, list(unpack_partitions(beat.floors)), len(beat.entries)) == (STAMP, [0], 2)
    assert publisher.answered(NOW, A, beat, reply()).opened == ("s", "t")
    assert publisher.relies_on(A) == {0, 2}


def test_a_full_list_confirms_what_it_says_and_no_more():
    """Not what changed since; and an end that it implies is confirmed too."""
    publisher = settled(opened("s"), opened("t"), opened("w"))
    publisher.close(closed("s"), Timestamp(1))
    publisher.answered(NOW, A, beat_to(publisher), reply(mismatched=(0,)))
    publisher.close(closed("t"), Timestamp(1))
    beat = beat_to(publisher)
    assert told(beat) == [(0, Kind.OPEN, "w")]
    publisher.open(opened("w", 2))
    publisher.open(opened("x"))
    answered = publisher.answered(NOW, A, beat, reply())
    assert (answered.opened, answered.closed) == ((), ("t",))


# ---------------------------------------------------------------- tables


def test_older_tables_are_not_adopted():
    """An access node never goes back."""
    publisher = new_publisher()
    assert not publisher.adopt(NOW, TABLE)


def test_changes_follow_their_partition():
    """I2: waiting ones, and those in flight to a node that leaves."""
    publisher = settled(opened("s"))
    publisher.answered(NOW, B, beat_to(publisher, B, Instant(NOW + RETRY_MS)), reply())
    publisher.open(opened("s", 2))
    beat = beat_to(publisher)
    publisher.open(opened("t"))
    publisher.close(closed("t"), Timestamp(1))
    everything = TABLE.with_changes([Take(0, B), Take(2, B)]).with_changes([Members(((B, 1),))])
    publisher.adopt(NOW, everything)
    publisher.check_invariants()
    assert publisher.answered(NOW, A, beat, reply()) == Answered()
    assert sorted(publisher.statistics()) == ["b"]
    assert {"s", ""} <= {session for _, _, session in told(beat_to(publisher, B))}


def test_partitions_that_came_to_an_owner_are_audited_before_they_are_relied_on():
    """I3: also those that went away and came back, in between which it may have lost them."""
    publisher = settled(opened("s"))
    publisher.answered(NOW, B, beat_to(publisher, B, Instant(NOW + RETRY_MS)), reply())
    assert publisher.relies_on(B) == {1, 3}
    publisher.adopt(NOW, TABLE.with_changes([Take(0, B)]).with_changes([Take(1, A)]).with_changes([Take(1, B)]))
    assert publisher.relies_on(B) == {3}
    beat = beat_to(publisher, B, Instant(NOW + RETRY_MS + BEAT_MS))
    assert (unpack_partitions(beat.audits[0].partitions).tolist(), beat.audits[0].entries) == ([0, 1], 1)
    publisher.failed(NOW, B, beat)
    assert publisher.relies_on(B) == frozenset()
    beat = beat_to(publisher, B, Instant(NOW + RETRY_MS))
    publisher.answered(NOW, B, beat, reply())
    assert publisher.relies_on(B) == {1, 3}  # 0 waits for its barrier
    # What this node knew of owners may never have been, in a table that was put back.
    publisher.adopt(NOW, partitions.restored(TABLE, Epoch(9), is_refilled=False))
    assert publisher.relies_on(B) == frozenset()


def test_the_last_moments_of_a_move_are_not_relied_on():
    """I3: nobody takes changes then."""
    publisher = settled(opened("s"))
    moves: list[Change] = [Begin(0, B), Advance(0, Stage.COPY), Advance(0, Stage.CATCHUP)]
    moving = TABLE
    for change in moves:
        moving = moving.with_changes([change])
    publisher.adopt(NOW, moving)
    assert publisher.relies_on(A) == {0, 2}
    publisher.adopt(NOW, moving.with_changes([Advance(0, Stage.SEAL)]))
    assert publisher.relies_on(A) == {2}


def test_audits_take_turns():
    """So many partitions a beat; those that came are audited at once, as many as fit."""
    count = AUDIT_PARTITIONS * (AUDITS_PER_BEAT + 1)
    table = PartitionTable(Epoch(1), (A, B), (1, 1), (0,) * (AUDIT_PARTITIONS + 1) + (1,) * count)
    publisher = new_publisher(table)
    publisher.answered(NOW, A, beat_to(publisher), reply())
    asked = []
    for turn in range(2, 5):
        beat = beat_to(publisher, now=Instant(NOW + turn * BEAT_MS))
        asked.append([unpack_partitions(audit.partitions).tolist() for audit in beat.audits])
        publisher.answered(NOW, A, beat, reply())
    first = list(range(AUDIT_PARTITIONS))
    assert asked == [[[AUDIT_PARTITIONS]], [first], [[AUDIT_PARTITIONS]]]
    came = [Take(partition, A) for partition in range(AUDIT_PARTITIONS + 1, count)]
    publisher.adopt(NOW, table.with_changes(came))
    assert len(beat_to(publisher, now=Instant(NOW + 5 * BEAT_MS)).audits) == AUDITS_PER_BEAT + 1


def test_what_must_be_told_in_full_is_not_audited_before():
    """It would be told that it differs."""
    publisher = new_publisher()
    for number in range(ENTRIES_PER_BEAT):
        publisher.open(opened(f"s{number}", user=user_in(0)))
    beat = beat_to(publisher)
    assert list(unpack_partitions(beat.audits[0].partitions)) == [0]
    publisher.adopt(NOW, TABLE.with_changes([Begin(1, A)]))
    publisher.answered(NOW, A, beat, reply(mismatched=(0, 2)))
    assert beat_to(publisher, now=Instant(NOW + BEAT_MS)).audits[0].entries == ENTRIES_PER_BEAT
    assert publisher.answered(NOW, A, beat, reply()) == Answered()


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    publisher = settled(opened("s"))
    publisher._digests[0] = (0, 0)
    with pytest.raises(AssertionError, match="I4"):
        publisher.check_invariants()
    publisher = settled()
    publisher._links[A].full.add(1)
    with pytest.raises(AssertionError, match="I2"):
        publisher.check_invariants()
