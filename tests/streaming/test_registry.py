"""A topic in Avro through a real Kafka, while the registry goes away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra.kafka.local import LocalKafka
from infra.settings import Settings
from tests.schema_registry import RegistryDouble
from tests.streaming.events.formats.producing import producing
from tests.streaming.running import (
    NOW,
    WatchedStore,
    create_topics,
    dead_letters_of,
    headers_of,
    new_settings,
    produce,
    running,
    until,
)

pytestmark = pytest.mark.kafka

FIELDS = {"user_id": "string", "item_id": "string", "action": "string", "event_time": "long"}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Click",
    "fields": [{"name": name, "type": kind} for name, kind in FIELDS.items()],
}


def of_avro(kafka: LocalKafka, registry: RegistryDouble) -> Settings:
    return new_settings(
        kafka.bootstrap,
        broker={"partitions": 1},
        events={"format": "avro"},
        registry={"url": registry.url},
    )


async def test_a_worker_waits_for_a_registry_that_is_away(
    kafka: LocalKafka, registry: RegistryDouble
) -> None:
    settings = of_avro(kafka, registry)
    await asyncio.to_thread(create_topics, settings)
    event = {"user_id": "a", "item_id": "i", "action": "click", "event_time": NOW}
    with producing(registry) as producer:
        clicks = [producer.avro(SCHEMA, event | {"item_id": str(n)}) for n in range(3)]
    registry.fails_with = 503
    produce(settings, [("a", clicks[0]), ("a", b"\0\0\0\0\x63" + clicks[1][5:]), ("a", clicks[2])])
    store = WatchedStore()

    async with running(settings, store) as worker:
        progress = worker.app.writer.progress
        await until(lambda: progress.unread is not None, "it says why it waits")
        assert "answers 503" in str(progress.unread)
        assert worker.events("rejected") == 0

        registry.fails_with = None
        await until(lambda: worker.events("applied") == 2, "good events are applied")
        assert progress.unread is None
        assert store.counts() == {"a": 2}
        (letter,) = await asyncio.to_thread(dead_letters_of, settings, 1)
        assert headers_of(letter)["reason"] == "unknown_schema"
        assert "schema 99" in headers_of(letter)["detail"]
        count = worker.metrics.registry_requests.labels
        assert count("found")._value.get() == 1
        assert count("unknown")._value.get() == 1
        assert count("failed")._value.get() >= 1
