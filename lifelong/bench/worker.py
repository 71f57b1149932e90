"""One worker under measurement: started as users start it, looked at from outside."""

from __future__ import annotations

import shutil
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from infra.errors import LifelongError
from infra.stores.lmdb import DATA
from lifelong.demo.processes import ServiceProcess, free_port
from lifelong.shipped import BUNDLE

READY_S: Final = 60.0
APPLIED: Final = 'lifelong_worker_events_total{outcome="applied"}'
EXTRACTED: Final = 'lifelong_worker_reclusters_total{outcome="stored"}'
OLDEST: Final = "lifelong_worker_due_oldest_seconds"
CLUSTERED: Final = "lifelong_worker_freshness_seconds"


class Look(NamedTuple):
    """What a worker's metrics say at a moment."""

    at: float
    """By `time.perf_counter`."""
    applied: float
    """Events since it was started."""
    extracted: float
    """Users since it was started."""
    oldest_due_s: float
    clustered_p99_s: float | None
    """From a segment sealed to interests that cover it; None: there were none yet."""
    processor_s: float = 0.0
    """Of all its threads since it was started."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the worker gave."""

    events: int
    """Applied since it was started."""
    events_per_second: float
    processor_us: float
    """Processor time an event."""
    users_extracted_per_second: float
    oldest_due_s: float
    """The longest that anybody waited to be reclustered, at any look."""
    clustered_p99_s: float | None
    """As of `Look`, over all that was clustered."""
    written: int
    """Bytes handed to the system."""
    kept: int
    """Bytes of the store's file."""
    peak_memory: int

    def figures(self, users: int) -> dict[str, float]:
        """Of a load of so many users, by their keys in ``figures``."""
        clustered = self.clustered_p99_s
        return {
            "events_per_second": self.events_per_second,
            "processor_us_per_event": self.processor_us,
            "users_extracted_per_second": self.users_extracted_per_second,
            "oldest_due_s": self.oldest_due_s,
            **({} if clustered is None else {"clustered_p99_s": clustered}),
            "bytes_written_per_event": self.written / self.events,
            "bytes_kept_per_user": self.kept / users,
            "peak_memory_bytes": self.peak_memory,
        }


class BenchedWorker:
    """A worker's process and its store, an LMDB of its own. `started` gives one."""

    def __init__(self, process: ServiceProcess, url: str, store: Path) -> None:
        self.store = store
        self._process = process
        self._url = url

    def own_memory(self) -> int:
        """Bytes of its own, the mapped store's pages not counted."""
        return self._process.anonymous_memory()

    def look(self) -> Look:
        """Read its metrics.

        Raises:
            ServiceFailed: it has ended.
        """
        self._process.check()
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=5) as answer:  # noqa: S310  # ours
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        found = {name: float(value) for name, value in pairs}
        return Look(
            time.perf_counter(),
            found.get(APPLIED, 0.0),
            found.get(EXTRACTED, 0.0),
            found.get(OLDEST, 0.0),
            quantile(found, CLUSTERED, 0.99),
            self._process.processor_s(),
        )

    def watch(self, enough: Callable[[Look, Look], bool], *, pause_s: float, limit_s: float) -> Run:
        """Look again and again, until it is ``enough``: told the first look that saw applied events
        and the one at hand.

        Raises:
            LifelongError: it was not within ``limit_s``.
        """
        first: Look | None = None
        oldest = 0.0
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            now = self.look()
            oldest = max(oldest, now.oldest_due_s)
            if first is None:
                first = now if now.applied else None
            elif enough(first, now):
                seconds, events = now.at - first.at, now.applied - first.applied
                return Run(
                    int(now.applied),
                    events / seconds,
                    1e6 * (now.processor_s - first.processor_s) / max(events, 1),
                    (now.extracted - first.extracted) / seconds,
                    oldest,
                    now.clustered_p99_s,
                    self._process.written(),
                    (self.store / DATA).stat().st_size,
                    self._process.peak_memory(),
                )
            time.sleep(pause_s)
        raise LifelongError(f"the worker did not take the load within {limit_s:.0f} s")


@contextmanager
def started(
    directory: Path,
    bootstrap: str,
    topic: str,
    *,
    reclustering: bool,
    store: Path | None = None,
    chosen: Mapping[str, object] | None = None,
) -> Iterator[BenchedWorker]:
    """A worker that is ready; it has ended, and its store is gone, when this is left.

    Args:
        directory: where the store and the log go.
        bootstrap: of Kafka.
        topic: of events; the one of dead letters is beside it, ``TOPIC.dead``.
        reclustering: whether it reclusters.
        store: one that is there; None: an empty one.
        chosen: further settings.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    group = uuid.uuid4().hex
    store = store or directory / group
    chosen = {
        **(chosen or {}),
        "broker.bootstrap": bootstrap,
        "broker.topic": topic,
        "broker.dead_letter_topic": f"{topic}.dead",
        "broker.group": group,
        "store.url": f"lmdb://{store}",
        "bundle.path": BUNDLE,
        "worker.metrics_port": port,
        "worker.recluster_threads": int(reclustering),
    }
    arguments = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    log = directory / f"{group}.log"
    with ServiceProcess("worker", ["worker", *arguments], log, f"{url}/health/live") as process:
        process.wait_ready(READY_S)
        yield BenchedWorker(process, url, store)
    shutil.rmtree(store)


def quantile(found: Mapping[str, float], histogram: str, share: float) -> float | None:
    """A histogram's quantile, as Prometheus' histogram_quantile: even within a bucket, and beyond
    the last bound that bound; None: nothing was observed.
    """
    head = f'{histogram}_bucket{{le="'
    mine = ((name, count) for name, count in found.items() if name.startswith(head))
    bounds = sorted((float(name[len(head) : -2]), count) for name, count in mine)
    if not bounds or not bounds[-1][1]:
        return None
    wanted = share * bounds[-1][1]
    for (low, below), (high, within) in pairwise([(0.0, 0.0), *bounds[:-1]]):
        if within >= wanted:
            return low + (high - low) * (wanted - below) / (within - below)
    return bounds[-2][0]
