"""The worker as a whole: what its endpoints say, how it starts, waits and ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from extractor.state import InterestState
from infra.errors import SettingsError
from infra.kafka.admin import topic_partitions
from infra.kafka.local import LocalKafka
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.store import Store
from infra.stores import open_store
from lifelong.shipped import BUNDLE
from streaming.worker import Health, serve_health
from tests.streaming.running import WorkerProcess, event, new_settings, produce, until


def worker_settings(bootstrap: str, directory: Path) -> Settings:
    return new_settings(
        bootstrap,
        store={"url": f"lmdb://{directory / 'store'}"},
        bundle={"path": str(BUNDLE)},
        log={"format": "json"},
    )


def healthy() -> Health:
    health = Health(stall_s=60)
    health.cleared("start")
    return health


def answer(port: int, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
            return found.status, found.headers["Content-Type"], found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_a_new_worker_lives_but_is_not_ready() -> None:
    health = Health(stall_s=60)

    assert health.alive()
    assert not health.ready()


def test_a_part_that_is_away_makes_the_worker_unready_until_it_is_back() -> None:
    health = healthy()
    health.blocked("store", "no room")
    assert not health.ready()

    health.cleared("store")
    assert health.ready()


def test_without_progress_the_worker_is_neither_live_nor_ready() -> None:
    health = healthy()
    health.seen_at = time.monotonic() - 61

    assert not health.alive()
    assert not health.ready()


def test_the_endpoints_tell_health_and_metrics() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    health = healthy()
    settings = Settings.model_validate({"worker": {"metrics_port": 0}})

    with serve_health(settings, registry, health) as port:
        assert answer(port, "/health/live")[0] == 200
        assert answer(port, "/health/ready?verbose=1")[0] == 200
        health.blocked("store", "no room")
        status, kind, body = answer(port, "/health/ready")
        assert (status, kind) == (503, "application/json")
        assert json.loads(body)["because"] == {"store": "no room"}
        assert answer(port, "/health/live")[0] == 200
        status, kind, body = answer(port, "/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        assert "lifelong_worker_events_total" in body
        assert answer(port, "/")[0] == 404


def test_a_port_in_use_is_an_error_of_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings.model_validate({"worker": {"metrics_port": port}})

        with (
            pytest.raises(SettingsError, match=rf"worker.metrics_port = {port}: cannot listen"),
            serve_health(settings, CollectorRegistry(), healthy()),
        ):
            pass


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_worker_makes_topics_sequences_and_interests_and_ends_when_asked(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    """Slow: a process starts, loads the bundle and joins the group."""
    settings = worker_settings(kafka.bootstrap, tmp_path)
    with WorkerProcess(settings, tmp_path / "log") as worker:
        await until(worker.ready, "the worker is ready")
        await asyncio.to_thread(produce, settings, [("a", event("a", n)) for n in range(3)])
        store = await asyncio.to_thread(open_store, settings.store)
        try:
            await until(lambda: _covered(store, "a") == 3, "interests cover the events")
        finally:
            store.close()
        assert "lifelong_worker_ready 1.0" in worker.get("/metrics")[1]
        assert worker.end(signal.SIGTERM) == 0

    assert "Traceback" not in worker.said
    assert topic_partitions(settings.broker, settings.broker.topic) == 4
    assert topic_partitions(settings.broker, settings.broker.dead_letter_topic) == 4


def _covered(store: Store, user: str) -> int:
    (profile,) = store.profiles([user])
    if profile is None or profile.interests is None:
        return 0
    return InterestState.decode(profile.interests).count


@pytest.mark.slow
async def test_a_bundle_that_is_not_there_ends_the_worker_with_one_line(tmp_path: Path) -> None:
    """Slow: a process starts."""
    settings = worker_settings("127.0.0.1:1", tmp_path)
    bundle = settings.bundle.model_copy(update={"path": tmp_path / "nowhere"})

    with WorkerProcess(settings.model_copy(update={"bundle": bundle}), tmp_path / "log") as worker:
        assert worker.wait() == 1

    assert "Traceback" not in worker.said
    assert worker.said.splitlines()[-1].startswith("BundleMissing: ")


@pytest.mark.slow
async def test_a_worker_waits_for_a_broker_and_ends_when_asked_meanwhile(tmp_path: Path) -> None:
    """Slow: a process starts and loads the bundle."""
    settings = worker_settings("127.0.0.1:1", tmp_path)

    with WorkerProcess(settings, tmp_path / "log") as worker:
        await until(lambda: '"part": "broker"' in worker.said, "it says what it waits for")
        assert worker.get("/health/live")[0] == 200
        assert worker.get("/health/ready")[0] == 503
        assert worker.end(signal.SIGINT) == 0

    assert worker.said.count('"part": "broker"') == 1
    assert "Traceback" not in worker.said
