from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from infra.errors import BrokerError, SourceError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.settings import EventSettings
from streaming.events.decoder import EventDecoder
from streaming.files import replay as module
from streaming.files.reader import EventFile
from streaming.files.replay import (
    BehaviorEvent,
    EventProducer,
    RatePacer,
    ReplayProgress,
    SpeedPacer,
    encode_batch,
    replay,
)
from streaming.history.placing import murmur2, partition_numbers

T0 = 1_600_000_000_000
PARTITIONS = 4
TIMES = np.zeros(100_000, np.int64)

Record = tuple[int, bytes, bytes]
UniqueTopic = Callable[[str], str]


def write(path: Path, count: int = 300, **fields: Any) -> Path:
    rows = [
        {
            "user_id": f"ü{n % 13}",
            "item_id": f"i{n}",
            "action": "click",
            "event_time": T0 + n,
        }
        | fields
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "events.jsonl")


@pytest.fixture
def topic(kafka: LocalKafka, unique_topic: UniqueTopic) -> str:
    name = unique_topic("replay")
    create_topic(kafka.bootstrap, name, PARTITIONS)
    return name


def consume(bootstrap: str, topic: str, count: int) -> list[Record]:
    """``count`` records as (partition, key, value), and any that follow at once."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    records: list[Record] = []
    while True:
        missing = count - len(records)
        found = consumer.consume(missing, 10.0) if missing > 0 else consumer.consume(100, 0.3)
        if not found:
            consumer.close()
            return records
        for message in found:
            partition, key, value = message.partition(), message.key(), message.value()
            assert partition is not None
            assert isinstance(key, bytes)
            assert isinstance(value, bytes)
            records.append((partition, key, value))


@pytest.mark.kafka
def test_every_event_arrives_once_in_its_users_order(
    kafka: LocalKafka, topic: str, path: Path
) -> None:
    done = replay(path, producer_config(kafka.bootstrap), topic)
    assert done == ReplayProgress(300, 300, 0, 300, 1.0, finished=True)
    records = consume(kafka.bootstrap, topic, 300)
    assert len(records) == 300
    items: dict[str, list[str]] = {}
    for _, key, value in records:
        event = msgspec.json.decode(value, type=BehaviorEvent)
        assert key.decode() == event.user_id
        items.setdefault(event.user_id, []).append(event.item_id)
    assert items == {f"ü{n}": [f"i{m}" for m in range(n, 300, 13)] for n in range(13)}


@pytest.mark.kafka
def test_keys_land_where_kafkas_own_clients_put_them(
    kafka: LocalKafka, topic: str, tmp_path: Path
) -> None:
    rows = [
        {"user_id": "üx" * (n % 9) + str(n), "item_id": "i", "action": "view", "event_time": T0}
        for n in range(200)
    ]
    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    replay(path, producer_config(kafka.bootstrap), topic)
    records = consume(kafka.bootstrap, topic, 200)
    keys = pa.array([key.decode() for _, key, _ in records])
    assert len(records) == 200
    assert partition_numbers(murmur2(keys), PARTITIONS).tolist() == [
        number for number, _, _ in records
    ]


@pytest.mark.kafka
def test_a_stopped_replay_goes_on_where_it_was(
    kafka: LocalKafka, topic: str, path: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    config = producer_config(kafka.bootstrap)
    kept = tmp_path / "position"
    first = replay(
        path, config, topic, rate=2000, position=kept, stop=stop, on_progress=lambda _: stop.set()
    )
    assert 0 < first.sent < 300
    assert not first.finished
    rest = replay(path, config, topic, position=kept)
    assert rest.finished
    assert first.sent + rest.sent == 300
    values = [value for *_, value in consume(kafka.bootstrap, topic, 300)]
    assert len(values) == len(set(values)) == 300
    assert replay(path, config, topic, position=kept).sent == 0


@pytest.mark.kafka
def test_what_arrived_before_a_bad_row_is_kept(
    kafka: LocalKafka, topic: str, path: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "position"
    config = producer_config(kafka.bootstrap)
    with path.open("a") as file:
        file.write("{}\n" * 20_000)
    with pytest.raises(SourceError, match="row 301"):
        replay(path, config, topic, position=kept)
    done = replay(path, config, topic, position=kept, on_bad="skip")
    assert (done.sent, done.skipped, done.finished) == (300, 20_000, True)


@pytest.mark.kafka
def test_a_missing_topic_is_told_at_once(kafka: LocalKafka, path: Path) -> None:
    with pytest.raises(BrokerError, match=r"there is no topic nowhere on.*create it"):
        replay(path, producer_config(kafka.bootstrap), "nowhere")


def test_a_mistyped_topic_is_told_with_the_nearest_one(mock_kafka: LocalKafka, path: Path) -> None:
    create_topic(mock_kafka.bootstrap, "behaviors", 1)
    with pytest.raises(BrokerError, match=r"no topic behavoirs on .* did you mean behaviors\?"):
        replay(path, producer_config(mock_kafka.bootstrap), "behavoirs")


@pytest.mark.kafka
def test_single_events_are_sent_too(kafka: LocalKafka, topic: str) -> None:
    event = BehaviorEvent("e", "u", "i", "click", T0, category_id="c", dwell_ms=5, source="s")
    with EventProducer(producer_config(kafka.bootstrap), topic) as producer:
        assert producer.check() == PARTITIONS
        for _ in range(3):
            producer.send(event)
    assert (producer.sent, producer.delivered, producer.failed) == (3, 3, 0)
    values = [value for *_, value in consume(kafka.bootstrap, topic, 3)]
    assert values == [msgspec.json.encode(event)] * 3


def test_a_broker_that_does_not_answer_is_named() -> None:
    producer = EventProducer(producer_config("127.0.0.1:1"), "t")
    with pytest.raises(BrokerError, match=r"Kafka at 127.0.0.1:1 does not answer"):
        producer.check(timeout_s=0.2)


def test_undelivered_events_are_counted_in_one_line() -> None:
    config = producer_config("127.0.0.1:1") | {"delivery.timeout.ms": 100}
    producer = EventProducer(config, "t")
    for number in range(5):
        producer.send(BehaviorEvent(str(number), "u", "i", "click", T0))
    with pytest.raises(BrokerError, match=r"5 of 5 events were not confirmed.*topic 't'") as caught:
        producer.close()
    assert "\n" not in str(caught.value)
    assert producer.delivered == 0


def test_events_the_client_refuses_are_counted() -> None:
    config = producer_config("127.0.0.1:1") | {"message.max.bytes": 1000}
    producer = EventProducer(config, "t")
    producer.send_messages([{"key": b"u", "value": b"x" * 5000}])
    assert producer.failed == 1
    with pytest.raises(BrokerError, match=r"1 of 1 events were not confirmed"):
        producer.check_deliveries()


def test_events_are_readable_by_the_worker(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", 3, category_id="toys", dwell_ms=7, action="buy")
    file = EventFile(path, EventSettings(actions={"buy": "purchase"}))
    (batch,) = file.batches()
    messages = encode_batch(batch, file.identity, file.actions)
    records = [(n, message["key"], message["value"]) for n, message in enumerate(messages)]
    decoded = EventDecoder(EventSettings()).decode_batch(records, T0 + 1000)
    assert decoded.rejects == []
    assert decoded.events == 3


def test_event_ids_are_the_files_or_follow_from_file_and_row(path: Path, tmp_path: Path) -> None:
    def ids(path: Path, start_row: int = 0) -> list[str]:
        file = EventFile(path)
        return [
            json.loads(message["value"])["event_id"]
            for batch in file.batches(start_row)
            for message in encode_batch(batch, file.identity, file.actions)
        ]

    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert len(set(ids(path))) == 300
    assert ids(path)[100:] == ids(copy, start_row=100)
    assert ids(write(tmp_path / "own.jsonl", 2, event_id="mine")) == ["mine", "mine"]


def test_a_rate_is_kept_evenly() -> None:
    pacer = RatePacer(1000)
    sent = [pacer.ready(tick / 256, TIMES) for tick in range(2561)]
    assert sum(sent) == 10_001
    assert set(sent[1:]) == {3, 4}
    assert pacer.ready(10.0, TIMES) == 0
    assert pacer.pause(10.0) == pytest.approx(0.001)


def test_a_rate_makes_up_for_a_short_delay_only() -> None:
    pacer = RatePacer(100)
    assert pacer.ready(0.0, TIMES) == 1
    assert pacer.ready(0.5, TIMES) == 50
    assert pacer.ready(1000.0, TIMES) == pytest.approx(100 * module.CATCH_UP_S, abs=1)


def test_speed_keeps_the_events_spacing() -> None:
    pacer = SpeedPacer(10)
    times = np.array([T0, T0 + 1000, T0 + 500, T0 + 20_000])
    assert pacer.ready(5.0, times) == 1
    assert pacer.ready(5.0, times[1:]) == 0
    assert pacer.pause(5.0) == pytest.approx(0.1)
    assert pacer.ready(5.1001, times[1:]) == 2
    assert pacer.ready(5.1001, times[3:]) == 0
    assert pacer.ready(7.0001, times[3:]) == 1


def test_rate_and_speed_exclude_each_other(path: Path) -> None:
    for rate, speed in [(1.0, 1.0), (-1.0, 0.0)]:
        with pytest.raises(SourceError, match="give one of them"):
            replay(path, producer_config("127.0.0.1:1"), "t", rate=rate, speed=speed)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"junk", "is not a position of a replay"),
        (b"[1]", "is not a position of a replay"),
        (b'{"file": "0", "topic": "t", "next_row": 5}', "of another file or topic"),
    ],
)
def test_a_position_that_does_not_fit_is_refused(
    path: Path, tmp_path: Path, content: bytes, says: str
) -> None:
    kept = tmp_path / "position"
    kept.write_bytes(content)
    with pytest.raises(SourceError, match=says):
        replay(path, producer_config("127.0.0.1:1"), "t", position=kept)
