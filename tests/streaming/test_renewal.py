from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from infra.behaviors import Source, pack_behavior, partition_owner
from infra.errors import StoreUnavailable
from infra.metrics import WorkerMetrics
from infra.segments import SEGMENT
from infra.store import Append, Group, InterestWrite, Store, UserPage
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from streaming.renewal import KEEP_MS, Renewal
from tests.infra.stores.spoiling import get_head, later_format, lose_state, put_head
from tests.streaming.test_schedule import OTHER, START, CountingSystem

TOPIC, PARTITIONS = "behaviors", 3
ALL = [TP(TOPIC, number) for number in range(PARTITIONS)]
PAGE = 100
PER_SECOND = 500
AGAIN_S = 3600


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
            self.store,
            self.system,
            metrics,
            per_second=PER_SECOND,
            again_s=AGAIN_S,
            page=PAGE,
            clock=lambda: self.now,
        )
        renewal.set_partitions({ALL[number] for number in partitions}, ALL)
        self.metrics = metrics
        return renewal

    def add(self, user: str, behaviors: int = SEGMENT, *, of: bytes = OTHER) -> None:
        """A user who is due for no bundle, with interests of another or of the one named."""
        packed = [pack_behavior(1, START, 0, 0, 2)] * behaviors
        append = Append(user, packed, [0] * behaviors, list(range(behaviors)))
        self.store.append([Group(Source(1, 1), [append])], START)
        if of:
            self.cluster(user, of)

    def cluster(self, user: str, digest: bytes) -> None:
        """Store interests of a bundle."""
        (sequence,) = self.store.sequences([user])
        assert sequence is not None
        write = InterestWrite(user, digest, sequence.version, b"whatever it makes")
        self.store.put_interests([write], START)

    def finish(self) -> None:
        while self.renewal.step():
            pass

    def due(self, partitions: Sequence[int] = range(PARTITIONS)) -> list[str]:
        owners = [partition_owner(TOPIC, number) for number in partitions]
        digest = self.system.digest
        return sorted(due.user for owner in owners for due in self.store.due(owner, digest, 10_000))


class Asked(MemoryStore):
    """Remembers which pages were asked for, whom it was to mark, and what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[bytes] = []
        self.marked: list[tuple[int, str]] = []
        """Owner and user."""
        self.kept: list[str] = []
        """Names of bookmarks."""

    def users(self, after: bytes, limit: int) -> UserPage:
        self.pages.append(after)
        return super().users(after, limit)

    def mark_due(self, owner: int, digest: bytes, users: Sequence[str], now_ms: int) -> int:
        self.marked += [(owner, user) for user in users]
        return super().mark_due(owner, digest, users, now_ms)

    def put_bookmark(self, name: str, bookmark: bytes | None) -> None:
        self.kept.append(name)
        super().put_bookmark(name, bookmark)


@pytest.fixture(params=["memory", "lmdb"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    store = MemoryStore() if request.param == "memory" else LmdbStore(tmp_path, max_size=1 << 26)
    return House(store)


def test_quiet_users_with_interests_of_another_bundle_become_due(house: House) -> None:
    for number in range(20):
        house.add(f"u{number}")
    house.finish()
    assert house.due() == sorted(f"u{number}" for number in range(20))


def test_users_are_shared_out_over_the_partitions_of_all_topics(house: House) -> None:
    orders = [TP("orders", number) for number in range(2)]
    users = sorted(f"u{number}" for number in range(40))
    for user in users:
        house.add(user)

    def due(partition: TP) -> list[str]:
        found = house.store.due(partition_owner(*partition), house.system.digest, 100)
        return [one.user for one in found]

    house.renewal.set_partitions(set(orders), [*ALL, *orders])
    house.finish()
    assert house.due() == []
    assert all(due(partition) for partition in orders)
    house.renewal.set_partitions(set(ALL), [*ALL, *orders])
    house.finish()
    assert sorted(user for partition in [*ALL, *orders] for user in due(partition)) == users


def test_quiet_users_without_any_interests_become_due(house: House) -> None:
    house.add("u1", of=b"")
    house.finish()
    assert house.due() == ["u1"]


def test_interests_of_this_bundle_stay(house: House) -> None:
    house.add("old")
    house.add("new", of=house.system.digest)
    house.finish()
    assert house.due() == ["old"]


def test_users_with_interests_of_several_bundles_stay(house: House) -> None:
    house.add("both", of=house.system.digest)
    house.cluster("both", OTHER)
    house.finish()
    assert house.due() == []


def test_nobody_becomes_due_for_another_bundle(house: House) -> None:
    house.add("u1", of=b"")
    house.finish()
    for number in range(PARTITIONS):
        assert house.store.due(partition_owner(TOPIC, number), OTHER, 10) == []


def test_no_state_is_read() -> None:
    class Unread(MemoryStore):
        def profiles(self, users: Sequence[str], digest: bytes) -> NoReturn:
            pytest.fail("it read profiles")

        def interests(self, users: Sequence[str], digest: bytes) -> NoReturn:
            pytest.fail("it read interests")

    house = House(Unread())
    house.add("u1")
    house.finish()
    assert house.due() == ["u1"]


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


def test_a_store_with_pages_of_its_own_size_is_looked_at_in_full() -> None:
    """A database that gives whole partitions of its own, and some of them empty."""

    class Uneven(MemoryStore):
        def users(self, after: bytes, limit: int) -> UserPage:
            begin = int.from_bytes(after, "big")
            everybody = super().users(b"", 1000).users
            cursor = (begin + 1).to_bytes(2, "big") if begin < 6 else None
            return UserPage([] if begin % 2 else everybody[begin // 2 :: 4], cursor)

    house = House(Uneven())
    for number in range(50):
        house.add(f"u{number}")
    house.finish()
    assert len(house.due()) == 50


def test_partitions_that_go_together_look_at_each_page_once() -> None:
    store = Asked()
    house = House(store)
    for number in range(5 * PAGE):
        house.add(f"u{number:05}")
    house.finish()
    assert len(house.due()) == 5 * PAGE
    assert store.pages == [b"", *(b"u%05d" % (n * PAGE - 1) for n in range(1, 5))]


def overtake(house: House) -> None:
    """One partition passes two of four pages before the others come, and all are looked at."""
    for number in range(4 * PAGE):
        house.add(f"u{number:05}")
    house.renewal = house.again([0])
    assert house.renewal.step()
    assert house.renewal.step()
    house.renewal.set_partitions(set(ALL), ALL)
    house.finish()


def test_a_partition_that_comes_later_is_looked_at_from_its_own_beginning() -> None:
    house = House(MemoryStore())
    overtake(house)
    assert len(house.due()) == 4 * PAGE


def test_what_a_partition_has_passed_is_not_marked_again_for_one_that_comes_later() -> None:
    store = Asked()
    house = House(store)
    overtake(house)
    assert len(store.marked) == len(set(store.marked)) == 4 * PAGE


def test_pages_are_listed_again_only_up_to_where_the_others_are() -> None:
    store = Asked()
    house = House(store)
    overtake(house)
    first, second, third = (b"u%05d" % (n * PAGE - 1) for n in range(1, 4))
    assert store.pages == [b"", first, b"", first, second, third]


def test_a_partition_that_is_done_stays_so_while_others_are_looked_at() -> None:
    store = Asked()
    house = House(store)
    for number in range(60):
        house.add(f"u{number}")
    house.renewal = house.again([0])
    house.finish()
    share = len(store.marked)
    assert 0 < share < 60
    house.renewal.set_partitions(set(ALL), ALL)
    house.finish()
    assert len(store.marked) == len(set(store.marked)) == 60


def test_a_restart_goes_on_from_where_it_was() -> None:
    store = Asked()
    house = House(store)
    for number in range(2 * PAGE):
        house.add(f"u{number:05}")
    house.now += KEEP_MS
    assert house.renewal.step()
    store.pages.clear()
    house.renewal = house.again()
    house.finish()
    assert store.pages == [b"u%05d" % (PAGE - 1)]
    assert len(house.due()) == 2 * PAGE


def test_another_worker_goes_on_with_a_partition_from_where_it_was() -> None:
    store = Asked()
    house = House(store)
    for number in range(3 * PAGE):
        house.add(f"u{number:05}")
    house.renewal = house.again([0, 1])
    house.now += KEEP_MS
    assert house.renewal.step()
    store.pages.clear()
    house.renewal = house.again([1])
    house.finish()
    assert store.pages == [b"u%05d" % (n * PAGE - 1) for n in (1, 2)]


def test_where_it_came_is_not_kept_with_each_page() -> None:
    store = Asked()
    house = House(store)
    for number in range(3 * PAGE):
        house.add(f"u{number:05}")
    assert house.renewal.step()
    assert store.kept == []
    house.now += KEEP_MS
    assert house.renewal.step()
    assert len(store.kept) == PARTITIONS


def test_a_killed_worker_looks_again_at_what_it_had_not_kept() -> None:
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
    house.cluster("u1", house.system.digest)
    house.add("u2")
    house.renewal = house.again()
    assert not house.renewal.step()
    assert house.due() == []


def test_interests_that_the_store_has_lost_are_made_anew_by_a_later_pass() -> None:
    store = MemoryStore()
    house = House(store)
    house.add("u1", of=house.system.digest)
    house.finish()
    lose_state(store, "u1", house.system.digest)
    house.finish()
    assert house.due() == []
    house.now += AGAIN_S * 1000
    house.finish()
    assert house.due() == ["u1"]


def test_a_later_pass_is_not_told_of_as_the_renewal_of_a_bundle() -> None:
    store = Asked()
    house = House(store)
    for number in range(2 * PAGE):
        house.add(f"u{number:05}")
    house.finish()
    store.kept.clear()
    house.now += AGAIN_S * 1000
    assert house.renewal.step()
    assert house.renewal.step()
    assert house.metrics.renewal_partitions._value.get() == 0
    house.finish()
    assert store.kept == []


def test_another_bundle_begins_anew(house: House) -> None:
    house.add("u1")
    house.finish()
    house.cluster("u1", house.system.digest)
    house.system.digest = b"d" * 16
    house.renewal = house.again()
    house.finish()
    assert house.due() == ["u1"]


def test_two_bundles_over_one_store_come_along_apart(house: House) -> None:
    house.add("u1", of=b"")
    house.finish()
    other = House(house.store, CountingSystem(OTHER))
    other.finish()
    assert house.due() == other.due() == ["u1"]


def test_a_partition_that_is_given_to_this_worker_later_is_looked_at_too(house: House) -> None:
    for number in range(30):
        house.add(f"u{number}")
    house.renewal = house.again([0])
    house.finish()
    assert len(house.due()) < 30
    house.renewal.set_partitions(set(ALL), ALL)
    house.finish()
    assert len(house.due()) == 30


def test_a_topic_with_more_partitions_has_other_shares_to_look_at(house: House) -> None:
    """Whoever is in another share now may have been in one that nobody had looked at."""
    for number in range(60):
        house.add(f"u{number}")
    house.renewal = house.again([0])
    house.finish()
    more = [TP(TOPIC, number) for number in range(5)]
    house.renewal.set_partitions(set(more), more)
    house.finish()
    assert len(house.due(range(5))) == 60


def test_progress_is_counted(house: House) -> None:
    house.add("u1")
    house.add("u2", 3)
    house.finish()
    metrics = house.metrics
    assert metrics.renewal_users.labels("seen")._value.get() == 2
    assert metrics.renewal_users.labels("due")._value.get() == 1
    assert metrics.renewal_partitions._value.get() == 0


def test_who_is_due_already_is_not_counted_again(house: House) -> None:
    house.add("u1")
    house.add("u2")
    house.store.mark_due(partition_owner(TOPIC, 0), house.system.digest, ["u1"], START)
    house.finish()
    assert house.due() == ["u1", "u2"]
    assert house.metrics.renewal_users.labels("due")._value.get() == 1


def test_the_thread_waits_for_a_store_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    asked = threading.Event()

    class Away(MemoryStore):
        def get_bookmark(self, name: str) -> bytes | None:
            asked.set()
            raise StoreUnavailable("the store is away")

    house = House(Away())
    house.renewal.start()
    assert asked.wait(10)
    house.renewal.stop()
    assert [
        record.getMessage() for record in caplog.records if "renewal waits" in record.getMessage()
    ]


def test_users_of_a_later_version_are_passed_over_and_told_of(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        house.add(f"user-{number}")
    for user in ("user-3", "user-11"):
        put_head(house.store, user, later_format(get_head(house.store, user)))
    house.finish()
    due = set(house.due())
    assert due >= {f"user-{number}" for number in range(20)} - {"user-3", "user-11"}
    assert house.metrics.reclusters.labels("failed")._value.get() == 2
    assert "has format 9" in caplog.text


def test_a_system_without_states_renews_nothing() -> None:
    whole = CountingSystem()
    whole.keeps_state = False
    house = House(MemoryStore(), whole)
    house.add("u1")
    house.renewal.start()
    house.renewal.stop()
    assert house.due() == []


def test_it_rests_for_those_whom_it_made_due_and_else_as_long_as_it_looked() -> None:
    renewal = House(MemoryStore()).renewal
    assert renewal.rest(due=100, took_s=0.02) == 100 / PER_SECOND
    assert renewal.rest(due=0, took_s=0.02) == 0.02
