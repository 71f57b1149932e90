"""Letters of the dead-letter topic (`streaming.dead_letters`): read, counted, and sent again once
what was wrong is put right.

How far letters of a reason were sent again is what a consumer group of that reason has committed,
in the transaction that sends them: so each goes once, however often it is asked for and wherever it
is interrupted. What is refused again comes back as another letter, and is sent again the next time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from infra.errors import BrokerError, one_line
from infra.kafka.admin import require_topic, topic_partitions
from infra.kafka.clients import bootstrap_of, client_config, producer_config
from infra.settings import BrokerSettings
from streaming.dead_letters import HEADER, place_key

ANSWER_S: Final = 20.0
"""Time in which Kafka must answer, or have a transaction."""

AT_ONCE: Final = 1000
"""Letters sent again in one transaction."""

AGAIN: Final = "dead-letter"
"""Header of what was sent again, with the letter that it was."""

log: Final = logging.getLogger(f"{__name__}.client")


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int


class Letter(NamedTuple):
    """An event that was refused."""

    at: Place
    """In the dead-letter topic."""
    source: Place
    """Where it came from."""
    reason: str
    detail: str
    """One line for people."""
    timestamp: int
    """When it was sent at first, ms since epoch."""
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    """Its own, as they were sent."""
    cut: bool
    """Whether key, value or headers are not whole, since the topic did not take them."""
    own_key: bytes | None
    """Its own in the dead-letter topic, of which a tombstone takes it away. The record's, and so
    that of other letters, too, where a worker of an earlier version has written it; None: none."""


class Replayed(NamedTuple):
    """What became of letters that were to be sent again."""

    sent: int
    cut: int
    """Not whole, so that there was nothing to send."""
    repeated: int
    """Letters of an event that another one was of, as comes of a worker that is killed."""


def letters(broker: BrokerSettings) -> Iterator[Letter]:
    """All letters that are there, of each partition in their order.

    Raises:
        BrokerError: Kafka cannot be reached, or the topic is not there.
    """
    with _reading(broker, f"{broker.group}-deadletters") as reading:
        for partition in reading.partitions:
            for some in reading.of(partition, OFFSET_BEGINNING):
                yield from some


def sent_again(broker: BrokerSettings, reason: str) -> dict[int, int]:
    """The offset, by partition, up to which letters of a reason were sent again."""
    with _reading(broker, _group(broker, reason)) as reading:
        return reading.committed()


def send_again(broker: BrokerSettings, reason: str, *, most: int | None = None) -> Replayed:
    """Send the events of a reason again to where they came from, each once.

    Args:
        most: how many, at most; None: all that are there now.

    Raises:
        BrokerError: Kafka cannot be reached, or refuses. What was sent is not sent again.
    """
    done = Replayed(0, 0, 0)
    seen: set[Place] = set()
    group = _group(broker, reason)
    with _reading(broker, group) as reading:
        producer = Producer(producer_config(broker) | {"transactional.id": group}, logger=log)
        # Before it is asked how far another one came, which is ended by this.
        producer.init_transactions(ANSWER_S)
        begin = reading.committed()
        for partition in reading.partitions:
            for some in reading.of(partition, begin.get(partition, OFFSET_BEGINNING)):
                sent: list[Letter] = []
                cut = repeated = 0
                offset = some[0].at.offset
                for letter in some:
                    if most is not None and done.sent + len(sent) >= most:
                        break
                    offset = letter.at.offset + 1
                    if letter.reason != reason:
                        continue
                    if letter.source in seen:
                        repeated += 1
                    elif letter.cut:
                        cut += 1
                    else:
                        sent.append(letter)
                    seen.add(letter.source)
                reading.send(producer, sent, partition, offset)
                done = Replayed(done.sent + len(sent), done.cut + cut, done.repeated + repeated)
                if most is not None and done.sent >= most:
                    return done
    return done


def holds_removed(broker: BrokerSettings) -> bool:
    """Whether Kafka still has letters that a tombstone takes away.

    Raises:
        BrokerError: Kafka cannot be reached, or the topic is not there.
    """
    with _told(broker):
        return _tombstones(broker).waiting


@dataclass(slots=True)
class _Tombstones:
    """What takes letters away."""

    offsets: dict[tuple[int, bytes | None], int] = field(default_factory=dict)
    """Of the last one, by partition and key."""
    waiting: bool = False
    """Whether there are letters before one."""


def _tombstones(broker: BrokerSettings) -> _Tombstones:
    """All that are there. Read by a consumer of its own: assigned one partition twice, librdkafka
    (2.12) ends the process.
    """
    topic = broker.dead_letter_topic
    places = range(topic_partitions(broker, topic))
    config = _config(broker, f"{broker.group}-deadletters") | {"enable.partition.eof": True}
    found, letters, ended = _Tombstones(), set(), set[int]()
    with closing(Consumer(config, logger=log)) as consumer:
        consumer.assign([TopicPartition(topic, place, OFFSET_BEGINNING) for place in places])
        while len(ended) < len(places):
            message = consumer.poll(ANSWER_S)
            if message is None:
                raise BrokerError(f"topic {topic} is not read on: no answer for {ANSWER_S:g} s")
            place, error = message.partition() or 0, message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            if error is not None:
                ended.add(place)
            elif not _is_tombstone(message):
                letters.add((place, message.key()))
            else:
                found.offsets[place, message.key()] = message.offset() or 0
                found.waiting |= (place, message.key()) in letters
    return found


class _Reading:
    """The dead-letter topic, read by one group."""

    def __init__(self, broker: BrokerSettings, consumer: Consumer) -> None:
        self._broker = broker
        self._topic = broker.dead_letter_topic
        self._consumer = consumer
        self.partitions = range(topic_partitions(broker, self._topic))

    @cached_property
    def _removed(self) -> _Tombstones:
        return _tombstones(self._broker)

    def of(self, partition: int, begin: int) -> Iterator[list[Letter]]:
        """A partition's letters from an offset on, to what is its end now, some at a time; without
        those that a tombstone takes away.
        """
        taken = self._removed.offsets
        for found in self._messages(partition, begin):
            some = [_letter(message) for message in found if not _is_tombstone(message)]
            some = [one for one in some if one.at.offset >= taken.get((partition, one.own_key), 0)]
            if some:
                yield some

    def _messages(self, partition: int, begin: int) -> Iterator[list[Message]]:
        """A partition's messages from an offset on, to what is its end now, some at a time."""
        at = TopicPartition(self._topic, partition)
        first, end = self._consumer.get_watermark_offsets(at, ANSWER_S)
        at.offset = begin = max(begin, first)
        self._consumer.assign([at])
        silent = 0
        while (position := self._position(at, begin)) < end:
            found = self._consumer.consume(min(AT_ONCE, end - position), 1.0)
            silent = 0 if found else silent + 1
            if silent > ANSWER_S:
                raise BrokerError(
                    f"topic {self._topic} is not read on: no answer for {ANSWER_S:g} s"
                )
            for message in found:
                if (error := message.error()) is not None:
                    raise KafkaException(error)
            if found:
                yield found

    def committed(self) -> dict[int, int]:
        """How far the group has come, by partition; without those that it has not begun."""
        asked = [TopicPartition(self._topic, partition) for partition in self.partitions]
        return {
            one.partition: one.offset
            for one in self._consumer.committed(asked, ANSWER_S)
            if one.offset >= 0
        }

    def send(self, producer: Producer, some: list[Letter], partition: int, offset: int) -> None:
        """Send letters to where they came from and note that the group has come to an offset; both
        or neither.
        """
        producer.begin_transaction()
        for letter in some:
            topic, key, value = letter.source.topic, letter.key, letter.value
            producer.produce(
                topic, value, key, timestamp=letter.timestamp, headers=_headers(letter)
            )
        producer.send_offsets_to_transaction(
            [TopicPartition(self._topic, partition, offset)],
            self._consumer.consumer_group_metadata(),
            ANSWER_S,
        )
        producer.commit_transaction(ANSWER_S)

    def _position(self, at: TopicPartition, begin: int) -> int:
        """The offset that is read next."""
        (now,) = self._consumer.position([at])
        return max(int(now.offset), begin)


@contextmanager
def _reading(broker: BrokerSettings, group: str) -> Iterator[_Reading]:
    with _told(broker), closing(Consumer(_config(broker, group), logger=log)) as consumer:
        yield _Reading(broker, consumer)


def _config(broker: BrokerSettings, group: str) -> dict[str, Any]:
    return client_config(broker) | {
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": False,
    }


@contextmanager
def _told(broker: BrokerSettings) -> Iterator[None]:
    """See that the topic is there, and have what fails be a `BrokerError`."""
    require_topic(broker, broker.dead_letter_topic)
    try:
        yield
    except KafkaException as error:
        raise BrokerError(
            f"dead letters of {broker.dead_letter_topic} at {bootstrap_of(broker)}:"
            f" {one_line(error)}; what was sent again is not sent again"
        ) from error


def _group(broker: BrokerSettings, reason: str) -> str:
    return f"{broker.group}-deadletters-{reason}"


def _headers(letter: Letter) -> list[tuple[str, str | bytes | None]]:
    """Of an event that is sent again: its own, and which letter it was."""
    again = f"{letter.reason} {letter.at.partition} {letter.at.offset}"
    return [*(one for one in letter.headers if one[0] != AGAIN), (AGAIN, again)]


def _letter(message: Message) -> Letter:
    found = message.headers() or []
    headers = {name: value or b"" for name, value in found if not name.startswith(HEADER)}

    def text(name: str) -> str:
        value = headers.get(name, b"")
        return value if isinstance(value, str) else value.decode("utf-8", "replace")

    def number(name: str) -> int:
        return int(text(name)) if text(name).isdigit() else -1

    source = Place(text("topic"), number("partition"), number("offset"))
    key, value = message.key(), message.value()
    if key == place_key(
        *source, text("reason")
    ):  # otherwise of an earlier version, and both are the record's
        key = _bytes(headers.get("key"))
        value = None if "no_value" in headers else value
    return Letter(
        Place(str(message.topic()), message.partition() or 0, message.offset() or 0),
        source,
        text("reason") or "unknown",
        text("detail"),
        max(0, number("timestamp")),
        key,
        value,
        [
            (name.removeprefix(HEADER), value.encode() if isinstance(value, str) else value)
            for name, value in found
            if name.startswith(HEADER)
        ],
        any(name.startswith("original_") for name in headers),
        message.key(),
    )


def _bytes(header: str | bytes | None) -> bytes | None:
    return header.encode() if isinstance(header, str) else header


def _is_tombstone(message: Message) -> bool:
    """Whether it takes letters away; a letter has a reason."""
    return message.value() is None and not message.headers()
