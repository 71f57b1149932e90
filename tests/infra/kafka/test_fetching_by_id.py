"""Fetches by a topic's id, of a real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record import MemoryRecords

from infra.kafka.admin import create_topic, topic_id
from infra.kafka.fetching_by_id import fetch_by_id, uuid_of
from infra.kafka.local import LocalKafka
from infra.kafka.logs import LogBounds, log_bounds
from infra.settings import Settings
from tests.infra.kafka.steps import delete_topic
from tests.streaming.running import create_topics, event, one_partition, produce

ANOTHER = uuid_of("AAAAAAAAAAAAAAAAAAAABQ")


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[Any]:
    client = AIOKafkaClient(bootstrap_servers=settings.broker.bootstrap)
    await client.bootstrap()
    try:
        await client.add_topic(settings.broker.topic)
        yield client
    finally:
        await client.close()


def filled(kafka: LocalKafka, count: int) -> Settings:
    settings = one_partition(kafka)
    produce(settings, [("a", event("a", n)) for n in range(count)])
    return settings


def ids_of(settings: Settings) -> dict[str, bytes]:
    uuid = uuid_of(topic_id(settings.broker, settings.broker.topic))
    assert uuid is not None
    return {settings.broker.topic: uuid}


async def fetch(
    settings: Settings, ids: Mapping[str, bytes], *others: str
) -> tuple[int, list[int]]:
    """The error code and the offsets of what partition 0 gives from offset 2 on, to who asks for
    other topics beside it, which give nothing.
    """
    topic = settings.broker.topic
    wanted = [(name, [(0, 2, 1 << 20)]) for name in (*others, topic)]
    request = FetchRequest(100, 1, 1 << 20, 0, wanted)
    async with client_of(settings) as client:
        leader = client.cluster.leader_for_partition(TopicPartition(topic, 0))
        answer = await fetch_by_id(client.send, leader, request, ids)
    ((name, ((number, code, *_, given),)),) = answer.topics
    assert (name, number) == (topic, 0)
    records, offsets = MemoryRecords(given or b""), []
    while records.has_next():
        offsets += [record.offset for record in records.next_batch()]
    return code, [offset for offset in offsets if offset >= 2]


@pytest.mark.kafka
async def test_a_topic_is_read_by_its_id(kafka: LocalKafka) -> None:
    settings = filled(kafka, 5)

    assert await fetch(settings, ids_of(settings)) == (0, [2, 3, 4])


@pytest.mark.kafka
async def test_a_topic_without_an_id_is_read_by_its_name(kafka: LocalKafka) -> None:
    assert await fetch(filled(kafka, 5), {}) == (0, [2, 3, 4])


@pytest.mark.kafka
async def test_a_topic_without_an_id_does_not_have_another_read_by_its_name(
    kafka: LocalKafka,
) -> None:
    settings, other = filled(kafka, 5), filled(kafka, 5)

    assert await fetch(settings, ids_of(settings), other.broker.topic) == (0, [2, 3, 4])


@pytest.mark.kafka
async def test_another_topic_under_the_name_gives_nothing(kafka: LocalKafka) -> None:
    settings = filled(kafka, 5)
    before = ids_of(settings)
    await asyncio.to_thread(delete_topic, settings.broker.bootstrap, settings.broker.topic)
    await asyncio.to_thread(create_topics, settings)
    produce(settings, [("a", event("a", n)) for n in range(9)])

    assert await fetch(settings, before) == (OffsetOutOfRangeError.errno, [])
    assert await fetch(settings, ids_of(settings)) == (0, list(range(2, 9)))


@pytest.mark.kafka
async def test_bounds_are_those_of_the_topic_with_the_id(kafka: LocalKafka) -> None:
    settings = filled(kafka, 5)
    tp = TopicPartition(settings.broker.topic, 0)

    assert ANOTHER is not None
    async with client_of(settings) as client:
        named = await log_bounds(client, [tp])
        found = await log_bounds(client, [tp], ids_of(settings))
        other = await log_bounds(client, [tp], {settings.broker.topic: ANOTHER})

    assert named == found == {tp: LogBounds(0, 5, 5)}
    assert other == {}


def test_an_id_that_kafka_did_not_give_is_none(mock_kafka: LocalKafka) -> None:
    create_topic(mock_kafka.bootstrap, "one", 1)

    assert uuid_of(topic_id(mock_kafka.bootstrap, "one")) is None
