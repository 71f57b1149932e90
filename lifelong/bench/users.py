"""``lifelong bench users``: what very many users cost whoever goes over them, or should not.

The store is an LMDB of generated users of one to three events each; one in fifty has a sealed
segment besides, and is due. Their records are those of a few users that a store wrote, put under
other names: written event by event, millions of users would take an hour.

A listing, a renewal and a sweep go over all users, page by page. Everything else must not: a worker
that starts with a long list of due users, its metrics, ``lifelong check`` and ``lifelong inspect``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
from faust.types import TP
from prometheus_client import CollectorRegistry

from extractor.systems import open_system
from infra.behaviors import DEFAULT_ACTIONS, Source, item_key, pack_behavior, partition_owner
from infra.errors import LifelongError
from infra.kafka.admin import create_topic
from infra.kafka.local import LocalKafka
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.settings import Settings, load_settings
from infra.store import Append, Group, Store, StoreOptions, wall_clock_ms
from infra.stores.lmdb import DATA, DEFAULT_MAX_SIZE, LmdbStore
from lifelong.bench.worker import BenchedWorker, started
from lifelong.checks import run_checks
from lifelong.demo.processes import anonymous_memory
from lifelong.inspection import run_inspect
from lifelong.machine import machine
from lifelong.shipped import BUNDLE, BUNDLES
from models.bundle import Bundle
from streaming.renewal import PAGE, Renewal
from streaming.schedule import SWEEP_USERS

TOPIC: Final = "bench"
PARTITION: Final = TP(TOPIC, 0)
OWNER: Final = partition_owner(*PARTITION)
LIGHT: Final = (1, 2, 3)
"""Events of light users."""
DUE_EVERY: Final = 50
"""One user in so many has a sealed segment, and is due."""
DUE: Final = SEGMENT + 6
"""Events of such a user."""
TOGETHER: Final = 100_000
"""Users written in one transaction."""
YEAR_S: Final = 365 * 86_400.0
LOOK_S: Final = 0.2
CLUSTERED_S: Final = 1200.0
"""Longest that the worker may take for the users who are due."""


class Walk(NamedTuple):
    """What it took to go over all users."""

    seconds: float
    memory: int
    """Bytes that it held at most, beyond those before, without the store's pages."""


def run(users: int) -> dict[str, Any]:
    """Measure with so many users; the bench's JSON object.

    Raises:
        BrokerError: there is no Apache Kafka for the worker.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lifelong-bench-") as directory,
        LocalKafka(Path(directory) / "kafka", kind="apache") as kafka,
    ):
        path = Path(directory) / "store"
        create_topic(kafka.bootstrap, TOPIC, 1)
        create_topic(kafka.bootstrap, f"{TOPIC}.dead", 1)
        began = time.perf_counter()
        due = generate(path, users)
        figures: dict[str, float] = {
            "users": users,
            "due": due,
            "generate_s": time.perf_counter() - began,
            "bytes_per_user": (path / DATA).stat().st_size / users,
        }
        with _store(path) as store:
            for name, step in {"list": _list(store), "renewal": _renew(store)}.items():
                walk = go_over(step)
                figures |= {f"{name}_s": walk.seconds, f"{name}_memory_bytes": walk.memory}
            figures["sweep_s"] = _seconds(lambda: store.sweep(wall_clock_ms(), SWEEP_USERS))
        began = time.perf_counter()
        with started(
            Path(directory), kafka.bootstrap, TOPIC, reclustering=True, store=path
        ) as worker:
            figures["worker_ready_s"] = time.perf_counter() - began
            settings = _settings(kafka.bootstrap, path)
            figures["check_s"] = _seconds(lambda: run_checks(settings, quiet=True))
            figures["inspect_s"] = _seconds(lambda: run_inspect(settings, None, 0, quiet=True))
            figures |= _clustered(worker, due, began)
    figures = {key: round(value, 3) for key, value in figures.items()}
    return {
        "machine": machine(),
        "results": [
            {"name": "listed", "value": round(users / figures["list_s"], 1), "unit": "users/s"},
            {"name": "renewed", "value": round(users / figures["renewal_s"], 1), "unit": "users/s"},
        ],
        "ratios": {},
        "peers": [],
        "tables": [
            {
                "title": "what so many users cost",
                "columns": ["value"],
                "rows": {key: [value] for key, value in figures.items()},
            }
        ],
        "figures": figures,
    }


def generate(path: Path, users: int) -> int:
    """Make a store of so many users, beside those who are copied; returns how many are due."""
    digest = Bundle.load(BUNDLE, verify=False).digest
    kinds = [f"!{events:02}" for events in (*LIGHT, DUE)]  # in this order, before all others
    behavior = pack_behavior(item_key("a"), wall_clock_ms(), 0, 0, DEFAULT_ACTIONS.codes["click"])
    with _store(path) as store:
        for name, events in zip(kinds, (*LIGHT, DUE), strict=True):
            append = Append(name, [behavior] * events, [0] * events, list(range(events)))
            store.append([Group(Source(1, OWNER), [append])], wall_clock_ms(), digest=digest)
    with lmdb.open(str(path), map_size=DEFAULT_MAX_SIZE, max_dbs=16, sync=False) as env:
        heads, segments, queue = (
            env.open_db(name, create=False) for name in (b"heads", b"segments", b"queue")
        )
        with env.begin() as txn:
            records = [head for _, head in txn.cursor(heads)]
            [(segment_key, segment)] = txn.cursor(segments)
            [(due_key, _)] = txn.cursor(queue)
        template = kinds[-1].encode()
        place, listed = segment_key[len(template) :], due_key[: -len(template)]
        for start in range(0, users, TOGETHER):
            numbers = range(start, min(start + TOGETHER, users))
            names = [f"user-{number:010}".encode() for number in numbers]
            due = [name for number, name in zip(numbers, names, strict=True) if _is_due(number)]
            rows = [
                (name, records[-1 if _is_due(number) else number % len(LIGHT)])
                for number, name in zip(numbers, names, strict=True)
            ]
            with env.begin(write=True) as txn:
                txn.cursor(heads).putmulti(rows, append=True)
                txn.cursor(segments).putmulti([(name + place, segment) for name in due])
                txn.cursor(queue).putmulti([(listed + name, b"") for name in due])
    return 1 + sum(map(_is_due, range(users)))


def _is_due(number: int) -> bool:
    return number % DUE_EVERY == 0


def go_over(step: Callable[[], bool]) -> Walk:
    """Take steps while there are more."""
    pid = os.getpid()
    before = most = anonymous_memory(pid)
    began = time.perf_counter()
    for number in count():
        more = step()
        if not more or number % PAGE == 0:
            most = max(most, anonymous_memory(pid))
        if not more:
            break
    return Walk(time.perf_counter() - began, most - before)


def _list(store: Store) -> Callable[[], bool]:
    """Steps of a listing, a page each."""
    after = b""

    def step() -> bool:
        nonlocal after
        page = store.users(after, PAGE)
        after = page.after or b""
        return page.after is not None

    return step


def _renew(store: Store) -> Callable[[], bool]:
    """Steps of a renewal for a bundle of which nobody has a state, without its pauses."""
    system = open_system(Bundle.load(BUNDLES["sdim"], verify=False))
    metrics = WorkerMetrics(CollectorRegistry())
    renewal = Renewal(store, system, metrics, per_second=1)
    renewal.set_partitions({PARTITION}, [PARTITION])
    return renewal.step


def _clustered(worker: BenchedWorker, due: int, began: float) -> dict[str, float]:
    """The worker's list of due users, from its start to the last of them."""
    memory, looks = 0, [0.0]
    while time.perf_counter() - began < CLUSTERED_S:
        asked = time.perf_counter()
        look = worker.look()
        looks.append(look.at - asked)
        memory = max(memory, worker.own_memory())
        if look.extracted >= due:
            return {
                "worker_clustered_s": time.perf_counter() - began,
                "worker_memory_bytes": memory,
                "metrics_s": max(looks),
            }
        time.sleep(LOOK_S)
    raise LifelongError(f"the worker did not cluster {due} users within {CLUSTERED_S:.0f} s")


def _settings(bootstrap: str, store: Path) -> Settings:
    return load_settings(
        {
            "broker.bootstrap": bootstrap,
            "broker.topic": TOPIC,
            "broker.dead_letter_topic": f"{TOPIC}.dead",
            "store.url": f"lmdb://{store}",
            "bundle.path": BUNDLE,
        },
        environ={},
    )


def _store(path: Path) -> closing[LmdbStore]:
    """The store, whose users expire after a year; without waiting for the disk."""
    return closing(LmdbStore(path, StoreOptions(ttl_s=YEAR_S), sync=False))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
