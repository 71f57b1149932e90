"""The batch transport: on a real Kafka, every record of every partition arrives once, in order."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError
from faust.types import TP

from infra.errors import BrokerError
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from streaming.transport import BatchConsumer, FetchedBatch, InOrder
from tests.infra.kafka.steps import delete_topic
from tests.silent_proxy import SilentProxy, behind
from tests.streaming.running import (
    KeptLetters,
    WatchedStore,
    committed,
    create_topics,
    event,
    new_settings,
    one_partition,
    produce,
    running,
    until,
)

TP0, TP1 = TP("t", 0), TP("t", 1)


def numbered(seek: int, number: int, tp: TP = TP0) -> Any:
    return SimpleNamespace(tp=tp, seek=seek, number=number)


def events(users: int, each: int) -> Iterator[tuple[str, bytes]]:
    for number in range(each):
        for user in range(users):
            yield f"u{user}", event(f"u{user}", number)


def slow(some: Iterator[tuple[str, bytes]], seconds: float) -> Iterator[tuple[str, bytes]]:
    """The same, some of them at a time."""
    for index, one in enumerate(some):
        if index % 50 == 0:
            time.sleep(seconds / 80)
        yield one


def test_only_the_direct_successor_follows() -> None:
    order = InOrder()
    order.done(numbered(1, 1))

    assert order.follows(numbered(1, 2))
    assert not order.follows(numbered(1, 1))
    assert not order.follows(numbered(1, 3))


def test_after_a_seek_only_the_first_batch_follows() -> None:
    order = InOrder()
    order.done(numbered(1, 5))

    assert order.follows(numbered(2, 1))
    assert not order.follows(numbered(2, 2))


def test_what_was_fetched_before_a_seek_is_old() -> None:
    order = InOrder()
    order.expect(TP0, 4)

    assert order.is_old(numbered(3, 1))
    assert not order.follows(numbered(3, 1))
    assert not order.is_old(numbered(4, 1))
    assert order.follows(numbered(4, 1))


def test_partitions_are_numbered_apart() -> None:
    order = InOrder()
    order.done(numbered(1, 1))

    assert order.follows(numbered(1, 1, TP1))


def assert_contiguous(store: WatchedStore) -> None:
    """In each partition the appends began where others had ended, or before."""
    reached: dict[int, int] = defaultdict(lambda: -1)
    for source, first, last in store.appends:
        assert first <= reached[source.key] + 1
        reached[source.key] = max(reached[source.key], last)


@pytest.mark.kafka
async def test_every_record_is_applied_once_in_batches(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, worker={"fetch_max": 500})
    create_topics(settings)
    sent = produce(settings, events(users=40, each=100))
    store = WatchedStore()

    async with running(settings, store) as worker:
        await until(lambda: worker.events("applied") >= sent, "all events are applied")
        await until(lambda: sum(committed(settings).values()) == sent, "all are committed")

    assert store.counts() == {f"u{n}": 100 for n in range(40)}
    assert worker.events("applied") == sent
    assert worker.events("replayed") == 0
    assert len(store.appends) < sent / 50
    assert_contiguous(store)


@pytest.mark.kafka
async def test_nothing_is_lost_or_doubled_over_rebalances(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, worker={"fetch_max": 100})
    create_topics(settings)
    store = WatchedStore()

    async with running(settings, store) as first:
        slowly = slow(events(users=100, each=40), seconds=4)
        sending = asyncio.create_task(asyncio.to_thread(produce, settings, slowly))
        await until(lambda: first.events("applied") > 0, "the first works")
        async with running(settings, store) as second:
            await until(lambda: second.events("applied") > 0, "the second works")
            assert first.partitions | second.partitions == {0, 1, 2, 3}
            assert not first.partitions & second.partitions
        await until(lambda: len(first.partitions) == 4, "the first has all partitions back")
        sent = await sending
        await until(lambda: sum(committed(settings).values()) == sent, "all are committed")

    assert store.counts() == {f"u{n}": 40 for n in range(100)}
    assert first.events("applied") + second.events("applied") == sent
    assert_contiguous(store)


@pytest.mark.kafka
async def test_a_restart_goes_on_where_the_last_one_stopped(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    store = WatchedStore()
    produce(settings, events(users=10, each=10))
    async with running(settings, store) as first:
        await until(lambda: first.events("applied") == 100, "all events are applied")
    produce(settings, events(users=10, each=10))
    async with running(settings, store) as second:
        await until(lambda: second.events("duplicate") == 100, "what was sent twice is known")

    assert second.events("replayed") == 0
    assert sum(committed(settings).values()) == 200


@pytest.mark.kafka
async def test_a_batch_dropped_before_anything_was_committed_comes_again(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, worker={"fetch_max": 20})
    create_topics(settings)
    store = WatchedStore()
    async with running(settings, store) as worker:
        await until(lambda: len(worker.partitions) == 4, "partitions are assigned")
        agent = worker.app.batch_agent
        apply, dropped = agent.apply, []

        async def lossy(group: Any) -> Any:
            kept = []
            for one in group:
                if one.batch.tp in dropped:
                    kept.append(one)
                else:
                    dropped.append(one.batch.tp)
            return await apply(kept)

        agent.apply = lossy  # type: ignore[method-assign]
        sent = await asyncio.to_thread(produce, settings, events(users=20, each=20))
        await until(lambda: worker.events("applied") >= sent, "all events are applied")

    assert len(dropped) == 4
    assert store.counts() == {f"u{n}": 20 for n in range(20)}
    assert_contiguous(store)


@pytest.mark.kafka
async def test_a_large_record_does_not_stall_the_partition(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings, max_message_bytes=12_000_000)
    store = WatchedStore()
    produce(settings, [("a", event("a", 1)), ("b", b"x" * 10_000_000), ("a", event("a", 2))])

    async with running(settings, store) as worker:
        await until(lambda: worker.events("rejected") == 1, "the large record is refused")
        await until(lambda: worker.events("applied") == 2, "its neighbors are applied")


@pytest.mark.kafka
@pytest.mark.parametrize("where", ["producer", "topic"])
@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
async def test_every_compression_of_kafka_is_read(
    kafka: LocalKafka, codec: str, where: str
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    by_topic = codec if where == "topic" else "producer"
    create_topic(settings.broker, settings.broker.topic, 1, compression_type=by_topic)
    by_producer = {"compression.type": codec} if where == "producer" else {}
    sent = produce(settings, events(users=10, each=20), config=by_producer)
    store = WatchedStore()

    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: worker.events("applied") >= sent, "all events are applied")

    assert store.counts() == {f"u{n}": 20 for n in range(10)}


def test_what_was_fetched_before_a_seek_is_never_the_last() -> None:
    """Also where nothing was fetched after the seek before: it may be another topic by now."""
    tp, order = TP("behaviors", 0), InOrder()
    order.expect(tp, 1)
    assert order.is_last(tp, 1, 0)
    order.expect(tp, 2)
    assert not order.is_last(tp, 1, 0)
    assert order.is_last(tp, 2, 0)
    assert not order.is_last(tp, 2, 1)


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_topic_that_is_deleted_under_a_worker_stays_deleted(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    """Slow: a broker of its own, which creates what it is asked for, starts."""
    creating = {"auto.create.topics.enable": "true"}
    with LocalKafka(tmp_path, kind="apache", properties=creating) as broker:
        settings, store = one_partition(broker), WatchedStore()
        produce(settings, [("a", event("a"))])
        async with running(settings, store, KeptLetters()) as worker:
            await until(lambda: store.counts() == {"a": 1}, "it reads")
            await asyncio.to_thread(delete_topic, broker.bootstrap, settings.broker.topic)
            consumer: Any = worker.app.consumer

            async def ask() -> None:
                await consumer._thread._consumer._client.force_metadata_update()

            for _ in range(2):  # the first would have it created, the second find it
                await consumer._thread.call_thread(ask)
            with pytest.raises(BrokerError, match=f"there is no topic {settings.broker.topic}"):
                await worker.app.batch_agent.check()


@pytest.mark.kafka
async def test_of_another_topic_by_the_name_less_is_committed_than_of_the_one_before(
    kafka: LocalKafka,
) -> None:
    settings = one_partition(kafka)
    produce(settings, [("a", event("a", n)) for n in range(10)])
    async with running(settings, WatchedStore(), KeptLetters()) as worker:
        await until(lambda: committed(settings) == {0: 10}, "all are committed")
        consumer: Any = worker.app.consumer
        tp = TP(settings.broker.topic, 0)
        record: Any = SimpleNamespace(offset=4, timestamp=0, timestamp_type=0)

        consumer.take_over(tp, None)
        consumer.ack(consumer._batch_message(FetchedBatch(tp, [record], 0, 1, 1, 5)))

        assert consumer._new_offset(tp) == 5


@pytest.mark.kafka
async def test_what_keeps_knowledge_of_the_cluster_is_started_again(kafka: LocalKafka) -> None:
    settings, store = one_partition(kafka), WatchedStore()
    produce(settings, [("a", event("a"))])
    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: store.counts() == {"a": 1}, "it reads")
        consumer: Any = worker.app.consumer
        client = consumer._thread._consumer._client
        consumer._thread.thread_loop.call_soon_threadsafe(client._sync_task.cancel)
        await until(client._sync_task.done, "it has ended")
        await worker.app.batch_agent.check()
        assert not client._sync_task.done()


@pytest.mark.kafka
async def test_what_ends_the_part_in_the_group_ends_the_app(kafka: LocalKafka) -> None:
    """aiokafka keeps it until somebody asks, and does nothing for the group before."""
    settings, store = one_partition(kafka), WatchedStore()
    produce(settings, [("a", event("a"))])
    async with running(settings, store, KeptLetters()) as worker:
        await until(lambda: store.counts() == {"a": 1}, "it reads")
        consumer: Any = worker.app.consumer
        coordinator = consumer._thread._consumer._coordinator
        coordinator._pending_exception = GroupAuthorizationFailedError(settings.broker.group)
        await until(lambda: worker.app.crash_reason is not None, "it is heard")
        assert isinstance(worker.app.crash_reason, GroupAuthorizationFailedError)
        consumer.cut_off()
        await until(lambda: not consumer._thread._thread.is_alive(), "its thread has ended")


@pytest.mark.kafka
@pytest.mark.slow
async def test_a_consumer_that_is_cut_off_leaves_its_partitions(kafka: LocalKafka) -> None:
    """Slow: another joins its group."""
    settings = one_partition(kafka)
    async with running(settings, WatchedStore(), KeptLetters()) as worker:
        await until(lambda: worker.partitions == {0}, "it has the partition")
        consumer = worker.app.consumer
        assert isinstance(consumer, BatchConsumer)
        consumer.cut_off()
        thread = consumer._thread._thread
        assert thread is not None
        await until(lambda: not thread.is_alive(), "its thread has ended")
        async with running(settings, WatchedStore(), KeptLetters()) as other:
            await until(lambda: other.partitions == {0}, "another has the partition")


@pytest.mark.kafka
@pytest.mark.slow
async def test_connections_that_give_no_answers_are_made_anew(kafka: LocalKafka) -> None:
    """Slow: the session has to end, and another begins."""
    settings, store = (
        new_settings(kafka.bootstrap, worker={"session_timeout_s": 3.0}),
        WatchedStore(),
    )
    create_topics(settings)
    with SilentProxy(kafka.bootstrap) as proxy:
        async with running(behind(proxy, settings), store) as worker:
            await asyncio.to_thread(produce, settings, events(users=20, each=2))
            await until(lambda: worker.events("applied") == 40, "it reads")
            proxy.fall_silent()
            proxy.speak()  # what is open stays silent
            await asyncio.to_thread(produce, settings, events(users=40, each=2))
            # aiokafka's own patience is 40 s.
            await until(lambda: sum(committed(settings).values()) == 120, "it reads again", 20)
            assert len(store.counts()) == 40
            assert worker.events("replayed") == 0
