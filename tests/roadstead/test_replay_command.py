"""`roadstead replay decisions` and `roadstead rollout validate`: what needs a file and no running system."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from base.clock import SimClock
from base.ids import NodeId
from scheduler.core.cohorts import ActiveRollout
from scheduler.core.node import AccessNode
from scheduler.core.policy import DEFAULT_POLICY
from scheduler.core.recording import Born, Decided, encode, records
from scheduler.core.regions import Region, Regions
from scheduler.core.request import Location, Request
from scheduler.core.rollout import Rollout
from scheduler.core.rollout_document import parse_rollout
from scheduler.core.snapshot import Settings
from scheduler.decider import Decider, Rules
from tests.support.command import exit_code

DECISIONS = 300
ROLLOUT = "rollout: fast\npool: {version: 2.0.0}\nsteps:\n  - {percent: 50, hold: 10m}\n  - {percent: 100}\n"
POLICY = "policy: anywhere\nrules: [{name: all, strategies: [weighted]}]\n"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command to its end; return its exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "200")

    def ran(*arguments: str | Path) -> tuple[int, str, str]:
        code = exit_code(*arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


def nodes(connections: int) -> list[AccessNode]:
    return [
        AccessNode(
            id=NodeId(f"access-{number}"),
            url=f"http://access-{number}",
            region=("bj", "sh")[number % 2],
            version="2.0.0" if number > 6 else "1.0.0",
            capacity=1_000,
            connections=connections + number,
        )
        for number in range(10)
    ]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 300 decisions, in the middle of which the nodes report."""
    rollout = parse_rollout(ROLLOUT)
    assert isinstance(rollout, Rollout)
    rules = Rules((ActiveRollout(rollout, 50_000),), DEFAULT_POLICY, {}, Regions([Region("bj"), Region("sh")]))
    clock = SimClock()
    decider = Decider("0123456789", Settings(), clock, rules, remembered=0)
    decider.observe(nodes(100), schedulers=1)
    written: list[bytes] = []
    decider.record(written.append)
    for number in range(DECISIONS):
        if number == DECISIONS // 2:
            decider.observe(nodes(200), schedulers=1)
        clock.advance(1)
        decider.decide(Request(f"user-{number}", location=Location(("bj", "sh")[number % 2], source="hint")))
    file = tmp_path_factory.mktemp("recording") / "decisions.rec"
    file.write_bytes(b"".join(written))
    return file


def test_a_recording_is_decided_again_to_the_last_bit(run: Run, recording: Path) -> None:
    assert run("replay", "decisions", recording) == (0, "300 decisions, all the same to the last bit\n", "")
    code, said, _ = run("replay", "decisions", recording, "--json")
    assert (code, json.loads(said)) == (0, {"decisions": 300, "is_identical": True, "first_difference": None})


def test_a_recording_that_was_cut_off_is_good_as_far_as_it_goes(run: Run, recording: Path, tmp_path: Path) -> None:
    """In the middle of a record, at that."""
    cut = tmp_path / "cut.rec"
    cut.write_bytes(recording.read_bytes()[:-10])
    assert run("replay", "decisions", cut)[:2] == (0, "299 decisions, all the same to the last bit\n")


def test_the_first_decision_that_is_different_is_shown(run: Run, recording: Path, tmp_path: Path) -> None:
    """With what is different of it; exit code 1. A recording by another version of the engine, say."""
    told = list(records([recording.read_bytes()]))
    numbers = [place for place, record in enumerate(told) if isinstance(record, Decided)]
    for place in numbers[99:102]:
        record = told[place]
        assert isinstance(record, Decided)
        told[place] = Decided(record.request, msgspec.structs.replace(record.decision, not_before_ms=12_345))
    other = tmp_path / "other.rec"
    other.write_bytes(b"".join(map(encode, told)))
    code, said, _ = run("replay", "decisions", other)
    assert code == 1
    first, _, *lines = said.splitlines()
    assert first == "decision 100 is different; the 99 before it are the same"
    assert [line.split() for line in lines] == [["not_before_ms", "12345", "0"]]
    code, said, _ = run("replay", "decisions", other, "--json")
    shown = json.loads(said)
    assert (code, shown["is_identical"], shown["first_difference"][0]) == (1, False, 100)


def test_another_policy_is_compared_with_what_was_recorded(run: Run, recording: Path, tmp_path: Path) -> None:
    """The one of the recording differs from itself in nothing; one that looks at no region in half of all regions."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    code, said, _ = run("replay", "decisions", recording, "--policy", policy, "--json")
    found = json.loads(said)
    assert (code, found["decisions"], found["nobody"], found["somebody"]) == (0, 300, 0, 0)
    assert 100 < found["other_region"] < 200
    assert found["other_arm"] > 50
    header, *lines = run("replay", "decisions", recording, "--policy", policy)[1].splitlines()
    assert re.split(r"\s{2,}", header.strip()) == ["300 decisions", "as recorded", "by anywhere"]
    assert f"{found['other_region']:,} (" in next(line for line in lines if line.startswith("another region"))
    policy.write_text("policy: default\nrules: [{name: all, strategies: [canary, proximity, least_connections]}]\n")
    found = json.loads(run("replay", "decisions", recording, "--policy", policy, "--json")[1])
    assert {name for name, count in found.items() if count} == {"decisions", "max_to_mean", "shadow_max_to_mean"}
    assert found["max_to_mean"] == found["shadow_max_to_mean"]


def test_a_policy_with_a_fault_is_refused_by_line(run: Run, recording: Path, tmp_path: Path) -> None:
    """As compilers write it; exit code 1."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("weighted", "weigted"))
    code, said, complained = run("replay", "decisions", recording, "--policy", policy)
    assert (code, said) == (1, "")
    assert complained.startswith(f"{policy}:2: ")


def test_one_decision_is_explained(run: Run, recording: Path) -> None:
    """By its number in the recording, on what was known when it was made."""
    code, said, _ = run("replay", "decisions", recording, "--explain", "200")
    lines = said.splitlines()
    assert (code, lines[0]) == (0, "decision 200, for user-199")
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == [
        "locate",
        "filter",
        "rule",
        "arm",
        "region",
        "draw",
        "slot",
    ]
    shown = json.loads(run("replay", "decisions", recording, "--explain", "200", "--json")[1])
    assert (shown["number"], shown["request"][0], len(shown["stages"])) == (200, "user-199", 7)


def test_what_does_not_go_together_is_refused(run: Run, recording: Path) -> None:
    """Exit code 2."""
    code, _, complained = run("replay", "decisions", recording, "--policy", recording, "--explain", "1")
    assert code == 2
    assert "does not go with --policy" in complained
    assert run("replay", "decisions", recording.parent / "nothing.rec")[0] == 2
    assert run("replay", "decisions", recording, "--explain", "0")[0] == 2


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"", "it has no record"),
        (b"\x00\x00", "it has no record"),
        (b"hello, world", "a record's length is out of bounds"),
        (b"\x00\x00\x00\x01\xc0", "or one of another version"),
    ],
)
def test_a_file_that_is_no_recording_is_one_clear_line(run: Run, tmp_path: Path, content: bytes, meaning: str) -> None:
    """Exit code 1."""
    file = tmp_path / "file.rec"
    file.write_bytes(content)
    code, said, complained = run("replay", "decisions", file)
    assert (code, said, complained.count("\n")) == (1, "", 1)
    assert complained.startswith(f"error: {file}: this is no recording")
    assert meaning in complained


def test_a_recording_without_so_many_decisions_says_how_many_it_has(run: Run, recording: Path, tmp_path: Path) -> None:
    """And one that does not begin with its engine is none."""
    code, _, complained = run("replay", "decisions", recording, "--explain", "301")
    assert (code, "it has 300 decisions, none of number 301" in complained) == (1, True)
    told = list(records([recording.read_bytes()]))
    headless = tmp_path / "headless.rec"
    headless.write_bytes(encode(told[1]))
    assert "does not begin with its engine" in run("replay", "decisions", headless)[2]
    later, birth = tmp_path / "later.rec", told[0]
    assert isinstance(birth, Born)
    later.write_bytes(encode(msgspec.structs.replace(birth, format=99)))
    assert "this recording has format 99" in run("replay", "decisions", later)[2]


# ---------------------------------------------------------------- documents


def test_a_good_document_is_good(run: Run, tmp_path: Path) -> None:
    """Exit code 0; for programs, as it was understood."""
    file = tmp_path / "rollout.yaml"
    file.write_text(ROLLOUT)
    assert run("rollout", "validate", file) == (0, "fast: good, 2 shares to 100 %\n", "")
    assert json.loads(run("rollout", "validate", file, "--json")[1])["version"] == "2.0.0"


@pytest.mark.parametrize("order", ["validate", "create"])
def test_each_fault_of_a_document_is_a_line(run: Run, tmp_path: Path, order: str) -> None:
    """`FILE:LINE: message`, exit code 1; to start it no system is asked."""
    file = tmp_path / "rollout.yaml"
    file.write_text(ROLLOUT.replace("10m", "10 minutes").replace("100", "20"))
    code, said, complained = run("rollout", order, file, *(["--data", tmp_path] if order == "create" else []))
    assert (code, said) == (1, "")
    assert [line.split(": ")[0] for line in complained.splitlines()] == [f"{file}:{number}" for number in (4, 5)]


@pytest.mark.parametrize("order", ["validate", "create"])
def test_a_document_that_is_no_text_is_a_fault_of_it(run: Run, tmp_path: Path, order: str) -> None:
    """And no traceback."""
    file = tmp_path / "rollout.yaml"
    file.write_bytes(b"rollout: \xff\n")
    code, _, complained = run("rollout", order, file, *(["--data", tmp_path] if order == "create" else []))
    assert code == 1
    assert complained.startswith(f"{file}:1: ")
