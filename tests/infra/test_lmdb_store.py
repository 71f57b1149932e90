"""The embedded store: what is particular to LMDB."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import records
from infra.behaviors import partition_source
from infra.errors import StoreCorrupt, StoreFull, StoreUnavailable
from infra.lmdb_store import LmdbStore
from infra.store import InterestWrite
from tests.infra.test_store_contract import append, items

SOURCE = partition_source("behaviors", "topic-1", 0)
OTHER = partition_source("behaviors", "topic-1", 1)


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
    mortal.append(SOURCE, [append("fresh", 0)], clock.now_ms)
    assert mortal.sweep(clock.now_ms, 3) == 3
    assert mortal.sweep(clock.now_ms, 3) == 2
    assert mortal.users("", 10) == ["fresh"]
    assert [dirty.user for dirty in mortal.dirty(SOURCE.owner, 10)] == ["fresh"]


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
    assert records.tail_length(head) < records.SEGMENT
    store.close()
