"""Writing batches: decoded events into the store, refused ones to the dead-letter topic.

`BatchWriter.write` returns once both have what is theirs, however often it has to try; only then
may its caller acknowledge the batch. The marks in the store see to it that a batch that comes again
is not applied twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from infra.behaviors import Source
from infra.errors import LifelongError, RecordTooLarge, StoreCorrupt, one_line
from infra.metrics import WorkerMetrics
from infra.settings import Settings
from infra.store import Append, Appended, Group, Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.dead_letters import DeadLetter, DeadLetters
from streaming.events.decoder import Decoded, EventDecoder
from streaming.events.rejects import Reason, Reject
from streaming.interruptions import Interruptions
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


@dataclass(slots=True)
class WriterProgress:
    """How writing goes, for the worker's health: written in the loop, read by any thread."""

    moved_at: float = field(default_factory=time.monotonic)
    """When a batch was last begun, retried or finished, monotonic seconds."""
    failure: str | None = None
    """Why the batch at hand cannot be written; None while all is well."""
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
        clock: Callable[[], int] = wall_clock_ms,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.progress = WriterProgress()
        self._decoder = EventDecoder(settings.events)
        self._retry_max_s = settings.worker.retry_max_s
        self._store = store
        self._digest = digest
        self.interruptions = interruptions or Interruptions()
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._clock = clock
        self._sleep = sleep
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._writing = ThreadPoolExecutor(1, "write")

    async def decode(self, batch: FetchedBatch) -> Decoded:
        """Decode the batch's records; touches nothing else, so it may run ahead of `write`."""
        self.progress.moved()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoding, self._decode, batch)

    async def write(
        self, batch: FetchedBatch, decoded: Decoded, source: Source, wanted: Callable[[], bool]
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
        appended, refused = await self.until_done(
            lambda: self._append(source, decoded, batch.next - 1), wanted
        )
        rejects = decoded.rejects + _refusals(batch, refused)
        if rejects:
            letters = _letters(batch, rejects)
            await self.until_done(lambda: self._dead_letters.send(letters), wanted)
        self._measure(batch, appended, rejects, time.monotonic() - started)
        self.progress.moved()

    async def reach(self, source: Source, last: int, wanted: Callable[[], bool]) -> None:
        """Tell the store that the source is dealt with up to an offset; raises as `write` does."""
        await self.until_done(lambda: self._apply(Group(source, [], last)), wanted)

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
        kind = type(error).__name__
        text = f"{kind}: {' '.join(str(error).split())}"
        self._metrics.store_errors.labels(kind).inc()
        if self.progress.failure is None:
            expected = isinstance(error, LifelongError)
            log.error("cannot write, will retry", error=text, exc_info=not expected)
        self.progress.failure = text

    def _decode(self, batch: FetchedBatch) -> Decoded:
        records = [(record.offset, record.key, record.value) for record in batch.records]
        return self._decoder.decode_batch(records, self._clock())

    def _append(
        self, source: Source, decoded: Decoded, last: int
    ) -> tuple[Appended, list[_Refused]]:
        """Append all users at once; if one of them cannot be stored, one by one."""
        with self._metrics.append_seconds.time():
            try:
                return self._apply(Group(source, decoded.appends, last)), []
            except (RecordTooLarge, StoreCorrupt):
                return self._append_singly(source, decoded.appends, last)

    def _append_singly(
        self, source: Source, appends: Sequence[Append], last: int
    ) -> tuple[Appended, list[_Refused]]:
        total = Appended()
        refused: list[_Refused] = []
        for append in appends:
            try:
                total += self._apply(Group(source, [append]))
            except (RecordTooLarge, StoreCorrupt) as error:
                refused.append((append, error))
                if len(refused) == len(appends) >= SUSPICIOUS_CORRUPTIONS:
                    raise
        self._apply(Group(source, [], last))
        return total, refused

    def _apply(self, group: Group) -> Appended:
        # Looked at before each append, retries included: the store may have lost what came before.
        if self.interruptions.pending:
            raise GivenUp
        return self._store.append([group], self._clock(), digest=self._digest)

    def _measure(
        self, batch: FetchedBatch, appended: Appended, rejects: Sequence[Reject], seconds: float
    ) -> None:
        metrics = self._metrics
        metrics.events.labels("applied").inc(appended.applied)
        metrics.events.labels("replayed").inc(appended.replayed)
        metrics.events.labels("duplicate").inc(appended.duplicates)
        metrics.events.labels("deleted").inc(appended.deleted)
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


_Refused = tuple[Append, LifelongError]
"""A user's part of a batch that the store can never take, and why."""


def _refusals(batch: FetchedBatch, refused: Sequence[_Refused]) -> list[Reject]:
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


def _letters(batch: FetchedBatch, rejects: Sequence[Reject]) -> list[DeadLetter]:
    """The rejects of a batch as dead letters, which also say where each record came from."""
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
