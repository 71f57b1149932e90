"""The hot path: batches of events from Kafka into the store.

`create_app` composes it. For each batch the agent decodes, appends to the store, sends the rejects
to the dead-letter topic, and acknowledges once both have what is theirs: never before, whatever
fails, so that nothing is lost. The marks in the store see to it that nothing is applied twice.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import faust
from faust.types import TP

from infra.behaviors import Source, partition_source
from infra.errors import BrokerError, LifelongError, RecordTooLarge, StoreCorrupt, one_line
from infra.metrics import WorkerMetrics
from infra.settings import BrokerSettings, Settings
from infra.store import Append, Appended, Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.dead_letters import DeadLetter, DeadLetters
from streaming.events.decoder import Decoded, EventDecoder, Reason, Reject
from streaming.transport import Batch, BatchConsumer, BatchTransport, InOrder, faust_log

log: Final = get_logger(__name__)

QUEUED_BATCHES: Final = 4
"""Batches that wait between fetcher and agent: enough to keep the agent busy, few enough that a
worker holds no more than some MB of events."""

FETCH_BYTES: Final = 4_194_304
"""Most bytes fetched from a partition at once: several full batches, so that few are short ones. A
larger record is still fetched, alone."""

RETRY_MIN_S: Final = 0.05
"""First pause before what failed is tried again; it doubles up to `retry_max_s`."""

COMMIT_INTERVAL_S: Final = 1.0
"""How often offsets are committed. What a killed worker had not committed is skipped by marks."""

METADATA_MAX_AGE_S: Final = 5.0
"""How soon new partitions, and a topic that appears, are noticed."""

REQUEST_TIMEOUT_S: Final = 40.0
REBALANCE_TIMEOUT_S: Final = 30.0

# A damaged record is one user's misfortune; when so many users have one and none is sound, it is
# the store's, and their events must not all end as dead letters.
SUSPICIOUS_CORRUPTIONS: Final = 8

T = TypeVar("T")


class GivenUp(Exception):
    """The batch is no longer ours: whoever has the partition now applies it."""


@dataclass(slots=True)
class Progress:
    """What the worker's health is judged by: written in the loop, read by any thread."""

    moved_at: float = field(default_factory=time.monotonic)
    """When the agent last began, retried or finished something, monotonic seconds."""
    failure: str | None = None
    """Why the batch at hand cannot be written; None while all is well."""
    assigned: bool = False
    """Whether the group has given us our partitions (perhaps none)."""
    batches: int = 0
    """Batches applied and acknowledged."""

    def moved(self) -> None:
        """The agent is alive."""
        self.moved_at = time.monotonic()


class TopicIdentity:
    """Which topic bears the name now: one that was deleted and created again is another source.

    Args:
        topic: its name.
        read: asks the broker for the topic's id. It blocks, and raises `BrokerError` when the
            broker does not answer or has no such topic.
    """

    def __init__(self, topic: str, read: Callable[[], str]) -> None:
        self.topic = topic
        self.id: str | None = None
        self._read = read
        self._sources: dict[int, Source] = {}

    def source(self, partition: int) -> Source:
        """The source of a partition, as of the last `adopt`."""
        source = self._sources.get(partition)
        if source is None:
            assert self.id is not None
            source = partition_source(self.topic, self.id, partition)
            self._sources[partition] = source
        return source

    async def read(self) -> str:
        """The id that the broker knows."""
        return await asyncio.to_thread(self._read)

    def adopt(self, found: str) -> bool:
        """Take the id as the topic's; whether there was another one before."""
        if found == self.id:
            return False
        before, self.id = self.id, found
        self._sources.clear()
        return before is not None


class BatchWriter:
    """Applies batches: decode, append, dead letters.

    Store and dead letters block, so they have a thread: the loop goes on answering and
    heartbeating, however long they take. Decoding has another: while the store waits for its disk,
    the next batch is decoded.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        dead_letters: DeadLetters,
        metrics: WorkerMetrics,
        *,
        clock: Callable[[], int] = wall_clock_ms,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.progress = Progress()
        self._decoder = EventDecoder(settings.events)
        self._retry_max_s = settings.worker.retry_max_s
        self._store = store
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._clock = clock
        self._sleep = sleep
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._writing = ThreadPoolExecutor(1, "write")

    async def decode(self, batch: Batch) -> Decoded:
        """Decode the batch's records; touches nothing else, so it may run ahead of `write`."""
        self.progress.moved()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoding, self._decode, batch)

    async def write(
        self, batch: Batch, decoded: Decoded, source: Source, wanted: Callable[[], bool]
    ) -> None:
        """Apply the batch; return when store and dead-letter topic have what is theirs.

        Args:
            batch: one partition's records.
            decoded: what `decode` made of it.
            source: that partition.
            wanted: whether the batch is still ours; asked before each retry.

        Raises:
            GivenUp: it is not ours any more.
        """
        started = time.monotonic()
        self.progress.moved()
        appended, refused = await self._until_done(lambda: self._append(source, decoded), wanted)
        rejects = decoded.rejects + _refusals(batch, refused)
        if rejects:
            letters = _letters(batch, rejects)
            await self._until_done(lambda: self._dead_letters.send(letters), wanted)
        self._measure(batch, appended, rejects, time.monotonic() - started)
        self.progress.batches += 1
        self.progress.moved()

    def close(self) -> None:
        """Wait for what is being written; the store may be closed afterwards."""
        self._decoding.shutdown(wait=True, cancel_futures=True)
        self._writing.shutdown(wait=True, cancel_futures=True)

    async def _until_done(self, call: Callable[[], T], wanted: Callable[[], bool]) -> T:
        """Call in the thread until it succeeds, with growing pauses."""
        pause = RETRY_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = await loop.run_in_executor(self._writing, call)
            except Exception as error:
                # Whatever it is: what is not written is not acknowledged, and tried again.
                self._report(error)
                await self._sleep(pause)
                pause = min(pause * 2, self._retry_max_s)
                self.progress.moved()
                if not wanted():
                    self.progress.failure = None
                    raise GivenUp from error
                self._metrics.store_retries.inc()
                continue
            if self.progress.failure is not None:
                log.info("writing again", after=self.progress.failure)
                self.progress.failure = None
            return result

    def _report(self, error: Exception) -> None:
        """Count each failure, log the first of a row."""
        kind = type(error).__name__
        text = f"{kind}: {' '.join(str(error).split())}"
        self._metrics.store_errors.labels(kind).inc()
        if self.progress.failure is None:
            expected = isinstance(error, LifelongError)
            log.error("cannot write, will retry", error=text, exc_info=not expected)
        self.progress.failure = text

    def _decode(self, batch: Batch) -> Decoded:
        records = [(record.offset, record.key, record.value) for record in batch.records]
        return self._decoder.decode_batch(records, self._clock())

    def _append(self, source: Source, decoded: Decoded) -> tuple[Appended, list[_Refused]]:
        """Append all users at once; if one of them cannot be stored, one by one."""
        if not decoded.appends:
            return Appended(0, 0, 0, []), []
        with self._metrics.append_seconds.time():
            try:
                return self._store.append(source, decoded.appends, self._clock()), []
            except (RecordTooLarge, StoreCorrupt):
                return self._append_singly(source, decoded.appends)

    def _append_singly(
        self, source: Source, appends: Sequence[Append]
    ) -> tuple[Appended, list[_Refused]]:
        total = Appended(0, 0, 0, [])
        refused: list[_Refused] = []
        for append in appends:
            try:
                one = self._store.append(source, [append], self._clock())
            except (RecordTooLarge, StoreCorrupt) as error:
                refused.append((append, error))
                if len(refused) == len(appends) >= SUSPICIOUS_CORRUPTIONS:
                    raise
            else:
                total.applied += one.applied
                total.replayed += one.replayed
                total.duplicates += one.duplicates
        return total, refused

    def _measure(
        self, batch: Batch, appended: Appended, rejects: Sequence[Reject], seconds: float
    ) -> None:
        metrics = self._metrics
        metrics.events.labels("applied").inc(appended.applied)
        metrics.events.labels("replayed").inc(appended.replayed)
        metrics.events.labels("duplicate").inc(appended.duplicates)
        metrics.events.labels("rejected").inc(len(rejects))
        for reject in rejects:
            metrics.rejects.labels(reject.reason.value).inc()
        if rejects:
            first = rejects[0]
            log.warning(
                "events rejected",
                count=len(rejects),
                partition=batch.tp.partition,
                first_offset=first.offset,
                first_reason=first.reason.value,
                first_detail=first.detail,
            )
        metrics.batches.inc()
        metrics.batch_seconds.observe(seconds)
        metrics.last_batch_timestamp_seconds.set(self._clock() / 1000)
        lag = max(0, batch.highwater - batch.last - 1)
        metrics.consumer_lag.labels(str(batch.tp.partition)).set(lag)


_Refused = tuple[Append, LifelongError]
"""A user's part of a batch that the store can never take, and why."""


class BatchAgent:
    """Takes each partition's batches in order, and nothing out of order.

    It is the agent's memory; the agent itself may crash and be started again by Faust.
    """

    def __init__(
        self, app: faust.App, writer: BatchWriter, topic: TopicIdentity, metrics: WorkerMetrics
    ) -> None:
        self._app = app
        self._writer = writer
        self._topic = topic
        self._metrics = metrics
        self._order = InOrder()
        self._suspect = True  # whether the topic's id must be read before the next batch
        self._turn = asyncio.Lock()

    async def consume(self, events: AsyncIterable[Any]) -> None:
        """Apply the batches of a stream: one is decoded while the one before it is written."""
        writing: asyncio.Task[None] | None = None
        try:
            async for event in events:
                decoded = await self._writer.decode(event.value)
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._apply_and_acknowledge(event, decoded))
        finally:
            if writing is not None:
                writing.cancel()

    async def _apply_and_acknowledge(self, event: Any, decoded: Decoded) -> None:
        try:
            applied = await self.apply(event.value, decoded)
        except Exception:
            # No failure is expected here; should there be one, it must not stay silent until the
            # next batch comes.
            log.exception("batch failed")
            await asyncio.sleep(RETRY_MIN_S)
            await self._fetch_again(event.value)
        else:
            if applied:
                event.ack()

    async def apply(self, batch: Batch, decoded: Decoded) -> bool:
        """Apply the batch; whether it may be acknowledged. One that may not comes again."""
        async with self._turn:
            if self._order.is_old(batch):
                return False
            if not self._order.follows(batch):
                await self._fetch_again(batch)
                return False
            try:
                if (self._suspect or batch.rewound) and await self._topic_changed(batch):
                    return False
                source = self._topic.source(batch.tp.partition)
                await self._writer.write(batch, decoded, source, lambda: self._wanted(batch))
            except GivenUp:
                return False
            self._order.done(batch)
            return True

    async def check_topic(self) -> None:
        """Start over if the topic was created anew.

        Raises:
            BrokerError: the broker does not answer, or there is no such topic.
        """
        found = await self._topic.read()
        if found == self._topic.id or self._topic.id is None:
            return
        async with self._turn:
            # Read again: what was found may be older than what `apply` learned meanwhile.
            await self._adopt(await self._topic.read())

    def rebalanced(self, assigned: set[TP], revoked: set[TP]) -> None:
        """Other partitions are ours now; the topic may be another one too."""
        self._suspect = True
        for tp in revoked - assigned:
            try:
                self._metrics.consumer_lag.remove(str(tp.partition))
            except KeyError:
                continue

    def _wanted(self, batch: Batch) -> bool:
        return batch.generation == self._app.consumer_generation_id

    async def _topic_changed(self, batch: Batch) -> bool:
        """Read the topic's id until the broker tells it; whether we start over because of it."""
        pause = RETRY_MIN_S
        while True:
            try:
                found = await self._topic.read()
            except BrokerError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                self._writer.progress.moved()
                if not self._wanted(batch):
                    raise GivenUp from None
                continue
            self._suspect = False
            return await self._adopt(found)

    async def _adopt(self, found: str) -> bool:
        if not self._topic.adopt(found):
            return False
        log.warning("topic was created anew, starting at its beginning", topic=self._topic.topic)
        self._expect(await self._consumer.rewind())
        return True

    async def _fetch_again(self, batch: Batch) -> None:
        """Go back to what is acknowledged: something before the batch got lost on its way."""
        log.info(
            "a batch was dropped on its way, fetching it again",
            partition=batch.tp.partition,
            offset=batch.first,
        )
        try:
            await self._consumer.perform_seek()
        except Exception as error:  # noqa: BLE001 - the next batch does not follow either, and asks again
            log.warning("cannot seek yet", error=one_line(error))
            await asyncio.sleep(RETRY_MIN_S)
            return
        self._expect(self._consumer.seeks)

    def _expect(self, seeks: Mapping[TP, int]) -> None:
        for tp, seek in seeks.items():
            self._order.expect(tp, seek)

    @property
    def _consumer(self) -> BatchConsumer:
        consumer = self._app.consumer
        assert isinstance(consumer, BatchConsumer)
        return consumer


class LifelongApp(faust.App):
    """A Faust app with the parts that the worker looks after."""

    logger = faust_log
    writer: BatchWriter
    batches: BatchAgent
    identity: TopicIdentity

    def _create_directories(self) -> None:
        """None: Faust's are for tables, and state lives in the store."""


def create_app(
    settings: Settings,
    store: Store,
    dead_letters: DeadLetters,
    metrics: WorkerMetrics,
    *,
    topic_id: Callable[[], str],
    on_assigned: Callable[[set[int]], None] = lambda _: None,
    clock: Callable[[], int] = wall_clock_ms,
) -> LifelongApp:
    """Compose the Faust app that brings events into the store. Nothing is connected yet.

    Args:
        settings: all of them.
        store: takes the sequences.
        dead_letters: takes what cannot be read.
        metrics: counts.
        topic_id: asks the broker for the topic's id, see `TopicIdentity`.
        on_assigned: told the partitions that are ours, after each rebalance.
        clock: ms since epoch.
    """
    app = LifelongApp(settings.broker.group, **_faust_settings(settings))
    app.transport = BatchTransport(app.conf.broker, app)
    # Nothing is produced through Faust: dead letters have an idempotent producer of their own.
    app.boot_strategy.enable_kafka_producer = False
    app.writer = BatchWriter(settings, store, dead_letters, metrics, clock=clock)
    app.identity = TopicIdentity(settings.broker.topic, topic_id)
    app.batches = batches = BatchAgent(app, app.writer, app.identity, metrics)
    topic = app.topic(
        settings.broker.topic, key_serializer="raw", value_serializer="raw", schema=_BatchSchema()
    )

    async def behaviors(stream: Any) -> None:
        await batches.consume(stream.noack().events())

    app.agent(topic, name="behaviors")(behaviors)
    ours: set[TP] = set()

    async def assigned(_sender: Any, assigned: set[TP], **_: Any) -> None:
        batches.rebalanced(assigned, set(ours))
        ours.clear()
        ours.update(assigned)
        app.writer.progress.assigned = True
        app.writer.progress.moved()
        log.info("partitions assigned", partitions=sorted(tp.partition for tp in assigned))
        on_assigned({tp.partition for tp in assigned})

    app.on_partitions_assigned.connect(cast("Any", assigned), weak=False)
    return app


class _BatchSchema(faust.Schema[Any, Any]):
    """Passes a batch through as it is: the agent decodes."""

    def compile(self, app: Any, **_: Any) -> Callable[..., Awaitable[Any]]:
        create_event = app.create_event

        async def decode(message: Any, **_: Any) -> Any:
            return create_event(None, message.value, None, message)

        return decode


def _faust_settings(settings: Settings) -> dict[str, Any]:
    broker, worker = settings.broker, settings.worker
    session = worker.session_timeout_s
    addresses = [address.strip() for address in broker.bootstrap.split(",")]
    return {
        "broker": ";".join(f"kafka://{address}" for address in addresses),
        "broker_credentials": _credentials(broker),
        "broker_session_timeout": session,
        "broker_heartbeat_interval": session / 4,
        "broker_request_timeout": max(REQUEST_TIMEOUT_S, session + 1),
        "broker_rebalance_timeout": REBALANCE_TIMEOUT_S,
        "broker_max_poll_records": worker.fetch_max,
        "broker_commit_interval": COMMIT_INTERVAL_S,
        "consumer_auto_offset_reset": "earliest",
        "consumer_max_fetch_size": FETCH_BYTES,
        "consumer_metadata_max_age_ms": int(METADATA_MAX_AGE_S * 1000),
        "key_serializer": "raw",
        "value_serializer": "raw",
        "stream_wait_empty": False,
        "stream_buffer_maxsize": QUEUED_BATCHES,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_enabled": False,
        "autodiscover": False,
        "store": "memory://",
    }


def _credentials(broker: BrokerSettings) -> Any:
    """How Faust is to enter Kafka; None for plain text."""
    if broker.security_protocol == "PLAINTEXT":
        return None
    context = None
    if broker.security_protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=broker.ca_file)
    if broker.security_protocol == "SSL":
        return faust.SSLCredentials(context)
    assert broker.sasl_password is not None
    return faust.SASLCredentials(
        mechanism=broker.sasl_mechanism,
        username=broker.sasl_username,
        password=broker.sasl_password.get_secret_value(),
        ssl_context=context,
    )


def _refusals(batch: Batch, refused: Sequence[_Refused]) -> list[Reject]:
    """The events that the store can never take, as rejects."""
    if not refused:
        return []
    by_offset = {record.offset: record for record in batch.records}
    rejects = []
    for append, error in refused:
        too_large = isinstance(error, RecordTooLarge)
        reason = Reason.RECORD_TOO_LARGE if too_large else Reason.RECORD_CORRUPT
        detail = one_line(error)
        for offset in append.offsets:
            record = by_offset[offset]
            rejects.append(Reject(offset, record.key, record.value, reason, detail))
    return rejects


def _letters(batch: Batch, rejects: Sequence[Reject]) -> list[DeadLetter]:
    timestamps = {record.offset: record.timestamp for record in batch.records}
    return [
        DeadLetter(
            key=reject.key,
            value=reject.value,
            reason=reject.reason.value,
            detail=reject.detail,
            topic=batch.tp.topic,
            partition=batch.tp.partition,
            offset=reject.offset,
            timestamp=timestamps[reject.offset],
        )
        for reject in rejects
    ]
