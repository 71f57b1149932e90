"""All metrics that Lifelong exposes, for Prometheus.

Base units only (seconds, behaviors, users). Histogram buckets stand on the objectives: interests
fresh within 5 s, rankings within 10 ms (p50) and 50 ms (p99). User and item ids are never labels:
every label value is one of a few known in advance.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import operator
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from infra.errors import StoreError, StoreFull, StoreUnavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from infra.store import Room

MULTIPROCESS_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the directory that the processes of one scorer share. It must be set
before prometheus_client is imported for the first time."""

FRESHNESS_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 30, 60, 300)
STORED_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 3600)
GROUP_BUCKETS: Final = (1, 10, 100, 1000, 4000, 16_000, 64_000, 256_000)
RANK_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2, 5,
)  # fmt: skip
STAGE_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
BATCH_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
USER_BUCKETS: Final = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
CANDIDATE_BUCKETS: Final = (1, 10, 50, 100, 250, 500, 1000, 2000, 3000, 5000, 10_000)
NEWER_BUCKETS: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)

RATIO_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)
NATS_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10)

CTR_BINS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
"""Upper bounds of the bins of CTRs by which they are held against what became of the items: about
as wide as each other on a logarithmic scale, since most CTRs are low."""

CTR_BIN_LABELS: Final = tuple(f"{bound:g}" for bound in CTR_BINS)
"""What the bins are called in metrics."""

OTHER_BUNDLE: Final = "other"
"""What stands for the version of any bundle but that in service and the one before."""

EVENT_OUTCOMES: Final = (
    "applied",
    "replayed",
    "duplicate",
    "deleted",
    "covered",
    "tombstone",
    "rejected",
)
LOST_CAUSES: Final = ("retention", "truncation", "deletion")
DAMAGE_KINDS: Final = ("head", "segment", "state")
RECLUSTER_OUTCOMES: Final = ("stored", "stale", "gone", "failed")
RENEWAL_OUTCOMES: Final = ("seen", "due")
STAGES: Final = ("store", "features", "model")
HISTORIES: Final = ("interests", "sequence", "none")
SAMPLE_OUTCOMES: Final = ("measured", "short", "gone", "dropped", "failed")
RELOAD_OUTCOMES: Final = ("reloaded", "failed")
SPAN_OUTCOMES: Final = ("sent", "dropped")
RATIOS: Final = ("hit_rate", "found_weight")
NATS: Final = (
    "clustering_loss",
    "relevance_indicator",
    "relevance_least",
    "relevance_uniform",
)
MEASURES: Final = (*RATIOS, *NATS)
"""What is measured of sampled requests."""


def new_registry() -> CollectorRegistry:
    """A registry with the process's own figures (CPU, memory, files, Python version)."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The body and content type of a /metrics answer.

    With several processes it is the sum over all of them, whichever process is asked; only what the
    kernel tells of a process (process_*) is told of each, by ``pid``, since a sum over processes
    that come and go is neither a counter nor a gauge of anything.
    """
    registry, directory = _of_all(registry), os.environ.get(MULTIPROCESS_DIR)
    if not directory:
        return generate_latest(registry), CONTENT_TYPE_LATEST
    PlatformCollector(registry=registry)
    registry.register(_Processes(Path(directory)))
    with _locked(Path(directory), fcntl.LOCK_SH):
        return generate_latest(registry), CONTENT_TYPE_LATEST


class Figures:
    """What /metrics would say now, to be asked by a program."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for metric in _of_all(registry).collect():
            for sample in metric.samples:
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def of(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The samples of a name, each by its labels; none where there are none yet."""
        return self._samples.get(name, [])

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        return sum(value for has, value in self.of(name) if labels.items() <= has.items())

    def most(self, name: str) -> float:
        """The largest sample of a name; 0 where there is none yet."""
        return max((value for _, value in self.of(name)), default=0.0)


def _of_all(registry: CollectorRegistry) -> CollectorRegistry:
    """The registry, or in multi-process mode one over the processes' files."""
    if os.environ.get(MULTIPROCESS_DIR):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def forget_process(pid: int) -> None:
    """Drop the gauges of a scorer process that has ended, and keep its counts.

    What it counted goes into one file of all that have ended: a file for each would make every
    /metrics slower than the one before. Whoever asks meanwhile waits, since a count that falls or
    is there twice looks like a restart, or like work.
    """
    directory = Path(os.environ[MULTIPROCESS_DIR])
    with _locked(directory, fcntl.LOCK_EX):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        for kind, join in _JOINED.items():
            ended = directory / f"{kind}_{pid}.db"
            if ended.exists():
                _join_counts(ended, directory / f"{kind}_ended.db", join)
                ended.unlink()


_JOINED: Final[Mapping[str, Callable[[float, float], float]]] = {
    "counter": operator.add,
    "histogram": operator.add,
    "summary": operator.add,
    "gauge_max": max,
}
"""How what two processes counted becomes one, by the kind of metric, as its files are named."""


def _join_counts(source: Path, target: Path, join: Callable[[float, float], float]) -> None:
    counts = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        values = MmapedDict.read_all_values_from_file(str(source))  # type: ignore[no-untyped-call]
        for key, value, _, _ in values:
            before, _ = counts.read_value(key)  # type: ignore[no-untyped-call]
            counts.write_value(key, join(before, value), 0.0)  # type: ignore[no-untyped-call]
    except (struct.error, RuntimeError, ValueError):
        pass  # killed while it made the file: what cannot be read of it would fail every /metrics
    finally:
        counts.close()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _locked(directory: Path, kind: int) -> Iterator[None]:
    """Between the processes that share ``directory``."""
    with (directory / "lock").open("ab") as file:
        fcntl.flock(file, kind)
        yield


class _Processes(Collector):
    """What the kernel tells of each process that lives and counts into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        """Nothing: that would look at the processes for no purpose."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Each figure once, with a sample a process."""
        families: dict[str, Metric] = {}
        for pid in self._pids():
            for metric in ProcessCollector(pid=_always(pid), registry=None).collect():
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    family.add_sample(sample.name, {"pid": pid}, sample.value)
        yield from families.values()

    def _pids(self) -> list[str]:
        # A file of its live gauges goes with the process, those of its counters stay.
        files = self._directory.glob("gauge_live*_*.db")
        return sorted({file.stem.rpartition("_")[2] for file in files}, key=int)


def _always(pid: str) -> Callable[[], str]:
    return lambda: pid


class BulkHistogram(Collector):
    """A histogram that takes thousands of values at once: prometheus_client's own takes one after
    the other, a microsecond each. It belongs to one process.

    >>> import numpy as np
    >>> histogram = BulkHistogram("lag_seconds", "Lag.", (1, 5), CollectorRegistry())
    >>> histogram.observe(np.array([0.5, 1.0, 3.0, 9.0]))
    >>> [(s.labels["le"], s.value) for s in next(histogram.collect()).samples[:3]]
    [('1.0', 2.0), ('5.0', 3.0), ('+Inf', 4.0)]
    """

    def __init__(
        self, name: str, documentation: str, buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = (*buckets, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: npt.NDArray[np.float64]) -> None:
        """Count values, in any order."""
        import numpy as np  # the supervisor of scorer processes does without

        places = np.searchsorted(self._bounds, values)
        counts = np.bincount(places, minlength=len(self._bounds)).tolist()
        total = float(values.sum())
        with self._lock:
            self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]
            self._sum += total

    def collect(self) -> Iterator[Metric]:
        """The histogram as of now."""
        with self._lock:
            counts, total = self._counts, self._sum
        upto = itertools.accumulate(counts)
        buckets = [
            (floatToGoString(bound), float(count))  # type: ignore[no-untyped-call]
            for bound, count in zip(self._bounds, upto, strict=True)
        ]
        yield HistogramMetricFamily(self._name, self._documentation, buckets, total)


class BundleMetrics:
    """What a process tells of its bundle: which one it is, and whether the directory holds another.

    Its version is at 1, earlier ones are at 0. An Info metric would be the usual form, but it does
    not exist in multi-process mode, and neither does removing a label.
    """

    bundle_info: Gauge
    bundle_since: Gauge
    bundle_reloads: Counter
    bundle_pending: Gauge

    def use_bundle(self, version: str) -> None:
        """Report that ``version`` is in service from now on."""
        self.bundle_since.set(time.time())
        for metric in list(self.bundle_info.collect()):
            for sample in metric.samples:
                self.bundle_info.labels(**sample.labels).set(0)
        self.bundle_info.labels(version).set(1)


class WorkerMetrics(BundleMetrics):
    """The metrics of a worker, from fetched events to stored interests; it is one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "lifelong_worker_events",
            "Events read from Kafka, by what became of them: applied to a sequence, replayed "
            "(applied before; normal after a restart), duplicate (an event id seen lately), "
            "deleted (of before its user was forgotten), covered (of before the cut of its user's "
            "merged history), tombstone (no payload, with broker.forget_tombstones), ignored (no "
            "behavior, as the settings say) or rejected (sent to the dead-letter topic).",
            ["outcome"],
            registry=registry,
        )
        self.rejects = Counter(
            "lifelong_worker_rejects",
            "Events sent to the dead-letter topic, by reason. A sudden rise means that a producer "
            "changed its format.",
            ["reason"],
            registry=registry,
        )
        self.ignored = Counter(
            "lifelong_worker_ignored",
            "Events that are no behaviors, by source and by what decides it: a path of only or "
            "ignore, or a word of the format. All of them where it should be some means that a "
            "rule is wrong.",
            ["source", "reason"],
            registry=registry,
        )
        self.registry_requests = Counter(
            "lifelong_worker_registry_requests",
            "Questions to the Schema Registry, one a schema, by outcome: found, unknown (its "
            "records are dead letters) or failed (the worker waits, and asks again).",
            ["outcome"],
            registry=registry,
        )
        self.batches = Counter(
            "lifelong_worker_batches",
            "Transactions of events stored and acknowledged, each of all that was decoded while "
            "the one before it was written. No increase while there is lag means that the worker "
            "is stuck.",
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "lifelong_worker_batch_seconds",
            "Time that a transaction of events took: storing, dead letters, and what had to be "
            "tried again.",
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self.group_events = Histogram(
            "lifelong_worker_group_events",
            "Events in a transaction, rejected ones included. It grows with the load, since all "
            "that was decoded while one is written goes into the next.",
            buckets=GROUP_BUCKETS,
            registry=registry,
        )
        self.stored_seconds = BulkHistogram(
            "lifelong_worker_stored_seconds",
            "Time from an event's Kafka timestamp until the store has it: from then on rankings "
            "count it. Objective: 99 % within 1 s. Transactions of nothing but events that were "
            "applied before (after a restart) are left out.",
            STORED_BUCKETS,
            registry,
        )
        self.waiting_bytes = Gauge(
            "lifelong_worker_waiting_bytes",
            "Memory, about, of events that are decoded and wait to be written, or are being "
            "written.",
            registry=registry,
        )
        self.append_seconds = Histogram(
            "lifelong_worker_append_seconds",
            "Time of the store's part of a batch, retries not included. If it grows, the store is "
            "the bottleneck.",
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self.store_errors = Counter(
            "lifelong_worker_store_errors",
            "Store operations that failed, by error class and, of a server (Aerospike), its result "
            "code; a code below 0 is its client's. Events are not acknowledged until they succeed, "
            "so none is lost; lag grows meanwhile.",
            ["error", "code"],
            registry=registry,
        )
        self.store_used_ratio = Gauge(
            "lifelong_worker_store_used_ratio",
            "Share of its room that the store has used: at 1 it takes no more writes. Of several "
            "servers, the fullest; of LMDB, of what limit and disk allow. NaN: it does not tell.",
            registry=registry,
        )
        self.store_reader_ratio = Gauge(
            "lifelong_worker_store_reader_ratio",
            "Share of LMDB's slots for readers that are taken, those of killed processes included "
            "until they are freed; at 1 no more can read. NaN: the store has none.",
            registry=registry,
        )
        self.store_damage = Counter(
            "lifelong_worker_store_damage",
            "Stored records that were found damaged, by kind: a head costs the user's unsealed "
            "behaviors, a segment the 64 it held, a state nothing. Any is a disk to look at.",
            ["kind"],
            registry=registry,
        )
        self.store_retries = Counter(
            "lifelong_worker_store_retries",
            "Store writes tried again after a failure.",
            registry=registry,
        )
        self.reclusters = Counter(
            "lifelong_worker_reclusters",
            "Users reclustered, by outcome: stored, stale (a newer state was there; normal after a "
            "rebalance), gone (the user expired) or failed (an error; the user stays due).",
            ["outcome"],
            registry=registry,
        )
        self.recluster_seconds = Histogram(
            "lifelong_worker_recluster_seconds",
            "Time to turn one user's sequence into an interest state, without the store: of those "
            "extracted together, their mean.",
            buckets=USER_BUCKETS,
            registry=registry,
        )
        self.freshness_seconds = Histogram(
            "lifelong_worker_freshness_seconds",
            "Time from a segment of a user's sequence being sealed to the interests that cover it "
            "being stored. Objective: 99 % within 5 s. In rankings a behavior counts before that.",
            buckets=FRESHNESS_BUCKETS,
            registry=registry,
        )
        self.due_users = Gauge(
            "lifelong_worker_due_users",
            "Users of this worker's partitions that wait to be reclustered, at the last look; the "
            "look is limited, so a large value is a lower bound.",
            registry=registry,
        )
        self.due_oldest_seconds = Gauge(
            "lifelong_worker_due_oldest_seconds",
            "How long this worker's longest due user waits to be reclustered; while due users "
            "cannot be listed, the time since the last look at least. Above 5 s the freshness "
            "objective is being missed now: add workers or recluster threads.",
            registry=registry,
        )
        self.renewal_users = Counter(
            "lifelong_worker_renewal_users",
            "Users looked at after a bundle was exchanged, and once a day since (seen), and "
            "those made due since their interests were of another bundle or not there (due).",
            ["outcome"],
            registry=registry,
        )
        self.renewal_partitions = Gauge(
            "lifelong_worker_renewal_partitions",
            "Partitions of this worker whose users have not all been looked at since the bundle "
            "was exchanged; 0 once they have.",
            registry=registry,
        )
        self.expired_users = Counter(
            "lifelong_worker_expired_users",
            "Users removed from the store, silent for longer than store.ttl_s. Always "
            "0 where the database removes them by itself (Aerospike), or where users never expire.",
            registry=registry,
        )
        self.live = Gauge(
            "lifelong_worker_live",
            "1 while /health/live says 200, else 0: something moves, or has a good reason not to.",
            registry=registry,
        )
        self.ready = Gauge(
            "lifelong_worker_ready",
            "1 while /health/ready says 200, else 0: the worker has joined its group, the store "
            "takes writes, and no part stands still.",
            registry=registry,
        )
        self.consumer_lag = Gauge(
            "lifelong_worker_consumer_lag",
            "Events of the partition that are not stored yet, those behind an open transaction "
            "included: its log's end, as brokers tell it, less what is dealt with.",
            ["topic", "partition"],
            registry=registry,
        )
        self.log_end = Gauge(
            "lifelong_worker_log_end_offset",
            "Offset that the next event of the partition will have, as brokers tell it.",
            ["topic", "partition"],
            registry=registry,
        )
        self.behind_seconds = Gauge(
            "lifelong_worker_behind_seconds",
            "How long the oldest event of the partition that is not stored yet has been waiting, "
            "at most; 0: all are stored. Right after an assignment it is told by the Kafka "
            "timestamp of the last event that was stored.",
            ["topic", "partition"],
            registry=registry,
        )
        self.partitions = Gauge(
            "lifelong_worker_partitions",
            "Partitions that the worker has. The sum over the group is the topics', or some are "
            "read by nobody.",
            registry=registry,
        )
        self.held_events = Gauge(
            "lifelong_worker_held_events",
            "Events of the partition that nobody may read yet, since a producer's transaction is "
            "open before them.",
            ["topic", "partition"],
            registry=registry,
        )
        self.held_seconds = Gauge(
            "lifelong_worker_held_seconds",
            "How long the same open transaction has held the partition back. Above "
            "worker.held_max_s the worker is not ready: a producer hangs.",
            ["topic", "partition"],
            registry=registry,
        )
        self.unreadable_partitions = Gauge(
            "lifelong_worker_unreadable_partitions",
            "Partitions that cannot be read: a damaged batch, or a broker that refuses. Others go "
            "on; /health/ready says where and why.",
            registry=registry,
        )
        self.lost_events = Counter(
            "lifelong_worker_lost_events",
            "Events that were gone from Kafka before they were read, by cause: retention (removed "
            "by age, size or on request), truncation (the log lost its tail) or deletion (of the "
            "topic).",
            ["cause"],
            registry=registry,
        )
        self.log_cuts = Counter(
            "lifelong_worker_log_cuts",
            "Partitions' logs found to end below what the store was fed: brokers lost records "
            "(an unclean election, a disk), and give their offsets to other events.",
            registry=registry,
        )
        self.logs_asked_timestamp_seconds = Gauge(
            "lifelong_worker_logs_asked_timestamp_seconds",
            "When the brokers last told how far the logs of all partitions go. Lag is as of then.",
            registry=registry,
        )
        self.consumer_failures = Counter(
            "lifelong_worker_consumer_failures",
            "Kafka consumers of this worker that crashed, did not start, or got no answers for "
            "half a minute while another client did, each with a line in the log. The next one is "
            "made in its place; readiness is off until it has run for a while.",
            registry=registry,
        )
        self.last_batch_timestamp_seconds = Gauge(
            "lifelong_worker_last_batch_timestamp_seconds",
            "When the last batch was acknowledged, as seconds since epoch; 0: none yet.",
            registry=registry,
        )
        self.bundle_info = Gauge(
            "lifelong_worker_bundle_info",
            "1 for the version of the bundle that interests are made with. Workers and scorers "
            "that differ for long are a rollout that stopped half way.",
            ["version"],
            registry=registry,
        )
        self.bundle_since = Gauge(
            "lifelong_worker_bundle_since_timestamp_seconds",
            "Since when the bundle is in service here, as seconds since epoch; 0: none is yet.",
            registry=registry,
        )
        self.bundle_reloads = Counter(
            "lifelong_worker_bundle_reloads",
            "Bundles that were to take the place of the one in service without a restart, by "
            "outcome: reloaded, or failed (the log says why; the one in service stayed).",
            ["outcome"],
            registry=registry,
        )
        self.bundle_pending = Gauge(
            "lifelong_worker_bundle_pending",
            "1 while bundle.path holds another bundle than the one in service, a part of one, or "
            "none, as of the last look at it (bundle.poll_s); else 0.",
            registry=registry,
        )
        self.spans = Counter(
            "lifelong_worker_spans",
            "Spans of traces (tracing.endpoint), by outcome: sent, or dropped, since the receiver "
            "did not take them or was too slow. Events do not wait for it.",
            ["outcome"],
            registry=registry,
        )
        for unknown in (self.store_used_ratio, self.store_reader_ratio):
            unknown.set(math.nan)
        self._begin()

    def _begin(self) -> None:
        """Have every series begin at 0, so that its first rise is seen as one."""
        for outcome in EVENT_OUTCOMES:
            self.events.labels(outcome)
        # Alerts are on each: what is not there before the first one does not rise with it.
        for error in (StoreUnavailable, StoreFull):
            self.store_errors.labels(error.__name__, "")
        for cause in LOST_CAUSES:
            self.lost_events.labels(cause)
        for kind in DAMAGE_KINDS:
            self.store_damage.labels(kind)
        for outcome in RECLUSTER_OUTCOMES:
            self.reclusters.labels(outcome)
        for outcome in RENEWAL_OUTCOMES:
            self.renewal_users.labels(outcome)
        for outcome in RELOAD_OUTCOMES:
            self.bundle_reloads.labels(outcome)
        for outcome in SPAN_OUTCOMES:
            self.spans.labels(outcome)

    def store_failed(self, error: Exception) -> None:
        """Count a failure of the store."""
        code = error.code if isinstance(error, StoreError) else None
        self.store_errors.labels(type(error).__name__, "" if code is None else str(code)).inc()

    def store_room(self, room: Room | None) -> None:
        """Tell how much of its room the store has used."""
        readers = None if room is None else room.readers
        self.store_used_ratio.set(math.nan if room is None else room.share)
        self.store_reader_ratio.set(math.nan if readers is None else readers)


class ScorerMetrics(BundleMetrics):
    """The metrics of a scorer. In multi-process mode each figure covers all its processes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "lifelong_scorer_requests",
            "Requests answered, by route and HTTP status. 4xx are the client's, 5xx are ours.",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "lifelong_scorer_request_seconds",
            "Time from a request's arrival to its answer, waiting included. Objective for "
            "rankings: half within 10 ms, 99 % within 50 ms.",
            ["route"],
            buckets=RANK_BUCKETS,
            registry=registry,
        )
        self.candidates = Histogram(
            "lifelong_scorer_candidates",
            "Candidates in a ranking request. Latency grows with it: look here first when "
            "request_seconds rises.",
            buckets=CANDIDATE_BUCKETS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "lifelong_scorer_stage_seconds",
            "Time of a ranking's stages: store (reading the user), features (gathering inputs, "
            "clustering on the fly where no interests are stored) and model (the network).",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.rejected = Counter(
            "lifelong_scorer_rejected",
            "Requests turned away before scoring, by reason. overload (more comes than can be "
            "ranked) and deadline (those before it leave no time for it) mean too few scorers; "
            "client: too many waiting ones are the same client's. unauthenticated, forbidden and "
            "rate: who asked may not, or not so often.",
            ["reason"],
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "lifelong_scorer_queue_seconds",
            "Time that a ranking waited for its turn to compute, from when it was taken on. It "
            "grows before request_seconds does.",
            buckets=RANK_BUCKETS,
            registry=registry,
        )
        self.deadline_misses = Counter(
            "lifelong_scorer_deadline_misses",
            "Rankings that were taken on and not answered by their deadlines. What is refused at "
            "once, since there was no time for it, is in lifelong_scorer_rejected_total.",
            registry=registry,
        )
        self.history = Counter(
            "lifelong_scorer_history",
            "Rankings by what was known of the user: interests (stored), sequence (clustered on "
            "the fly: a new bundle, or workers that lag) or none (an unknown user).",
            ["kind"],
            registry=registry,
        )
        self.store_damage = Counter(
            "lifelong_scorer_store_damage",
            "Stored records that were found damaged, by kind: see "
            "lifelong_worker_store_damage_total.",
            ["kind"],
            registry=registry,
        )
        self.degraded = Counter(
            "lifelong_scorer_degraded",
            "Rankings made without the user's history, since the store did not answer. Any is an "
            "outage of the store; the answers say so themselves.",
            registry=registry,
        )
        self.newer_behaviors = Histogram(
            "lifelong_scorer_newer_behaviors",
            "Behaviors newer than the interests that a ranking used; they were attended to one by "
            "one. Growth means that the workers lag. Not told of a system that stores none (TWIN).",
            buckets=NEWER_BUCKETS,
            registry=registry,
        )
        self.unknown_items = Counter(
            "lifelong_scorer_unknown_items",
            "Candidates that the bundle does not know; scorer.unknown_items says what becomes of "
            "them. Growth means that the bundle is too old for the catalog.",
            registry=registry,
        )
        self.samples = Counter(
            "lifelong_scorer_samples",
            "Rankings sampled for measures of quality (scorer.sampled), by outcome: measured, "
            "short (too few behaviors to measure), gone (the user was deleted meanwhile), dropped "
            "(others were waiting) or failed (the store did not answer, or the log says why).",
            ["outcome"],
            registry=registry,
        )
        self.sample_seconds = Histogram(
            "lifelong_scorer_sample_seconds",
            "Time that the measures of a sampled ranking took, reading the user's sequence "
            "included; in a thread of its own, after the answer.",
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        ratio = Histogram(
            "lifelong_scorer_sampled_ratio",
            "Measures of sampled rankings, means over candidates: hit_rate (TWIN: share of the "
            "real top k behaviors that the search finds; less than 1 is a fault) and found_weight "
            "(TWIN: share of the attention to all behaviors that falls on those found; if it "
            "falls, k is too small).",
            ["measure"],
            buckets=RATIO_BUCKETS,
            registry=registry,
        )
        nats = Histogram(
            "lifelong_scorer_sampled_nats",
            "Measures of sampled rankings in nats, means over candidates: relevance_indicator "
            "(ENCODE's RI by the DIN-L that the bundle takes along, with that of DIN-L itself, "
            "relevance_least, and of equal weights, relevance_uniform; near the least is best) and "
            "clustering_loss (ENCODE: what clusters lose against the same attention without them; "
            "0 is best).",
            ["measure"],
            buckets=NATS_BUCKETS,
            registry=registry,
        )
        self.measures = {name: ratio.labels(name) for name in RATIOS}
        self.measures |= {name: nats.labels(name) for name in NATS}
        self.outcomes = Counter(
            "lifelong_scorer_outcomes",
            "Items that were shown and of which clients told what became of them (/v1/outcomes), "
            "by the version of the bundle that gave them their CTRs (that in service or the one "
            "before it; other: of another, or not told) and by bin: the least bound that the CTR "
            "does not exceed.",
            ["version", "bin"],
            registry=registry,
        )
        self.outcomes_positive = Counter(
            "lifelong_scorer_outcomes_positive",
            "Those of the outcomes that were positive (clicks, say).",
            ["version", "bin"],
            registry=registry,
        )
        self.outcomes_predicted = Counter(
            "lifelong_scorer_outcomes_predicted",
            "The sum of the outcomes' CTRs, which is how many were to be positive. Calibrated CTRs "
            "make it equal to lifelong_scorer_outcomes_positive_total in the long run, in every "
            "bin.",
            ["version", "bin"],
            registry=registry,
        )
        self.versions: tuple[str, ...] = ()
        """Of the bundle in service and the one before it, whose outcomes still come."""
        self.inflight = Gauge(
            "lifelong_scorer_inflight",
            "Requests being scored or waiting now.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.ready = Gauge(
            "lifelong_scorer_ready",
            "1 while /v2/health/ready says 200 in every process, else 0: the bundle is warm, and "
            "the store answers, unless rankings go on without it (scorer.without_store).",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.last_ranking_timestamp_seconds = Gauge(
            "lifelong_scorer_last_ranking_timestamp_seconds",
            "When a user was last scored, as seconds since epoch; 0: not yet.",
            multiprocess_mode="max",
            registry=registry,
        )
        self.store_answers = Gauge(
            "lifelong_scorer_store_answers",
            "1 while the store answers every process, asked each second; else 0, and until the "
            "bundle is loaded. Rankings may go on without it: see lifelong_scorer_degraded_total.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.store_empty = Gauge(
            "lifelong_scorer_store_empty",
            "1 while the store answers and has no users, else 0: everybody is scored as a "
            "stranger. It may be the wrong one.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "lifelong_scorer_certificate_expiry_timestamp_seconds",
            "When the first of the certificates in service (scorer.tls_cert, with those between it "
            "and its authority) expires, as seconds since epoch, in the process in which it is "
            "the soonest; 0: no TLS.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.bundle_info = Gauge(
            "lifelong_scorer_bundle_info",
            "1 for the version of the bundle in service; several while processes differ.",
            ["version"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.bundle_since = Gauge(
            "lifelong_scorer_bundle_since_timestamp_seconds",
            "Since when the bundle is in service here, as seconds since epoch, in the process that "
            "has had its own the longest; 0: one has none yet.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.bundle_reloads = Counter(
            "lifelong_scorer_bundle_reloads",
            "Bundles that were to take the place of the one in service without a restart, by "
            "outcome, see lifelong_worker_bundle_reloads_total; each process counts its own.",
            ["outcome"],
            registry=registry,
        )
        self.bundle_pending = Gauge(
            "lifelong_scorer_bundle_pending",
            "1 while bundle.path holds another bundle than a process has in service, see "
            "lifelong_worker_bundle_pending.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.spans = Counter(
            "lifelong_scorer_spans",
            "Spans of traces, by outcome, see lifelong_worker_spans_total. Rankings do not wait "
            "for the receiver.",
            ["outcome"],
            registry=registry,
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for kind in HISTORIES:
            self.history.labels(kind)
        for kind in DAMAGE_KINDS:
            self.store_damage.labels(kind)
        for outcome in SAMPLE_OUTCOMES:
            self.samples.labels(outcome)
        for outcome in RELOAD_OUTCOMES:
            self.bundle_reloads.labels(outcome)
        for outcome in SPAN_OUTCOMES:
            self.spans.labels(outcome)
        self._begin_outcomes(OTHER_BUNDLE)

    def use_bundle(self, version: str) -> None:
        """Report that ``version`` is in service from now on."""
        super().use_bundle(version)
        self._begin_outcomes(version)
        self.versions = tuple(dict.fromkeys((version, *self.versions)))[:2]

    def _begin_outcomes(self, version: str) -> None:
        for label in CTR_BIN_LABELS:
            for counter in (self.outcomes, self.outcomes_positive, self.outcomes_predicted):
                counter.labels(version, label)
