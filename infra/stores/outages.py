"""Outages of the servers, as the calls of one client see them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from infra.store import Interrupted
from infra.telemetry import get_logger

CALM_MS: Final = 10_000
"""So long no call may fail until an outage is over for the log: of several servers, one away, some
calls are answered all the time."""

RESTART_S: Final = 2.0
"""By so much a server's start moves at least when it is another one: servers tell whole seconds."""

FRESH_S: Final = 120
"""A server that has been up for less when it is first looked at was perhaps killed a moment ago,
and whoever wrote to it then, with it."""

log: Final = get_logger(__name__)


class Outages:
    """Whether the servers answer: a line of the log when they stop to, and one when they do again.
    ``interrupted`` is told at each failure that follows an answer, and of each server that was
    started anew, perhaps between two calls of which none failed. Safe to use from threads.
    """

    def __init__(self, interrupted: Interrupted, clock: Callable[[], int]) -> None:
        self._interrupted = interrupted
        self._clock = clock
        self._lock = threading.Lock()
        self._answered_ms = self._failed_ms = clock()
        self._answers = True
        self._away = False
        self._looked_ms = self._answered_ms
        self._started: dict[str, float] = {}

    def answered(self) -> None:
        """A call was answered, whatever the answer was."""
        self._answered_ms = self._clock()
        self._answers = True
        if self._away and self._answered_ms - self._failed_ms >= CALM_MS:
            with self._lock:
                ended, self._away = self._away, False
            if ended:
                log.info("store answers again")

    def failed(self, error: Exception) -> None:
        """A call was not answered."""
        with self._lock:
            interrupted, self._answers = self._answers, False
            begun, self._away = not self._away, True
            since_ms, self._failed_ms = self._answered_ms, self._clock()
        if begun:
            log.warning("store does not answer", error=str(error))
        if interrupted:
            self._interrupted(since_ms)

    def looked(self, uptimes: Mapping[str, int]) -> None:
        """So many seconds servers have been up, by name."""
        now = time.monotonic()
        started = {name: now - uptime for name, uptime in uptimes.items()}
        with self._lock:
            anew = [
                name
                for name, at in started.items()
                if at > self._started.get(name, now - FRESH_S) + RESTART_S
            ]
            first = not self._started
            self._started |= started
            since_ms, self._looked_ms = self._looked_ms, self._clock()
            if first:
                since_ms -= 1000 * max((uptimes[name] for name in anew), default=0)
        if anew:
            log.warning("store was started anew", servers=anew)
            self._interrupted(since_ms)
