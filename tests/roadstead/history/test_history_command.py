"""`roadstead history check`: from files to a verdict and an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from roadstead.history.events import Event
from roadstead.history.recorder import Recorder
from tests.roadstead.history.tiny_model import Bug
from tests.roadstead.history.tiny_system import System
from tests.support.command import exit_code

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command to its end; return its exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "120")

    def ran(*arguments: str | Path) -> tuple[int, str, str]:
        code = exit_code("history", "check", *arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


def files(folder: Path, events: list[Event]) -> list[Path]:
    """Write a history, a file a process."""
    paths = {event.process: folder / f"{event.process}.jsonl" for event in events}
    for process, path in paths.items():
        with Recorder(path, process=process) as recorder:
            for event in events:
                if event.process == process:
                    recorder._write(event)
    return list(paths.values())


def test_a_good_history_passes(run: Run, tmp_path: Path):
    """With how much was judged."""
    code, out, _ = run(*files(tmp_path, System(1).run()))
    assert code == 0
    assert "send calls" in out
    assert "I13" in out
    assert "unknown: " not in out
    assert "unproved" not in out


def test_a_broken_promise_is_told_and_is_a_failure(run: Run, tmp_path: Path):
    """By name, with the first of each kind."""
    paths = files(tmp_path, System(1, frozenset({Bug.CURSOR_IS_NEWEST_SEEN}), steps=900).run())
    code, out, _ = run(*paths)
    assert code == 1
    assert "I8 skip: " in out
    assert " more\n" in out
    code, out, _ = run("--json", *paths)
    told = json.loads(out)
    assert (code, told["holds"]) == (1, False)
    assert {finding["invariant"] for finding in told["report"]["findings"] if finding["found"]} >= {"I1", "I8"}


def test_a_history_that_proves_too_little_is_a_failure(run: Run, tmp_path: Path):
    """An empty one, one without what is needed, or with half of it missing."""
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    code, out, _ = run(empty)
    assert code == 1
    assert "nothing happened" in out
    assert "unproved: I1 had nothing to judge" in out
    assert "unknown: it never got quiet" in out
    folder = tmp_path / "calm"
    folder.mkdir()
    paths = files(folder, System(1, steps=100).run())
    code, out, _ = run("--need", "I11", *paths)
    assert (code, out.splitlines()[-1]) == (1, "unproved: I11 had nothing to judge")


def test_what_is_no_history_is_refused(run: Run, tmp_path: Path):
    """With the line that is wrong."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    code, _, err = run(bad)
    assert code == 1
    assert "bad.jsonl:1: " in err
    code, _, err = run(bad, bad)
    assert (code, err) == (1, "error: a file is named twice\n")
