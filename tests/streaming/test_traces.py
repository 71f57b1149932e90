"""From an event's header to the interests that it led to, as spans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source
from infra.errors import StoreFull
from infra.kafka.local import LocalKafka
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.settings import Settings, TracingSettings, WorkerSettings
from infra.tracing import Tracing
from streaming.schedule import Reclusterer
from streaming.traces import MOST_LINKS, WorkerTraces
from streaming.writer import BatchWriter, GivenUp, Writable
from tests.streaming.running import (
    NOW,
    KeptLetters,
    WatchedStore,
    create_topics,
    event,
    new_settings,
    produce,
    running,
    until,
)
from tests.streaming.test_schedule import DIGEST, CountingSystem
from tests.trace_receiver import Receiver, attributes, receiving

TRACE = "0af7651916cd43dd8448eb211c80319c"
SOURCE = Source(key=1, owner=11)
STORED = "store behaviors"
TRANSACTION = "process behaviors"
RECORD = {"key": b"u1", "timestamp": NOW, "headers": []}


def headers(span: int, flags: str = "01", trace: str = TRACE) -> list[tuple[str, bytes]]:
    parent = f"00-{trace}-{span:016x}-{flags}".encode()
    return [("content-type", b"application/json"), ("traceparent", parent)]


def batch_of(*records: dict[str, Any], begin: int = 10) -> Any:
    made = [
        SimpleNamespace(**{**RECORD, "offset": begin + n, "value": event("u1", begin + n), **one})
        for n, one in enumerate(records)
    ]
    following = begin + len(made)
    tp = TP("behaviors", 3)
    return SimpleNamespace(tp=tp, records=made, first=begin, next=following, decoding=None)


class House:
    """A writer and a reclusterer that are traced, over one store."""

    def __init__(self, receiver: Receiver, sample: float = 0.0) -> None:
        self.receiver = receiver
        self.now = NOW + 10_000
        self.store = WatchedStore()
        metrics = WorkerMetrics(CollectorRegistry())
        settings = TracingSettings(endpoint=receiver.url, sample=sample)
        self.traces = WorkerTraces(Tracing(settings, "worker", metrics.spans))
        self.writer = BatchWriter(
            Settings(),
            self.store,
            KeptLetters(),
            metrics,
            digest=DIGEST,
            traces=self.traces,
            clock=self._clock,
            sleep=self._sleep,
        )
        self.reclusterer = Reclusterer(
            self.store, CountingSystem(), WorkerSettings(), metrics, self._clock, self.traces
        )
        self.reclusterer.set_owners([SOURCE.owner])

    def _clock(self) -> int:
        self.now += 1
        return self.now

    async def _sleep(self, _seconds: float) -> None:
        pass

    async def write(self, *batches: Any, wanted: bool = True) -> None:
        group = [Writable(one, await self.writer.decode(one), SOURCE) for one in batches]
        await self.writer.write(group, lambda: wanted)

    def close(self) -> None:
        self.traces.close()
        self.writer.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def house(receiver: Receiver) -> Iterator[House]:
    house = House(receiver)
    yield house
    house.close()


def links(span: Any) -> list[tuple[str, int]]:
    return [(one.trace_id.hex(), int(one.span_id.hex(), 16)) for one in span.links]


async def test_an_event_s_store_is_a_span_of_its_sender_s_trace(
    house: House, receiver: Receiver
) -> None:
    await house.write(batch_of({}, {"headers": headers(7)}, {"headers": headers(8, "00")}))
    house.close()

    (stored,) = receiver.named(STORED)
    (transaction,) = receiver.named(TRANSACTION)
    assert (stored.trace_id.hex(), int(stored.parent_span_id.hex(), 16)) == (TRACE, 7)
    assert links(transaction) == [(TRACE, 7)]
    assert links(stored) == [(transaction.trace_id.hex(), int(transaction.span_id.hex(), 16))]
    assert receiver.below(transaction) == ["decode", "waiting", "append"]
    (decode,), (waiting,) = receiver.named("decode"), receiver.named("waiting")
    assert waiting.start_time_unix_nano == decode.end_time_unix_nano
    assert attributes(stored)["messaging.destination.partition.id"] == "3"
    assert attributes(stored)["messaging.kafka.offset"] == 11
    assert attributes(transaction)["messaging.batch.message_count"] == 3
    assert attributes(transaction)["lifelong.applied"] == 3


async def test_a_transaction_has_links_to_so_many_events_and_no_more(
    house: House, receiver: Receiver
) -> None:
    many = [{"headers": headers(span)} for span in range(1, MOST_LINKS + 1)]
    await house.write(batch_of(*many), batch_of(*many, begin=1000))
    house.close()

    (transaction,) = receiver.named(TRANSACTION)
    assert len(transaction.links) == len(receiver.named(STORED)) == MOST_LINKS


async def test_a_dead_letter_s_span_says_why(house: House, receiver: Receiver) -> None:
    await house.write(batch_of({"value": b"oops", "headers": headers(7)}))
    house.close()

    (stored,) = receiver.named(STORED)
    assert stored.status.message == "dead letter: not_json"
    (transaction,) = receiver.named(TRANSACTION)
    assert receiver.below(transaction) == ["decode", "waiting", "append", "dead letters"]


async def test_events_that_nobody_samples_leave_nothing(house: House, receiver: Receiver) -> None:
    sent = [[], headers(7, "00"), [("traceparent", None)], [("traceparent", b"00-\xff")]]
    await house.write(batch_of(*({"headers": one} for one in sent)))
    house.close()

    assert house.store.counts() == {"u1": 4}
    assert receiver.spans == []


async def test_transactions_are_sampled_by_chance_too(receiver: Receiver) -> None:
    house = House(receiver, sample=1.0)
    await house.write(batch_of({}))
    house.close()

    assert len(receiver.named(TRANSACTION)) == 1
    assert receiver.named(STORED) == []


async def test_an_extraction_is_linked_to_what_sealed_its_users_segments(
    house: House, receiver: Receiver
) -> None:
    await house.write(batch_of(*[{}] * (SEGMENT - 1), {"headers": headers(7)}))
    assert house.reclusterer.run_once() == 1
    house.close()

    (transaction,) = receiver.named(TRANSACTION)
    (recluster,) = receiver.named("recluster")
    expected = [(transaction.trace_id.hex(), int(transaction.span_id.hex(), 16))]
    assert links(recluster) == expected
    assert receiver.below(recluster) == ["extract", "write"]
    assert attributes(recluster)["lifelong.users"] == 1


async def test_an_extraction_of_what_nobody_traced_is_not_traced(
    house: House, receiver: Receiver
) -> None:
    await house.write(batch_of(*[{}] * SEGMENT))
    assert house.reclusterer.run_once() == 1
    house.close()

    assert receiver.spans == []


async def test_lines_of_a_transaction_name_its_trace(
    house: House, receiver: Receiver, logged: StringIO
) -> None:
    house.store.failure = lambda _s, _a: StoreFull("no room for 'u1'")
    with pytest.raises(GivenUp):
        await house.write(batch_of({"headers": headers(7)}), wanted=False)
    house.close()

    (transaction,) = receiver.named(TRANSACTION)
    (line,) = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert (line["event"], line["trace_id"]) == (
        "cannot write, will retry",
        transaction.trace_id.hex(),
    )
    assert transaction.status.message == "GivenUp: GivenUp"


@pytest.mark.kafka
async def test_headers_come_through_kafka(kafka: LocalKafka, receiver: Receiver) -> None:
    settings = new_settings(
        kafka.bootstrap, broker={"partitions": 1}, tracing={"endpoint": receiver.url, "sample": 0.0}
    )
    create_topics(settings)
    store = WatchedStore()
    produce(settings, [("a", event("a"))])
    produce(settings, [("a", event("a", 1))], headers=headers(7))
    async with running(settings, store):
        await until(lambda: store.counts() == {"a": 2}, "both are stored")
        # A worker that is told to stop before it has heard that an event is stored tells nothing.
        named = partial(receiver.named, f"store {settings.broker.topic}")
        (stored,) = await asyncio.to_thread(receiver.until, named)
    assert (stored.trace_id.hex(), attributes(stored)["messaging.kafka.offset"]) == (TRACE, 1)
