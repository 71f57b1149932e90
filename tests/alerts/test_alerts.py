"""Alerts in a real Prometheus that scrapes real services: each fires for its fault, and goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from infra.deploy.asking import fill
from infra.deploy.dashboards import DASHBOARDS
from infra.deploy.local import obstacle
from infra.kafka.jars import apache_obstacle
from tests.alerts import faults
from tests.alerts.faults import Fault
from tests.alerts.scene import Scene
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NOTHING_RUNS = ("LifelongNoWorker", "LifelongNoScorer")
NO_USERS = ("LifelongStoreEmpty",)

TOGETHER = (
    faults.POISON,
    faults.OPEN_TRANSACTION,
    faults.BROKEN_BUNDLE,
    faults.SLOTS_TAKEN,
    faults.OVERLOAD,
)
"""Those that need no events, and leave each other alone."""

APART = {
    "bundles-differ": faults.BUNDLES_DIFFER,
    "store-locked": faults.STORE_LOCKED,
    "events-overtaken": faults.EVENTS_OVERTAKEN,
    "wrong-store": faults.WRONG_STORE,
}
"""Each takes a time of its own."""

NEVER = {
    "LifelongEventsLost",
    "LifelongLogCut",
    "LifelongNewerBehaviors",
    "LifelongSearchMisses",
    "LifelongStoreDamage",
    "LifelongWorkerNotLive",
}
"""Nothing is lost, damaged or stuck by the faults of the short form."""

EMPTY = {
    "Relevance indicator": "the bundles that come with Lifelong take no DIN-L along to measure by",
    "Days until the certificate expires": "nothing here speaks TLS",
    "Ignored by rule": "all of the demo's events are behaviors",
}
"""Panels that show nothing here, and why."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    require(apache_obstacle() is None, f"Apache Kafka: {apache_obstacle()}")
    require(obstacle() is None, f"Prometheus: {obstacle()}")
    with Scene(tmp_path_factory.mktemp("alerts")) as scene:
        yield scene


def test_alerts_fire_for_their_faults_and_go(scene: Scene) -> None:
    """Slow: services of their own, and alerts that wait for ten seconds and for thirty."""
    scene.wait_firing(*NOTHING_RUNS)
    scene.start_worker()
    scene.wait_ready("worker")
    with faults.NO_BROKER.inject(scene):
        scene.start_scorers()
        scene.wait_firing(*faults.NO_BROKER.alerts)
    with ExitStack() as stack:
        for fault in TOGETHER:
            stack.enter_context(fault.inject(scene))
        scene.wait_firing(*NO_USERS, *(alert for fault in TOGETHER for alert in fault.alerts))
    scene.start_flow()
    with faults.MISCALIBRATED.inject(scene), faults.STRANGERS.inject(scene):
        with faults.STORE_FILLED.inject(scene):
            scene.wait_firing(*faults.STORE_FILLED.alerts)
        scene.wait_firing(*faults.STRANGERS.alerts, *faults.MISCALIBRATED.alerts)
    told = {
        alert
        for fault in (
            *TOGETHER,
            faults.NO_BROKER,
            faults.STORE_FILLED,
            faults.WORKER_KILLED,
            faults.MISCALIBRATED,
        )
        for alert in fault.alerts
    }
    scene.wait_quiet(*told, *NOTHING_RUNS, *NO_USERS)
    assert scene.fired() & NEVER == set()


def test_every_panel_shows_something(scene: Scene) -> None:
    """Slow: by itself it waits until something has happened everywhere."""
    scene.run()
    queries = {
        (board.title, panel.title, form): fill(expr, 10, 300)
        for board in DASHBOARDS
        for panel in board.panels
        if panel.title not in EMPTY
        for expr, form in panel.queries
    }
    scene.wait_until(*queries.values())


@pytest.mark.long
@pytest.mark.parametrize("name", APART)
def test_an_alert_fires_for_its_fault_and_goes(scene: Scene, name: str) -> None:
    """Slow: alerts that wait, for a minute the longest."""
    scene.run()
    fault: Fault = APART[name]
    with fault.inject(scene):
        scene.wait_firing(*fault.alerts)
    scene.wait_firing(*fault.after)
    scene.wait_quiet(*fault.alerts, *fault.after)
