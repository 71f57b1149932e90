"""All that is generated, by its place in the repository."""

from __future__ import annotations

import json
from typing import Final

from infra.deploy import rules
from infra.deploy.alerts import RUNBOOKS
from infra.deploy.dashboards import DASHBOARDS
from infra.deploy.page import page
from infra.deploy.yaml import dump

HEAD: Final = "# Written by `python -m infra.deploy`; change infra/deploy, not this.\n"

PROMETHEUS: Final = "infra/deploy/prometheus"
GRAFANA: Final = "infra/deploy/grafana"


def files(runbooks: str = RUNBOOKS) -> dict[str, str]:
    """What each file holds."""
    return {
        **{
            f"{GRAFANA}/{board.uid}.json": json.dumps(board.data(runbooks), indent=2) + "\n"
            for board in DASHBOARDS
        },
        "docs/metrics.md": page(),
        f"{PROMETHEUS}/{rules.RULES}": HEAD + dump(rules.rules(runbooks)),
        **{
            f"{PROMETHEUS}/{rules.test_file(step)}": HEAD + dump(rules.tests(step, runbooks))
            for step in rules.STEPS
        },
    }
