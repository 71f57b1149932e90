"""Faults in mid-stream on a real Kafka: killed workers, a broker and a store that go away."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from infra.kafka.local import LocalKafka
from infra.settings import Settings
from infra.store import Store
from infra.stores import open_store
from tests.silent_proxy import SilentProxy, behind
from tests.streaming.running import (
    WatchedStore,
    WorkerProcess,
    committed,
    create_topics,
    event,
    new_settings,
    produce,
    running,
    until,
)
from tests.streaming.test_worker import worker_settings

USERS = 200


def paced(events: Iterator[tuple[str, bytes]], a_second: int) -> Iterator[tuple[str, bytes]]:
    """The same events, at a rate."""
    started = time.monotonic()
    for index, one in enumerate(events):
        ahead = index / a_second - (time.monotonic() - started)
        if ahead > 0.02:
            time.sleep(ahead)
        yield one


def rounds(count: int) -> Iterator[tuple[str, bytes]]:
    """``count`` events of each user, without event ids: only the marks can tell repetitions."""
    for number, user in itertools.product(range(count), range(USERS)):
        yield f"u{user}", event(f"u{user}", number, event_id=None)


def rounds_until(ended: threading.Event) -> Iterator[tuple[str, bytes]]:
    """As many whole rounds as begin before the end."""
    for number in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
        for user in range(USERS):
            yield f"u{user}", event(f"u{user}", number, event_id=None)


def counts(store: Store) -> dict[str, int]:
    users = store.users(b"", 10_000).users
    found = store.sequences(users)
    return {u: s.version.count for u, s in zip(users, found, strict=True) if s is not None}


@pytest.mark.kafka
@pytest.mark.slow
async def test_workers_killed_in_mid_stream_lose_and_double_nothing(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: five workers start, and a killed one's partitions wait for its session to end."""
    settings = with_worker(worker_settings(kafka.bootstrap, tmp_path), session_timeout_s=3.0)
    create_topics(settings)
    killed = threading.Event()
    chance = random.Random(5)
    with ExitStack() as stack:
        logs = (tmp_path / f"log{n}" for n in itertools.count())
        workers = [stack.enter_context(WorkerProcess(settings, next(logs), warm)) for _ in range(2)]
        await until(lambda: all(worker.ready() for worker in workers), "both are ready")
        stream = paced(rounds_until(killed), a_second=2_500)
        sending = asyncio.create_task(asyncio.to_thread(produce, settings, stream))
        try:
            for kill in range(3):
                await asyncio.sleep(0.5 + chance.random())
                workers[kill % 2].end(signal.SIGKILL)
                workers[kill % 2] = stack.enter_context(WorkerProcess(settings, next(logs), warm))
                await until(workers[kill % 2].ready, "the new worker is ready")
        finally:
            killed.set()
            sent = await sending
        await until(lambda: sum(committed(settings).values()) == sent, "all are committed")
        for worker in workers:
            assert worker.end() == 0

    store = open_store(settings.store)
    assert counts(store) == {f"u{n}": sent // USERS for n in range(USERS)}
    store.close()


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_broker_that_goes_away_is_waited_for(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a broker stops and starts again."""
    settings = with_worker(worker_settings(kafka.bootstrap, tmp_path), check_s=1.0)
    create_topics(settings)
    with WorkerProcess(settings, tmp_path / "log", warm) as worker:
        await until(worker.ready, "the worker is ready")
        await asyncio.to_thread(produce, settings, rounds(5))
        try:
            await asyncio.to_thread(kafka.stop)
            await until(lambda: not worker.ready(), "the worker notices")
            assert worker.get("/health/live")[0] == 200
            await asyncio.sleep(3)  # for as long as a check takes, with the pause before it
        finally:
            await asyncio.to_thread(kafka.start)
        await asyncio.to_thread(produce, settings, rounds(10))
        await until(lambda: sum(committed(settings).values()) == 15 * USERS, "all are committed")
        await until(worker.ready, "the worker is ready again")
        assert worker.end() == 0

    said = worker.said
    assert said.count("away, waiting") == 1
    assert "Traceback" not in said
    store = open_store(settings.store)
    assert counts(store) == {f"u{n}": 15 for n in range(USERS)}
    store.close()


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.long
async def test_connections_that_fall_silent_are_told_and_made_anew(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: a session has to end, and the group gives the partitions to the worker again."""
    settings = with_worker(
        worker_settings(kafka.bootstrap, tmp_path), check_s=1.0, session_timeout_s=3.0
    )
    create_topics(settings)
    with (
        SilentProxy(kafka.bootstrap) as proxy,
        WorkerProcess(behind(proxy, settings), tmp_path / "log", warm) as worker,
    ):
        await until(worker.ready, "the worker is ready")
        await asyncio.to_thread(produce, settings, rounds(5))
        await until(lambda: sum(committed(settings).values()) > 0, "it has begun")
        proxy.fall_silent()
        await until(lambda: '"broker"' in worker.get("/health/ready")[1], "it says so")
        assert "lifelong_worker_ready 0.0" in worker.get("/metrics")[1]
        assert worker.get("/health/live")[0] == 200
        await asyncio.to_thread(produce, settings, rounds(10))
        await asyncio.sleep(4)  # the session is 3 s long
        proxy.speak()
        spoke = time.monotonic()
        await until(lambda: sum(committed(settings).values()) == 15 * USERS, "all is read")
        await until(worker.ready, "the worker is ready again")
        assert time.monotonic() - spoke < 20
        assert worker.end() == 0

    assert "Traceback" not in worker.said
    store = open_store(settings.store)
    assert counts(store) == {f"u{n}": 15 for n in range(USERS)}
    store.close()


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.long
async def test_a_consumer_that_gets_no_answers_is_made_anew(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: it is given half a minute."""
    settings = with_worker(
        worker_settings(kafka.bootstrap, tmp_path), check_s=1.0, session_timeout_s=3.0
    )
    create_topics(settings)
    with (
        SilentProxy(kafka.bootstrap) as proxy,
        WorkerProcess(behind(proxy, settings), tmp_path / "log", warm) as worker,
    ):
        await until(worker.ready, "the worker is ready")
        await asyncio.to_thread(produce, settings, rounds(5))
        await until(lambda: sum(committed(settings).values()) > 0, "it has begun")
        proxy.fall_silent_to(b"faust")
        await until(
            lambda: "does not answer the consumer" in worker.get("/health/ready")[1], "it says so"
        )
        await asyncio.to_thread(produce, settings, rounds(10))
        await until(lambda: "gets no answers, another" in worker.said, "it is given up", 60)
        assert worker.get("/health/live")[0] == 200
        assert not worker.ready()
        proxy.speak()
        await until(lambda: sum(committed(settings).values()) == 15 * USERS, "all is read")
        await until(worker.ready, "the worker is ready again")
        metric = "lifelong_worker_consumer_failures_total"
        assert re.search(rf"^{metric} [1-9]", worker.get("/metrics")[1], re.MULTILINE)
        assert worker.end() == 0

    assert "Traceback" not in worker.said
    store = open_store(settings.store)
    assert counts(store) == {f"u{n}": 15 for n in range(USERS)}
    store.close()


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_full_store_takes_no_acknowledgement(
    kafka: LocalKafka, warm: ForkServerContext, tmp_path: Path
) -> None:
    """Slow: two workers start, one after the other."""
    settings = worker_settings(kafka.bootstrap, tmp_path)
    create_topics(settings)
    produce(settings, rounds(50))
    small = _with_store(settings, f"{settings.store.url}?max_size={1 << 18}")

    with WorkerProcess(small, tmp_path / "log", warm) as worker:
        await until(lambda: "cannot write" in worker.said, "the store is full")
        await until(lambda: worker.get("/health/ready")[0] == 503, "the worker says so")
        assert "StoreFull" in worker.get("/health/ready")[1]
        assert worker.get("/health/live")[0] == 200
        assert worker.end() == 0
    assert sum(committed(settings).values()) < 50 * USERS

    with WorkerProcess(settings, tmp_path / "log2", warm) as worker:
        await until(lambda: sum(committed(settings).values()) == 50 * USERS, "all are committed")
    store = open_store(settings.store)
    assert counts(store) == {f"u{n}": 50 for n in range(USERS)}
    store.close()


def with_worker(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=changes)})


def _with_store(settings: Settings, url: str) -> Settings:
    store = settings.store.model_copy(update={"url": url})
    return settings.model_copy(update={"store": store})


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_store_away_for_longer_than_the_session_costs_no_partition(
    kafka: LocalKafka,
) -> None:
    """Slow: the store is away for longer than the session."""
    settings = new_settings(kafka.bootstrap, worker={"session_timeout_s": 3.0})
    create_topics(settings)
    store = WatchedStore()
    store.failure = lambda _s, _a: OSError("the disk is gone")
    produce(settings, rounds(2))

    async with running(settings, store) as worker:
        await until(lambda: store.failures > 0, "the store is asked")
        await asyncio.sleep(4)  # the session is 3 s long
        assert worker.rebalances == 1
        store.failure = lambda _s, _a: None
        await until(lambda: worker.events("applied") == 2 * USERS, "all events are applied")
        assert worker.events("replayed") == 0
