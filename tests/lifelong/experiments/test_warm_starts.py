from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lifelong.experiments import extra_tables
from lifelong.experiments.warm_starts import measure_warm_starts
from models.data.splits import Split


def without_time(report: dict[str, Any]) -> dict[str, Any]:
    """A report without the figure that differs from run to run."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(part) for key, part in value.items() if key != "cpu_ms"}
        return [strip(part) for part in value] if isinstance(value, list) else value

    stripped: dict[str, Any] = strip(report)
    return stripped


def test_warm_starts_are_measured_along_the_stream(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    options = {"steps": [4], "replicates": 20}
    report = measure_warm_starts(planted_runs, planted, options)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert without_time(measure_warm_starts(planted_runs, planted, options)) == without_time(report)
    assert "k-means" in report["runs"]["din-l"]["note"]
    assert "| 0 |" in "\n".join(extra_tables.parts({"warm-starts": report}))
    (stream,) = report["runs"]["encode"]["streams"]
    first, *later = stream["along"]
    assert first["warm_starts"] == [0, 0]
    assert first["agreement"] == 1
    assert first["objective"]["warm"] == first["objective"]["cold"]
    assert [each["warm_starts"] for each in later] == [[1, 1], [2, 3], [4, 7], [8, 15], [16, 16]]
    assert sum(each["requests"] for each in later) == stream["all"]["requests"] == 120
    assert stream["all"]["differences"]["auc"]["replicates"] == 20
    assert stream["end"]["reclusterings"] == stream["users"] == 40


def test_it_says_where_nothing_is_started_warm(
    planted: Split, planted_runs: dict[str, Path]
) -> None:
    found = measure_warm_starts(planted_runs, planted, {"steps": [64]})["runs"]["encode"]["streams"]
    assert found[0]["note"].startswith("no request has 128 earlier behaviors")
