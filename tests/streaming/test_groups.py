"""Batches that wait to be written: how many there may be, and that they are written together."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from infra.kafka.local import LocalKafka
from streaming.groups import EVENT_BYTES, Waiting, WaitingBatches, size_of
from tests.streaming.running import (
    WatchedStore,
    create_topics,
    event,
    new_settings,
    produce,
    running,
    until,
)

DISK = OSError("the disk is gone")


def waiting(size: int) -> Waiting:
    decoded: Any = None
    return Waiting(SimpleNamespace(value=None), decoded, size)


async def turns() -> None:
    """Let every other task get as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_that_wait_are_taken_together_in_their_order() -> None:
    batches = WaitingBatches(100)
    given = [waiting(10), waiting(20), waiting(30)]
    for one in given:
        await batches.put(one)

    assert await batches.take() == given


async def test_who_takes_waits_for_the_first() -> None:
    batches = WaitingBatches(100)
    taking = asyncio.create_task(batches.take())
    await turns()
    assert not taking.done()

    await batches.put(waiting(10))

    assert len(await taking) == 1


async def test_a_batch_waits_until_there_is_room_for_it() -> None:
    batches = WaitingBatches(100)
    await batches.put(waiting(60))
    taken = await batches.take()
    putting = asyncio.create_task(batches.put(waiting(60)))
    await turns()
    assert not putting.done()
    assert batches.bytes == 60

    await batches.done(taken)
    await putting

    assert batches.bytes == 60


async def test_a_batch_larger_than_all_the_room_goes_through_alone() -> None:
    batches = WaitingBatches(100)
    await batches.put(waiting(500))
    taken = await batches.take()
    putting = asyncio.create_task(batches.put(waiting(1)))
    await turns()
    assert not putting.done()

    await batches.done(taken)
    await putting


@pytest.mark.kafka
async def test_what_came_while_the_store_was_busy_is_written_together(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, worker={"fetch_max": 20, "retry_max_s": 0.1})
    create_topics(settings)
    store = WatchedStore()
    store.failure = lambda _s, _a: DISK
    events = [(f"u{n}", event(f"u{n}", m)) for m in range(20) for n in range(20)]

    async with running(settings, store) as worker:
        await asyncio.to_thread(produce, settings, events)
        waiting_bytes = worker.metrics.waiting_bytes._value.get
        await until(lambda: waiting_bytes() > len(events) * EVENT_BYTES, "all wait")
        store.failure = lambda _s, _a: None
        await until(lambda: worker.events("applied") == len(events), "all are applied")
        await until(lambda: waiting_bytes() == 0, "nothing waits")

    assert store.counts() == {f"u{n}": 20 for n in range(20)}
    fetched = len(events) / 20
    assert worker.metrics.batches._value.get() < fetched / 4


@pytest.mark.kafka
async def test_what_waits_is_bounded_however_much_there_is(kafka: LocalKafka) -> None:
    settings = new_settings(
        kafka.bootstrap, worker={"fetch_max": 20, "retry_max_s": 0.1, "group_bytes": 30_000}
    )
    create_topics(settings)
    store = WatchedStore()
    store.failure = lambda _s, _a: DISK
    events = [(f"u{n}", event(f"u{n}", m)) for m in range(50) for n in range(20)]
    await asyncio.to_thread(produce, settings, events)

    async with running(settings, store) as worker:
        waiting_bytes = worker.metrics.waiting_bytes._value.get
        await until(lambda: waiting_bytes() > 0, "some wait")
        most = 0.0
        for n in range(100):
            most = max(most, waiting_bytes())
            if n == 50:
                store.failure = lambda _s, _a: None
            await asyncio.sleep(0.02)
        await until(lambda: worker.events("applied") == len(events), "all are applied")

    assert 0 < most <= 30_000
    assert store.counts() == {f"u{n}": 50 for n in range(20)}


def test_a_batch_weighs_what_its_records_do() -> None:
    def weight(*values: bytes) -> int:
        records = [SimpleNamespace(key=b"u", value=value) for value in values]
        batch: Any = SimpleNamespace(records=records)
        return size_of(batch)

    assert weight(b"x" * 1000) - weight(b"") == 1000
    assert weight(b"", b"") == 2 * weight(b"")
