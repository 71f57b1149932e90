"""A new bundle, and users who send nothing: their interests are made anew in the background.

A user becomes due when a segment is sealed. Who sends nothing after a bundle was exchanged never
would, and each of their requests would extract the whole sequence on the spot. So a worker goes
once through the users of its share, and makes those due whose interests are of another bundle, or
not there. The share is by a hash of the user's id over the topic's partitions, so that it does not
matter where events came from, and each user is looked at by one worker.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import xxhash

from extractor.state import digest_of
from infra.behaviors import partition_owner
from infra.errors import StoreError, typed_line
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.store import Store, wall_clock_ms
from infra.telemetry import get_logger

if TYPE_CHECKING:  # numba is slow to import; health answers meanwhile
    from extractor.system import System

PAGE: Final = 100
"""Users looked at together: some 10 ms of a store's time, after which it rests."""

LISTED: Final = 20_000
"""Names asked for at once. A store without an order walks over all its users for each such list,
however short, so a list for each page would be a walk several times a second."""

KEEP_MS: Final = 10_000
"""How often it is kept how far it came. Each time costs a synced write for every partition, for
which events wait; what a killed worker did not keep is looked at again."""

RETRY_S: Final = 5.0
"""Pause after the store failed, or while this worker has no partitions yet."""

_DONE: Final = b"\0"
"""In the place of a bookmark: all users were looked at. No user's id has a NUL."""

log = get_logger(__name__)


class Renewal:
    """One pass over the users of a worker's partitions, for one bundle.

    How far it came is kept in the store for each partition, so that a restart goes on from there,
    and whoever is given a partition looks at the rest of it. `start` runs it in a thread of its
    own.

    Args:
        store: where the users are.
        system: of the bundle in use.
        topic: name of the topic of events.
        metrics: where it is counted.
        per_second: most users looked at in a second.
        clock: ms since epoch.
    """

    def __init__(
        self,
        store: Store,
        system: System,
        topic: str,
        metrics: WorkerMetrics,
        *,
        per_second: float,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._store = store
        self._system = system
        self._topic = topic
        self._metrics = metrics
        self._pause_s = PAGE / per_second
        self._clock = clock
        self._total = 0
        self._ours: frozenset[int] = frozenset()
        self._reached: dict[int, bytes] = {}
        self._listed: list[str] = []
        self._kept_at = clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def set_partitions(self, ours: Iterable[int], total: int) -> None:
        """Look at the users of these of the topic's ``total`` partitions from now on."""
        self._ours, self._total = frozenset(ours), total

    def start(self) -> None:
        """Begin, in a thread of its own; a system without states has nothing to renew."""
        if self._system.keeps_state:
            self._thread.start()

    def stop(self) -> None:
        """End after the page in hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def step(self) -> bool:
        """Look at one page of users; whether there are more to look at.

        Raises:
            StoreError: the store failed; the page is looked at again.
        """
        ours, total = self._ours, self._total
        at = {number: self._bookmark(number) for number in ours}
        waiting = {number: mark for number, mark in at.items() if mark != _DONE}
        self._metrics.renewal_partitions.set(len(waiting))
        if not waiting:
            return False
        after = min(waiting.values())
        users = self._page(after.decode())
        shares: dict[int, list[str]] = {number: [] for number in waiting}
        for user in users:
            number = _share(user, total)
            if number in waiting and user.encode() > waiting[number]:
                shares[number].append(user)
        for number, share in shares.items():
            self._renew(number, share)
        reached = users[-1].encode() if users else _DONE
        keep = not users or self._clock() - self._kept_at >= KEEP_MS
        for number, mark in waiting.items():
            if not users or reached > mark:
                self._reached[number] = reached
                if keep:
                    self._store.put_position(self._name(number), reached)
        if keep:
            self._kept_at = self._clock()
        self._metrics.renewal_users.labels("seen").inc(len(users))
        if not users:
            log.info("interests of all users are of this bundle, or due", partitions=len(waiting))
        return True

    def _page(self, after: str) -> list[str]:
        """The users that follow ``after``: of the last list, as long as it reaches."""
        start = bisect_right(self._listed, after)
        # With a start of 0 nobody knows whether the list began right behind ``after``.
        if not 0 < start < len(self._listed):
            self._listed, start = self._store.users(after, LISTED), 0
        return self._listed[start : start + PAGE]

    def _renew(self, number: int, users: list[str]) -> None:
        """Make those users due whose sealed segments no state of this bundle covers."""
        profiles = self._store.profiles(users) if users else []
        lacking = [
            user
            for user, profile in zip(users, profiles, strict=True)
            if profile is not None
            and profile.version.count >= SEGMENT
            and (profile.interests is None or digest_of(profile.interests) != self._system.digest)
        ]
        if lacking:
            owner = partition_owner(self._topic, number)
            self._store.mark_due(owner, lacking, self._clock())
            self._metrics.renewal_users.labels("due").inc(len(lacking))

    def _bookmark(self, number: int) -> bytes:
        if number not in self._reached:
            self._reached[number] = self._store.get_position(self._name(number)) or b""
        return self._reached[number]

    def _name(self, number: int) -> str:
        return f"renewal/{self._system.digest.hex()}/{self._topic}/{self._total}/{number}"

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                pause = self._pause_s if self.step() else RETRY_S
                failures = 0
            except StoreError as error:
                failures += 1
                pause = RETRY_S
                if failures == 1:
                    log.warning("renewal waits", error=typed_line(error))
            self._stopping.wait(pause)


def _share(user: str, partitions: int) -> int:
    """The partition whose worker looks at a user."""
    return xxhash.xxh3_64_intdigest(user.encode()) % partitions
