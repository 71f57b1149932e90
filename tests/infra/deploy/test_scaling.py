from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.deploy.rules import RULES, rules
from infra.deploy.scaling import scaled, scaled_expr
from infra.deploy.yaml import dump
from tests.infra.deploy.conftest import Promtool


def exprs(of: dict[str, list[dict[str, list[dict[str, str]]]]]) -> list[str]:
    return [rule["expr"] for group in of["groups"] for rule in group["rules"]]


def test_no_window_of_the_rules_is_left_as_it_was() -> None:
    spans = [re.findall(r"\[\w+\]|offset \w+", expr) for expr in exprs(rules())]
    faster = [re.findall(r"\[\w+\]|offset \w+", expr) for expr in exprs(scaled(rules(), 60))]

    assert sum(map(len, spans)) > 50
    for before, after in zip(spans, faster, strict=True):
        assert len(before) == len(after)
        assert not set(before) & set(after)


@pytest.mark.parametrize("alert", ["EventsBehind", "PartitionHeld", "BrokersSilent", "DueOldest"])
def test_a_limit_in_seconds_is_a_span_too(alert: str) -> None:
    [expr] = [
        rule["expr"]
        for group in scaled(rules(), 60)["groups"]
        for rule in group["rules"]
        if rule.get("alert") == f"Lifelong{alert}"
    ]

    assert re.search(r"> [12]\b", expr)


def test_what_is_no_time_stays() -> None:
    expr = "lifelong:lag:sum > 10000 and x_ratio_rate1h > 0.1 and rate(y_total[1h]) > 120"

    assert scaled_expr(expr, 60) == expr.replace("[1h]", "[60s]")


def test_names_stay_so_that_alerts_find_what_is_recorded() -> None:
    names = [
        [rule.get("record") for group in of["groups"] for rule in group["rules"]]
        for of in (rules(), scaled(rules(), 60))
    ]

    assert names[0] == names[1]


def test_a_fraction_of_a_second_is_told_in_milliseconds() -> None:
    assert scaled_expr("rate(x[5m])", 600) == "rate(x[500ms])"


def test_prometheus_takes_scaled_rules(promtool: Promtool, tmp_path: Path) -> None:
    (tmp_path / RULES).write_text(dump(scaled(rules(), 60)))

    promtool(tmp_path, "check", "rules", RULES)
