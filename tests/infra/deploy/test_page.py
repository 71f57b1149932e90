from __future__ import annotations

import re
from pathlib import Path

from infra.deploy.advice import ADVICE
from tests.infra.deploy.naming import metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_has_advice_and_nothing_else_has() -> None:
    assert ADVICE.keys() == metrics().keys(), "add what is normal, and what to do, to advice.py"


def test_every_metric_is_on_the_page_and_nothing_else_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)

    assert {(name.removesuffix("_total"), kind) for name, kind in rows} == set(metrics().items())
    assert len(rows) == len(metrics())
