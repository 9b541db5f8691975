"""Draws a replay: messages, latencies, connections and presence over the time, with what was done marked in all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from roadstead.replay.core.figures import Mark, Series

__all__ = ["draw"]

SIZE_INCHES = (10.0, 9.5)
GRID, SHADE, EDGE = "#e5e5e5", "#feebd8", "#fd8d3c"
HEADROOM = 1.3
"""For the key to the lines."""
BLUE, DARK, RED, GREEN = "#6baed6", "#08519c", "#d95f0e", "#31a354"
# Colours of nodes that are told apart without a key to colours, too: by their order in the stack.
NODES = ("#08519c", "#6baed6", "#c6dbef", "#31a354", "#d95f0e", "#756bb1", "#969696")


def draw(title: str, made: Series, marks: Sequence[Mark], file: Path) -> None:
    """Write the chart; the file's suffix says as what (.svg, .png). Texts of an SVG stay texts."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "roadstead"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        messages, latencies, connections, presence = figure.subplots(4, 1, sharex=True)
        _messages(messages, made)
        _latencies(latencies, made)
        _connections(connections, made)
        _presence(presence, made)
        for axis in (messages, latencies, connections, presence):
            axis.grid(visible=True, color=GRID, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
            for mark in marks:
                begin_s, end_s = mark.begin_ms / 1_000, mark.end_ms / 1_000
                axis.axvspan(begin_s, end_s, color=SHADE, linewidth=0, zorder=0)
                axis.axvline(begin_s, color=EDGE, linewidth=0.6, zorder=0)
        _names(messages, marks)
        presence.set_xlabel("seconds since it began")
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)


def _names(axis: Axes, marks: Sequence[Mark]) -> None:
    """Write what was done above the uppermost chart, each where it begins."""
    for mark in marks:
        axis.annotate(
            mark.name,
            (mark.begin_ms / 1_000, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, 3),
            textcoords="offset points",
            fontsize=7,
            rotation=25,
            color="black" if mark.is_done else RED,
        )


def _messages(axis: Axes, made: Series) -> None:
    axis.fill_between(made.at_s, made.messages_per_s, step="post", color=BLUE, linewidth=0)
    axis.set_ylabel("messages/s")
    axis.set_ylim(bottom=0)


def _latencies(axis: Axes, made: Series) -> None:
    lines = (
        ("acknowledged, p50", made.send_p50_ms, DARK, "-"),
        ("acknowledged, p99", made.send_p99_ms, DARK, ":"),
        ("delivered, p50", made.delivery_p50_ms, RED, "-"),
        ("delivered, p99", made.delivery_p99_ms, RED, ":"),
    )
    for name, values, color, style in lines:
        points = [float("nan") if value is None else max(value, 1) for value in values]
        axis.plot(made.at_s, points, color=color, linestyle=style, linewidth=1, label=name)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(1, HEADROOM * 10 * max([10, *(value for _, values, *_ in lines for value in values if value)]))
    axis.set_ylabel("ms until")
    axis.legend(fontsize=7, loc="upper right", ncols=2)


def _connections(axis: Axes, made: Series) -> None:
    if made.connections:
        colors = [NODES[number % len(NODES)] for number in range(len(made.connections))]
        axis.stackplot(made.at_s, *made.connections.values(), labels=list(made.connections), colors=colors)
        axis.legend(fontsize=7, loc="upper right", ncols=len(made.connections))
        most = max(sum(counts) for counts in zip(*made.connections.values(), strict=True))
        axis.set_ylim(0, HEADROOM * max(1, most))
    axis.set_ylabel("connections, by access node")


def _presence(axis: Axes, made: Series) -> None:
    axis.step(made.at_s, made.came_per_s, where="post", color=GREEN, linewidth=1, label="devices that came")
    axis.step(made.at_s, [-one for one in made.left_per_s], where="post", color=RED, linewidth=1, label="that left")
    axis.set_ylabel("presence changes/s")
    axis.legend(fontsize=7, loc="upper right")
