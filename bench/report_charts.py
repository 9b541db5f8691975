"""Draws what benchmarks measured, as SVG that takes its colours from the page around it.

Bars begin at zero, or on the logarithmic axis at one, where measured is the goal: a bar's length is the figure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from math import isfinite
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.result import Comparison, Result, Series

__all__ = ["draw_comparison", "draw_goals", "draw_series", "shown", "times_better"]

WIDTH_INCHES = 8.0
BAR_INCHES = 0.24
FRAME_INCHES = 0.75
SERIES_INCHES = 2.8
TIMES_MAX = 1_000.0
"""What is further from its goal is drawn as if it were so far, and says how far it is."""
TEXT, GRID, OURS, OTHER, MISSED = "#010101", "#020202", "#030303", "#040404", "#050505"
LINES = (OURS, OTHER, MISSED, TEXT)
DASHES = ("-", "--", ":", "-.")
COLOURS = {TEXT: "--text", GRID: "--grid", OURS: "--ours", OTHER: "--other", MISSED: "--missed"}
"""Stand-ins, which the page's colours take the places of: so one drawing is right in light, in dark and in print."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}


def times_better(result: Result) -> float | None:
    """Return how many times better than its goal a figure is, below 1 if it is worse; None where that is no number.

    Counts of what must not happen have the goal 0, of which nothing is a part.
    """
    over, under = (result.goal, result.value) if result.better == "lower" else (result.value, result.goal)
    return over / under if over > 0 and under > 0 and isfinite(over / under) else None


def shown(value: float) -> str:
    """Write a figure for people: four digits or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1_000 or value == int(value) else f"{value:.4g}"


def draw_goals(results: Sequence[Result]) -> Markup:
    """Draw how far each is from its goal, of those for which that is a number; one of them at least."""
    found = [(result, times) for result in results if (times := times_better(result)) is not None]
    assert found
    with mpl.rc_context(STYLE):
        figure, axes = _figure(len(found) * BAR_INCHES + FRAME_INCHES)
        axes.set_xscale("log")
        for row, (result, times) in enumerate(found):
            end = min(max(times, 1 / TIMES_MAX), TIMES_MAX)
            axes.barh(row, end - 1, left=1, height=0.7, color=OURS if result.ok else MISSED)
            _say(axes, end, row, f"{shown(times)} x", left=times < 1)
        ends = [min(max(times, 1 / TIMES_MAX), TIMES_MAX) for _, times in found]
        least, most = min(*ends, 1), max(*ends, 1)
        room = max(2, (most / least) ** 0.15)  # for what stands at the ends
        axes.set_xlim(least / room, most * room)
        axes.axvline(1, color=TEXT, linewidth=1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("times better than the goal, which is at 1 (logarithmic)")
        _rows(axes, [result.name for result, _ in found])
        return _svg(figure, "goals", "Each figure beside its goal: " + _told([(r.name, t) for r, t in found]))


def draw_comparison(name: str, comparison: Comparison) -> Markup:
    """Draw ours and the others', a bar each."""
    bars = [(comparison.what, comparison.ours), *comparison.others.items()]
    with mpl.rc_context(STYLE):
        figure, axes = _figure(len(bars) * BAR_INCHES + FRAME_INCHES)
        for row, (_, value) in enumerate(bars):
            axes.barh(row, value, height=0.7, color=OTHER if row else OURS)
            _say(axes, value, row, shown(value), left=False)
        axes.set_xlim(0, max([value for _, value in bars if value > 0], default=1) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(f"{comparison.unit} ({comparison.better} is better)", parse_math=False)
        _rows(axes, [label for label, _ in bars])
        return _svg(figure, f"comparison {name}", f"{comparison.unit}: {_told(bars)}")


def draw_series(name: str, series: Series) -> Markup:
    """Draw how something grows, from zero on."""
    with mpl.rc_context(STYLE):
        figure, axes = _figure(SERIES_INCHES)
        for number, (label, points) in enumerate(series.lines.items()):
            colour, dashes = LINES[number % len(LINES)], DASHES[number // len(LINES) % len(DASHES)]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, label=label, color=colour, linestyle=dashes, marker="o", markersize=4)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min([0, *(y for points in series.lines.values() for _, y in points)]))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(series.over, parse_math=False)
        axes.set_ylabel(series.of, parse_math=False)
        axes.grid(visible=True)
        for text in axes.legend(loc="center left", bbox_to_anchor=(1, 0.5)).get_texts():
            text.set_parse_math(False)
        return _svg(figure, f"series {name}", f"{series.of} over {series.over}: {', '.join(series.lines)}")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")


def _say(axes: Axes, x: float, y: float, text: str, *, left: bool) -> None:
    """Write at the end of a bar."""
    side = "right" if left else "left"
    axes.annotate(text, (x, y), (-4 if left else 4, 0), textcoords="offset points", ha=side, va="center")


def _told(values: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in values)


def _svg(figure: Figure, name: str, said: str) -> Markup:
    """Return the drawing as an element of a page, with what it shows in words for those who cannot see it."""
    with io.StringIO() as file, mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|(?<=>)\s+(?=<)", "", text, flags=re.DOTALL)
    # Other drawings on the page have the same ids: those stay that are referred to, which are hashes with the name in.
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(said), 1))  # noqa: S704
