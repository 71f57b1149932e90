"""The list of alerts against the list of faults."""

from __future__ import annotations

import itertools

from infra.deploy.causes import CAUSES
from infra.deploy.objectives import OBJECTIVES
from tests.alerts import faults
from tests.alerts.faults import APART, BEFORE_EVENTS, NOT_INJECTED, WITH_EVENTS, Fault

ALERTS = {alert.name for alert in CAUSES} | {objective.alert for objective in OBJECTIVES}
FAULTS = [one for one in vars(faults).values() if isinstance(one, Fault)]


def test_each_alert_is_made_to_fire_or_is_named_with_the_reason_why_not() -> None:
    fire = {alert.split()[0] for fault in FAULTS for alert in (*fault.alerts, *fault.after)}

    assert fire | NOT_INJECTED.keys() == ALERTS
    assert not fire & NOT_INJECTED.keys()


def test_each_fault_is_injected() -> None:
    by_name = {
        faults.NOTHING_RUNS,
        faults.NO_BROKER,
        faults.WORKER_KILLED,
        faults.STRANGE_REQUESTS,
        faults.MISCALIBRATED,
    }

    assert {*by_name, *BEFORE_EVENTS, *itertools.chain(*WITH_EVENTS), *APART.values()} == {*FAULTS}
