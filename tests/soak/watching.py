"""The watch: readiness, and what processes hold of memory and descriptors, every now and then."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, Self

from tests.soak.checking import trouble_of_probe
from tests.soak.scene import Scene

EVERY_S: Final = 0.25

SLOW_S: Final = 6.0
"""So long probes may say that the store takes its time, though it is there: a second of it is
nothing on a busy machine."""

WARM_S: Final = 20.0
"""Age from which on a process is to need no more: by then it has met requests of all kinds."""

AGED_S: Final = 45.0
"""Age from which on its memory says something."""

GROWTH: Final = 32 << 20
"""Most that the memory of a process may have grown since it was warm. A third bundle, the largest
requests at once, and what allocators keep."""


class Sample(NamedTuple):
    """What a process held at a moment."""

    age_s: float
    memory: int
    """Bytes, resident."""


class Watch:
    """Looks in a thread of its own."""

    def __init__(self, scene: Scene) -> None:
        self.probes = 0
        self.found: list[str] = []
        """What was wrong with probes."""
        self.samples: dict[int, list[Sample]] = defaultdict(list)
        """By process."""
        self._scene = scene
        self._born: dict[int, float] = {}
        self._slow_since = 0.0
        """When a probe last said anything but that the store takes its time."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._probe()
            self._measure()

    def _probe(self) -> None:
        began = time.monotonic()
        status, said = None, ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, said = self._scene.readiness()
        ended = time.monotonic()
        self.probes += 1
        # A moment later, when the ledger has what was just being done.
        trouble = trouble_of_probe(self._scene.ledger, began, ended, status, said)
        if "has not answered for" not in said:
            self._slow_since = ended
        elif ended - self._slow_since < SLOW_S:
            return
        if trouble is not None:
            self.found.append(f"{trouble}, at {began:.3f}: {status} {said}")

    def _measure(self) -> None:
        now = time.monotonic()
        for pid in self._scene.ready_pids():
            with contextlib.suppress(OSError):
                sample = Sample(now - self._born.setdefault(pid, now), resident(pid))
                self.samples[pid].append(sample)

    def growth(self) -> dict[int, tuple[int, int]]:
        """Of the processes that lived long enough, what they held when warm, and at last."""
        grown = {}
        for pid, samples in self.samples.items():
            warm = [one.memory for one in samples if one.age_s >= WARM_S]
            if samples[-1].age_s >= AGED_S:
                grown[pid] = int(median(warm[:20])), int(median(warm[-20:]))
        return grown


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def descriptors(pid: int) -> int:
    """Files and connections that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
