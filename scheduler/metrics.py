"""Metrics of a scheduler."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from prometheus_client import Counter

from base.metrics import Metrics
from scheduler.core.engine import Decision, Picked

__all__ = ["Figures", "SchedulerMetrics"]

_PICKED = {picked: picked.name.lower() for picked in Picked}


class Figures(msgspec.Struct, frozen=True):
    """What is read at each scrape."""

    access_nodes: int = 0
    left_out: int = 0
    share: float = 1.0
    is_panic: bool = False
    is_judging: bool = False
    bad_orders: int = 0
    database_faults: int = 0


class SchedulerMetrics:
    """Declared once; each line's help text is its documentation."""

    def __init__(self, metrics: Metrics, *, node: str, figures: Callable[[], Figures]) -> None:
        self._node = node
        self._decisions = metrics.counter(
            "schedule_decisions",
            "Access requests answered with candidates, by arm and how the region was found.",
            ("arm", "picked"),
        )
        self.refusals = metrics.counter("schedule_refusals", "Access requests refused because no node takes clients.")
        self._slots = metrics.counter("schedule_slots", "Answers that told the client to wait for its slot.")
        self.quick_requests = metrics.counter(
            "schedule_quick_requests", "Access requests answered without the HTTP server in between."
        )
        self._dropped = metrics.counter(
            "schedule_dropped",
            "Connections dropped before their PROXY header: bad_proxy_header, unknown_proxy, slow, gone, closed.",
            ("reason",),
        )
        self._bound: dict[tuple[str, int], Counter] = {}
        metrics.gauge("schedule_access_nodes", "Access nodes in the snapshot.", lambda: figures().access_nodes)
        metrics.gauge(
            "schedule_left_out",
            "Access nodes that get no newcomers: draining, cordoned or full.",
            lambda: figures().left_out,
        )
        metrics.gauge(
            "schedule_share",
            "This scheduler's part of all assignments, by the access nodes' reports.",
            lambda: figures().share,
        )
        metrics.gauge(
            "schedule_panic",
            "1 while access nodes that are not registered any more are kept, as too many went at once.",
            lambda: figures().is_panic,
        )
        metrics.gauge(
            "schedule_judging",
            "1 at the scheduler that judges rollouts; 0 at the others.",
            lambda: figures().is_judging,
        )
        metrics.gauge(
            "schedule_bad_orders",
            "Orders in the registry that cannot be read; what was in force before stays.",
            lambda: figures().bad_orders,
        )
        metrics.gauge(
            "schedule_database_faults",
            "Look-ups in geographical databases that came upon something unreadable, since the files were read.",
            lambda: figures().database_faults,
        )

    def dropped(self, reason: str) -> None:
        """Count a connection that was dropped."""
        self._dropped.labels(self._node, reason).inc()

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        key = decision.arm, decision.picked
        counter = self._bound.get(key)
        if counter is None:
            counter = self._decisions.labels(self._node, decision.arm, _PICKED[Picked(decision.picked)])
            self._bound[key] = counter
        counter.inc()
        if decision.not_before_ms:
            self._slots.inc()
