from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lifelong.experiments import extra_tables
from lifelong.experiments.services import SimulatedService
from lifelong.experiments.staleness import measure_staleness
from models.data.splits import Split
from models.measures.predictions import auc
from models.prediction import predict


def test_each_staleness_is_measured_beside_the_fresh_on_the_same_requests(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    options = {"newer": [10, 69], "between": [3], "at_least": 10, "replicates": 20}
    report = measure_staleness(planted_runs, planted, options)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert "| 69 |" in "\n".join(extra_tables.parts({"staleness": [report] * 2}))
    history = planted.history(planted.test)
    service = SimulatedService.of(planted_runs["encode"], planted)
    for found in report["runs"]["encode"]["stale"]:
        requests = planted.test.part(np.flatnonzero(history > found["n"]))
        assert found["requests"] == len(requests.cut)
        fresh = auc(predict(service.network, service.gatherer, requests), requests.labels)
        measures = found["measures"]
        assert measures["fresh"]["auc"] == pytest.approx(fresh)
        if found["n"] == 3:
            assert not found["differences"]
            continue
        observed = found["differences"]["attended"]["fresh"]["auc"]["observed"]
        assert observed == pytest.approx(measures["attended"]["auc"] - fresh)
        assert found["behaviors"]["fresh"] == service.gatherer.L


def test_it_says_where_no_past_is_long_enough(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    options = {"newer": [1000], "between": []}
    (found,) = measure_staleness(planted_runs, planted, options)["runs"]["encode"]["stale"]
    assert found["requests"] == 0
    assert found["note"].startswith("0 of 120 requests have more than 1000 earlier behaviors")
