"""librdkafka's mock cluster in the place of a Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import BrokerError
from infra.kafka.admin import create_topic, ping, topic_id, topic_partitions
from infra.kafka.local import LocalKafka
from tests.infra.kafka.steps import consume, produce


def test_a_mock_has_the_partitions_that_were_asked_for(mock_kafka: LocalKafka) -> None:
    assert create_topic(mock_kafka.bootstrap, "events", 8)
    assert not create_topic(mock_kafka.bootstrap, "events", 8)
    assert topic_partitions(mock_kafka.bootstrap, "events") == 8
    assert topic_partitions(mock_kafka.bootstrap, "other") == 0


def test_a_mock_keeps_events(mock_kafka: LocalKafka) -> None:
    create_topic(mock_kafka.bootstrap, "events", 1)

    produce(mock_kafka.bootstrap, "events", ["a", "b"])

    assert consume(mock_kafka.bootstrap, "events", 2) == ["a", "b"]


def test_a_topic_of_a_mock_has_a_stable_id(mock_kafka: LocalKafka) -> None:
    for topic in ("one", "two"):
        create_topic(mock_kafka.bootstrap, topic, 1)

    one = topic_id(mock_kafka.bootstrap, "one")

    assert one == topic_id(mock_kafka.bootstrap, "one")
    assert one != topic_id(mock_kafka.bootstrap, "two")


def test_the_same_topic_of_another_mock_has_another_id(
    mock_kafka: LocalKafka, tmp_path: Path
) -> None:
    with LocalKafka(tmp_path, kind="mock") as other:
        for kafka in (mock_kafka, other):
            create_topic(kafka.bootstrap, "events", 1)

        assert topic_id(mock_kafka.bootstrap, "events") != topic_id(other.bootstrap, "events")


def test_a_stopped_mock_is_gone_and_can_be_started_again(mock_kafka: LocalKafka) -> None:
    mock_kafka.stop()
    with pytest.raises(BrokerError, match="no address"):
        _ = mock_kafka.bootstrap

    assert ping(mock_kafka.start()).is_mock
