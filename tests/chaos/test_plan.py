from __future__ import annotations

from collections import Counter

from tests.chaos.faults import FAULTS
from tests.chaos.plan import draw_plan


def test_a_plan_holds_every_fault_and_depends_on_the_seed_alone() -> None:
    plan = draw_plan(3, list(FAULTS), 2)

    assert set(Counter(injection.fault for injection in plan)) == set(FAULTS)
    assert len(plan) == len(FAULTS) + 2
    assert plan == draw_plan(3, list(FAULTS), 2)
    assert plan != draw_plan(4, list(FAULTS), 2)
