"""Who owns a Kafka takes it along, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kafka.local import LocalKafka
from tests.infra.kafka.steps import alive, wait_until_gone

REPOSITORY = Path(__file__).parents[2]


OWNER = """
import sys, time
from pathlib import Path
from infra.kafka.local import LocalKafka
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
