"""The commands for the scheduler as operators meet them, against one running system."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from roadstead.api import call_api
from roadstead.cli.common import operator
from roadstead.local import System, UpProcess
from tests.support.command import exit_code

pytestmark = pytest.mark.process

SETTLE_S = 10.0
ROLLOUT = """\
rollout: fast
pool: {version: 9.9.9}
segments:
  - {name: staff, when: {user: {in: staff}}, to: canary}
steps:
  - {percent: 10, hold: 10m, min_sample: {connects: 500}}
  - {percent: 100, migrate: {rate: 200/s}}
analysis:
  checks:
    - {metric: connect_success, min: 0.99}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    process = UpProcess(tmp_path_factory.mktemp("up") / "data", "--set", "up.access_nodes=2")
    yield process.start()
    assert process.stop() == 0


@pytest.fixture
def run(system: System, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command to its end, in this process; return its exit code and what it said."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("ROADSTEAD_DATA", str(system.data.path))

    def ran(*arguments: str | Path) -> tuple[int, str, str]:
        code = exit_code(*arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


def told(run: Run, *arguments: str | Path) -> Any:
    """Run a command that ends well; return its last line of JSON."""
    code, said, complained = run(*arguments, "--json")
    assert code == 0, complained
    return json.loads(said.splitlines()[-1])


def said(run: Run, *arguments: str | Path) -> list[str]:
    """Run a command that ends well; return the lines that it said."""
    code, lines, complained = run(*arguments)
    assert code == 0, complained
    return [line.rstrip() for line in lines.splitlines()]


def refused(run: Run, *arguments: str | Path, code: int = 1) -> str:
    """Run a command that ends otherwise; return what it complained of, one line."""
    ended, lines, complained = run(*arguments)
    assert (ended, lines) == (code, ""), complained
    return complained.strip().splitlines()[-1]


def asked(system: System, user: str) -> dict[str, Any]:
    """Ask for access as a backend does."""
    answer: dict[str, Any] = asyncio.run(
        call_api(
            "GET", f"{system.scheduler}/v1/access", credential=system.data.secrets().api_key, params={"user": user}
        )
    )
    return answer


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what the registry tells all."""
    waited = threading.Event()
    for _ in range(int(SETTLE_S / 0.02)):
        if is_so():
            return
        waited.wait(0.02)
    raise AssertionError("it did not come to be")


# ---------------------------------------------------------------- nodes


def test_a_node_is_cordoned_and_uncordoned(run: Run) -> None:
    """It says so, with the reason; and it gets nobody meanwhile."""

    def state() -> str:
        return said(run, "access", "nodes")[1]

    assert "ready" in state()
    assert said(run, "access", "cordon", "access-1", "--reason", "disk fails") == [
        "access-1 gets no newcomers until it is uncordoned"
    ]
    until(lambda: "cordoned: disk fails" in state())
    (shown,) = [node for node in told(run, "access", "nodes") if node["node"] == "access-1"]
    assert shown["left_out"] == "cordoned"
    assert shown["cordon"]["who"].endswith(f"({operator()})")
    explained = told(run, "explain", "--user", "ann")
    assert explained["candidates"] == ["access-2"]
    assert "access-1: cordoned" in "".join(said(run, "explain", "--user", "ann"))
    assert told(run, "access", "uncordon", "access-1") == {"node": "access-1", "cordon": None}
    until(lambda: "ready" in state())


def test_orders_for_what_is_not_there_are_one_clear_line(run: Run) -> None:
    """Exit code 1."""
    unknown = "error: there is no access node a/b; there are: access-1, access-2"
    assert refused(run, "access", "cordon", "a/b") == unknown
    assert refused(run, "access", "uncordon", "a/b") == unknown
    assert "is not in panic" in refused(run, "access", "accept-loss")
    assert "no rebalancing is under way" in refused(run, "access", "rebalance", "pause")
    assert "there is no rollout slow" in refused(run, "rollout", "pause", "slow")
    assert "there is no rollout slow" in refused(run, "rollout", "status", "slow")
    assert "there is no rollout slow" in refused(run, "rollout", "delete", "slow")


@pytest.mark.parametrize(
    "arguments",
    [
        ("access", "rebalance", "start", "--rate", "200"),
        ("access", "rebalance", "start", "--tolerance", "3"),
        ("access", "rebalance", "start", "--grace", "30"),
        ("explain",),
        ("explain", "--region", "sh"),
        ("explain", "--user", "ann", "--decision", "x-1"),
        ("record", "x.rec", "--for", "1"),
        ("record", "x.rec", "--decisions", "0"),
        ("rollout", "validate", "nothing.yaml"),
    ],
)
def test_options_need_their_units_and_each_other(run: Run, arguments: tuple[str, ...]) -> None:
    """Exit code 2."""
    assert run(*arguments)[0] == 2


def test_a_rebalancing_is_ordered_about(run: Run) -> None:
    """Where all is even already it is over as soon as somebody looks."""
    assert said(run, "access", "rebalance", "status") == ["nobody ordered to rebalance"]
    ordered = told(run, "access", "rebalance", "start", "--no-wait", "--rate", "7.5/s", "--tolerance", "1%")
    request = ordered["order"]["request"]
    assert (request["rate_per_s"], request["tolerance"]) == (7.5, 10)
    assert "abort that before" in refused(run, "access", "rebalance", "start", "--no-wait")
    assert told(run, "access", "rebalance", "pause")["order"]["request"]["is_paused"] is True
    assert told(run, "access", "rebalance", "resume")["order"]["request"]["resumes"] == 1
    assert said(run, "access", "rebalance", "abort")[0].startswith("aborted by ")
    lines = said(run, "access", "rebalance", "start")
    assert lines[-1].startswith("complete: 0 clients told, 0 arrived"), lines
    assert "no access node is in the region moon" in refused(run, "access", "rebalance", "start", "--region", "moon")


# ---------------------------------------------------------------- rollouts


def test_a_rollout_from_its_document_to_its_end(run: Run, system: System, tmp_path: Path) -> None:
    """Started, looked at, ordered about, watched to its end, and deleted."""
    file = tmp_path / "rollout.yaml"
    file.write_text(ROLLOUT)
    assert told(run, "rollout", "create", file)["phase"] == "running"
    assert "it before you revise it" in refused(run, "rollout", "create", file)
    asked(system, "ann")
    rows = {line.split()[0]: line for line in said(run, "rollout", "status", "fast") if line[0] != " "}
    assert rows["fast"].split()[1] == "running"
    assert "1 of 2, 10 % of new connections; held " in rows["step"]
    assert "0 % of new connections in the last minute" in rows["new"]
    assert rows["canary"].endswith("version 9.9.9: 0 nodes, 0 of them open, room for 0")
    assert rows["lists"].endswith("nobody has written staff: nobody is in them")
    assert f"created by admin {fingerprint(system)} ({operator()})" in said(run, "rollout", "status", "fast")[-1]
    assert said(run, "rollout", "pause", "fast")[0].startswith("fast: paused (paused by ")
    assert "is paused already" in refused(run, "rollout", "pause", "fast")
    header, line = said(run, "rollout", "list")
    assert header.split()[:4] == ["rollout", "version", "phase", "step"]
    assert line.split()[:4] == ["fast", "9.9.9", "paused", "1/2"]
    assert "abort it before you delete it" in refused(run, "rollout", "delete", "fast")
    assert told(run, "rollout", "promote", "fast")["phase"] == "complete"
    assert said(run, "rollout", "status", "fast", "--watch")[-1].startswith("fast: complete")
    assert told(run, "rollout", "abort", "fast")["phase"] == "aborted"
    assert run("rollout", "status", "fast", "--watch")[0] == 1
    assert said(run, "rollout", "delete", "fast") == ["fast is deleted"]
    until(lambda: told(run, "rollout", "list")["rollouts"] == [])


def fingerprint(system: System) -> str:
    """Return how the API key is named in audit logs."""
    return hashlib.sha256(system.data.secrets().api_key.encode()).hexdigest()[:8]


# ---------------------------------------------------------------- policies, lists


def test_a_policy_is_tried_in_the_shadow_and_put_in_force(run: Run, system: System, tmp_path: Path) -> None:
    """Its difference is shown before anybody is sent by it."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("policy: even\nrules: [{name: all, strategies: [weighted]}]\n")
    bad.write_text("policy: even\nrules: [{name: all, strategies: [weigted]}]\n")
    assert said(run, "policy", "validate", good) == ["even: good"]
    for order in ("validate", "set", "shadow"):
        assert refused(run, "policy", order, bad).startswith(f"{bad}:2: ")
    assert "there is no shadow policy" in refused(run, "policy", "difference")
    assert said(run, "policy", "shadow", good) == ["even is evaluated in the shadow"]
    until(lambda: told(run, "policy", "difference")["difference"] is not None)
    asked(system, "ann")
    assert said(run, "policy", "difference")[0].split() == ["1", "decisions", "in", "force", "by", "even"]
    assert said(run, "policy", "end-shadow") == ["there is no shadow policy any more"]
    assert said(run, "policy", "set", good) == ["even is in force"]
    until(lambda: bool(told(run, "policy", "show")["is_in_force"]))
    header, rule, *history = said(run, "policy", "show")
    assert (header.split()[0], rule.split()[:2]) == ("even", ["all", "weighted"])
    assert history[0].endswith(f"policy by admin {fingerprint(system)} ({operator()})")
    assert told(run, "explain", "--user", "ann")["policy"] == "even"
    assert said(run, "policy", "reset") == ["the built-in policy is in force"]
    until(lambda: told(run, "explain", "--user", "ann")["policy"] == "default")


def test_a_list_is_written_shown_and_deleted(run: Run, tmp_path: Path) -> None:
    """One value a line."""
    file, latin = tmp_path / "staff.txt", tmp_path / "latin.txt"
    file.write_text("ben\n\nann\n")
    latin.write_bytes(b"\xff\n")
    assert said(run, "lists", "write", "staff", file) == ["staff: 2 values"]
    assert said(run, "lists", "show", "staff") == ["ann", "ben"]
    until(lambda: bool(told(run, "lists", "list")["lists"]))
    assert said(run, "lists", "list")[1].split() == ["staff", "2"]
    assert "is not UTF-8" in refused(run, "lists", "write", "staff", latin)
    assert "a list's name has" in refused(run, "lists", "write", "a/b", file)
    assert said(run, "lists", "delete", "staff") == ["staff is deleted"]
    assert "there is no list staff" in refused(run, "lists", "show", "staff")


# ---------------------------------------------------------------- decisions


def test_a_decision_is_explained_by_its_id(run: Run, system: System) -> None:
    """As long as it is remembered; by the client's request in words and in facts."""
    decision = asked(system, "ann")["decision"]
    first, *stages = said(run, "explain", "--decision", decision)
    assert first.startswith("ann, ")
    assert stages[0].split()[0] == "locate"
    assert told(run, "explain", "--decision", decision)["decision"] == decision
    assert said(run, "explain", "--user", "ben", "--ip", "10.0.0.1", "--app", "5.1")[0].startswith("ben, if asking now")
    assert "is not remembered any more" in refused(run, "explain", "--decision", f"{decision.split('-')[0]}-fffff")


@contextmanager
def requests(system: System) -> Iterator[None]:
    """Clients ask all the time."""
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            asked(system, f"user-{number}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_what_is_recorded_is_replayed_to_the_last_bit(run: Run, system: System, tmp_path: Path) -> None:
    """From a system that works; with another policy it is compared."""
    file, policy = tmp_path / "decisions.rec", tmp_path / "policy.yaml"
    with requests(system):
        recorded = told(run, "record", file, "--for", "10s", "--decisions", "20")
    assert (recorded["is_whole"], recorded["bytes"]) == (True, file.stat().st_size)
    assert told(run, "replay", "decisions", file) == {"decisions": 20, "is_identical": True, "first_difference": None}
    policy.write_text("policy: even\nrules: [{name: all, strategies: [weighted]}]\n")
    assert told(run, "replay", "decisions", file, "--policy", policy)["decisions"] == 20
    assert said(run, "replay", "decisions", file, "--explain", "20")[0].startswith("decision 20, for user-")
    assert refused(run, "record", file, code=2) == f"error: {file} is there already"
    short = told(run, "record", tmp_path / "short.rec", "--for", "100ms")
    assert short["is_whole"] is True
    assert (tmp_path / "short.rec").stat().st_mode & 0o077 == 0
    assert "cannot be written" in refused(run, "record", tmp_path / "nowhere" / "x.rec", code=2)
    assert "nothing runs from" in refused(run, "record", tmp_path / "x.rec", "--data", tmp_path, code=3)
    assert not (tmp_path / "x.rec").exists()
