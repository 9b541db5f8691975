"""One partition on its way: chunks lost, doubled and late, seals, other lives, and parked requests."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.clock import Instant, Timestamp
from base.ids import Epoch, Incarnation, NodeId
from status.api import Opened
from status.core.handoff import CHUNK_ITEMS, LAG_MAX, PARK_MS, PARKED_MAX, Chunk, Incoming, Outgoing, Parking, Vouch
from status.core.records import Digest, PartitionRecords, Record

NOW = Instant(1_000)
LIFE = Incarnation(1)
MOVE = Epoch(7)


def record(seq: int, *, session: str | None = None, is_open: bool = True) -> Record:
    session = session or f"s{seq}"
    opened = Opened("u", session, seq, "d", "p", "online", Timestamp(0)) if is_open else None
    return Record("u", session, NodeId("a"), LIFE, seq, opened)


class Pair:
    """A source with so many records, and its target."""

    def __init__(self, count: int) -> None:
        self.records = PartitionRecords()
        for seq in range(1, count + 1):
            self.records.merge(NOW, record(seq))
        self.source = Outgoing(3, MOVE, LIFE, self.records)
        self.target = Incoming(3, MOVE, LIFE)

    def change(self, item: Record) -> None:
        if self.records.merge(NOW, item):
            self.source.changed(item)

    def answer(self, vouches: tuple[Vouch, ...] = ()) -> Chunk:
        chunk = self.source.pulled(self.target.pull(NOW), vouches)
        assert chunk is not None
        return chunk

    def round(self) -> Chunk:
        chunk = self.answer()
        self.target.received(NOW, chunk)
        self.source.check_invariants()
        self.target.check_invariants()
        return chunk

    def is_equal(self) -> bool:
        return self.target.records.snapshot() == self.records.snapshot()


def test_a_snapshot_comes_in_chunks_and_changes_follow():
    """I1: far away, then within reach, then equal; a change of after the start comes in its place."""
    pair = Pair(2 * CHUNK_ITEMS)
    pair.change(record(5_000))
    pair.round()
    assert (pair.target.is_copied, pair.target.is_caught_up, pair.source.lag) == (False, False, 2 * CHUNK_ITEMS + 1)
    pair.change(record(5_001))
    pair.round()
    assert (pair.target.is_copied, pair.target.is_caught_up) == (True, False)
    pair.round()
    assert (pair.target.is_copied, pair.target.is_caught_up, pair.target.is_ready) == (True, True, False)
    assert pair.is_equal()
    pair.round()
    assert pair.source.lag == 0


def test_a_target_that_falls_far_behind_is_caught_up_no_more():
    """CATCHUP asks for a lag of 256 at most."""
    pair = Pair(1)
    pair.round()
    for extra in range(LAG_MAX + CHUNK_ITEMS):
        pair.change(record(10 + extra))
    pair.round()
    assert pair.target.is_caught_up
    for extra in range(LAG_MAX + 1 + CHUNK_ITEMS):
        pair.change(record(5_000 + extra))
    pair.round()
    assert not pair.target.is_caught_up


def test_sealed_applied_and_equal_is_ready():
    """I2, and the access nodes' leases count from the pull, less drift (I6)."""
    pair = Pair(3)
    pair.round()
    pair.source.seal()
    pull = pair.target.pull(NOW)
    chunk = pair.source.pulled(pull, (Vouch(NodeId("a"), LIFE, 1_000),))
    assert chunk is not None
    pair.target.received(Instant(NOW + 500), chunk)
    assert pair.target.is_ready
    assert pair.target.vouches == {"a": (LIFE, NOW + 900)}
    ready = pair.target.records.snapshot()
    pair.target.received(NOW, pair.answer())
    assert pair.target.records.snapshot() == ready


def test_vouches_say_nothing_before_the_seal():
    """The source's may still be renewed or refuted."""
    assert Pair(1).answer((Vouch(NodeId("a"), LIFE, 1_000),)).vouches == ()


def test_a_sealed_store_takes_no_change():
    """I2: what nobody would forward."""
    pair = Pair(1)
    pair.source.seal()
    with pytest.raises(AssertionError, match="I2"):
        pair.source.changed(record(9))


def test_a_change_before_the_first_pull_is_in_the_snapshot():
    """Nothing is kept for a target that does not ask."""
    pair = Pair(1)
    pair.change(record(2))
    assert pair.source.lag == 0
    pair.round()
    assert pair.is_equal()


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
    """I1 and I4: forgotten rounds, another move, an older stream, a gap."""
    pair = Pair(2)
    chunk = pair.answer()
    for _ in range(16):
        pair.target.pull(NOW)
    pair.target.received(NOW, chunk)
    assert pair.target.records.snapshot() == []
    chunk = pair.answer()
    for wrong in (
        msgspec.structs.replace(chunk, move_id=Epoch(8)),
        msgspec.structs.replace(chunk, number=chunk.number - 1, stream=-1, source_incarnation=Incarnation(-1)),
        msgspec.structs.replace(chunk, number=chunk.number - 2, first=2),
    ):
        pair.target.received(NOW, wrong)
        assert pair.target.records.snapshot() == []


def test_a_new_life_of_the_target_gets_a_new_stream():
    """I4: it begins empty."""
    pair = Pair(3)
    pair.round()
    pair.target = Incoming(3, MOVE, Incarnation(2))
    assert pair.round().stream == 2
    assert pair.is_equal()


def test_a_new_life_of_the_source_is_copied_anew():
    """I4: staging of the older one is dropped, whatever is in it."""
    pair = Pair(3)
    pair.round()
    pair.records = PartitionRecords()
    pair.records.merge(NOW, record(9))
    pair.source = Outgoing(3, MOVE, Incarnation(2), pair.records)
    pair.round()
    assert pair.is_equal()


def test_unequal_digests_at_a_mark_begin_anew():
    """What was applied is not what was sent."""
    pair = Pair(3)
    chunk = pair.answer()
    pair.target.received(NOW, msgspec.structs.replace(chunk, digest=Digest(3, 1)))
    assert pair.target.records.snapshot() == []
    assert not pair.target.is_caught_up
    assert pair.round().stream == 2
    assert pair.target.is_caught_up
    assert pair.is_equal()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_gets_lost_doubled_or_late_the_copy_ends_equal(data: st.DataObject):
    """I1 and I2, with changes between, and other lives of both."""
    pair = Pair(4)
    flying: list[Chunk] = []
    seq = 10
    for kind in data.draw(
        st.lists(st.sampled_from(["pull", "arrive", "again", "change", "close", "life"]), max_size=30)
    ):
        seq += 1
        if kind == "pull":
            flying.append(pair.answer())
        elif kind in {"arrive", "again"} and flying:
            index = data.draw(st.integers(0, len(flying) - 1))
            pair.target.received(NOW, flying[index] if kind == "again" else flying.pop(index))
        elif kind == "change":
            pair.change(record(seq))
        elif kind == "close":
            pair.change(record(seq, session=f"s{seq - 1}", is_open=False))
        elif kind == "life":
            pair.target = Incoming(3, MOVE, Incarnation(seq))
        pair.target.check_invariants()
    pair.source.seal()
    pair.round()
    pair.round()
    assert pair.target.is_ready
    assert pair.is_equal()


def test_a_parked_request_waits_a_quarter_of_a_second_at_most():
    """I5: then it is answered with RETRY."""
    parking: Parking[str] = Parking()
    assert parking.next_deadline() is None
    assert parking.park(NOW, "one")
    assert parking.park(Instant(NOW + 10), "two")
    assert parking.next_deadline() == NOW + PARK_MS
    assert parking.expire(Instant(NOW + PARK_MS)) == ["one"]
    assert parking.release() == ["two"]
    assert parking.expire(Instant(NOW + 9_999)) == []


def test_parking_is_bounded():
    """I5."""
    parking: Parking[int] = Parking()
    assert all(parking.park(NOW, number) for number in range(PARKED_MAX))
    assert not parking.park(NOW, -1)
