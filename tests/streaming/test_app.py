"""The app as composed: it connects to nothing by itself, and brings every event to its place."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from infra.behaviors import partition_owner
from infra.kafka.local import LocalKafka
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from streaming.app import create_app
from tests.streaming.events.test_decoder import BAD
from tests.streaming.running import (
    KeptLetters,
    WatchedStore,
    create_topics,
    dead_letters_of,
    event,
    headers_of,
    new_settings,
    produce,
    running,
    until,
)


def test_composing_the_app_connects_to_nothing() -> None:
    settings = new_settings("127.0.0.1:1")

    app = create_app(
        settings,
        WatchedStore(),
        KeptLetters(),
        WorkerMetrics(CollectorRegistry()),
        topic_id=lambda _: pytest.fail("asked too early"),
    )

    assert app.conf.broker_session_timeout == 6.0
    assert not app.conf.web_enabled
    app.writer.close()


@pytest.mark.kafka
async def test_every_kind_of_bad_event_becomes_a_letter_and_its_neighbors_are_applied(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 2})
    create_topics(settings, max_message_bytes=12_000_000)
    sent: list[tuple[str, bytes | None]] = []
    for number, (_, value, _, _) in enumerate(BAD):
        sent += [("u1", value), ("u1", event("u1", number)), ("u2", event("u2", number))]
    produce(settings, sent)
    store = WatchedStore()

    async with running(settings, store) as worker:
        await until(lambda: worker.events("rejected") >= len(BAD), "all bad ones are refused")
        await until(lambda: worker.events("applied") >= 2 * len(BAD), "all others are applied")

    assert store.counts() == {"u1": len(BAD), "u2": len(BAD)}
    letters = await asyncio.to_thread(dead_letters_of, settings, len(BAD))
    expected = {name: (reason.value, value) for name, value, reason, _ in BAD}
    assert [headers_of(letter)["reason"] for letter in letters] == [b[2].value for b in BAD]
    for letter, (reason, value) in zip(letters, expected.values(), strict=True):
        headers = headers_of(letter)
        assert headers["reason"] == reason
        assert headers["topic"] == settings.broker.topic
        assert headers["key"] == "u1"
        if "original_size" in headers:
            assert value is not None
            assert headers["original_size"] == str(len(value))
            assert value.startswith(letter.value() or b"-")
        else:
            assert letter.value() == (value or b"")
            assert ("no_value" in headers) == (value is None)


@pytest.mark.kafka
async def test_users_are_due_for_the_bundle_of_the_app(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    sent = produce(settings, [("u1", event("u1", n)) for n in range(SEGMENT)])
    store, digest = WatchedStore(), b"b" * 16

    async with running(settings, store, digest=digest) as worker:
        await until(lambda: worker.events("applied") == sent, "all events are applied")

    owner = partition_owner(settings.broker.topic, 0)
    assert [due.user for due in store.due(owner, digest, 10)] == ["u1"]
