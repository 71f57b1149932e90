"""A new bundle, and users who send nothing: their interests are made anew in the background.

A user becomes due when a segment is sealed. Who sends nothing after a bundle was exchanged never
would, and each of their requests would extract the whole sequence on the spot. So a worker goes
once through the users of its share, and makes those due whose interests are of another bundle, or
not there. The share is by a hash of the user's id over the partitions of all topics, so that it
does not matter where events came from, and each user is looked at by one worker.

Stores lose interests, too: a server is killed before its disk has them. So from time to time the
worker goes through all users once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

import xxhash
from faust.types import TP

from infra.behaviors import partition_owner
from infra.errors import StoreError, typed_line
from infra.metrics import WorkerMetrics
from infra.store import Store, wall_clock_ms
from infra.telemetry import get_logger
from streaming.marking import make_due

if TYPE_CHECKING:  # numba is slow to import; health answers meanwhile
    from extractor.system import System

PAGE: Final = 1000
"""Users looked at together: some 20 ms of a store's time. Where few of them become due, fewer pages
are fewer synced writes, for each of which events wait."""

KEEP_MS: Final = 10_000
"""How often it is kept how far it came. Each time costs a synced write for every partition, for
which events wait; what a killed worker did not keep is looked at again."""

RETRY_S: Final = 5.0
"""Pause after the store failed, or while this worker has no partitions yet."""

_DONE: Final = b"\0"
"""In the place of a bookmark: all users were looked at. No user's id has a NUL."""

log = get_logger(__name__)


class Renewal:
    """Passes over the users of a worker's partitions, for one bundle.

    How far the first one came is kept in the store for each partition, so that a restart goes on
    from there, and whoever is given a partition looks at the rest of it. Later ones are this
    worker's own. `start` runs them in a thread of their own.

    Args:
        store: where the users are.
        system: of the bundle in use.
        metrics: where it is counted.
        per_second: most users made due in a second.
        again_s: time from one pass to the next, which looks for interests that the store has lost;
            until then they are extracted within each request, from a sequence that is there. 0: no
            other pass.
        page: users looked at together.
        clock: ms since epoch.
    """

    def __init__(
        self,
        store: Store,
        system: System,
        metrics: WorkerMetrics,
        *,
        per_second: float,
        again_s: float = 0.0,
        page: int = PAGE,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._store = store
        self._system = system
        self._metrics = metrics
        self._per_second = per_second
        self._page = page
        self._clock = clock
        self._shares: tuple[frozenset[int], Sequence[TP]] = frozenset(), ()
        """Which partitions are ours, by their places among all, and all of them."""
        self._reached: dict[str, bytes] = {}
        """By the name of the bookmark, which is another where there are more partitions."""
        self._again: set[str] = set()
        """Bookmarks of which the first pass is done: they stay so in the store."""
        self._again_ms = again_s * 1000
        self._again_at = clock() + self._again_ms
        self._kept_at = clock()
        self._made_due = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def set_partitions(self, ours: AbstractSet[TP], partitions: Sequence[TP]) -> None:
        """Look at the users of these of all partitions from now on, which all workers of the group
        name in one order.
        """
        places = frozenset(place for place, tp in enumerate(partitions) if tp in ours)
        self._shares = places, partitions

    def start(self) -> None:
        """Begin, in a thread of its own; a system without states has nothing to renew."""
        if self._system.keeps_state:
            self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the page in hand."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def step(self) -> bool:
        """Look at one page of users; whether there are more to look at.

        Raises:
            StoreError: the store failed; the page is looked at again.
        """
        ours, partitions = self._shares
        names = {number: self._name(number, partitions) for number in ours}
        at = {number: self._bookmark(name) for number, name in names.items()}
        waiting = {number: mark for number, mark in at.items() if mark != _DONE}
        first = {number for number in waiting if names[number] not in self._again}
        self._metrics.renewal_partitions.set(len(first))
        if not waiting:
            return self._begin_again(names.values())
        page = self._store.users(min(waiting.values()), self._page)
        reached = _DONE if page.after is None else page.after
        # Whoever is further than this page has looked at it; a page seen twice does no harm.
        behind = [
            number for number, mark in waiting.items() if page.after is None or mark < page.after
        ]
        shares: dict[int, list[str]] = {number: [] for number in behind}
        for user in page.users:
            number = _share(user, len(partitions))
            if number in shares:
                shares[number].append(user)
        for number, share in shares.items():
            self._renew(partitions[number], share)
        keep = page.after is None or self._clock() - self._kept_at >= KEEP_MS
        for number in behind:
            self._reached[names[number]] = reached
            if keep and number in first:
                self._store.put_bookmark(names[number], reached)
        if keep:
            self._kept_at = self._clock()
        self._metrics.renewal_users.labels("seen").inc(len(page.users))
        if page.after is None:
            log.info("interests of all users are of this bundle, or due", partitions=len(waiting))
        return True

    def _begin_again(self, names: Collection[str]) -> bool:
        """Begin another pass, if it is time."""
        if self._clock() < self._again_at or not self._again_ms or not names:
            return False
        self._again_at = self._clock() + self._again_ms
        self._again |= set(names)
        self._reached = dict.fromkeys(names, b"")
        return True

    def rest(self, due: int, took_s: float) -> float:
        """Seconds to wait after a page: for those whom it made due, since they are reclustered
        beside whoever is due by new events, and at least as long as it took. Most users are light
        and become due for nothing; a wait for each of them would take days.
        """
        return max(due / self._per_second, took_s)

    def _renew(self, tp: TP, users: list[str]) -> None:
        """Make those users due whose sealed segments no state of this bundle covers."""
        if not users:
            return
        owner = partition_owner(*tp)
        due = make_due(self._store, owner, self._system.digest, users, self._clock(), self._metrics)
        self._metrics.renewal_users.labels("due").inc(due)
        self._made_due += due

    def _bookmark(self, name: str) -> bytes:
        if name not in self._reached:
            self._reached[name] = self._store.get_bookmark(name) or b""
        return self._reached[name]

    def _name(self, number: int, partitions: Sequence[TP]) -> str:
        topic, total = partitions[0].topic, len(partitions)
        return f"states/{self._system.digest.hex()}/{topic}/{total}/{number}"

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began, before = time.perf_counter(), self._made_due
            try:
                more = self.step()
                took = time.perf_counter() - began
                pause = self.rest(self._made_due - before, took) if more else RETRY_S
                failures = 0
            except StoreError as error:
                failures += 1
                pause = RETRY_S
                if failures == 1:
                    log.warning("renewal waits", error=typed_line(error))
            self._stopping.wait(pause)


def _share(user: str, partitions: int) -> int:
    """The place of the partition whose worker looks at a user."""
    return xxhash.xxh3_64_intdigest(user.encode()) % partitions
