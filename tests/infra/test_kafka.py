"""The local Kafka, and the questions that are asked of any Kafka."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka import Consumer, Producer, TopicPartition

from infra.errors import BrokerError
from infra.kafka import (
    KAFKA_VERSION,
    LocalKafka,
    apache_obstacle,
    client_config,
    create_topic,
    delete_topic,
    fetch_kafka,
    ping,
    producer_config,
    topic_id,
    topic_partitions,
)
from infra.settings import BrokerSettings

REPOSITORY = Path(__file__).parents[2]
JAR = f"kafka_2.13-{KAFKA_VERSION}.jar"

UniqueTopic = Callable[[str], str]


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


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache in which Kafka seems to be fetched already."""
    (tmp_path / "cache" / f"kafka-{KAFKA_VERSION}").mkdir(parents=True)
    return tmp_path / "cache"


@pytest.fixture
def java(tmp_path: Path) -> str:
    """A Java that is new enough and fails in everything else."""
    return script(
        tmp_path / "java",
        """[ "$1" = -version ] && { echo 'openjdk version "21.0.1"' >&2; exit 0; }
        echo 'java.lang.RuntimeException: no luck'; echo '   at Somewhere'; exit 1""",
    )


# A real Apache Kafka


@pytest.mark.kafka
def test_it_answers(kafka: LocalKafka) -> None:
    cluster = ping(kafka.bootstrap)

    assert cluster.brokers == (kafka.bootstrap,)
    assert not cluster.is_mock
    assert kafka.kind == "apache"


@pytest.mark.kafka
def test_starting_it_twice_changes_nothing(kafka: LocalKafka) -> None:
    pid = kafka.pid

    assert kafka.start() == kafka.bootstrap
    assert kafka.pid == pid


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
    assert delete_topic(kafka.bootstrap, topic)
    assert not delete_topic(kafka.bootstrap, topic)
    assert create_topic(kafka.bootstrap, topic, 1)
    assert topic_id(kafka.bootstrap, topic) != before


@pytest.mark.kafka
def test_a_refusal_is_one_line(kafka: LocalKafka, unique_topic: UniqueTopic) -> None:
    with pytest.raises(BrokerError) as error:
        create_topic(kafka.bootstrap, unique_topic("refused"), 1, no_such_setting=1)

    assert "no.such.setting" in one_line(error)


@pytest.mark.kafka
def test_records_and_address_survive_a_stop(kafka: LocalKafka, unique_topic: UniqueTopic) -> None:
    topic, address = unique_topic("survives"), kafka.bootstrap
    create_topic(address, topic, 1)
    identity = topic_id(address, topic)
    produce(address, topic, ["before"])

    kafka.stop()
    kafka.start()

    assert kafka.bootstrap == address
    assert topic_id(address, topic) == identity
    assert consume(address, topic, 1) == ["before"]


@pytest.mark.kafka
def test_no_process_is_left_after_a_stop(kafka: LocalKafka) -> None:
    pid = kafka.pid
    assert pid is not None

    kafka.stop()
    try:
        assert not alive(pid)
        assert kafka.pid is None
        assert not kafka.running
        with pytest.raises(BrokerError):
            ping(kafka.bootstrap, timeout_s=0.2)
    finally:
        kafka.start()


@pytest.mark.kafka
def test_a_killed_broker_can_be_started_again(kafka: LocalKafka) -> None:
    pid = kafka.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    while kafka.running:  # until its guard has noticed
        time.sleep(0.01)

    assert ping(kafka.start()).brokers == (kafka.bootstrap,)
    assert kafka.pid != pid


@pytest.mark.kafka
def test_a_second_kafka_stays_off_the_directory(kafka: LocalKafka) -> None:
    with pytest.raises(BrokerError, match="another Kafka uses"):
        LocalKafka(kafka.directory, kind="apache").start()

    assert ping(kafka.bootstrap)


OWNER = """
import sys, time
from pathlib import Path
from infra.kafka import LocalKafka
kafka = LocalKafka(Path(sys.argv[1]), kind="apache")
kafka.start()
print(kafka.pid, kafka._guard.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(kafka: LocalKafka, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns a Kafka of its own (``kafka`` only says that there can be one)."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "owned")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


@pytest.mark.kafka
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_owner(owner: subprocess.Popen[str], sent: signal.Signals) -> None:
    assert owner.stdout is not None
    pid, guard = map(int, owner.stdout.readline().split())
    assert alive(pid)

    owner.send_signal(sent)

    wait_until_gone(pid)
    wait_until_gone(guard)


@pytest.mark.kafka
def test_it_does_not_outlive_its_guard(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout is not None
    pid, guard = map(int, owner.stdout.readline().split())

    os.kill(guard, signal.SIGKILL)

    wait_until_gone(pid)


# What can go wrong on the way to one


def test_a_port_in_use_is_refused(cache: Path, java: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        kafka = LocalKafka(tmp_path / "kafka", port, kind="apache", cache=cache, java=java)
        with pytest.raises(BrokerError) as error:
            kafka.start()

    assert f"127.0.0.1:{port}" in one_line(error)
    assert "Address already in use" in one_line(error)


def test_a_directory_in_use_is_refused(cache: Path, java: str, tmp_path: Path) -> None:
    kafka = LocalKafka(tmp_path, kind="apache", cache=cache, java=java)
    with kafka.log_file.open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(BrokerError) as error:
            kafka.start()

    assert one_line(error).startswith(f"another Kafka uses {tmp_path}")


def test_a_directory_that_cannot_be_made_is_named(cache: Path, java: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kafka = LocalKafka(tmp_path / "file" / "kafka", kind="apache", cache=cache, java=java)

    with pytest.raises(BrokerError) as error:
        kafka.start()

    assert str(tmp_path / "file" / "kafka") in one_line(error)


def test_a_failed_format_says_why_and_can_be_tried_again(
    cache: Path, java: str, tmp_path: Path
) -> None:
    kafka = LocalKafka(tmp_path / "kafka", kind="apache", cache=cache, java=java)

    for _ in range(2):
        with pytest.raises(BrokerError) as error:
            kafka.start()
        assert "java.lang.RuntimeException: no luck" in one_line(error)
        assert not kafka.running


def test_a_broker_that_ends_while_starting_says_why(cache: Path, java: str, tmp_path: Path) -> None:
    data = tmp_path / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("cluster.id=abc\n")
    kafka = LocalKafka(tmp_path / "kafka", kind="apache", cache=cache, java=java)

    with pytest.raises(BrokerError) as error:
        kafka.start()

    assert "java.lang.RuntimeException: no luck" in one_line(error)
    assert str(kafka.log_file) in one_line(error)
    assert kafka.pid is None


def test_a_broker_that_never_answers_is_given_up_and_ended(
    cache: Path, java: str, tmp_path: Path
) -> None:
    data = tmp_path / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("cluster.id=abc\n")
    note = tmp_path / "pid"
    script(
        Path(java),
        f"""[ "$1" = -version ] && {{ echo 'openjdk version "21.0.1"' >&2; exit 0; }}
        echo $$ > {note}; exec sleep 60""",
    )
    kafka = LocalKafka(tmp_path / "kafka", kind="apache", cache=cache, java=java)

    with pytest.raises(BrokerError, match="does not answer"):
        kafka.start(timeout_s=1.0)

    assert not alive(int(note.read_text()))


def test_an_unreachable_kafka_is_one_line() -> None:
    with pytest.raises(BrokerError) as error:
        ping("127.0.0.1:1", timeout_s=0.5)

    assert one_line(error).startswith("Kafka at 127.0.0.1:1 did not answer within 0.5 s")
    assert "Connection refused" in one_line(error)


def test_a_failing_maven_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    maven = script(tmp_path / "mvn", "echo '[INFO] hello'; echo '[ERROR] no such host'; exit 1")

    with pytest.raises(BrokerError) as error:
        fetch_kafka(tmp_path / "cache", maven=maven)

    assert "no such host" in one_line(error)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_maven_that_brings_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="could not fetch"):
        fetch_kafka(tmp_path / "cache", maven=script(tmp_path / "mvn", "exit 0"))


def test_kafka_is_fetched_once_by_many_at_the_same_time(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    maven = script(
        tmp_path / "mvn",
        f"""echo call >> {calls}
        for argument; do case $argument in -DoutputDirectory=*) jars=${{argument#*=}};; esac; done
        mkdir -p "$jars"; sleep 0.3; touch "$jars/{JAR}" """,
    )

    with ThreadPoolExecutor(4) as pool:
        fetched = set(pool.map(lambda _: fetch_kafka(tmp_path / "cache", maven=maven), range(4)))

    assert calls.read_text() == "call\n"
    (folder,) = fetched
    assert [jar.name for jar in folder.iterdir()] == [JAR]


def test_what_a_killed_fetch_left_behind_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / f"kafka-{KAFKA_VERSION}.part-abc"
    leftover.mkdir()

    with pytest.raises(BrokerError):
        fetch_kafka(tmp_path, maven=script(tmp_path / "mvn", "exit 1"))

    assert not leftover.exists()


@pytest.mark.parametrize(
    ("said", "obstacle"),
    [
        ("""echo 'openjdk version "11.0.2"' >&2""", "too old"),
        ("""echo 'java version "1.8.0_292"' >&2""", "too old"),
        ("echo 'no runtime present' >&2; exit 1", "no runtime present"),
    ],
)
def test_a_java_that_will_not_do_is_an_obstacle(
    cache: Path, tmp_path: Path, said: str, obstacle: str
) -> None:
    found = apache_obstacle(cache, java=script(tmp_path / "java", said))

    assert found is not None
    assert obstacle in found
    assert "install Java 17" in found


def test_a_missing_maven_is_an_obstacle_until_kafka_is_fetched(
    cache: Path, java: str, tmp_path: Path
) -> None:
    assert apache_obstacle(cache, java=java, maven="no-such-maven") is None
    obstacle = apache_obstacle(tmp_path / "empty", java=java, maven="no-such-maven")
    assert obstacle is not None
    assert "no-such-maven" in obstacle


def test_apache_is_not_replaced_where_it_was_asked_for(tmp_path: Path) -> None:
    kafka = LocalKafka(tmp_path, kind="apache", java="no-such-java")

    with pytest.raises(BrokerError, match="there is no Java"):
        kafka.start()


def test_without_java_a_mock_takes_its_place_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        LocalKafka(tmp_path, java="no-such-java") as kafka,
    ):
        assert kafka.kind == "mock"
        assert ping(kafka.bootstrap).is_mock

    (record,) = caplog.records
    assert "not a real Kafka" in record.message
    assert "no-such-java" in record.message


# The mock cluster


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


def test_a_mock_deletes_no_topics(mock_kafka: LocalKafka) -> None:
    create_topic(mock_kafka.bootstrap, "events", 1)

    with pytest.raises(BrokerError) as error:
        delete_topic(mock_kafka.bootstrap, "events")

    assert "mock" in one_line(error)


def test_a_stopped_mock_is_gone_and_can_be_started_again(mock_kafka: LocalKafka) -> None:
    mock_kafka.stop()
    with pytest.raises(BrokerError, match="no address"):
        _ = mock_kafka.bootstrap

    assert ping(mock_kafka.start()).is_mock


# Clients


def test_keys_land_where_the_java_client_puts_them(mock_kafka: LocalKafka) -> None:
    create_topic(mock_kafka.bootstrap, "events", 8)
    keys = [f"user-{number}" for number in range(100)]

    landed = produce(mock_kafka.bootstrap, "events", keys)

    partitions = list(range(8))
    assert landed == {
        key: DefaultPartitioner()(key.encode(), partitions, partitions) for key in keys
    }


def test_settings_become_the_configuration_of_a_client(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    settings = BrokerSettings(
        bootstrap="kafka.example:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="lifelong",
        sasl_password="secret",
        ca_file=tmp_path / "ca.pem",
    )

    config = client_config(settings)

    assert config["bootstrap.servers"] == "kafka.example:9093"
    assert config["security.protocol"] == "SASL_SSL"
    assert config["sasl.mechanism"] == "SCRAM-SHA-512"
    assert config["sasl.username"] == "lifelong"
    assert config["sasl.password"] == "secret"
    assert config["ssl.ca.location"] == str(tmp_path / "ca.pem")


def test_a_missing_file_of_authorities_is_named(tmp_path: Path) -> None:
    settings = BrokerSettings(security_protocol="SSL", ca_file=tmp_path / "missing.pem")

    with pytest.raises(BrokerError) as error:
        ping(settings, timeout_s=0.2)

    assert "missing.pem" in one_line(error)
