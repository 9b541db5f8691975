"""The page of results: what is in it, that it is whole by itself, and that no name in it is taken for markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench import __main__ as command
from bench import report_run
from bench.report import about, page
from bench.report_charts import draw_goals, shown, times_better
from bench.report_record import Environment, Outcome, Record
from bench.result import Better, Comparison, Options, Result, Series

PAGE_BYTES_MAX = 500_000
ODD = "<b>&\"'$x_1$ \u00e9"
MACHINE = Environment(
    began="2026-01-02T03:04:05+00:00",
    cpu=f"CPU {ODD}",
    cores=2,
    memory_bytes=8_000_000_000,
    kernel="Linux 6",
    python="CPython 3.11",
    commit="abc1234+",
    load=0.5,
    quick=False,
)
MET = Result(
    "status_lookup",
    4.5,
    "x",
    3,
    "higher",
    {"batch": 500, "rounds": [1.5, 2], "phases": [{"name": "idle", "ms": 2.5}, {"name": "busy", "late": True}]},
    comparison=Comparison(unit="users per CPU second", better="higher", ours=45_000, others={"peer": 10_000}),
)
MISSED = Result("access_idle", 1.28, "cores", 0.6, "lower", {})
NONE_ALLOWED = Result("schedule_canary", 0, "violated", 0, "lower", {"violated": []})
ODD_ONE = Result(
    ODD,
    2,
    ODD,
    1,
    "lower",
    {ODD: {ODD: [ODD, None, {ODD: ODD}]}},
    comparison=Comparison(unit=ODD, better="lower", ours=2, others={ODD: 0}, what=ODD),
    series=Series(of=ODD, over=ODD, lines={ODD: [(1, 2), (8, 3)], f"_{ODD}": [(1, 1)]}),
)
FAILED = Outcome(name="access_drain", failed=f"exit code 1: {ODD}", said=f"Traceback\n  {ODD}", seconds=12.0)


class Tags(HTMLParser):
    """Reads a page as a browser does; what is not closed in order is an error."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def cells(self, start: str) -> str:
        """The text after the first piece that is this, as far as the next row's."""
        at = self.text.index(start, self.text.index("All benchmarks"))
        return "|".join(piece.strip() for piece in self.text[at : at + 30] if piece.strip())


def made(*results: Result, failed: tuple[Outcome, ...] = (), environments: tuple[Environment, ...] = (MACHINE,)) -> str:
    outcomes = [Outcome(name=result.name, result=result, seconds=61.0) for result in results]
    return page(Record(list(environments), [*outcomes, *failed]))


def test_each_figure_stands_beside_its_goal_and_its_peer() -> None:
    """Met, missed, and failed with the reason; the time of each; the claim in the benchmark's own words."""
    seen = Tags(made(MET, MISSED, NONE_ALLOWED, failed=(FAILED,)))
    assert "4 benchmarks: 2 met, 1 missed, 1 failed; 195 s in all." in seen.text
    row = seen.cells("status_lookup")
    assert row.startswith(
        f"status_lookup|{about('status_lookup')[0]}|4.5|x|\u2265 3|met|ours: 45,000|peer: 10,000|users"
    )
    assert "|1.28|cores|\u2264 0.6|missed|61 s|" in seen.cells("access_idle")
    assert f"|failed|exit code 1: {ODD}|12 s" in seen.cells("access_drain")
    assert "|0|violated|\u2264 0|met|" in seen.cells("schedule_canary")


def test_the_machine_is_on_the_page() -> None:
    """With what else it did, and whether files differed from the commit."""
    text = "|".join(Tags(made(MET)).text)
    assert f"CPU {ODD}, 2 cores, 8.0 GB of memory" in text
    assert "Linux 6, CPython 3.11, commit abc1234 with changes" in text
    assert "began|2026-01-02T03:04:05+00:00; 0.5 processes" in text
    assert "quick run" not in text
    assert "more than one run" not in text


def test_figures_that_mean_little_or_are_mixed_say_so() -> None:
    """A quick run, and lines of several runs."""
    quick = Environment(**{name: getattr(MACHINE, name) for name in MACHINE.__struct_fields__} | {"quick": True})
    text = made(MET, environments=(quick, MACHINE))
    assert "A quick run" in text
    assert "more than one run" in text
    assert text.count("<th>machine</th>") == 2
    assert "<th>machine</th>" not in made(MET, environments=())


def test_no_text_is_taken_for_markup() -> None:
    """In names, units, details, charts and what a failure said: it is read as it was written."""
    seen = Tags(made(ODD_ONE, MET, failed=(FAILED,)))
    assert all(tag != "b" for tag, _ in seen.seen)
    assert seen.text.count(ODD) >= 8
    assert f"Traceback\n  {ODD}" in seen.text
    labels = [attrs["aria-label"] for tag, attrs in seen.seen if tag == "svg"]
    assert len(labels) == 4
    assert any(ODD in (label or "") for label in labels)


def test_the_page_is_whole_by_itself() -> None:
    """No script, nothing that is fetched, no id twice, links within the page, no colours but the page's."""
    text = made(MET, MISSED, ODD_ONE, failed=(FAILED,))
    seen = Tags(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in seen.seen}
    ids = [attrs["id"] for _, attrs in seen.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs.get("href") or attrs.get("xlink:href") for _, attrs in seen.seen]
    assert all(link is None or link[0] == "#" for link in links)
    assert {link[1:] for link in links if link} <= set(ids)
    assert not re.findall(r"url\((?!#)|@import", text)
    assert not re.findall(r"(?:fill|stroke): #", text)
    for variable in set(re.findall(r"var\((--\w+)\)", text)):
        assert text.count(f"{variable}: #") == 3, "light, dark and print"


def test_details_are_folded_and_nested() -> None:
    """Objects and lists of objects are tables; what one of a list lacks is empty."""
    text = made(MET)
    assert text.count("<details>") == 1
    assert "<tr><th>batch</th><td>500</td></tr>" in text
    assert "<tr><th>rounds</th><td>1.5, 2</td></tr>" in text
    assert "<tr><th>name</th>\n<th>ms</th>\n<th>late</th></tr>" in text
    assert "<tr><td>busy</td>\n<td></td>\n<td>yes</td></tr>" in text


def test_as_many_as_there_may_be_make_a_page_of_moderate_size() -> None:
    """Forty, each with a comparison: from what one takes."""
    some = [
        Result(
            f"bench_{number}",
            number + 1.5,
            "ms",
            10,
            "lower",
            {"rows": [{"size": size, "ms": 1.25} for size in range(20)]},
            comparison=Comparison(unit="ms", better="lower", ours=1, others={"a": 2, "b": 3}),
        )
        for number in range(2)
    ]
    one, two = (len(made(*some[:count]).encode()) for count in (1, 2))
    assert one + 39 * (two - one) < PAGE_BYTES_MAX


@pytest.mark.parametrize(
    ("value", "goal", "better", "times"),
    [
        (2, 4, "lower", 2),
        (4, 2, "lower", 0.5),
        (4, 2, "higher", 2),
        (2, 4, "higher", 0.5),
        (0, 0, "lower", None),
        (1, 0, "lower", None),
        (0, 5, "lower", None),
        (0, 5, "higher", None),
    ],
)
def test_how_far_from_the_goal(value: float, goal: float, better: Better, times: float | None) -> None:
    """Above 1 is better than it; nothing is a multiple of none."""
    assert times_better(Result("x", value, "ms", goal, better, {})) == times


def test_a_bar_says_how_far_even_if_it_does_not_reach_so_far() -> None:
    """Nobody would see the others beside a bar of a million."""
    drawn = draw_goals(
        [Result(name, value, "ms", 1, "lower", {}) for name, value in (("a", 1e-6), ("b", 1e6), ("c", 1))]
    )
    for text in ("1,000,000 x", "1e-06 x", "1 x"):
        assert f">{text}</text>" in drawn


def test_counts_without_a_multiple_are_no_bars() -> None:
    """If there is nothing else, there is no chart."""
    assert "schedule_canary." in made(NONE_ALLOWED, MET)
    assert "<svg" not in made(NONE_ALLOWED)
    assert "0 benchmarks" in made()


def test_figures_are_written_for_people() -> None:
    """Four digits, or all before the point."""
    written = [shown(value) for value in (0, 3, 0.00318, 1.28456, 999.96, 1_234.5, -12_345_678)]
    assert written == ["0", "3", "0.00318", "1.285", "1000", "1,234", "-12,345,678"]


def test_what_no_module_is_named_after_claims_nothing() -> None:
    """Nor can a name lead to another folder."""
    assert about("access_idle")[0].startswith("CPU of holding idle connections")
    assert "extrapolated" in about("access_idle")[1]
    assert about("no_such_benchmark") == about("../tests/conftest") == about("load/wire") == ("", "")


# ---------------------------------------------------------------- the command


@pytest.fixture(autouse=True)
def _keep_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says what SIGTERM does: to its own process, which is this one here."""
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)


def test_a_page_is_made_of_what_was_printed_once(tmp_path: Path) -> None:
    """Nothing runs."""
    recorded, report = tmp_path / "results.jsonl", tmp_path / "report.html"
    recorded.write_text(f"{MET.to_json()}\n{FAILED.to_json()}", encoding="utf-8")
    ran = CliRunner().invoke(command.main, ["--from", str(recorded), "--report", str(report)])
    assert ran.exit_code == 0, ran.output
    assert "2 benchmarks: 1 met, 0 missed, 1 failed" in report.read_text(encoding="utf-8")


def test_a_table_in_markdown_is_made_of_the_same(tmp_path: Path) -> None:
    """By the file's name; no text breaks a row."""
    odd = Outcome(name="access_drain", failed="no | such\nthing")
    recorded, report = tmp_path / "results.jsonl", tmp_path / "benchmarks.md"
    lines = [MET.to_json(), MISSED.to_json(), odd.to_json()]
    recorded.write_text(
        "\n".join([f'{{"environment": {msgspec.json.encode(MACHINE).decode()}}}', *lines]), encoding="utf-8"
    )
    ran = CliRunner().invoke(command.main, ["--from", str(recorded), "--report", str(report)])
    assert ran.exit_code == 0, ran.output
    text = report.read_text(encoding="utf-8")
    assert "--report benchmarks.md`" in text
    assert "began 2026-01-02T03:04:05+00:00, commit abc1234+.\n" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == ["| `status_lookup`", "| `access_idle`", "| `access_drain`"]
    assert rows[0][1:] == [
        about("status_lookup")[0],
        "4.5 x",
        "≥ 3",
        "met",
        "ours 45,000, peer 10,000 users per CPU second |",
    ]
    assert rows[1][2:] == ["1.28 cores", "≤ 0.6", "missed", " |"]
    assert rows[2][4:] == ["failed", "no \\| such thing |"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status_lookup", "--report", "x.html"], "--report is of `all`"),
        (["--from", "/dev/null"], "--from needs --report"),
        (["--from", __file__, "--report", "x.html"], "line 1 is no result of a benchmark"),
        (["all", "--report", "/no/such/folder/x.html"], "folder/x.html: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(arguments: list[str], says: str) -> None:
    """An hour later it would be too late."""
    ran = CliRunner().invoke(command.main, arguments)
    assert ran.exit_code in {1, 2}
    assert says in ran.output


@pytest.mark.parametrize(("code", "status"), [("print({!r})", 0), ("raise SystemExit('no <redis>')", 1)])
def test_the_exit_code_says_whether_all_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    """A goal that was missed is a result; the page has whatever came of each."""

    def command_of(name: str, _: Options) -> list[str]:
        missed = Result(name, 2, "ms", 1, "lower", {}).to_json()
        return [report_run.sys.executable, "-I", "-S", "-c", code.format(missed)]

    monkeypatch.setattr(report_run, "command_of", command_of)
    monkeypatch.setattr(command, "NAMES", ("first", "second"))
    report = tmp_path / "report.html"
    ran = CliRunner().invoke(command.main, ["all", "--quick", "--report", str(report)])
    assert ran.exit_code == status, ran.output
    text = report.read_text(encoding="utf-8")
    assert ("2 missed, 0 failed" if status == 0 else "0 missed, 2 failed") in text
    assert "A quick run" in text
