"""Dead letters on a real Kafka: reason, origin and the payload as it came."""

from __future__ import annotations

import pytest

from infra.errors import BrokerError
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from infra.settings import BrokerSettings
from streaming.dead_letters import DeadLetter, KafkaDeadLetters
from tests.streaming.running import create_topics, dead_letters_of, headers_of, new_settings


def letter(value: bytes | None, key: bytes | None = b"u1", offset: int = 5) -> DeadLetter:
    return DeadLetter(key, value, "not_json", "malformed", "behaviors", 3, offset, 1_700_000_000)


@pytest.mark.kafka
def test_a_letter_holds_the_payload_and_where_it_came_from(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    letters = KafkaDeadLetters(settings.broker)

    letters.send([letter(b"\x00\xffnot JSON")])
    letters.close()

    (message,) = dead_letters_of(settings, 1)
    assert message.value() == b"\x00\xffnot JSON"
    assert message.key() == b"behaviors/3/5/not_json"
    assert headers_of(message) == {
        "reason": "not_json",
        "detail": "malformed",
        "topic": "behaviors",
        "partition": "3",
        "offset": "5",
        "timestamp": "1700000000",
        "key": "u1",
    }


@pytest.mark.kafka
def test_a_letter_of_a_record_without_key_and_payload_says_so(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    letters = KafkaDeadLetters(settings.broker)

    letters.send([letter(None, None)])
    letters.close()

    (message,) = dead_letters_of(settings, 1)
    # Without a payload it would be a tombstone.
    assert (message.key(), message.value()) == (b"behaviors/3/5/not_json", b"")
    assert headers_of(message)["no_value"] == "1"
    assert "key" not in headers_of(message)


@pytest.mark.kafka
def test_what_the_topic_does_not_take_is_cut_and_says_so(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap)
    broker = settings.broker
    create_topic(broker, broker.dead_letter_topic, 1, max_message_bytes=100_000)
    letters = KafkaDeadLetters(broker)

    letters.send([letter(b"a" * 50_000, offset=1), letter(b"b" * 5_000_000, b"k" * 20_000, 2)])
    letters.close()

    whole, cut = dead_letters_of(settings, 2)
    assert whole.value() == b"a" * 50_000
    assert "original_size" not in headers_of(whole)
    assert 0 < len(cut.value() or b"") < 100_000
    assert headers_of(cut)["original_size"] == "5000000"
    assert headers_of(cut)["original_key_size"] == "20000"


@pytest.mark.kafka
def test_all_letters_of_a_large_batch_arrive(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    letters = KafkaDeadLetters(settings.broker)

    letters.send([letter(b"%d" % n, offset=n) for n in range(5_000)])
    letters.close()

    assert {m.value() for m in dead_letters_of(settings, 5_000)} == {
        b"%d" % n for n in range(5_000)
    }


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_an_error_of_one_line(kafka: LocalKafka) -> None:
    settings = new_settings(kafka.bootstrap)
    letters = KafkaDeadLetters(settings.broker, timeout_s=2.0)

    with pytest.raises(BrokerError, match=settings.broker.dead_letter_topic) as raised:
        letters.send([letter(b"x")])
    letters.close()

    assert "\n" not in str(raised.value)


def test_a_broker_that_is_away_is_an_error_in_time() -> None:
    letters = KafkaDeadLetters(BrokerSettings(bootstrap="127.0.0.1:1"), timeout_s=1.0)

    with pytest.raises(BrokerError, match="not delivered"):
        letters.send([letter(b"x")])
    letters.close()
