"""Taking records out of aiokafka's fetcher, so that one partition's trouble stays its own.

What the fetcher cannot decode (a damaged batch, a codec that is not there) it raises when records
are asked for, and with that drops what it had already given of other partitions, whose positions
have moved on. Here each partition is asked alone. What precedes the bad batch is given out, the
partition is tried again a little later, and what is wrong is kept by partition and offset.

Under a load brokers are asked to answer less often, with more (`Pace`).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import (
    READ_COMMITTED,
    FetchError,
    FetchResult,
    PartitionRecords,
)
from aiokafka.errors import (
    CorruptRecordException,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest

from infra.errors import typed_line
from infra.kafka.fetching_by_id import fetch_by_id


class Record(Protocol):
    """One record of a log, as aiokafka's parser makes it."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def timestamp(self) -> int:
        """ms since epoch, by the producer or the broker."""

    @property
    def timestamp_type(self) -> int:
        """0: by the producer; 1: by the broker."""

    @property
    def key(self) -> bytes | None:
        """As it was sent."""

    @property
    def value(self) -> bytes | None:
        """As it was sent."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """As they were sent."""


Records = list[Record]

RETRY_S: Final = 1.0
"""Pause before a partition that cannot be read is tried again."""

EPOCH_CHANGES: Final = 64
"""Changes of a partition's leader that are remembered: more than lie in what is fetched at once."""

PACE_S: Final = 0.05
"""How much a broker collects before it answers: what comes in so long. An event waits half of that
for others, in the mean, under a load that keeps a worker longer than that."""

PACE_OVER_S: Final = 0.25
"""Time over which it is measured how much comes."""

_BATCH: Final = struct.Struct(">qii")  # base offset, length of what follows it, leader epoch
_LENGTH_ENDS: Final = 12
_MAGIC_AT: Final = 16
_NOWHERE: Final = (OffsetOutOfRangeError, NoOffsetForPartitionError)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a partition cannot be read."""

    offset: int
    """Where it stopped."""
    error: str
    """What is wrong there, in one line."""
    times: int
    """How often in a row."""
    at: float
    """When it was tried last, monotonic seconds."""
    refused: bool
    """Whether the broker gave an error; otherwise what it gave cannot be decoded."""


class Pace:
    """How much a broker should have before it answers a fetch, by how much it gives.

    Left alone it answers as soon as there is anything: under a load of 20,000 events a second with
    some hundred of them, and each answer costs a batch of each partition its way through consumer,
    Faust and decoder, and the interpreter's lock, for which the writer waits then. With one event a
    second it still answers at once.

    >>> pace = Pace(now=0.0)
    >>> pace.least_bytes
    1
    >>> pace.gave(1_000_000, now=0.5)
    >>> pace.least_bytes
    100000
    """

    def __init__(self, now: float) -> None:
        self._since, self._bytes = now, 0
        self.least_bytes = 1
        """What the next answer should have, as far as that is there within `FETCH_WAIT_MS`."""

    def gave(self, size: int, now: float) -> None:
        """Take note of an answer with so many bytes, at a time in monotonic seconds."""
        self._bytes += size
        took = now - self._since
        if took >= PACE_OVER_S:
            self.least_bytes = max(1, int(self._bytes / took * PACE_S))
            self._since, self._bytes = now, 0


class Reader:
    """Takes records out of a consumer's fetcher. Lives in the consumer's thread.

    It also reads what the brokers' answers say beside their records, for which it stands between
    the consumer's client and whoever asks it.
    """

    failures: dict[TopicPartition, Failure]
    """Partitions that cannot be read. Replaced as a whole, so that any thread may read it."""

    ids: Mapping[str, bytes]
    """The 16 bytes of topics' ids, by name: nothing is read of another topic that bears the name.
    Replaced as a whole."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self.failures = {}
        self.ids = {}
        self._consumer = consumer
        self._epochs: dict[TopicPartition, list[tuple[int, int]]] = {}
        self._paces: dict[int, Pace] = {}
        """Of each broker."""
        self._ask = consumer._client.send
        consumer._client.send = self._send

    def take(self, partitions: Collection[Any] | None, limit: int) -> dict[TopicPartition, Records]:
        """Up to ``limit`` records of those partitions, which are not given again."""
        fetcher = self._consumer._fetcher
        taken: dict[TopicPartition, Records] = {}
        misplaced = self.misplaced
        for tp in list(fetcher._records):
            if partitions and tp not in partitions:
                if not fetcher._subscriptions.is_assigned(tp):
                    del fetcher._records[tp]
                continue
            if tp in misplaced or self._rests(tp):
                continue
            found = fetcher._records[tp]
            try:
                records = _read(tp, found, limit)
            except Exception as error:  # noqa: BLE001 - whatever a batch does to its decoder
                # It stays where it is, so that the fetcher does not ask again before its time.
                self._failed(tp, typed_line(error))
                continue
            if not found.has_more():
                self._release(tp)
            self._recovered(tp)
            if records:
                taken[tp] = records
                limit -= len(records)
                if limit <= 0:
                    break
        return taken

    @property
    def misplaced(self) -> frozenset[TopicPartition]:
        """Partitions whose log has nothing at the offset where they are to be read."""
        return frozenset(
            tp
            for tp, found in self._consumer._fetcher._records.items()
            if isinstance(found, FetchError) and isinstance(found._error, _NOWHERE)
        )

    def position(self, tp: TopicPartition) -> int:
        """Offset of the record that is to be given next; -1: not known yet."""
        state = self._consumer._subscription.subscription.assignment.state_value(tp)
        return int(state.position) if state.has_valid_position else -1

    def epoch(self, tp: TopicPartition, offset: int) -> int:
        """Epoch of the leader that took the record at an offset fetched lately; -1: not known.

        Where there were too many to remember, a later one: it would only hide a loss, where an
        earlier one would make it seem that there was one.
        """
        epochs = self._epochs.get(tp, [])
        found = [epoch for first, epoch in epochs if first <= offset] or [e for _, e in epochs[:1]]
        return found[-1] if found else -1

    def _rests(self, tp: TopicPartition) -> bool:
        """Whether what was fetched is known to be bad; after a while it is fetched again."""
        failure = self.failures.get(tp)
        if failure is None or self._consumer._fetcher._records[tp]._created > failure.at:
            return False
        if time.monotonic() >= failure.at + RETRY_S:
            self._release(tp)
        return True

    def _release(self, tp: TopicPartition) -> None:
        """Let the fetcher ask for the partition again."""
        fetcher = self._consumer._fetcher
        del fetcher._records[tp]
        fetcher._notify(fetcher._wait_consume_future)

    def _failed(self, tp: TopicPartition, error: str, *, refused: bool = False) -> None:
        before, now = self.failures.get(tp), time.monotonic()
        if before is not None and now < before.at + RETRY_S:
            return
        times = 1 if before is None else before.times + 1
        failure = Failure(self.position(tp), error, times, now, refused)
        self.failures = self.failures | {tp: failure}

    def _recovered(self, tp: TopicPartition) -> None:
        if tp in self.failures:
            self.failures = {other: why for other, why in self.failures.items() if other != tp}

    async def _send(self, node_id: int, request: Any, **options: Any) -> Any:
        if not isinstance(request, FetchRequest):
            return await self._ask(node_id, request, **options)
        ids = self.ids
        pace = self._paces.setdefault(node_id, Pace(time.monotonic()))
        request._min_bytes = pace.least_bytes
        answer = await fetch_by_id(self._ask, node_id, request, ids)
        if ids is not self.ids:  # what comes of another topic by now may look as if it followed
            answer.topics = []
        size = 0
        for topic, parts in answer.topics:
            for partition, code, _, *_, records in parts:
                tp = TopicPartition(topic, partition)
                if code:
                    self._refused(tp, for_code(code))
                else:
                    if tp in self.failures and self.failures[tp].refused:
                        self._recovered(tp)
                    self._note_epochs(tp, records or b"")
                    size += len(records or b"")
        pace.gave(size, time.monotonic())
        return answer

    def _refused(self, tp: TopicPartition, error: type[Exception]) -> None:
        """Note that the broker gave an error in the place of records, which aiokafka only logs."""
        if error not in _NOWHERE and self._consumer._subscription.is_assigned(tp):
            self._failed(tp, error.__name__, refused=True)

    def _note_epochs(self, tp: TopicPartition, records: bytes) -> None:
        """Note in which epochs of its leaders the batches were taken."""
        epochs = self._epochs.setdefault(tp, [])
        at, size = 0, len(records)
        while at + _MAGIC_AT < size:
            base, length, epoch = _BATCH.unpack_from(records, at)
            if records[at + _MAGIC_AT] < 2:  # Kafka's formats before 0.11 have no epochs
                return
            while epochs and epochs[-1][0] > base:
                epochs.pop()
            if not epochs or epochs[-1][1] != epoch:
                epochs.append((base, epoch))
            at += _LENGTH_ENDS + length
        del epochs[:-EPOCH_CHANGES]


def _read(tp: TopicPartition, found: Any, limit: int) -> Records:
    """What aiokafka would give of a partition, but what precedes a bad batch is given, too."""
    if isinstance(found, FetchError):
        found.check_raise()
    assert isinstance(found, FetchResult)
    if not found.check_assignment(tp) or not found.has_more():
        return []
    source = found._partition_records
    if not hasattr(source, "parts"):
        # Kept with what was fetched, since a generator that has failed goes on no more: asked again
        # it ends, and the bad batch is fetched again, not passed over.
        source.parts = _parts(source)
        next(source.parts)
    records: Records = []
    try:
        while len(records) < limit:
            records += source.parts.send(limit - len(records))
    except StopIteration:
        found._partition_records = None
    except Exception:
        if not records:
            raise
        found._partition_records = None  # what it is, the next fetch tells, which begins there
    finally:
        found._assignment.state_value(tp).consumed_to(source.next_fetch_offset)
    return records


def _parts(source: PartitionRecords) -> Generator[Records, int, None]:
    """What was fetched of a partition, less what nobody should see, in parts of one batch of the
    log each, or less. Sent is how many records the next may have.

    It goes through batches as aiokafka's own iterator does, which makes one more object of every
    record, and takes four times as long.
    """
    room = yield []
    while source._records.has_next():
        batch = source._records.next_batch()
        if source._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"Invalid CRC - {source._tp}")
        records: Records = [] if _is_hidden(source, batch) else list(batch)
        # The first batch may begin before the offset that was asked for.
        if records and records[0].offset < source.next_fetch_offset:
            records = [one for one in records if one.offset >= source.next_fetch_offset]
        while len(records) > room:
            part, records = records[:room], records[room:]
            source.next_fetch_offset = records[0].offset
            room = yield part
        source.next_fetch_offset = batch.next_offset
        room = yield records


def _is_hidden(source: PartitionRecords, batch: Any) -> bool:
    """Whether a batch is a marker of the brokers, or of a transaction that was aborted."""
    if source._isolation_level == READ_COMMITTED and batch.producer_id is not None:
        source._consume_aborted_up_to(batch.base_offset)
        if batch.is_control_batch and source._contains_abort_marker(batch):
            source._aborted_producers.discard(batch.producer_id)
        if batch.is_transactional and batch.producer_id in source._aborted_producers:
            return True
    return bool(batch.is_control_batch)
