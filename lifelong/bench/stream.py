"""``lifelong bench stream``: single JSON events from Kafka into rolling sequences, ours and peers.

Every system reads the same topic of the same local Apache Kafka: the shipped purchases, one JSON
event a record, keyed by user. Ours is the worker as users start it, one process, into LMDB with
every transaction synced; reclustering waits, since no peer has it. The peers do the same task as
their documentation suggests (`lifelong.bench.peers`). All alternate in rounds; medians count.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from infra.errors import BrokerError, LifelongError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from lifelong.bench.report import compose
from lifelong.demo.processes import ServiceProcess, free_port
from lifelong.shipped import BUNDLE, MAPPING, PURCHASES, Purchases, write_purchases
from streaming.files.replay import replay

OURS: Final = "lifelong worker"
PARTITIONS: Final = 4
PEER_S: Final = 240.0
"""Longest that a peer may take."""


@dataclass(frozen=True, slots=True)
class Load:
    """How many events each system handles a round.

    Quix Streams gets as many as ours, since what it costs grows with the lists; the slower peers
    get fewer, hence shorter lists, which is to their advantage.
    """

    rounds: int
    ours: int
    raw: int
    table: int
    quix: int


FULL: Final = Load(rounds=5, ours=600_000, raw=100_000, table=30_000, quix=600_000)
QUICK: Final = Load(rounds=1, ours=300_000, raw=30_000, table=5_000, quix=300_000)


def run(quick: bool) -> dict[str, Any]:
    """Measure; the bench's JSON object.

    Raises:
        BrokerError: there is no Apache Kafka to measure with.
        ModuleNotFoundError: a peer is not installed (extra `bench`).
    """
    if importlib.util.find_spec("quixstreams") is None:  # told now, not after minutes
        raise ModuleNotFoundError("no quixstreams", name="quixstreams")
    load = QUICK if quick else FULL
    with (
        tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        LocalKafka(Path(directory) / "kafka", kind="apache") as kafka,
    ):
        bench = _Bench(kafka.bootstrap, Path(directory))
        bench.fill(load.ours)
        systems: dict[str, Callable[[], float]] = {
            OURS: lambda: bench.ours(load.ours),
            "faust raw agent": lambda: bench.peer("faust-raw", load.raw),
            "faust table agent": lambda: bench.peer("faust-table", load.table),
            "quix streams": lambda: bench.peer("quix", load.quix),
        }
        rounds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(load.rounds):
            for name, measure in systems.items():
                rounds[name].append(measure())
    return compose(OURS, rounds, "events/s", [name for name in systems if name != OURS])


class _Bench:
    def __init__(self, bootstrap: str, directory: Path) -> None:
        self._bootstrap = bootstrap
        self._directory = directory
        self._topic = f"bench-{uuid.uuid4().hex[:8]}"

    def fill(self, events: int) -> None:
        """Put the purchases onto the topic."""
        if events > len(Purchases.load()):
            raise LifelongError(f"{PURCHASES} has fewer than {events} purchases")
        create_topic(self._bootstrap, self._topic, PARTITIONS)
        create_topic(self._bootstrap, f"{self._topic}.dead", 1)
        file = self._directory / "purchases.parquet"
        write_purchases(0, events, file)
        sent = replay(file, producer_config(self._bootstrap), self._topic, MAPPING)
        if sent.delivered != events:
            raise BrokerError(f"only {sent.delivered} of {events} events reached Kafka")

    def ours(self, events: int) -> float:
        """Events a second of one worker, from its first batch to its last."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        group = uuid.uuid4().hex
        chosen = {
            "broker.bootstrap": self._bootstrap,
            "broker.topic": self._topic,
            "broker.dead_letter_topic": f"{self._topic}.dead",
            "broker.group": group,
            "store.url": f"lmdb://{self._directory / group}",
            "bundle.path": BUNDLE,
            "worker.metrics_port": port,
            # Far away, so that consuming is measured alone.
            "worker.recluster_threads": 0,
        }
        arguments = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        log = self._directory / f"{group}.log"
        with ServiceProcess("worker", ["worker", *arguments], log, f"{url}/health/live") as worker:
            worker.wait_ready(60)
            return _watch(worker, url, events)

    def peer(self, name: str, events: int) -> float:
        """Events a second of a peer, by its own clock."""
        directory = self._directory / uuid.uuid4().hex
        directory.mkdir()
        command = [
            *(sys.executable, "-m", "lifelong.bench.peers", name),
            *(self._bootstrap, self._topic, str(events), str(directory)),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PEER_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise LifelongError(f"peer {name} took longer than {PEER_S:.0f} s") from error
        try:
            # Faust hides the cursor with a control sequence before whatever comes first.
            report = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError as error:
            words = done.stderr.strip().splitlines() or ["it said nothing"]
            raise LifelongError(f"peer {name} gave no result: {words[-1]}") from error
        return float(report["events"] / report["seconds"])


def _watch(worker: ServiceProcess, url: str, events: int) -> float:
    """Events a second between the first sight of applied events and the last one."""
    first: tuple[float, float] | None = None
    deadline = time.monotonic() + PEER_S
    while time.monotonic() < deadline:
        worker.check()
        applied, now = _applied(url), time.perf_counter()
        if applied >= events and first is not None:
            return (applied - first[1]) / (now - first[0])
        if applied and first is None:
            first = now, applied
        time.sleep(0.01)
    raise LifelongError(f"the worker did not apply {events} events within {PEER_S:.0f} s")


def _applied(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310  # ours
        for line in answer.read().decode().splitlines():
            if line.startswith('lifelong_worker_events_total{outcome="applied"}'):
                return float(line.rsplit(" ", 1)[1])
    return 0.0
