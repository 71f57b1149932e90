"""A source of a format through a real Kafka: headers, several events, letters that go back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from infra.kafka.local import LocalKafka
from infra.settings import Settings
from streaming.letters import send_again
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


def of_source(bootstrap: str, **source: Any) -> Settings:
    """Settings of who reads a source beside another."""
    new = new_settings(bootstrap)
    web = {"name": "web", "topic": new.broker.topic, "format": "cloudevents", **source}
    changes = {"bootstrap": bootstrap, "partitions": 1}
    changes["dead_letter_topic"] = new.broker.dead_letter_topic
    return Settings.model_validate(
        {
            "broker": changes,
            "worker": new.worker.model_dump(),
            "store": {"url": "memory://"},
            "sources": [web, {"name": "other", "topic": "another"}],
        }
    ).reading("web")


def attributes(number: int, kind: str = "click") -> dict[str, str]:
    return {
        "ce_specversion": "1.0",
        "ce_id": str(number),
        "ce_source": "/shop",
        "ce_type": kind,
        "ce_time": "2023-11-14T22:13:20Z",
    }


def data(user: str, item: str) -> bytes:
    return json.dumps({"user_id": user, "item_id": item}).encode()


async def test_events_in_headers_are_applied_and_go_back_with_them(kafka: LocalKafka) -> None:
    settings = of_source(kafka.bootstrap)
    await asyncio.to_thread(create_topics, settings)
    produce(settings, [("a", data("a", "1"))], headers=attributes(1))
    produce(settings, [("a", data("a", "2"))], headers=attributes(2, "kiss"))
    produce(settings, [("a", b"{}")])
    store = WatchedStore()

    async with running(settings, store) as worker:
        await until(lambda: worker.events("rejected") >= 2, "two are refused")
        assert store.counts() == {"a": 1}
        letters = await asyncio.to_thread(dead_letters_of, settings, 2)
        told = [headers_of(letter) for letter in letters]
        assert [of["reason"] for of in told] == ["unknown_action", "bad_format"]
        assert told[0]["header.ce_type"] == "kiss"

        done = await asyncio.to_thread(send_again, settings.broker, "unknown_action")
        assert done.sent == 1
        await until(lambda: worker.events("rejected") >= 3, "it is refused for the same")
        (_, _, again) = await asyncio.to_thread(dead_letters_of, settings, 3)
        assert headers_of(again)["header.ce_type"] == "kiss"
        assert headers_of(again)["reason"] == "unknown_action"


async def test_events_of_one_record_come_once_when_it_is_read_again(kafka: LocalKafka) -> None:
    settings = of_source(kafka.bootstrap, format="json", key="any")
    await asyncio.to_thread(create_topics, settings)
    fields = {"action": "click", "event_time": NOW}
    events = [fields | {"user_id": user, "item_id": user * 3} for user in "abacab"]
    produce(settings, [("x", json.dumps(events).encode())] * 3)
    store = WatchedStore()
    for _ in range(2):
        async with running(settings, store) as worker:
            produce(settings, [("x", json.dumps(events[:1]).encode())])
            await until(lambda: worker.events("applied") >= 1, "the last one is applied")
    assert store.counts() == {"a": 3 * 3 + 2, "b": 2 * 3, "c": 3}
