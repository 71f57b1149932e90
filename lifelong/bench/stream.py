"""``lifelong bench stream``: single JSON events from Kafka into rolling sequences, ours and peers.

Every system reads the same topic of the same local Apache Kafka, one JSON event a record, keyed by
user: the shipped purchases, or those of very many light users (`lifelong.bench.loads`). Ours is the
worker as users start it, one process, into LMDB with every transaction synced; it reclusters only
if it is told to, since no peer has that. The peers do the same task as their documentation suggests
(`lifelong.bench.peers`). All alternate in rounds; medians count.

Beside the rate it counts what the worker cost: bytes that it handed to the system
(``/proc/PID/io``) an event, bytes of the store a user, memory, and how late interests were. The
topic holds the whole load, some 150 bytes an event; what goes on for minutes is sent meanwhile
(`lifelong.bench.sustained`).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

from infra.errors import BrokerError, LifelongError
from infra.kafka.admin import create_topic
from infra.kafka.clients import producer_config
from infra.kafka.local import LocalKafka
from lifelong.bench.loads import LOADS, LoadName, write_load
from lifelong.bench.report import compose
from lifelong.bench.worker import Run, started
from lifelong.shipped import MAPPING
from streaming.files.replay import replay

OURS: Final = "lifelong worker"
PARTITIONS: Final = 4
PEER_S: Final = 240.0
"""Longest that a peer may take."""
OURS_S: Final = 1200.0
LOOK_S: Final = 0.02
FAUST_TABLE: Final = "faust table agent"
QUIX: Final = "quix streams"


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
    each = [one.figures(users) for one in runs]
    worst = {"oldest_due_s", "clustered_p99_s", "peak_memory_bytes"}
    figures = {
        **{key: (max if key in worst else median)(one[key] for one in each) for key in each[0]},
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
        with started(
            self._directory, self._bootstrap, self._topic, reclustering=reclustering
        ) as worker:
            return worker.watch(
                lambda _, now: now.applied >= events, pause_s=LOOK_S, limit_s=OURS_S
            )

    def peer(self, name: str, events: int) -> float:
        """Events a second of a peer, by its own clock."""
        return peer(name, self._bootstrap, self._topic, events, self._directory)


def peer(
    name: str, bootstrap: str, topic: str, events: int, place: Path, registry: str = ""
) -> float:
    """Events a second of a peer, by its own clock.

    Args:
        name: of `lifelong.bench.peers`.
        bootstrap, topic, events: what it reads, and how much of it.
        place: where it may keep things.
        registry: URL of a Schema Registry, for those that ask one.
    """
    directory = place / uuid.uuid4().hex
    directory.mkdir()
    command = [
        *(sys.executable, "-m", "lifelong.bench.peers", name),
        *(bootstrap, topic, str(events), str(directory), registry),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LifelongError(f"peer {name} took longer than {PEER_S:.0f} s") from error
    try:
        # Faust hides the cursor with a control sequence before whatever comes first.
        report = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError as error:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LifelongError(f"peer {name} gave no result: {words[-1]}") from error
    return float(report["events"] / report["seconds"])
