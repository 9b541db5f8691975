"""Metrics of a status node."""

from __future__ import annotations

from collections.abc import Callable

from base.metrics import Metrics

__all__ = ["StatusMetrics"]


class StatusMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, statistics: Callable[[], dict[str, int]]) -> None:
        self.beats = metrics.counter("status_beats", "Heartbeats of access nodes that were applied.")
        self.resyncs = metrics.counter(
            "status_resyncs", "Heartbeats answered with a request for a full synchronisation."
        )
        self.deltas = metrics.counter("status_deltas", "Session changes applied.")
        self.lookups = metrics.counter("status_lookups", "Users looked up.")
        self.misrouted = metrics.counter("status_misrouted", "Users looked up at a node that does not own them.")
        self.stalls = metrics.counter(
            "status_stalls_ms", "Milliseconds by which this node extended leases for its own lag."
        )
        metrics.gauge("status_users", "Users with an open session here.", lambda: statistics()["users"])
        metrics.gauge("status_sessions", "Open sessions here.", lambda: statistics()["sessions"])
        metrics.gauge(
            "status_recovering",
            "Access nodes whose sessions are not all known yet; above 0, a user not found is unknown, not offline.",
            lambda: statistics()["awaited"] + statistics()["unfinished"],
        )
