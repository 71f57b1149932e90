from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from infra.deploy.causes import CAUSES
from infra.deploy.dashboards import DASHBOARDS, Dashboard
from infra.deploy.files import files
from infra.deploy.objectives import OBJECTIVES
from infra.deploy.yaml import dump
from tests.infra.deploy.conftest import Promtool
from tests.infra.deploy.naming import named, series

RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"

boards = pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: str(board.title))


def exprs(board: Dashboard) -> list[str]:
    """What its panels ask Prometheus, as Grafana would send it."""
    found = [expr for panel in board.panels for expr, _ in panel.queries]
    values = {"$__rate_interval": "5m", "$__range": "6h", "$instance": ".*"}
    return [re.sub(r"\$\w+", lambda variable: values[variable.group()], expr) for expr in found]


def test_prometheus_can_read_what_panels_ask(promtool: Promtool, tmp_path: Path) -> None:
    asked = [
        {"record": f"panel:{place}", "expr": expr}
        for place, expr in enumerate(expr for board in DASHBOARDS for expr in exprs(board))
    ]
    (tmp_path / "panels.yaml").write_text(dump({"groups": [{"name": "panels", "rules": asked}]}))

    promtool(tmp_path, "check", "rules", "panels.yaml")


@boards
def test_panels_ask_for_series_that_there_are(board: Dashboard) -> None:
    assert set().union(*map(named, exprs(board))) - series() == set()


def test_every_series_of_a_worker_and_a_scorer_is_on_some_panel() -> None:
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for board in DASHBOARDS
        for expr in exprs(board)
        for name in named(expr)
    }
    behind = {"lifelong_scorer_unknown_items_total", "lifelong_scorer_degraded_total"}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series() if "lifelong_" in name}

    assert ours - shown == behind  # which recorded shares stand for


def test_each_alert_names_a_panel() -> None:
    panels = {(board.title, panel.title) for board in DASHBOARDS for panel in board.panels}

    assert {alert.panel for alert in (*CAUSES, *OBJECTIVES)} - panels == set()


@boards
def test_a_dashboard_can_be_imported(board: Dashboard) -> None:
    data = json.loads(files()[f"infra/deploy/grafana/{board.uid}.json"])
    panels = data["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}

    assert len({panel["id"] for panel in panels}) == len(places) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert [one["name"] for one in data["templating"]["list"]] == ["datasource", "instance"]
    assert data["links"][0]["tags"] == data["tags"]


@boards
def test_a_panel_s_runbook_is_there(board: Dashboard) -> None:
    pages = {panel.runbook for panel in board.panels if panel.runbook}

    assert [page for page in pages if not (RUNBOOKS / f"{page}.md").exists()] == []
