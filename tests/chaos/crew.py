"""The crew: the worker processes of a run, each started as a user would start it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from infra.errors import typed_line
from lifelong.demo.processes import ServiceProcess, free_port

READY_S: Final = 180.0
"""Longest wait for a worker to be ready, on a busy machine."""

LOGS_ASKED: Final = "lifelong_worker_logs_asked_timestamp_seconds"
LAG: Final = "lifelong_worker_consumer_lag{"


class Crew:
    """So many workers at places of their own; where one ends another is started.

    Args:
        directory: takes what they say, a file for each process.
        config: their settings, a file.
        size: how many.
    """

    def __init__(self, directory: Path, config: Path, size: int) -> None:
        self._directory = directory
        self._config = config
        self._ports = [free_port() for _ in range(size)]
        self._workers: dict[int, ServiceProcess] = {}
        self._paused: set[int] = set()
        self._started = itertools.count()

    @property
    def places(self) -> list[int]:
        return list(range(len(self._ports)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *places: int) -> None:
        for place in places or self.places:
            port = self._ports[place]
            self._workers[place] = ServiceProcess(
                f"worker {place}",
                ["worker", f"--config={self._config}", f"--metrics-port={port}"],
                self._directory / f"worker-{next(self._started):03}.log",
                f"http://127.0.0.1:{port}/health/ready",
            )

    def wait_ready(self, *places: int) -> None:
        for place in places or self.places:
            self._workers[place].wait_ready(READY_S)

    def stop(self, *places: int) -> None:
        """End workers as an operator would: asked, and all at once."""
        ending = []
        for place in places or self.places:
            self.resume(place)
            if place in self._workers:
                ending.append(self._workers.pop(place))
        for worker in ending:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
        for worker in ending:
            worker.stop()

    def kill(self, place: int) -> None:
        worker = self._workers.pop(place)
        os.kill(worker.pid, signal.SIGKILL)
        worker.stop()

    def pause(self, place: int, seconds: float) -> None:
        """Let a worker stand still for a while."""
        self._paused.add(place)
        os.kill(self._workers[place].pid, signal.SIGSTOP)
        time.sleep(seconds)
        self.resume(place)

    def resume(self, place: int) -> None:
        if place in self._paused:
            self._paused.remove(place)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._workers[place].pid, signal.SIGCONT)

    def know_logs_since(self, moment: float, partitions: int) -> bool:
        """Whether the workers that have any of so many partitions have asked how far all of these
        go since a moment, in `time.time`.
        """
        told = [_metrics(self._ports[place]) for place in self._workers]
        lags = [{name for name in one if name.startswith(LAG)} for one in told]
        asked = [one.get(LOGS_ASKED, 0) for one, read in zip(told, lags, strict=True) if read]
        return len(set().union(*lags)) == partitions and min(asked, default=0) > moment

    def unready(self) -> dict[int, dict[str, str]]:
        """The workers that are not ready, and why, by part."""
        asked = {place: _obstacles(self._ports[place]) for place in sorted(self._workers)}
        return {place: why for place, why in asked.items() if why}

    def ready(self) -> bool:
        """Whether there are workers, and all say that they are."""
        return bool(self._workers) and not self.unready()

    @contextlib.contextmanager
    def limited(self, size: int) -> Iterator[Callable[[int], None]]:
        """Let no file of theirs be written beyond so many bytes; another size is for the call of
        what is yielded.
        """
        self._limit(size)
        try:
            yield self._limit
        finally:
            self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for worker in self._workers.values():
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def check(self) -> None:
        """Raise `ServiceFailed` if one of them has ended by itself."""
        for worker in self._workers.values():
            worker.check()

    def said(self) -> list[str]:
        """Every line that any of them said, process after process."""
        logs = sorted(self._directory.glob("worker-*.log"))
        return [line for log in logs for line in log.read_text(errors="replace").splitlines()]


def _obstacles(port: int) -> dict[str, str]:
    """What a worker names as not ready; who does not answer is not ready either."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
            return {}
    except urllib.error.HTTPError as refused:
        because: dict[str, str] = json.load(refused)["because"]
        return because or {"worker": "not live"}
    except OSError as error:
        return {"answer": typed_line(error)}


def _metrics(port: int) -> dict[str, float]:
    """What a worker's metrics say; nothing where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    said = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in said}
