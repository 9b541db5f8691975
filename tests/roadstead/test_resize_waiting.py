"""Waiting for a resize by command: when it ends, and with which exit code, as the how-to lists them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from base.clock import Instant
from roadstead.cli import resize as command
from roadstead.cli.common import EXIT_PAUSED, EXIT_STUCK
from roadstead.cli.resize import AWAY_MS, StuckWatch

PLAN = {
    "partitions": 8,
    "minimum": 8,
    "sessions": 0,
    "bytes": 0,
    "expected_s": 0.1,
    "weights": {"status-1": 1, "status-5": 1},
    "before": {"status-1": 1},
    "moves": [],
    "unknown": [],
}


def seen(*away: str, moves: int = 0, left: int = 3, epoch: int = 7, **more: Any) -> dict[str, Any]:
    """The progress of a resize to status-1 and status-5; status-2 leaves."""
    nodes = [
        {"node": node, "weight": weight, "partitions": 4, "is_registered": node not in away}
        for node, weight in (("status-1", 1), ("status-2", 0), ("status-5", 1))
    ]
    stages = {"prepare": 0, "copy": moves}
    return {"epoch": epoch, "nodes": nodes, "moves": stages, "left": left, "is_done": False, "is_paused": False, **more}


def test_a_wanted_node_that_is_gone_for_long_while_nothing_moves_is_waited_for_no_more():
    """For as long as a registration lasts; and whatever happens in between is waited for anew."""
    watch = StuckWatch()
    assert not watch.is_stuck(Instant(0), seen("status-5"))
    assert not watch.is_stuck(Instant(AWAY_MS - 1), seen("status-5"))
    assert watch.is_stuck(Instant(AWAY_MS), seen("status-5"))
    for number, news in enumerate((seen("status-5", epoch=8), seen("status-5", moves=1, epoch=8), seen(epoch=8))):
        at = 100 * AWAY_MS * (number + 1)
        assert not watch.is_stuck(Instant(at), news)
        assert not watch.is_stuck(Instant(at + AWAY_MS - 1), news)
        assert watch.is_stuck(Instant(at + AWAY_MS), news) is (number == 0)


def test_nodes_that_leave_may_be_gone():
    """Nobody waits for them."""
    watch = StuckWatch()
    watch.is_stuck(Instant(0), seen("status-2"))
    assert not watch.is_stuck(Instant(10 * AWAY_MS), seen("status-2"))


def waited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, progress: Iterable[dict[str, Any]], *options: str
) -> Result:
    """Order a resize of a cluster that says so one after the other, the last one again and again."""
    answers: Iterator[dict[str, Any]] = iter([*progress])
    last: dict[str, Any] = {}

    async def status_call(_data: object, method: str, _path: str, _body: object = None) -> dict[str, Any]:
        if method == "POST":
            return PLAN
        last.update(next(answers, last))
        return last

    monkeypatch.setattr(command, "status_call", status_call)
    monkeypatch.setattr(command, "LOOK_S", 0.01)
    monkeypatch.setattr(command, "AWAY_MS", 50)
    return CliRunner().invoke(command.resize, ["--add", "status-5", "--yes", "--data", str(tmp_path), *options])


def test_a_resize_to_a_node_that_died_for_good_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With an exit code of its own, and what to do."""
    ran = waited(monkeypatch, tmp_path, [seen(moves=2), seen("status-5")])
    assert ran.exit_code == EXIT_STUCK
    assert ran.stdout.splitlines()[-1] == (
        "the resize cannot be done: status-5 not there, 3 partitions are left to move; start again what is not there, "
        "or `roadstead status resize --remove status-5`"
    )
    quiet = waited(monkeypatch, tmp_path, [seen("status-5")], "--json")
    assert quiet.exit_code == EXIT_STUCK
    assert json.loads(quiet.stdout.splitlines()[-1]) == seen("status-5")


def test_other_ends_of_the_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Done and paused are told as they are, whoever is away."""
    done = waited(monkeypatch, tmp_path, [seen("status-5"), seen("status-5", is_done=True, left=0)])
    assert done.exit_code == 0
    paused = waited(monkeypatch, tmp_path, [seen("status-5", is_paused=True)])
    assert paused.exit_code == EXIT_PAUSED
