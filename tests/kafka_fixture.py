"""The Kafka brokers that tests share, as a pytest plugin.

`kafka` is a real Apache Kafka, started once for the whole session, so tests use topic names of
their own (`unique_topic`). Where it cannot run the test is skipped, which fails under CI, so that
nothing passes for want of Java (`tests.skips`). A test of a broker that is away for a while may
`kafka.stop()` it, and must `kafka.start()` it again however it ends: address and records stay.

`mock_kafka` is librdkafka's mock cluster, which needs neither Java nor Maven.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.kafka.jars import apache_obstacle
from infra.kafka.local import LocalKafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """The session's Apache Kafka."""
    obstacle = apache_obstacle()
    if obstacle is not None:
        pytest.skip(f"Apache Kafka cannot run here: {obstacle}")
    with LocalKafka(tmp_path_factory.mktemp("kafka"), kind="apache") as broker:
        yield broker


@pytest.fixture
def mock_kafka(tmp_path: Path) -> Iterator[LocalKafka]:
    """A mock cluster for one test."""
    with LocalKafka(tmp_path / "mock", kind="mock") as broker:
        yield broker


@pytest.fixture
def unique_topic() -> Callable[[str], str]:
    """Makes a topic name that no other test uses from a speaking one."""
    return lambda name: f"{name}.{uuid.uuid4().hex[:8]}"
