"""A part of a real day on real systems, which are resized, drained and killed meanwhile: nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from roadstead.local import running_system
from roadstead.replay.core.day import Choice, chosen
from roadstead.replay.core.plan import Pace, planned
from roadstead.replay.dataset import read
from roadstead.replay.operations import script_of
from roadstead.replay.run import most_active, replayed
from roadstead.replay.stage import ClusterStage, UpStage
from tests.support.command import exit_code

pytestmark = pytest.mark.process

DATE = 17_662
"""2018-05-11."""
RESIZE, DRAIN = "resize 3 to 5", "drain access-1"
QUICK = {
    UpStage: (RESIZE, DRAIN, "kill -9 the whole process"),
    ClusterStage: (RESIZE, DRAIN, "kill -9 scheduler-1", "restart im-1"),
}
"""The others take longer than a test may: `make demo` does them."""


@pytest.mark.parametrize("kind", QUICK, ids=["up", "cluster"])
async def test_people_notice_nothing_of_what_is_done_to_the_system(
    kind: type[UpStage | ClusterStage], tmp_path: Path
) -> None:
    """Every message at every device, once, in order, and counted right; presence and latencies were noted."""
    plan = planned(chosen(read(), Choice(date=DATE, most=20)), Pace(speed=8_000))
    assert 300 < len(plan.messages) < 2_000
    stage = kind(tmp_path)
    try:
        await stage.start()
        script = [one for one in script_of(stage, most_active(plan)) if one.name in QUICK[kind]]
        outcome = await replayed(plan, stage, script, tell=print)
    finally:
        await stage.stop()
    assert [(mark.name, mark.is_done) for mark in outcome.marks] == [(name, True) for name in QUICK[kind]], outcome
    assert outcome.proof.violations == ()
    assert outcome.proof.looked["acknowledged"] == len(plan.messages)
    assert len(outcome.happened.sends) == len(plan.messages)
    assert sum(change for _, change in outcome.happened.presence) == 0
    assert any(sum(sample.connections.values()) for sample in outcome.samples)
    assert outcome.is_right


def test_people_may_use_a_system_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Again and again: each time others come, and nothing is done to it."""
    arguments = ["--day", "2018-05-11", "--conversations", "3", "--speed", "20000"]
    with running_system() as system:
        for _ in range(2):
            assert exit_code("replay", "chitchat", *arguments, "--data", str(system.data.path)) == 0
            assert "every message is at every device, once and in order" in capsys.readouterr().out
        assert exit_code("replay", "chitchat", *arguments, "--data", str(system.data.path), "--cluster") == 2
        assert "either --cluster or --data" in capsys.readouterr().err
