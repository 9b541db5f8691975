"""Draws runs of one scenario, a column each: above, how full the nodes were; below, how hard they were hit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from roadstead.sim.fleet.figures import Run

__all__ = ["draw"]

COLUMN_INCHES = 3.2
HEIGHT_INCHES = 5.6
HEADROOM = 2.5
"""What is above so many times the greatest mean is cut off, lest one bad policy flattens all others."""
BAND, LINE, WORST = "#9ecae1", "#08519c", "#d95f0e"


def draw(title: str, runs: Sequence[Run], file: Path) -> None:
    """Write the chart; the file's suffix says as what (.svg, .png, .pdf)."""
    figure = Figure(figsize=(max(2, len(runs)) * COLUMN_INCHES, HEIGHT_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for column, run in enumerate(runs):
        series = run.series
        above, below = axes[0][column], axes[1][column]
        above.set_title(run.policy, fontsize=10)
        above.fill_between(series.second, series.least, series.most, color=BAND, linewidth=0, label="min to max")
        above.plot(series.second, series.mean, color=LINE, linewidth=1, label="mean")
        below.plot(series.second, series.accepts_most, color=WORST, linewidth=0.7, label="busiest node")
        below.plot(series.second, series.accepts_mean, color=LINE, linewidth=0.7, label="mean")
        below.set_xlabel("seconds")
        for axis in (above, below):
            axis.grid(visible=True, color="#e5e5e5", linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("connections per node")
    axes[1][0].set_ylabel("accepts per node and s")
    axes[0][0].set_ylim(0, _top([run.series.most for run in runs], [run.series.mean for run in runs]))
    axes[1][0].set_yscale("symlog", linthresh=10)  # of newcomers, single ones and storms are to be seen
    axes[1][0].set_ylim(bottom=0)
    axes[1][0].yaxis.set_major_formatter("{x:g}")
    axes[0][0].legend(fontsize=8, loc="upper left")
    axes[1][0].legend(fontsize=8, loc="upper left")
    figure.savefig(file, dpi=120)


def _top(most: Sequence[Sequence[float]], mean: Sequence[Sequence[float]]) -> float:
    """Return the upper end of the axis."""
    highest = max((max(values, default=0.0) for values in most), default=0.0)
    usual = max((max(values, default=0.0) for values in mean), default=0.0)
    return max(1.0, 1.05 * min(highest, HEADROOM * usual))
