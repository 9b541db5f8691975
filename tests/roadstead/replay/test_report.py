"""What is written of a replay: right figures, every operation, and files that a page may carry."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from base.errors import ConfigError
from roadstead.replay.core.figures import Happened, Mark, Sample
from roadstead.replay.core.proof import Proof, Violation
from roadstead.replay.report import facts_of, written
from roadstead.replay.run import Outcome

LOOKED = {
    "messages": 3_000,
    "acknowledged": 2_999,
    "conversations": 2,
    "log entries": 2_999,
    "devices": 5,
    "deliveries": 7_000,
    "unread counts": 4,
    "statuses": 6,
}


def outcome(*violations: Violation) -> Outcome:
    """Of a run of five minutes."""
    events = [(100 * number, 5 + number % 90) for number in range(3_000)]
    return Outcome(
        proof=Proof(violations, LOOKED),
        happened=Happened(events, events, [(at, 1 if at % 200 else -1) for at, _ in events], unknown=2),
        samples=[Sample(at, {f"access-{node}": (at + node) % 300 for node in range(5)}) for at, _ in events[::10]],
        marks=[
            Mark("resize 3 to 5", 10_000, 20_000, "done: 5 | moved"),
            Mark("drain access-1", 30_000, 31_000, "it failed", is_done=False),
        ],
        took_ms=300_000,
    )


def test_the_page_has_the_figures_and_the_operations_and_small_charts(tmp_path: Path) -> None:
    """An SVG of less than 150 kB whose texts are texts; a PNG; and all of it for programs."""
    files = written(tmp_path / "report", "a title", outcome(), ["what was not done"])
    assert [file.name for file in files] == ["report.md", "replay.svg", "replay.png", "replay.json"]
    page = files[0].read_text()
    for text in ("# a title", "2,999 of 3,000", "| resize 3 to 5 | done: 5 \\| moved |", "- what was not done"):
        assert text in page
    assert "Violations" not in page
    assert files[1].stat().st_size < 150_000
    texts = " ".join(ET.parse(files[1]).getroot().itertext())  # noqa: S314 - our own
    assert all(text in texts for text in ("a title", "resize 3 to 5", "drain access-1", "access-4", "messages/s"))
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert len(msgspec.json.decode(files[3].read_bytes())["operations"]) == 2


def test_violations_are_on_the_page_with_their_messages(tmp_path: Path) -> None:
    """A replay without operations says nothing of any."""
    proof = Proof((Violation("lost", "in no log", ("x/17",)),), LOOKED)
    made = Outcome(proof, Happened(sends=[(5, 5)]), [], [], 10)
    page = written(tmp_path, "a title", made, [])[0].read_text()
    assert "- lost: in no log: x/17" in page
    assert "meanwhile" not in page


def test_only_a_run_without_violations_and_failed_operations_is_right() -> None:
    """What was to be done and was not is not passed over."""
    made = outcome()
    assert not made.is_right
    made = msgspec.structs.replace(made, marks=made.marks[:1])
    assert made.is_right
    assert not msgspec.structs.replace(made, proof=outcome(Violation("lost", "", ())).proof).is_right


def test_a_run_of_nothing_has_figures() -> None:
    """No latencies, and no division by nothing."""
    nothing = Outcome(Proof((), dict.fromkeys(LOOKED, 0)), Happened(), [], [], 0)
    assert dict(facts_of(nothing).rows)["until acknowledged"] == "-"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """By its name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        written(tmp_path / "file", "a title", outcome(), [])
