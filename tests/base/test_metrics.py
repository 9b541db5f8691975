"""What is measured, in the text that Prometheus reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Theirs

from base.metrics import LATENCY_BUCKETS_S, Metrics


@pytest.mark.spec("AR-2")
@given(st.lists(st.one_of(st.sampled_from(LATENCY_BUCKETS_S), st.floats(0, 20))))
def test_a_histogram_reads_as_the_client_librarys_does(values: list[float]) -> None:
    """Bucket by bucket, a boundary belonging to the bucket below; only the time of its making is not told."""
    metrics, registry = Metrics("node-1"), CollectorRegistry()
    ours = metrics.histogram("some_seconds", "Some time.")
    theirs = Theirs("roadstead_some_seconds", "Some time.", ["node"], buckets=LATENCY_BUCKETS_S, registry=registry)
    for value in values:
        ours.observe(value)
        theirs.labels("node-1").observe(value)
    theirs.labels("node-1")
    told = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    assert metrics.render().decode().splitlines() == told


def test_a_histogram_is_described_with_its_meaning() -> None:
    """Also before anything was measured."""
    metrics = Metrics("node-1")
    metrics.histogram("some_seconds", "Some time.", buckets=(1, 2))
    assert metrics.described() == [("roadstead_some_seconds", "histogram", "Some time.")]
