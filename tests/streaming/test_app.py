"""The hot path: nothing is acknowledged before store and dead-letter topic have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source
from infra.errors import BrokerError, RecordTooLarge, StoreCorrupt, StoreFull, StoreUnavailable
from infra.kafka.admin import delete_topic
from infra.kafka.local import LocalKafka
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.store import Append, Appended
from streaming.app import BatchWriter, GivenUp, TopicIdentity, create_app
from tests.streaming.events.test_decoder import BAD
from tests.streaming.running import (
    NOW,
    KeptLetters,
    WatchedStore,
    committed,
    create_topics,
    dead_letters_of,
    event,
    headers_of,
    new_settings,
    produce,
    running,
    until,
)

SOURCE = Source(key=1, owner=2)


def batch_of(*records: tuple[str, bytes | None]) -> Any:
    made = [
        SimpleNamespace(offset=10 + n, key=key.encode(), value=value, timestamp=NOW)
        for n, (key, value) in enumerate(records)
    ]
    tp = TP("behaviors", 0)
    last = made[-1].offset
    return SimpleNamespace(tp=tp, records=made, first=10, last=last, highwater=last + 8)


class Written:
    """A writer with its store and its letters; pauses take no time."""

    def __init__(self, store: WatchedStore | None = None) -> None:
        self.store = store or WatchedStore()
        self.letters = KeptLetters()
        self.metrics = WorkerMetrics(CollectorRegistry())
        self.pauses: list[float] = []
        self.writer = BatchWriter(
            Settings.model_validate({"worker": {"retry_max_s": 1.0}}),
            self.store,
            self.letters,
            self.metrics,
            clock=lambda: NOW + 10_000,
            sleep=self._sleep,
        )
        self.on_pause: Callable[[], object] = lambda: None

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.on_pause()

    async def write(self, batch: Any, wanted: bool = True) -> None:
        decoded = await self.writer.decode(batch)
        await self.writer.write(batch, decoded, SOURCE, lambda: wanted)

    def count(self, outcome: str) -> float:
        return float(self.metrics.events.labels(outcome)._value.get())


async def test_a_batch_is_stored_by_user() -> None:
    written = Written()

    await written.write(batch_of(("a", event("a", 1)), ("b", event("b", 1)), ("a", event("a", 2))))

    assert written.store.counts() == {"a": 2, "b": 1}
    assert written.count("applied") == 3
    assert written.letters.letters == []


async def test_rejects_become_letters_with_their_origin() -> None:
    written = Written()

    await written.write(batch_of(("a", event("a", 1)), ("a", b"oops")))

    (letter,) = written.letters.letters
    assert (letter.reason, letter.value, letter.key) == ("not_json", b"oops", b"a")
    assert (letter.topic, letter.partition, letter.offset) == ("behaviors", 0, 11)
    assert letter.timestamp == NOW
    assert written.count("rejected") == 1
    assert written.metrics.rejects.labels("not_json")._value.get() == 1


async def test_a_failing_store_is_tried_again_with_growing_pauses() -> None:
    written = Written()
    written.store.failure = lambda _s, _a: StoreFull("no room") if len(written.pauses) < 7 else None

    await written.write(batch_of(("a", event("a"))))

    assert written.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert written.store.counts() == {"a": 1}
    assert written.metrics.store_errors.labels("StoreFull")._value.get() == 7
    assert written.metrics.store_retries._value.get() == 7
    assert written.writer.progress.failure is None


async def test_a_failure_is_told_while_it_lasts() -> None:
    written = Written()
    told: list[str | None] = []
    written.on_pause = lambda: told.append(written.writer.progress.failure)
    written.store.failure = lambda _s, _a: StoreUnavailable("gone") if not told else None

    await written.write(batch_of(("a", event("a"))))

    assert told == ["StoreUnavailable: gone"]


async def test_an_error_of_any_kind_loses_nothing() -> None:
    written = Written()
    written.store.failure = lambda _s, _a: ZeroDivisionError() if not written.pauses else None

    await written.write(batch_of(("a", event("a"))))

    assert written.store.counts() == {"a": 1}


async def test_letters_that_cannot_be_delivered_hold_the_batch() -> None:
    written = Written()
    written.letters.failure = BrokerError("no such topic")

    def heal() -> None:
        if len(written.pauses) == 3:
            written.letters.failure = None

    written.on_pause = heal

    await written.write(batch_of(("a", b"oops")))

    assert written.letters.failures == 3
    assert len(written.letters.letters) == 1


async def test_a_batch_that_is_not_ours_any_more_is_given_up() -> None:
    written = Written()
    written.store.failure = lambda _s, _a: StoreUnavailable("gone")

    with pytest.raises(GivenUp):
        await written.write(batch_of(("a", event("a"))), wanted=False)

    assert len(written.pauses) == 1
    assert written.writer.progress.failure is None


class PickyStore(WatchedStore):
    """Cannot hold some users."""

    def __init__(self, refused: dict[str, Exception]) -> None:
        super().__init__()
        self.refused = refused

    def append(self, source: Source, appends: Sequence[Append], now_ms: int) -> Appended:
        for append in appends:
            if append.user in self.refused:
                raise self.refused[append.user]
        return super().append(source, appends, now_ms)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RecordTooLarge("the record of 'b' is too large"), "record_too_large"),
        (StoreCorrupt("the record of 'b' is damaged"), "record_corrupt"),
    ],
)
async def test_a_user_that_cannot_be_stored_does_not_hold_the_others(
    error: Exception, reason: str
) -> None:
    written = Written(PickyStore({"b": error}))
    batch = batch_of(
        ("a", event("a")), ("b", event("b", 1)), ("c", event("c")), ("b", event("b", 2))
    )

    await written.write(batch)

    assert written.store.counts() == {"a": 1, "c": 1}
    assert [(x.key, x.offset, x.reason) for x in written.letters.letters] == [
        (b"b", 11, reason),
        (b"b", 13, reason),
    ]
    assert written.letters.letters[0].value == event("b", 1)
    assert written.count("applied") == 2


async def test_a_store_whose_every_record_is_damaged_keeps_its_events_waiting() -> None:
    users = [f"u{n}" for n in range(20)]
    store = PickyStore(dict.fromkeys(users, StoreCorrupt("damaged")))
    written = Written(store)
    written.on_pause = store.refused.clear

    await written.write(batch_of(*((user, event(user)) for user in users)))

    assert written.letters.letters == []
    assert written.store.counts() == dict.fromkeys(users, 1)


async def test_lag_is_what_is_left_behind_the_batch() -> None:
    written = Written()

    await written.write(batch_of(("a", event("a"))))

    assert written.metrics.consumer_lag.labels("0")._value.get() == 7


def test_a_topic_created_anew_is_another_source() -> None:
    identity = TopicIdentity("behaviors", lambda: "")

    assert identity.adopt("first") is False
    first = identity.source(3)
    assert identity.adopt("first") is False
    assert identity.adopt("second") is True
    second = identity.source(3)

    assert first.key != second.key
    assert first.owner == second.owner


def test_composing_the_app_connects_to_nothing() -> None:
    settings = new_settings("127.0.0.1:1")

    app = create_app(
        settings,
        WatchedStore(),
        KeptLetters(),
        WorkerMetrics(CollectorRegistry()),
        topic_id=lambda: pytest.fail("asked too early"),
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
        assert letter.key() == b"u1"
        if "original_size" in headers:
            assert value is not None
            assert headers["original_size"] == str(len(value))
            assert value.startswith(letter.value() or b"-")
        else:
            assert letter.value() == value


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
        await asyncio.to_thread(delete_topic, settings.broker, settings.broker.topic)
        await asyncio.to_thread(create_topics, settings)
        await asyncio.to_thread(produce, settings, [("a", event("a", 100 + n)) for n in range(5)])
        await until(lambda: worker.events("applied") == 35, "the second topic is applied")
        await until(lambda: committed(settings) == {0: 5}, "and committed")

    assert store.counts() == {"a": 35}
    assert len({source.key for source, _, _ in store.appends}) == 2
    assert len({source.owner for source, _, _ in store.appends}) == 1


@pytest.mark.kafka
async def test_a_topic_created_again_and_filled_beyond_the_old_offset_is_noticed(
    kafka: LocalKafka,
) -> None:
    settings = new_settings(kafka.bootstrap, broker={"partitions": 1})
    create_topics(settings)
    store = WatchedStore()
    produce(settings, [("a", event("a", n)) for n in range(10)])

    async with running(settings, store) as worker:
        await until(lambda: worker.events("applied") == 10, "the first topic is applied")
        await asyncio.to_thread(delete_topic, settings.broker, settings.broker.topic)
        await asyncio.to_thread(create_topics, settings)
        await asyncio.to_thread(produce, settings, [("a", event("a", 100 + n)) for n in range(40)])
        await worker.app.batches.check_topic()
        await until(lambda: store.counts()["a"] == 50, "all of the second topic is applied")

    assert store.counts() == {"a": 50}
