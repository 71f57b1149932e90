"""Histories merged beside a worker that reads a real Kafka."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from infra.kafka.local import LocalKafka
from infra.settings import Settings
from infra.store import Store, StoreOptions, wall_clock_ms
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from streaming.history.inputs import FileInput, Input
from streaming.history.job import LATE_MS, Job, JobProgress
from streaming.history.topic import TopicInput
from tests.streaming.history.events import Row, expected, stored, write
from tests.streaming.running import create_topics, event, new_settings, produce, running, until

USERS = 40
NOW = 1_700_000_000_000


def rows(numbers: range) -> list[Row]:
    """Event n is of user ``n % USERS``, n ms after `NOW`, as `send` sends it."""
    return [
        {
            "event_id": f"u{n % USERS}-{n}",
            "user_id": f"u{n % USERS}",
            "item_id": f"item-{n % 50}",
            "action": "click",
            "event_time": NOW + n,
        }
        for n in numbers
    ]


def send(settings: Settings, numbers: range) -> None:
    events = ((f"u{n % USERS}", event(f"u{n % USERS}", n)) for n in numbers)
    assert produce(settings, events) == len(numbers)


@pytest.fixture
def settings(kafka: LocalKafka) -> Settings:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    return settings


@pytest.fixture
def store(tmp_path: Path) -> LmdbStore:
    return LmdbStore(tmp_path / "store", StoreOptions(length=200), max_size=1 << 28)


def job_of(
    inputs: list[Input], store: Store, settings: Settings, work: Path, now_ms: int | None = None
) -> Job:
    """A job; with a time, of a topic as of then."""
    broker = settings.broker
    return Job(
        inputs,
        store,
        broker.topic,
        broker.partitions,
        work,
        live=now_ms is not None,
        clock=lambda: now_ms or wall_clock_ms(),
        bucket_rows=100,
    )


async def test_all_history_beside_the_stream_leaves_each_sequence_as_the_input(
    settings: Settings, store: LmdbStore, tmp_path: Path
) -> None:
    # Of the 3,000 events the files have the first 2,000, and the topic all from the 1,000th on.
    files = [
        write(tmp_path / "a.parquet", rows(range(1500))),
        write(tmp_path / "b.csv", rows(range(1200, 2000))),
    ]
    job = job_of([FileInput(file) for file in files], store, settings, tmp_path / "w")
    merging = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_progress(progress: JobProgress) -> None:
        if progress.merged.users:
            loop.call_soon_threadsafe(merging.set)

    send(settings, range(1000, 1700))
    async with running(settings, cast("MemoryStore", store)) as worker:
        await until(lambda: worker.events("applied") >= 300, "the stream is under way")
        done = asyncio.create_task(asyncio.to_thread(job.run, on_progress))
        await asyncio.to_thread(send, settings, range(1700, 2300))
        await asyncio.wait_for(merging.wait(), 60)
        await asyncio.to_thread(send, settings, range(2300, 3000))
        progress = await done
        # What comes late is in the history, too.
        await asyncio.to_thread(send, settings, range(500, 600))
        outcomes = ("applied", "covered", "duplicate")
        await until(
            lambda: sum(map(worker.events, outcomes)) == 2100, "the stream is read to its end"
        )
        assert worker.events("covered") >= 100
        assert worker.events("duplicate") == 0

    assert progress.finished
    assert progress.duplicates == 300
    assert progress.merged.users == USERS
    assert stored(store) == expected(rows(range(3000)))


async def test_a_topic_from_its_beginning_is_a_history(
    settings: Settings, store: LmdbStore, tmp_path: Path
) -> None:
    now_ms = NOW + LATE_MS + 2900
    send(settings, range(2000, 3000))
    produce(settings, [("u0", b"no event")])
    inputs: list[Input] = [
        FileInput(write(tmp_path / "old.csv", rows(range(2100)))),
        TopicInput(settings, now_ms),
    ]
    job = job_of(inputs, store, settings, tmp_path / "w", now_ms)

    progress = await asyncio.to_thread(job.run)

    # The last 5 minutes of the topic are left to its stream.
    assert progress.cut == NOW + 2900
    assert (progress.skipped, progress.later, progress.duplicates) == (1, 100, 100)
    assert stored(store) == expected(rows(range(2900)))
    async with running(settings, cast("MemoryStore", store)) as worker:
        await until(lambda: worker.events("applied") == 100, "the stream's part is applied")
        await until(lambda: worker.events("covered") == 900, "the rest is recognised")
    assert stored(store) == expected(rows(range(3000)))
