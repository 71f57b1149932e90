from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from extractor.state import InterestState, Layout
from extractor.systems import open_system
from infra.behaviors import Source, pack_behavior
from infra.errors import StoreCorrupt, StoreError, StoreFull, StoreUnavailable
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.settings import WorkerSettings
from infra.store import (
    Append,
    DueUser,
    Group,
    InterestWrite,
    Store,
    StoredSequence,
    StoreOptions,
    Version,
)
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from models.bundle import Bundle, StateTensor
from models.features import EMPTY_HISTORY
from streaming.interruptions import BACK_MS, TRAIL_MS, Interruptions
from streaming.schedule import (
    HANGING_MS,
    STUCK_MS,
    STUCK_USERS,
    SWEEP_EVERY_MS,
    SWEEP_USERS,
    TROUBLE_MS,
    Reclusterer,
)
from tests.bundles import tiny_bundle
from tests.extractor.systems.whole import WholeSystem
from tests.infra.stores.spoiling import lose_state

START = 1_700_000_000_000
A, B = Source(key=1, owner=11), Source(key=2, owner=22)


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


DIGEST, OTHER = b"b" * 16, b"c" * 16


class CountingSystem(WholeSystem):
    """States that say how many behaviors they were made of, and from which one."""

    def __init__(self, digest: bytes = DIGEST) -> None:
        self.keeps_state = True
        self.digest = digest
        self.layout = Layout({"length": StateTensor("uint32", (1,))})
        self.previous: list[InterestState | None] = []
        self.users_failing: set[int] = set()
        self.before: Callable[[], None] = lambda: None

    def extract(
        self, sequence: StoredSequence, previous: InterestState | None = None
    ) -> InterestState:
        self.before()
        if int(sequence.behaviors["item"][0]) in self.users_failing:
            raise ValueError("no interests\nfor this one")
        self.previous.append(previous)
        return InterestState(
            bundle=self.digest,
            version=sequence.version,
            last_time_ms=0,
            recent=np.zeros(0, np.uint64),
            history=EMPTY_HISTORY,
            tensors={"length": np.array([len(sequence.behaviors)], np.uint32)},
        )


class FaultyStore:
    """A store whose operations can be made to fail; the rest passes through."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: dict[str, Callable[[Any], None]] = {}
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(first: Any, *rest: Any, **named: Any) -> Any:
            self.calls.append((name, len(first) if isinstance(first, list) else 0))
            if name in self.faults:
                self.faults[name](first)
            return method(first, *rest, **named)

        return call


class House:
    """A reclusterer with everything around it in reach."""

    def __init__(
        self, store: Store, clock: Clock | None = None, digest: bytes = DIGEST, **settings: Any
    ) -> None:
        self.clock = clock or Clock()
        self.store = FaultyStore(store)
        self.system = CountingSystem(digest)
        self.registry = CollectorRegistry()
        self.interruptions = Interruptions()
        self.reclusterer = Reclusterer(
            cast("Store", self.store),
            self.system,
            WorkerSettings(**settings),
            WorkerMetrics(self.registry),
            self.clock,
            interruptions=self.interruptions,
        )
        self.reclusterer.set_owners([A.owner, B.owner])
        self.offsets = itertools.count()

    def act(self, user: str, behaviors: int = SEGMENT, source: Source = A) -> None:
        offsets = list(itertools.islice(self.offsets, behaviors))
        first = int(user.lstrip("u"))
        packed = [pack_behavior(first, START, 0, 0, 2)] * behaviors
        append = Append(user, packed, [0] * behaviors, offsets)
        self.store.append([Group(source, [append])], self.clock.now, digest=self.system.digest)

    def covered(self, user: str) -> int | None:
        (profile,) = self.store.profiles([user], self.system.digest)
        version: Version | None = profile.interests_version
        return version.count if version else None

    def due(self, source: Source = A) -> list[str]:
        return [due.user for due in self.store.due(source.owner, self.system.digest, 1000)]

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"lifelong_worker_{name}", labels) or 0.0


@pytest.fixture(params=["memory", "lmdb"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    store = MemoryStore() if request.param == "memory" else LmdbStore(tmp_path, max_size=1 << 24)
    return House(store)


def test_a_user_is_due_when_a_segment_is_sealed(house: House) -> None:
    house.act("u1", SEGMENT - 1)
    house.act("u2", SEGMENT)
    assert house.reclusterer.run_once() == 1
    assert (house.covered("u1"), house.covered("u2")) == (None, SEGMENT)


def test_no_behavior_is_ever_too_old(house: House) -> None:
    house.act("u1", SEGMENT - 1)
    house.clock.now += 86_400_000
    assert house.reclusterer.run_once() == 0
    assert house.due() == []


def test_interests_cover_the_sealed_segments_alone(house: House) -> None:
    house.act("u1", 2 * SEGMENT + 5)
    assert house.reclusterer.run_once() == 1
    assert house.covered("u1") == 2 * SEGMENT


def test_a_reclustered_user_is_not_due_until_the_next_segment(house: House) -> None:
    house.act("u1")
    house.reclusterer.run_once()
    house.act("u1", SEGMENT - 1)
    assert house.due() == []
    house.act("u1", 1)
    assert house.due() == ["u1"]


def test_a_system_without_states_has_nobody_reclustered(house: House) -> None:
    whole = CountingSystem()
    whole.keeps_state = False
    reclusterer = Reclusterer(
        cast("Store", house.store), whole, WorkerSettings(), WorkerMetrics(CollectorRegistry())
    )
    reclusterer.set_owners([A.owner])
    house.act("u1")
    assert reclusterer.run_once() == 0
    assert whole.previous == []


def test_a_worker_may_leave_reclustering_to_others() -> None:
    house = House(MemoryStore(), recluster_threads=0)
    house.act("u1")
    assert house.reclusterer.run_once() == 0
    assert house.due() == ["u1"]


def test_how_long_users_wait_is_told_where_others_are_to_recluster_them() -> None:
    house = House(MemoryStore(), recluster_threads=0)
    house.act("u1")
    house.clock.now += 60_000
    house.reclusterer.run_once()
    assert house.metric("due_oldest_seconds") == 60


def test_the_previous_interests_warm_the_next_start(house: House) -> None:
    for _ in range(2):
        house.act("u1")
        house.reclusterer.run_once()
    cold, warm = house.system.previous
    assert cold is None
    assert warm is not None
    assert warm.version == Version(START, SEGMENT)


def test_corrupt_interests_are_replaced(house: House) -> None:
    house.act("u1", 2 * SEGMENT)
    house.store.put_interests(
        [InterestWrite("u1", DIGEST, Version(START, SEGMENT), b"junk")], START
    )
    assert house.reclusterer.run_once() == 1
    assert house.system.previous == [None]
    assert house.covered("u1") == 2 * SEGMENT


def test_corrupt_interests_are_counted_as_damage(house: House) -> None:
    house.act("u1", 2 * SEGMENT)
    house.store.put_interests(
        [InterestWrite("u1", DIGEST, Version(START, SEGMENT), b"junk")], START
    )
    house.reclusterer.run_once()
    assert house.metric("store_damage_total", kind="state") == 1


def test_a_warm_start_reads_the_old_interests_alone(house: House) -> None:
    house.act("u1")
    house.act("u2")
    house.reclusterer.run_once()
    house.act("u1")
    house.act("u3")
    house.store.calls.clear()
    assert house.reclusterer.run_once() == 2
    assert [call for call in house.store.calls if call[0] != "due"] == [
        ("sequences", 2),
        ("interests", 1),  # u3 has none yet
        ("put_interests", 2),
    ]


def test_interests_of_another_bundle_are_no_warm_start(house: House) -> None:
    theirs = InterestWrite("u1", OTHER, Version(START, SEGMENT), b"of another layout")
    house.act("u1", 2 * SEGMENT)
    house.store.put_interests([theirs], START)
    assert house.reclusterer.run_once() == 1
    assert house.system.previous == [None]
    assert house.metric("store_damage_total", kind="state") == 0


def test_damaged_segments_leave_interests_of_the_others(tmp_path: Path) -> None:
    store = MemoryStore()
    house = House(store)
    house.act("u1", 2 * SEGMENT)
    store._segments["u1"][0] = b"what a disk made of it"
    assert house.reclusterer.run_once() == 1
    (record,) = store.interests(["u1"], DIGEST)
    assert record is not None
    state = house.system.layout.decode(record)
    assert state.tensors["length"].tolist() == [SEGMENT]
    assert house.covered("u1") == 2 * SEGMENT


# Two bundles over one store


def other_house(house: House) -> House:
    """A reclusterer of another bundle over the same store."""
    other = House(house.store, house.clock, OTHER)
    other.offsets = house.offsets
    return other


def test_a_bundle_is_due_for_its_own_users_alone(house: House) -> None:
    other = other_house(house)
    house.act("u1")
    other.act("u2")
    assert (house.due(), other.due()) == (["u1"], ["u2"])


def test_a_reclusterer_writes_for_its_own_bundle_alone(house: House) -> None:
    other = other_house(house)
    house.act("u1")
    other.act("u1")
    assert house.reclusterer.run_once() == 1
    assert (house.covered("u1"), other.covered("u1")) == (2 * SEGMENT, None)
    assert other.due() == ["u1"]


def test_two_bundles_do_not_overwrite_each_others_interests(house: House) -> None:
    other = other_house(house)
    house.act("u1")
    other.act("u1")
    assert [one.reclusterer.run_once() for one in (house, other)] == [1, 1]
    for one in (house, other):
        (record,) = house.store.interests(["u1"], one.system.digest)
        assert one.system.layout.decode(record).bundle == one.system.digest


def test_whom_one_bundle_reclusters_stays_due_for_the_other_over_and_over(house: House) -> None:
    other = other_house(house)
    house.act("u1")
    other.act("u1")
    for _ in range(3):
        while house.reclusterer.run_once() + other.reclusterer.run_once():
            pass
        assert house.covered("u1") == other.covered("u1")
        house.act("u1")  # a segment makes due for every bundle with a state
        assert (house.due(), other.due()) == (["u1"], ["u1"])


def test_a_backlog_of_one_bundle_does_not_starve_the_other(tmp_path: Path) -> None:
    house = House(MemoryStore(), recluster_batch=2)
    other = other_house(house)
    for number in range(100, 150):
        house.act(f"u{number}")
    house.clock.now += 10
    other.act("u1")
    assert other.reclusterer.run_once() == 1
    assert len(house.due()) == 50


def test_only_the_own_partitions_users_are_reclustered(house: House) -> None:
    house.act("u1", SEGMENT, A)
    house.act("u2", SEGMENT, B)
    house.reclusterer.set_owners([B.owner])
    assert house.reclusterer.run_once() == 1
    assert (house.covered("u1"), house.covered("u2")) == (None, SEGMENT)
    house.reclusterer.set_owners([A.owner])
    assert house.reclusterer.run_once() == 1


def test_a_partition_lost_while_extracting_is_not_written(house: House) -> None:
    house.act("u1", SEGMENT, A)
    house.act("u2", SEGMENT, B)
    house.system.before = lambda: house.reclusterer.set_owners([B.owner])
    assert house.reclusterer.run_once() == 1
    assert (house.covered("u1"), house.covered("u2")) == (None, SEGMENT)


def test_the_longest_due_come_first(house: House) -> None:
    for number in range(1, 4):
        house.act(f"u{number}")
        house.clock.now += 100
    house.clock.now += 1000
    house.reclusterer.run_once()
    writes = [call for call in house.store.calls if call[0] == "put_interests"]
    assert writes == [("put_interests", 3)]
    assert house.due() == []


def test_a_backlog_of_one_owner_does_not_delay_the_others(tmp_path: Path) -> None:
    house = House(MemoryStore(), recluster_batch=4)
    for number in range(100, 200):
        house.act(f"u{number}", SEGMENT, A)
    house.clock.now += 10
    house.act("u1", SEGMENT, B)
    house.reclusterer.run_once()
    assert house.covered("u1") == SEGMENT
    assert len(house.due(A)) == 100 - 8


def test_a_batch_is_one_read_and_one_write(house: House) -> None:
    for number in range(1, 50):
        house.act(f"u{number}", SEGMENT, A if number % 2 else B)
    house.store.calls.clear()
    assert house.reclusterer.run_once() == 49
    assert [call for call in house.store.calls if call[0] != "due"] == [
        ("sequences", 49),
        ("put_interests", 49),
    ]


def test_a_user_that_moved_between_owners_is_reclustered_by_the_new_one(house: House) -> None:
    house.act("u1", SEGMENT, A)
    house.act("u1", 1, B)
    house.reclusterer.set_owners([A.owner])
    assert house.reclusterer.run_once() == 0
    house.reclusterer.set_owners([B.owner])
    assert house.reclusterer.run_once() == 1
    assert house.due(A) == house.due(B) == []


def test_a_user_listed_under_two_owners_is_reclustered_once() -> None:
    """Where a database cannot move them from list to list at once, they are in both for a while."""

    class Both(MemoryStore):
        def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
            return super().due(A.owner, digest, limit)

    house = House(Both())
    house.act("u1", SEGMENT, A)
    assert house.reclusterer.run_once() == 1
    assert house.system.previous == [None]


def test_a_failing_user_is_counted_and_put_off_and_the_others_go_on(house: House) -> None:
    house.act("u1")
    house.act("u2")
    house.system.users_failing = {1}
    assert house.reclusterer.run_once() == 1
    assert house.metric("reclusters_total", outcome="failed") == 1
    house.clock.now += 999
    house.reclusterer.run_once()
    assert house.metric("reclusters_total", outcome="failed") == 1
    house.clock.now += 1
    house.reclusterer.run_once()
    assert house.metric("reclusters_total", outcome="failed") == 2
    house.system.users_failing = set()
    house.clock.now += 1999
    assert house.reclusterer.run_once() == 0
    house.clock.now += 1
    assert house.reclusterer.run_once() == 1


def test_a_failing_user_is_named_in_one_line(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.act("u1")
    house.system.users_failing = {1}
    house.reclusterer.run_once()
    (record,) = caplog.records
    message = record.getMessage()
    assert "u1" in message
    assert "no interests for this one" in message
    assert "\n" not in message


@pytest.mark.parametrize("operation", ["sequences", "put_interests"])
def test_a_corrupt_record_spoils_only_its_user(house: House, operation: str) -> None:
    for number in range(1, 6):
        house.act(f"u{number}")

    def corrupt(what: Sequence[Any]) -> None:
        if any(getattr(entry, "user", entry) == "u3" for entry in what):
            raise StoreCorrupt("the record of user 'u3' is truncated; remove it")

    house.store.faults = {operation: corrupt}
    assert house.reclusterer.run_once() == 4
    assert house.metric("reclusters_total", outcome="failed") == 1
    assert house.due() == ["u3"]


def test_many_failing_users_leave_room_for_the_others() -> None:
    house = House(MemoryStore(), recluster_batch=2)
    for number in range(1, 20):
        house.act(f"u{number}")
    house.system.users_failing = set(range(1, 19))
    house.clock.now += 10
    for _ in range(10):
        house.reclusterer.run_once()
    assert house.covered("u19") == SEGMENT


def test_an_expired_user_is_counted_as_gone() -> None:
    clock = Clock()
    house = House(MemoryStore(StoreOptions(ttl_s=10, clock=clock)), clock)
    house.act("u1")

    def expire(_: Any) -> None:
        clock.now += 20_000

    house.store.faults = {"sequences": expire}  # after they were listed
    assert house.reclusterer.run_once() == 0
    assert house.metric("reclusters_total", outcome="gone") == 1
    assert house.reclusterer.run_once() == 0
    assert house.metric("reclusters_total", outcome="gone") == 1


def test_stale_interests_are_refused_and_counted(house: House) -> None:
    house.act("u1")
    newer = InterestWrite("u1", DIGEST, Version(START, 99), b"newer")
    house.system.before = lambda: house.store.put_interests([newer], START)
    assert house.reclusterer.run_once() == 0
    assert house.metric("reclusters_total", outcome="stale") == 1
    assert house.covered("u1") == 99


def test_metrics_tell_outcomes_freshness_and_what_waits(house: House) -> None:
    house.act("u1")
    house.clock.now += 500
    house.act("u2", SEGMENT, B)
    house.clock.now += 200
    house.reclusterer.run_once()
    assert house.metric("reclusters_total", outcome="stored") == 2
    assert house.metric("freshness_seconds_sum") == pytest.approx(0.9)
    assert house.metric("recluster_seconds_count") == 2
    assert house.metric("due_users") == 2
    assert house.metric("due_oldest_seconds") == pytest.approx(0.7)


@pytest.fixture(params=["memory", "lmdb"])
def mortal_house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    """Users expire 10 s after their last behavior."""
    clock = Clock()
    if request.param == "memory":
        return House(MemoryStore(StoreOptions(ttl_s=10, clock=clock)), clock)
    return House(LmdbStore(tmp_path, StoreOptions(ttl_s=10, clock=clock), max_size=1 << 24), clock)


def test_expired_users_are_removed_once_a_minute(mortal_house: House) -> None:
    house = mortal_house
    house.act("u1")
    house.clock.now += SWEEP_EVERY_MS - 1
    house.act("u2")
    assert house.reclusterer.sweep() == 0
    house.clock.now += 1
    assert house.reclusterer.sweep() == 1
    assert house.due() == ["u2"]
    assert house.metric("expired_users_total") == 1
    house.clock.now += SWEEP_EVERY_MS - 1
    assert house.reclusterer.sweep() == 0
    house.clock.now += 1
    assert house.reclusterer.sweep() == 1


def test_more_expired_users_than_go_at_once_do_not_wait_a_minute() -> None:
    clock = Clock()
    house = House(MemoryStore(StoreOptions(ttl_s=10, clock=clock)), clock)
    for number in range(SWEEP_USERS + 1):
        house.act(f"u{number}")
    house.clock.now += SWEEP_EVERY_MS
    assert [house.reclusterer.sweep() for _ in range(3)] == [SWEEP_USERS, 1, 0]


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreFull("full")])
def test_a_store_that_fails_to_remove_users_is_asked_again(
    mortal_house: House, error: StoreError
) -> None:
    house = mortal_house
    house.act("u1")

    def fail(_: Any) -> None:
        raise error

    house.store.faults = {"sweep": fail}
    house.clock.now += SWEEP_EVERY_MS
    with pytest.raises(type(error)):
        house.reclusterer.sweep()
    assert house.metric("store_errors_total", error=type(error).__name__, code="") == 1
    house.store.faults = {}
    assert house.reclusterer.sweep() == 0
    house.clock.now += SWEEP_EVERY_MS
    assert house.reclusterer.sweep() == 1


def test_an_unreadable_record_does_not_end_the_passes(mortal_house: House) -> None:
    house = mortal_house

    def corrupt(_: Any) -> None:
        raise StoreCorrupt("the record of user 'u3' is truncated; remove it")

    house.store.faults = {"sweep": corrupt}
    house.clock.now += SWEEP_EVERY_MS
    assert house.reclusterer.sweep() == 0
    assert house.metric("store_errors_total", error="StoreCorrupt", code="") == 1


def test_the_thread_removes_expired_users(mortal_house: House) -> None:
    house = mortal_house
    done = threading.Event()
    house.store.faults = {"sweep": lambda _: done.set()}
    house.clock.now += SWEEP_EVERY_MS
    house.reclusterer.start()
    assert done.wait(10)
    house.reclusterer.stop()


@pytest.mark.parametrize("operation", ["due", "sequences", "interests", "put_interests"])
def test_a_failing_store_is_told_and_loses_nothing(house: House, operation: str) -> None:
    house.act("u1")
    house.reclusterer.run_once()
    house.act("u1")

    def away(_: Any) -> None:
        raise StoreUnavailable("the store is away")

    house.store.faults = {operation: away}
    with pytest.raises(StoreUnavailable):
        house.reclusterer.run_once()
    assert house.metric("store_errors_total", error="StoreUnavailable", code="") == 1
    house.store.faults = {}
    assert house.reclusterer.run_once() == 1
    assert house.covered("u1") == 2 * SEGMENT


def test_one_owners_unreadable_list_does_not_block_the_others(house: House) -> None:
    house.act("u1", SEGMENT, A)
    house.act("u2", SEGMENT, B)

    def corrupt(owner: Any) -> None:
        if owner == A.owner:
            raise StoreCorrupt("due list unreadable")

    house.store.faults = {"due": corrupt}
    assert house.reclusterer.run_once() == 1
    assert house.metric("store_errors_total", error="StoreCorrupt", code="") == 1


def test_a_real_system_works_in_its_threads(tmp_path: Path) -> None:
    system = open_system(Bundle.load(tiny_bundle(tmp_path / "bundle")))
    house = House(LmdbStore(tmp_path / "store", max_size=1 << 24), digest=system.digest)
    reclusterer = Reclusterer(
        cast("Store", house.store),
        system,
        WorkerSettings(recluster_threads=2, recluster_batch=4),
        WorkerMetrics(CollectorRegistry()),
        house.clock,
    )
    reclusterer.set_owners([A.owner])
    for _ in ("cold", "warm"):
        for number in range(1, 21):
            house.act(f"u{number}")
        while reclusterer.run_once():
            pass
    reclusterer.stop()
    assert house.due() == []
    (profile,) = house.store.profiles(["u7"], system.digest)
    state = system.layout.decode(profile.interests)
    assert state.version == Version(START, 2 * SEGMENT)
    assert state.history.counts.tolist() == [64]
    assert state.recent.tolist() == [7] * 8


@pytest.mark.parametrize("threads", [1, 3])
def test_the_thread_reclusters_until_stopped(house: House, threads: int) -> None:
    house = House(
        cast("Store", house.store),
        recluster_threads=threads,
        recluster_poll_s=0.01,
        recluster_batch=2,
    )
    done = threading.Event()
    house.system.before = lambda: done.set() if len(house.system.previous) >= 9 else None
    for number in range(1, 11):
        house.act(f"u{number}")
    house.reclusterer.start()
    assert done.wait(10)
    house.reclusterer.stop()
    assert not house.reclusterer.alive
    assert all(house.covered(f"u{number}") == SEGMENT for number in range(1, 11))


def test_stopping_finishes_the_batch_in_hand() -> None:
    house = House(MemoryStore(), recluster_poll_s=0.01, recluster_batch=2)
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(10)

    house.system.before = wait
    for number in range(1, 5):
        house.act(f"u{number}")
    house.reclusterer.start()
    assert entered.wait(10)
    stopper = threading.Thread(target=house.reclusterer.stop)
    stopper.start()
    while not house.reclusterer._stopping.is_set():
        pass
    leave.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert len(house.due()) == 2


def test_the_thread_survives_every_error(caplog: pytest.LogCaptureFixture) -> None:
    house = House(MemoryStore(), recluster_poll_s=0.01)
    done = threading.Event()
    faults = iter([StoreUnavailable("away"), StoreFull("full"), RuntimeError("a bug"), None])

    def fail(_: Any) -> None:
        error = next(faults, None)
        if error is not None:
            raise error

    house.store.faults = {"due": fail}
    house.system.before = done.set
    house.act("u1")
    house.reclusterer.start()
    assert done.wait(10)
    assert house.reclusterer.alive
    house.reclusterer.stop()
    assert house.covered("u1") == SEGMENT


# What keeps interests from getting fresher


def unavailable(_: Any) -> None:
    raise StoreUnavailable("the store is away")


def until(condition: Callable[[], object]) -> None:
    """Wait for what the thread is about to do."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_oldest_due_user_gets_older_while_the_store_is_away(house: House) -> None:
    house.act("u1")
    house.store.faults["sequences"] = unavailable
    with pytest.raises(StoreUnavailable):
        house.reclusterer.run_once()
    house.clock.now += 5_000
    assert house.metric("due_oldest_seconds") == 5


def test_who_is_due_since_nobody_can_be_listed_counts_as_due(house: House) -> None:
    house.store.faults["due"] = unavailable
    with pytest.raises(StoreUnavailable):
        house.reclusterer.run_once()
    house.clock.now += 5_000
    assert house.metric("due_oldest_seconds") == 5


def test_an_owner_whose_list_cannot_be_read_counts_as_due(house: House) -> None:
    def corrupt(owner: Any) -> None:
        if owner == A.owner:
            raise StoreCorrupt("due list unreadable")

    house.store.faults["due"] = corrupt
    house.clock.now += 5_000
    house.reclusterer.run_once()
    assert house.metric("due_oldest_seconds") == 5


def test_nobody_is_due_right_after_a_look_that_found_nobody(house: House) -> None:
    house.clock.now += 5_000
    house.reclusterer.run_once()
    house.clock.now += 100
    assert house.metric("due_oldest_seconds") == 0


def test_a_pass_that_does_not_get_on_is_trouble_until_it_does() -> None:
    house = House(MemoryStore(), recluster_poll_s=0.01)
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(10)

    house.system.before = wait
    house.act("u1")
    house.reclusterer.start()
    try:
        assert entered.wait(10)
        house.clock.now += HANGING_MS - 1
        assert house.reclusterer.trouble() is None
        house.clock.now += 1
        assert "no batch has ended for 60 s" in str(house.reclusterer.trouble())
    finally:
        leave.set()
    until(lambda: house.reclusterer.trouble() is None)
    house.reclusterer.stop()


def test_a_store_that_stays_away_is_trouble_and_a_hiccup_is_none() -> None:
    house = House(MemoryStore(), recluster_poll_s=0.01)
    house.act("u1")
    house.store.faults["due"] = unavailable
    house.reclusterer.start()
    until(lambda: house.metric("store_errors_total", error="StoreUnavailable", code=""))
    assert house.reclusterer.trouble() is None
    house.clock.now += TROUBLE_MS
    until(house.reclusterer.trouble)
    assert "away" in str(house.reclusterer.trouble())
    house.store.faults.clear()
    until(lambda: house.reclusterer.trouble() is None)
    house.reclusterer.stop()


def failing(house: House, count: int) -> None:
    """Have so many users fail."""
    for number in range(count):
        house.system.users_failing.add(number)
        house.act(f"u{number}")
    house.reclusterer.run_once()
    assert house.metric("reclusters_total", outcome="failed") == count


def test_users_of_whom_none_can_be_reclustered_are_trouble(house: House) -> None:
    failing(house, STUCK_USERS)
    assert house.reclusterer.trouble() is None
    house.clock.now += STUCK_MS
    assert "no interests for this one" in str(house.reclusterer.trouble())
    house.act("u99")
    house.reclusterer.run_once()
    assert house.reclusterer.trouble() is None


def test_users_whose_interests_others_made_are_no_trouble(house: House) -> None:
    def newer() -> None:
        house.system.before = lambda: None
        version = Version(START, 10 * SEGMENT)
        users = [f"u{number}" for number in range(STUCK_USERS)]
        writes = [InterestWrite(user, DIGEST, version, b"newer") for user in users]
        house.store.put_interests(writes, START)

    for number in range(STUCK_USERS):
        house.act(f"u{number}")
    house.system.before = newer
    house.reclusterer.run_once()
    assert house.metric("reclusters_total", outcome="stale") == STUCK_USERS
    house.clock.now += 10 * STUCK_MS
    assert house.reclusterer.trouble() is None


def test_failing_users_of_partitions_that_moved_away_are_no_trouble(house: House) -> None:
    failing(house, STUCK_USERS)
    house.reclusterer.set_owners([])
    house.clock.now += STUCK_MS
    assert house.reclusterer.trouble() is None


def test_users_who_fail_after_a_long_quiet_have_their_time(house: House) -> None:
    house.clock.now += 10 * STUCK_MS
    failing(house, STUCK_USERS)
    assert house.reclusterer.trouble() is None


def test_a_user_who_failed_and_was_then_made_by_others_counts_no_longer(house: House) -> None:
    failing(house, STUCK_USERS)
    house.system.users_failing = set(range(1, STUCK_USERS))
    newer = InterestWrite("u0", DIGEST, Version(START, 10 * SEGMENT), b"newer")
    house.system.before = lambda: house.store.put_interests([newer], START)
    house.clock.now += STUCK_MS
    house.reclusterer.run_once()
    assert house.metric("reclusters_total", outcome="stale") == 1
    assert house.reclusterer.trouble() is None


def test_a_few_users_who_cannot_be_reclustered_are_no_trouble(house: House) -> None:
    house.system.users_failing.add(1)
    house.act("u1")
    house.reclusterer.run_once()
    house.clock.now += 10 * STUCK_MS
    house.reclusterer.run_once()
    assert house.reclusterer.trouble() is None


def test_states_that_an_outage_has_cost_are_made_anew_at_once() -> None:
    store = MemoryStore()
    house = House(store)
    house.act("u1")
    house.act("u2", source=B)
    house.reclusterer.run_once()
    lose_state(store, "u1", DIGEST)
    house.clock.now += 1000
    assert house.reclusterer.run_once() == 0
    house.interruptions(house.clock.now)
    assert house.reclusterer.run_once() == 1
    assert house.covered("u1") == SEGMENT
    assert "mark_due" in dict(house.store.calls)
    house.store.calls.clear()
    house.reclusterer.run_once()
    assert "mark_due" not in dict(house.store.calls)


def test_states_are_looked_for_until_the_store_has_told_of_them() -> None:
    store = MemoryStore()
    house = House(store)
    house.act("u1")
    house.reclusterer.run_once()
    lose_state(store, "u1", DIGEST)
    house.interruptions(house.clock.now)
    house.store.faults["mark_due"] = unavailable
    with pytest.raises(StoreUnavailable):
        house.reclusterer.run_once()
    del house.store.faults["mark_due"]
    assert house.reclusterer.run_once() == 1


def test_states_stored_long_before_an_outage_are_not_looked_for() -> None:
    house = House(MemoryStore())
    house.act("u1")
    house.reclusterer.run_once()
    house.clock.now += BACK_MS + 1
    house.interruptions(house.clock.now)
    house.reclusterer.run_once()
    assert "mark_due" not in dict(house.store.calls)
    house.clock.now += TRAIL_MS
    house.act("u2")
    house.reclusterer.run_once()
    assert [stored.user for stored in house.reclusterer._stored] == ["u2"]
