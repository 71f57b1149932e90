"""``lifelong bench stream``: single JSON events from Kafka into rolling sequences, ours and peers.

Every system reads the same topic of the same local Apache Kafka, one JSON event a record, keyed by
user: the shipped purchases, or those of very many light users (`lifelong.bench.loads`). Ours is the
worker as users start it, one process, into LMDB with every transaction synced; it reclusters only
if it is told to, since no peer has that. The peers do the same task as their documentation suggests
(`lifelong.bench.peers`). All alternate in rounds; medians count.

Beside the rate it counts what the worker cost: bytes that it handed to the system
(``/proc/PID/io``) an event, bytes of the store a user, memory, and how late interests were.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from infra.errors import BrokerError, LifelongError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from infra.stores.lmdb import DATA
from lifelong.bench.loads import LOADS, LoadName, write_load
from lifelong.bench.report import compose
from lifelong.demo.processes import ServiceProcess, free_port
from lifelong.shipped import BUNDLE, MAPPING
from streaming.files.replay import replay

OURS: Final = "lifelong worker"
PARTITIONS: Final = 4
PEER_S: Final = 240.0
"""Longest that a peer may take."""
OURS_S: Final = 1200.0
LOOK_S: Final = 0.02
FAUST_TABLE: Final = "faust table agent"
QUIX: Final = "quix streams"
APPLIED: Final = 'lifelong_worker_events_total{outcome="applied"}'
EXTRACTED: Final = 'lifelong_worker_reclusters_total{outcome="stored"}'
OLDEST: Final = "lifelong_worker_due_oldest_seconds"


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the worker gave."""

    events_per_second: float
    users_extracted_per_second: float
    oldest_due_s: float
    """The longest that anybody waited to be reclustered, at any look."""
    written: int
    """Bytes handed to the system."""
    kept: int
    """Bytes of the store's file."""
    peak_memory: int


def run(
    quick: bool,
    name: LoadName = "purchases",
    *,
    reclustering: bool = False,
    events: int | None = None,
) -> dict[str, Any]:
    """Measure; the bench's JSON object.

    Args:
        quick: under a minute.
        name: the load.
        reclustering: whether our worker reclusters meanwhile.
        events: how many ours gets, where not as many as the load says.

    Raises:
        BrokerError: there is no Apache Kafka to measure with.
        ModuleNotFoundError: a peer is not installed (extra `bench`).
    """
    if importlib.util.find_spec("quixstreams") is None:  # told now, not after minutes
        raise ModuleNotFoundError("no quixstreams", name="quixstreams")
    load = LOADS[name, quick]
    ours = events or load.ours
    with (
        tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        LocalKafka(Path(directory) / "kafka", kind="apache") as kafka,
    ):
        bench = _Bench(kafka.bootstrap, Path(directory))
        users = bench.fill(name, load.users, max(ours, load.raw, load.table, load.quix))
        runs: list[Run] = []

        def measure_ours() -> float:
            runs.append(bench.ours(ours, reclustering=reclustering))
            return runs[-1].events_per_second

        systems: dict[str, Callable[[], float]] = {
            OURS: measure_ours,
            "faust raw agent": lambda: bench.peer("faust-raw", load.raw),
            FAUST_TABLE: lambda: bench.peer("faust-table", load.table),
            QUIX: lambda: bench.peer("quix", load.quix),
        }
        rounds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(load.rounds):
            for system, measure in systems.items():
                rounds[system].append(measure())
    result = compose(OURS, rounds, "events/s", [name for name in systems if name != OURS])
    ratios = result["ratios"]
    figures = {
        "events_per_second": median(one.events_per_second for one in runs),
        "users_extracted_per_second": median(one.users_extracted_per_second for one in runs),
        "oldest_due_s": max(one.oldest_due_s for one in runs),
        "bytes_written_per_event": median(one.written for one in runs) / ours,
        "bytes_kept_per_user": median(one.kept for one in runs) / users,
        "peak_memory_bytes": max(one.peak_memory for one in runs),
        "quix_ratio": ratios[QUIX],
        "faust_table_ratio": ratios[FAUST_TABLE],
    }
    return {
        **result,
        "load": {
            "name": name,
            "events": ours,
            "users": users,
            "reclustering": "on" if reclustering else "off",
        },
        "figures": {name: round(value, 2) for name, value in figures.items()},
    }


class _Bench:
    def __init__(self, bootstrap: str, directory: Path) -> None:
        self._bootstrap = bootstrap
        self._directory = directory
        self._topic = f"bench-{uuid.uuid4().hex[:8]}"

    def fill(self, name: LoadName, users: int, events: int) -> int:
        """Put a load onto the topic; returns how many users it is of."""
        create_topic(self._bootstrap, self._topic, PARTITIONS)
        create_topic(self._bootstrap, f"{self._topic}.dead", 1)
        file = self._directory / "events.parquet"
        found = write_load(name, users, events, file)
        sent = replay(file, producer_config(self._bootstrap), self._topic, MAPPING)
        if sent.delivered != events:
            raise BrokerError(f"only {sent.delivered} of {events} events reached Kafka")
        return found

    def ours(self, events: int, *, reclustering: bool) -> Run:
        """What one worker does, from its first batch to its last."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        group = uuid.uuid4().hex
        store = self._directory / group
        chosen = {
            "broker.bootstrap": self._bootstrap,
            "broker.topic": self._topic,
            "broker.dead_letter_topic": f"{self._topic}.dead",
            "broker.group": group,
            "store.url": f"lmdb://{store}",
            "bundle.path": BUNDLE,
            "worker.metrics_port": port,
            "worker.recluster_threads": int(reclustering),
        }
        arguments = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        log = self._directory / f"{group}.log"
        with ServiceProcess("worker", ["worker", *arguments], log, f"{url}/health/live") as worker:
            worker.wait_ready(60)
            rate, extracted, oldest = _watch(worker, url, events)
            peak, written = worker.peak_memory(), worker.written()
        size = (store / DATA).stat().st_size
        shutil.rmtree(store)
        return Run(rate, extracted, oldest, written, size, peak)

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


def _watch(worker: ServiceProcess, url: str, events: int) -> tuple[float, float, float]:
    """Events and extracted users a second between the first sight of applied events and the last
    one, and the longest that anybody was due.
    """
    first: tuple[float, float, float] | None = None
    oldest = 0.0
    deadline = time.monotonic() + OURS_S
    while time.monotonic() < deadline:
        worker.check()
        found, now = _metrics(url), time.perf_counter()
        applied, extracted = found.get(APPLIED, 0.0), found.get(EXTRACTED, 0.0)
        oldest = max(oldest, found.get(OLDEST, 0.0))
        if first is None and applied:
            first = now, applied, extracted
        elif first is not None and applied >= events:
            seconds = now - first[0]
            return (applied - first[1]) / seconds, (extracted - first[2]) / seconds, oldest
        time.sleep(LOOK_S)
    raise LifelongError(f"the worker did not apply {events} events within {OURS_S:.0f} s")


def _metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310  # ours
        lines = answer.read().decode().splitlines()
    found = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in found}
