"""Rollouts as values: what they are without a word, and that they survive being written."""

from __future__ import annotations

import msgspec

from scheduler.core.conditions import AppIn
from scheduler.core.rollout import FULL, Analysis, Check, OnFailure, Rollout, Segment, Step


def test_a_rollout_survives_being_written_and_read():
    """With every part of it set."""
    rollout = Rollout(
        name="a",
        version="2.0.0",
        seed="s",
        steps=(Step(1_000, 600_000, 500, 200.0), Step(is_pause=True), Step(FULL)),
        bucket_by="device",
        max_share_of_capacity=0.9,
        segments=(Segment("old", AppIn("<5.0"), "stable"),),
        analysis=Analysis(
            1_000, 1, "continue", (Check("promql", 0.1, 0.2, query="q"), Check("push_p99_ms", vs_stable=0.1))
        ),
        on_failure=OnFailure(300.0, 1_000),
    )
    assert msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout) == rollout
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rollout), type=Rollout) == rollout


def test_a_rollout_that_says_no_more_moves_nobody_and_is_not_judged():
    """All that disturbs live connections has to be asked for."""
    rollout = Rollout("a", "2.0.0", "s", (Step(FULL),))
    assert (rollout.steps[0].move_per_s, rollout.on_failure.move_per_s) == (0.0, 0.0)
    assert (rollout.analysis.checks, rollout.segments, rollout.bucket_by) == ((), (), "user")
