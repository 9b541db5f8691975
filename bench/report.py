"""One HTML page of what benchmarks measured: every figure beside its goal and its peers, and the machine.

The page has all that it needs in it, and no script. It follows the reader's choice of light or dark, and prints.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bench.report_charts import draw_comparison, draw_goals, draw_series, shown, times_better
from bench.report_record import Environment, Outcome, Record
from bench.result import Comparison, Result

__all__ = ["about", "page", "state_of"]

STYLE = Markup("""
:root { color-scheme: light dark; --page: #fff; --text: #1d2430; --soft: #5b6675; --grid: #c9d0d9; --band: #f3f5f8;
  --ours: #1f6fb2; --other: #8a96a3; --missed: #c2571a; --met: #1d7a46; --failed: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #14181e; --text: #e3e8ee; --soft: #9aa6b3; --grid: #3a4350;
  --band: #1c222a; --ours: #5aa9e6; --other: #7b8794; --missed: #f0925a; --met: #63c98f; --failed: #ff8a80; } }
body { margin: 2rem auto; max-width: 68rem; padding: 0 1rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: .2rem; } h2 { margin: 2.2rem 0 .2rem; font-size: 1.15rem; }
a { color: var(--ours); } p { max-width: 48rem; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top; }
th { font-weight: 600; } thead th { background: var(--band); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.number .soft { white-space: normal; }
.soft { color: var(--soft); font-size: .88em; } .met { color: var(--met); } .missed { color: var(--missed); }
.failed { color: var(--failed); } .met, .missed, .failed { font-weight: 600; white-space: nowrap; }
.warning { border-left: 4px solid var(--missed); padding: .2rem .8rem; }
svg { display: block; max-width: 100%; height: auto; margin: .6rem 0; }
details table { width: auto; font-size: .88em; } details td, details th { padding: .1rem .6rem; }
details table table { font-size: 1em; }
details p, pre { white-space: pre-wrap; font-size: .88em; } summary { cursor: pointer; color: var(--soft); }
@media print { :root { color-scheme: light; --page: #fff; --text: #000; --soft: #444; --grid: #bbb; --band: #eee;
  --ours: #1f6fb2; --other: #8a96a3; --missed: #a8450f; --met: #14532d; --failed: #8c1d18; }
  body { margin: 0; max-width: none; font-size: 11px; } .wide { overflow-x: visible; }
  tr, svg { break-inside: avoid; } h2 { break-after: avoid; } details:not([open]) { display: none; } }
""")

_PAGE = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{warning}{environments}
{goals}
<h2>All benchmarks</h2>
<div class="wide"><table>
<thead><tr><th>claim</th><th class="number">measured</th><th class="number">goal</th><th>met</th>
<th>in the same run</th><th class="number">took</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>
{sections}
</body>
</html>
""")
_GOALS = Markup("""<h2>Beside the goals</h2>
<p class="soft">Goals are aims, not limits of a test. {left_out}</p>
{chart}""")
_ENVIRONMENT = Markup("""<table>
<tr><th>machine</th><td>{cpu}, {cores} cores, {memory} GB of memory</td></tr>
<tr><th>software</th><td>{kernel}, {python}{commit}</td></tr>
<tr><th>began</th><td>{began}; {load} processes ran in the minute before</td></tr>
</table>""")
_ROW = Markup("""<tr><td><a href="#{name}">{name}</a><div class="soft">{claim}</div></td>
<td class="number">{measured}</td><td class="number">{goal}</td><td class="{state}">{state}</td><td>{beside}</td>
<td class="number">{took}</td></tr>""")
_SECTION = Markup("""<section id="{name}"><h2>{name}</h2>
<p>{claim}</p>
{figures}<details><summary>How it is measured, and all figures</summary>
<p>{method}</p>
{details}</details></section>""")
_WARNING = Markup("""<p class="warning">{}</p>
""")
_QUICK = "A quick run: it proves that each benchmark runs, in a few seconds. Its figures mean little."
_MIXED = "Recorded in more than one run, perhaps on different machines: the list below has all of them."


def page(record: Record) -> str:
    """Return the page, with whatever names and texts are in the record."""
    outcomes = record.outcomes
    states = [state_of(outcome) for outcome in outcomes]
    took_s = sum(outcome.seconds or 0 for outcome in outcomes)
    counted = ", ".join(f"{states.count(state)} {state}" for state in ("met", "missed", "failed"))
    warnings = [_QUICK] * any(each.quick for each in record.environments) + [_MIXED] * (len(record.environments) > 1)
    return _PAGE.format(
        title="Benchmarks of Roadstead",
        style=STYLE,
        summary=f"{len(outcomes)} benchmarks: {counted}; {_duration(took_s)} in all.",
        warning=_joined(_WARNING.format(warning) for warning in warnings),
        environments=_joined(_environment(each) for each in record.environments),
        goals=_goals([outcome.result for outcome in outcomes if outcome.result is not None]),
        rows=_joined(_row(outcome) for outcome in outcomes),
        sections=_joined(_section(outcome) for outcome in outcomes),
    )


def about(name: str) -> tuple[str, str]:
    """Return what a benchmark claims, and how it measures that: the first line of its module and the rest of its text.

    Both are empty for a name that no module has. The module is read, and not loaded.
    """
    file = Path(__file__).parent / f"{name}.py"
    if not name.isidentifier() or not file.exists():
        return "", ""
    claim, _, method = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")
    return claim, method.strip()


# ---------------------------------------------------------------- parts


def _environment(each: Environment) -> Markup:
    commit = f", commit {each.commit.removesuffix('+')}" if each.commit else ""
    return _ENVIRONMENT.format(
        cpu=each.cpu,
        cores=each.cores,
        memory=f"{each.memory_bytes / 1e9:.1f}",
        kernel=each.kernel,
        python=each.python,
        commit=commit + (" with changes" if each.commit.endswith("+") else ""),
        began=each.began,
        load=each.load,
    )


def _goals(results: Sequence[Result]) -> Markup:
    drawn = [result for result in results if times_better(result) is not None]
    if not drawn:
        return Markup()
    left_out = ", ".join(result.name for result in results if times_better(result) is None)
    return _GOALS.format(
        chart=draw_goals(drawn),
        left_out=f"Not drawn, since of 0 nothing is a multiple: {left_out}." if left_out else "",
    )


def _row(outcome: Outcome) -> Markup:
    result = outcome.result
    measured = goal = beside = Markup()
    if result is not None:
        measured = Markup('{}<div class="soft">{}</div>').format(shown(result.value), result.unit)
        goal = Markup("{} {}").format("≤" if result.better == "lower" else "≥", shown(result.goal))
        beside = _beside(result.comparison)
    else:
        beside = Markup('<span class="soft">{}</span>').format(outcome.failed)
    return _ROW.format(
        name=outcome.name,
        claim=about(outcome.name)[0],
        measured=measured,
        goal=goal,
        state=state_of(outcome),
        beside=beside,
        took="" if outcome.seconds is None else _duration(outcome.seconds),
    )


def _beside(comparison: Comparison | None) -> Markup:
    if comparison is None:
        return Markup()
    figures = [(comparison.what, comparison.ours), *comparison.others.items()]
    lines = Markup("<br>").join(Markup("{}: {}").format(name, shown(value)) for name, value in figures)
    return Markup('{}<div class="soft">{}</div>').format(lines, comparison.unit)


def _section(outcome: Outcome) -> Markup:
    claim, method = about(outcome.name)
    figures, details = Markup(), Markup()
    result = outcome.result
    if result is None:
        figures = Markup('<p class="failed">{}</p>\n').format(outcome.failed)
        details = Markup("<pre>{}</pre>\n").format(outcome.said)
    else:
        if result.comparison is not None:
            figures += draw_comparison(outcome.name, result.comparison)
        if result.series is not None:
            figures += draw_series(outcome.name, result.series)
        details = _value(result.details)
    return _SECTION.format(name=outcome.name, claim=claim, method=method, figures=figures, details=details)


def _value(value: Any) -> Markup:
    """Show what JSON can hold: objects and lists of objects as tables."""
    if isinstance(value, Mapping):
        rows = (Markup("<tr><th>{}</th><td>{}</td></tr>").format(key, _value(item)) for key, item in value.items())
        return Markup("<table>{}</table>").format(_joined(rows))
    if isinstance(value, list):
        columns = list(dict.fromkeys(key for item in value if isinstance(item, Mapping) for key in item))
        if columns and all(isinstance(item, Mapping) for item in value):
            head = _joined(Markup("<th>{}</th>").format(column) for column in columns)
            cells = ([Markup("<td>{}</td>").format(_value(item.get(key, ""))) for key in columns] for item in value)
            body = _joined(Markup("<tr>{}</tr>").format(_joined(row)) for row in cells)
            return Markup('<div class="wide"><table><tr>{}</tr>{}</table></div>').format(head, body)
        return Markup(", ").join(_value(item) for item in value)
    if value is None:
        return Markup("-")
    if isinstance(value, bool):
        return Markup("yes") if value else Markup("no")
    return Markup("{}").format(shown(value) if isinstance(value, int | float) else value)


# ---------------------------------------------------------------- texts


def state_of(outcome: Outcome) -> str:
    """Return met, missed or failed."""
    if outcome.result is None:
        return "failed"
    return "met" if outcome.result.ok else "missed"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)
