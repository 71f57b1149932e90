"""The worker as a whole: how it starts, waits and ends."""

from __future__ import annotations

import asyncio
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from infra.kafka.admin import topic_partitions
from infra.kafka.local import LocalKafka
from infra.segments import SEGMENT
from infra.settings import Settings
from infra.store import Store
from infra.stores import open_store
from lifelong.shipped import BUNDLE
from tests.streaming.running import WorkerProcess, event, new_settings, produce, until


def worker_settings(bootstrap: str, directory: Path) -> Settings:
    return new_settings(
        bootstrap,
        store={"url": f"lmdb://{directory / 'store'}"},
        bundle={"path": str(BUNDLE)},
        log={"format": "json"},
    )


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_worker_makes_topics_sequences_and_interests_and_ends_when_asked(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts, loads the bundle and joins the group."""
    settings = worker_settings(kafka.bootstrap, tmp_path)
    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(worker.ready, "the worker is ready")
        await asyncio.to_thread(produce, settings, [("a", event("a", n)) for n in range(SEGMENT)])
        store = await asyncio.to_thread(open_store, settings.store)
        try:
            await until(lambda: _covered(store, "a") == SEGMENT, "interests cover the events")
        finally:
            store.close()
        assert "lifelong_worker_ready 1.0" in worker.get("/metrics")[1]
        assert worker.end(signal.SIGTERM) == 0

    assert "Traceback" not in worker.said
    assert topic_partitions(settings.broker, settings.broker.topic) == 4
    assert topic_partitions(settings.broker, settings.broker.dead_letter_topic) == 4


def _covered(store: Store, user: str) -> int:
    (profile,) = store.profiles([user])
    if profile is None or profile.interests_version is None:
        return 0
    return profile.interests_version.count


@pytest.mark.slow
async def test_a_bundle_that_is_not_there_ends_the_worker_with_one_line(
    warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts."""
    settings = worker_settings("127.0.0.1:1", tmp_path)
    bundle = settings.bundle.model_copy(update={"path": tmp_path / "nowhere"})

    with WorkerProcess(
        settings.model_copy(update={"bundle": bundle}), tmp_path / "log", warm
    ) as worker:
        assert worker.wait() == 1

    assert "Traceback" not in worker.said
    assert worker.said.splitlines()[-1].startswith("BundleMissing: ")


@pytest.mark.slow
async def test_a_worker_waits_for_a_broker_and_ends_when_asked_meanwhile(
    warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts and loads the bundle."""
    settings = worker_settings("127.0.0.1:1", tmp_path)

    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(lambda: '"part": "broker"' in worker.said, "it says what it waits for")
        assert worker.get("/health/live")[0] == 200
        assert worker.get("/health/ready")[0] == 503
        assert worker.end(signal.SIGINT) == 0

    assert worker.said.count('"part": "broker"') == 1
    assert "Traceback" not in worker.said
