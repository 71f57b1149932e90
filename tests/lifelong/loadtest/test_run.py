"""Load tests of real processes: Kafka's mock, a worker and a scorer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from infra.errors import BrokerError, SettingsError
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from infra.settings import Settings, load_settings
from lifelong.cli import app
from lifelong.demo.processes import ServiceProcess, free_port
from lifelong.loadtest.run import Options, run_loadtest, show
from lifelong.shipped import BUNDLE

NOBODY = "http://127.0.0.1:9"
LOAD = Options(
    scorers=(NOBODY,), rankings=40, events=200, seconds=2, candidates=100, users=50, timeout_s=30
)
SETTINGS = load_settings({"bundle.path": BUNDLE}, environ={})


@dataclass(frozen=True)
class Deployed:
    """A system that runs."""

    settings: Settings
    scorer: str


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    with LocalKafka(folder / "kafka", kind="mock") as kafka:
        for topic in ("behaviors", "behaviors.dead"):
            create_topic(kafka.bootstrap, topic, 2)
        store = ["--store", f"lmdb://{folder / 'store'}"]
        ports = free_port(), free_port()
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        starts = {
            "worker": ["--bootstrap", kafka.bootstrap, "--metrics-port", str(ports[0])],
            "scorer": ["--port", str(ports[1]), "--set", "scorer.lame_duck_s=0"],
        }
        ready = {"worker": f"{urls[0]}/health/ready", "scorer": f"{urls[1]}/v2/health/ready"}
        with (
            ServiceProcess(
                "worker", ["worker", *starts["worker"], *store], folder / "w.log", ready["worker"]
            ) as worker,
            ServiceProcess(
                "scorer", ["scorer", *starts["scorer"], *store], folder / "s.log", ready["scorer"]
            ) as scorer,
        ):
            for process in (worker, scorer):
                process.wait_ready(120)
            settings = load_settings(
                {"broker.bootstrap": kafka.bootstrap, "bundle.path": BUNDLE}, environ={}
            )
            yield Deployed(settings, urls[1])


@pytest.mark.slow
def test_a_system_that_is_well_answers_takes_events_and_knows_their_users(
    deployed: Deployed,
) -> None:
    """Starts a worker and a scorer, and loads them for seconds."""
    options = replace(LOAD, scorers=(deployed.scorer,), max_errors=0.0, max_p99_ms=30_000)

    report = run_loadtest(deployed.settings, options, quiet=True)

    assert report["ok"], report
    assert report["rankings"]["statuses"] == {"200": 1.0}
    assert report["rankings"]["degraded"] == 0
    assert sum(report["rankings"]["histories"].values()) == pytest.approx(1)
    assert report["events"]["acknowledged"] == report["events"]["sent"] > 200
    assert report["freshness"]["unseen"] == 0
    assert list(report["users"].values()) == [50, pytest.approx(1, abs=5)]
    json.dumps(report, allow_nan=False)


def test_a_limit_that_is_broken_is_told(deployed: Deployed) -> None:
    options = replace(LOAD, scorers=(deployed.scorer,), events=0, seconds=1, max_p99_ms=0.001)

    report = run_loadtest(deployed.settings, options, quiet=True)

    assert not report["ok"]
    assert not report["limits"]["max_p99_ms"]["kept"]
    assert report["events"] is report["freshness"] is None


def test_items_that_are_refused_count_as_errors_with_their_status(deployed: Deployed) -> None:
    options = replace(LOAD, scorers=(deployed.scorer,), events=0, seconds=1, candidates=1)

    report = run_loadtest(
        deployed.settings, replace(options, items=("x" * 2000,), max_errors=0.5), quiet=True
    )

    assert set(report["rankings"]["statuses"]) == {"400"}
    assert report["limits"]["max_errors"] == {"limit": 0.5, "found": 1.0, "kept": False}
    assert report["rankings"]["p99_ms"] is None


def test_a_scorer_that_is_not_there_breaks_any_limit_of_time() -> None:
    options = replace(LOAD, events=0, seconds=1, max_p99_ms=1e9)

    report = run_loadtest(SETTINGS, options, quiet=True)

    assert set(report["rankings"]["statuses"]) == {"0"}
    assert "cannot be reached" in report["rankings"]["said"]["0"]
    assert not report["ok"]


def test_a_kafka_that_is_not_there_is_told_before_anything_is_asked() -> None:
    settings = load_settings({"broker.bootstrap": "127.0.0.1:9", "bundle.path": BUNDLE}, environ={})

    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:9 does not answer"):
        run_loadtest(settings, replace(LOAD, seconds=3600), quiet=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scorers": ()}, "--scorer"),
        ({"rankings": 0, "events": 0}, "--rankings and --events are 0"),
        ({"items": ("a", "b")}, "--candidates 100: there are 2 items"),
    ],
)
def test_what_cannot_be_done_is_told_beforehand(changes: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        run_loadtest(SETTINGS, replace(LOAD, **changes), quiet=True)  # type: ignore[arg-type]


def test_the_report_shows_what_was_broken(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_loadtest(SETTINGS, replace(LOAD, events=0, seconds=1, max_errors=0.1), quiet=True)

    show(Console(width=100), report)

    said = capsys.readouterr().out
    assert "FAIL --max-errors 0.1: found 1" in said
    assert "cannot be reached" in said


@pytest.mark.usefixtures("logged")  # what the command logs to would be closed behind it
def test_a_broken_limit_is_an_exit_code() -> None:
    options = ["--scorer", NOBODY, "--rankings", "20", "--seconds", "1", "--max-errors", "0.5"]

    assert CliRunner().invoke(app, ["loadtest", *options]).exit_code == 3
