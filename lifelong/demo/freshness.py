"""Two freshnesses: from an event sent to rankings that count it, from a segment sealed to clusters.

Measured from outside: the probe knows how many events of a user have been sent, and looks into
the store, as a scorer would. An event counts in rankings as soon as it is in the sequence, by
itself; it is in the clusters once the segment that holds it was sealed and extracted.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from infra.segments import SEGMENT
from infra.store import Profile, Store

POLL_S: Final = 0.02
"""Pause between two looks; the figures are exact to that."""


class Freshness(NamedTuple):
    """What was measured, in seconds. What did not come in time counts with the time waited: it may
    not flatter.
    """

    rankings: list[float]
    """Per event: from its sending to a sequence that has it."""
    clusters: list[float]
    """Per event that filled a segment: from there to interests that cover it. None where the system
    stores no interests."""


@dataclass(slots=True)
class _Waiting:
    user: str
    count: int
    since: float


class FreshnessProbe:
    """Follows a sample of events on their way into rankings and clusters."""

    def __init__(self, store: Store, digest: bytes, *, clusters: bool = True) -> None:
        """Begin to look.

        Args:
            digest: of the bundle whose states are looked for.
            clusters: whether it makes any.
        """
        self._store, self._digest, self._clusters = store, digest, clusters
        self._sent: list[_Waiting] = []
        self._sealed: list[_Waiting] = []
        self._measured = Freshness([], [])
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)
        self._thread.start()

    def sent(self, user: str, count: int) -> None:
        """Note that an event was handed to Kafka, ``user``'s event number ``count``."""
        with self._lock:
            self._sent.append(_Waiting(user, count, time.perf_counter()))

    def finish(self, timeout_s: float) -> Freshness:
        """Wait for the events that are still on their way, but not longer than that."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._left and self._thread.is_alive():
            time.sleep(POLL_S)
        self._ending.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        now = time.perf_counter()
        return Freshness(
            self._measured.rankings + [now - one.since for one in self._sent],
            self._measured.clusters + [now - one.since for one in self._sealed],
        )

    @property
    def _left(self) -> bool:
        return bool(self._sent or self._sealed)

    def _run(self) -> None:
        try:
            while not self._ending.wait(POLL_S):
                self._look()
        except Exception as error:  # noqa: BLE001  # told by finish(): a thread's death must not pass unseen
            self._failure = error

    def _look(self) -> None:
        with self._lock:
            sent = list(self._sent)
        users = list({one.user for one in (*sent, *self._sealed)})
        profiles = dict(zip(users, self._store.profiles(users, self._digest), strict=True))
        now = time.perf_counter()
        for one in self._sealed:
            if _covered(profiles[one.user]) >= one.count:
                self._measured.clusters.append(now - one.since)
        self._sealed = [one for one in self._sealed if _covered(profiles[one.user]) < one.count]
        for one in sent:
            if _applied(profiles[one.user]) < one.count:
                continue
            self._measured.rankings.append(now - one.since)
            if self._clusters and one.count % SEGMENT == 0:
                self._sealed.append(_Waiting(one.user, one.count, now))
            with self._lock:
                self._sent.remove(one)


def _applied(profile: Profile | None) -> int:
    return 0 if profile is None else profile.version.count


def _covered(profile: Profile | None) -> int:
    if profile is None or profile.interests_version is None:
        return 0
    return profile.interests_version.count
