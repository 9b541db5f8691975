"""Benchmarks in processes of their own: whatever one of them does, the others run and the record says what it did."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import report_run
from bench.report_record import Outcome, Record, look_around, read
from bench.report_run import command_of, run_all, run_alone
from bench.result import Options, Result

LINE = Result("one", 1.5, "ms", 2, "lower", {"n": 3}).to_json()


def python(code: str) -> list[str]:
    """A process that starts as quickly as one can."""
    return [sys.executable, "-I", "-S", "-c", code]


def alone(code: str, *, deadline_s: float = 20, stop_s: float = 20) -> Outcome:
    return run_alone("one", python(code), deadline_s=deadline_s, stop_s=stop_s)


def is_gone(pid: int) -> bool:
    """Whether a process ended, perhaps without anybody who waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in {"Z", "X"}
    except FileNotFoundError:
        return True


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_the_last_line_is_the_result_and_the_rest_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """What else it prints does not matter; what it says on standard error is seen."""
    seen = alone(f"import sys; print('noise'); print('progress \\u00e9', file=sys.stderr); print({LINE!r})")
    assert seen.result == Result("one", 1.5, "ms", 2, "lower", {"n": 3})
    assert not seen.failed
    assert seen.seconds is not None
    assert 0 <= seen.seconds < 20
    assert capfd.readouterr().err == "progress \u00e9\n"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (f"print({LINE!r}); raise SystemExit('no <redis>')", "exit code 1: no <redis>"),
        (f"import os; print({LINE!r}, flush=True); os._exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("print('that was all')", "its last line is no result: "),
        ("", "its last line is no result: "),
        ('print(\'{"name": "one", "value": null}\')', "its last line is no result: "),
    ],
)
def test_what_does_not_end_well_has_failed_and_says_why(code: str, why: str) -> None:
    """Also one that printed a result before it went wrong."""
    seen = alone(code)
    assert seen.result is None
    assert seen.failed.startswith(why)


def test_of_a_failure_the_last_lines_are_kept() -> None:
    """Enough to see where it happened."""
    seen = alone("import sys\nfor n in range(100): print('line', n, file=sys.stderr)\nraise SystemExit(1)")
    assert seen.failed == "exit code 1: line 99"
    assert seen.said.splitlines() == [f"line {number}" for number in range(70, 100)]


def test_at_its_deadline_a_benchmark_is_told_to_stop_and_cleans_up(tmp_path: Path) -> None:
    """It may have started what is in no process group of ours, as clusters are."""
    clean = tmp_path / "clean"
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"try: time.sleep(60)\nfinally: open({str(clean)!r}, 'w').close()"
    )
    seen = alone(code, deadline_s=0.5)
    assert seen.failed == "no end after 0.5 s"
    assert clean.exists()


def test_one_that_does_not_stop_is_killed() -> None:
    """After the time that it had to stop."""
    began = time.monotonic()
    seen = alone(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", deadline_s=0.5, stop_s=0.1
    )
    assert seen.failed == "no end after 0.5 s"
    assert time.monotonic() - began < 20


def test_what_is_left_behind_is_killed() -> None:
    """A server that nobody stopped would take its part of the machine from the next benchmark."""
    child = [*python("import time; time.sleep(60)")]
    details = Result("one", 1, "ms", 2, "lower", {"pid": 0}).to_json().replace("0}", "%d}")
    seen = alone(f"import subprocess; print({details!r} % subprocess.Popen({child!r}).pid)")
    assert seen.result is not None
    pid = seen.result.details["pid"]
    until(lambda: is_gone(pid))


def test_one_that_fails_does_not_keep_the_others_from_running(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each has a line in what is printed, and is in the record."""
    codes = {"bad": "raise SystemExit('broken')", "one": f"print({LINE!r})"}
    monkeypatch.setattr(report_run, "command_of", lambda name, _: python(codes[name]))
    record = Record([look_around(quick=True)], [])
    run_all(["bad", "one"], Options(quick=True), record, deadline_s=20)
    assert [(outcome.name, bool(outcome.failed)) for outcome in record.outcomes] == [("bad", True), ("one", False)]
    out, err = capfd.readouterr()
    environment, bad, good = (json.loads(line) for line in out.splitlines())
    assert environment["environment"]["quick"] is True
    assert bad["failed"] == "exit code 1: broken"
    assert good["ok"] is True
    assert "---- bad failed: exit code 1: broken" in err
    assert read(out.splitlines()) == record


def test_options_are_handed_on() -> None:
    """To the process of each."""
    assert command_of("x", Options())[1:] == ["-m", "bench", "x"]
    assert command_of("x", Options(quick=True, connections=7))[4:] == ["--quick", "--connections", "7"]
