"""The Kafka on this machine, and what can go wrong on the way to one."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import BrokerError
from infra.kafka.admin import create_topic, ping, topic_id
from infra.kafka.local import LocalKafka
from tests.infra.kafka.steps import alive, consume, one_line, produce, script, wait_until_gone

UniqueTopic = Callable[[str], str]


@pytest.mark.kafka
def test_starting_it_twice_changes_nothing(kafka: LocalKafka) -> None:
    pid = kafka.pid

    assert kafka.start() == kafka.bootstrap
    assert kafka.pid == pid


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
