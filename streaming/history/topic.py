"""A topic from its beginning, up to where it ended when a job began, as an input of the job."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import pyarrow as pa
import xxhash
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from infra.errors import BrokerError, one_line
from infra.kafka.admin import topic_partitions
from infra.kafka.clients import bootstrap_of, client_config
from infra.schema_registry import SchemaRegistry
from infra.settings import Settings
from streaming.events.decoder import Decoded, EventDecoder
from streaming.history.packing import Packed

ANSWER_S: Final = 20.0
"""Time in which Kafka must answer."""

AT_ONCE: Final = 10_000
"""Records decoded at once."""

log: Final = logging.getLogger(f"{__name__}.client")


class TopicInput:
    """The events that the settings' topic holds when this is made, partition after partition.

    They are read as workers read them, and what is no event is counted in `skipped`; its letter is
    the worker's to send. No group is joined and nothing committed.
    """

    def __init__(self, settings: Settings, now_ms: int) -> None:
        """Ask where the topic's partitions end.

        Raises:
            BrokerError: Kafka cannot be asked, or there is no such topic.
        """
        broker = settings.broker
        self.name = f"topic {broker.topic}"
        self.identity = xxhash.xxh3_64_intdigest(self.name.encode())
        self.skipped = 0
        self._bootstrap = bootstrap_of(broker)
        self._topic = broker.topic
        self._config = client_config(broker) | {
            "group.id": f"{broker.group}-history",  # asked for by the client, and never joined
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
        self._decoder = EventDecoder(settings.events, SchemaRegistry(settings.registry))
        self._now_ms = now_ms
        self._ends: dict[int, int] = {}
        self.rows = 0
        with closing(self._consumer()) as consumer:
            partitions = topic_partitions(broker, broker.topic)
            if not partitions:
                raise BrokerError(
                    f"there is no topic {broker.topic!r} at {self._bootstrap}: name it"
                )
            for number in range(partitions):
                begin, end = self._bounds(consumer, number)
                self._ends[number] = end
                self.rows += end - begin

    def events(self) -> Iterator[tuple[Packed, float]]:
        read = 0
        with closing(self._consumer()) as consumer:
            for number in self._ends:
                for messages in self._messages(consumer, number):
                    read += len(messages)
                    decoded = self._decoded(messages)
                    self.skipped += sum(reject.events for reject in decoded.rejects)
                    users = pa.array(decoded.users, pa.string()).take(pa.array(decoded.user_of))
                    packed = Packed(users, decoded.behaviors, decoded.event_keys)
                    yield packed, min(1.0, read / max(1, self.rows))

    def _decoded(self, messages: Sequence[Message]) -> Decoded:
        headers = None
        if self._decoder.reads_headers:
            headers = [message.headers() or [] for message in messages]
        return self._decoder.decode(
            [message.offset() for message in messages],
            [message.key() for message in messages],
            [message.value() for message in messages],
            self._now_ms,
            headers,
        )

    def _messages(self, consumer: Consumer, number: int) -> Iterator[list[Message]]:
        """A partition's records up to its end, some at a time."""
        end, next_offset = self._ends[number], 0
        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING)])
        deadline = time.monotonic() + ANSWER_S
        while next_offset < end:
            try:
                messages = consumer.consume(AT_ONCE, 1.0)
            except KafkaException as error:
                raise self._failed(error.args[0]) from error
            found = []
            for message in messages:
                failure = message.error()
                if failure is not None:
                    if failure.code() != KafkaError._PARTITION_EOF:
                        raise self._failed(failure)
                    if message.partition() == number:
                        next_offset = end  # what follows is of transactions that are not done
                    continue
                offset = message.offset()
                if offset < end:
                    found.append(message)
                next_offset = max(next_offset, offset + 1)
            if found:
                yield found
            if messages:
                deadline = time.monotonic() + ANSWER_S
            elif time.monotonic() > deadline:
                raise self._failed(f"partition {number} gives nothing from {next_offset} on")

    def _bounds(self, consumer: Consumer, number: int) -> tuple[int, int]:
        try:
            found: tuple[int, int] = consumer.get_watermark_offsets(
                TopicPartition(self._topic, number), ANSWER_S
            )
        except KafkaException as error:
            raise self._failed(error.args[0]) from error
        return found

    def _consumer(self) -> Consumer:
        return Consumer(self._config, logger=log)

    def _failed(self, cause: Any) -> BrokerError:
        told = cause.str() if isinstance(cause, KafkaError) else cause
        return BrokerError(
            f"topic {self._topic!r} cannot be read from Kafka at {self._bootstrap}:"
            f" {one_line(told)}; check broker.bootstrap and that it runs"
        )
