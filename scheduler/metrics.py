"""Metrics of a scheduler."""

from __future__ import annotations

from collections.abc import Callable

from base.metrics import Metrics

__all__ = ["SchedulerMetrics"]


class SchedulerMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, *, access_nodes: Callable[[], int]) -> None:
        self.decisions = metrics.counter("schedule_decisions", "Access requests answered with candidates.")
        self.refusals = metrics.counter("schedule_refusals", "Access requests refused because no node takes clients.")
        metrics.gauge("schedule_access_nodes", "Access nodes in the snapshot.", access_nodes)
