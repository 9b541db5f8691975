"""The same results as a table in Markdown, for a repository: figures beside goals and peers, and the machine."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report import about, state_of
from bench.report_charts import shown
from bench.report_record import Environment, Outcome, Record
from bench.result import Comparison

__all__ = ["table"]

_HEAD = """\
# Benchmarks

<!-- Made by `python -m bench all --report {name}`. -->

Goals are aims, not limits of a test; a goal that is missed is here, too. Others that are named ran in the same run on
the same machine. How each is measured stands at the head of its module; `python -m bench NAME` does it again.
"""
_MIXED = "Recorded in more than one run: of what was measured in several, the last one counts."
_COLUMNS = ("benchmark", "claim", "measured", "goal", "met", "in the same run")


def table(record: Record, *, name: str) -> str:
    """Return the page. `name`: of the file that it is for."""
    lines = [_HEAD.format(name=name), *(_environment(each) for each in record.environments), ""]
    lines += [_MIXED, ""] * (len(record.environments) > 1)
    lines += [_row(_COLUMNS), _row(["---"] * len(_COLUMNS)), *(_row(_cells(outcome)) for outcome in record.outcomes)]
    return "\n".join(lines) + "\n"


def _environment(each: Environment) -> str:
    commit = f", commit {each.commit}" if each.commit else ""
    quick = " A quick run: the figures mean little." if each.quick else ""
    return (
        f"- {each.cpu}, {each.cores} cores, {each.memory_bytes / 1e9:.1f} GB of memory, {each.kernel}, {each.python}; "
        f"began {each.began}{commit}.{quick}"
    )


def _cells(outcome: Outcome) -> list[str]:
    result, claim = outcome.result, about(outcome.name)[0]
    if result is None:
        return [f"`{outcome.name}`", claim, "", "", state_of(outcome), outcome.failed]
    sign = "≤" if result.better == "lower" else "≥"
    return [
        f"`{outcome.name}`",
        claim,
        f"{shown(result.value)} {result.unit}",
        f"{sign} {shown(result.goal)}",
        state_of(outcome),
        _beside(result.comparison),
    ]


def _beside(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    figures = [(comparison.what, comparison.ours), *comparison.others.items()]
    return f"{', '.join(f'{name} {shown(value)}' for name, value in figures)} {comparison.unit}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
