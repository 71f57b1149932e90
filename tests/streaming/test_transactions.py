"""Transactions on a real Kafka: what is committed counts, what is open waits, what is taken back
never was.
"""

from __future__ import annotations

import asyncio

import pytest

from infra.kafka.local import LocalKafka
from tests.streaming.kafka_harm import send_in_transaction, transactional
from tests.streaming.running import (
    KeptLetters,
    Running,
    WatchedStore,
    committed,
    event,
    one_partition,
    produce,
    running,
    until,
)


def some(user: str, count: int) -> list[tuple[str, bytes]]:
    return [(user, event(user, number)) for number in range(count)]


async def gauge(worker: Running, name: str) -> float:
    """A partition's gauge after the worker's look at the brokers."""
    await worker.app.batch_agent.check()
    (place,) = worker.places
    return float(getattr(worker.metrics, name).labels(place.topic, "0")._value.get())


@pytest.mark.kafka
async def test_events_of_an_aborted_transaction_never_become_behaviors(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    producer = transactional(settings)
    send_in_transaction(producer, settings, some("taken-back", 5))
    producer.abort_transaction()
    send_in_transaction(producer, settings, some("kept", 5))
    producer.commit_transaction()

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: worker.events("applied") >= 5, "what is committed is applied")
        await until(lambda: committed(settings) == {0: 12}, "all are committed, markers, too")
        assert await gauge(worker, "consumer_lag") == 0

    assert store.counts() == {"kept": 5}


@pytest.mark.kafka
async def test_the_offset_goes_past_what_was_taken_back_at_the_end(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    producer = transactional(settings)
    send_in_transaction(producer, settings, some("a", 3))
    producer.commit_transaction()

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: committed(settings) == {0: 4}, "the first are committed")
        send_in_transaction(producer, settings, some("taken-back", 5))
        producer.abort_transaction()
        await until_lag_is(worker, 0)
        await until(lambda: committed(settings) == {0: 10}, "the end is committed")

    (source,) = {source.key for source, _, _ in store.appends}
    assert store.positions([source]) == [9]


async def until_lag_is(worker: Running, events: int) -> None:
    for _ in range(400):
        if await gauge(worker, "consumer_lag") == events:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"lag never was {events}")


@pytest.mark.kafka
async def test_an_open_transaction_holds_its_partition_back_visibly(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka, held_max_s=0.1), WatchedStore()
    produce(settings, some("before", 2))
    producer = transactional(settings)
    send_in_transaction(producer, settings, some("open", 3))
    produce(settings, some("behind", 4))

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: worker.events("applied") == 2, "what lies before is applied")
        assert await gauge(worker, "held_events") == 7
        assert await gauge(worker, "consumer_lag") == 7
        obstacles = worker.app.batch_agent.obstacles
        await until(lambda: bool(obstacles()), "it is an obstacle after its time")
        assert "open transaction holds it back at offset 2" in obstacles()["partition 0"]
        assert await gauge(worker, "held_seconds") > 0
        assert store.counts() == {"before": 2}
        producer.commit_transaction()
        await until(lambda: worker.events("applied") == 9, "all are applied")
        await until_lag_is(worker, 0)
        assert not obstacles()
        assert await gauge(worker, "held_seconds") == 0


@pytest.mark.kafka
async def test_lag_grows_while_the_store_is_stuck(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    store.failure = lambda _s, _a: OSError("the disk is gone")
    produce(settings, some("a", 5))

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: store.failures > 0, "the store is asked")
        assert await gauge(worker, "consumer_lag") == 5
        await asyncio.to_thread(produce, settings, some("b", 5))
        await until_lag_is(worker, 10)
        store.failure = lambda _s, _a: None
        await until_lag_is(worker, 0)


@pytest.mark.kafka
async def test_tombstones_move_the_offset(kafka: LocalKafka) -> None:
    settings, store, letters = one_partition(kafka), WatchedStore(), KeptLetters()
    produce(settings, [("a", event("a")), ("a", None), ("b", None)])

    async with running(settings, store, letters):
        await until(lambda: committed(settings) == {0: 3}, "all are committed")

    assert store.counts() == {"a": 1}
