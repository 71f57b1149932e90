"""The dead-letter topic: every event that was refused, with the reason, as it came.

A message there has the original payload, byte for byte, and these headers: ``reason``
(`streaming.events.rejects.Reason`), ``detail`` (one line for people), ``topic``, ``partition``,
``offset`` and ``timestamp`` (ms since epoch) of the original record and, where it had one, its
``key``; ``no_value`` where it had no payload. Its own headers follow, each after ``header.``. A
payload or key that exceeds what the topic takes is cut; then ``original_size`` (or
``original_key_size``) holds its bytes, as ``original_headers_size`` does where headers are too
large, and left out. Of a record of several events there is a letter for each reason, with the
events alone that were refused for it.

The message's own key is the place of the original record and the reason (`place_key`), so that a
tombstone can take one letter away, and no letter takes another's place, in a topic that is
compacted. Letters of one partition of events stay in their order.

Letters are delivered at least once: after a crash between delivery and acknowledgement the same
letter comes again, recognizable by its key.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.errors import BrokerError
from infra.kafka.clients import producer_config
from infra.settings import BrokerSettings

MAX_BYTES: Final = 900_000
"""Payload bytes kept. Kafka's default limit of a topic is 1,048,588 for the whole message; the
rest is for key and headers."""

MAX_KEY_BYTES: Final = 10_000
MAX_HEADER_BYTES: Final = 50_000
DETAIL_CHARS: Final = 500

HEADER: Final = "header."
"""Before the name of each of the record's own headers."""
COMPACTED_MS: Final = 86_400_000
"""Within so long after the next letter, a topic of ours is rid of those that were taken away."""

DELIVERY_TIMEOUT_S: Final = 20.0
"""Time for the broker to take a letter; then the caller is told and tries again."""

# A letter that the topic does not take even when cut to this was not refused for its size.
SMALLEST_BYTES: Final = 256


def place_key(topic: str, partition: int, offset: int, reason: str) -> bytes:
    """The key of a record's letter; one of several events may have a letter for each reason.

    >>> place_key("behaviors", 3, 17, "not_json")
    b'behaviors/3/17/not_json'
    """
    return f"{topic}/{partition}/{offset}/{reason}".encode()


def topic_settings(broker: BrokerSettings) -> dict[str, Any]:
    """What a dead-letter topic is created with, as `infra.kafka.admin.create_topic` takes it."""
    return {
        "retention_ms": round(1000 * broker.dead_letter_retention_s) or -1,
        # So that a letter can be taken away alone, of a user who is forgotten.
        "cleanup_policy": "compact,delete",
        "segment_ms": COMPACTED_MS,
        "max_compaction_lag_ms": COMPACTED_MS,
    }


class DeadLetter(NamedTuple):
    """A refused record."""

    key: bytes | None
    value: bytes | None
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    """Of the record, ms since epoch."""
    headers: Sequence[tuple[str, bytes | None]] = ()
    """Of the record."""


class DeadLetters(Protocol):
    """Where refused records go."""

    def send(self, letters: Sequence[DeadLetter]) -> None:
        """Deliver all letters; return when the broker has them. Blocks: call it in a thread.

        Raises:
            BrokerError: some were not delivered. Sending all of them again is safe.
        """
        ...

    def close(self) -> None:
        """Release the connection."""
        ...


class KafkaDeadLetters:
    """Dead letters on Kafka topics, through an idempotent producer.

    Args:
        broker: where they are.
        topics: those of dead letters by those of events; all others have broker.dead_letter_topic.
        max_bytes: payload bytes kept.
        timeout_s: time for the broker to take a letter.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        topics: Mapping[str, str] | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = DELIVERY_TIMEOUT_S,
    ) -> None:
        self._broker = broker
        self._topics = topics or {}
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._producer = self._connect()
        self._partitions: dict[str, int] = {}
        """Of the topics that were asked for it."""

    def _connect(self) -> Producer:
        settings = producer_config(self._broker) | {
            "message.timeout.ms": int(self._timeout_s * 1000),
            # The topic's own limit decides; librdkafka's must not come before it.
            "message.max.bytes": 10_000_000,
            # Well below any topic's limit, see `send`.
            "batch.size": 131_072,
        }
        return Producer(settings, logger=logging.getLogger(f"{__name__}.client"))

    def send(self, letters: Sequence[DeadLetter]) -> None:
        # Letters travel in batches, and a batch that is too large is refused as a whole. So each
        # letter of it goes alone, whole at first, then cut until the topic takes it.
        for letter in self._deliver(letters, self._max_bytes):
            limit = self._max_bytes
            while self._deliver([letter], limit):
                limit //= 2
                if limit < SMALLEST_BYTES:
                    raise BrokerError(
                        f"topic {self._topic_of(letter)} takes no message of {SMALLEST_BYTES}"
                        " bytes: raise its max.message.bytes"
                    )

    def close(self) -> None:
        self._producer.purge()
        self._producer.flush(1.0)

    def _topic_of(self, letter: DeadLetter) -> str:
        return self._topics.get(letter.topic, self._broker.dead_letter_topic)

    def _count_partitions(self, topic: str) -> int:
        try:
            found = self._producer.list_topics(topic, self._timeout_s).topics[topic]
        except KafkaException as error:
            raise self._failed(topic, error.args[0], "") from None
        if found.error is not None:
            raise self._failed(topic, found.error, "")
        return len(found.partitions)

    def _failed(self, topic: str, error: KafkaError, which: str) -> BrokerError:
        # It keeps the password and the certificate that it was made with, whose files may hold
        # others by now. All of its letters are reported.
        self._producer, self._partitions = self._connect(), {}
        return BrokerError(
            f"{which}dead letters not delivered to topic {topic} ({error.str()}): is it"
            " there, and may we write to it?"
        )

    def _deliver(self, letters: Sequence[DeadLetter], limit: int) -> list[DeadLetter]:
        """Send each letter once; returns those that were too large."""
        for topic in {self._topic_of(letter) for letter in letters} - self._partitions.keys():
            self._partitions[topic] = self._count_partitions(topic)
        too_large: list[DeadLetter] = []
        failures: list[tuple[str, KafkaError]] = []
        reported = 0

        def report(letter: DeadLetter, error: KafkaError | None) -> None:
            nonlocal reported
            reported += 1
            if error is None:
                return
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                too_large.append(letter)
            else:
                failures.append((self._topic_of(letter), error))

        for letter in letters:
            self._produce(letter, limit, report)
        while reported < len(letters):
            # Each letter is reported sooner or later: message.timeout.ms sees to it.
            self._producer.poll(0.1)
        if failures:
            raise self._failed(*failures[0], f"{len(failures)} of {len(letters)} ")
        return too_large

    def _produce(self, letter: DeadLetter, limit: int, report: Any) -> None:
        key, value = letter.key, letter.value
        headers: list[tuple[str, str | bytes | None]] = [
            ("reason", letter.reason),
            ("detail", letter.detail[:DETAIL_CHARS]),
            ("topic", letter.topic),
            ("partition", str(letter.partition)),
            ("offset", str(letter.offset)),
            ("timestamp", str(letter.timestamp)),
        ]
        size = sum(len(name) + len(of or b"") for name, of in letter.headers)
        if size > min(MAX_HEADER_BYTES, limit):
            headers.append(("original_headers_size", str(size)))
        else:
            headers += [(f"{HEADER}{name}", of) for name, of in letter.headers]
        if value is None:
            headers.append(("no_value", "1"))
            value = b""
        elif len(value) > limit:
            headers.append(("original_size", str(len(value))))
            value = value[:limit]
        if key is not None and len(key) > min(MAX_KEY_BYTES, limit):
            headers.append(("original_key_size", str(len(key))))
            key = key[: min(MAX_KEY_BYTES, limit)]
        if key is not None:
            headers.append(("key", key))
        place = place_key(letter.topic, letter.partition, letter.offset, letter.reason)
        topic = self._topic_of(letter)
        partition = letter.partition % self._partitions[topic]

        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            report(letter, error)

        while True:
            try:
                self._producer.produce(
                    topic, value, place, partition, on_delivery=on_delivery, headers=headers
                )
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                report(letter, error.args[0])
                return
            else:
                return
