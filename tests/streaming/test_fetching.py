"""A partition that cannot be read stays alone with it: taking records out of the fetcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import (
    READ_COMMITTED,
    FetchError,
    FetchResult,
    PartitionRecords,
)
from aiokafka.errors import (
    KafkaStorageError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from infra.kafka.local import LocalKafka
from streaming.fetching import PACE_S, Pace, Reader
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

TP0, TP1 = TopicPartition("t", 0), TopicPartition("t", 1)


def log_of(*batches: Sequence[int] | None) -> bytes:
    """A piece of a log: batches of records at those offsets; None: one that is damaged."""
    log, following = b"", 0
    for offsets in batches:
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
        begin = following if offsets is None else offsets[0]
        for offset in offsets or [begin]:
            builder.append(offset - begin, 1_700_000_000_000, b"u", b"{}", [])
            following = offset + 1
        batch = bytearray(builder.build())
        batch[:8] = begin.to_bytes(8, "big")
        if offsets is None:
            batch[-1] ^= 1
        log += batch
    return log


class Consumer:
    """As much of aiokafka's consumer as a `Reader` touches, with partitions at offset 0."""

    def __init__(self) -> None:
        self.states = {tp: SimpleNamespace(position=0) for tp in (TP0, TP1)}
        for state in self.states.values():
            state.paused, state.has_valid_position = False, True
            state.consumed_to = lambda offset, state=state: setattr(state, "position", offset)
        self.assignment = SimpleNamespace(active=True, state_value=self.states.__getitem__)
        self._subscription = SimpleNamespace(
            subscription=SimpleNamespace(assignment=self.assignment),
            is_assigned=lambda tp: True,
        )
        self._client = SimpleNamespace(send=self._answer)
        self.answer: object = None
        self.asked: list[object] = []
        self._fetcher = SimpleNamespace(
            _records={},
            _subscriptions=self._subscription,
            _notify=self.asked.append,
            _wait_consume_future=None,
        )

    async def _answer(self, _node: int, _request: object) -> object:
        return self.answer

    def fetch(self, tp: TopicPartition, *batches: Sequence[int] | None) -> None:
        records = PartitionRecords(
            tp,
            MemoryRecords(log_of(*batches)),
            [],
            self.states[tp].position,
            None,
            None,
            check_crcs=True,
            isolation_level=READ_COMMITTED,
        )
        self._fetcher._records[tp] = FetchResult(
            tp, assignment=self.assignment, partition_records=records, backoff=0
        )


def offsets_of(taken: dict[TopicPartition, list[Any]]) -> dict[TopicPartition, list[int]]:
    return {tp: [record.offset for record in records] for tp, records in taken.items()}


def test_a_batch_that_cannot_be_decoded_takes_nothing_from_other_partitions() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.fetch(TP1, [0, 1, 2])
    consumer.fetch(TP0, None)

    assert offsets_of(reader.take(None, 10)) == {TP1: [0, 1, 2]}
    assert (consumer.states[TP0].position, consumer.states[TP1].position) == (0, 3)
    assert reader.failures[TP0].offset == 0
    assert reader.failures[TP0].error.startswith("CorruptRecordException")
    assert list(reader.failures) == [TP0]


def test_what_precedes_a_bad_batch_is_given() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.fetch(TP0, [0, 1], None)

    assert offsets_of(reader.take(None, 10)) == {TP0: [0, 1]}
    assert consumer.states[TP0].position == 2
    assert not reader.failures
    assert len(consumer.asked) == 1, "it is fetched again, from there"


def test_a_bad_batch_is_not_fetched_again_at_once() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.fetch(TP0, None)

    for _ in range(3):
        assert reader.take(None, 10) == {}
    assert not consumer.asked
    assert reader.failures[TP0].times == 1


@pytest.mark.parametrize("batches", [[range(7)], [[0, 1], [2, 3], [4], [5, 6]]])
def test_no_more_is_taken_than_asked_for(batches: list[Sequence[int]]) -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.fetch(TP0, *batches)

    taken = []
    while consumer.states[TP0].position < 7:
        taken.append(offsets_of(reader.take(None, 3))[TP0])

    assert taken == [[0, 1, 2], [3, 4, 5], [6]]


def test_what_a_batch_holds_before_the_offset_asked_for_is_left_out() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.states[TP0].position = 2
    consumer.fetch(TP0, [0, 1, 2, 3])

    assert offsets_of(reader.take(None, 10)) == {TP0: [2, 3]}


def test_a_damaged_batch_is_not_passed_over_when_it_is_read_again() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.fetch(TP0, None, [1, 2])
    assert reader.take(None, 10) == {}

    reader.failures = {}  # as after a new assignment

    assert reader.take(None, 10) == {}
    assert consumer.states[TP0].position == 0
    assert len(consumer.asked) == 1, "it is fetched again, from there"


def test_a_log_without_the_offset_is_no_failure_but_misplaced() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer._fetcher._records[TP0] = FetchError(error=OffsetOutOfRangeError({TP0: 5}), backoff=0)

    assert reader.take(None, 10) == {}
    assert reader.misplaced == {TP0}
    assert not reader.failures


async def fetched(consumer: Consumer, *answers: tuple[int, bytes | None]) -> int:
    """Have the fetcher ask for the topic: the broker's error code and records by partition; returns
    how many bytes it asked for at least.
    """
    parts = [
        (partition, code, 0, 0, 0, None, -1, records)
        for partition, (code, records) in enumerate(answers)
    ]
    consumer.answer = SimpleNamespace(topics=[("t", parts)])
    request = FetchRequest(100, 1, 1 << 20, READ_COMMITTED, [("t", [])])
    await consumer._client.send(1, request)
    return request._min_bytes  # type: ignore[no-any-return]


@pytest.mark.parametrize("error", [TopicAuthorizationFailedError, KafkaStorageError])
async def test_a_partition_that_the_broker_refuses_is_named(error: Any) -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer.states[TP0].position = 7

    await fetched(consumer, (error.errno, None), (0, log_of([0])))

    assert list(reader.failures) == [TP0]
    failure = reader.failures[TP0]
    assert (failure.offset, failure.error) == (7, error.__name__)
    assert failure.refused


async def test_a_partition_that_the_broker_gives_again_is_no_failure_any_more() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    await fetched(consumer, (KafkaStorageError.errno, None))

    await fetched(consumer, (0, b""))

    assert not reader.failures


async def test_a_partition_that_is_not_ours_any_more_cannot_be_refused() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    consumer._subscription.is_assigned = lambda tp: False

    await fetched(consumer, (TopicAuthorizationFailedError.errno, None))

    assert not reader.failures


async def test_an_offset_that_the_broker_has_not_is_no_failure() -> None:
    consumer = Consumer()
    reader = Reader(consumer)

    await fetched(consumer, (OffsetOutOfRangeError.errno, None))

    assert not reader.failures


def test_a_broker_that_gives_little_answers_at_once() -> None:
    pace = Pace(now=0.0)
    for second in range(1, 10):
        pace.gave(0, second - 0.9)
        pace.gave(19, second)
    assert pace.least_bytes == 1


def test_a_broker_collects_what_comes_in_the_pace() -> None:
    pace = Pace(now=0.0)
    for tick in range(1, 101):
        pace.gave(40_000, tick * 0.01)
    assert pace.least_bytes == pytest.approx(4_000_000 * PACE_S, rel=0.1)


def test_after_a_load_a_broker_answers_at_once_again() -> None:
    pace = Pace(now=0.0)
    pace.gave(10_000_000, 1.0)
    pace.gave(0, 1.1)
    pace.gave(0, 1.3)
    assert pace.least_bytes == 1


async def test_each_broker_is_asked_for_as_much_as_it_gives() -> None:
    consumer = Consumer()
    reader = Reader(consumer)
    log = log_of(range(1000))
    reader._paces[1] = Pace(now=time.monotonic() - 1)

    least = [await fetched(consumer, (0, log)) for _ in range(2)]

    assert least[0] == 1
    assert least[1] == pytest.approx(len(log) * PACE_S, rel=0.1)


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
        await until(lambda: store.counts().get("b") == 31, "the other partition goes on")
        assert store.counts()["a"] == 10
        assert worker.app.crash_reason is None
        assert set(obstacles()) == {"partition 0"}
        with stopped(kafka):
            mend_log(kafka, settings, sound)
        await until(lambda: not obstacles(), "it is tried again")
        await until(lambda: store.counts()["a"] == 30, "what is behind it is applied, too")
