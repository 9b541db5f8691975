"""The script of operations: its order, its document, and what becomes of a step that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.errors import PeerUnavailable
from roadstead.replay.core.figures import Mark
from roadstead.replay.operations import DOCUMENT, Operation, carried_out, script_of
from roadstead.replay.stage import ClusterStage, UpStage
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout


@pytest.mark.parametrize("kind", [UpStage, ClusterStage])
def test_a_script_grows_the_cluster_first_and_shrinks_it_last(
    kind: type[UpStage | ClusterStage], tmp_path: Path
) -> None:
    """Something is killed in between, and all is within the run."""
    script = script_of(kind(tmp_path), ["ann"])
    names = [one.name for one in script]
    assert (names[0], names[-1]) == ("resize 3 to 5", "resize 5 to 3")
    assert sum(name.startswith("kill -9") for name in names) == 2
    assert "canary" in names
    times = [one.at for one in script]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 1


def test_the_rollout_is_a_good_document_of_1_and_10_percent() -> None:
    """And its last share is all, as one must be."""
    rollout = parse_rollout(DOCUMENT.encode())
    assert isinstance(rollout, Rollout)
    assert [step.percent for step in rollout.steps if not step.is_pause] == [0, 1_000, 10_000, 100_000]


async def test_a_step_that_fails_is_noted_and_the_next_one_follows() -> None:
    """Each is told when it is over; none begins before its time."""
    now = 0

    def now_ms() -> int:
        nonlocal now
        now += 20
        return now

    async def works() -> str:
        return "done"

    async def fails() -> str:
        raise PeerUnavailable("nobody is there")

    told: list[Mark] = []
    script = [Operation(0.1, "first", works), Operation(0.2, "second", fails), Operation(0.3, "third", works)]
    marks = await carried_out(script, due_ms=lambda part: int(300 * part), now_ms=now_ms, tell=told.append)
    assert [(mark.name, mark.says, mark.is_done) for mark in marks] == [
        ("first", "done", True),
        ("second", "nobody is there", False),
        ("third", "done", True),
    ]
    assert told == marks
    assert all(mark.begin_ms < mark.end_ms for mark in marks)
