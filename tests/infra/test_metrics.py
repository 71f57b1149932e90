import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import (
    CollectorRegistry,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families

from infra.metrics import BulkHistogram, ScorerMetrics, WorkerMetrics, exposition, new_registry


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_names_say_whose_they_are_and_in_which_unit(registry: CollectorRegistry) -> None:
    WorkerMetrics(registry)
    ScorerMetrics(registry)
    for family in registry.collect():
        assert re.match(r"lifelong_(worker|scorer)_[a-z_]+$", family.name)
        assert not re.search(r"_(ms|millis\w*|minutes|kb|mb|percent)$", family.name)
        assert len(family.documentation) > 30
        if family.type == "histogram" and "seconds" not in family.name:
            assert family.name.endswith(("candidates", "behaviors", "events", "ratio", "nats"))


def test_known_outcomes_are_there_before_they_happen(registry: CollectorRegistry) -> None:
    WorkerMetrics(registry)
    for outcome in ("applied", "replayed", "duplicate", "rejected"):
        labels = {"outcome": outcome}
        assert registry.get_sample_value("lifelong_worker_events_total", labels) == 0


def test_what_an_alert_is_on_is_there_before_it_happens(registry: CollectorRegistry) -> None:
    WorkerMetrics(registry)
    ScorerMetrics(registry)
    for cause in ("retention", "truncation", "deletion"):
        assert registry.get_sample_value("lifelong_worker_lost_events_total", {"cause": cause}) == 0
    for kind in ("head", "segment", "state"):
        for whose in ("worker", "scorer"):
            name = f"lifelong_{whose}_store_damage_total"
            assert registry.get_sample_value(name, {"kind": kind}) == 0


@pytest.mark.parametrize(
    ("metric", "labels", "objective"),
    [
        ("lifelong_worker_freshness_seconds", {}, "5.0"),
        ("lifelong_worker_stored_seconds", {}, "1.0"),
        ("lifelong_scorer_request_seconds", {"route": "rank"}, "0.01"),
        ("lifelong_scorer_request_seconds", {"route": "rank"}, "0.05"),
    ],
)
def test_buckets_stand_on_the_objectives(
    registry: CollectorRegistry, metric: str, labels: dict[str, str], objective: str
) -> None:
    WorkerMetrics(registry)
    ScorerMetrics(registry).request_seconds.labels("rank")
    bucket = {**labels, "le": objective}
    assert registry.get_sample_value(f"{metric}_bucket", bucket) == 0


def test_one_bundle_is_in_service_at_a_time(registry: CollectorRegistry) -> None:
    metrics = WorkerMetrics(registry)
    metrics.use_bundle("old")
    metrics.use_bundle("new")
    name = "lifelong_worker_bundle_info"
    assert registry.get_sample_value(name, {"version": "old"}) == 0
    assert registry.get_sample_value(name, {"version": "new"}) == 1


def test_outcomes_begin_at_nothing_for_each_bundle(registry: CollectorRegistry) -> None:
    metrics = ScorerMetrics(registry)
    for version in ("old", "new", "old"):
        metrics.use_bundle(version)
    assert metrics.versions == ("old", "new")
    for name in ("outcomes", "outcomes_positive", "outcomes_predicted"):
        for version in ("old", "new", "other"):
            labels = {"version": version, "bin": "0.001"}
            assert registry.get_sample_value(f"lifelong_scorer_{name}_total", labels) == 0


def test_since_when_a_bundle_is_in_service_is_told(registry: CollectorRegistry) -> None:
    metrics = WorkerMetrics(registry)
    name = "lifelong_worker_bundle_since_timestamp_seconds"
    assert registry.get_sample_value(name) == 0
    before = time.time()
    metrics.use_bundle("new")
    assert before <= (registry.get_sample_value(name) or 0) <= time.time()


def test_a_store_that_does_not_say_how_full_it_is_is_not_told_to_be_empty(
    registry: CollectorRegistry,
) -> None:
    WorkerMetrics(registry)
    for name in ("store_used_ratio", "store_reader_ratio"):
        assert math.isnan(registry.get_sample_value(f"lifelong_worker_{name}") or 0)


def test_a_histogram_that_takes_many_values_is_one_of_prometheus_client(
    registry: CollectorRegistry,
) -> None:
    values = [0.0, 0.5, 1.0, 1.5, 5.0, 7.0]
    bulk = BulkHistogram("a_seconds", "A.", (1, 5), registry)
    bulk.observe(np.array(values[:2]))
    bulk.observe(np.array(values[2:]))
    other = CollectorRegistry()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    one_by_one = Histogram("a_seconds", "A.", buckets=(1, 5), registry=other)
    for value in values:
        one_by_one.observe(value)

    assert generate_latest(registry) == generate_latest(other)


def test_the_exposition_is_what_prometheus_reads() -> None:
    registry = new_registry()
    WorkerMetrics(registry).batches.inc()
    body, content_type = exposition(registry)
    families = {family.name for family in text_string_to_metric_families(body.decode())}
    assert content_type.startswith("text/plain")
    assert {"lifelong_worker_batches", "python_info"} <= families
    assert not any(name.endswith("_created") for name in families)


SCORER_PROCESS = """
import os, sys
from infra.metrics import BulkHistogram, ScorerMetrics, exposition, new_registry
registry = new_registry()
metrics = ScorerMetrics(registry)
counted, told = os.pipe()
pid = os.fork()
metrics.requests.labels("rank", "200").inc()
metrics.inflight.inc()
metrics.ready.set(pid != 0)
metrics.store_empty.set(pid == 0)
if pid == 0:
    os.write(told, b".")
    sys.stdin.read()
    os._exit(0)
os.read(counted, 1)
before = exposition(registry)[0].decode()
os.kill(pid, 9)
os.waitpid(pid, 0)
from infra.metrics import forget_process
forget_process(pid)
print(os.getpid(), pid)
print(before, exposition(registry)[0].decode(), sep="=====")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str, str]:
    """The ids of two processes, and what is exposed while both live and when the second is dead."""
    done = subprocess.run(
        [sys.executable, "-c", SCORER_PROCESS],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("shared"))},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.PIPE,
    )
    pids, _, told = done.stdout.partition("\n")
    both, survivor = told.split("=====")
    return pids.split(), both, survivor


def test_processes_of_one_scorer_add_up(two_processes: tuple[list[str], str, str]) -> None:
    _, both, survivor = two_processes
    total = 'lifelong_scorer_requests_total{route="rank",status="200"} 2.0'
    assert total in both
    assert total in survivor
    assert "lifelong_scorer_inflight 2.0" in both
    assert "lifelong_scorer_inflight 1.0" in survivor
    assert "lifelong_scorer_ready 0.0" in both
    assert "lifelong_scorer_store_empty 1.0" in both
    assert "lifelong_scorer_store_empty 0.0" in survivor
    assert "lifelong_scorer_ready 1.0" in survivor


ENDED_PROCESSES = """
import os, pathlib
from infra.metrics import ScorerMetrics, exposition, forget_process, new_registry
registry = new_registry()
metrics = ScorerMetrics(registry)
directory = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        metrics.requests.labels("rank", "200").inc()
        metrics.request_seconds.labels("rank").observe(0.004)
        metrics.inflight.inc()
        os._exit(0)
    os.waitpid(pid, 0)
    (directory / f"histogram_{pid + 1_000_000}.db").touch()
    forget_process(pid + 1_000_000)
    forget_process(pid)
print(len(list(directory.iterdir())), exposition(registry)[0].decode())
"""


def test_processes_that_have_ended_leave_their_counts_and_no_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED_PROCESSES],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    files, _, said = done.stdout.partition(" ")
    assert int(files) < 12
    assert 'lifelong_scorer_requests_total{route="rank",status="200"} 100.0' in said
    assert 'lifelong_scorer_request_seconds_count{route="rank"} 100.0' in said
    assert 'lifelong_scorer_request_seconds_bucket{le="0.003",route="rank"} 0.0' in said
    assert 'lifelong_scorer_request_seconds_bucket{le="0.005",route="rank"} 100.0' in said


def test_the_kernel_s_figures_are_told_of_each_process_that_lives(
    two_processes: tuple[list[str], str, str],
) -> None:
    (parent, child), both, survivor = two_processes
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"):
        pids = re.findall(rf'^process_{name}{{pid="(\d+)"}} \S+$', both, re.MULTILINE)
        assert set(pids) == {parent, child}
        assert re.findall(rf'^process_{name}{{pid="(\d+)"}}', survivor, re.MULTILINE) == [parent]
    assert "python_info{" in both
