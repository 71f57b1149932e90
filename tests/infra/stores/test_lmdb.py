"""The embedded store: what is particular to LMDB."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import lmdb
import pytest

from infra import records
from infra.behaviors import partition_source
from infra.errors import StoreCorrupt, StoreFull, StoreUnavailable
from infra.store import InterestWrite
from infra.stores.lmdb import SWEEP_BATCH, SWEEP_HEADS, LmdbStore
from tests.infra.stores.test_contract import append, items

SOURCE = partition_source("behaviors", "topic-1", 0)
OTHER = partition_source("behaviors", "topic-1", 1)

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mortal(tmp_path: Path, clock: Clock) -> Iterator[LmdbStore]:
    """A store whose users are forgotten after 10 s."""
    store = LmdbStore(tmp_path, ttl_s=10, clock=clock)
    yield store
    store.close()


def test_what_was_acknowledged_is_there_after_reopening(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.append(SOURCE, [append("ann", 0, 100)], now_ms=1)
    store.close()
    again = LmdbStore(tmp_path)
    assert items(again.sequences(["ann"])[0]) == list(range(100))
    again.close()


def test_a_full_store_says_so_and_changes_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, max_size=256 * 1024)
    with pytest.raises(StoreFull, match="max_size"):
        store.append(SOURCE, [append(f"user-{i}", 0, 30) for i in range(2000)], now_ms=1)
    assert store.users("", 10) == []
    store.append(SOURCE, [append("ann", 0)], now_ms=1)
    assert items(store.sequences(["ann"])[0]) == [0]
    store.close()


def test_a_place_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        LmdbStore(tmp_path / "file" / "store")


def test_an_expired_user_is_unknown(mortal: LmdbStore, clock: Clock) -> None:
    mortal.append(SOURCE, [append("ann", 0)], clock.now_ms)
    clock.now_ms += 10_001
    assert mortal.sequences(["ann"]) == [None]


def test_an_expired_user_begins_anew(mortal: LmdbStore, clock: Clock) -> None:
    mortal.append(SOURCE, [append("ann", 0, 70)], clock.now_ms)
    sequence = mortal.sequences(["ann"])[0]
    assert sequence is not None
    mortal.put_interests([InterestWrite("ann", sequence.version, b"old")], clock.now_ms)
    clock.now_ms += 10_001
    mortal.append(SOURCE, [append("ann", 70, 2)], clock.now_ms)
    profile = mortal.profiles(["ann"])[0]
    assert profile is not None
    assert (profile.version.count, profile.interests) == (2, None)


def test_an_event_renews_the_ttl(mortal: LmdbStore, clock: Clock) -> None:
    mortal.append(SOURCE, [append("ann", 0)], clock.now_ms)
    clock.now_ms += 9_000
    mortal.append(SOURCE, [append("ann", 1)], clock.now_ms)
    clock.now_ms += 9_000
    assert items(mortal.sequences(["ann"])[0]) == [0, 1]


def test_sweep_removes_expired_users_up_to_its_limit(mortal: LmdbStore, clock: Clock) -> None:
    mortal.append(SOURCE, [append(f"user-{i}", 0, 70) for i in range(5)], clock.now_ms)
    clock.now_ms += 10_001
    mortal.append(SOURCE, [append("fresh", 0, 70)], clock.now_ms)
    assert mortal.sweep(clock.now_ms, 3) == 3
    assert mortal.sweep(clock.now_ms, 3) == 2
    assert mortal.users("", 10) == ["fresh"]
    assert [due.user for due in mortal.due(SOURCE.owner, 10)] == ["fresh"]


def test_sweep_looks_at_a_part_of_the_users_and_then_goes_on(
    mortal: LmdbStore, clock: Clock
) -> None:
    mortal.append(SOURCE, [append("fresh", 0)], clock.now_ms + 10_001)
    with mortal._env.begin(write=True) as txn:
        head = txn.get(b"fresh", db=mortal._heads)
        assert isinstance(head, bytes)
        with txn.cursor(mortal._heads) as cursor:
            cursor.putmulti([(b"a%d" % i, head) for i in range(SWEEP_HEADS)])
    mortal.append(SOURCE, [append("old", 0)], clock.now_ms)
    clock.now_ms += 10_001
    assert [mortal.sweep(clock.now_ms, 10) for _ in range(3)] == [0, 1, 0]


def test_sweep_begins_anew_once_it_has_seen_all(mortal: LmdbStore, clock: Clock) -> None:
    mortal.append(SOURCE, [append("bob", 0)], clock.now_ms)
    clock.now_ms += 10_001
    mortal.append(SOURCE, [append("ann", 0)], clock.now_ms)
    assert mortal.sweep(clock.now_ms, 10) == 1
    clock.now_ms += 10_001
    assert mortal.sweep(clock.now_ms, 10) == 1


def test_sweep_looks_for_expired_users_while_another_writes(
    mortal: LmdbStore, clock: Clock
) -> None:
    mortal.append(SOURCE, [append("ann", 0)], clock.now_ms)
    with mortal._env.begin(write=True), ThreadPoolExecutor(1) as pool:
        assert pool.submit(mortal.sweep, clock.now_ms, 10).result(timeout=30) == 0


class _Visited(LmdbStore):
    """A store in which something happens before each of its writes."""

    before_write: Callable[[], object] | None = None

    def _write(self, write: Callable[[lmdb.Transaction], T]) -> T:
        before, self.before_write = self.before_write, None
        if before is not None:
            before()
            self.before_write = before
        return super()._write(write)


def test_appends_go_on_between_the_steps_of_a_sweep(tmp_path: Path, clock: Clock) -> None:
    store = _Visited(tmp_path, ttl_s=10, clock=clock)
    users = [f"user-{i:03}" for i in range(2 * SWEEP_BATCH + 1)]
    store.append(SOURCE, [append(user, 0, 2) for user in users], clock.now_ms)
    clock.now_ms += 10_001
    # Each comes back after being found, and before being removed.
    back = iter([users[0], users[SWEEP_BATCH], users[-1]])
    store.before_write = lambda: store.append(SOURCE, [append(next(back), 2)], clock.now_ms)
    assert store.sweep(clock.now_ms, len(users)) == len(users) - 3
    store.before_write = None
    assert store.users("", 10) == [users[0], users[SWEEP_BATCH], users[-1]]
    assert [items(sequence) for sequence in store.sequences([users[0]])] == [[2]]
    store.close()


def test_sweep_reports_a_damaged_head_after_removing_the_others(
    mortal: LmdbStore, clock: Clock
) -> None:
    mortal.append(SOURCE, [append(user, 0) for user in ("ann", "bob", "cat")], clock.now_ms)
    with mortal._env.begin(write=True) as txn:
        txn.put(b"bob", b"\x01garbage", db=mortal._heads)
    clock.now_ms += 10_001
    with pytest.raises(StoreCorrupt, match="bob"):
        mortal.sweep(clock.now_ms, 10)
    assert mortal.users("", 10) == ["bob"]


def test_a_damaged_head_is_corrupt_and_names_the_user(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.append(SOURCE, [append("ann", 0)], now_ms=1)
    with store._env.begin(write=True) as txn:
        txn.put(b"ann", b"\x01garbage", db=store._heads)
    with pytest.raises(StoreCorrupt, match="ann"):
        store.sequences(["ann"])
    store.close()


def test_two_processes_append_to_the_same_users_without_losing_any(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_append_many, args=(str(tmp_path), partition))
        for partition in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = LmdbStore(tmp_path)
    sequence = store.sequences(["ann"])[0]
    assert sequence is not None
    assert sequence.version.count == 600
    store.close()


def _append_many(path: str, partition: int) -> None:
    store = LmdbStore(Path(path), sync=False)
    source = partition_source("behaviors", "topic-1", partition)
    for i in range(300):
        store.append(source, [append("ann", i, event_ids=False)], now_ms=1)
    store.close()


def test_a_head_stays_small_however_long_the_sequence(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.append(SOURCE, [append("ann", 0, 1000)], now_ms=1)
    with store._env.begin() as txn:
        head = txn.get(b"ann", db=store._heads)
    assert isinstance(head, bytes)
    assert len(head) < 2048
    assert not records.holds_segment(head)
    store.close()
