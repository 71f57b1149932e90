"""The questions that are asked of any Kafka: of a real one here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.errors import BrokerError
from infra.kafka.admin import create_topic, ping, require_topic, topic_id, topic_partitions
from infra.kafka.local import LocalKafka
from infra.settings import BrokerSettings
from tests.infra.kafka.steps import consume, delete_topic, one_line, produce

UniqueTopic = Callable[[str], str]


@pytest.mark.kafka
def test_it_answers(kafka: LocalKafka) -> None:
    cluster = ping(kafka.bootstrap)

    assert cluster.brokers == (kafka.bootstrap,)
    assert not cluster.is_mock
    assert kafka.kind == "apache"


@pytest.mark.kafka
def test_a_topic_is_created_once(kafka: LocalKafka, unique_topic: UniqueTopic) -> None:
    topic = unique_topic("once")

    assert create_topic(kafka.bootstrap, topic, 3, max_message_bytes=1000)
    assert not create_topic(kafka.bootstrap, topic, 5)
    assert topic_partitions(kafka.bootstrap, topic) == 3


@pytest.mark.kafka
def test_a_created_topic_takes_events_at_once(kafka: LocalKafka, unique_topic: UniqueTopic) -> None:
    topic = unique_topic("at-once")
    create_topic(kafka.bootstrap, topic, 1)

    produce(kafka.bootstrap, topic, ["a", "b"])

    assert consume(kafka.bootstrap, topic, 2) == ["a", "b"]


@pytest.mark.kafka
def test_asking_for_a_missing_topic_does_not_create_it(
    kafka: LocalKafka, unique_topic: UniqueTopic
) -> None:
    topic = unique_topic("missing")

    assert topic_partitions(kafka.bootstrap, topic) == 0
    with pytest.raises(BrokerError, match=f"there is no topic {topic}"):
        topic_id(kafka.bootstrap, topic)
    assert topic_partitions(kafka.bootstrap, topic) == 0


@pytest.mark.kafka
def test_a_topic_created_again_has_another_id(kafka: LocalKafka, unique_topic: UniqueTopic) -> None:
    topic = unique_topic("again")
    create_topic(kafka.bootstrap, topic, 1)
    before = topic_id(kafka.bootstrap, topic)

    assert topic_id(kafka.bootstrap, topic) == before
    delete_topic(kafka.bootstrap, topic)
    assert create_topic(kafka.bootstrap, topic, 1)
    assert topic_id(kafka.bootstrap, topic) != before


@pytest.mark.kafka
def test_a_refusal_is_one_line(kafka: LocalKafka, unique_topic: UniqueTopic) -> None:
    with pytest.raises(BrokerError) as error:
        create_topic(kafka.bootstrap, unique_topic("refused"), 1, no_such_setting=1)

    assert "no.such.setting" in one_line(error)


@pytest.mark.kafka
def test_a_missing_topic_is_an_error_with_the_nearest_name(
    kafka: LocalKafka, unique_topic: UniqueTopic
) -> None:
    topic = unique_topic("nearby")
    create_topic(kafka.bootstrap, topic, 1)
    require_topic(kafka.bootstrap, topic)

    with pytest.raises(BrokerError) as error:
        require_topic(kafka.bootstrap, topic[1:])

    assert f"there is no topic {topic[1:]}" in one_line(error)
    assert f"did you mean {topic}?" in one_line(error)


@pytest.mark.kafka
def test_tls_towards_a_broker_that_speaks_plainly_is_told_as_that(kafka: LocalKafka) -> None:
    settings = BrokerSettings(bootstrap=kafka.bootstrap, security_protocol="SSL")

    with pytest.raises(BrokerError) as error:
        ping(settings, timeout_s=2)

    assert "do not agree on TLS" in one_line(error)


def test_an_unreachable_kafka_is_one_line() -> None:
    with pytest.raises(BrokerError) as error:
        ping("127.0.0.1:1", timeout_s=0.5)

    assert one_line(error).startswith("Kafka at 127.0.0.1:1 did not answer within 0.5 s")
    assert "Connection refused" in one_line(error)
