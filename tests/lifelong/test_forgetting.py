"""Users who are forgotten: in the store, in its files, and in Kafka; and the receipt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from infra.behaviors import pack_behavior
from infra.errors import BrokerError, StoreUnavailable
from infra.kafka.admin import create_topic, topic_config
from infra.kafka.clients import client_config, producer_config
from infra.kafka.local import LocalKafka
from infra.segments import SEGMENT
from infra.settings import BrokerSettings, Settings, StoreSettings
from infra.store import Append, Group
from infra.stores import open_store
from lifelong.forgetting import ForgetOptions, run_forget
from streaming.dead_letters import DeadLetter, KafkaDeadLetters
from streaming.letters import letters, send_again
from tests.lifelong.two_users import SOURCE, add, two_users, users
from tests.streaming.running import NOW, create_topics, event, new_settings

STORE_ALONE = ForgetOptions(letters=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return two_users(tmp_path)


def test_forgetting_deletes_and_keeps_out_what_came_before(settings: Settings) -> None:
    report = run_forget(settings, ["ann", "nobody"], STORE_ALONE)
    assert (report["deleted"], report["unknown"]) == (1, 1)
    add(settings, ["ann", "nobody"], offset=1, time_ms=report["until_ms"])
    assert users(settings) == ["bob"]
    add(settings, ["ann"], offset=2, time_ms=report["until_ms"] + 1)
    assert users(settings) == ["ann", "bob"]


def test_forgetting_leaves_the_store_s_identity_as_it_is(settings: Settings) -> None:
    other = settings.store.model_copy(update={"ttl_s": 60})
    run_forget(settings.model_copy(update={"store": other}), ["ann"], STORE_ALONE)
    store = open_store(settings.store, read_only=True)
    assert store.identity is not None
    assert (store.identity.ttl_s, store.identity.actions) == (0, ("buy",))
    store.close()


def test_forgetting_in_a_mistyped_store_is_told(settings: Settings, tmp_path: Path) -> None:
    absent = settings.store.model_copy(update={"url": f"lmdb://{tmp_path / 'stroe'}"})
    with pytest.raises(StoreUnavailable, match="there is no store"):
        run_forget(settings.model_copy(update={"store": absent}), ["ann"], STORE_ALONE)
    assert not (tmp_path / "stroe").exists()


def test_the_receipt_says_what_was_there_and_what_is_left(settings: Settings) -> None:
    receipt = run_forget(settings, ["ann", "nobody", "ann"], STORE_ALONE)
    ann, nobody = receipt["users"]
    assert ann["user"] == "ann"
    assert ann["stored"]["behaviors"] == 1
    assert ann["stored"]["bytes"] > 25
    assert (nobody["stored"], nobody["letters"], receipt["letters"]) == (None, None, None)
    files, mark = receipt["left"]
    assert "free hold what was deleted" in files["what"]
    assert mark["until"] is None  # as long as there is no TTL
    json.dumps(receipt)


def test_the_receipt_may_name_nobody(settings: Settings) -> None:
    hashed = ForgetOptions(letters=False, hash_ids=True)
    receipt = run_forget(settings, ["ann"], hashed)
    again = run_forget(settings, ["ann"], hashed)
    assert receipt["users"][0]["user"].startswith("sha256:")
    assert receipt["users"][0]["user"] == again["users"][0]["user"]
    assert '"ann"' not in json.dumps(receipt)


def test_scrubbed_no_byte_of_the_store_s_files_is_of_who_was_deleted(tmp_path: Path) -> None:
    """Among others, whose records share pages with theirs."""
    settings = Settings(store=StoreSettings(url=f"lmdb://{tmp_path / 'store'}"))
    item = 0x1122_3344_5566_7788
    names = [f"user-{n}" for n in range(200)]
    names[100] = "whoever-it-is"
    store = open_store(settings.store, actions=("buy",))
    for start in range(0, 3 * SEGMENT, 16):
        offsets = list(range(start, start + 16))
        appends = [
            Append(
                user,
                [pack_behavior(item if user == names[100] else 7, 1 + n, 0, 0, 1) for n in offsets],
                [0] * 16,
                offsets,
            )
            for user in names
        ]
        store.append([Group(SOURCE, appends)], 1)
    store.close()

    def on_disk() -> bytes:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return b"".join(path.read_bytes() for path in files)

    needle = item.to_bytes(8, "little")
    run_forget(settings, [names[100]], STORE_ALONE)
    assert needle in on_disk()
    receipt = run_forget(settings, [names[100]], ForgetOptions(letters=False, scrub=True))
    assert receipt["left"][0]["until"] is not None
    left = on_disk()
    assert needle not in left
    assert left.count(names[100].encode()) == 1  # the mark
    assert len(users(settings)) == 10


HOLD: Final = "import lmdb, sys; env = lmdb.open(sys.argv[1]); print(flush=True); sys.stdin.read()"


def test_scrubbing_is_refused_before_anything_is_deleted(
    settings: Settings, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        with pytest.raises(StoreUnavailable, match="in use: stop its workers and scorers"):
            run_forget(settings, ["ann"], ForgetOptions(letters=False, scrub=True))
        worker.communicate()
    assert users(settings) == ["ann", "bob"]


def test_a_broker_that_cannot_be_asked_is_told_before_anything_is_deleted(
    settings: Settings, tmp_path: Path
) -> None:
    mistyped = BrokerSettings(security_protocol="SSL", ca_file=tmp_path / "missing.pem")
    with pytest.raises(BrokerError, match="there is no file"):
        run_forget(settings.model_copy(update={"broker": mistyped}), ["ann"])
    assert users(settings) == ["ann", "bob"]


# Dead letters


@pytest.fixture(scope="module")
def quick(kafka: LocalKafka) -> LocalKafka:
    """A Kafka whose cleaner looks several times a second."""
    backoff = ConfigEntry(
        "log.cleaner.backoff.ms", "100", incremental_operation=AlterConfigOpType.SET
    )
    changed = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[backoff])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.incremental_alter_configs([changed])[changed].result(20)
    return kafka


@pytest.fixture
def both(quick: LocalKafka, settings: Settings) -> Settings:
    """The store, and topics, of which that of dead letters is as a worker makes it."""
    broker = new_settings(quick.bootstrap).broker
    create_topic(broker, broker.topic, 2)
    create_topic(
        broker,
        broker.dead_letter_topic,
        2,
        cleanup_policy="compact,delete",
        file_delete_delay_ms=1,
        retention_ms=86_400_000,
    )
    return settings.model_copy(update={"broker": broker})


def refuse(settings: Settings, *refused: tuple[bytes | None, bytes | None]) -> None:
    """Send letters, each (key, value)."""
    sender = KafkaDeadLetters(settings.broker)
    topic = settings.broker.topic
    sender.send(
        [
            DeadLetter(key, value, "too_old", "what was wrong", topic, n % 2, n, NOW)
            for n, (key, value) in enumerate(refused)
        ]
    )
    sender.close()


LETTERS = (
    (b"ann", b"not JSON"),
    (b"another-key", event("ann", 1)),
    (None, b'{"user_id": "ann", '),
    (b"ann", None),
    (b"bob", event("bob", 1)),
    (b"hannah", b"bob and hannah"),
    (None, b"whose is it?"),
)


def test_letters_of_a_user_are_gone_and_those_of_others_stay(both: Settings) -> None:
    refuse(both, *LETTERS)
    receipt = run_forget(both, ["ann", "carol"])
    assert [one["letters"] for one in receipt["users"]] == [4, 0]
    left = {letter.value for letter in letters(both.broker)}
    assert left == {event("bob", 1), b"bob and hannah", b"whose is it?"}
    _, _, segments, unknown = receipt["left"]
    assert "until Kafka compacts it" in segments["what"]
    assert unknown["count"] == 1
    assert unknown["until"] is not None
    # Nor are they sent again.
    assert send_again(both.broker, "too_old").sent == 3
    # Forgotten again, there is nothing.
    assert run_forget(both, ["ann"])["letters"] == 0


def test_scrubbed_no_byte_of_the_topic_s_files_is_of_who_was_forgotten(
    both: Settings, kafka: LocalKafka
) -> None:
    refuse(both, *((key, value and value + b" 0123456789") for key, value in LETTERS))

    def on_disk() -> bytes:
        places = (kafka.directory / "data").glob(f"{both.broker.dead_letter_topic}-*")
        return b"".join(path.read_bytes() for of in places for path in of.glob("*.log*"))

    assert b'"ann"' in on_disk()
    receipt = run_forget(both, ["ann"], ForgetOptions(scrub=True))
    assert receipt["problems"] == []
    assert [one["where"] for one in receipt["left"]][2:] == [
        f"files of topic {both.broker.dead_letter_topic}",
        f"topic {both.broker.dead_letter_topic}",
    ]
    assert "about to delete" in receipt["left"][2]["what"]
    for _ in range(100):
        if b"ann-1" not in on_disk():
            break
        time.sleep(0.05)
    data = on_disk()
    assert b'"ann"' not in data
    assert b"ann-1" not in data
    assert b"hannah" in data
    # The topic's settings are as they were.
    config = topic_config(both.broker, both.broker.dead_letter_topic)
    assert not config["segment.ms"].given


def test_a_topic_that_is_not_compacted_is_told_with_when_its_letters_go(
    quick: LocalKafka, settings: Settings
) -> None:
    broker = new_settings(quick.bootstrap).broker
    create_topics(Settings(broker=broker))
    both = settings.model_copy(update={"broker": broker})
    refuse(both, *LETTERS)
    receipt = run_forget(both, ["ann"], ForgetOptions(scrub=True))
    assert "is not compacted, letters go by its retention" in receipt["problems"][0]
    assert receipt["letters"] == 4
    assert {letter.key for letter in letters(broker)} == {b"bob", b"hannah", None}
    assert users(both) == ["bob"]


def test_letters_of_an_earlier_version_are_found_by_their_key(both: Settings) -> None:
    producer = Producer(producer_config(both.broker))
    headers = {"reason": "too_old", "topic": both.broker.topic, "partition": "0", "offset": "7"}
    for key in (b"ann", b"bob"):
        producer.produce(both.broker.dead_letter_topic, b"{", key, headers=headers)
    assert producer.flush(20) == 0
    assert run_forget(both, ["ann"])["letters"] == 1
    assert [letter.key for letter in letters(both.broker)] == [b"bob"]


def test_a_tombstone_is_sent_where_a_setting_says_so(both: Settings) -> None:
    broker = both.broker.model_copy(update={"forget_tombstones": True})
    receipt = run_forget(both.model_copy(update={"broker": broker}), ["ann"])
    assert receipt["tombstones"] == 1
    assert consume_all(broker) == [(b"ann", None)]


def consume_all(broker: BrokerSettings) -> list[tuple[bytes | None, bytes | None]]:
    consumer = Consumer(client_config(broker) | {"group.id": "looks", "enable.partition.eof": True})
    consumer.assign([TopicPartition(broker.topic, n, 0) for n in range(2)])
    found, ended = [], 0
    while ended < 2:
        message = consumer.poll(20)
        assert message is not None
        if message.error() is None:
            found.append((message.key(), message.value()))
        else:
            ended += 1
    consumer.close()
    return found
