"""Stand-ins for Java and for a fetched Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.kafka.jars import KAFKA_VERSION
from tests.infra.kafka.steps import script


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
