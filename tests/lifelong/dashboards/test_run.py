from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from infra.deploy.asking import Series, Span
from infra.deploy.dashboards import Dashboard, Panel
from infra.errors import PrometheusError
from lifelong.dashboards.run import DashboardOptions, render, run_dashboards

SPAN = Span(1000.0, 1010.0, 1.0)

BOARD = Dashboard(
    "A few",
    (
        Panel("Lost", (("lost", "lost"),), kind="stat"),
        Panel("Rate", (("rate", "{{job}}"),)),
        Panel("Nothing", (("nothing", "a second"),)),
    ),
)


def told(expr: str) -> list[Series]:
    """What a Prometheus says."""
    series = Series({"job": "a"}, [1000.0, 1001.0], [3.0, math.nan])
    return [] if expr == "nothing" else [series]


def test_a_dashboard_becomes_a_picture(tmp_path: Path) -> None:
    report = render(tmp_path, told, SPAN, "of a test", [BOARD])

    [board] = report["dashboards"]
    with Image.open(board["file"]) as picture:
        assert picture.format == "PNG"
    assert [panel["last"] for panel in board["panels"]] == [{"lost": 3.0}, {"a": 3.0}, {}]
    assert report["empty"] == ["A few / Nothing"]


def test_a_prometheus_that_does_not_answer_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(
        PrometheusError, match=r"no Prometheus answers at http://127.0.0.1:9 .*name"
    ):
        run_dashboards(DashboardOptions(tmp_path, "http://127.0.0.1:9"), quiet=True)
