"""Metrics of a status node."""

from __future__ import annotations

from collections.abc import Callable

from base.metrics import Metrics

__all__ = ["FeedMetrics", "PresenceMetrics", "ServingMetrics", "StatusMetrics"]


class StatusMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, statistics: Callable[[], dict[str, int]]) -> None:
        self.beats = metrics.counter("status_beats", "Heartbeats of access nodes that were applied.")
        self.mismatches = metrics.counter(
            "status_mismatches", "Partitions of which an access node was asked to tell everything, by an audit."
        )
        self.changes = metrics.counter("status_changes", "Session changes received in heartbeats.")
        self.lookups = metrics.counter("status_lookups", "Users looked up.")
        self.parked = metrics.counter("status_parked", "Lookups that waited for a sealed partition.")
        self.park_time = metrics.histogram("status_park_seconds", "How long a lookup waited for a sealed partition.")
        self.stalls = metrics.counter(
            "status_stalls_ms", "Milliseconds by which this node extended leases for its own lag."
        )
        metrics.gauge(
            "status_users",
            "Users who are known here: with an open session, or with the time at which they were last seen.",
            lambda: statistics()["users"],
        )
        metrics.gauge("status_sessions", "Open sessions here.", lambda: statistics()["sessions"])
        metrics.gauge(
            "status_recovering",
            "Partitions here that are not completely known yet; a user not found in them is unknown, not offline.",
            lambda: statistics()["recovering"],
        )
        metrics.gauge(
            "status_in_doubt",
            "1 while most access nodes seem to have died at once, which is rather a fault of this node: then nobody is"
            " said to be offline, until they are heard again or the registry does not list them any more.",
            lambda: statistics()["in_doubt"],
        )


class ServingMetrics:
    """Of what lets this node answer."""

    def __init__(
        self, metrics: Metrics, *, granter: Callable[[], int], is_registry_reachable: Callable[[], bool]
    ) -> None:
        """`granter`: on whose grant the node answers, as `serving.Granter` numbers it."""
        metrics.gauge(
            "status_degraded",
            "0 while the leader grants this node its serving lease, 1 while only a majority of the status nodes does"
            " (all is served, nothing can be resized), 2 while nobody does (this node answers nothing).",
            granter,
        )
        metrics.gauge(
            "status_registry_reachable",
            "1 if the registry answered when it was last read, 0 if not.",
            is_registry_reachable,
        )


class FeedMetrics:
    """Of the session event feed. What is logged is counted by the log, which must not cost each event a counter."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.read = metrics.counter("status_events_read", "Events and resyncs read from this node's event log.")
        self.resyncs = metrics.counter(
            "status_events_resyncs", "Partitions of which a reader of the event feed got everything that is open."
        )

    def show_log(self, statistics: Callable[[], dict[str, int]]) -> None:
        """Show the log's sizes."""
        self._metrics.gauge(
            "status_events_logged",
            "Session events that this life of the node logged; a resync counts one.",
            lambda: statistics()["head"],
        )

    def show_readers(self, readers: Callable[[], int]) -> None:
        """Show how many readers wait."""
        self._metrics.gauge(
            "status_events_readers", "Readers of the event feed that wait here: streams and long polls.", readers
        )


class PresenceMetrics:
    """Of watches and device policy."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.notices = metrics.counter("status_notices", "Snapshots and changes of watched users sent to access nodes.")
        self.notices_lost = metrics.counter(
            "status_notices_lost", "Notices that could not leave; the access node then says anew what it watches."
        )
        self.watch_mismatches = metrics.counter(
            "status_watch_mismatches", "Assertions of access nodes that had other watches than this node knew."
        )
        self.evictions = metrics.counter("status_evictions", "Sessions that the device policy closed.")
        self.evictions_unheard = metrics.counter(
            "status_evictions_unheard", "Sessions that were told to go again and again, and were still there."
        )

    def show_watches(self, statistics: Callable[[], dict[str, int]]) -> None:
        """Show sizes."""
        self._metrics.gauge("status_watched_users", "Users here whom anybody watches.", lambda: statistics()["users"])
        self._metrics.gauge("status_viewers", "Pairs of watched user and viewer.", lambda: statistics()["viewers"])
