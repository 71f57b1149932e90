"""Calibration as operators see it: from what a scorer has counted of the outcomes it was told."""

from __future__ import annotations

import urllib.request
from typing import Final

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from infra.metrics import CTR_BIN_LABELS
from models.measures.predictions import Calibration

COUNTERS: Final = ("", "_positive", "_predicted")


def counted_calibration(url: str) -> dict[str, float]:
    """How many outcomes a scorer has counted, and what they say of its CTRs.

    Args:
        url: the scorer's.
    """
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310  # ours, http
        return calibration_of(answer.read().decode())


def calibration_of(metrics: str) -> dict[str, float]:
    """The same of the text of its metrics, over all versions."""
    sums = np.zeros((len(COUNTERS), len(CTR_BIN_LABELS)))
    rows = {f"lifelong_scorer_outcomes{name}": row for row, name in enumerate(COUNTERS)}
    columns = {label: column for column, label in enumerate(CTR_BIN_LABELS)}
    for family in text_string_to_metric_families(metrics):
        if family.name in rows:
            for sample in family.samples:
                sums[rows[family.name], columns[sample.labels["bin"]]] += sample.value
    number, positive, predicted = sums
    filled = number > 0
    bins = Calibration(
        predicted[filled] / number[filled], positive[filled] / number[filled], number[filled]
    )
    return {
        "counted": int(number.sum()),
        "expected_calibration_error": bins.error,
        "predicted_over_observed": float(predicted.sum() / positive.sum()),
    }
