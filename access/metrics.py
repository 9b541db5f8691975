"""Metrics of an access node."""

from __future__ import annotations

from collections.abc import Callable

from base.metrics import Metrics

__all__ = ["AccessMetrics"]


class AccessMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, *, connections: Callable[[], int]) -> None:
        self._metrics = metrics
        metrics.gauge("access_connections", "Open client connections.", connections)
        self.connects = metrics.counter("access_connects", "Connect commands, by outcome.", ["outcome"])
        self.refused = metrics.counter(
            "access_refused", "Connections refused before the upgrade, by reason.", ["reason"]
        )
        self.closes = metrics.counter("access_closes", "Sessions closed by this side, by close code.", ["code"])
        self.handshake = metrics.histogram("access_handshake_seconds", "From the connect command to its reply.")
        self.rpcs = metrics.histogram("access_rpc_seconds", "From a client's call to its reply.")
        self.writes = metrics.counter("access_pushes", "Publications written to clients.")
        self.fetches = metrics.counter("access_fetches", "Gaps that were filled from the timeline.")
        self.unpublished = metrics.counter(
            "access_unpublished", "Sessions let in before the status cluster confirmed them in time."
        )
        self.presence_refused = metrics.counter(
            "access_presence_refused", "Presence subscriptions that were refused, by error.", ["error"]
        )

    def show_presence(self, hub: Callable[[], dict[str, int]], watches: Callable[[], dict[str, int]]) -> None:
        """Show sizes: of the presence hub, and of the watches at the owners."""
        self._metrics.gauge("access_presence_channels", "Presence channels of all clients.", lambda: hub()["channels"])
        self._metrics.gauge(
            "access_watched_users", "Users whom this node watches for its clients.", lambda: watches()["users"]
        )
