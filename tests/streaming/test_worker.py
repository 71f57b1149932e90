"""The worker as a whole: how it starts, waits and ends."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

import lmdb
import pytest

from infra.behaviors import Source, pack_behavior
from infra.kafka.admin import topic_partitions
from infra.kafka.local import LocalKafka
from infra.segments import SEGMENT
from infra.settings import Settings
from infra.store import Append, Group, Store
from infra.stores import open_store
from lifelong.shipped import BUNDLE
from models.bundle import states_of
from tests.infra.stores.test_lmdb_faults import Other, begin
from tests.streaming.running import (
    NOW,
    WorkerProcess,
    create_topics,
    event,
    new_settings,
    produce,
    until,
)


def worker_settings(bootstrap: str, directory: Path) -> Settings:
    return new_settings(
        bootstrap,
        store={"url": f"lmdb://{directory / 'store'}"},
        bundle={"path": str(BUNDLE)},
        log={"format": "json"},
    )


def with_topics(settings: Settings) -> Settings:
    """A worker that creates what topics it lacks."""
    broker = settings.broker.model_copy(update={"create_topics": True})
    return settings.model_copy(update={"broker": broker})


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_missing_topic_is_named_and_waited_for(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts, loads the bundle and joins the group."""
    settings = worker_settings(kafka.bootstrap, tmp_path)
    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(lambda: "there is no topic" in worker.said, "it says what it lacks")
        status, body = worker.get("/health/ready")
        assert status == 503
        assert f"there is no topic {settings.broker.topic} on Kafka" in body
        assert topic_partitions(settings.broker, settings.broker.topic) == 0
        await asyncio.to_thread(create_topics, settings)
        await until(worker.ready, "the worker is ready")
        assert worker.end() == 0


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_worker_makes_topics_sequences_and_interests_and_ends_when_asked(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts, loads the bundle and joins the group."""
    settings = with_topics(worker_settings(kafka.bootstrap, tmp_path))
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


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_damaged_record_is_counted_and_its_user_begins_anew(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts, loads the bundle and joins the group."""
    settings = with_topics(worker_settings(kafka.bootstrap, tmp_path))
    store = open_store(settings.store)
    behaviors = [pack_behavior(1, NOW, 0, 0, 2)] * 3
    store.append([Group(Source(1, 1), [Append("a", behaviors, [0] * 3, [0, 1, 2])])], NOW)
    store.close()
    _damage_head(tmp_path / "store", "a")

    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(worker.ready, "the worker is ready")
        await asyncio.to_thread(produce, settings, [("a", event("a"))])
        applied = 'lifelong_worker_events_total{outcome="applied"} 1.0'
        await until(lambda: applied in worker.get("/metrics")[1], "the event is applied")
        none = 'lifelong_worker_store_damage_total{kind="head"} 0.0'
        assert none not in worker.get("/metrics")[1]
        assert worker.end(signal.SIGTERM) == 0

    store = open_store(settings.store)
    (sequence,) = store.sequences(["a"])
    store.close()
    assert sequence is not None
    assert sequence.version.count == 1


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_worker_whose_append_waits_for_the_lock_ends_when_asked(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a process starts, and waits for as long as one may at its end."""
    settings = with_topics(worker_settings(kafka.bootstrap, tmp_path))
    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(worker.ready, "the worker is ready")
        holder = await asyncio.to_thread(Other, tmp_path / "store")
        try:
            holder.do(partial(begin, write=True))
            holder.signal(signal.SIGSTOP)
            await asyncio.to_thread(produce, settings, [("a", event("a"))])
            waits = "lifelong_worker_waiting_bytes 0.0"
            await until(lambda: waits not in worker.get("/metrics")[1], "the append waits")
            assert await asyncio.to_thread(worker.end) == 0
        finally:
            holder.kill()
    assert "left before all was stopped" in worker.said


def _damage_head(directory: Path, user: str) -> None:
    with lmdb.open(str(directory), max_dbs=16) as environment:
        heads = environment.open_db(b"heads")
        with environment.begin(heads, write=True) as transaction:
            head = transaction.get(user.encode())
            assert head is not None
            transaction.put(user.encode(), head[:20] + bytes(4) + head[24:-1])


def _covered(store: Store, user: str) -> int:
    digest = states_of(BUNDLE)
    assert digest is not None
    (profile,) = store.profiles([user], digest)
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
