"""What every store promises (infra.store.Store); each test runs over each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.behaviors import (
    BEHAVIOR,
    Source,
    event_key,
    item_key,
    pack_behavior,
    partition_source,
)
from infra.errors import RecordTooLarge
from infra.segments import SEGMENT
from infra.store import (
    Append,
    InterestWrite,
    Store,
    StoredSequence,
    Version,
    Written,
    wall_clock_ms,
)
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from tests.aerospike_double import aerospike_server, open_aerospike  # noqa: F401  (a fixture)

LENGTH = 200
SOURCE = partition_source("behaviors", "topic-1", 0)
OTHER = partition_source("behaviors", "topic-1", 1)

OpenStore = Callable[..., Store]


@pytest.fixture(params=["memory", "lmdb", "aerospike"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens stores that see the same data; closed afterwards."""
    opened: list[Store] = []

    def open_one(**options: Any) -> Store:
        options = {"length": LENGTH, **options}
        if request.param == "memory":
            store: Store = MemoryStore(**options)
        elif request.param == "lmdb":
            store = LmdbStore(tmp_path, **options)
        else:
            server = request.getfixturevalue("aerospike_server")
            store = open_aerospike(server, **options)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


def append(
    user: str, first: int, number: int = 1, *, event_ids: bool = True, offset: int | None = None
) -> Append:
    """Events ``first`` to ``first + number`` of a user; event i has item i and offset i."""
    start = first if offset is None else offset
    ids = range(first, first + number)
    return Append(
        user,
        [pack_behavior(item_key(str(i)), 1000 + i, 7, 8, 4) for i in ids],
        [event_key(f"{user}-{i}") if event_ids else 0 for i in ids],
        list(range(start, start + number)),
    )


def items(sequence: StoredSequence | None) -> list[int]:
    assert sequence is not None
    return [time - 1000 for time in sequence.behaviors["time"].tolist()]


def version_of(store: Store, user: str) -> Version:
    sequence = store.sequences([user])[0]
    assert sequence is not None
    return sequence.version


def test_an_unknown_user_is_none_not_an_error(store: Store) -> None:
    assert store.sequences(["nobody"]) == [None]
    assert store.profiles(["nobody"]) == [None]


def test_a_behavior_comes_back_as_it_was_appended(store: Store) -> None:
    store.append(SOURCE, [append("ann", 3)], now_ms=1)
    sequence = store.sequences(["ann"])[0]
    assert sequence is not None
    expected = np.array([(item_key("3"), 1003, 7, 8, 4)], BEHAVIOR)
    assert sequence.behaviors.tolist() == expected.tolist()
    assert sequence.marks == {SOURCE.key: 3}


def test_answers_come_in_the_order_of_the_users(store: Store) -> None:
    store.append(SOURCE, [append("zoe", 1), append("ann", 2)], now_ms=1)
    zoe, nobody, ann = store.sequences(["zoe", "nobody", "ann"])
    assert (items(zoe), nobody, items(ann)) == ([1], None, [2])


def test_append_counts_per_user_in_the_order_given(store: Store) -> None:
    store.append(SOURCE, [append("zoe", 0, 2)], now_ms=1)
    done = store.append(SOURCE, [append("zoe", 2, 3), append("ann", 9, 4)], now_ms=2)
    assert done.counts == [5, 4]
    assert (done.applied, done.replayed, done.duplicates) == (7, 0, 0)


def test_an_append_repeated_changes_nothing(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, 5)], now_ms=1)
    again = store.append(SOURCE, [append("ann", 0, 5)], now_ms=2)
    assert (again.applied, again.replayed, again.counts) == (0, 5, [5])
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2, 3, 4]


def test_an_append_that_overlaps_applies_only_what_is_new(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, 5)], now_ms=1)
    done = store.append(SOURCE, [append("ann", 3, 5)], now_ms=2)
    assert (done.applied, done.replayed) == (3, 2)
    assert items(store.sequences(["ann"])[0]) == list(range(8))


def test_marks_of_partitions_are_independent(store: Store) -> None:
    store.append(SOURCE, [append("ann", 5)], now_ms=1)
    done = store.append(OTHER, [append("ann", 2)], now_ms=2)
    assert done.applied == 1
    assert items(store.sequences(["ann"])[0]) == [5, 2]


def test_a_topic_made_again_is_another_source(store: Store) -> None:
    store.append(SOURCE, [append("ann", 5)], now_ms=1)
    again = partition_source("behaviors", "topic-2", 0)
    assert store.append(again, [append("ann", 0)], now_ms=2).applied == 1


def test_an_event_its_producer_sent_twice_is_applied_once(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, 3)], now_ms=1)
    done = store.append(SOURCE, [append("ann", 1, 3, offset=10)], now_ms=2)
    assert (done.applied, done.duplicates) == (1, 2)
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2, 3]


def test_an_event_twice_in_one_batch_is_applied_once(store: Store) -> None:
    twice = append("ann", 0, 2)
    twice.event_keys[1] = twice.event_keys[0]
    assert store.append(SOURCE, [twice], now_ms=1).duplicates == 1


def test_a_duplicate_moves_the_mark(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0)], now_ms=1)
    store.append(SOURCE, [append("ann", 0, offset=10)], now_ms=2)
    again = store.append(SOURCE, [append("ann", 0, offset=10)], now_ms=3)
    assert (again.replayed, again.duplicates) == (1, 0)


def test_events_without_an_id_are_never_duplicates(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, event_ids=False)], now_ms=1)
    done = store.append(SOURCE, [append("ann", 0, event_ids=False, offset=1)], now_ms=2)
    assert done.applied == 1


NUMBERS = [1, 63, 64, 65, 128, 129, LENGTH, LENGTH + 1, 500]
# One at a time only through the first two seals: those after them are slow, and the same as with 7.
GROWTHS = [(number, 1) for number in NUMBERS if number <= 129]
GROWTHS += [(number, batch) for batch in (7, 64, 1000) for number in NUMBERS]


@pytest.mark.parametrize(("number", "batch"), GROWTHS)
def test_a_sequence_keeps_the_newest_behaviors_in_order(
    store: Store, number: int, batch: int
) -> None:
    for start in range(0, number, batch):
        store.append(SOURCE, [append("ann", start, min(batch, number - start))], now_ms=start)
    sequence = store.sequences(["ann"])[0]
    assert sequence is not None
    assert sequence.version.count == number
    assert items(sequence) == list(range(max(0, number - LENGTH), number))


def test_the_epoch_is_when_the_head_was_made(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0)], now_ms=111)
    store.append(SOURCE, [append("ann", 1)], now_ms=222)
    assert version_of(store, "ann") == Version(111, 2)


def test_interests_come_back_with_their_version(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, 3)], now_ms=1)
    version = version_of(store, "ann")
    assert store.put_interests([InterestWrite("ann", version, b"state")], 2) == [Written.STORED]
    profile = store.profiles(["ann"])[0]
    assert profile is not None
    assert (profile.interests, profile.interests_version) == (b"state", version)


def test_interests_of_an_unknown_user_are_not_stored(store: Store) -> None:
    write = InterestWrite("nobody", Version(1, 1), b"state")
    assert store.put_interests([write], 2) == [Written.GONE]
    assert store.profiles(["nobody"]) == [None]


def test_older_interests_never_replace_newer_ones(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, 3)], now_ms=1)
    new = version_of(store, "ann")
    store.put_interests([InterestWrite("ann", new, b"new")], 2)
    old = Version(new.epoch, new.count - 1)
    assert store.put_interests([InterestWrite("ann", old, b"old")], 3) == [Written.STALE]
    profile = store.profiles(["ann"])[0]
    assert profile is not None
    assert profile.interests == b"new"


def test_interests_of_the_same_version_are_replaced(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0)], now_ms=1)
    version = version_of(store, "ann")
    store.put_interests([InterestWrite("ann", version, b"one bundle")], 2)
    again = store.put_interests([InterestWrite("ann", version, b"another")], 3)
    assert again == [Written.STORED]


def test_interests_of_another_epoch_are_stale(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0)], now_ms=50)
    write = InterestWrite("ann", Version(49, 900), b"of a record that expired")
    assert store.put_interests([write], 60) == [Written.STALE]


def test_a_sealed_segment_makes_its_user_due_since_then(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT - 1)], now_ms=5)
    assert store.due(SOURCE.owner, 10) == []
    store.append(SOURCE, [append("ann", SEGMENT - 1, 3)], now_ms=10)
    store.append(SOURCE, [append("ann", SEGMENT + 2, SEGMENT)], now_ms=20)
    assert store.due(SOURCE.owner, 10) == [("ann", 10, 2 * SEGMENT)]


def test_due_users_are_kept_by_owner(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    assert len(store.due(SOURCE.owner, 10)) == 1
    assert store.due(OTHER.owner, 10) == []


def test_a_replayed_append_makes_nobody_due(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    store.put_interests([InterestWrite("ann", version_of(store, "ann"), b"")], 11)
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=12)
    assert store.due(SOURCE.owner, 10) == []


def test_the_longest_due_come_first_up_to_the_limit(store: Store) -> None:
    for now, user in [(30, "c"), (10, "b"), (20, "a")]:
        store.append(SOURCE, [append(user, 0, SEGMENT)], now_ms=now)
    assert [due.user for due in store.due(SOURCE.owner, 2)] == ["b", "a"]


def test_interests_of_all_sealed_segments_end_being_due(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT + 5)], now_ms=10)
    version = Version(version_of(store, "ann").epoch, SEGMENT)
    store.put_interests([InterestWrite("ann", version, b"")], 11)
    assert store.due(SOURCE.owner, 10) == []


def test_a_segment_sealed_during_clustering_keeps_the_user_due(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    version = version_of(store, "ann")
    store.append(SOURCE, [append("ann", SEGMENT, SEGMENT)], now_ms=12)
    store.put_interests([InterestWrite("ann", version, b"")], 15)
    assert store.due(SOURCE.owner, 10) == [("ann", 15, SEGMENT)]


def test_behaviors_that_came_during_clustering_wait_for_their_segment(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    version = version_of(store, "ann")
    store.append(SOURCE, [append("ann", SEGMENT, 3)], now_ms=12)
    store.put_interests([InterestWrite("ann", version, b"")], 15)
    assert store.due(SOURCE.owner, 10) == []


def test_a_user_due_again_counts_only_what_waits(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    store.put_interests([InterestWrite("ann", version_of(store, "ann"), b"")], 11)
    store.append(SOURCE, [append("ann", SEGMENT, SEGMENT + 2)], now_ms=20)
    assert store.due(SOURCE.owner, 10) == [("ann", 20, SEGMENT)]


def test_a_due_user_moves_to_the_owner_of_the_newest_append(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    store.append(OTHER, [append("ann", 0, event_ids=False)], now_ms=20)
    assert store.due(SOURCE.owner, 10) == []
    assert store.due(OTHER.owner, 10) == [("ann", 10, SEGMENT)]


def test_users_can_be_made_due_without_an_append(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, SEGMENT), append("bob", 0)], now_ms=10)
    store.put_interests([InterestWrite("ann", version_of(store, "ann"), b"")], 11)
    store.mark_due(OTHER.owner, ["ann", "bob", "nobody"], now_ms=30)
    assert store.due(OTHER.owner, 10) == [("ann", 30, 0)]


def test_a_profile_has_every_behavior_newer_than_the_interests(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, 10)], now_ms=1)
    store.put_interests([InterestWrite("ann", version_of(store, "ann"), b"")], 2)
    store.append(SOURCE, [append("ann", 10, 90)], now_ms=3)
    profile = store.profiles(["ann"])[0]
    assert profile is not None
    assert (profile.recent["time"] - 1000).tolist()[-90:] == list(range(10, 100))


def test_a_profile_without_interests_has_the_whole_sequence(store: Store) -> None:
    store.append(SOURCE, [append("ann", 0, LENGTH + 50)], now_ms=1)
    profile = store.profiles(["ann"])[0]
    assert profile is not None
    assert profile.interests is None
    assert len(profile.recent) == LENGTH


def test_users_are_listed_in_pages(store: Store) -> None:
    names = [f"user-{i}" for i in range(7)]
    store.append(SOURCE, [append(name, 0) for name in names], now_ms=1)
    found: list[str] = []
    while page := store.users(found[-1] if found else "", 3):
        found += page
        assert len(found) <= 7
    assert sorted(found) == names


def test_positions_are_kept_and_removed(store: Store) -> None:
    assert store.get_position("backfill-x") is None
    store.put_position("backfill-x", b"17")
    assert store.get_position("backfill-x") == b"17"
    store.put_position("backfill-x", None)
    assert store.get_position("backfill-x") is None


@pytest.mark.parametrize("open_store", ["lmdb", "aerospike"], indirect=True)
def test_another_client_sees_what_was_written(open_store: OpenStore) -> None:
    """Not of the memory store, which is one process's own."""
    writer = open_store()
    writer.append(SOURCE, [append("ann", 0)], now_ms=1)
    # LMDB forbids one process to open an environment twice, so the first lets go.
    writer.close()
    assert items(open_store().sequences(["ann"])[0]) == [0]


def test_a_user_without_events_for_the_ttl_is_forgotten(open_store: OpenStore) -> None:
    now_ms = wall_clock_ms()
    store = open_store(ttl_s=3600, clock=lambda: now_ms)
    store.append(SOURCE, [append("ann", 0)], now_ms)
    now_ms += 3_600_000
    assert items(store.sequences(["ann"])[0]) == [0]
    now_ms += 1
    assert store.sequences(["ann"]) == [None]
    assert store.profiles(["ann"]) == [None]
    assert store.put_interests([InterestWrite("ann", Version(1, 1), b"")], now_ms) == [Written.GONE]


@pytest.mark.parametrize("user", ["a", "ü" * 128, "x" * 256, "with space/and:colon", "\x01"])
def test_any_user_id_up_to_256_bytes_is_a_key(store: Store, user: str) -> None:
    store.append(SOURCE, [append(user, 0, 70)], now_ms=1)
    assert len(items(store.sequences([user])[0])) == 70


def test_a_user_fed_from_too_many_sources_is_refused_by_name(store: Store) -> None:
    for i in range(255):
        store.append(Source(i + 1, 1), [append("ann", 0, event_ids=False)], now_ms=1)
    with pytest.raises(RecordTooLarge, match="ann"):
        store.append(Source(999, 1), [append("ann", 0, event_ids=False)], now_ms=1)


def test_a_store_that_is_there_answers_a_ping(store: Store) -> None:
    store.ping()
