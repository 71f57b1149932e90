"""Harm done to a Kafka: log tails lost, batches spoilt, transactions left open or taken back."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.settings import Settings
from tests.streaming.running import PATIENCE_S

_BATCH = struct.Struct(">qi")
_RECORDS_AT = 61


@contextmanager
def stopped(kafka: LocalKafka) -> Iterator[None]:
    """The broker is down meanwhile."""
    kafka.stop()
    try:
        yield
    finally:
        kafka.start()


def lose_tail(kafka: LocalKafka, settings: Settings, offset: int, partition: int = 0) -> None:
    """Let a stopped broker lose a partition's batches from the one with that offset on."""
    log, batches = _batches(kafka, settings, partition)
    content = log.read_bytes()
    keep = next(at for at, first in batches if first >= offset)
    log.write_bytes(content[:keep])
    for index in log.parent.glob("*index"):
        index.unlink()


def spoil_batch(kafka: LocalKafka, settings: Settings, offset: int, partition: int = 0) -> bytes:
    """Damage the batch with that offset in a stopped broker's log; the log as it was."""
    log, batches = _batches(kafka, settings, partition)
    content = log.read_bytes()
    at = next(at for at, first in batches if first >= offset) + _RECORDS_AT
    log.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    return content


def mend_log(kafka: LocalKafka, settings: Settings, content: bytes, partition: int = 0) -> None:
    """Put a stopped broker's log back."""
    _batches(kafka, settings, partition)[0].write_bytes(content)


def delete_records(settings: Settings, before: int, partition: int = 0) -> None:
    """Let Kafka remove records as retention would."""
    admin = AdminClient({"bootstrap.servers": settings.broker.bootstrap})
    wanted = TopicPartition(settings.broker.topic, partition, before)
    for done in admin.delete_records([wanted], request_timeout=PATIENCE_S).values():
        done.result()


def transactional(settings: Settings) -> Producer:
    """A producer of transactions."""
    config = producer_config(settings.broker) | {"transactional.id": uuid.uuid4().hex}
    producer = Producer(config)
    producer.init_transactions(PATIENCE_S)
    return producer


def send_in_transaction(
    producer: Producer, settings: Settings, events: Iterable[tuple[str, bytes]]
) -> int:
    """Begin a transaction, and send events in it; returns how many."""
    producer.begin_transaction()
    count = 0
    for count, (key, value) in enumerate(events, start=1):  # noqa: B007 - the last one is the answer
        producer.produce(settings.broker.topic, value, key.encode())
    assert producer.flush(PATIENCE_S) == 0
    return count


def _batches(
    kafka: LocalKafka, settings: Settings, partition: int
) -> tuple[Path, list[tuple[int, int]]]:
    """A partition's only segment, and where each of its batches lies and with which offset."""
    folder = kafka.directory / "data" / f"{settings.broker.topic}-{partition}"
    (log,) = folder.glob("*.log")
    content = log.read_bytes()
    found, at = [], 0
    while at + _BATCH.size <= len(content):
        first, length = _BATCH.unpack_from(content, at)
        found.append((at, first))
        at += _BATCH.size + length
    return log, [*found, (at, 2**63 - 1)]
