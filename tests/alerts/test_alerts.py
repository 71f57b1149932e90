"""Alerts in a real Prometheus that scrapes real services: each fires for its fault, and goes."""

from __future__ import annotations

import itertools
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

NEVER = {"LifelongNewerBehaviors", "LifelongSearchMisses", "LifelongWorkerNotLive"}
"""Nothing is stuck or wrong by the faults of the short form."""

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
    told(scene, faults.NOTHING_RUNS)
    with faults.NO_BROKER.inject(scene):
        scene.start_scorers()
        scene.wait_firing(*faults.NO_BROKER.alerts)
    scene.wait_firing(*faults.NO_BROKER.after)
    told(scene, *faults.BEFORE_EVENTS)
    with faults.STRANGE_REQUESTS.inject(scene), faults.MISCALIBRATED.inject(scene):
        for those in faults.WITH_EVENTS:
            told(scene, *those)
        scene.wait_firing(*alerts_of(faults.STRANGE_REQUESTS, faults.MISCALIBRATED))
    both = (faults.NOTHING_RUNS, faults.NO_BROKER, faults.WORKER_KILLED, faults.MISCALIBRATED)
    scene.wait_quiet(
        *alerts_of(*both, *faults.BEFORE_EVENTS, *itertools.chain(*faults.WITH_EVENTS))
    )
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
@pytest.mark.parametrize("name", faults.APART)
def test_an_alert_fires_for_its_fault_and_goes(scene: Scene, name: str) -> None:
    """Slow: alerts that wait, for a minute the longest."""
    scene.run()
    fault: Fault = faults.APART[name]
    told(scene, fault)
    scene.wait_quiet(*alerts_of(fault))


def told(scene: Scene, *those: Fault) -> None:
    """Inject faults together, and wait until each of their alerts has fired."""
    with ExitStack() as stack:
        for fault in those:
            stack.enter_context(fault.inject(scene))
        scene.wait_firing(*(alert for fault in those for alert in fault.alerts))
    scene.wait_firing(*(alert for fault in those for alert in fault.after))


def alerts_of(*those: Fault) -> set[str]:
    """The alerts that tell the faults."""
    return {alert for fault in those for alert in (*fault.alerts, *fault.after)}
