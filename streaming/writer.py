"""Writing batches: decoded events into the store, refused ones to the dead-letter topic.

`BatchWriter.write` returns once both have what is theirs, however often it has to try; only then
may its caller acknowledge the batch. The marks in the store see to it that a batch that comes again
is not applied twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from infra.behaviors import Source
from infra.errors import LifelongError, RecordTooLarge, StoreCorrupt, one_line, typed_line
from infra.metrics import WorkerMetrics
from infra.schema_registry import OUTCOMES, SchemaRegistry
from infra.settings import Settings
from infra.store import Append, Appended, Group, Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.dead_letters import DeadLetter, DeadLetters
from streaming.events.decoder import Decoded, EventDecoder, appends_of
from streaming.events.rejects import Reason, Reject
from streaming.interruptions import Interruptions
from streaming.traces import TransactionTrace, WorkerTraces
from streaming.transport import FetchedBatch

log: Final = get_logger(__name__)

RETRY_MIN_S: Final = 0.05
"""First pause before what failed is tried again; it doubles up to `retry_max_s`."""

# A damaged record is one user's misfortune; when so many users have one and none is sound, it is
# the store's, and their events must not all end as dead letters.
SUSPICIOUS_CORRUPTIONS: Final = 8

T = TypeVar("T")


class GivenUp(Exception):
    """A batch was not written, being ours no longer: whoever has its partition now applies it."""


@dataclass(frozen=True, slots=True)
class Writable:
    """A batch that is to be written."""

    batch: FetchedBatch
    """One partition's records."""
    decoded: Decoded
    """What `BatchWriter.decode` made of them."""
    source: Source
    """That partition."""


@dataclass(slots=True)
class WriterProgress:
    """How writing goes, for the worker's health: written in the loop, read by any thread."""

    moved_at: float = field(default_factory=time.monotonic)
    """When a batch was last begun, retried or finished, monotonic seconds."""
    failure: str | None = None
    """Why the batch at hand cannot be written; None while all is well."""
    unread: str | None = None
    """Why the next one cannot be decoded; None while all is well."""
    assigned: bool = False
    """Whether the group has given us our partitions (perhaps none)."""

    def moved(self) -> None:
        """Note that something was begun, retried or finished."""
        self.moved_at = time.monotonic()


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
        digest: bytes | None = None,
        interruptions: Interruptions | None = None,
        traces: WorkerTraces | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        decoders: Mapping[str, EventDecoder] | None = None,
    ) -> None:
        self.progress = WriterProgress()
        registry = SchemaRegistry(
            settings.registry, lambda outcome: metrics.registry_requests.labels(outcome).inc()
        )
        readers = settings.readers()
        self._decoders = decoders or {
            one.broker.topic: EventDecoder(one.events, registry) for one in readers
        }
        """By the topic's name, as all that is of a source."""
        self._sources = {one.broker.topic: one.events.said for one in readers}
        self._tombstones = settings.broker.forget_tombstones
        self._retry_max_s = settings.worker.retry_max_s
        self._store = store
        self._digest = digest
        self.interruptions = interruptions or Interruptions()
        self._dead_letters = dead_letters
        self._traces = traces
        self._trace: TransactionTrace | None = None
        """Of the transaction that is being written; None: it has none, or none is."""
        self._metrics = metrics
        self._told: set[tuple[str, str]] = set()
        """Of which source events are ignored and why, as far as it was logged."""
        self._clock = clock
        self._sleep = sleep
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._writing = ThreadPoolExecutor(1, "write")
        # What is not there before the first one does not rise with it.
        for reason in Reason:
            metrics.rejects.labels(reason.value)
        for outcome in OUTCOMES:
            metrics.registry_requests.labels(outcome)
        for topic, decoder in self._decoders.items():
            for path in decoder.rules.reasons:
                metrics.ignored.labels(self._sources[topic], path)

    async def make_due_for(self, digest: bytes | None) -> None:
        """Have users be due for another bundle; returns when no transaction is under way in which
        they are for the one before. None: for no other than they were.
        """
        self._digest = digest
        with contextlib.suppress(RuntimeError):  # closed: nothing is under way
            await asyncio.get_running_loop().run_in_executor(self._writing, lambda: None)

    async def decode(self, batch: FetchedBatch) -> Decoded:
        """Decode the batch's records; touches nothing else, so it may run ahead of `write`.

        Tried again, with growing pauses, where the format cannot tell yet what they are.
        """
        loop = asyncio.get_running_loop()
        pause = RETRY_MIN_S
        while True:
            self.progress.moved()
            try:
                decoded = await loop.run_in_executor(self._decoding, self._decode, batch)
            except LifelongError as error:
                why = typed_line(error)
                if self.progress.unread is None:
                    log.warning("cannot decode yet, will retry", topic=batch.tp.topic, error=why)
                self.progress.unread = why
                await self._sleep(pause)
                pause = min(pause * 2, self._retry_max_s)
                continue
            if self.progress.unread is not None:
                log.info("decoding again", after=self.progress.unread)
                self.progress.unread = None
            return decoded

    async def write(self, group: Sequence[Writable], wanted: Callable[[], bool]) -> None:
        """Apply batches at once; return when store and dead-letter topic have what is theirs.

        Args:
            group: batches, those of one partition in their order.
            wanted: whether they are still ours; asked before each retry.

        Raises:
            GivenUp: they are not ours any more.
        """
        if self._traces is None:
            await self._write(group, wanted)
            return
        with self._traces.transaction([one.batch for one in group]) as trace:
            self._trace = trace
            try:
                await self._write(group, wanted)
            finally:
                self._trace = None

    async def _write(self, group: Sequence[Writable], wanted: Callable[[], bool]) -> None:
        started, trace = time.monotonic(), self._trace
        self.progress.moved()
        if trace is not None:
            trace.passed("waiting")
        # Joined in the thread, and freed there: the loop has the next batches to fetch meanwhile.
        appended, refused = await self.until_done(lambda: self._append_group(group), wanted)
        if trace is not None:
            trace.passed("append")
        rejects = [
            (one, self._refused(one) + _refusals(one, refused, self._decoder_of(one.batch)))
            for one in group
        ]
        letters = [letter for one, of in rejects for letter in _letters(one.batch, of)]
        if letters:
            await self.until_done(lambda: self._dead_letters.send(letters), wanted)
            if trace is not None:
                trace.passed("dead letters", letters=len(letters))
        self._measure(appended, time.monotonic() - started)
        self._metrics.group_events.observe(sum(len(one.batch.records) for one in group))
        for one, of in rejects:
            self._measure_rejects(one.batch, of)
            self._measure_ignored(one)
            tombstones = len(one.decoded.rejects) - len(self._refused(one))
            self._metrics.events.labels("tombstone").inc(tombstones)
        if trace is not None:
            trace.stored(appended.applied, [(one.batch, of) for one, of in rejects])
        self.progress.moved()

    async def reach(self, source: Source, last: int, wanted: Callable[[], bool]) -> None:
        """Tell the store that the source is dealt with up to an offset; raises as `write` does."""
        await self.until_done(lambda: self._apply([Group(source, [], last)]), wanted)

    async def until_done(self, call: Callable[[], T], wanted: Callable[[], bool]) -> T:
        """What ``call`` returns, called in the thread until it succeeds, with growing pauses.

        Raises:
            GivenUp: it did not, and is not wanted any more; or the store was away meanwhile, and
                other events must come first.
        """
        pause = RETRY_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = await loop.run_in_executor(self._writing, call)
            except GivenUp:
                self.progress.failure = None
                raise
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

    def close(self) -> None:
        """Wait for what is being written; the store may be closed afterwards."""
        self._decoding.shutdown(wait=True, cancel_futures=True)
        self._writing.shutdown(wait=True, cancel_futures=True)

    def _report(self, error: Exception) -> None:
        """Count each failure, log the first of a row."""
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._metrics.store_failed(error)
        if self.progress.failure is None:
            expected = isinstance(error, LifelongError)
            log.error("cannot write, will retry", error=text, exc_info=not expected)
        self.progress.failure = text

    def _decode(self, batch: FetchedBatch) -> Decoded:
        records, began_ns = batch.records, time.time_ns()
        decoder = self._decoder_of(batch)
        decoded = decoder.decode(
            [record.offset for record in records],
            [record.key for record in records],
            [record.value for record in records],
            self._clock(),
            [record.headers for record in records] if decoder.reads_headers else None,
        )
        if self._traces is not None:
            batch.decoding = self._traces.decoded(records, began_ns, time.time_ns())
        return decoded

    def _decoder_of(self, batch: FetchedBatch) -> EventDecoder:
        return self._decoders[batch.tp.topic]

    def _append_group(self, group: Sequence[Writable]) -> tuple[Appended, list[_Refused]]:
        """Append what is joined of batches, and tell how long their events took until here."""
        appended, refused = self._append(_joined(group))
        if appended.applied:  # else all of it was there before, and came again
            stamps = np.fromiter(
                (record.timestamp for one in group for record in one.batch.records), np.float64
            )
            took_ms = self._clock() - stamps[stamps > 0]  # below: producers of Kafka 0.9 give none
            self._metrics.stored_seconds.observe(np.maximum(took_ms, 0) / 1000)
        return appended, refused

    def _append(self, groups: Sequence[Group]) -> tuple[Appended, list[_Refused]]:
        """Append all users at once; without those that cannot be stored, if there are any."""
        refused: list[_Refused] = []
        with self._metrics.append_seconds.time():
            try:
                return self._apply(groups), refused
            except (RecordTooLarge, StoreCorrupt):
                users = [(group.source, append) for group in groups for append in group.appends]
                total = self._append_halves(users, refused)
                if len(refused) == len(users) >= SUSPICIOUS_CORRUPTIONS:
                    raise
                self._apply([Group(group.source, [], group.reached) for group in groups])
                return total, refused

    def _append_halves(self, users: Sequence[_User], refused: list[_Refused]) -> Appended:
        """Append users, and find those that cannot be stored by halving."""
        total = Appended()
        half = (len(users) + 1) // 2
        for part in (users[:half], users[half:]):
            try:
                total += self._apply(_grouped(part))
            except (RecordTooLarge, StoreCorrupt) as error:
                if len(part) == 1:
                    refused.append((*part[0], error))
                else:
                    total += self._append_halves(part, refused)
        return total

    def _apply(self, groups: Sequence[Group]) -> Appended:
        # Looked at before each append, retries included: the store may have lost what came before.
        if self.interruptions.pending:
            raise GivenUp
        now_ms = self._clock()
        if self._trace is not None:
            self._trace.seals_at(now_ms)
        return self._store.append(groups, now_ms, digest=self._digest)

    def _measure(self, appended: Appended, seconds: float) -> None:
        metrics = self._metrics
        metrics.events.labels("applied").inc(appended.applied)
        metrics.events.labels("replayed").inc(appended.replayed)
        metrics.events.labels("duplicate").inc(appended.duplicates)
        metrics.events.labels("deleted").inc(appended.deleted)
        metrics.events.labels("covered").inc(appended.covered)
        metrics.batches.inc()
        metrics.batch_seconds.observe(seconds)
        metrics.last_batch_timestamp_seconds.set(self._clock() / 1000)

    def _refused(self, one: Writable) -> list[Reject]:
        """What the decoder refused of a batch, without tombstones where those are expected."""
        rejects = one.decoded.rejects
        return [r for r in rejects if r.value is not None] if self._tombstones else rejects

    def _measure_rejects(self, batch: FetchedBatch, rejects: Sequence[Reject]) -> None:
        metrics = self._metrics
        metrics.events.labels("rejected").inc(sum(reject.events for reject in rejects))
        for reject in rejects:
            metrics.rejects.labels(reject.reason.value).inc(reject.events)
        if rejects:
            first = rejects[0]
            log.warning(
                "events rejected",
                count=sum(reject.events for reject in rejects),
                topic=batch.tp.topic,
                partition=batch.tp.partition,
                first_offset=first.offset,
                first_reason=first.reason.value,
                first_detail=first.detail,
            )

    def _measure_ignored(self, one: Writable) -> None:
        ignored, source = one.decoded.ignored, self._sources[one.batch.tp.topic]
        self._metrics.events.labels("ignored").inc(ignored.total())
        for reason, count in ignored.items():
            self._metrics.ignored.labels(source, reason).inc(count)
            if (source, reason) not in self._told:
                self._told.add((source, reason))
                log.info(
                    "events ignored, as from here on without a word",
                    source=source,
                    reason=reason,
                    partition=one.batch.tp.partition,
                    count=count,
                )


_User = tuple[Source, Append]
"""A user's part of what came of a source."""

_Refused = tuple[Source, Append, LifelongError]
"""One that the store can never take, and why."""


def _grouped(users: Sequence[_User]) -> list[Group]:
    """One group a source."""
    groups: dict[int, tuple[Source, list[Append]]] = {}
    for source, append in users:
        groups.setdefault(source.key, (source, []))[1].append(append)
    return [Group(source, appends) for source, appends in groups.values()]


def _joined(group: Sequence[Writable]) -> list[Group]:
    """One group a source, and in it one append a user."""
    by_source: dict[int, list[Writable]] = {}
    for one in group:
        by_source.setdefault(one.source.key, []).append(one)
    return [
        Group(
            ones[0].source,
            appends_of([one.decoded for one in ones]),
            ones[-1].batch.next - 1,
        )
        for ones in by_source.values()
    ]


def _refusals(one: Writable, refused: Sequence[_Refused], decoder: EventDecoder) -> list[Reject]:
    """The events of a batch that the store can never take, as rejects."""
    if not refused:
        return []
    by_offset = {record.offset: record for record in one.batch.records}
    # One reject for each record and reason: of those of one reason a replay sends one.
    users: dict[tuple[int, Reason], tuple[list[str], str]] = {}
    for source, append, error in refused:
        if source.key != one.source.key:
            continue
        too_large = isinstance(error, RecordTooLarge)
        reason = Reason.RECORD_TOO_LARGE if too_large else Reason.RECORD_CORRUPT
        for offset in append.offsets:
            of, _ = users.setdefault((offset, reason), ([], one_line(error)))
            of.append(append.user)  # once for each event
    rejects = []
    for (offset, reason), (of, detail) in users.items():
        record = by_offset.get(offset)
        if record is None:  # of another batch of the group
            continue
        value = decoder.of_users(record.key, record.value, record.headers, set(of))
        rejects.append(Reject(offset, record.key, value, reason, detail, len(of)))
    return rejects


def _letters(batch: FetchedBatch, rejects: Sequence[Reject]) -> list[DeadLetter]:
    """The rejects of a batch as dead letters, which also say where each record came from."""
    if not rejects:
        return []
    records = {record.offset: record for record in batch.records}
    return [
        DeadLetter(
            key=reject.key,
            value=reject.value,
            reason=reject.reason.value,
            detail=reject.detail,
            topic=batch.tp.topic,
            partition=batch.tp.partition,
            offset=reject.offset,
            timestamp=records[reject.offset].timestamp,
            headers=records[reject.offset].headers,
        )
        for reject in rejects
    ]
