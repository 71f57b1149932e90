"""All that is generated, by its place in the repository."""

from __future__ import annotations

from typing import Final

from infra.deploy import rules
from infra.deploy.alerts import RUNBOOKS
from infra.deploy.yaml import dump

HEAD: Final = "# Written by `python -m infra.deploy`; change infra/deploy, not this.\n"

PROMETHEUS: Final = "infra/deploy/prometheus"


def files(runbooks: str = RUNBOOKS) -> dict[str, str]:
    """What each file holds."""
    return {
        f"{PROMETHEUS}/{rules.RULES}": HEAD + dump(rules.rules(runbooks)),
        **{
            f"{PROMETHEUS}/{rules.test_file(step)}": HEAD + dump(rules.tests(step, runbooks))
            for step in rules.STEPS
        },
    }
