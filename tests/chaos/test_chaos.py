"""The short form of `make chaos`: every fault once, on few events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.kafka.jars import apache_obstacle
from tests.chaos.faults import FAULTS
from tests.chaos.run import run_seed
from tests.chaos.scene import Size

SEED = 1


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    """Slow: a broker and workers of its own, and every fault, each waited for."""
    obstacle = apache_obstacle()
    if obstacle is not None:
        pytest.skip(f"Apache Kafka cannot run here: {obstacle}")
    run = run_seed(SEED, Size(events=40_000, users=400, a_second=5_000), tmp_path, tuple(FAULTS))
    assert not run.wrong, json.dumps(run.row(), indent=1)
