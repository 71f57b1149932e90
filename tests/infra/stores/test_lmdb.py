"""The embedded store: what is particular to LMDB."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import lmdb
import pytest

from infra import records
from infra.behaviors import partition_source
from infra.errors import StoreFull, StoreMismatch, StoreUnavailable
from infra.store import InterestWrite, StoreOptions, Version
from infra.stores.lmdb import DATA, ORPHANS, SWEEP_BATCH, SWEEP_HEADS, LmdbStore, _Databases
from tests.infra.stores.spoiling import head_1, put_head
from tests.infra.stores.test_contract import BUNDLE, append, feed, items

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
    store = LmdbStore(tmp_path, StoreOptions(ttl_s=10, clock=clock))
    yield store
    store.close()


def test_what_was_acknowledged_is_there_after_reopening(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    feed(store, SOURCE, [append("ann", 0, 100)], now_ms=1)
    store.close()
    again = LmdbStore(tmp_path)
    assert items(again.sequences(["ann"])[0]) == list(range(100))
    again.close()


def test_a_full_store_says_so_and_changes_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, max_size=256 * 1024)
    with pytest.raises(StoreFull, match="max_size"):
        feed(store, SOURCE, [append(f"user-{i}", 0, 30) for i in range(2000)], now_ms=1)
    assert store.users(b"", 10).users == []
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    assert items(store.sequences(["ann"])[0]) == [0]
    store.close()


def test_a_place_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        LmdbStore(tmp_path / "file" / "store")


def test_an_expired_user_is_unknown(mortal: LmdbStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append("ann", 0)], clock.now_ms)
    clock.now_ms += 10_001
    assert mortal.sequences(["ann"]) == [None]


def test_an_expired_user_begins_anew(mortal: LmdbStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append("ann", 0, 70)], clock.now_ms)
    sequence = mortal.sequences(["ann"])[0]
    assert sequence is not None
    mortal.put_interests([InterestWrite("ann", BUNDLE, sequence.version, b"old")], clock.now_ms)
    clock.now_ms += 10_001
    feed(mortal, SOURCE, [append("ann", 70, 2)], clock.now_ms)
    profile = mortal.profiles(["ann"], BUNDLE)[0]
    assert profile is not None
    assert (profile.version.count, profile.interests) == (2, None)


def test_an_event_renews_the_ttl(mortal: LmdbStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append("ann", 0)], clock.now_ms)
    clock.now_ms += 9_000
    feed(mortal, SOURCE, [append("ann", 1)], clock.now_ms)
    clock.now_ms += 9_000
    assert items(mortal.sequences(["ann"])[0]) == [0, 1]


def test_sweep_removes_expired_users_up_to_its_limit(mortal: LmdbStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append(f"user-{i}", 0, 70) for i in range(5)], clock.now_ms)
    clock.now_ms += 10_001
    feed(mortal, SOURCE, [append("fresh", 0, 70)], clock.now_ms)
    assert mortal.sweep(clock.now_ms, 3) == 3
    assert mortal.sweep(clock.now_ms, 3) == 2
    assert mortal.users(b"", 10).users == ["fresh"]
    assert [due.user for due in mortal.due(SOURCE.owner, BUNDLE, 10)] == ["fresh"]


def test_sweep_looks_at_a_part_of_the_users_and_then_goes_on(
    mortal: LmdbStore, clock: Clock
) -> None:
    feed(mortal, SOURCE, [append("fresh", 0)], clock.now_ms + 10_001)
    with mortal._env.begin(write=True) as txn:
        head = txn.get(b"fresh", db=mortal._dbs.heads)
        assert isinstance(head, bytes)
        with txn.cursor(mortal._dbs.heads) as cursor:
            cursor.putmulti([(b"a%d" % i, head) for i in range(SWEEP_HEADS)])
    feed(mortal, SOURCE, [append("old", 0)], clock.now_ms)
    clock.now_ms += 10_001
    assert [mortal.sweep(clock.now_ms, 10) for _ in range(3)] == [0, 1, 0]


def test_sweep_begins_anew_once_it_has_seen_all(mortal: LmdbStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append("bob", 0)], clock.now_ms)
    clock.now_ms += 10_001
    feed(mortal, SOURCE, [append("ann", 0)], clock.now_ms)
    assert mortal.sweep(clock.now_ms, 10) == 1
    clock.now_ms += 10_001
    assert mortal.sweep(clock.now_ms, 10) == 1


def test_sweep_looks_for_expired_users_while_another_writes(
    mortal: LmdbStore, clock: Clock
) -> None:
    feed(mortal, SOURCE, [append("ann", 0)], clock.now_ms)
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
    store = _Visited(tmp_path, StoreOptions(ttl_s=10, clock=clock))
    users = [f"user-{i:03}" for i in range(2 * SWEEP_BATCH + 1)]
    feed(store, SOURCE, [append(user, 0, 2) for user in users], clock.now_ms)
    clock.now_ms += 10_001
    # Each comes back after being found, and before being removed.
    back = iter([users[0], users[SWEEP_BATCH], users[-1]])
    store.before_write = lambda: feed(store, SOURCE, [append(next(back), 2)], clock.now_ms)
    assert store.sweep(clock.now_ms, len(users)) == len(users) - 3
    store.before_write = None
    assert store.users(b"", 10).users == [users[0], users[SWEEP_BATCH], users[-1]]
    assert [items(sequence) for sequence in store.sequences([users[0]])] == [[2]]
    store.close()


def test_sweep_removes_a_head_that_nobody_can_read(tmp_path: Path, clock: Clock) -> None:
    heard: list[str] = []
    options = StoreOptions(ttl_s=10, clock=clock, damage=lambda kind, line: heard.append(line))
    store = LmdbStore(tmp_path, options)
    feed(store, SOURCE, [append(user, 0) for user in ("ann", "bob", "cat")], clock.now_ms)
    put_head(store, "bob", bytes(100))
    clock.now_ms += 10_001
    assert store.sweep(clock.now_ms, 10) == 3
    assert "'bob'" in heard[0]
    store.close()


def test_a_damaged_user_does_not_stay_listed_as_due(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    feed(store, SOURCE, [append("ann", 0, 64), append("bob", 0, 64)], now_ms=1)
    put_head(store, "ann", b"rubbish")
    assert [due.user for due in store.due(SOURCE.owner, BUNDLE, 10)] == ["bob"]
    with store._env.begin() as txn:
        assert txn.stat(store._dbs.queue)["entries"] == 1
    store.close()


def test_a_list_of_due_users_who_are_gone_is_cleared_in_steps(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    feed(store, SOURCE, [append("zoe", 0, 64)], now_ms=1)
    with store._env.begin(write=True) as txn, txn.cursor(store._dbs.queue) as cursor:
        (key, _) = next(iter(cursor))
        listed = bytes(key).removesuffix(b"zoe")
        cursor.putmulti([(listed + b"a%05d" % i, b"") for i in range(ORPHANS + 1)])
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    with store._env.begin() as txn:
        assert txn.stat(store._dbs.queue)["entries"] == 2
    assert [due.user for due in store.due(SOURCE.owner, BUNDLE, 10)] == ["zoe"]
    store.close()


def test_a_user_whose_id_begins_another_s_is_removed_alone(mortal: LmdbStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append("a\0b", 0, 130), append("a", 0, 130)], clock.now_ms)
    mortal.forget(["a"], clock.now_ms)
    assert items(mortal.sequences(["a\0b"])[0]) == list(range(130))


def test_a_user_is_read_whole_among_whose_segments_lie_another_s(
    mortal: LmdbStore, clock: Clock
) -> None:
    between = "a\0\0\0\0\2b"
    feed(mortal, SOURCE, [append("a", 0, 500), append(between, 0, 1000)], clock.now_ms)
    ours, theirs = mortal.sequences(["a", between])
    assert (items(ours), items(theirs)) == (list(range(500)), list(range(1000)))


def test_a_full_store_is_opened_and_read(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, max_size=256 * 1024)
    _fill(store)
    store.close()
    again = LmdbStore(tmp_path, max_size=256 * 1024)
    assert items(again.sequences(["user-0"])[0]) == list(range(30))
    again.close()
    reader = LmdbStore(tmp_path, StoreOptions(read_only=True), max_size=256 * 1024)
    reader.ping()
    reader.close()


def _fill(store: LmdbStore) -> None:
    with contextlib.suppress(StoreFull):
        for i in range(2000):
            feed(store, SOURCE, [append(f"user-{i}", 0, 30)], now_ms=1)
        pytest.fail("the store never was full")


def test_reading_alone_works_where_nothing_can_be_written(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    feed(store, SOURCE, [append("ann", 0, 100)], now_ms=1)
    store.close()
    files = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    reader = LmdbStore(tmp_path / "store", StoreOptions(read_only=True))
    assert items(reader.sequences(["ann"])[0]) == list(range(100))
    with pytest.raises(StoreUnavailable):
        feed(reader, SOURCE, [append("ann", 100)], now_ms=2)
    reader.close()
    assert (tmp_path / "store" / DATA).read_bytes() == files[DATA]


def test_opening_for_reading_leaves_a_mistyped_path_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store"):
        LmdbStore(tmp_path / "stroe", StoreOptions(read_only=True))
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_path_is_left_as_it_is_where_the_id_is_known(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatch, match=r"correct store\.url, or remove store\.id"):
        LmdbStore(tmp_path / "stroe", StoreOptions(id="0" * 32))
    assert list(tmp_path.iterdir()) == []


# Layout 1


def write_layout_1(path: Path) -> None:
    """A store as an earlier version left it: ann with 70 behaviors, 64 of them in a segment."""
    old = append("ann", 0, 70, event_ids=False)
    segment = b"".join(old.behaviors[:64])
    with lmdb.open(str(path), max_dbs=8, map_size=1 << 24) as env:
        names = ("heads", "segments", "interests", "due", "positions")
        dbs = {name: env.open_db(name.encode()) for name in names}
        with env.begin(write=True) as txn:
            head = head_1(70, b"".join(old.behaviors[64:]), epoch=5, mark=(SOURCE.key, 69))
            txn.put(b"ann", head, db=dbs["heads"])
            txn.put(b"ann\0" + bytes(4), segment, db=dbs["segments"])
            txn.put(b"ann", bytes(16) + b"state", db=dbs["interests"])
            txn.put(bytes(16) + b"ann", b"", db=dbs["due"])
            txn.put(b"backfill/x", b"17", db=dbs["positions"])


def test_a_store_of_layout_1_is_brought_up_to_date_when_a_worker_opens_it(tmp_path: Path) -> None:
    write_layout_1(tmp_path)
    store = LmdbStore(tmp_path)
    assert store.identity is not None
    assert store.identity.layout == 2
    assert items(store.sequences(["ann"])[0]) == list(range(70))
    assert store.get_bookmark("backfill/x") == b"17"
    assert store.mark_due(SOURCE.owner, BUNDLE, ["ann"], now_ms=9) == 1
    store.close()
    with lmdb.open(str(tmp_path), max_dbs=16) as env, env.begin() as txn:
        names = {bytes(key) for key, _ in txn.cursor()}
    assert names == {field.encode() for field in _Databases._fields}


@pytest.mark.parametrize("read_only", [True, False])
def test_a_store_of_layout_1_is_not_the_one_that_is_asked_for(
    tmp_path: Path, read_only: bool
) -> None:
    write_layout_1(tmp_path)
    before = (tmp_path / DATA).read_bytes()
    with pytest.raises(StoreMismatch, match="has no id yet"):
        LmdbStore(tmp_path, StoreOptions(id="0" * 32, read_only=read_only))
    assert (tmp_path / DATA).read_bytes() == before


def test_a_scorer_reads_a_store_of_layout_1_and_what_a_worker_makes_of_it(tmp_path: Path) -> None:
    """A rolling upgrade: scorers first, then workers. They are processes of their own, since LMDB
    forbids one process to open an environment twice.
    """
    write_layout_1(tmp_path)
    reader = LmdbStore(tmp_path, StoreOptions(read_only=True))
    assert _layout_of(reader) is None
    (before,) = reader.profiles(["ann"], BUNDLE)
    assert before is not None
    assert (len(before.recent), before.interests) == (70, None)
    worker = multiprocessing.get_context("spawn").Process(target=_upgrade, args=(str(tmp_path),))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    (after,) = reader.profiles(["ann"], BUNDLE)
    assert after is not None
    assert (after.version, after.interests) == (Version(5, 75), b"state")
    assert _layout_of(reader) == 2
    reader.close()


def _upgrade(path: str) -> None:
    store = LmdbStore(Path(path))
    feed(store, SOURCE, [append("ann", 70, 5)], now_ms=9)
    store.put_interests([InterestWrite("ann", BUNDLE, Version(5, 64), b"state")], 10)
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
        feed(store, source, [append("ann", i, event_ids=False)], now_ms=1)
    store.close()


def test_a_head_stays_small_however_long_the_sequence(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    feed(store, SOURCE, [append("ann", 0, 1000)], now_ms=1)
    with store._env.begin() as txn:
        head = txn.get(b"ann", db=store._dbs.heads)
    assert isinstance(head, bytes)
    assert len(head) < 2048
    assert not records.holds_segment(head)
    store.close()


def _layout_of(store: LmdbStore) -> int | None:
    return None if store.identity is None else store.identity.layout
