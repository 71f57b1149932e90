"""Faust's transport, taught to hand over a whole fetch as one message.

Faust spends about 60 microseconds on each message, whatever is in it. Here a message is what one
partition gave in one fetch: up to ``broker_max_poll_records`` records, acknowledged together.

Faust loses a fetched message in a few places on purpose (a rebalance began, the flow was stopped,
an agent crashed) and relies on fetching it again. Where it does not, as when nothing was committed
yet, the next message would be applied, acknowledged, and hide the loss for good. So every batch is
numbered when it leaves the fetcher, and `InOrder` lets only the direct successor through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
)
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import Transport as FaustTransport
from faust.types import TP, ConsumerMessage

from infra.errors import typed_line
from infra.kafka.connections import mend_connections
from infra.kafka.fetching_by_id import uuid_of
from infra.kafka.logs import LogBounds, epoch_ends, log_bounds
from infra.telemetry import get_logger
from streaming.fetching import Failure, Reader, Records

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

log: Final = get_logger(__name__)

# Faust's services speak through the logger of their class's module; these still speak as Faust.
faust_log: Final = logging.getLogger("faust")


FETCH_WAIT_MS: Final = 100
"""How long the broker may hold back the answer to a fetch when there is nothing new."""

MOST_RECORDS: Final = 4000
"""Records taken at once where Faust does not say; it does."""

ASK_S: Final = 10.0
"""Patience with brokers that are asked for offsets; a question holds a place in the thread's queue
for as long."""

QUEUED_S: Final = 10.0
"""Time that a question may wait for its place in the thread's queue."""

NO_ANSWER: Final = (TimeoutError, KafkaConnectionError, NodeNotReadyError, RequestTimedOutError)
"""What a question to the brokers ends with that none has answered."""

T = TypeVar("T")


class TracedEvent(NamedTuple):
    """An event whose sender's span is sampled."""

    offset: int
    parent: SpanContext


class Decoding(NamedTuple):
    """What the traces of a batch need to know of its decoding."""

    began_ns: int
    """ns since epoch."""
    ended_ns: int
    events: list[TracedEvent]


@dataclass(slots=True)
class FetchedBatch:
    """The records of one partition from one fetch, in the order of their offsets."""

    tp: TP
    records: Records
    generation: int
    """Generation of the consumer group in which they were fetched."""
    seek: int
    """How many times the partition had been positioned (assigned, sought) before this fetch."""
    number: int
    """Place of this batch since then, from 1."""
    next: int
    """Offset at which the next fetch begins: behind the last record, and behind what follows it
    that is no event (the end of a transaction, what a transaction took back)."""
    epoch: int = -1
    """Epoch of the leader that took what lies before it; -1: not known."""
    decoding: Decoding | None = None
    """None: it is not decoded yet, or nothing is traced."""

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)


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

    def follows(self, batch: FetchedBatch, before: FetchedBatch | None = None) -> bool:
        """Whether all batches before this one, since its partition was sought, are applied, or will
        be with ``before``.
        """
        if before is not None:
            return (batch.seek, batch.number) == (before.seek, before.number + 1)
        seek, number = self._done.get(batch.tp, (0, 0))
        expected = number + 1 if batch.seek == seek else 1
        return batch.seek >= seek and batch.number == expected

    def is_old(self, batch: FetchedBatch) -> bool:
        """Whether the partition was positioned anew since the batch was fetched."""
        return batch.seek < self._done.get(batch.tp, (0, 0))[0]

    def is_last(self, tp: TP, seek: int, number: int) -> bool:
        """Whether all batches up to that one are applied (0: none was fetched since the seek), and
        the partition has not been positioned anew since.
        """
        return self._done.get(tp) == (seek, number)

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


_NOWHERE: Final = _Place(seek=0)
"""The place of a partition that was not positioned yet."""


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

    def number(self, tp: TP) -> _Place:
        """The place of the partition's next batch."""
        if tp not in self.places:
            self.sought(tp)
        place = self.places[tp]
        place.number += 1
        return place


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a partition was fetched, and how far that could go."""

    log: LogBounds
    seek: int
    number: int
    """The last batch, see `FetchedBatch`; 0: none since the seek."""
    next: int
    """Offset at which the next fetch begins; -1: not known."""
    epoch: int
    """Epoch of the leader that took what lies before it; -1: not known."""
    committed: int | None = None
    """Offset that the group has committed; None: none, or it was not asked for."""


@dataclass(frozen=True, slots=True)
class Log:
    """A partition's log and what is known of it, when it is to be decided where to go on."""

    bounds: LogBounds
    committed: int | None
    """Offset that the group has committed; None: none."""
    epoch_end: int | None
    """Where it ended with the epoch that was asked for (-1: none); None: not known."""


class BatchConsumerThread(AIOKafkaConsumerThread):
    """The thread in which aiokafka fetches, heartbeats and commits."""

    logger = faust_log

    def __post_init__(self) -> None:
        super().__post_init__()
        self._places = _Places()
        self._reader: Reader | None = None
        self._ids: Mapping[str, bytes] = {}
        self.misplaced: frozenset[TopicPartition] = frozenset()

    def _create_worker_consumer(self, transport: FaustTransport) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust sets 1,500 with no setting for it. A partition that was just drained is not asked
        # for again before the fetch under way returns, and that waits for the quiet ones.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        # Faust reads what was never committed, too, unless it is in a transaction itself.
        consumer._isolation_level = "read_committed"
        # Who has got no answer for as long is out of its group.
        answer_s = self.app.conf.broker_session_timeout
        mend_connections(consumer._client, answer_s, cast("Any", self.app).broker)
        self._reader = Reader(consumer)
        self._reader.ids = self._ids
        return consumer

    @property
    def failures(self) -> Mapping[TopicPartition, Failure]:
        """Partitions that cannot be read, and why."""
        return {} if self._reader is None else self._reader.failures

    async def _fetch_records(  # type: ignore[override]
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - the parent's signature
        max_records: int | None = None,
    ) -> dict[TP, FetchedBatch]:
        """Fetch as the parent does, but partition by partition, and number what was fetched."""
        # What ended the coordination with the group: it waits until somebody has heard of it, and
        # Faust does not ask.
        consumer._coordinator.check_errors()
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        if fetcher.error_future.done():
            raise KafkaConnectionError("the fetcher has ended")
        with fetcher._subscriptions.fetch_context():
            if fetcher._subscriptions.reassignment_in_progress:
                await fetcher._subscriptions.wait_for_assignment()
            batches = self._take(consumer, active_partitions, max_records)
            if batches or not timeout:
                return batches
            waiter = fetcher._create_fetch_waiter()
            done, _ = await asyncio.wait([waiter], timeout=timeout)
            if not done or fetcher._closed:
                waiter.cancel()
                return {}
            waiter.result()  # raises what the group's coordinator has failed of
            return self._take(consumer, active_partitions, max_records)

    def _take(
        self, consumer: AIOKafkaConsumer, partitions: set[TP], max_records: int | None
    ) -> dict[TP, FetchedBatch]:
        """What is there, as batches.

        Nothing is awaited between the moment the fetcher gives the records away and the moment
        they have their numbers, so no seek and no rebalance can come between.
        """
        reader, places = self._reader, self._places
        assert reader is not None
        subscription = consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is not places.assignment:
            places.assignment = assignment
            places.places.clear()
            reader.failures = {}
        generation = self.app.consumer_generation_id
        batches = {}
        for aiokafka_tp, records in reader.take(partitions, max_records or MOST_RECORDS).items():
            tp = TP(*aiokafka_tp)
            place = places.number(tp)
            following = reader.position(aiokafka_tp)
            epoch = reader.epoch(aiokafka_tp, following - 1)
            batches[tp] = FetchedBatch(
                tp, records, generation, place.seek, place.number, following, epoch
            )
        self.misplaced = reader.misplaced
        return batches

    def read_by_id(self, topic: str, topic_id: str) -> None:
        """Read and tell of that topic alone, not of another that comes to bear its name."""
        uuid = uuid_of(topic_id)
        others = {name: one for name, one in self._ids.items() if name != topic}
        ids = others if uuid is None else {**others, topic: uuid}
        if ids == self._ids:  # fetches under way are of this topic
            return
        self._ids = ids
        if self._reader is not None:
            self._reader.ids = self._ids

    async def standings(self, unplaced: Collection[TP] = ()) -> Mapping[TP, Standing]:
        """How far each partition was fetched, and what the group has committed of those that are
        ``unplaced``; raises `KafkaError` where the brokers cannot tell.
        """
        found: Mapping[TP, Standing] = await self._call(self._standings, set(unplaced))
        return found

    async def _standings(self, unplaced: Collection[TP]) -> dict[TP, Standing]:
        consumer, reader = self._ensure_consumer(), self._reader
        assert reader is not None
        _keep_informed(consumer._client)
        if not consumer.assignment() and not await consumer._client.force_metadata_update():
            raise KafkaConnectionError("no broker answers the consumer")
        asked = [tp for tp in consumer.assignment() if TP(*tp) in unplaced]
        committed = await _committed(consumer, asked) if asked else {}
        bounds = await log_bounds(consumer._client, consumer.assignment(), self._ids)
        standings = {}
        for aiokafka_tp in consumer.assignment().intersection(bounds):
            tp = TP(*aiokafka_tp)
            place = self._places.places.get(tp, _NOWHERE)
            following = reader.position(aiokafka_tp)
            epoch = reader.epoch(aiokafka_tp, following - 1)
            standings[tp] = Standing(
                bounds[aiokafka_tp],
                place.seek,
                place.number,
                following,
                epoch,
                committed.get(aiokafka_tp),
            )
        return standings

    async def logs(self, epochs: Mapping[TP, int]) -> Mapping[TP, Log]:
        """The logs of those of the partitions that are assigned; see `Log.epoch_end`.

        Without those of which nobody can tell. Raises `KafkaError` where nobody can tell of any.
        """
        found: Mapping[TP, Log] = await self._call(self._logs, dict(epochs))
        return found

    async def _logs(self, epochs: Mapping[TP, int]) -> dict[TP, Log]:
        consumer = self._ensure_consumer()
        asked = {tp: epochs.get(TP(*tp)) for tp in consumer.assignment() if TP(*tp) in epochs}
        if not asked:
            return {}
        committed = await _committed(consumer, asked)
        known = {tp: epoch for tp, epoch in asked.items() if epoch is not None and epoch >= 0}
        ends: dict[TopicPartition, int | None] = dict.fromkeys(asked.keys() - known.keys())
        ends |= await epoch_ends(consumer._client, known)
        # Asked for last, and by id: what was said before is then of no later topic by the name.
        bounds = await log_bounds(consumer._client, asked, self._ids)
        logs = {}
        for tp in bounds.keys() & ends.keys():
            logs[TP(*tp)] = Log(bounds[tp], committed.get(tp), ends[tp])
        return logs

    async def offsets_since(self, partitions: Collection[TP], time_ms: int) -> Mapping[TP, int]:
        """The offset of the first record since a time, of those of the partitions that are
        assigned and have one. Raises `KafkaError` where the brokers cannot tell.
        """
        found: Mapping[TP, int] = await self._call(self._offsets_since, set(partitions), time_ms)
        return found

    async def _offsets_since(self, partitions: Collection[TP], time_ms: int) -> dict[TP, int]:
        consumer = self._ensure_consumer()
        asked = {tp: time_ms for tp in consumer.assignment() if TP(*tp) in partitions}
        found = await consumer.offsets_for_times(asked) if asked else {}
        return {TP(*tp): first.offset for tp, first in found.items() if first is not None}

    async def seek_to(self, offsets: Mapping[TP, int]) -> Mapping[TP, int]:
        """Position those of the partitions that are assigned.

        Returns:
            The number of that seek for each of them.
        """
        seeks: Mapping[TP, int] = await self.call_thread(self._seek_to, dict(offsets))
        return seeks

    async def _seek_to(self, offsets: Mapping[TP, int]) -> dict[TP, int]:
        """Position, and number what follows anew; nothing is awaited between the two."""
        consumer = self._ensure_consumer()
        seeks = {}
        for aiokafka_tp in consumer.assignment():
            tp = TP(*aiokafka_tp)
            if tp in offsets:
                self._places.sought(tp)
                consumer._fetcher.seek_to(aiokafka_tp, offsets[tp])
                seeks[tp] = self._places.places[tp].seek
        self.misplaced = frozenset()
        return seeks

    async def rejoin(self) -> None:
        """Have the group share out its partitions anew, as they are by now."""
        await self._call(self._rejoin)

    async def _rejoin(self) -> None:
        consumer = self._ensure_consumer()
        _keep_informed(consumer._client)
        await consumer._client.force_metadata_update()
        consumer._coordinator.request_rejoin()

    def cut_off(self) -> None:
        """End all that runs in the thread, whatever it waits for; called from another."""

        def cut() -> None:
            consumer = self._consumer
            for connection in () if consumer is None else list(consumer._client._conns.values()):
                connection.close()
            for task in asyncio.all_tasks(self.thread_loop):
                task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self.thread_loop.call_soon_threadsafe(cut)

    def _start_thread(self) -> None:
        try:
            super()._start_thread()
        except asyncio.CancelledError:  # cut off
            self.set_shutdown()

    async def _call(self, method: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call a method in the consumer's thread that asks the brokers; it ends in time."""

        async def asked() -> T:
            return await asyncio.wait_for(method(*arguments), ASK_S)

        answer: T = await asyncio.wait_for(self.call_thread(asked), QUEUED_S + ASK_S)
        return answer

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


def _keep_informed(client: Any) -> None:
    """Start what keeps a client's knowledge of topics and leaders again, should it have ended:
    aiokafka does not look after it, and whoever waits for news would wait for ever.
    """
    task = client._sync_task
    if task is not None and task.done():
        error = None if task.cancelled() else task.exception()
        log.error("knowledge of the cluster was not kept, starting again", error=repr(error))
        client._sync_task = asyncio.create_task(client._md_synchronizer())


async def _committed(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, int]:
    """The offsets that the group has committed, of those of the partitions that have one."""
    found = await consumer._coordinator.fetch_committed_offsets(list(partitions))
    return {tp: meta.offset for tp, meta in found.items() if meta.offset >= 0}


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
    resume_at: Callable[[], Mapping[TP, int]]
    """Tells where to go on reading, of the partitions where that was found out."""
    on_misplaced: Callable[[set[TP]], None]
    """Told partitions whose logs have nothing at the offset where they are to be read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.polled_at = monotonic()
        self.resume_at = dict
        self.on_misplaced = lambda _: None
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
        if self._thread.misplaced:
            self.on_misplaced({TP(*tp) for tp in self._thread.misplaced})
        if not fetched or self.should_stop:
            return
        if not self.flow_active:
            await self.perform_seek()
            return
        for tp, batch in fetched.items():
            if self._is_void(batch):
                break
            if active is not None and tp in active:
                yield tp, self._batch_message(batch)

    def _is_void(self, batch: FetchedBatch) -> bool:
        """Whether a rebalance began or ended while the batch was on its way."""
        return not self.flow_active or batch.generation != self.app.consumer_generation_id

    async def perform_seek(self) -> None:
        """Go back to what is applied.

        The parent goes to what is committed. Where it was not found out yet what is applied, the
        fetcher stays where it is: nothing is applied before, and then it is positioned.
        """
        await self.seek_to(self.resume_at())

    async def seek_to(self, offsets: Mapping[TP, int]) -> Mapping[TP, int]:
        """Position partitions; returns the number of that seek for each that is assigned."""
        return await self._thread.seek_to(offsets)

    async def rejoin(self) -> None:
        """See `BatchConsumerThread.rejoin`."""
        await self._thread.rejoin()

    def cut_off(self) -> None:
        """End whatever its thread still does: while it heartbeats, the group leaves partitions to
        it that nobody reads.
        """
        self._thread.cut_off()

    def read_by_id(self, topic: str, topic_id: str) -> None:
        """See `BatchConsumerThread.read_by_id`."""
        self._thread.read_by_id(topic, topic_id)

    async def logs(self, epochs: Mapping[TP, int]) -> Mapping[TP, Log]:
        """See `BatchConsumerThread.logs`."""
        return await self._thread.logs(epochs)

    async def offsets_since(self, partitions: Collection[TP], time_ms: int) -> Mapping[TP, int]:
        """See `BatchConsumerThread.offsets_since`."""
        return await self._thread.offsets_since(partitions, time_ms)

    async def standings(self, unplaced: Collection[TP] = ()) -> Mapping[TP, Standing]:
        """See `BatchConsumerThread.standings`."""
        return await self._thread.standings(unplaced)

    @property
    def failures(self) -> dict[TP, Failure]:
        """Partitions that cannot be read, and why."""
        return {TP(tp.topic, tp.partition): why for tp, why in self._thread.failures.items()}

    def acknowledge(self, tp: TP, following: int, *, anew: bool = False) -> None:
        """Let an offset be committed, below which all is dealt with.

        ``anew`` lets it be lower than what was committed before, which is forgotten.
        """
        if anew:
            self._committed_offset[tp] = None
        self._acked[tp] = [following - 1]
        self._acked_index[tp] = {following - 1}

    def take_over(self, tp: TP, committed: int | None) -> None:
        """Go on from what the group has committed, None: nothing. This consumer may have committed
        more of another topic by the name, and would commit nothing of this one until it is as long.
        """
        self._committed_offset[tp] = committed
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)

    def _batch_message(self, batch: FetchedBatch) -> ConsumerMessage:
        last = batch.records[-1]
        return ConsumerMessage(
            batch.tp.topic,
            batch.tp.partition,
            batch.next - 1,
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
