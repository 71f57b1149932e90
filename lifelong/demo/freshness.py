"""Freshness: how long it takes from sending an event until interests that cover it can be read.

Measured from outside: the probe knows how many events of a user have been sent, and looks into
the store, as a scorer would, until the user's interests cover that many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from infra.store import Store

POLL_S: Final = 0.02
"""Pause between two looks; the figures are exact to that."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    user: str
    count: int
    sent: float


class FreshnessProbe:
    """Follows a sample of events from their sending to interests that cover them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self._seconds: list[float] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)
        self._thread.start()

    def sent(self, user: str, count: int) -> None:
        """Note that an event was handed to Kafka, ``user``'s event number ``count``."""
        with self._lock:
            self._waiting.append(_Waiting(user, count, time.perf_counter()))

    def finish(self, timeout_s: float) -> list[float]:
        """Wait for the events that are still on their way; seconds per covered event.

        An event that is not covered in time counts with the time waited: it may not flatter.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._waiting and self._thread.is_alive():
            time.sleep(POLL_S)
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        now = time.perf_counter()
        return self._seconds + [now - waiting.sent for waiting in self._waiting]

    def _run(self) -> None:
        try:
            while not self._ending.wait(POLL_S):
                self._look()
        except Exception as error:  # noqa: BLE001  # told by finish(): a thread's death must not pass unseen
            self._failure = error

    def _look(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
        covered = self._covered({entry.user for entry in waiting})
        now = time.perf_counter()
        done = [entry for entry in waiting if covered.get(entry.user, 0) >= entry.count]
        self._seconds += [now - entry.sent for entry in done]
        with self._lock:
            finished = set(map(id, done))
            self._waiting = [entry for entry in self._waiting if id(entry) not in finished]

    def _covered(self, users: set[str]) -> Mapping[str, int]:
        names = list(users)
        return {
            user: profile.interests_version.count
            for user, profile in zip(names, self._store.profiles(names), strict=True)
            if profile is not None and profile.interests_version is not None
        }
