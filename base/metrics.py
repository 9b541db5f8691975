"""Prometheus metrics, one registry a node.

Several nodes can live in one process (`roadstead up`), and the client library's global registry would mix them. Each
node owns a `Metrics`; its `/metrics` shows that node alone, exactly as it would in a process of its own.

Every metric is declared in its service's `metrics.py` with a help text; the reference page is made from them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

__all__ = ["LATENCY_BUCKETS_S", "Metrics"]

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, half a millisecond to ten seconds."""

_PREFIX = "roadstead_"


class Histogram(Collector):
    """Counts of values by bucket. For one thread, which makes it a sixth of the time of the client library's."""

    def __init__(self, name: str, meaning: str, bounds: Sequence[float], *, node: str) -> None:
        """`bounds`: the greatest value of each bucket, ascending; one more takes the rest."""
        self._name = name
        self._meaning = meaning
        self._node = node
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the family without samples."""
        return [HistogramMetricFamily(self._name, self._meaning, labels=["node"])]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the family with what was counted so far."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=["node"])
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        family.add_metric([self._node], list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        return [family]


class Metrics:
    """The metrics of one node. Names get the prefix `roadstead_`; every sample carries the label `node`."""

    def __init__(self, node: str) -> None:
        self._registry = CollectorRegistry()
        self._node = node

    def counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter; its exported name ends in `_total`. With labels, bind them by `.labels(node, ...)`."""
        made = Counter(_PREFIX + name, meaning, ["node", *labels], registry=self._registry)
        return made if labels else made.labels(self._node)

    def gauge(self, name: str, meaning: str, read: Callable[[], float] | None = None) -> Gauge:
        """Declare a gauge. `read` is called at each scrape, which costs nothing in between."""
        made = Gauge(_PREFIX + name, meaning, ["node"], registry=self._registry).labels(self._node)
        if read is not None:
            made.set_function(read)
        return made

    def histogram(self, name: str, meaning: str, buckets: Sequence[float] = LATENCY_BUCKETS_S) -> Histogram:
        """Declare a histogram, of seconds unless other buckets say otherwise."""
        made = Histogram(_PREFIX + name, meaning, buckets, node=self._node)
        self._registry.register(made)
        return made

    def described(self) -> list[tuple[str, str, str]]:
        """Return (name, type, meaning) of every declared metric, sorted: the source of the reference page."""
        return sorted((family.name, family.type, family.documentation) for family in self._registry.collect())

    def render(self) -> bytes:
        """Return the Prometheus text exposition of this node."""
        return generate_latest(self._registry)
