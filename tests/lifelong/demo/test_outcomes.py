from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from infra.metrics import ScorerMetrics
from lifelong.demo.outcomes import calibration_of


def test_counts_become_the_figures_of_calibration() -> None:
    registry = CollectorRegistry()
    metrics = ScorerMetrics(registry)
    metrics.use_bundle("a")
    for version, bound, number, positive, predicted in (
        ("a", "0.01", 100, 2, 0.8),
        ("a", "0.5", 10, 3, 4.0),
        ("other", "0.5", 10, 5, 4.0),
    ):
        metrics.outcomes.labels(version, bound).inc(number)
        metrics.outcomes_positive.labels(version, bound).inc(positive)
        metrics.outcomes_predicted.labels(version, bound).inc(predicted)

    assert calibration_of(generate_latest(registry).decode()) == {
        "counted": 120,
        "expected_calibration_error": pytest.approx((1.2 + 0) / 120),
        "predicted_over_observed": pytest.approx(0.88),
    }
