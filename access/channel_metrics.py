"""Metrics of the application channels of an access node."""

from __future__ import annotations

from collections.abc import Callable

from base.metrics import Metrics

__all__ = ["ChannelMetrics"]


class ChannelMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, *, node: str) -> None:
        self._metrics = metrics
        self._claims = metrics.counter(
            "access_channel_claims", "Claims of this node to own a channel, by how they ended.", ["outcome"]
        )
        self._node = node
        self.forgotten = metrics.counter(
            "access_channel_forgotten",
            "Channels that kept nothing, had no subscribers and gave way to others: this node owns as many as it may.",
        )
        self.left_out = metrics.counter(
            "access_channel_left_out",
            "Clients let in without a channel that the server subscribes them to: its owner had no room.",
        )
        self.published = metrics.counter("access_channel_publications", "Publications numbered or relayed as owner.")
        self.unknown = metrics.counter(
            "access_channel_unknown", "Publications whose backup did not answer in time: they may appear, or not."
        )
        self.commit = metrics.histogram(
            "access_channel_commit_seconds", "From numbering a publication until its backup had it."
        )
        self.rejoins = metrics.counter(
            "access_channel_rejoins", "Channels joined again at their owner: it changed, or something was missing."
        )
        self.resets = metrics.counter(
            "access_channel_resets", "Subscriptions told to start over, since something could not be told any more."
        )
        self.expired = metrics.counter("access_channel_expired", "Subscriptions ended because they were not renewed.")

    def claimed(self, outcome: str) -> None:
        """Count a claim that ended."""
        self._claims.labels(self._node, outcome).inc()

    def show_sizes(
        self, *, channels: Callable[[], float], owned: Callable[[], float], size: Callable[[], float]
    ) -> None:
        """Show the sizes of this part, read when somebody looks; `size` in bytes."""
        gauge = self._metrics.gauge
        gauge("access_channel_channels", "Channels with subscribers at this node.", channels)
        gauge("access_channel_owned", "Channels with a history that this node owns.", owned)
        gauge("access_channel_bytes", "Memory for the publications that this node keeps.", size)
