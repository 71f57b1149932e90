"""The rules that Prometheus loads, and promtool's tests that each alert fires, and does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from infra.deploy.alerts import RUNBOOKS, Alert, Case
from infra.deploy.causes import CAUSES, SHARES
from infra.deploy.objectives import BURNS, OBJECTIVES, RANKINGS, Objective

RULES: Final = "lifelong-rules.yaml"

STEPS: Final = ("1m", "5m", "15m")
"""Of the tests: those of hours take longer ones, or promtool would take minutes."""

_MINUTES: Final = 200
"""Of the tests of objectives: every alert fires by then which fires at all. Windows that are longer
see as much as there is."""

_EVENTS: Final = 6000
"""Of those tests, in each step."""


def rules(runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """What goes into the file of rules."""
    return {
        "groups": [
            {
                "name": "lifelong-objectives",
                "rules": [rule for one in OBJECTIVES for rule in one.recording()],
            },
            {
                "name": "lifelong-shares",
                "rules": [{"record": name, "expr": expr} for name, expr in SHARES.items()],
            },
            {
                "name": "lifelong-objectives-alerts",
                "rules": [rule for one in OBJECTIVES for rule in one.rules(runbooks)],
            },
            {
                "name": "lifelong-causes",
                "rules": [alert.rule(runbooks) for alert in CAUSES],
            },
        ]
    }


def test_file(step: str) -> str:
    """The name of a file of tests."""
    return f"lifelong-rules-test-{step}.yaml"


def tests(step: str, runbooks: str) -> dict[str, Any]:
    """promtool's tests of them, those of a step."""
    proofs = [
        *(proof for alert in CAUSES for proof in _of_cause(alert, runbooks)),
        *(proof for objective in OBJECTIVES for proof in _of_objective(objective, runbooks)),
    ]
    return {
        "rule_files": [RULES],
        "evaluation_interval": step,
        # As written: what is recorded comes before the alerts that read it. By itself promtool
        # takes any order, and Prometheus reads what was recorded a moment before.
        "group_eval_order": [group["name"] for group in rules()["groups"]],
        "tests": [
            {
                "interval": step,
                "input_series": [
                    {"series": series, "values": values}
                    for proof in together
                    for series, values in proof.case.series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": proof.case.after,
                        "alertname": proof.alert,
                        "exp_alerts": proof.expected,
                    }
                    for proof in together
                ],
            }
            for together in _packed([proof for proof in proofs if proof.case.step == step])
        ],
    }


@dataclass(frozen=True, slots=True)
class _Proof:
    """That an alert fires, or does not."""

    alert: str
    case: Case
    expected: list[dict[str, Any]]
    reads: frozenset[str]
    """Names of the metrics that the alert looks at."""


def _packed(proofs: Sequence[_Proof]) -> list[list[_Proof]]:
    """Those together whose alerts do not see each other's metrics: promtool takes about as long for
    many alerts as for one.
    """
    packs: list[tuple[list[_Proof], set[str]]] = []
    for proof in proofs:
        seen = proof.reads | _metrics(" ".join(proof.case.series))
        for pack, taken in packs:
            if not taken & seen:
                pack.append(proof)
                taken.update(seen)
                break
        else:
            packs.append(([proof], set(seen)))
    return [pack for pack, _ in packs]


def _metrics(expr: str) -> frozenset[str]:
    """The metrics that an expression names, those behind a recorded share included."""
    for name, behind in SHARES.items():
        expr = expr.replace(name, behind)
    return frozenset(
        re.findall(r"\b(?:lifelong_\w+?(?=_bucket|_count|_sum|\b)|up|process_\w+)", expr)
    )


def _of_cause(alert: Alert, runbooks: str) -> Iterator[_Proof]:
    fired = {
        "exp_labels": {"severity": alert.severity, **alert.fires.labels},
        "exp_annotations": alert.annotations(runbooks),
    }
    reads = _metrics(alert.expr)
    yield _Proof(alert.name, alert.fires, [fired], reads)
    yield _Proof(alert.name, alert.quiet, [], reads)


def _of_objective(objective: Objective, runbooks: str) -> Iterator[_Proof]:
    """For each alert a time when as much is missed as makes it fire, and not the faster ones; and
    one when less is missed than may.
    """
    reads = _metrics(f"{objective.good} {objective.all}")
    for place, burn in enumerate(BURNS):
        firing = [
            {
                "exp_labels": {"severity": of.severity, "slo": objective.name, "window": of.long},
                "exp_annotations": objective.annotations(of, runbooks),
            }
            for of in BURNS[place:]
        ]
        yield _Proof(objective.alert, _missing(objective, burn.factor * 1.2), firing, reads)
    yield _Proof(objective.alert, _missing(objective, 0.8), [], reads)


def _missing(objective: Objective, factor: float) -> Case:
    """Traffic of which so many times as much misses the objective as may."""
    good = round(_EVENTS * (1 - factor * objective.budget), 3)
    route = 'route="/v1/rank"'
    if "status" in objective.good:
        name = objective.all.partition("{")[0]
        of = {
            f'{name}{{{route},status="200"}}': good,
            f'{name}{{{route},status="503"}}': _EVENTS - good,
        }
    else:
        of = {
            objective.good.replace(RANKINGS, route): good,
            objective.all.replace(RANKINGS, route): _EVENTS,
        }
    return Case(_steadily(of), f"{_MINUTES}m", step="5m")


def _steadily(of: Mapping[str, float]) -> dict[str, str]:
    return {series: f"0+{rate:g}x{_MINUTES // 5}" for series, rate in of.items()}
