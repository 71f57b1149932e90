"""A file of behavior events to Kafka, at a chosen pace.

Events go out as JSON in our own shape, keyed by their user. An event that carries no id gets one
that its file and row determine, so that one sent twice is recognised downstream, where it comes
again within `infra.records.RECENT_EVENTS` of its user. A replay that is repeated as a whole is not:
it goes on from its position instead, or is a history (`streaming.history`).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, Producer

from infra.behaviors import ActionNames
from infra.errors import BrokerError, SourceError, one_line
from infra.files import replacing
from infra.kafka.admin import no_topic
from infra.settings import EventSettings
from streaming.files.batches import Column, EventBatch
from streaming.files.formats.text import Text
from streaming.files.reader import EventFile, OnBad

READ_ROWS: Final = 8192
READ_TEXT: Final = 1 << 20
"""Read at a time: so little that reading never shows in the pace."""

SLICE: Final = 2048
"""Most events handed over at once, so that a stop is obeyed soon."""

TICK_S: Final = 0.002
"""Shortest pause: at high rates a few events go out together rather than one a wake-up."""

CATCH_UP_S: Final = 1.0
"""How far a paced replay may fall behind and still make up for it. Beyond, the rest comes later:
a broker that was away is not met by a flood."""

IN_FLIGHT: Final = 100_000
"""Events that librdkafka may hold unconfirmed. Its queue takes more, so that it never refuses one
in the middle of a batch, which would change the order of a user's events."""

CHECKPOINT_S: Final = 2.0
"""How often everything is confirmed, the position kept."""

FLUSH_S: Final = 30.0
STOP_FLUSH_S: Final = 5.0
"""How long unconfirmed events are waited for at the end, and when asked to stop."""

DELIVERY_S: Final = 120.0
"""How long a broker that is away is waited for before an event counts as failed. Long enough for
a restart; longer would only delay the news."""

log = logging.getLogger(__name__)


class BehaviorEvent(msgspec.Struct, omit_defaults=True):
    """One event as it stands on the topic, in JSON."""

    event_id: str
    user_id: str
    item_id: str
    action: str
    event_time: int
    """ms since epoch, UTC."""
    category_id: str | None = None
    dwell_ms: int = 0
    source: str | None = None


_encode: Final = msgspec.json.Encoder().encode

Message = dict[str, Any]
"""What `confluent_kafka.Producer.produce_batch` takes: ``key`` and ``value``."""


class EventProducer:
    """Sends events to one topic, and knows whether each of them arrived.

    A thin layer over confluent-kafka: keys are placed where the Java and aiokafka clients place
    them, every event is acknowledged by all replicas, none is sent twice, and those of a user stay
    in order. As a context manager it ends with `close`.

    Args:
        config: configuration of a confluent-kafka producer, `infra.kafka.clients.producer_config`.
        topic: where to.
    """

    def __init__(self, config: Mapping[str, Any], topic: str) -> None:
        self.topic = topic
        self.sent = 0
        """Events handed over."""
        self.failed = 0
        """Events known not to have arrived."""
        self._failure: str | None = None
        self._bootstrap = str(config.get("bootstrap.servers", "the broker"))
        wanted = {
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "acks": "all",
            # A callback for each success would halve the speed; what has left the queue without
            # an error has arrived.
            "delivery.report.only.error": True,
            "queue.buffering.max.messages": 2 * IN_FLIGHT,
        }
        patience = {"delivery.timeout.ms": int(DELIVERY_S * 1000)}
        self._producer = Producer({**patience, **config, **wanted}, logger=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:  # whatever ended the caller matters more than what did not arrive
            self.flush(STOP_FLUSH_S)

    @property
    def full(self) -> bool:
        """Whether handing over more would wait for confirmations first."""
        return len(self._producer) > IN_FLIGHT - SLICE

    @property
    def waiting(self) -> int:
        """Events of which nothing is known yet."""
        # The client counts its log lines that wait to be told as well, so they are told first.
        self._producer.poll(0)
        return min(len(self._producer), self.sent - self.failed)

    @property
    def delivered(self) -> int:
        """Events confirmed by the broker."""
        return self.sent - self.waiting - self.failed

    def check(self, timeout_s: float = 5.0) -> int:
        """The topic's number of partitions.

        Raises:
            BrokerError: the broker does not answer, or has no such topic. (Sending would only
                fail after minutes.)
        """
        try:
            topics = self._producer.list_topics(timeout=timeout_s).topics
        except KafkaException as error:
            raise BrokerError(
                f"Kafka at {self._bootstrap} does not answer: {_reason(error)};"
                " check broker.bootstrap and that it runs"
            ) from error
        if self.topic not in topics:
            raise no_topic(self._bootstrap, self.topic, topics)
        return len(topics[self.topic].partitions)

    def send(self, event: BehaviorEvent) -> None:
        """Hand over one event; waits only while too many are unconfirmed."""
        self.send_messages([{"key": event.user_id.encode(), "value": _encode(event)}])

    def send_messages(self, messages: list[Message]) -> None:
        """Hand over encoded events, in order.

        Raises:
            BrokerError: the producer cannot go on.
        """
        producer = self._producer
        while len(producer) + len(messages) > IN_FLIGHT and len(producer):
            producer.poll(0.01)
        try:
            taken = producer.produce_batch(self.topic, messages, on_delivery=self._report)
        except (KafkaException, BufferError) as error:
            raise BrokerError(f"events cannot be sent to {self.topic!r}: {error}") from error
        self.sent += len(messages)
        if taken != len(messages):
            for message in messages:
                if "_error" in message:
                    self._report(message["_error"], None)
        producer.poll(0)

    def poll(self, timeout_s: float) -> None:
        """Take note of what arrived or failed, for so long."""
        self._producer.poll(timeout_s)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every event has arrived or failed; whether that came within the time."""
        return int(self._producer.flush(timeout_s)) == 0

    def close(self) -> None:
        """Wait for the last confirmations.

        Raises:
            BrokerError: some events did not arrive; the message counts them.
        """
        self.flush(FLUSH_S)
        self.check_deliveries()

    def check_deliveries(self) -> None:
        """Raise BrokerError if an event is known not to have arrived or is still unconfirmed."""
        waiting = self.waiting
        if self.failed or waiting:
            cause = self._failure or "no answer"
            raise BrokerError(
                f"{self.failed + waiting} of {self.sent} events were not confirmed by Kafka at"
                f" {self._bootstrap}, topic {self.topic!r}: {cause}; send"
                " them again when it is well"
            )

    def _report(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self.failed += 1
            self._failure = self._failure or one_line(error.str())


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """Where a replay stands. The counts are of this run alone."""

    sent: int
    """Events handed to the Kafka client."""
    delivered: int
    """Events confirmed by Kafka."""
    skipped: int
    """Rows that are no events."""
    next_row: int
    """Where a resumed run goes on: the row after the last one handed over."""
    fraction: float
    """How much of the file has been read, 0 to 1."""
    finished: bool
    """Whether the whole file was sent and confirmed."""


def replay(
    path: Path | str,
    config: Mapping[str, Any],
    topic: str,
    mapping: EventSettings | None = None,
    *,
    rate: float = 0.0,
    speed: float = 0.0,
    on_bad: OnBad = "stop",
    text: Text | None = None,
    position: Path | None = None,
    on_progress: Callable[[ReplayProgress], None] | None = None,
    stop: threading.Event | None = None,
) -> ReplayProgress:
    """Send the events of a file to a topic, in the file's order.

    Args:
        path: the file (see `streaming.files.reader.EventFile`).
        config: of the producer, `infra.kafka.clients.producer_config`.
        topic: where to.
        mapping: which column holds which of our fields.
        rate: events per second, evenly; 0: as fast as it goes.
        speed: instead of ``rate``: keep the events' own spacing in time, so many times faster.
        on_bad: whether a row that is no event stops the replay or is skipped and counted.
        text: how text files are written; default: in UTF-8, with commas.
        position: a small file that keeps how far the replay came; one that exists is gone on from.
        on_progress: called several times a second at most.
        stop: when set, the replay ends soon, with everything sent confirmed.

    Raises:
        SourceError: the file cannot be read, a row is no event, or the position is another file's.
        BrokerError: Kafka cannot be reached, or events were not confirmed; the position kept is
            then the last at which all of them were.
    """
    stop = stop or threading.Event()
    file = EventFile(
        path, mapping, on_bad=on_bad, text=text, batch_rows=READ_ROWS, text_block=READ_TEXT
    )
    bookmark = _Bookmark(position, file, topic)
    pacer = _pacer(rate, speed)
    producer = EventProducer(config, topic)
    producer.check()
    run = _Run(file, producer, bookmark, on_progress)
    try:
        for batch in file.batches(bookmark.next_row):
            if not run.send(batch, pacer, stop):
                break
        else:
            run.fraction = 1.0
    finally:  # also when reading failed or the caller was interrupted: keep what arrived
        run.confirm(FLUSH_S if run.fraction == 1.0 else STOP_FLUSH_S)
    producer.check_deliveries()
    return run.progress(finished=run.fraction == 1.0)


class _Run:
    """One replay under way."""

    def __init__(
        self,
        file: EventFile,
        producer: EventProducer,
        bookmark: _Bookmark,
        on_progress: Callable[[ReplayProgress], None] | None,
    ) -> None:
        self.fraction = 0.0
        self._file = file
        self._producer = producer
        self._bookmark = bookmark
        self._on_progress = on_progress
        self._next_row = bookmark.next_row
        self._checkpoint = time.monotonic() + CHECKPOINT_S
        self._told = 0.0

    def send(self, batch: EventBatch, pacer: Pacer, stop: threading.Event) -> bool:
        """Send a batch in slices as they become due; False when stopped, or an event failed."""
        messages = encode_batch(batch, self._file.identity, self._file.actions)
        at = 0
        while at < len(messages):
            if stop.is_set() or self._producer.failed:
                return False
            if self._producer.full:
                self._producer.poll(TICK_S)
                continue
            now = time.monotonic()
            ready = min(SLICE, pacer.ready(now, batch.times[at:]))
            if ready == 0:
                stop.wait(max(TICK_S, pacer.pause(now)))
                continue
            self._producer.send_messages(messages[at : at + ready])
            at += ready
            self._next_row = int(batch.rows[at - 1]) + 1
            self._tell(now)
        self._next_row = batch.next_row
        if batch.fraction < 1.0:  # the last batch is told when all of it is confirmed
            self.fraction = batch.fraction
        return True

    def confirm(self, timeout_s: float) -> None:
        """Keep the position if everything sent so far has arrived."""
        if self._producer.flush(timeout_s) and not self._producer.failed:
            self._bookmark.keep(self._next_row)

    def progress(self, *, finished: bool = False) -> ReplayProgress:
        return ReplayProgress(
            sent=self._producer.sent,
            delivered=self._producer.delivered,
            skipped=self._file.skipped.total(),
            next_row=self._next_row,
            fraction=self.fraction,
            finished=finished,
        )

    def _tell(self, now: float) -> None:
        if now >= self._checkpoint:
            self.confirm(CHECKPOINT_S)
            self._checkpoint = time.monotonic() + CHECKPOINT_S
        if self._on_progress is not None and now >= self._told + 0.1:
            self._told = now
            self._on_progress(self.progress())


def encode_batch(batch: EventBatch, identity: int, actions: ActionNames) -> list[Message]:
    """The batch's events as messages.

    Args:
        identity: the file's, for events without an id.
        actions: those whose codes the batch has.
    """
    prefix = f"{identity:016x}-"
    rows = batch.rows.tolist()
    users: list[str] = batch.users.to_pylist()
    ids = [prefix + str(row) for row in rows]
    if batch.event_ids is not None:
        given = batch.event_ids.to_pylist()
        ids = [theirs or ours for theirs, ours in zip(given, ids, strict=True)]
    names = actions.names
    return [
        {
            "key": user.encode(),
            "value": _encode(
                BehaviorEvent(event_id, user, item, names[code - 1], ms, category, dwell, source)
            ),
        }
        for event_id, user, item, code, ms, category, dwell, source in zip(
            ids,
            users,
            batch.items.to_pylist(),
            batch.actions.tolist(),
            batch.times.tolist(),
            _optional(batch.categories, len(rows)),
            [0] * len(rows) if batch.dwells is None else batch.dwells.tolist(),
            _optional(batch.sources, len(rows)),
            strict=True,
        )
    ]


def _optional(column: Column | None, count: int) -> Sequence[str | None]:
    values: Sequence[str | None] = [None] * count if column is None else column.to_pylist()
    return values


class Pacer(Protocol):
    """When events are due. Times are seconds of a monotonic clock."""

    def ready(self, now: float, times: npt.NDArray[np.int64]) -> int:
        """How many of the next events, with these event times (ms), are due; counted as sent."""
        ...

    def pause(self, now: float) -> float:
        """Seconds until the next event is due, after `ready` gave 0."""
        ...


class Unpaced:
    """Everything is due at once."""

    def ready(self, now: float, times: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        return len(times)

    def pause(self, now: float) -> float:  # noqa: ARG002
        return 0.0


class RatePacer:
    """So many events per second, evenly."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next: float | None = None

    def ready(self, now: float, times: npt.NDArray[np.int64]) -> int:
        due_at = now if self._next is None else max(self._next, now - CATCH_UP_S)
        count = min(len(times), SLICE, int((now - due_at) * self._rate) + 1) if now >= due_at else 0
        self._next = due_at + count / self._rate
        return count

    def pause(self, now: float) -> float:
        return 0.0 if self._next is None else max(0.0, self._next - now)


class SpeedPacer:
    """The events' own spacing in time, so many times faster. One that is earlier than its
    predecessor is due with it.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._begun: float | None = None
        self._first_ms = 0
        self._pause = 0.0

    def ready(self, now: float, times: npt.NDArray[np.int64]) -> int:
        if not len(times):
            return 0
        if self._begun is None:
            self._begun, self._first_ms = now, int(times[0])
        reached = self._first_ms + (now - self._begun) * 1000 * self._speed
        later = times[:SLICE] > reached
        count = int(np.argmax(later)) if later.any() else len(later)
        self._pause = (int(times[count]) - reached) / 1000 / self._speed if count == 0 else 0.0
        return count

    def pause(self, now: float) -> float:  # noqa: ARG002
        return self._pause


def _pacer(rate: float, speed: float) -> Pacer:
    if rate < 0 or speed < 0 or (rate and speed):
        raise SourceError(f"rate {rate} and speed {speed}: give one of them, above 0, or neither")
    if rate:
        return RatePacer(rate)
    return SpeedPacer(speed) if speed else Unpaced()


class _Bookmark:
    """The position of a replay of one file to one topic, in a small file of its own."""

    def __init__(self, path: Path | None, file: EventFile, topic: str) -> None:
        self.next_row = 0
        self._path = path
        self._whose = {"file": f"{file.identity:016x}", "topic": topic}
        if path is None:
            return
        try:
            kept = json.loads(path.read_bytes())
            self.next_row = int(kept.pop("next_row"))
            same = kept == self._whose
        except FileNotFoundError:
            return
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}; name another position file") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise SourceError(
                f"{path}: is not a position of a replay; remove it to begin at the first row"
            ) from error
        if not same:
            raise SourceError(
                f"{path}: is the position of another file or topic than {file.path} and {topic!r};"
                " remove it to begin at the first row"
            )

    def keep(self, next_row: int) -> None:
        self.next_row = next_row
        if self._path is None:
            return
        kept = json.dumps(self._whose | {"next_row": next_row})
        try:
            with replacing(self._path) as file:
                file.write(kept.encode())
        except OSError as error:
            raise SourceError(
                f"{self._path}: the position cannot be kept: {error.strerror}; name another file"
            ) from error


def _reason(error: KafkaException) -> str:
    cause = error.args[0] if error.args else error
    return one_line(cause.str() if isinstance(cause, KafkaError) else cause)
