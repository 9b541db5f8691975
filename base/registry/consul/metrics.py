"""Metrics of a node's use of Consul."""

from __future__ import annotations

from base.metrics import Metrics

__all__ = ["ConsulMetrics"]


class ConsulMetrics:
    """Declared once; the help text is its documentation."""

    def __init__(self, metrics: Metrics, *, node: str) -> None:
        self._node = node
        self._calls = metrics.counter(
            "consul_calls",
            "Requests to the Consul agent, by call and outcome (answered, failed). A failed `wait` is a view that is "
            "not followed for a moment; failed `pass_check` or `renew_session` for the registration's TTL, and the "
            "node is taken for dead.",
            ["call", "outcome"],
        )
        self._seconds = metrics.histogram(
            "consul_call_seconds", "How long the agent took to answer what does not wait for a change."
        )

    def called(self, call: str, seconds: float, *, is_answered: bool) -> None:
        """Count a request."""
        self._calls.labels(self._node, call, "answered" if is_answered else "failed").inc()
        if call != "wait":
            self._seconds.observe(seconds)
