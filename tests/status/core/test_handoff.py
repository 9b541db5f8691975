"""One partition on its way: chunks lost, doubled and late, seals, other lives, and parked requests."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from base.peer.wire import ENVELOPE_BYTES_MAX
from status.core.handoff import (
    ANSWER_MS,
    CHANGES_MAX,
    CHUNK_BYTES,
    CHUNK_ITEMS,
    LAG_MAX,
    PARK_MS,
    PARKED_MAX,
    PULL_BYTES,
    PULL_ITEMS,
    Chunk,
    Incoming,
    Outgoing,
    Parking,
    Pull,
    Vouch,
    answered,
)
from status.core.records import Digest, Full, Kind, Life, PartitionRecords, Sources, packed

NOW = Instant(1_000)
LIFE = Incarnation(1)
MOVE = Epoch(7)
GATE, OTHER = Life(NodeId("gate"), Incarnation(1)), Life(NodeId("other"), Incarnation(1))
VOUCH = Vouch(GATE.node, GATE.incarnation, 1_000)


def entry(conn: int, *, seq: int = 0, is_open: bool = True) -> bytes:
    """An entry without its source; by default a connection's first."""
    return packed(conn, seq or conn, Kind.OPEN if is_open else Kind.CLOSED, b"session" if is_open else b"")


def sources(*, after: int = 0) -> Sources:
    """The numbers of a process that knew so many other lives before."""
    made = Sources()
    for number in range(after):
        made.prefix(Life(NodeId("old"), Incarnation(number)))
    return made


def open_in(records: PartitionRecords, numbers: Sources) -> set[tuple[str, Life, bytes]]:
    """What is open, in a form that two processes can compare."""
    return {(user, numbers.life(one[:2]), one[2:]) for user, one in records.entries()}


class Pair:
    """A source with so many connections, and its target: two processes that number lives each in its own way."""

    def __init__(self, count: int, *, after: int = 3) -> None:
        self.here, self.there = sources(), sources(after=after)
        self.records = PartitionRecords()
        for conn in range(1, count + 1):
            self.records.merge(NOW, "u", self.here.prefix(GATE) + entry(conn))
        self.source = Outgoing(3, MOVE, LIFE, self.records, self.here)
        self.target = self.new_target()

    def new_target(self, incarnation: int = 1) -> Incoming:
        return Incoming(3, MOVE, Incarnation(incarnation), self.there)

    def change(self, one: bytes, *, user: str = "u", life: Life = GATE) -> None:
        one = self.here.prefix(life) + one
        if self.records.merge(NOW, user, one):
            self.source.changed(user, one)

    def answer(self, *vouches: Vouch, gone: frozenset[Life] = frozenset()) -> Chunk:
        """Ask, and carry the answer over the wire."""
        chunk = self.source.pulled(self.target.pull(NOW), vouches, gone)
        assert chunk is not None
        return msgspec.msgpack.decode(msgspec.msgpack.encode(chunk), type=Chunk)

    def round(self, *vouches: Vouch) -> Chunk:
        chunk = self.answer(*vouches)
        self.target.received(NOW, chunk)
        self.check()
        return chunk

    def check(self) -> None:
        self.source.check_invariants()
        self.target.check_invariants()

    def is_equal(self) -> bool:
        assert self.target.records.statistics() == self.records.statistics()
        return open_in(self.target.records, self.there) == open_in(self.records, self.here)


# ---------------------------------------------------------------- the stream


def test_a_snapshot_comes_in_chunks_and_changes_follow():
    """I1: far away, then within reach, then equal; a change of after the start comes in its place."""
    pair = Pair(2 * CHUNK_ITEMS)
    pair.change(entry(5_000))
    pair.round()
    assert (pair.target.is_copied, pair.target.is_caught_up, pair.source.lag) == (False, False, 2 * CHUNK_ITEMS + 1)
    pair.change(entry(5_001))
    pair.round()
    assert (pair.target.is_copied, pair.target.is_caught_up) == (True, False)
    pair.round()
    assert (pair.target.is_copied, pair.target.is_caught_up, pair.target.is_ready) == (True, True, False)
    assert pair.is_equal()
    pair.round()
    assert pair.source.lag == 0


def test_what_no_reader_sees_is_copied_too():
    """Tombstones, floors and when somebody was last seen: they keep out at the target what is late there."""
    pair = Pair(3)
    pair.change(entry(1, seq=4, is_open=False))
    pair.records.merge(NOW, "w", bytes(2) + packed(0, 0, Kind.SEEN, msgspec.msgpack.encode(70)))
    pair.records.replace(NOW, pair.here.prefix(OTHER), Full(50, [], Timestamp(1)))
    pair.round()
    assert pair.is_equal()
    assert pair.target.records.users["w"] == 70
    own = pair.there.prefix
    assert not pair.target.records.merge(NOW, "u", own(GATE) + entry(1))
    assert not pair.target.records.merge(NOW, "u", own(OTHER) + entry(50))
    assert pair.target.records.merge(NOW, "u", own(OTHER) + entry(51))


def test_processes_that_number_alike_copy_as_well():
    """Then entries stay as they are."""
    pair = Pair(3, after=0)
    pair.round()
    assert pair.target.records.snapshot() == pair.records.snapshot()


def test_a_target_that_falls_far_behind_is_caught_up_no_more():
    """CATCHUP asks for a lag of 256 at most."""
    pair = Pair(1)
    pair.round()
    for extra in range(LAG_MAX + CHUNK_ITEMS):
        pair.change(entry(10 + extra))
    pair.round()
    assert pair.target.is_caught_up
    for extra in range(LAG_MAX + 1 + CHUNK_ITEMS):
        pair.change(entry(5_000 + extra))
    pair.round()
    assert not pair.target.is_caught_up


def test_a_change_before_the_first_pull_is_in_the_snapshot():
    """Nothing is kept for a target that does not ask."""
    pair = Pair(1)
    pair.change(entry(2))
    assert pair.source.lag == 0
    pair.round()
    assert pair.is_equal()


@pytest.mark.parametrize("lost", ["questions", "answers"])
def test_a_target_that_does_not_come_along_loses_the_stream(lost: str):
    """I7: whether its questions or its answers get lost; what is copied anew later is equal."""
    pair = Pair(3)
    pair.round()
    for change in range(CHANGES_MAX + 10):
        pair.change(entry(10 + change), user=f"u{change}")
        if lost == "answers" and change % 3_000 == 0:
            pair.answer()
        pair.source.check_invariants()
    assert pair.source.lag == 0
    pair.change(entry(9_000_000))
    assert pair.source.lag == 0, "nothing is kept until it asks"
    assert pair.round().stream == 2
    while not pair.target.is_caught_up:
        pair.round()
    assert pair.is_equal()


def test_a_stream_keeps_its_snapshot_and_as_many_changes_as_it_may():
    """I7: a large store is no reason to drop it."""
    pair = Pair(CHUNK_ITEMS + 10)
    pair.round()
    for change in range(CHANGES_MAX):
        pair.change(entry(10_000 + change), user=f"u{change}")
    assert pair.round().stream == 1


def test_a_sealed_source_answers_until_its_target_is_alone():
    """I8: for a while from its first word of the seal; the target counts longer, from the word that it needed."""
    pair = Pair(2)
    pair.round()
    pair.source.seal()
    assert pair.source.may_answer(Instant(NOW + 60_000)), "nobody was told"
    chunk = pair.answer()
    for told in (NOW, NOW + 50):
        pair.source.sealed_told(Instant(told))
    assert pair.source.may_answer(Instant(NOW + ANSWER_MS - 1))
    assert not pair.source.may_answer(Instant(NOW + ANSWER_MS))
    assert pair.target.alone_from == 0
    pair.target.received(Instant(NOW + 3), chunk)
    assert (pair.target.is_ready, pair.target.alone_from) == (True, NOW + 3 + 1 + ANSWER_MS * 11 // 10)


def test_a_source_that_ceased_answers_no_more():
    """I8: whatever the time is."""
    pair = Pair(1)
    pair.source.seal()
    pair.source.cease()
    assert not pair.source.may_answer(NOW)


def test_a_dropped_stream_can_be_sealed():
    """I2: the next one is of the sealed store, to its end."""
    pair = Pair(0)
    pair.round()
    for change in range(CHANGES_MAX + 1):
        pair.change(entry(10 + change), user=f"u{change}")
    pair.source.seal()
    while not pair.target.is_ready:
        assert pair.round().stream == 2
    assert pair.is_equal()


# ---------------------------------------------------------------- sizes


LARGE = 16 * 1024


def large_pair(partition: int = 3, count: int = CHUNK_ITEMS) -> Pair:
    """A source whose entries are as large as clients may make them."""
    pair = Pair(0)
    pair.source = Outgoing(partition, MOVE, LIFE, pair.records, pair.here)
    for conn in range(1, count + 1):
        one = packed(conn, conn, Kind.OPEN, b"x" * LARGE)
        pair.records.merge(NOW, f"u{conn}", pair.here.prefix(GATE) + one)
    return pair


def test_a_chunk_ends_where_it_is_long_enough():
    """I8: and the copy ends equal."""
    pair = large_pair()
    chunk = pair.round()
    assert len(chunk.users) == CHUNK_BYTES // LARGE
    assert CHUNK_BYTES < chunk.size() < len(msgspec.msgpack.encode(chunk)) < CHUNK_BYTES + 2 * LARGE
    while not pair.target.is_caught_up:
        pair.round()
    assert pair.is_equal()


def test_an_item_longer_than_a_chunk_goes_alone():
    """I8: else it could never be copied."""
    pair = Pair(0)
    for conn in (1, 2):
        one = packed(conn, conn, Kind.OPEN, b"x" * 2 * CHUNK_BYTES)
        pair.records.merge(NOW, "u", pair.here.prefix(GATE) + one)
    assert len(pair.round().users) == 1
    pair.round()
    assert pair.is_equal()


def pull_of(partition: int) -> Pull:
    return Pull(partition, MOVE, LIFE, 1, 0, 0)


def test_an_answer_to_many_pulls_fits_into_a_message():
    """I8: whatever the entries are like. What is left out comes with the next ones."""
    sources = {partition: large_pair(partition).source for partition in range(64)}
    chunks, is_cut = answered(
        [pull_of(partition) for partition in sources], lambda pull: sources[pull.partition].pulled(pull, ())
    )
    assert is_cut
    assert len(msgspec.msgpack.encode(chunks)) < 2 * PULL_BYTES < ENVELOPE_BYTES_MAX
    kept = [chunk for chunk in chunks if chunk is not None]
    assert len(chunks) == 64
    assert kept == chunks[: len(kept)]
    assert len(kept) == PULL_BYTES // CHUNK_BYTES


def test_an_answer_to_many_pulls_has_so_many_items():
    """I8: and is not cut for what nobody answers."""
    small = [Pair(CHUNK_ITEMS) for _ in range(PULL_ITEMS // CHUNK_ITEMS + 1)]
    sources = {index: pair.source for index, pair in enumerate(small)}

    def pulled(pull: Pull) -> Chunk | None:
        return sources[pull.partition].pulled(pull, ()) if pull.partition in sources else None

    chunks, is_cut = answered([pull_of(99), *(pull_of(index) for index in sources)], pulled)
    assert is_cut
    assert [chunk is None for chunk in chunks] == [True, *(False for _ in small[1:]), True]
    assert answered([pull_of(99)], pulled) == ([None], False)


# ---------------------------------------------------------------- seal and marks


def test_sealed_applied_and_equal_is_ready():
    """I2, and the access nodes' leases count from the pull, less drift (I6)."""
    pair = Pair(3)
    pair.round()
    pair.source.seal()
    chunk = pair.answer(VOUCH)
    pair.target.received(Instant(NOW + 500), chunk)
    assert pair.target.is_ready
    assert pair.target.vouches == {GATE.node: (GATE.incarnation, NOW + 900)}
    ready = pair.target.records.snapshot()
    pair.target.received(NOW, pair.answer())
    assert pair.target.records.snapshot() == ready
    assert pair.target.is_ready


def test_a_seal_with_items_on_their_way_is_not_ready():
    """I2: all of the stream first."""
    pair = Pair(CHUNK_ITEMS + 1)
    pair.source.seal()
    pair.round()
    assert not pair.target.is_ready
    pair.round()
    assert pair.target.is_ready


def test_vouches_say_nothing_before_the_seal():
    """The source's may still be renewed or refuted."""
    assert Pair(1).answer(VOUCH).vouches == ()


def test_a_sealed_store_takes_no_change():
    """I2: what nobody would forward."""
    pair = Pair(1)
    pair.source.seal()
    with pytest.raises(AssertionError, match="I2"):
        pair.source.changed("u", pair.here.prefix(GATE) + entry(9))


def test_unequal_digests_at_a_mark_begin_anew():
    """What was applied is not what was sent."""
    pair = Pair(3)
    pair.target.received(NOW, msgspec.structs.replace(pair.answer(), digest=Digest(3, 1)))
    assert pair.target.records.snapshot() == []
    assert not pair.target.is_caught_up
    assert pair.round().stream == 2
    assert pair.target.is_caught_up
    assert pair.is_equal()


def test_lives_that_are_gone_are_left_out_of_the_comparison():
    """Each side forgets them in its own time."""
    pair = Pair(3)
    pair.change(entry(9), life=OTHER)
    pair.round()
    pair.target.records.purge(pair.there.prefix(OTHER), Timestamp(1))
    pair.target.received(NOW, pair.answer(gone=frozenset({OTHER})))
    assert pair.target.is_caught_up
    pair.round()
    assert not pair.target.is_caught_up


# ---------------------------------------------------------------- what gets lost, doubled or late


def test_a_lost_answer_is_asked_for_again():
    """It costs time and nothing else."""
    pair = Pair(1)
    pair.answer()
    pair.round()
    assert pair.target.is_caught_up


def test_late_and_doubled_questions_are_not_answered():
    """An older one would say that less is applied than is."""
    pair = Pair(1)
    old = pair.target.pull(NOW)
    new = pair.target.pull(NOW)
    assert pair.source.pulled(new, ()) is not None
    assert pair.source.pulled(new, ()) is None
    assert pair.source.pulled(old, ()) is None
    assert pair.source.pulled(msgspec.structs.replace(new, number=9, move_id=Epoch(8)), ()) is None


def test_late_doubled_and_foreign_answers_are_not_applied():
    """I1 and I4: forgotten rounds, another move, an older life, a gap."""
    pair = Pair(2)
    late = pair.answer()
    for _ in range(16):
        pair.target.pull(NOW)
    pair.target.received(NOW, late)
    assert pair.target.records.snapshot() == []
    chunk = pair.answer()
    for wrong in (
        msgspec.structs.replace(chunk, move_id=Epoch(8)),
        msgspec.structs.replace(chunk, number=chunk.number - 1, stream=-1, source_incarnation=Incarnation(-1)),
        msgspec.structs.replace(chunk, number=chunk.number - 2, first=2),
    ):
        pair.target.received(NOW, wrong)
        assert pair.target.records.snapshot() == []
    pair.round()
    assert pair.is_equal()


def test_a_chunk_that_overlaps_is_applied_from_where_it_is_new():
    """I1: what was applied is not applied again."""
    pair = Pair(2)
    first, second = pair.answer(), pair.answer()
    pair.target.received(NOW, first)
    pair.change(entry(1, seq=9, is_open=False))
    pair.target.received(NOW, second)
    assert pair.target.is_caught_up
    pair.target.received(NOW, pair.answer())
    assert pair.is_equal()


def test_a_new_life_of_the_target_gets_a_new_stream():
    """I4: it begins empty."""
    pair = Pair(3)
    pair.round()
    pair.target = pair.new_target(2)
    assert pair.round().stream == 2
    assert pair.is_equal()


def test_a_new_life_of_the_source_is_copied_anew():
    """I4: staging of the older one is dropped, whatever is in it; also when its first answer is lost."""
    for losses in range(3):
        pair = Pair(3)
        pair.round()
        pair.records = PartitionRecords()
        for conn in range(6, 10):
            pair.records.merge(NOW, "u", pair.here.prefix(GATE) + entry(conn))
        pair.source = Outgoing(3, MOVE, Incarnation(2), pair.records, pair.here)
        for _ in range(losses):
            pair.answer()
        pair.round()
        pair.round()
        assert pair.target.is_caught_up
        assert pair.is_equal()


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    pair = Pair(1)
    pair.target.is_ready = True
    with pytest.raises(AssertionError, match="I2"):
        pair.target.check_invariants()


STEPS = st.lists(
    st.sampled_from(
        [
            "pull",
            "pull",
            "arrive",
            "arrive",
            "again",
            "late pull",
            "change",
            "close",
            "list",
            "target life",
            "source life",
        ]
    ),
    max_size=40,
)


class Channel:
    """What is on its way between a pair, and a source whose lives, changes and floors go on."""

    def __init__(self, data: st.DataObject) -> None:
        self.pair = Pair(4)
        self.data = data
        self.flying: list[Chunk] = []
        self.number = 10
        self.life = 1

    def pick(self) -> int:
        return self.data.draw(st.integers(0, len(self.flying) - 1))

    def step(self, kind: str) -> None:
        pair = self.pair
        self.number += 1
        life = self.data.draw(st.sampled_from([GATE, OTHER]))
        if kind == "pull":
            self.flying.append(pair.answer())
        elif kind == "late pull":
            late, new = pair.target.pull(NOW), pair.target.pull(NOW)
            chunk = pair.source.pulled(new, ())
            assert chunk is not None
            self.flying.append(chunk)
            assert pair.source.pulled(late, ()) is None
        elif kind in {"arrive", "again"} and self.flying:
            index = self.pick()
            pair.target.received(NOW, self.flying[index] if kind == "again" else self.flying.pop(index))
        elif kind == "change":
            pair.change(entry(self.number), user=self.data.draw(st.sampled_from("uv")), life=life)
        elif kind == "close":
            self.close()
        elif kind == "list":
            self.list_all(life)
        elif kind == "target life":
            pair.target = pair.new_target(self.number)
        elif kind == "source life":
            self.life += 1
            pair.source = Outgoing(3, MOVE, Incarnation(self.life), pair.records, pair.here)
        pair.check()

    def close(self) -> None:
        held = self.pair.records.entries()
        if held:
            user, one = self.data.draw(st.sampled_from(held))
            self.pair.change(
                one[2:8] + entry(0, seq=self.number, is_open=False)[6:], user=user, life=self.pair.here.life(one[:2])
            )

    def list_all(self, life: Life) -> None:
        """The access node tells all that it has: about half of it, and something new."""
        pair = self.pair
        prefix = pair.here.prefix(life)
        items = [*pair.records.entries(prefix)[::2], ("w", prefix + entry(self.number))]
        for user, one, _, _ in pair.records.replace(NOW, prefix, Full(self.number, items, Timestamp(5))):
            pair.source.changed(user, one)


@given(data=st.data(), kinds=STEPS)
@settings(max_examples=120, deadline=None)
def test_whatever_gets_lost_doubled_or_late_the_copy_ends_equal(data: st.DataObject, kinds: list[str]):
    """I1, I2 and I4, with changes between, and other lives of both."""
    channel = Channel(data)
    for kind in kinds:
        channel.step(kind)
    pair = channel.pair
    pair.source.seal()
    for chunk in channel.flying:
        pair.target.received(NOW, chunk)
        pair.check()
        assert not pair.target.is_ready  # none of them was sealed
    for _ in range(3):
        pair.round(VOUCH)
    assert pair.target.is_ready
    assert pair.target.vouches
    assert pair.is_equal()


# ---------------------------------------------------------------- parking


def test_a_parked_request_waits_a_quarter_of_a_second_at_most():
    """I5: then it is answered with RETRY."""
    parking: Parking[str] = Parking()
    assert parking.next_deadline() is None
    assert parking.park(NOW, "one")
    assert parking.park(Instant(NOW + 10), "two")
    assert parking.next_deadline() == NOW + PARK_MS
    assert parking.expire(Instant(NOW + PARK_MS)) == ["one"]
    assert parking.park(Instant(NOW + 10), "three")
    assert parking.release(lambda request: request == "three") == ["two"]
    assert parking.expire(Instant(NOW + 10 + PARK_MS - 1)) == []
    assert parking.expire(Instant(NOW + 10 + PARK_MS)) == ["three"]


def test_parking_is_bounded():
    """I5."""
    parking: Parking[int] = Parking()
    assert all(parking.park(NOW, number) for number in range(PARKED_MAX))
    assert not parking.park(NOW, -1)
