"""All that is generated, by its place in the repository."""

from __future__ import annotations

import json
from typing import Final

from infra.deploy import rules
from infra.deploy.alerts import RUNBOOKS
from infra.deploy.dashboards import DASHBOARDS
from infra.deploy.page import page
from infra.deploy.values import schema
from infra.deploy.yaml import dump

HEAD: Final = "# Written by `python -m infra.deploy`; change infra/deploy, not this.\n"

PROMETHEUS: Final = "infra/deploy/prometheus"
GRAFANA: Final = "infra/deploy/grafana"
CHART: Final = "infra/deploy/chart/lifelong"
"""Helm reads no file outside, so that it has rules and dashboards once more."""


def files(runbooks: str = RUNBOOKS) -> dict[str, str]:
    """What each file holds."""
    boards = {
        f"{board.uid}.json": json.dumps(board.data(runbooks), indent=2) + "\n"
        for board in DASHBOARDS
    }
    told = HEAD + dump(rules.rules(runbooks))
    return {
        **{f"{GRAFANA}/{name}": text for name, text in boards.items()},
        "docs/metrics.md": page(),
        f"{PROMETHEUS}/{rules.RULES}": told,
        **{
            f"{PROMETHEUS}/{rules.test_file(step)}": HEAD + dump(rules.tests(step, runbooks))
            for step in rules.STEPS
        },
        **{f"{CHART}/files/{name}": text for name, text in boards.items()},
        f"{CHART}/files/{rules.RULES}": told,
        f"{CHART}/values.schema.json": json.dumps(schema(), indent=2) + "\n",
    }
