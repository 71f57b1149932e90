"""Dead letters that are counted and sent again, on a real Kafka."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, Message
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from infra.errors import BrokerError, SettingsError
from infra.kafka.local import LocalKafka
from infra.settings import Settings
from lifelong.letters import run_list, run_replay, run_show
from streaming.dead_letters import DeadLetter, KafkaDeadLetters
from streaming.letters import Letter, letters, send_again
from streaming.worker import _ensure_topic
from tests.streaming.running import create_topics, new_settings

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(kafka: LocalKafka) -> Settings:
    settings = new_settings(kafka.bootstrap)
    create_topics(settings)
    return settings


def letter(settings: Settings, offset: int, reason: str, value: bytes = b"{}") -> DeadLetter:
    topic, detail = settings.broker.topic, "what was wrong"
    return DeadLetter(b"ann", value, reason, detail, topic, 1, offset, 1_700_000_000_000 + offset)


def refuse(settings: Settings, *refused: DeadLetter, max_bytes: int = 900_000) -> None:
    sender = KafkaDeadLetters(settings.broker, max_bytes=max_bytes)
    sender.send(refused)
    sender.close()


def sent(settings: Settings) -> list[tuple[bytes | None, bytes | None, int, str]]:
    """Everything in the topic of events: key, value, time, and which letter it was."""
    found = [
        (one.key(), one.value(), one.timestamp()[1], dict(one.headers() or [])["dead-letter"])
        for one in messages(settings)
    ]
    return sorted(
        ((key, value, time, bytes(of or b"").decode()) for key, value, time, of in found),
        key=lambda one: one[2],
    )


def messages(settings: Settings) -> list[Message]:
    """Everything in the topic of events."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.broker.bootstrap,
            "group.id": "looks",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    topic = settings.broker.topic
    found: list[Message] = []
    consumer.subscribe([topic])
    ended: set[int | None] = set()
    while len(ended) < settings.broker.partitions:
        message = consumer.poll(10)
        assert message is not None
        if message.error() is not None:
            ended.add(message.partition())
            continue
        found.append(message)
    consumer.close()
    return found


def test_a_letter_is_read_as_it_was_written(settings: Settings) -> None:
    refuse(settings, letter(settings, 5, "not_json", b"\xff{"))
    (found,) = letters(settings.broker)
    assert isinstance(found, Letter)
    assert (found.key, found.value, found.reason, found.cut) == (
        b"ann",
        b"\xff{",
        "not_json",
        False,
    )
    assert found.source == (settings.broker.topic, 1, 5)
    assert found.timestamp == 1_700_000_000_005


def test_letters_of_a_reason_go_back_as_they_came(settings: Settings) -> None:
    refuse(settings, letter(settings, 1, "too_old", b"a"), letter(settings, 2, "not_json", b"b"))
    assert send_again(settings.broker, "too_old").sent == 1
    assert sent(settings) == [(b"ann", b"a", 1_700_000_000_001, "too_old 0 0")]


def test_a_letter_has_its_record_s_headers_when_it_goes_back(settings: Settings) -> None:
    of = [("ce_id", b"7"), ("empty", None), ("dead-letter", b"another 0 0")]
    refuse(settings, letter(settings, 1, "too_old")._replace(headers=of))
    (found,) = letters(settings.broker)
    assert found.headers == of
    assert send_again(settings.broker, "too_old").sent == 1
    (again,) = messages(settings)
    assert again.headers() == [*of[:2], ("dead-letter", b"too_old 0 0")]


def test_headers_that_are_too_large_are_left_out_and_told(settings: Settings) -> None:
    refuse(settings, letter(settings, 1, "too_old")._replace(headers=[("h", b"x" * 60_000)]))
    assert send_again(settings.broker, "too_old")[:2] == (0, 1)


def test_each_goes_once_however_often_it_is_asked_for(settings: Settings) -> None:
    refuse(settings, *(letter(settings, n, "too_old", b"%d" % n) for n in range(5)))
    assert send_again(settings.broker, "too_old", most=2).sent == 2
    assert send_again(settings.broker, "too_old").sent == 3
    assert send_again(settings.broker, "too_old").sent == 0
    refuse(settings, letter(settings, 9, "too_old", b"9"))
    assert send_again(settings.broker, "too_old").sent == 1
    assert [value for _, value, _, _ in sent(settings)] == [b"0", b"1", b"2", b"3", b"4", b"9"]


def test_an_event_with_two_letters_goes_once(settings: Settings) -> None:
    refuse(settings, *[letter(settings, 7, "too_old")] * 2)
    done = send_again(settings.broker, "too_old")
    assert (done.sent, done.repeated) == (1, 1)


def test_a_letter_that_was_cut_stays_and_is_told(settings: Settings) -> None:
    refuse(settings, letter(settings, 1, "too_large", b"x" * 2000), max_bytes=1000)
    done = send_again(settings.broker, "too_large")
    assert (done.sent, done.cut) == (0, 1)


def test_letters_are_counted_with_what_waits(settings: Settings) -> None:
    refuse(settings, *(letter(settings, n, "too_old") for n in range(3)))
    send_again(settings.broker, "too_old", most=2)
    refuse(settings, letter(settings, 9, "not_json"))
    rows: list[dict[str, Any]] = run_list(settings, quiet=True)["reasons"]
    assert [(row["reason"], row["letters"], row["waiting"]) for row in rows] == [
        ("not_json", 1, 1),
        ("too_old", 3, 1),
    ]


def test_the_newest_are_shown(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(settings, *(letter(settings, n, "too_old", b"payload-%d" % n) for n in range(9)))
    shown = run_show(settings, reasons=["too_old"], limit=2, quiet=False)
    assert [one["value"] for one in shown["letters"]] == ["payload-7", "payload-8"]
    assert "payload-8" in capsys.readouterr().out


def test_a_reason_that_there_is_none_of_is_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="no reason; there are"):
        run_replay(settings, reasons=["because"], limit=None)


def test_a_topic_that_a_worker_makes_keeps_letters_for_as_long_as_is_set(
    kafka: LocalKafka,
) -> None:
    broker = new_settings(kafka.bootstrap, broker={"dead_letter_retention_s": 3600}).broker
    _ensure_topic(broker, broker.dead_letter_topic)
    asked = ConfigResource(ResourceType.TOPIC, broker.dead_letter_topic)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    told = admin.describe_configs([asked])[asked].result(20)
    assert told["retention.ms"].value == "3600000"


def test_a_topic_that_is_not_there_is_told_in_a_line(kafka: LocalKafka) -> None:
    with pytest.raises(BrokerError) as raised:
        list(letters(new_settings(kafka.bootstrap).broker))
    assert "\n" not in str(raised.value)
