"""Measures of quality taken of some live requests, after their answers, in a thread of its own.

What is measured is the system's (`extractor.system.System.measure`). A sampled request hands over
what it was fed, and goes on; the whole sequence, where a state stood for it, is read once more by
the thread. It is kept from mattering to requests: it starts late, rests for most of the time, and
what comes while others wait is dropped and counted.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, NamedTuple

import numpy as np

from extractor.system import Candidates, System, UserHistory
from infra.errors import StoreError
from infra.metrics import SAMPLE_OUTCOMES, ScorerMetrics
from infra.store import Behaviors, Store, StoredSequence
from infra.telemetry import get_logger

CANDIDATES: Final = 64
"""Candidates of a request that are looked at, at most, evenly spread over the list: measures are
means over many requests, which differ by more than a request's candidates do."""

WAITING: Final = 4
"""Samples that may wait; each holds a user's whole sequence, at most (TWIN)."""

AFTER_S: Final = 0.05
"""How long a sample is left alone: by then the request's answer is written and sent."""

BUSY: Final = 0.1
"""Share of the time in which the thread may work: of a core that a ranking may need."""

CLOSING_S: Final = 5.0
"""How long closing waits for the sample in work."""

log = get_logger(__name__)


class Sample(NamedTuple):
    """One request that is to be measured."""

    user: str
    history: UserHistory
    candidates: Candidates
    now_ms: int
    """The moment for which it was scored, ms since epoch."""
    offered_s: float
    """When, by the monotonic clock."""


class Sampler:
    """Draws requests, and measures them in its thread. `offer` is for one thread."""

    def __init__(
        self,
        store: Store,
        system: System,
        metrics: ScorerMetrics,
        share: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            store: where whole sequences are read.
            system: what measures.
            metrics: where all of it is counted.
            share: share of the requests that is measured.
            draw: a number in [0, 1); a request for which it is below the share is measured.
        """
        self._store, self._system, self._metrics = store, system, metrics
        self._share, self._draw = share, draw
        self._waiting: SimpleQueue[Sample | None] = SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)
        self._outcome = {name: metrics.samples.labels(name) for name in SAMPLE_OUTCOMES}

    def start(self) -> None:
        """Begin to measure. Do this after any fork."""
        self._thread.start()

    def close(self) -> None:
        """Drop what waits, and return when the store is not read any more."""
        self._closing.set()
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(CLOSING_S)

    def offer(self, user: str, history: UserHistory, candidates: Candidates, now_ms: int) -> None:
        """Take a request that was ranked, if it is drawn; costs it microseconds."""
        if self._draw() >= self._share:
            return
        if self._waiting.qsize() >= WAITING:
            self._outcome["dropped"].inc()
            return
        self._waiting.put(Sample(user, history, some_of(candidates), now_ms, time.monotonic()))

    def _run(self) -> None:
        while (sample := self._waiting.get()) is not None:
            if self._closing.wait(max(0.0, sample.offered_s + AFTER_S - time.monotonic())):
                return
            started = time.perf_counter()
            self._outcome[self._count(sample)].inc()
            took_s = time.perf_counter() - started
            self._metrics.sample_seconds.observe(took_s)
            if self._closing.wait(took_s * (1 / BUSY - 1)):
                return

    def _count(self, sample: Sample) -> str:
        """Measure a sample into the metrics; what became of it."""
        try:
            behaviors = behaviors_of(sample, self._store)
            if behaviors is None:
                return "gone"
            found = self._system.measure(
                sample.history, behaviors, sample.candidates, sample.now_ms
            )
        except StoreError:
            return "failed"  # a store that is away, rankings tell of
        except Exception:  # a measure that fails must not end all others
            log.exception("sampled ranking could not be measured")
            return "failed"
        for name, value in found.items():
            self._metrics.measures[name].observe(value)
        return "measured" if found else "short"


def some_of(candidates: Candidates) -> Candidates:
    """At most `CANDIDATES` of them, evenly spread."""
    count = len(candidates.rows)
    chosen = np.linspace(0, count - 1, min(count, CANDIDATES)).astype(np.int64)
    return Candidates(candidates.keys[chosen], candidates.rows[chosen])


def behaviors_of(sample: Sample, store: Store) -> Behaviors | None:
    """BEHAVIOR[n], what a sample's history is made of, as far as the store still has it; None: the
    user's record is another one by now.

    Raises:
        StoreError: the store did not answer.
    """
    history = sample.history
    if history.state is None:
        return history.newer
    (sequence,) = store.sequences([sample.user])
    if sequence is None or sequence.version.epoch != history.version.epoch:
        return None
    return _as_of(sequence, history.version.count)


def _as_of(sequence: StoredSequence, count: int) -> Behaviors:
    """The behaviors of a sequence up to the ``count``-th; of later ones a request knew nothing."""
    later = sequence.version.count - count
    return sequence.behaviors[: max(0, len(sequence.behaviors) - later)]
