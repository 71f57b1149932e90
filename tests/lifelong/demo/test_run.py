"""The demo as a user runs it, on a real Kafka. These tests are slow because they are the whole
system, several processes at a time: the only ones that see all its parts together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.kafka.local import LocalKafka
from lifelong.shipped import BUNDLES
from tests.bundles import tiny_bundle

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

EVENTS = 4000
KEYS = {
    "broker",
    "events",
    "lost",
    "doubled",
    "events_per_second",
    "freshness_p50_s",
    "freshness_p99_s",
    "clustered_p50_s",
    "clustered_p99_s",
    "requests",
    "rank_p50_ms_100",
    "rank_p99_ms_100",
    "rank_p50_ms_3000",
    "rank_p99_ms_3000",
    "calibration",
    "outcomes",
    "auc_live",
    "auc_offline",
    "auc_popularity",
    "auc_repeat",
    "hit10_live",
    "hit10_popularity",
    "hit10_repeat",
    "max_ctr_difference",
}
REACH_S = 120.0
"""Longest wait for a step of the demo."""


@contextmanager
def running_demo(*arguments: str, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo with its temporary files under ``temporary``."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "lifelong", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # an interrupt is sent to the demo alone, which must end the rest
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


@pytest.fixture(scope="module")
def reports(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a demo of all systems over a few events wrote, by system."""
    directory = tmp_path_factory.mktemp("demo")
    arguments = ["--system", "all", "--broker", kafka.bootstrap, "--events", str(EVENTS)]
    arguments += ["--rate", "0", "--json", str(directory / "report.json")]
    with running_demo(*arguments, temporary=directory) as demo:
        output, _ = demo.communicate(timeout=900)
    assert demo.returncode == 0, output
    assert "Side by side" in output
    read: dict[str, Any] = json.loads((directory / "report.json").read_text())["systems"]
    return read


@pytest.fixture(params=BUNDLES)
def report(request: pytest.FixtureRequest, reports: dict[str, Any]) -> dict[str, Any]:
    """The figures of each system that has a shipped bundle."""
    figures: dict[str, Any] = reports[request.param]
    return figures


def test_every_figure_is_there(report: dict[str, Any]) -> None:
    assert report.keys() >= KEYS


def test_all_events_arrive_and_none_twice(report: dict[str, Any]) -> None:
    assert (report["events"], report["lost"], report["doubled"]) == (EVENTS, 0, 0)


def test_what_is_served_is_what_the_bundle_gives(report: dict[str, Any]) -> None:
    assert report["max_ctr_difference"] <= 1e-5


def test_the_scorer_s_metrics_tell_the_calibration_of_the_requests(report: dict[str, Any]) -> None:
    outcomes, calibration = report["outcomes"], report["calibration"]
    assert outcomes["counted"] == outcomes["told"] > 10_000
    ratio = calibration["predicted_over_observed"]
    assert outcomes["predicted_over_observed"] == pytest.approx(ratio, rel=1e-4)
    # Of other bins: near, not the same.
    error = calibration["expected_calibration_error"]
    assert outcomes["expected_calibration_error"] == pytest.approx(error, abs=0.005)


@pytest.mark.long
@pytest.mark.parametrize("system", ["encode", "twin"])
def test_what_is_served_of_actions_is_what_the_bundle_gives(
    kafka: LocalKafka, tmp_path: Path, system: str
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", system=system, actions=("view", "purchase"))
    arguments = ["--bundle", str(bundle), "--broker", kafka.bootstrap, "--events", "200"]
    arguments += ["--json", str(tmp_path / "report.json")]
    with running_demo(*arguments, temporary=tmp_path) as demo:
        output, _ = demo.communicate(timeout=REACH_S)
    assert demo.returncode == 0, output
    assert json.loads((tmp_path / "report.json").read_text())["max_ctr_difference"] <= 1e-5


def test_the_model_beats_the_repeat_rule_and_that_beats_popularity(report: dict[str, Any]) -> None:
    assert report["auc_live"] > report["auc_repeat"] + 0.05
    assert report["auc_repeat"] + 0.05 > report["auc_popularity"]
    assert report["hit10_live"] > report["hit10_repeat"] > report["hit10_popularity"]


def test_live_is_as_good_as_offline(report: dict[str, Any]) -> None:
    # Over all requests of a whole demo the figures lie within 0.005; here are a tenth of them.
    assert abs(report["auc_live"] - report["auc_offline"]) <= 0.02


@pytest.mark.parametrize(
    ("reached", "pause_s"),
    [("", 0.5), pytest.param("start the scorer:", 3.0, marks=pytest.mark.long)],
)
def test_an_interrupt_leaves_nothing_behind(
    reached: str, pause_s: float, kafka: LocalKafka, tmp_path: Path
) -> None:
    # At once: in the start of Kafka. After the scorer: in mid-stream, with all processes running.
    with running_demo("--rate", "1000", temporary=tmp_path) as demo:
        assert demo.stdout is not None
        if reached:
            assert any(line.startswith(reached) for line in demo.stdout)
        else:
            wait_until_started(tmp_path)
        time.sleep(pause_s)
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=REACH_S)

    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "lifelong: interrupted"
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def wait_until_started(temporary: Path) -> None:
    """Until the demo has made its temporary directory and Kafka's within."""
    deadline = time.monotonic() + REACH_S
    while not list(temporary.glob("lifelong-demo-*/kafka")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(directory: Path) -> list[str]:
    """Command lines of the processes that name a directory."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended just now
        if str(directory) in words:
            found.append(words)
    return found
