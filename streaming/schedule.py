"""When to recluster whom: a user is due when a segment of their sequence was sealed.

What no segment holds yet, at most 63 behaviors, is read with the user anyway and counts in a
ranking behavior by behavior; so an event alone, however old it gets, makes nobody due.

The store remembers due users by owner, a partition of the topic, so a crash or a rebalance
loses none: whoever consumes the partition next goes on. Two workers may recluster one user at the
same time for a moment; interest writes are monotone, so the older result is refused.

A database that is killed may lose states that it had acknowledged. Whoever wrote them remembers for
a while whose they were, and after an outage makes due again who has none.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from extractor.state import InterestState
from infra.errors import (
    LifelongError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnavailable,
    typed_line,
)
from infra.metrics import WorkerMetrics
from infra.records import sealed_part
from infra.settings import WorkerSettings
from infra.store import (
    DueUser,
    InterestWrite,
    Store,
    StoredSequence,
    Written,
    wall_clock_ms,
)
from infra.telemetry import get_logger
from streaming.interruptions import TRAIL_MS, Interruptions
from streaming.marking import make_due

if TYPE_CHECKING:  # numba is slow to import; health answers meanwhile
    from extractor.system import System
    from infra.tracing import Stages
    from streaming.traces import WorkerTraces

PAGE_BATCHES: Final = 2
"""Batches taken from one owner in a pass. More would let an owner with a backlog delay the others;
fewer would cost more looks at the store."""

TOGETHER: Final = 64
"""Users of a batch whose sequences are in memory at once; of a batch of 256 they could be
64 MB, where sequences are long."""

BACKOFF_MS: Final = 1000
BACKOFF_MAX_MS: Final = 300_000
"""Pause before a user whose reclustering failed is tried again: doubled at each failure."""

BACKOFF_USERS: Final = 100_000
"""Most users on a pause. Beyond it the ones waiting longest are forgotten, hence tried earlier."""

SWEEP_EVERY_MS: Final = 60_000
"""How often expired users are removed where the database does not do so by itself. Whoever reads
does not see them anyway, so only room depends on it."""

SWEEP_USERS: Final = 1000
"""Most users removed at once, since reclustering waits meanwhile. Where there are more, it goes on
after the next pass."""

TROUBLE_MS: Final = 10_000
"""How long passes may fail before it is no hiccup."""

STUCK_USERS: Final = 8
STUCK_MS: Final = 60_000
"""Users who failed, and time since the first of them did, beyond which it is not those users who
are at fault, if none was stored meanwhile."""

HANGING_MS: Final = 60_000
"""Time after which a pass that does not get on is trouble: many times what a batch takes, and
longer than a store's own budgets, whose errors say more."""

REMEMBERED: Final = 100_000
"""Users of states stored last that are remembered, for `TRAIL_MS` at most: some MB. Whoever is not
among them is found by the next pass over all users (`streaming.renewal`)."""

LOOKED_AT: Final = 1000
"""Users whose states are looked for together."""

UNSEEN_MS: Final = 1000
"""Time without a look for due users, beyond the pause between two, after which somebody is taken to
be due since the last one."""

RETRY_S: Final = 0.05
"""First pause after the store failed; doubled up to `WorkerSettings.retry_max_s`."""

log = get_logger(__name__)


class _Due(NamedTuple):
    """A user to be reclustered, as `infra.store.DueUser`, and under which owner."""

    owner: int
    user: str
    since: int
    waiting: int


class _Found(NamedTuple):
    """A user who was read, to be reclustered."""

    due: _Due
    sequence: StoredSequence
    previous: InterestState | None


@dataclass(slots=True)
class _Pause:
    """How long a user is not tried again who could not be reclustered."""

    owner: int
    until: int
    """ms since epoch."""
    times: int
    """In a row."""


class _Stored(NamedTuple):
    """A user whose state was stored."""

    at: int
    """ms since epoch."""
    owner: int
    user: str


class _Failure(NamedTuple):
    """A user who could not be reclustered."""

    owner: int
    at: int
    """When that first happened, ms since epoch."""


class Reclusterer:
    """Keeps the interests of its owners' users fresh.

    Per pass (`run_once`) each owner gives its due users, the longest due first. They are read,
    reclustered and written back in batches that mix the owners, ``recluster_threads`` batches at a
    time (the kernels release the GIL). With a system that keeps no state nobody is ever due.

    A user who cannot be reclustered is counted, logged and tried again later; the others go on.
    Between passes, about once a minute, expired users are removed from the store.
    `start` runs passes in a thread of its own until `stop`; that thread survives every error.
    """

    def __init__(
        self,
        store: Store,
        system: System,
        settings: WorkerSettings,
        metrics: WorkerMetrics,
        clock: Callable[[], int] = wall_clock_ms,
        traces: WorkerTraces | None = None,
        interruptions: Interruptions | None = None,
    ) -> None:
        """Make it; nothing is read yet.

        Args:
            store: where users and states are.
            system: makes states.
            settings: of workers.
            metrics: where all of it is counted.
            clock: ms since epoch.
            traces: what makes spans; None: nothing does.
            interruptions: outages of the store, in which it may lose states; None: it loses none.
        """
        self._store = store
        self._interruptions = interruptions
        self._stored: deque[_Stored] = deque(maxlen=REMEMBERED)
        self._lost_since: int | None = None
        """From when on states that were stored may be lost, ms since epoch."""
        self._traces = traces
        self._system = system
        self._metrics = metrics
        self._clock = clock
        self._threads = settings.recluster_threads
        self._poll_s = settings.recluster_poll_s
        self._batch = settings.recluster_batch
        self._retry_max_s = settings.retry_max_s
        self._owners: frozenset[int] = frozenset()
        self._turn = 0
        self._sweep_at = clock() + SWEEP_EVERY_MS
        self._pauses: dict[str, _Pause] = {}
        self._failed: dict[str, _Failure] = {}
        """Users who failed since one was last stored, the first of them first."""
        self._pauses_lock = threading.Lock()
        """Over pauses, failures, who the owners are, and whose states were stored."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._backlog = False
        self._oldest: int | None = None
        """Since when the longest due user was due, as of the last look that saw all owners."""
        self._looked_at = clock()
        """When that look began."""
        self._moving_since: int | None = None
        """When the pass under way last got on; None: none is."""
        self._failing: tuple[int, str] | None = None
        """Since when passes fail, and why the last one did."""
        self._user_failure = ""
        # By the clock of whoever asks: a thread that is stuck shows in it.
        metrics.due_oldest_seconds.set_function(self._oldest_seconds)

    @property
    def owners(self) -> frozenset[int]:
        """Owner keys (`infra.behaviors.partition_owner`) whose users are reclustered here."""
        return self._owners

    def set_owners(self, owners: Iterable[int]) -> None:
        """Recluster the users of these owners from now on; of others nothing more is written,
        a batch in hand included.
        """
        with self._pauses_lock:
            ours = self._owners = frozenset(owners)
            self._pauses = {user: one for user, one in self._pauses.items() if one.owner in ours}
            self._failed = {user: one for user, one in self._failed.items() if one.owner in ours}

    @property
    def alive(self) -> bool:
        """Whether the thread runs that `start` began."""
        return self._thread is not None and self._thread.is_alive()

    def trouble(self) -> str | None:
        """Why interests do not get fresher although they should; None: they do, or just failed."""
        now = self._clock()
        if self._failing is not None and now - self._failing[0] >= TROUBLE_MS:
            return self._failing[1]
        moved_at = self._moving_since
        if moved_at is not None and now - moved_at >= HANGING_MS:
            return f"no batch has ended for {(now - moved_at) // 1000} s: is the store stuck?"
        with self._pauses_lock:
            failed, first = len(self._failed), next(iter(self._failed.values()), None)
        if first is not None and failed >= STUCK_USERS and now - first.at >= STUCK_MS:
            return f"no user can be reclustered, {failed} were tried: {self._user_failure}"
        return None

    def start(self) -> None:
        """Begin passes in a thread of their own."""
        if self._thread is not None:
            raise RuntimeError("this reclusterer was started already")
        self._thread = threading.Thread(target=self._run, name="recluster", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the batches in hand, which are still written."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def run_once(self, now_ms: int | None = None) -> int:
        """One pass over all owners; returns how many users got new interests.

        Raises:
            StoreUnavailable, StoreFull: the store failed; nothing is lost, the users stay due.
        """
        now = self._clock() if now_ms is None else now_ms
        self._find_lost(now)
        due = self._due(now)
        batches = [due[i : i + self._batch] for i in range(0, len(due), self._batch)]
        if self._threads <= 1 or len(batches) <= 1:
            return sum(self._recluster(batch) for batch in batches)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="recluster")
        return sum(self._pool.map(self._recluster, batches))

    def sweep(self) -> int:
        """Remove expired users if it is time again; returns how many.

        Raises:
            StoreUnavailable, StoreFull: the store failed; it is tried again in a minute.
        """
        now = self._clock()
        if now < self._sweep_at:
            return 0
        self._sweep_at = now + SWEEP_EVERY_MS
        try:
            removed = self._store.sweep(now, SWEEP_USERS)
        except (StoreUnavailable, StoreFull) as error:
            self._count_store_error(error)
            raise
        except StoreError as error:  # one unreadable record must not end the passes
            self._count_store_error(error)
            log.error("expired users not removed", error=typed_line(error))  # noqa: TRY400
            return 0
        if removed == SWEEP_USERS:
            self._sweep_at = now
        self._metrics.expired_users.inc(removed)
        return removed

    def _run(self) -> None:
        """Passes until `stop`: the thread's main function."""
        failures = 0
        while not self._stopping.is_set():
            try:
                self._moving_since = self._clock()
                self.run_once()
                self.sweep()
            except Exception as error:  # freshness must outlive any one failure
                self._moving_since = None
                pause = min(self._retry_max_s, RETRY_S * 2 ** min(failures, 16))
                failures += 1
                since = self._clock() if self._failing is None else self._failing[0]
                self._failing = since, typed_line(error)
                if failures == 1:
                    log.warning("reclustering waits", error=typed_line(error))
                    if not isinstance(error, LifelongError):
                        log.exception("reclustering failed unexpectedly")
                self._stopping.wait(pause)
                continue
            self._moving_since = None
            if failures:
                log.info("reclustering goes on", failures=failures)
                failures = 0
                self._failing = None
            if not self._backlog:
                self._stopping.wait(self._poll_s)

    def _moved(self) -> None:
        """Note that the pass under way has got on."""
        if self._moving_since is not None:
            self._moving_since = self._clock()

    # Who is due

    def _due(self, now: int) -> list[_Due]:
        """The due users of all owners, their turns interleaved; none where others recluster them,
        which are looked for all the same: how long they wait tells whether somebody does.
        """
        owners = sorted(self._owners) if self._system.keeps_state else []
        if owners:  # another owner comes first in each pass
            self._turn = (self._turn + 1) % len(owners)
            owners = owners[self._turn :] + owners[: self._turn]
        queues: list[list[_Due]] = []
        due = 0
        oldest: int | None = None
        all_seen = True
        self._backlog = False
        page = PAGE_BATCHES * self._batch + len(self._pauses) if self._threads else 1
        for owner in owners:
            found = self._list(owner, page)
            self._moved()
            if found is None:
                all_seen = False
                continue
            if found:
                due += len(found)
                oldest = min(oldest or found[0].since, found[0].since)
            queue = [_Due(owner, *user) for user in found]
            if self._pauses:
                queue = [due for due in queue if not self._paused(due.user, now)]
            more = len(queue) >= PAGE_BATCHES * self._batch
            self._backlog |= more
            queues.append(queue[: PAGE_BATCHES * self._batch])
        self._metrics.due_users.set(due)
        if all_seen:
            self._oldest, self._looked_at = oldest, now
        return _interleave(queues) if self._threads else []

    def _oldest_seconds(self) -> float:
        now, since = self._clock(), self._oldest
        if now - self._looked_at > 1000 * self._poll_s + UNSEEN_MS:
            since = self._looked_at if since is None else min(since, self._looked_at)
        return 0.0 if since is None else max(0, now - since) / 1000

    def _list(self, owner: int, limit: int) -> list[DueUser] | None:
        """The longest due users of an owner; None: they cannot be read."""
        try:
            return self._store.due(owner, self._system.digest, limit)
        except (StoreUnavailable, StoreFull) as error:
            self._count_store_error(error)
            raise
        except StoreError as error:  # one owner's list must not block the others'
            self._count_store_error(error)
            log.error("due users unreadable", owner=f"{owner:016x}", error=typed_line(error))  # noqa: TRY400
            return None

    def _paused(self, user: str, now: int) -> bool:
        pause = self._pauses.get(user)
        return pause is not None and now < pause.until

    def _pause(self, due: _Due, *, failed: bool = False) -> int:
        """Put off a user's next try, since they failed or had nothing to be stored; returns for how
        many ms.
        """
        now = self._clock()
        with self._pauses_lock:
            old = self._pauses.pop(due.user, None)
            times = old.times + 1 if old else 1
            pause = min(BACKOFF_MAX_MS, BACKOFF_MS << min(times - 1, 16))
            if due.owner not in self._owners:
                return pause
            self._pauses[due.user] = _Pause(due.owner, now + pause, times)
            if len(self._pauses) > BACKOFF_USERS:
                del self._pauses[next(iter(self._pauses))]
            if not failed:
                self._failed.pop(due.user, None)
            elif len(self._failed) < BACKOFF_USERS:
                self._failed.setdefault(due.user, _Failure(due.owner, now))
            return pause

    # What an outage has cost

    def _remember(self, stored: _Stored) -> None:
        if self._interruptions is None:
            return
        with self._pauses_lock:
            self._stored.append(stored)
            while self._stored[0].at < stored.at - TRAIL_MS:
                self._stored.popleft()

    def _find_lost(self, now: int) -> None:
        """After an outage, make those due whose states were stored before it and are not there."""
        since = None if self._interruptions is None else self._interruptions.take()
        if since is not None:
            before = self._lost_since
            self._lost_since = since if before is None else min(since, before)
        if self._lost_since is None:
            return
        users: dict[int, set[str]] = defaultdict(set)
        with self._pauses_lock:
            for stored in self._stored:
                if stored.at >= self._lost_since and stored.owner in self._owners:
                    users[stored.owner].add(stored.user)
        lost = 0
        for owner, whose in users.items():
            names = sorted(whose)
            for start in range(0, len(names), LOOKED_AT):
                some = names[start : start + LOOKED_AT]
                lost += make_due(self._store, owner, self._system.digest, some, now, self._metrics)
                self._moved()
        self._lost_since = None
        if lost:
            log.warning("store was away and has lost interests, making them anew", users=lost)

    # A batch

    def _recluster(self, batch: Sequence[_Due]) -> int:
        """Read, extract and write one batch of distinct users; returns how many were stored."""
        batch = [due for due in batch if due.owner in self._owners]
        if not batch or self._stopping.is_set():
            return 0
        try:
            if self._traces is None:
                return self._renew(batch, None)
            with self._traces.reclustering([due.since for due in batch]) as trace:
                return self._renew(batch, trace)
        except (StoreUnavailable, StoreFull) as error:
            self._count_store_error(error)
            raise

    def _renew(self, batch: Sequence[_Due], trace: Stages | None) -> int:
        writes = list(self._extracted(batch))
        if trace is not None:
            trace.passed("extract")
        writes = [(due, write) for due, write in writes if due.owner in self._owners]
        stored = self._write(writes)
        if trace is not None:
            trace.passed("write", stored=stored)
        return stored

    def _extracted(self, batch: Sequence[_Due]) -> Iterator[tuple[_Due, InterestWrite]]:
        for start in range(0, len(batch), TOGETHER):
            found = []
            for due, sequence, record in self._read(batch[start : start + TOGETHER]):
                if sequence is None:
                    # The sequence expired. Its due mark goes when the store sweeps.
                    self._metrics.reclusters.labels("gone").inc()
                    self._pause(due)
                else:
                    found.append(_Found(due, sequence, self._previous(due, record)))
            yield from self._renewed(found)
            self._moved()

    def _renewed(self, users: Sequence[_Found]) -> Iterator[tuple[_Due, InterestWrite]]:
        """The new states of users who were read."""
        done = 0
        started = time.perf_counter()
        try:
            states = self._system.extract_many(
                [user.sequence for user in users], [user.previous for user in users]
            )
            for state, (due, sequence, _) in zip(states, users, strict=True):
                record = self._system.layout.encode(state)
                write = InterestWrite(due.user, self._system.digest, sequence.version, record)
                done += 1
                yield due, write
        except Exception as error:  # noqa: BLE001  # whatever one user's record does to it
            if len(users) == 1:
                self._fail(users[0].due, error)
                return
            for user in users[done:]:  # find whose
                yield from self._renewed([user])
            users = users[:done]
        took = (time.perf_counter() - started) / max(len(users), 1)
        for _ in users:
            self._metrics.recluster_seconds.observe(took)

    def _read(
        self, batch: Sequence[_Due]
    ) -> Iterator[tuple[_Due, StoredSequence | None, bytes | None]]:
        """The sequence and the stored interest state of each user."""
        try:
            users = [due.user for due in batch]
            sequences = self._store.sequences(users)
            sequences = [None if one is None else sealed_part(one) for one in sequences]
            # A warm start needs the old interests; who was never clustered has none.
            clustered = [
                due.user
                for due, sequence in zip(batch, sequences, strict=True)
                if sequence is not None and sequence.version.count > due.waiting
            ]
            found = self._store.interests(clustered, self._system.digest) if clustered else []
        except (StoreUnavailable, StoreFull):
            raise
        except Exception as error:  # noqa: BLE001  # one record spoils the batch: find whose
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            for due in batch:
                yield from self._read([due])
            return
        states = dict(zip(clustered, found, strict=True))
        for due, sequence in zip(batch, sequences, strict=True):
            yield due, sequence, states.get(due.user)

    def _previous(self, due: _Due, record: bytes | None) -> InterestState | None:
        if record is None:
            return None
        try:
            return self._system.layout.decode(record, due.user)
        except StoreCorrupt as error:  # about to be replaced anyway
            self._metrics.store_damage.labels("state").inc()
            log.warning("interest state unreadable, made anew", error=typed_line(error))
            return None

    def _write(self, writes: Sequence[tuple[_Due, InterestWrite]]) -> int:
        if not writes:
            return 0
        now = self._clock()
        try:
            outcomes = self._store.put_interests([write for _, write in writes], now)
        except (StoreUnavailable, StoreFull):
            raise
        except Exception as error:  # noqa: BLE001  # one record spoils the batch: find whose
            if len(writes) == 1:
                self._fail(writes[0][0], error)
                return 0
            return sum(self._write([write]) for write in writes)
        stored = 0
        for outcome, users in Counter(outcomes).items():
            self._metrics.reclusters.labels(outcome.name.lower()).inc(users)
        for (due, _), outcome in zip(writes, outcomes, strict=True):
            if outcome is Written.STORED:
                stored += 1
                self._remember(_Stored(now, due.owner, due.user))
                self._metrics.freshness_seconds.observe(max(0, now - due.since) / 1000)
                if self._pauses:
                    with self._pauses_lock:
                        self._pauses.pop(due.user, None)
                        self._failed.clear()
            else:
                # Still due, perhaps: without a pause it would be tried in each pass.
                self._pause(due)
        self._moved()
        return stored

    def _fail(self, due: _Due, error: Exception) -> None:
        self._metrics.reclusters.labels("failed").inc()
        self._user_failure = typed_line(error)
        pause = self._pause(due, failed=True)
        log.warning(
            "user not reclustered", user=due.user, error=typed_line(error), retry_s=pause / 1000
        )

    def _count_store_error(self, error: StoreError) -> None:
        self._metrics.store_failed(error)


def _interleave(queues: Sequence[Sequence[_Due]]) -> list[_Due]:
    """The queues' users in turns, each user once (whoever moved to another partition may be due
    under two owners).
    """
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return list({due.user: due for due in turns if due is not None}.values())
