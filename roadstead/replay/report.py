"""What is told of a replay: its figures, and a folder with a page in Markdown, its charts, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from base.errors import ConfigError
from roadstead.replay.core.figures import Series, percentile, series
from roadstead.replay.run import Outcome

__all__ = ["Facts", "facts_of", "written"]

VIOLATIONS_SHOWN = 20
FORMATS = ("svg", "png")


class Facts(msgspec.Struct, frozen=True):
    """The figures, by name and in their order, as they are shown."""

    rows: tuple[tuple[str, str], ...]


def facts_of(outcome: Outcome) -> Facts:
    """Return the figures of a replay."""
    happened, looked = outcome.happened, outcome.proof.looked
    sends = sorted(took for _, took in happened.sends)
    deliveries = sorted(took for _, took in happened.deliveries)
    came = sum(change > 0 for _, change in happened.presence)
    seconds = max(outcome.took_ms, 1) / 1_000
    return Facts(
        (
            ("messages", f"{looked['acknowledged']:,} of {looked['messages']:,} acknowledged"),
            ("in", f"{seconds:.1f} s, {looked['acknowledged'] / seconds:.0f} a second"),
            ("conversations", f"{looked['conversations']:,}"),
            ("devices", f"{looked['devices']:,}, which came {came:,} times"),
            ("given to devices", f"{looked['deliveries']:,} messages"),
            ("until acknowledged", _latencies(sends)),
            ("until in the other's hands", _latencies(deliveries)),
            ("calls given up, made again", f"{happened.unknown:,}, with the same id"),
            ("unread counts compared", f"{looked['unread counts']:,}"),
            ("statuses compared", f"{looked['statuses']:,}"),
            ("violations", f"{len(outcome.proof.violations):,}"),
        )
    )


def _latencies(sorted_ms: Sequence[int]) -> str:
    if not sorted_ms:
        return "-"
    p50, p99 = percentile(sorted_ms, 50), percentile(sorted_ms, 99)
    return f"p50 {p50} ms, p99 {p99} ms, worst {sorted_ms[-1]:,} ms"


def written(folder: Path, title: str, outcome: Outcome, left_out: Sequence[str]) -> list[Path]:
    """Write the report and return its files. Raises ConfigError when the folder cannot be written."""
    from roadstead.replay.chart import draw

    made = series(outcome.happened, outcome.samples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        charts = [folder / f"replay.{suffix}" for suffix in FORMATS]
        for chart in charts:
            draw(title, made, outcome.marks, chart)
        page, data = folder / "report.md", folder / "replay.json"
        page.write_text(_page(title, outcome, left_out), encoding="utf-8")
        data.write_bytes(msgspec.json.format(msgspec.json.encode(_data(title, outcome, made)), indent=0))
    except OSError as error:
        raise ConfigError([f"{error.filename or folder} cannot be written: {error.strerror}"]) from error
    return [page, *charts, data]


def _data(title: str, outcome: Outcome, made: Series) -> dict[str, object]:
    return {
        "title": title,
        "took_ms": outcome.took_ms,
        "looked": outcome.proof.looked,
        "violations": outcome.proof.violations,
        "operations": outcome.marks,
        "series": made,
    }


def _page(title: str, outcome: Outcome, left_out: Sequence[str]) -> str:
    lines = [f"# {title}", "", *_table(("", ""), facts_of(outcome).rows), "", "![What happened when](replay.svg)", ""]
    if outcome.marks:
        rows = [
            (f"{mark.begin_ms / 1_000:.1f} s", f"{(mark.end_ms - mark.begin_ms) / 1_000:.1f} s", mark.name, mark.says)
            for mark in outcome.marks
        ]
        lines += ["## What was done meanwhile", "", *_table(("at", "took", "what", "what came of it"), rows), ""]
    if left_out:
        lines += ["Not done, since it needs a cluster:", "", *(f"- {one}" for one in left_out), ""]
    lines += ["## What was compared", "", *_table(("", ""), [(k, f"{n:,}") for k, n in outcome.proof.looked.items()])]
    if outcome.proof.violations:
        lines += ["", "## Violations", "", *(f"- {one}" for one in outcome.proof.violations[:VIOLATIONS_SHOWN])]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in escaped)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
