"""Patience with moves: what counts as progress, when it ends, and how long a pair rests."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from base.clock import Instant
from base.ids import Epoch, NodeId
from status.core.partitions import Move, Stage
from status.core.patience import COPY_PATIENCE_MS, REST_MS, SEAL_PATIENCE_MS, Patience

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
NOW = 50_000


def move(stage: Stage, *, partition: int = 1, move_id: int = 7, target: NodeId = B) -> Move:
    return Move(partition, Epoch(move_id), A, target, stage)


class Leader:
    """Looks at moves, with the answers that targets count."""

    def __init__(self) -> None:
        self.patience = Patience()
        self.answers: dict[NodeId, int] = {}

    def look(self, after_ms: int, moves: Iterable[Move]) -> set[int]:
        def answers(source: NodeId, target: NodeId) -> int:
            assert source == A
            return self.answers.get(target, 0)

        self.patience.look(Instant(NOW + after_ms), moves, answers)
        self.patience.check_invariants()
        return set(self.patience.stalled)


PATIENT = [(Stage.COPY, COPY_PATIENCE_MS), (Stage.CATCHUP, COPY_PATIENCE_MS), (Stage.SEAL, SEAL_PATIENCE_MS)]


def test_a_seal_is_given_up_much_sooner_than_a_copy():
    """Nobody is answered meanwhile."""
    assert 3 * SEAL_PATIENCE_MS < COPY_PATIENCE_MS


@pytest.mark.parametrize(("stage", "patience_ms"), PATIENT)
def test_a_move_without_progress_is_stalled(stage: Stage, patience_ms: int):
    """I1: counted from when it was first seen in this stage."""
    leader = Leader()
    assert leader.look(0, [move(stage)]) == set()
    assert leader.look(patience_ms - 1, [move(stage)]) == set()
    assert leader.patience.resting == frozenset()
    assert leader.look(patience_ms, [move(stage)]) == {1}
    assert leader.patience.resting == {(A, B)}


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.COMMIT, Stage.CLEANUP, Stage.RECOVER])
def test_other_stages_are_waited_for_without_end(stage: Stage):
    """PREPARE holds nothing up, and after COMMIT a move only goes forward."""
    leader = Leader()
    leader.look(0, [move(stage)])
    assert leader.look(100 * COPY_PATIENCE_MS, [move(stage)]) == set()


@pytest.mark.parametrize("stage", [Stage.COPY, Stage.CATCHUP])
def test_an_answer_to_any_question_of_the_pair_is_progress(stage: Stage):
    """A move whose turn has not come yet waits for the others of its pair, and a pause may last."""
    leader = Leader()
    moves = [move(stage), move(stage, partition=2, target=C)]
    leader.look(0, moves)
    leader.answers = {B: 3}
    leader.look(COPY_PATIENCE_MS - 1, moves)
    assert leader.look(COPY_PATIENCE_MS, moves) == {2}
    assert leader.patience.resting == {(A, C)}
    assert leader.look(2 * COPY_PATIENCE_MS - 1, moves) == {1, 2}


def test_answers_do_not_prolong_a_seal():
    """What is left to copy then is little."""
    leader = Leader()
    leader.look(0, [move(Stage.SEAL)])
    leader.answers = {B: 3}
    assert leader.look(SEAL_PATIENCE_MS, [move(Stage.SEAL)]) == {1}


def test_another_stage_or_another_move_is_waited_for_anew():
    """I1."""
    leader = Leader()
    leader.look(0, [move(Stage.COPY)])
    assert leader.look(COPY_PATIENCE_MS - 1, [move(Stage.CATCHUP)]) == set()
    assert leader.look(COPY_PATIENCE_MS, [move(Stage.CATCHUP)]) == set()
    assert leader.look(2 * COPY_PATIENCE_MS - 2, [move(Stage.CATCHUP, move_id=8)]) == set()
    assert leader.look(2 * COPY_PATIENCE_MS, [move(Stage.CATCHUP, move_id=8)]) == set()


def test_a_pair_rests_for_a_while_after_its_last_stalled_move():
    """I2 and I3: and then it is forgotten."""
    leader = Leader()
    leader.look(0, [move(Stage.SEAL)])
    leader.look(SEAL_PATIENCE_MS, [move(Stage.SEAL)])
    leader.look(SEAL_PATIENCE_MS + 200, [move(Stage.SEAL)])
    rested = SEAL_PATIENCE_MS + 200 + REST_MS
    assert leader.look(rested - 1, []) == set()
    assert leader.patience.resting == {(A, B)}
    leader.look(rested, [])
    assert leader.patience.resting == frozenset()


def test_wrong_states_are_found_out():
    """Checked, not assumed."""
    patience = Patience()
    patience.stalled = frozenset({1})
    with pytest.raises(AssertionError, match="I3"):
        patience.check_invariants()
