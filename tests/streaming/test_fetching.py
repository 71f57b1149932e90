"""A partition that cannot be read stays alone with it: taking records out of the fetcher."""

from __future__ import annotations

import asyncio

import pytest

from infra.kafka.local import LocalKafka
from tests.streaming.kafka_harm import mend_log, spoil_batch, stopped
from tests.streaming.running import (
    KeptLetters,
    WatchedStore,
    create_topics,
    event,
    new_settings,
    produce,
    running,
    until,
)


@pytest.mark.kafka
async def test_a_damaged_batch_holds_its_partition_alone_and_is_named(kafka: LocalKafka) -> None:
    settings, store = new_settings(kafka.bootstrap, broker={"partitions": 2}), WatchedStore()
    create_topics(settings)
    for part in range(3):
        for partition, user in enumerate("ab"):
            some = [(user, event(user, 10 * part + n)) for n in range(10)]
            produce(settings, some, partition=partition)
    with stopped(kafka):
        sound = spoil_batch(kafka, settings, 10)

    async with running(settings, store, KeptLetters()) as worker:
        obstacles = worker.app.batch_agent.obstacles
        await until(lambda: bool(obstacles()), "it is an obstacle")
        said = obstacles()["partition 0"]
        assert said.startswith("cannot be read at offset 10: CorruptRecordException")
        await asyncio.to_thread(produce, settings, [("b", event("b", 30))], partition=1)
        await until(lambda: store.counts()["b"] == 31, "the other partition goes on")
        assert store.counts()["a"] == 10
        assert worker.app.crash_reason is None
        assert set(obstacles()) == {"partition 0"}
        with stopped(kafka):
            mend_log(kafka, settings, sound)
        await until(lambda: not obstacles(), "it is tried again")
        await until(lambda: store.counts()["a"] == 30, "what is behind it is applied, too")
