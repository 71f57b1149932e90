from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from infra.behaviors import Source, pack_behavior, partition_owner
from infra.errors import StoreUnavailable
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.store import Append, InterestWrite, Store, Version
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from streaming.renewal import KEEP_MS, PAGE, Renewal
from tests.streaming.test_schedule import START, CountingSystem

TOPIC, PARTITIONS = "behaviors", 3


class House:
    """A renewal and the store that it goes through."""

    def __init__(self, store: Store, system: CountingSystem | None = None) -> None:
        self.store = store
        self.system = system or CountingSystem()
        self.now = START
        self.renewal = self.again()

    def again(self, partitions: Sequence[int] = range(PARTITIONS)) -> Renewal:
        """A renewal that begins now, as after a restart."""
        metrics = WorkerMetrics(CollectorRegistry())
        renewal = Renewal(
            self.store, self.system, TOPIC, metrics, per_second=1e9, clock=lambda: self.now
        )
        renewal.set_partitions(partitions, PARTITIONS)
        self.metrics = metrics
        return renewal

    def add(self, user: str, behaviors: int = SEGMENT) -> None:
        """A user who is not due, with no interests."""
        packed = [pack_behavior(1, START, 0, 0, 2)] * behaviors
        append = Append(user, packed, [0] * behaviors, list(range(behaviors)))
        self.store.append(Source(1, 1), [append], START)
        self.cluster(user, b"of no bundle")

    def cluster(self, user: str, record: bytes | None = None) -> None:
        """Store interests: a record, or what the bundle in use makes."""
        (sequence,) = self.store.sequences([user])
        assert sequence is not None
        if record is None:
            record = self.system.layout.encode(self.system.extract(sequence))
        version = Version(sequence.version.epoch, sequence.version.count)
        self.store.put_interests([InterestWrite(user, version, record)], START)

    def finish(self) -> None:
        while self.renewal.step():
            pass

    def due(self, partitions: Sequence[int] = range(PARTITIONS)) -> list[str]:
        owners = [partition_owner(TOPIC, number) for number in partitions]
        return sorted(due.user for owner in owners for due in self.store.due(owner, 10_000))


@pytest.fixture(params=["memory", "lmdb"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    store = MemoryStore() if request.param == "memory" else LmdbStore(tmp_path, max_size=1 << 26)
    return House(store)


def test_quiet_users_with_interests_of_another_bundle_become_due(house: House) -> None:
    for number in range(20):
        house.add(f"u{number}")
    house.finish()
    assert house.due() == sorted(f"u{number}" for number in range(20))


def test_interests_of_this_bundle_stay(house: House) -> None:
    house.add("old")
    house.add("new")
    house.cluster("new")
    house.finish()
    assert house.due() == ["old"]


def test_users_without_a_full_segment_are_left_alone(house: House) -> None:
    house.add("light", SEGMENT - 1)
    house.finish()
    assert house.due() == []


def test_each_user_is_looked_at_by_the_worker_of_one_partition(house: House) -> None:
    for number in range(60):
        house.add(f"u{number}")
    shares = []
    for partition in range(PARTITIONS):
        house.renewal = house.again([partition])
        house.finish()
        shares.append(set(house.due([partition])))
    assert all(shares)
    assert sum(map(len, shares)) == len(set.union(*shares)) == 60


def test_more_users_than_a_page_are_all_reached() -> None:
    house = House(MemoryStore())
    for number in range(2 * PAGE + 1):
        house.add(f"u{number}")
    house.finish()
    assert len(house.due()) == 2 * PAGE + 1


def test_the_store_is_not_asked_for_names_with_each_page() -> None:
    class Asked(MemoryStore):
        lists = 0

        def users(self, after: str, limit: int) -> list[str]:
            self.lists += 1
            return super().users(after, limit)

    store = Asked()
    house = House(store)
    for number in range(5 * PAGE):
        house.add(f"u{number}")
    house.finish()
    assert len(house.due()) == 5 * PAGE
    assert store.lists == 2  # all of them, and that there are no more


def test_a_partition_that_comes_amid_a_list_is_looked_at_from_its_own_beginning() -> None:
    house = House(MemoryStore())
    for number in range(4 * PAGE):
        house.add(f"u{number:05}")
    house.renewal = house.again([0])
    assert house.renewal.step()
    assert house.renewal.step()
    house.renewal.set_partitions(range(PARTITIONS), PARTITIONS)
    house.finish()
    assert len(house.due()) == 4 * PAGE


def test_a_restart_goes_on_from_where_it_was() -> None:
    house = House(MemoryStore())
    for number in range(2 * PAGE):
        house.add(f"u{number:05}")
    house.now += KEEP_MS
    assert house.renewal.step()
    for user in house.due():  # what the first page made due is done meanwhile
        house.cluster(user)
        house.cluster(user, b"looked at again, this would be noticed")
    house.renewal = house.again()
    house.finish()
    assert house.due() == [f"u{number:05}" for number in range(PAGE, 2 * PAGE)]


def test_where_it_came_is_not_kept_with_each_page() -> None:
    house = House(MemoryStore())
    for number in range(3 * PAGE):
        house.add(f"u{number:05}")
    assert house.renewal.step()
    house.renewal = house.again()
    house.finish()
    assert len(house.due()) == 3 * PAGE


def test_a_pass_that_is_done_is_not_begun_again(house: House) -> None:
    house.add("u1")
    house.finish()
    house.cluster("u1")
    house.add("u2")
    house.renewal = house.again()
    assert not house.renewal.step()
    assert house.due() == []


def test_another_bundle_begins_anew(house: House) -> None:
    house.add("u1")
    house.finish()
    house.cluster("u1")
    house.system.digest = b"c" * 16
    house.renewal = house.again()
    house.finish()
    assert house.due() == ["u1"]


def test_a_partition_that_is_given_to_this_worker_later_is_looked_at_too(house: House) -> None:
    for number in range(30):
        house.add(f"u{number}")
    house.renewal = house.again([0])
    house.finish()
    assert len(house.due()) < 30
    house.renewal.set_partitions(range(PARTITIONS), PARTITIONS)
    house.finish()
    assert len(house.due()) == 30


def test_progress_is_counted(house: House) -> None:
    house.add("u1")
    house.add("u2", 3)
    house.finish()
    metrics = house.metrics
    assert metrics.renewal_users.labels("seen")._value.get() == 2
    assert metrics.renewal_users.labels("due")._value.get() == 1
    assert metrics.renewal_partitions._value.get() == 0


def test_the_thread_waits_for_a_store_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    asked = threading.Event()

    class Away(MemoryStore):
        def get_position(self, name: str) -> bytes | None:
            asked.set()
            raise StoreUnavailable("the store is away")

    house = House(Away())
    house.renewal.start()
    assert asked.wait(10)
    house.renewal.stop()
    assert [
        record.getMessage() for record in caplog.records if "renewal waits" in record.getMessage()
    ]


def test_a_system_without_states_renews_nothing() -> None:
    whole = CountingSystem()
    whole.keeps_state = False
    house = House(MemoryStore(), whole)
    house.add("u1")
    house.renewal.start()
    house.renewal.stop()
    assert house.due() == []
