"""The agent on a real Kafka: nothing is acknowledged before store and dead-letter topic have it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import LeaderNotAvailableError
from faust.types import TP

from infra.errors import BrokerError, StoreUnavailable
from infra.kafka.admin import unread_partitions
from infra.kafka.local import LocalKafka
from tests.infra.kafka.steps import delete_topic
from tests.streaming.running import (
    KeptLetters,
    WatchedStore,
    add_partitions,
    committed,
    create_topics,
    event,
    new_settings,
    produce,
    running,
    until,
)


@pytest.mark.kafka
async def test_offsets_are_committed_only_after_the_store_has_the_events(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    store = WatchedStore()
    store.failure = lambda _s, _a: StoreUnavailable("the store is away")
    produce(settings, [(f"u{n}", event(f"u{n}")) for n in range(50)])

    async with running(settings, store) as worker:
        await until(lambda: store.failures >= 4, "the store was tried several times")
        await asyncio.sleep(1.5)  # longer than the interval between commits
        assert committed(settings) == {}
        assert worker.app.writer.progress.failure == "StoreUnavailable: the store is away"
        store.failure = lambda _s, _a: None
        await until(lambda: sum(committed(settings).values()) == 50, "all are committed")

    assert sum(store.counts().values()) == 50
    assert worker.app.writer.progress.failure is None


@pytest.mark.kafka
async def test_offsets_are_committed_only_after_the_letters_are_delivered(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    letters = KeptLetters(failure=BrokerError("the topic is away"))
    produce(settings, [("a", event("a")), ("a", b"oops")])

    async with running(settings, WatchedStore(), letters):
        await until(lambda: letters.failures >= 3, "delivery was tried several times")
        await asyncio.sleep(1.5)
        assert committed(settings) == {}
        letters.failure = None
        await until(lambda: committed(settings) == {0: 2}, "both are committed")

    assert [letter.value for letter in letters.letters] == [b"oops"]


@pytest.mark.kafka
async def test_the_store_knows_how_far_each_partition_was_taken(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    store, letters = WatchedStore(), KeptLetters()
    produce(settings, [("a", event("a", n)) for n in range(5)] + [("a", b"oops")])

    async with running(settings, store, letters):
        await until(lambda: committed(settings) == {0: 6}, "all are committed")

    ((source, _, _),) = store.appends[:1]
    assert store.positions([source.key]) == [5]


@pytest.mark.kafka
async def test_a_topic_deleted_and_created_again_is_read_from_its_beginning(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    store = WatchedStore()
    produce(settings, [("a", event("a", n)) for n in range(30)])

    async with running(settings, store) as worker:
        await until(lambda: worker.events("applied") == 30, "the first topic is applied")
        await until(lambda: committed(settings) == {0: 30}, "and committed")
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
        await asyncio.to_thread(create_topics, settings)
        await asyncio.to_thread(produce, settings, [("a", event("a", 100 + n)) for n in range(5)])
        await until(lambda: worker.events("applied") == 35, "the second topic is applied")
        await until(lambda: committed(settings) == {0: 5}, "and committed")

    assert store.counts() == {"a": 35}
    assert len({source.key for source, _, _ in store.appends}) == 2
    assert len({source.owner for source, _, _ in store.appends}) == 1


@pytest.mark.kafka
async def test_a_topic_created_again_and_filled_beyond_the_old_offset_is_read_once(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    store = WatchedStore()
    produce(settings, [("a", event("a", n, event_id=None)) for n in range(10)])

    async with running(settings, store) as worker:
        await until(lambda: worker.events("applied") == 10, "the first topic is applied")
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
        await asyncio.to_thread(create_topics, settings)
        second = [("a", event("a", 100 + n, event_id=None)) for n in range(40)]
        await asyncio.to_thread(produce, settings, second)
        await until(lambda: store.counts()["a"] == 50, "all of the second topic is applied")

    assert store.counts() == {"a": 50}
    assert worker.events("applied") == 50


@pytest.mark.kafka
async def test_a_topic_created_again_with_fewer_partitions_leaves_none_behind(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 6})
    create_topics(settings)
    fewer = new_settings(kafka.bootstrap, broker={"partitions": 2, "topic": settings.broker.topic})
    store = WatchedStore()

    async with running(settings, store) as worker, running(settings, store) as other:
        await until(lambda: len(worker.partitions | other.partitions) == 6, "all are assigned")
        await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
        await asyncio.to_thread(create_topics, fewer)
        await until(lambda: worker.partitions | other.partitions == {0, 1}, "those there are")
        sent = [(f"u{n}", event(f"u{n}", n)) for n in range(20)]
        await asyncio.to_thread(produce, settings, sent)
        await until(lambda: len(store.counts()) == 20, "the new topic is read")


@pytest.mark.kafka
async def test_a_member_that_is_soon_back_moves_nobody_elses_partitions(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 4})
    create_topics(settings)
    store = WatchedStore()
    one, other = (
        settings.model_copy(
            update={"worker": settings.worker.model_copy(update={"member": member})}
        )
        for member in ("one", "other")
    )

    async with running(one, store) as stays:
        async with running(other, store) as leaves:
            await until(lambda: len(stays.partitions & leaves.partitions) == 0, "apart")
            await until(lambda: len(stays.partitions) == 2 == len(leaves.partitions), "assigned")
            had = set(leaves.partitions)
        times = stays.assignments
        async with running(other, store) as back:
            await until(lambda: back.partitions == had, "it has what it had")
        assert stays.assignments == times


@pytest.mark.kafka
async def test_a_partition_of_which_no_broker_can_tell_does_not_stop_the_others(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 2})
    create_topics(settings)
    store, stuck = WatchedStore(), TP(settings.broker.topic, 0)
    sent = [(f"u{n}", event(f"u{n}", n)) for n in range(20)]

    async with running(settings, store) as worker:
        await until(lambda: len(worker.partitions) == 2, "partitions are assigned")
        consumer: Any = worker.app.consumer
        logs = consumer.logs

        async def without_one(epochs: Any) -> Any:
            if set(epochs) == {stuck}:
                raise LeaderNotAvailableError
            return await logs({tp: epoch for tp, epoch in epochs.items() if tp != stuck})

        consumer.logs = without_one
        worker.app.batch_agent._misplaced({stuck})
        await asyncio.to_thread(produce, settings, sent)
        await until(lambda: 0 < len(store.counts()) < 20, "the other partition is read")
        consumer.logs = logs
        await until(lambda: len(store.counts()) == 20, "and the one when a broker can tell")


@pytest.mark.kafka
async def test_a_batch_that_failed_for_no_known_reason_comes_again(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    store = WatchedStore()
    async with running(settings, store) as worker:
        agent = worker.app.batch_agent
        apply = agent.apply
        failed: list[Any] = []

        async def faulty(group: Any) -> Any:
            if not failed:
                failed.append(group)
                raise ZeroDivisionError
            return await apply(group)

        agent.apply = faulty  # type: ignore[method-assign]
        sent = await asyncio.to_thread(produce, settings, [("a", event("a", n)) for n in range(10)])
        await until(lambda: worker.events("applied") >= sent, "all events are applied")

    assert failed


@pytest.mark.kafka
async def test_partitions_of_which_the_group_has_not_heard_are_told_and_read(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    broker = settings.broker
    create_topics(settings)
    store = WatchedStore()

    def unread() -> set[tuple[str, int]]:
        return unread_partitions(broker, [broker.topic], broker.group)

    async with running(settings, store) as worker:
        await until(lambda: len(worker.partitions) == 1, "the partition is assigned")
        consumer: Any = worker.app.consumer
        aiokafka = consumer._thread._ensure_consumer()
        aiokafka._client._loop.call_soon_threadsafe(aiokafka._client._sync_task.cancel)
        await asyncio.to_thread(add_partitions, settings, 2)
        await asyncio.to_thread(produce, settings, [("a", event("a", 1))], partition=1)
        assert await asyncio.to_thread(unread) == {(broker.topic, 1)}

        agent = worker.app.batch_agent
        await agent.left_unread({(broker.topic, 1)})

        assert agent.obstacles()["partition 1"] == "no worker of the group reads it"
        await until(lambda: store.counts() == {"a": 1}, "the new partition is read")
        assert await asyncio.to_thread(unread) == set()
        await agent.left_unread(set())
        assert "partition 1" not in agent.obstacles()


@pytest.mark.kafka
async def test_a_rebalance_while_partitions_are_positioned_leaves_none_unread(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    store = WatchedStore()
    async with running(settings, store) as worker:
        await until(lambda: len(worker.partitions) == 1, "the partition is assigned")
        agent, partitions = worker.app.batch_agent, {TP(settings.broker.topic, 0)}
        consumer: Any = worker.app.consumer
        seek_to = consumer.seek_to
        amid: list[Any] = []

        async def seek_amid(offsets: Any) -> Any:
            seeks = await seek_to(offsets)
            if not amid:
                amid.append(offsets)
                agent.rebalanced(partitions)
            return seeks

        consumer.seek_to = seek_amid
        agent.rebalanced(partitions)
        await until(lambda: bool(amid), "there is a rebalance amid a seek")
        await asyncio.to_thread(produce, settings, [("a", event("a", 1))])
        await until(lambda: store.counts() == {"a": 1}, "the partition is read")
