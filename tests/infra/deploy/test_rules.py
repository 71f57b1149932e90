from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from infra.deploy import rules
from infra.deploy.alerts import Alert
from infra.deploy.causes import CAUSES
from infra.deploy.files import PROMETHEUS, files
from infra.deploy.objectives import BURNS, OBJECTIVES, Objective
from infra.metrics import ScorerMetrics, WorkerMetrics
from tests.infra.deploy.conftest import Promtool
from tests.infra.deploy.naming import named, series

ROOT = Path(__file__).parents[3]
RUNBOOKS = ROOT / "docs" / "runbooks"

of_causes = pytest.mark.parametrize("alert", CAUSES, ids=lambda alert: str(alert.name))
of_objectives = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: str(one.name))


@pytest.mark.parametrize("place", files())
def test_what_is_committed_is_what_is_generated(place: str) -> None:
    assert (ROOT / place).read_text() == files()[place], "run python -m infra.deploy"


def test_prometheus_takes_the_rules(promtool: Promtool) -> None:
    promtool(ROOT / PROMETHEUS, "check", "rules", rules.RULES)


@pytest.mark.parametrize("step", rules.STEPS)
def test_each_alert_fires_and_does_not(step: str, promtool: Promtool) -> None:
    promtool(ROOT / PROMETHEUS, "test", "rules", rules.test_file(step))


def test_each_alert_is_proved() -> None:
    groups = rules.rules()["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    proved: dict[str, set[bool]] = {name: set() for name in alerts}
    for step in rules.STEPS:
        for test in rules.tests(step, "docs/runbooks")["tests"]:
            for proof in test["alert_rule_test"]:
                proved[proof["alertname"]].add(bool(proof["exp_alerts"]))

    assert proved == {name: {True, False} for name in alerts}


def test_rules_name_series_that_there_are() -> None:
    exprs = [rule["expr"] for group in rules.rules()["groups"] for rule in group["rules"]]
    asked = set().union(*map(named, exprs))

    assert asked
    assert asked - series() == set()


@of_objectives
def test_an_objective_stands_on_a_bucket(objective: Objective) -> None:
    if "_bucket" not in objective.good:
        return
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    ScorerMetrics(registry).request_seconds.labels("/v1/rank")
    bound = objective.good.partition('le="')[2].partition('"')[0]
    name = objective.good.partition("{")[0]
    bounds = {
        sample.labels["le"]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name
    }
    assert bound in bounds


@of_objectives
def test_four_pairs_of_windows_watch_an_objective(objective: Objective) -> None:
    found = [(rule["labels"], rule["expr"]) for rule in objective.rules()]

    assert len(found) == len(BURNS) == 4
    for burn, (labels, expr) in zip(BURNS, found, strict=True):
        assert labels == {"severity": burn.severity, "window": burn.long}
        limit = f"> {burn.factor * objective.budget:g}"
        assert str(expr).count(limit) == 2


def runbook(alert: Alert | Objective) -> str:
    return (RUNBOOKS / f"{alert.runbook}.md").read_text()


@of_causes
def test_a_cause_has_a_runbook_that_names_it(alert: Alert) -> None:
    assert f"`{alert.name}`" in runbook(alert)


@of_objectives
def test_an_objective_has_a_runbook_that_names_it(objective: Objective) -> None:
    assert f"`{objective.alert}`" in runbook(objective)


PAGES = sorted({one.runbook for one in (*CAUSES, *OBJECTIVES)})


@pytest.mark.parametrize("page", PAGES)
def test_a_runbook_says_how_to_see_it_why_what_to_do_and_when_it_is_over(page: str) -> None:
    text = (RUNBOOKS / f"{page}.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]

    assert headings == ["## See it", "## Likely causes", "## Do", "## Over when"]


def test_the_list_of_runbooks_is_complete() -> None:
    text = (RUNBOOKS / "README.md").read_text()
    pages = {page.name for page in RUNBOOKS.glob("*.md")} - {"README.md"}

    assert {page for page in pages if f"]({page})" not in text} == set()
    assert {f"{page}.md" for page in PAGES} <= pages


def test_alerts_say_where_the_runbooks_of_their_readers_are() -> None:
    text = files("https://wiki/runbooks")[f"{PROMETHEUS}/{rules.RULES}"]

    assert 'runbook_url: "https://wiki/runbooks/events-lost.md"' in text
    assert '"docs/runbooks' not in text
