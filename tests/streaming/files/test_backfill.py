from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2

from infra.behaviors import category_key, item_key, partition_owner
from infra.errors import SourceError, StoreFull, StoreUnavailable
from infra.segments import SEGMENT
from infra.store import Appended, Group, Store
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from streaming.files.backfill import BackfillProgress, backfill, murmur2, partition_numbers
from streaming.interruptions import BACK_MS, Interruptions

T0 = 1_600_000_000_000
DIGEST = b"b" * 16


def write(path: Path, count: int = 300, users: int = 13, **fields: Any) -> Path:
    rows = [
        {
            "user_id": f"u{n % users}",
            "item_id": f"i{n % 50}",
            "action": "click",
            "event_time": T0 + n,
        }
        | fields
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return LmdbStore(tmp_path / "store", max_size=1 << 26)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "events.jsonl")


class Failing:
    """A memory store that fails at some of its appends, when it has applied a part of them."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        self._store = MemoryStore()
        self._errors = errors
        self.appends = 0
        self.digests: set[bytes | None] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        self.appends += 1
        self.digests.add(digest)
        if self.appends in self._errors:
            self._store.append(groups[:1], now_ms, digest=digest)
            raise self._errors[self.appends]
        return self._store.append(groups, now_ms, digest=digest)


def counts(store: Store) -> dict[str, int]:
    users = store.users(b"", 1000).users
    return {
        user: sequence.version.count
        for user, sequence in zip(users, store.sequences(users), strict=True)
        if sequence is not None
    }


EXPECTED = {f"u{n}": len(range(n, 300, 13)) for n in range(13)}


def test_every_row_becomes_a_behavior_in_the_files_order(store: Store, path: Path) -> None:
    done = backfill(path, store, "behaviors", 4, chunk_rows=64)
    assert (done.applied, done.finished, done.fraction) == (300, True, 1.0)
    assert counts(store) == EXPECTED
    (sequence,) = store.sequences(["u5"])
    assert sequence is not None
    assert sequence.behaviors["item"].tolist() == [
        item_key(f"i{n % 50}") for n in range(5, 300, 13)
    ]
    assert sequence.behaviors["time"].tolist() == [T0 + n for n in range(5, 300, 13)]


def test_all_fields_are_stored(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", 1, category_id="toys", dwell_ms=70, action="purchase")
    backfill(path, store, "behaviors", 4)
    (sequence,) = store.sequences(["u0"])
    assert sequence is not None
    assert sequence.behaviors.tolist() == [(item_key("i0"), T0, category_key("toys"), 70, 4)]


def test_a_repeated_backfill_changes_nothing(store: Store, path: Path) -> None:
    backfill(path, store, "behaviors", 4)
    again = backfill(path, store, "behaviors", 4)
    assert (again.events, again.finished) == (0, True)
    anew = backfill(path, store, "behaviors", 4, resume=False)
    assert (anew.applied, anew.replayed) == (0, 300)
    assert counts(store) == EXPECTED


def test_a_copy_of_the_file_is_the_same_source(store: Store, path: Path, tmp_path: Path) -> None:
    backfill(path, store, "behaviors", 4)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert backfill(copy, store, "behaviors", 4, resume=False).applied == 0


def test_a_stopped_backfill_goes_on_where_it_was(store: Store, path: Path) -> None:
    stop = threading.Event()
    first = backfill(
        path, store, "behaviors", 4, chunk_rows=64, stop=stop, on_progress=lambda _: stop.set()
    )
    assert (first.applied, first.next_row, first.finished) == (64, 64, False)
    rest = backfill(path, store, "behaviors", 4, chunk_rows=64)
    assert (rest.applied, rest.replayed) == (300 - 64, 0)
    assert counts(store) == EXPECTED


def test_a_backfill_that_failed_in_a_chunk_loses_and_doubles_nothing(path: Path) -> None:
    store = Failing({3: StoreFull("no room")})
    with pytest.raises(StoreFull):
        backfill(path, cast("Store", store), "behaviors", 4, chunk_rows=64)
    again = backfill(path, cast("Store", store), "behaviors", 4, chunk_rows=64)
    assert again.replayed > 0
    assert counts(cast("Store", store)) == EXPECTED


def test_a_store_that_is_away_for_a_moment_is_waited_for(path: Path) -> None:
    store = Failing({2: StoreUnavailable("away"), 3: StoreUnavailable("away")})
    assert backfill(path, cast("Store", store), "behaviors", 4).applied == 300


def test_what_a_store_lost_in_an_outage_is_applied_again_before_later_rows(path: Path) -> None:
    interruptions = Interruptions()

    class Killed(MemoryStore):
        """It loses what it acknowledged after its first append when the third one comes."""

        appends = 0

        def append(self, *args: Any, **options: Any) -> Appended:
            self.appends += 1
            if self.appends == 3:
                self.__dict__.update(flushed)
                interruptions(clock())
                raise StoreUnavailable("away")
            done = super().append(*args, **options)
            if self.appends == 1:
                kept = ("_heads", "_segments", "_bookmarks", "_positions")
                flushed.update({name: dict(getattr(self, name)) for name in kept})
            return done

    flushed: dict[str, Any] = {}
    store, ticks = Killed(), itertools.count(T0, BACK_MS // 2)
    clock = ticks.__next__

    done = backfill(
        path,
        cast("Store", store),
        "behaviors",
        4,
        chunk_rows=64,
        clock=clock,
        interruptions=interruptions,
    )

    assert done.finished
    assert counts(cast("Store", store)) == EXPECTED


def test_a_chunk_is_one_append(path: Path) -> None:
    store = Failing({})
    backfill(path, cast("Store", store), "behaviors", 4, digest=DIGEST, chunk_rows=64)
    assert (store.appends, store.digests) == (5, {DIGEST})


def test_users_are_due_under_the_partition_of_their_events(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", 13 * SEGMENT, users=13)
    backfill(path, store, "behaviors", 4, digest=DIGEST)
    for number in range(4):
        due = {d.user for d in store.due(partition_owner("behaviors", number), DIGEST, 100)}
        assert due == {
            f"u{n}"
            for n in range(13)
            if (aiokafka_murmur2(f"u{n}".encode()) & 0x7FFFFFFF) % 4 == number
        }


def test_without_a_bundle_nobody_new_is_due(store: Store, tmp_path: Path) -> None:
    backfill(write(tmp_path / "e.jsonl", SEGMENT, users=1), store, "behaviors", 1)
    assert store.due(partition_owner("behaviors", 0), DIGEST, 100) == []


def test_users_with_full_segments_of_before_are_due_for_a_new_bundle(
    store: Store, tmp_path: Path
) -> None:
    backfill(write(tmp_path / "old.jsonl", SEGMENT, users=1), store, "behaviors", 1)
    backfill(write(tmp_path / "new.jsonl", 1), store, "behaviors", 1, digest=DIGEST)
    due = store.due(partition_owner("behaviors", 0), DIGEST, 100)
    assert [(one.user, one.waiting) for one in due] == [("u0", SEGMENT)]


def test_rows_of_before_a_user_was_deleted_are_counted(store: Store, path: Path) -> None:
    store.forget(["u5"], T0 + 400)
    done = backfill(path, store, "behaviors", 4)
    assert (done.deleted, done.applied, done.events) == (EXPECTED["u5"], 300 - EXPECTED["u5"], 300)
    assert "u5" not in counts(store)


def test_event_ids_are_kept_to_recognise_repeats(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", 10, users=1, event_id="same")
    done = backfill(path, store, "behaviors", 4)
    assert (done.applied, done.duplicates) == (1, 9)


def test_progress_is_told_after_each_chunk(store: Store, path: Path) -> None:
    told: list[BackfillProgress] = []
    backfill(path, store, "behaviors", 4, chunk_rows=100, on_progress=told.append)
    assert [progress.next_row for progress in told] == [100, 200, 300]
    assert [progress.applied for progress in told] == [100, 200, 300]


def test_bad_rows_are_skipped_and_counted_on_request(store: Store, path: Path) -> None:
    path.write_text('{"user_id": "x"}\n' + path.read_text())
    with pytest.raises(SourceError, match="row 1"):
        backfill(path, store, "behaviors", 4)
    done = backfill(path, store, "behaviors", 4, on_bad="skip")
    assert (done.applied, done.skipped) == (300, 1)


def test_murmur2_is_kafkas() -> None:
    letters = random.Random(7)
    keys = ["".join(letters.choices("abü漢😀", k=n % 41)) for n in range(500)]
    expected = [aiokafka_murmur2(key.encode()) & 0xFFFFFFFF for key in keys]
    assert murmur2(pa.array(keys)).tolist() == expected
    assert murmur2(pa.array(keys)[100:200]).tolist() == expected[100:200]
    assert murmur2(pa.array([], pa.string())).tolist() == []


def test_partitions_are_within_their_number() -> None:
    numbers = partition_numbers(pa.array([f"u{n}" for n in range(200)]), 3)
    assert set(numbers.tolist()) == {0, 1, 2}
