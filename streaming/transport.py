"""Faust's transport, taught to hand over a whole fetch as one message.

Faust spends about 60 microseconds on each message, whatever is in it. Here a message is what one
partition gave in one fetch: up to ``broker_max_poll_records`` records, acknowledged together.

Faust loses a fetched message in a few places on purpose (a rebalance began, the flow was stopped,
an agent crashed) and relies on fetching it again. Where it does not, as when nothing was committed
yet, the next message would be applied, acknowledged, and hide the loss for good. So every batch is
numbered when it leaves the fetcher, and `InOrder` lets only the direct successor through.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, cast

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.errors import ConsumerStoppedError, KafkaError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP, ConsumerMessage

from infra.errors import typed_line
from infra.telemetry import get_logger

log: Final = get_logger(__name__)

# Faust's services speak through the logger of their class's module; these still speak as Faust.
faust_log: Final = logging.getLogger("faust")


FETCH_WAIT_MS: Final = 100
"""How long the broker may hold back the answer to a fetch when there is nothing new."""


@dataclass(slots=True)
class FetchedBatch:
    """The records of one partition from one fetch, in the order of their offsets."""

    tp: TP
    records: list[ConsumerRecord[bytes, bytes]]
    generation: int
    """Generation of the consumer group in which they were fetched."""
    seek: int
    """How many times the partition had been positioned (assigned, sought) before this fetch."""
    number: int
    """Place of this batch since then, from 1."""
    highwater: int
    """Offset that the partition's next record will have, as known at the fetch."""
    rewound: bool = False
    """The offsets went back without a seek: the topic was deleted and created again."""

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def last(self) -> int:
        """Offset of the last record."""
        return int(self.records[-1].offset)


class InOrder:
    """Tells whether a batch directly follows the one before it in its partition.

    >>> from types import SimpleNamespace as Numbered
    >>> tp, order = TP("behaviors", 0), InOrder()
    >>> order.done(Numbered(tp=tp, seek=1, number=1))
    >>> [order.follows(Numbered(tp=tp, seek=1, number=number)) for number in (1, 2, 3)]
    [False, True, False]
    """

    def __init__(self) -> None:
        self._done: dict[TP, tuple[int, int]] = {}

    def follows(self, batch: FetchedBatch) -> bool:
        """Whether all batches before this one, since its partition was sought, are applied."""
        seek, number = self._done.get(batch.tp, (0, 0))
        expected = number + 1 if batch.seek == seek else 1
        return batch.seek >= seek and batch.number == expected

    def is_old(self, batch: FetchedBatch) -> bool:
        """Whether the partition was positioned anew since the batch was fetched."""
        return batch.seek < self._done.get(batch.tp, (0, 0))[0]

    def done(self, batch: FetchedBatch) -> None:
        """Note that the batch is applied: the next one follows it."""
        self._done[batch.tp] = (batch.seek, batch.number)

    def expect(self, tp: TP, seek: int) -> None:
        """Let nothing of the partition through that was fetched before that seek."""
        self._done[tp] = (seek, 0)


@dataclass(slots=True)
class _Place:
    """Where the fetcher stands in a partition."""

    seek: int = 1
    number: int = 0
    last: int = -1


@dataclass(slots=True)
class _Places:
    """Where the fetcher stands in each partition; written in the consumer's thread only."""

    assignment: object = None
    seeks: int = 0
    places: dict[TP, _Place] = field(default_factory=dict)

    def sought(self, tp: TP) -> None:
        """Number the partition's batches anew, from 1 under the next seek."""
        self.seeks += 1
        self.places[tp] = _Place(self.seeks)

    def number(
        self, tp: TP, records: list[ConsumerRecord[bytes, bytes]], generation: int, highwater: int
    ) -> FetchedBatch:
        """The records as the partition's next batch."""
        if tp not in self.places:
            self.sought(tp)
        place = self.places[tp]
        rewound = records[0].offset <= place.last
        place.number += 1
        place.last = records[-1].offset
        return FetchedBatch(tp, records, generation, place.seek, place.number, highwater, rewound)


class BatchConsumerThread(AIOKafkaConsumerThread):
    """The thread in which aiokafka fetches, heartbeats and commits."""

    logger = faust_log

    def __post_init__(self) -> None:
        super().__post_init__()
        self._places = _Places()

    def _create_worker_consumer(self, transport: FaustTransport) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust sets 1,500 with no setting for it. A partition that was just drained is not asked
        # for again before the fetch under way returns, and that waits for the quiet ones.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _fetch_records(  # type: ignore[override]
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - the parent's signature
        max_records: int | None = None,
    ) -> dict[TP, FetchedBatch]:
        """Fetch as the parent does, and number what was fetched.

        Nothing is awaited between the moment the fetcher gives the records away and the moment
        they have their numbers, so no seek and no rebalance can come between.
        """
        fetched: Mapping[Any, list[ConsumerRecord[bytes, bytes]]]
        fetched = await super()._fetch_records(
            consumer, active_partitions, timeout=timeout, max_records=max_records
        )
        if not fetched:
            return {}
        places = self._places
        subscription = consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is not places.assignment:
            places.assignment = assignment
            places.places.clear()
        generation = self.app.consumer_generation_id
        batches = {}
        for aiokafka_tp, records in fetched.items():
            tp = TP(aiokafka_tp.topic, aiokafka_tp.partition)
            highwater = consumer.highwater(aiokafka_tp) or 0
            batches[tp] = places.number(tp, records, generation, highwater)
        return batches

    async def seek_to_committed(self) -> Mapping[TP, int | None]:  # type: ignore[override]
        """Position every partition at its committed offset, or at its beginning without one.

        The parent leaves a partition where it is when nothing was committed yet; what had been
        fetched from it and dropped would be lost.
        """
        positions: Mapping[TP, int | None] = await self.call_thread(self._seek_to_committed)
        return positions

    async def _seek_to_committed(self) -> dict[TP, int | None]:
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        committed = await consumer._coordinator.fetch_committed_offsets(assigned)
        positions: dict[TP, int | None] = {}
        for aiokafka_tp in consumer.assignment().intersection(assigned):
            tp = TP(aiokafka_tp.topic, aiokafka_tp.partition)
            known = committed.get(aiokafka_tp)
            offset = known.offset if known is not None and known.offset >= 0 else None
            positions[tp] = offset
            self._seek(aiokafka_tp, offset)
        return positions

    def _seek(self, aiokafka_tp: TopicPartition, offset: int | None) -> None:
        """Position the partition at an offset, or at its beginning, and number what follows anew.

        Both at once: nothing is awaited, not even the offset of the beginning (aiokafka asks for
        it between two fetches, which for a quiet topic takes a while).
        """
        self._places.sought(TP(aiokafka_tp.topic, aiokafka_tp.partition))
        fetcher = self._ensure_consumer()._fetcher
        if offset is not None:
            fetcher.seek_to(aiokafka_tp, offset)
        else:
            fetcher.request_offset_reset([aiokafka_tp], OffsetResetStrategy.EARLIEST)

    async def rewind(self) -> Mapping[TP, int]:
        """Position every partition at its beginning, whatever was committed.

        Returns:
            The number of that seek for each partition.
        """
        seeks: Mapping[TP, int] = await self.call_thread(self._rewind)
        return seeks

    async def _rewind(self) -> dict[TP, int]:
        for aiokafka_tp in self._ensure_consumer().assignment():
            self._seek(aiokafka_tp, None)
        return {tp: place.seek for tp, place in self._places.places.items()}

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; a broker that does not take it now is no reason to crash.

        What is not committed is fetched again after a restart, and skipped by its mark.
        """
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        ours = {
            TopicPartition(tp.topic, tp.partition): offset
            for tp, offset in offsets.items()
            if tp in assigned
        }
        try:
            await consumer.commit(ours)
        except (KafkaError, ConsumerStoppedError) as error:
            log.info("commit refused", error=typed_line(error))
            return False
        return True

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: the worker's watchdog looks after progress, and speaks in one line."""


class _NoOffsets(dict[TP, int | None]):
    """Faust's memory of what it has read, kept empty.

    Faust drops messages below it, and sets it to a message's offset even when the message was not
    delivered; so a batch fetched again could be dropped. `InOrder` judges instead.
    """

    def __missing__(self, tp: TP) -> None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None:
        pass

    def update(self, *args: Any, **kwargs: Any) -> None:
        pass


class BatchConsumer(FaustConsumer):
    """Faust's consumer, but a message is what a partition gave in a fetch: a `FetchedBatch`."""

    logger = faust_log
    _thread: BatchConsumerThread
    polled_at: float
    """When the fetcher last asked for records, monotonic seconds: a sign of life."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.polled_at = monotonic()
        super().__init__(*args, **kwargs)
        self._read_offset = _NoOffsets()

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(
        self,
        timeout: float,  # noqa: ASYNC109 - the parent's signature
    ) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Fetch once and yield the batches.

        The message carries the generation in which it was fetched: the stream drops, without a
        word, whatever is of another one.
        """
        self.polled_at = monotonic()
        records, active = await self._wait_next_records(timeout)
        fetched = cast("dict[TP, FetchedBatch]", records or {})
        self.polled_at = monotonic()
        if not fetched or self.should_stop:
            return
        if not self.flow_active:
            await self._seek_back()
            return
        for tp, batch in fetched.items():
            if self._is_void(batch):
                break
            if active is not None and tp in active:
                yield tp, self._batch_message(batch)

    def _is_void(self, batch: FetchedBatch) -> bool:
        """Whether a rebalance began or ended while the batch was on its way."""
        return not self.flow_active or batch.generation != self.app.consumer_generation_id

    async def _seek_back(self) -> None:
        try:
            await self.perform_seek()
        except Exception as error:  # noqa: BLE001 - the order check finds the gap and asks again
            log.info("cannot seek yet", error=typed_line(error))

    def _batch_message(self, batch: FetchedBatch) -> ConsumerMessage:
        last = batch.records[-1]
        return ConsumerMessage(
            batch.tp.topic,
            batch.tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            None,
            None,
            cast("bytes", batch),  # passed through as it is, whatever the annotation says
            None,
            0,
            0,
            batch.tp,
            generation_id=batch.generation,
        )

    @property
    def seeks(self) -> dict[TP, int]:
        """The number of each partition's last seek."""
        return {tp: place.seek for tp, place in list(self._thread._places.places.items())}

    async def rewind(self) -> Mapping[TP, int]:
        """Start over with a topic that was created anew.

        Returns:
            The number of that seek for each partition.
        """
        for tp in self.assignment():
            # What was committed and acknowledged are offsets of the topic's earlier life.
            self._committed_offset[tp] = None
            self._acked[tp] = []
            self._acked_index[tp] = set()
        return await self._thread.rewind()

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: the stream's queue is a few batches long, and a full queue holds the fetcher.

        The parent would stop asking for the partition, and with all of them stopped sleep for a
        second.
        """

    def on_buffer_drop(self, tp: TP) -> None:
        """Do nothing; see `on_buffer_full`."""

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Note nothing: between two messages' offsets lie the records of a batch, not a gap."""

    def _new_offset(self, tp: TP) -> int | None:
        """The last acknowledged offset + 1: batches of a partition are acknowledged in order.

        That offset stays in the list until a later one comes, so that a commit which the broker
        refused is tried again.
        """
        acked = self._acked[tp]
        if not acked:
            return None
        last = max(acked)
        self._acked[tp] = [last]
        self._acked_index[tp] = {last}
        return last + 1

    async def _commit_offsets(
        self, offsets: Mapping[TP, int], start_new_transaction: bool = True
    ) -> bool:
        """Commit, and count as committed only what the broker took."""
        assigned = self.assignment()
        for tp in offsets:
            if tp not in assigned:
                self._acked.pop(tp, None)
                self._acked_index.pop(tp, None)
        ours = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        before = {tp: self._committed_offset[tp] for tp in ours}
        if not ours:
            return False
        committed = await super()._commit_offsets(ours, start_new_transaction)
        if not committed:
            for tp, offset in before.items():
                if self._committed_offset[tp] == ours[tp]:
                    self._committed_offset[tp] = offset
        return bool(committed)


class BatchTransport(FaustTransport):
    """Faust's aiokafka transport with a consumer that yields batches."""

    Consumer = BatchConsumer
