"""From the seal until the target has a partition alone: the source answers, nobody takes news, never do both answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.ids import Epoch
from status.api import REFUSED, UNKNOWN_SHOWN
from status.core.handoff import ANSWER_MS, DRIFT_PPM
from status.core.holding import Role
from status.core.ownership import Heard
from status.core.partitions import Advance, End, Move, PartitionTable, Stage
from tests.status.core.status_node import (
    EARLY,
    GATE,
    OTHER,
    TABLE,
    VOUCH_MS,
    A,
    B,
    Node,
    at,
    entry,
    moved,
    serving,
    table,
)

ALONE_MS = ANSWER_MS + ANSWER_MS * DRIFT_PPM // 1_000_000 + 1


def pair() -> tuple[Node, Node, PartitionTable]:
    """A source that is sealed and a target that is ready, by answers at 0; with the table of the commit."""
    source, target = serving(entry(1)), Node(B, GATE)
    sealed = moved(source, target, at(0))
    return source, target, table(Advance(0, Stage.COMMIT), since=sealed)


def test_a_sealed_source_answers_for_a_while_after_its_target_may_be_ready():
    """And takes nothing. Then it is silent until it has read what became of the move."""
    source, _, _ = pair()
    for late, role, says in ((0, Role.ANSWERING, entry(1)), (ANSWER_MS - 1, Role.ANSWERING, entry(1))):
        assert (source.role(at(late)), source.says(at(late))) == (role, says)
        assert source.beat(at(late), entry(2)) == Heard(refused=(0,))
    assert (source.role(at(ANSWER_MS)), source.says(at(ANSWER_MS))) == (Role.SEALED, REFUSED)


def test_later_answers_to_the_target_do_not_prolong_it():
    """The target counts from the one that made it ready, and may never see another."""
    source, target = serving(entry(1)), Node(B, GATE)
    made = moved(source, target, at(0), *EARLY[:3])
    sealed = table(EARLY[3], since=made)
    source.read(at(0), sealed)
    target.read(at(0), sealed)
    for late in (0, 100, 200):
        ((_, pull),) = target.core.pulls(at(late))
        assert source.core.pulled(at(late), pull) is not None
    assert source.role(at(ANSWER_MS)) is Role.SEALED


def test_a_source_that_told_nobody_of_its_seal_answers_on():
    """No target can be ready: be it that none asks, or that the store began to be copied with the seal."""
    source = serving(entry(1))
    source.read(at(0), table(*EARLY))
    assert (source.role(at(2_000)), source.says(at(2_000))) == (Role.ANSWERING, entry(1))


def test_a_sealed_source_without_a_serving_lease_says_nothing():
    """It may have been taken for dead."""
    source, _, _ = pair()
    source.is_leased = False
    assert (source.role(at(1)), source.says(at(1))) == (Role.SEALED, REFUSED)


def test_while_sealed_beats_vouch_for_no_longer_than_at_the_seal():
    """What they would have told of the partition was refused, and may have been that a session closed."""
    source = serving(entry(1))
    source.read(at(0), table(*EARLY[:3]))
    source.read(at(0), table(*EARLY))
    source.beat(at(VOUCH_MS - 1), epoch=5)
    assert source.says(at(VOUCH_MS - 1)) == entry(1)
    assert source.says(at(VOUCH_MS)) is UNKNOWN_SHOWN


def test_a_source_that_was_told_to_cease_is_silent_at_once():
    """By this very move; others are none of its business."""
    source, _, _ = pair()
    for partition, move_id in ((0, 99), (1, 2)):
        source.core.cease(partition, Epoch(move_id))
        assert source.says(at(1)) == entry(1)
    source.core.cease(0, Epoch(2))
    assert (source.role(at(1)), source.says(at(1))) == (Role.SEALED, REFUSED)


def test_a_target_takes_nothing_before_its_source_has_ceased():
    """Nor does it answer; it names whom to tell. Then it has what the source had, and tells that it serves."""
    _, target, committed = pair()
    for _ in range(2):
        target.beat(at(0), epoch=committed.epoch - 1)
    target.read(at(1), committed)
    assert (target.role(at(1)), target.says(at(1)), target.core.has_sealed([0])) == (Role.SEALED, REFUSED, True)
    assert target.beat(at(1), entry(2), epoch=committed.epoch) == Heard(refused=(0,))
    assert (target.core.shares([0, 1]), target.core.take_turns()) == (True, [])
    (move,) = target.core.shared()
    assert (move.partition, move.source, move.stage) == (0, A, Stage.COMMIT)
    target.core.ceased(at(2), [Move(0, Epoch(99), A, B, Stage.COMMIT), Move(1, Epoch(2), A, B, Stage.COMMIT)])
    assert target.role(at(2)) is Role.SEALED
    target.core.ceased(at(2), [move])
    target.core.check_invariants()
    assert (target.role(at(2)), target.says(at(2)), target.core.has_sealed([0])) == (Role.SERVING, entry(1), False)
    assert (target.core.shares([0, 1]), [turn.is_served for turn in target.core.take_turns()]) == (False, [True])
    assert target.beat(at(3), entry(2), epoch=committed.epoch) == Heard()
    target.core.ceased(at(4), [move])
    assert target.role(at(4)) is Role.SERVING


@pytest.mark.parametrize("is_over", [False, True])
def test_a_target_whose_source_cannot_be_told_waits_until_it_has_ceased_by_itself(*, is_over: bool):
    """By the slowest clock; be it that the move is over meanwhile."""
    _, target, committed = pair()
    target.read(at(1), committed)
    if is_over:
        target.read(at(2), table(Advance(0, Stage.CLEANUP), End(0), since=committed))
        assert (target.core.shared(), target.core.shares([0, 1])) == ([], True)
    target.step(at(ALONE_MS - 1))
    assert target.role(at(ALONE_MS - 1)) is Role.SEALED
    target.step(at(ALONE_MS))
    assert (target.role(at(ALONE_MS)), target.says(at(ALONE_MS))) == (Role.SERVING, entry(1))


def test_a_target_that_reads_the_commit_late_has_the_partition_alone_at_once():
    """There is nobody to tell."""
    _, target, committed = pair()
    target.read(at(ALONE_MS), committed)
    assert (target.role(at(ALONE_MS)), target.core.shared()) == (Role.SERVING, [])


def test_a_full_list_is_refused_until_the_partition_is_here_alone():
    """As all news are."""
    _, target, committed = pair()
    target.read(at(1), committed)
    assert target.beat(at(1), floor=5, epoch=committed.epoch, node=OTHER) == Heard(refused=(0,))


@given(
    st.integers(-DRIFT_PPM // 2, DRIFT_PPM // 2),
    st.integers(-DRIFT_PPM // 2 + 3_000, DRIFT_PPM // 2),
    st.integers(0, 100),
    st.integers(0, 400),
)
def test_the_two_never_answer_at_once_however_their_clocks_go(here_ppm: int, there_ppm: int, way_ms: int, read_ms: int):
    """Nobody tells anybody anything: the source has not read the commit, and is not told to cease."""

    def here(now_ms: int) -> int:
        return now_ms + now_ms * here_ppm // 1_000_000

    def there(now_ms: int) -> int:
        return now_ms + now_ms * there_ppm // 1_000_000

    source, target = serving(entry(1)), Node(B, GATE)
    sealed = moved(source, target, at(0), *EARLY[:3])
    sealed = table(EARLY[3], since=sealed)
    source.read(at(0), sealed)
    target.read(at(0), sealed)
    ((_, pull),) = target.core.pulls(at(0))
    chunk = source.core.pulled(at(0), pull)
    assert chunk is not None
    target.core.received(at(there(way_ms)), chunk)
    read_ms = max(read_ms, way_ms)
    target.read(at(there(read_ms)), table(Advance(0, Stage.COMMIT), since=sealed))
    for now_ms in range(max(read_ms, ANSWER_MS * 9 // 10), ANSWER_MS * 3 // 2):
        target.step(at(there(now_ms)))
        answering = source.says(at(here(now_ms))) is not REFUSED
        assert not (answering and target.says(at(there(now_ms))) is not REFUSED), now_ms


def test_a_beat_that_was_long_on_its_way_takes_nothing_from_what_the_last_owner_vouched_for():
    """It echoes an answer of long ago and vouches for nothing; the access node still relies on the last owner."""
    source, target = serving(entry(1)), Node(B, GATE)
    target.read(at(-9_000), TABLE)
    for _ in range(2):
        target.beat(at(-VOUCH_MS - 300))
    sealed = moved(source, target, at(0), *EARLY[:3])
    source.beat(at(0), epoch=sealed.epoch)
    sealed = table(EARLY[3], since=sealed)
    for node in (source, target):
        node.read(at(0), sealed)
    ((_, pull),) = target.core.pulls(at(0))
    chunk = source.core.pulled(at(0), pull)
    assert chunk is not None
    target.core.received(at(0), chunk)
    committed = table(Advance(0, Stage.COMMIT), since=sealed)
    target.read(at(ALONE_MS), committed)
    target.beat(at(600), epoch=committed.epoch, echo=at(-VOUCH_MS - 300))
    assert target.says(at(600)) == entry(1)
