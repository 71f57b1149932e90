"""What the tests of Kafka's modules do again and again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.errors import BrokerError
from infra.kafka.clients import client_config, producer_config


def one_line(error: pytest.ExceptionInfo[BrokerError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def produce(bootstrap: str, topic: str, keys: list[str]) -> dict[str, int]:
    """Send an event for each key; the partition where each of them landed."""
    producer = Producer(producer_config(bootstrap))
    landed: dict[str, int] = {}
    for key in keys:
        producer.produce(
            topic,
            key=key,
            value=key,
            on_delivery=lambda error, message: landed.update(
                {message.key().decode(): message.partition()} if error is None else {}
            ),
        )
    assert producer.flush(20) == 0
    return landed


def consume(bootstrap: str, topic: str, count: int) -> list[str]:
    """The first ``count`` values of partition 0."""
    consumer = Consumer(client_config(bootstrap) | {"group.id": "test"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        messages = consumer.consume(count, timeout=20)
        return [str(message.value(), "utf-8") for message in messages]
    finally:
        consumer.close()


def delete_topic(bootstrap: str, topic: str) -> None:
    """Delete a topic with all its records, and wait until it is gone."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.delete_topics([topic], request_timeout=20)[topic].result()
    deadline = time.monotonic() + 20
    while topic in admin.list_topics(timeout=20).topics:
        assert time.monotonic() < deadline, f"topic {topic} lives on"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def script(path: Path, text: str) -> str:
    """A program of a few lines of shell, in the place of Java or Maven."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)
