"""Fetching Apache Kafka, and why it cannot run on some machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import BrokerError
from infra.kafka.jars import KAFKA_VERSION, apache_obstacle, fetch_kafka
from tests.infra.kafka.steps import one_line, script

JAR = f"kafka_2.13-{KAFKA_VERSION}.jar"


def test_a_failing_maven_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    maven = script(tmp_path / "mvn", "echo '[INFO] hello'; echo '[ERROR] no such host'; exit 1")

    with pytest.raises(BrokerError) as error:
        fetch_kafka(tmp_path / "cache", maven=maven)

    assert "no such host" in one_line(error)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_maven_that_brings_nothing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="could not fetch"):
        fetch_kafka(tmp_path / "cache", maven=script(tmp_path / "mvn", "exit 0"))


def test_kafka_is_what_maven_brought(tmp_path: Path) -> None:
    maven = script(
        tmp_path / "mvn",
        f"""
        for argument; do case $argument in -DoutputDirectory=*) jars=${{argument#*=}};; esac; done
        mkdir -p "$jars"; touch "$jars/{JAR}" """,
    )

    folder = fetch_kafka(tmp_path / "cache", maven=maven)

    assert [jar.name for jar in folder.iterdir()] == [JAR]


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
