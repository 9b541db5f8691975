"""Metrics of an access node."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter

from base.core.histogram import Histogram
from base.metrics import Metrics

__all__ = ["AccessMetrics", "Labelled"]


class Labelled:
    """A counter with labels, counted up by their values."""

    def __init__(self, counter: Counter, node: str) -> None:
        self._counter = counter
        self._node = node

    def inc(self, *labels: str) -> None:
        """Count one more."""
        self._counter.labels(self._node, *labels).inc()

    def add(self, count: int, *labels: str) -> None:
        """Count so many more."""
        self._counter.labels(self._node, *labels).inc(count)

    def total(self) -> int:
        """Return the sum over all labels."""
        samples = (sample for family in self._counter.collect() for sample in family.samples)
        return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))


class AccessMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, *, node: str, connections: Callable[[], int]) -> None:
        self._metrics = metrics
        self._node = node
        metrics.gauge("access_connections", "Open client connections.", connections)
        self.connects = self._labelled("access_connects", "Connect commands, by outcome.", "outcome")
        self.refused = self._labelled("access_refused", "Connections refused before the upgrade, by reason.", "reason")
        self.dropped = self._labelled(
            "access_dropped", "Connections dropped on their way through the handshake, by reason.", "reason"
        )
        self.closes = self._labelled(
            "access_closes", "Connections that ended, by close code; 1006: without any, so abnormally.", "code"
        )
        self.command_errors = self._labelled(
            "access_command_errors", "Commands answered with an error, by command and error code.", "command", "code"
        )
        self._handshake_s = metrics.histogram("access_handshake_seconds", "From the connect command to its reply.")
        self.handshakes = Histogram()
        """The same in ms, as it is reported."""
        self._push_s = metrics.histogram(
            "access_push_seconds",
            "From the arrival of a delivery of the message services, or of a push to many, to its last write.",
        )
        self.pushes = Histogram()
        """The same in ms, as it is reported."""
        self.rpcs = metrics.histogram("access_rpc_seconds", "From a client's call to its reply.")
        self.writes = metrics.counter("access_pushes", "Publications written to clients.")
        self.fetches = metrics.counter("access_fetches", "Gaps that were filled from the timeline.")
        self.unpublished = metrics.counter(
            "access_unpublished", "Sessions let in before the status cluster confirmed them in time."
        )
        self.unproven = metrics.counter(
            "access_unproven", "Sessions that ended in silence and may not have got all that was written to them."
        )
        self.shed = metrics.counter(
            "access_shed", "Clients closed because too much waited for all clients together, the slowest first."
        )
        self.presence_refused = self._labelled(
            "access_presence_refused", "Presence subscriptions that were refused, by error.", "error"
        )
        self.moved = self._labelled(
            "access_moves", "Clients told to go to another node, by a drain or an order, by how that ended.", "outcome"
        )
        self.ordered = self._labelled(
            "access_move_orders", "Clients that were ordered to go to another node, by what was done.", "outcome"
        )

    def let_in(self, seconds: float) -> None:
        """Take note of how long a connect took that succeeded."""
        self._handshake_s.observe(seconds)
        self.handshakes.observe(seconds * 1000)

    def pushed(self, seconds: float) -> None:
        """Take note of how long a delivery, or a push to many, took."""
        self._push_s.observe(seconds)
        self.pushes.observe(seconds * 1000)

    def show_presence(self, hub: Callable[[], dict[str, int]], watches: Callable[[], dict[str, int]]) -> None:
        """Show sizes: of the presence hub, and of the watches at the owners."""
        self._metrics.gauge("access_presence_channels", "Presence channels of all clients.", lambda: hub()["channels"])
        self._metrics.gauge(
            "access_watched_users", "Users whom this node watches for its clients.", lambda: watches()["users"]
        )

    def show_leaving(self, leaving: Callable[[], float]) -> None:
        """Show how many are on their way."""
        self._metrics.gauge(
            "access_leaving_sessions", "Sessions shown for a moment longer, of clients sent to another node.", leaving
        )

    def show_listener(
        self,
        *,
        arrivals: Callable[[], float],
        queued: Callable[[], float],
        resident: Callable[[], float],
        lag: Callable[[], float],
    ) -> None:
        """Show what the node watches of itself."""
        self._metrics.gauge("access_arrivals", "Connections on their way through the handshake.", arrivals)
        self._metrics.gauge("access_queued_bytes", "Bytes that wait for clients that do not keep up.", queued)
        self._metrics.gauge("access_resident_bytes", "Resident memory of the process.", resident)
        self._metrics.gauge("access_loop_lag_seconds", "How late the event loop was, the worst of a second.", lag)

    def _labelled(self, name: str, meaning: str, *labels: str) -> Labelled:
        return Labelled(self._metrics.counter(name, meaning, labels), self._node)
