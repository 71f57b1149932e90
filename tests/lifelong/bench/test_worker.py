"""What is read of a worker's metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from infra.metrics import WorkerMetrics
from lifelong.bench.worker import CLUSTERED, quantile


def exposed(*seconds: float) -> dict[str, float]:
    """A worker's metrics after segments were clustered so many seconds after they were sealed."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    for one in seconds:
        metrics.freshness_seconds.observe(one)
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_a_quantile_lies_in_its_bucket() -> None:
    found = exposed(*[0.3] * 98, 6.0, 6.0)

    assert quantile(found, CLUSTERED, 0.98) == pytest.approx(0.5)
    assert quantile(found, CLUSTERED, 0.99) == pytest.approx(6.25)


def test_a_quantile_of_what_is_later_than_all_bounds_is_the_last_bound() -> None:
    assert quantile(exposed(1000.0), CLUSTERED, 0.99) == 300


def test_where_nothing_was_observed_there_is_no_quantile() -> None:
    assert quantile(exposed(), CLUSTERED, 0.99) is None
