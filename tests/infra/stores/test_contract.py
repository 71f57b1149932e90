"""What every store promises (infra.store.Store); each test runs over each of them."""

from __future__ import annotations

import threading
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
from infra.errors import RecordTooLarge, StoreCorrupt, StoreMismatch, StoreUnavailable
from infra.segments import SEGMENT
from infra.store import (
    LAYOUT,
    Append,
    Appended,
    Claim,
    Group,
    History,
    Identity,
    InterestWrite,
    Merged,
    Store,
    StoredSequence,
    StoreOptions,
    Version,
    Written,
    wall_clock_ms,
)
from infra.stores.lmdb import LmdbStore
from infra.stores.memory import MemoryStore
from tests.aerospike_double import aerospike_server, open_aerospike  # noqa: F401  (a fixture)
from tests.infra.stores.spoiling import (
    get_head,
    head_1,
    later_format,
    lose_state,
    put_head,
    put_segment,
)
from tests.redis_server import (  # noqa: F401  (fixtures)
    open_redis,
    redis_server,
    shared_redis,
)

LENGTH = 200
SOURCE = partition_source("behaviors", "topic-1", 0)
OTHER = partition_source("behaviors", "topic-1", 1)

BUNDLE = bytes(range(16))
OTHER_BUNDLE = bytes(range(100, 116))

OpenStore = Callable[..., Store]


@pytest.fixture(params=["memory", "lmdb", "aerospike", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens stores that see the same data; closed afterwards."""
    opened: list[Store] = []

    def open_one(**options: Any) -> Store:
        chosen = StoreOptions(**{"length": LENGTH, **options})
        if request.param == "memory":
            store: Store = MemoryStore(chosen)
        elif request.param == "lmdb":
            store = LmdbStore(tmp_path, chosen)
        elif request.param == "redis":
            store = open_redis(request.getfixturevalue("redis_server"), chosen)
        else:
            server = request.getfixturevalue("aerospike_server")
            store = open_aerospike(server, chosen)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


class Heard:
    """What a store told of damaged records."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.lines: list[str] = []

    def __call__(self, kind: str, line: str) -> None:
        self.kinds.append(kind)
        self.lines.append(line)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def watched(open_store: OpenStore, heard: Heard) -> Store:
    return open_store(damage=heard)


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


def feed(
    store: Store,
    source: Source,
    appends: list[Append],
    now_ms: int,
    *,
    digest: bytes | None = BUNDLE,
) -> Appended:
    """Append what one source has."""
    return store.append([Group(source, appends)], now_ms, digest=digest)


def items(sequence: StoredSequence | None) -> list[int]:
    assert sequence is not None
    return [time - 1000 for time in sequence.behaviors["time"].tolist()]


def version_of(store: Store, user: str) -> Version:
    sequence = store.sequences([user])[0]
    assert sequence is not None
    return sequence.version


def test_an_unknown_user_is_none_not_an_error(store: Store) -> None:
    assert store.sequences(["nobody"]) == [None]
    assert store.profiles(["nobody"], BUNDLE) == [None]


def test_a_behavior_comes_back_as_it_was_appended(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 3)], now_ms=1)
    sequence = store.sequences(["ann"])[0]
    assert sequence is not None
    expected = np.array([(item_key("3"), 1003, 7, 8, 4)], BEHAVIOR)
    assert sequence.behaviors.tolist() == expected.tolist()
    assert sequence.marks == {SOURCE.key: 3}


def test_answers_come_in_the_order_of_the_users(store: Store) -> None:
    feed(store, SOURCE, [append("zoe", 1), append("ann", 2)], now_ms=1)
    zoe, nobody, ann = store.sequences(["zoe", "nobody", "ann"])
    assert (items(zoe), nobody, items(ann)) == ([1], None, [2])


def test_append_counts_over_all_users_and_groups(store: Store) -> None:
    feed(store, SOURCE, [append("zoe", 0, 2)], now_ms=1)
    groups = [
        Group(SOURCE, [append("zoe", 0, 5), append("ann", 9, 4)]),
        Group(OTHER, [append("zoe", 4, 2, offset=0)]),
    ]
    done = store.append(groups, now_ms=2)
    assert done == Appended(applied=8, replayed=2, duplicates=1)
    assert items(store.sequences(["zoe"])[0]) == [0, 1, 2, 3, 4, 5]


def test_a_bots_events_are_applied_however_many_come_at_once(store: Store) -> None:
    many, others = append("bot", 0, 70_000), append("ann", 0, 3)
    feed(store, SOURCE, [many, others], now_ms=1)

    again = feed(store, SOURCE, [many, others], now_ms=2)

    assert (again.applied, again.replayed) == (0, 70_003)
    bot, ann = store.sequences(["bot", "ann"])
    assert items(bot) == list(range(70_000 - LENGTH, 70_000))
    assert items(ann) == [0, 1, 2]


def record_append(user: str, first: int, number: int, a_record: int) -> Append:
    """Events as of `append`, so many of them in each record."""
    made = append(user, first, number, event_ids=False)
    return Append(user, made.behaviors, made.event_keys, [i // a_record for i in made.offsets])


def test_events_of_one_record_are_applied_together(store: Store) -> None:
    feed(store, SOURCE, [record_append("ann", 0, 5, 3)], now_ms=1)
    again = feed(store, SOURCE, [record_append("ann", 3, 6, 3)], now_ms=2)
    assert (again.applied, again.replayed) == (3, 3)
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2, 3, 4, 6, 7, 8]


def test_events_of_one_record_stay_together_however_many_come_at_once(store: Store) -> None:
    many = record_append("bot", 0, 70_000, 50)
    done = feed(store, SOURCE, [many, append("ann", 0, 3)], now_ms=1)

    again = feed(store, SOURCE, [many], now_ms=2)

    assert (done.applied, again.applied, again.replayed) == (70_003, 0, 70_000)
    assert items(store.sequences(["bot"])[0]) == list(range(70_000 - LENGTH, 70_000))


def test_an_append_repeated_changes_nothing(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 5)], now_ms=1)
    again = feed(store, SOURCE, [append("ann", 0, 5)], now_ms=2)
    assert (again.applied, again.replayed) == (0, 5)
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2, 3, 4]


def test_an_append_that_overlaps_applies_only_what_is_new(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 5)], now_ms=1)
    done = feed(store, SOURCE, [append("ann", 3, 5)], now_ms=2)
    assert (done.applied, done.replayed) == (3, 2)
    assert items(store.sequences(["ann"])[0]) == list(range(8))


def test_marks_of_partitions_are_independent(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 5)], now_ms=1)
    done = feed(store, OTHER, [append("ann", 2)], now_ms=2)
    assert done.applied == 1
    assert items(store.sequences(["ann"])[0]) == [5, 2]


def test_a_topic_made_again_is_another_source(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 5)], now_ms=1)
    again = partition_source("behaviors", "topic-2", 0)
    assert feed(store, again, [append("ann", 0)], now_ms=2).applied == 1


def test_a_log_that_lost_its_tail_is_another_source_and_leaves_no_mark(store: Store) -> None:
    lives = [partition_source("behaviors", "topic-1", 0, life) for life in range(3)]
    for life, source in enumerate(lives):
        new = [append("ann", life, offset=5)]
        assert feed(store, source, new, now_ms=1).applied == 1
        assert feed(store, source, new, now_ms=1).replayed == 1
    feed(store, OTHER, [append("ann", 5)], now_ms=1)

    (sequence,) = store.sequences(["ann"])
    assert sequence is not None
    assert set(sequence.marks) == {lives[-1].key, OTHER.key}


def test_an_event_its_producer_sent_twice_is_applied_once(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    done = feed(store, SOURCE, [append("ann", 1, 3, offset=10)], now_ms=2)
    assert (done.applied, done.duplicates) == (1, 2)
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2, 3]


def test_an_event_twice_in_one_batch_is_applied_once(store: Store) -> None:
    twice = append("ann", 0, 2)
    twice.event_keys[1] = twice.event_keys[0]
    assert feed(store, SOURCE, [twice], now_ms=1).duplicates == 1


def test_a_duplicate_moves_the_mark(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    feed(store, SOURCE, [append("ann", 0, offset=10)], now_ms=2)
    again = feed(store, SOURCE, [append("ann", 0, offset=10)], now_ms=3)
    assert (again.replayed, again.duplicates) == (1, 0)


def test_events_without_an_id_are_never_duplicates(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, event_ids=False)], now_ms=1)
    done = feed(store, SOURCE, [append("ann", 0, event_ids=False, offset=1)], now_ms=2)
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
        feed(store, SOURCE, [append("ann", start, min(batch, number - start))], now_ms=start)
    sequence = store.sequences(["ann"])[0]
    assert sequence is not None
    assert sequence.version.count == number
    assert items(sequence) == list(range(max(0, number - LENGTH), number))


def test_the_epoch_is_when_the_head_was_made(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=111)
    feed(store, SOURCE, [append("ann", 1)], now_ms=222)
    assert version_of(store, "ann") == Version(111, 2)


def test_interests_come_back_with_their_version(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    version = version_of(store, "ann")
    assert store.put_interests([InterestWrite("ann", BUNDLE, version, b"state")], 2) == [
        Written.STORED
    ]
    profile = store.profiles(["ann"], BUNDLE)[0]
    assert profile is not None
    assert (profile.interests, profile.interests_version) == (b"state", version)


def test_interests_of_an_unknown_user_are_not_stored(store: Store) -> None:
    write = InterestWrite("nobody", BUNDLE, Version(1, 1), b"state")
    assert store.put_interests([write], 2) == [Written.GONE]
    assert store.profiles(["nobody"], BUNDLE) == [None]


def test_older_interests_never_replace_newer_ones(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    new = version_of(store, "ann")
    store.put_interests([InterestWrite("ann", BUNDLE, new, b"new")], 2)
    old = Version(new.epoch, new.count - 1)
    assert store.put_interests([InterestWrite("ann", BUNDLE, old, b"old")], 3) == [Written.STALE]
    profile = store.profiles(["ann"], BUNDLE)[0]
    assert profile is not None
    assert profile.interests == b"new"


def test_interests_of_the_same_version_are_replaced(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    version = version_of(store, "ann")
    store.put_interests([InterestWrite("ann", BUNDLE, version, b"one bundle")], 2)
    again = store.put_interests([InterestWrite("ann", BUNDLE, version, b"another")], 3)
    assert again == [Written.STORED]


def test_interests_of_another_epoch_are_stale(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=50)
    write = InterestWrite("ann", BUNDLE, Version(49, 900), b"of a record that expired")
    assert store.put_interests([write], 60) == [Written.STALE]


def test_a_sealed_segment_makes_its_user_due_since_then(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT - 1)], now_ms=5)
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    feed(store, SOURCE, [append("ann", SEGMENT - 1, 3)], now_ms=10)
    feed(store, SOURCE, [append("ann", SEGMENT + 2, SEGMENT)], now_ms=20)
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 10, 2 * SEGMENT)]


def test_due_users_are_kept_by_owner(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    assert len(store.due(SOURCE.owner, BUNDLE, 10)) == 1
    assert store.due(OTHER.owner, BUNDLE, 10) == []


def test_a_replayed_append_makes_nobody_due(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    store.put_interests([InterestWrite("ann", BUNDLE, version_of(store, "ann"), b"")], 11)
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=12)
    assert store.due(SOURCE.owner, BUNDLE, 10) == []


def test_the_longest_due_come_first_up_to_the_limit(store: Store) -> None:
    for now, user in [(30, "c"), (10, "b"), (20, "a")]:
        feed(store, SOURCE, [append(user, 0, SEGMENT)], now_ms=now)
    assert [due.user for due in store.due(SOURCE.owner, BUNDLE, 2)] == ["b", "a"]


def test_interests_of_all_sealed_segments_end_being_due(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT + 5)], now_ms=10)
    version = Version(version_of(store, "ann").epoch, SEGMENT)
    store.put_interests([InterestWrite("ann", BUNDLE, version, b"")], 11)
    assert store.due(SOURCE.owner, BUNDLE, 10) == []


def test_a_segment_sealed_during_clustering_keeps_the_user_due(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    version = version_of(store, "ann")
    feed(store, SOURCE, [append("ann", SEGMENT, SEGMENT)], now_ms=12)
    store.put_interests([InterestWrite("ann", BUNDLE, version, b"")], 15)
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 15, SEGMENT)]


def test_behaviors_that_came_during_clustering_wait_for_their_segment(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    version = version_of(store, "ann")
    feed(store, SOURCE, [append("ann", SEGMENT, 3)], now_ms=12)
    store.put_interests([InterestWrite("ann", BUNDLE, version, b"")], 15)
    assert store.due(SOURCE.owner, BUNDLE, 10) == []


def test_a_user_due_again_counts_only_what_waits(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    store.put_interests([InterestWrite("ann", BUNDLE, version_of(store, "ann"), b"")], 11)
    feed(store, SOURCE, [append("ann", SEGMENT, SEGMENT + 2)], now_ms=20)
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 20, SEGMENT)]


def test_a_due_user_moves_to_the_owner_of_the_newest_append(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=10)
    feed(store, OTHER, [append("ann", 0, event_ids=False)], now_ms=20)
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    assert store.due(OTHER.owner, BUNDLE, 10) == [("ann", 10, SEGMENT)]


def test_users_can_be_made_due_without_an_append(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT), append("bob", 0)], now_ms=10)
    store.put_interests([InterestWrite("ann", BUNDLE, version_of(store, "ann"), b"")], 11)
    users = ["ann", "bob", "nobody"]
    assert store.mark_due(OTHER.owner, BUNDLE, users, now_ms=30) == 0
    assert store.mark_due(OTHER.owner, OTHER_BUNDLE, users, now_ms=31) == 1
    assert store.mark_due(OTHER.owner, OTHER_BUNDLE, users, now_ms=32) == 0
    assert store.due(OTHER.owner, BUNDLE, 10) == []
    assert store.due(OTHER.owner, OTHER_BUNDLE, 10) == [("ann", 31, SEGMENT)]


def test_a_user_whose_interests_are_lost_can_be_made_due(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT + 3)], now_ms=10)
    write = InterestWrite("ann", BUNDLE, version_of(store, "ann"), b"interests")
    store.put_interests([write], 11)
    lose_state(store, "ann", BUNDLE)
    (profile,) = store.profiles(["ann"], BUNDLE)
    assert profile is not None
    assert (profile.interests_version, len(profile.recent)) == (None, SEGMENT + 3)
    assert store.mark_due(SOURCE.owner, BUNDLE, ["ann"], now_ms=30) == 1
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 30, SEGMENT)]
    assert store.put_interests([write], 31) == [Written.STORED]
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    assert store.interests(["ann"], BUNDLE) == [b"interests"]


def test_a_profile_has_every_behavior_newer_than_the_interests(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 10)], now_ms=1)
    store.put_interests([InterestWrite("ann", BUNDLE, version_of(store, "ann"), b"")], 2)
    feed(store, SOURCE, [append("ann", 10, 90)], now_ms=3)
    profile = store.profiles(["ann"], BUNDLE)[0]
    assert profile is not None
    assert (profile.recent["time"] - 1000).tolist()[-90:] == list(range(10, 100))


def test_a_profile_without_interests_has_the_whole_sequence(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, LENGTH + 50)], now_ms=1)
    profile = store.profiles(["ann"], BUNDLE)[0]
    assert profile is not None
    assert profile.interests is None
    assert len(profile.recent) == LENGTH


def test_users_are_listed_in_pages(store: Store) -> None:
    names = [f"user-{i}" for i in range(7)]
    feed(store, SOURCE, [append(name, 0) for name in names], now_ms=1)
    found: list[str] = []
    cursors = [b""]
    while True:
        page = store.users(cursors[-1], 3)
        found += page.users
        if page.after is None:
            break
        cursors.append(page.after)
    assert sorted(found) == names
    assert cursors == sorted(set(cursors))


def test_positions_are_kept_and_removed(store: Store) -> None:
    assert store.get_bookmark("backfill-x") is None
    store.put_bookmark("backfill-x", b"17")
    assert store.get_bookmark("backfill-x") == b"17"
    store.put_bookmark("backfill-x", None)
    assert store.get_bookmark("backfill-x") is None


@pytest.mark.parametrize("open_store", ["lmdb", "aerospike"], indirect=True)
def test_another_client_sees_what_was_written(open_store: OpenStore) -> None:
    """Not of the memory store, which is one process's own."""
    writer = open_store()
    feed(writer, SOURCE, [append("ann", 0)], now_ms=1)
    # LMDB forbids one process to open an environment twice, so the first lets go.
    writer.close()
    assert items(open_store().sequences(["ann"])[0]) == [0]


def test_a_user_without_events_for_the_ttl_is_forgotten(open_store: OpenStore) -> None:
    now_ms = wall_clock_ms()
    store = open_store(ttl_s=3600, clock=lambda: now_ms)
    feed(store, SOURCE, [append("ann", 0)], now_ms)
    now_ms += 3_600_000
    assert items(store.sequences(["ann"])[0]) == [0]
    now_ms += 1
    assert store.sequences(["ann"]) == [None]
    assert store.profiles(["ann"], BUNDLE) == [None]
    assert store.put_interests([InterestWrite("ann", BUNDLE, Version(1, 1), b"")], now_ms) == [
        Written.GONE
    ]


@pytest.mark.parametrize("user", ["a", "ü" * 128, "x" * 256, "with space/and:colon", "\x01"])
def test_any_user_id_up_to_256_bytes_is_a_key(store: Store, user: str) -> None:
    feed(store, SOURCE, [append(user, 0, 70)], now_ms=1)
    assert len(items(store.sequences([user])[0])) == 70


def test_a_user_fed_from_too_many_sources_is_refused_by_name(store: Store) -> None:
    for i in range(255):
        feed(store, Source(i + 1, 1), [append("ann", 0, event_ids=False)], now_ms=1)
    with pytest.raises(RecordTooLarge, match="ann"):
        feed(store, Source(999, 1), [append("ann", 0, event_ids=False)], now_ms=1)


def test_a_store_that_is_there_answers_a_ping(store: Store) -> None:
    store.ping()


# Sources


def test_a_source_s_position_is_the_highest_offset_reached(store: Store) -> None:
    assert store.positions([SOURCE.key, OTHER.key]) == [None, None]
    store.append([Group(SOURCE, [append("ann", 0, 3)], 9), Group(OTHER, [], 0)], now_ms=1)
    store.append([Group(SOURCE, [], 7)], now_ms=2)
    assert store.positions([SOURCE.key, OTHER.key]) == [9, 0]


def test_an_append_that_names_no_position_leaves_it(store: Store) -> None:
    store.append([Group(SOURCE, [append("ann", 0)])], now_ms=1)
    assert store.positions([SOURCE.key]) == [None]


# States of several bundles


def put(store: Store, digest: bytes, count: int, payload: bytes, now_ms: int = 50) -> Written:
    version = Version(version_of(store, "ann").epoch, count)
    return store.put_interests([InterestWrite("ann", digest, version, payload)], now_ms)[0]


def test_states_of_two_bundles_leave_each_other_alone(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 2 * SEGMENT)], now_ms=1)
    put(store, BUNDLE, 2 * SEGMENT, b"one")
    assert put(store, OTHER_BUNDLE, SEGMENT, b"another") == Written.STORED
    assert store.interests(["ann", "bob"], BUNDLE) == [b"one", None]
    assert store.interests(["ann"], OTHER_BUNDLE) == [b"another"]
    for digest, payload, covered in [(BUNDLE, b"one", 128), (OTHER_BUNDLE, b"another", 64)]:
        (profile,) = store.profiles(["ann"], digest)
        assert profile is not None
        assert profile.interests_version is not None
        assert (profile.interests, profile.interests_version.count) == (payload, covered)


def test_a_user_stays_due_for_the_bundle_that_has_no_state_yet(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1, digest=BUNDLE)
    feed(store, SOURCE, [append("ann", SEGMENT)], now_ms=2, digest=OTHER_BUNDLE)
    put(store, BUNDLE, SEGMENT, b"one")
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    assert store.due(SOURCE.owner, OTHER_BUNDLE, 10) == [("ann", 2, SEGMENT)]


def test_a_sealed_segment_makes_a_user_due_for_every_bundle(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1, digest=BUNDLE)
    put(store, BUNDLE, SEGMENT, b"one")
    put(store, OTHER_BUNDLE, SEGMENT, b"another")
    feed(store, SOURCE, [append("ann", SEGMENT, SEGMENT)], now_ms=9, digest=BUNDLE)
    for digest in (BUNDLE, OTHER_BUNDLE):
        assert store.due(SOURCE.owner, digest, 10) == [("ann", 9, SEGMENT)]


def test_a_bundle_s_worker_that_comes_second_still_finds_its_users_due(store: Store) -> None:
    """Side by side, one worker group applies an event and the other finds it applied."""
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1, digest=BUNDLE)
    again = feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=2, digest=OTHER_BUNDLE)
    assert (again.applied, again.replayed) == (0, SEGMENT)
    assert store.due(SOURCE.owner, OTHER_BUNDLE, 10) == [("ann", 2, SEGMENT)]


def test_who_feeds_without_a_bundle_makes_nobody_due_anew(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1, digest=None)
    assert store.due(SOURCE.owner, BUNDLE, 10) == []


def test_the_state_longest_not_written_goes_when_one_too_many_is_stored(
    open_store: OpenStore,
) -> None:
    store = open_store(states=2)
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1)
    digests = [bytes([i]) * 16 for i in range(1, 4)]
    for digest in (digests[0], digests[1], digests[0], digests[2]):
        assert put(store, digest, SEGMENT, digest) == Written.STORED
    found = [store.interests(["ann"], digest)[0] for digest in digests]
    assert found == [digests[0], None, digests[2]]


def test_a_bundle_on_its_way_takes_no_state_away(open_store: OpenStore) -> None:
    store = open_store(states=1)
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1)
    put(store, BUNDLE, SEGMENT, b"one")
    feed(store, SOURCE, [append("ann", SEGMENT)], now_ms=2, digest=OTHER_BUNDLE)
    assert store.interests(["ann"], BUNDLE) == [b"one"]


def test_of_many_bundles_that_are_never_extracted_few_are_remembered(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT)], now_ms=1)
    for i in range(1, 20):
        digest = bytes([i]) * 16
        feed(store, SOURCE, [append("ann", SEGMENT - 1 + i)], now_ms=1 + i, digest=digest)
    due = [len(store.due(SOURCE.owner, bytes([i]) * 16, 10)) for i in range(1, 20)]
    assert due[-1] == 1
    assert sum(due) <= 4


# Histories


def history(user: str, first: int, number: int, older: int = 0) -> History:
    """What `append` would append, as a job has it."""
    behaviors = b"".join(append(user, first, number).behaviors)
    return History(user, OTHER.owner, behaviors, older)


def merge(store: Store, told: History, job: int = 1, cut: int = 10, now_ms: int = 5_000) -> Merged:
    """Merge a history of what came before event ``cut``."""
    return store.merge([told], Claim(job, 1000 + cut), now_ms, digest=BUNDLE)


def test_a_history_comes_before_what_happened_from_its_cut_on(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 8, 5), append("zoe", 20)], now_ms=1)
    done = store.merge(
        [history("ann", 0, 10), history("bob", 3, 2)], Claim(1, 1010), 5_000, digest=BUNDLE
    )
    assert done == Merged(users=2, behaviors=12, replaced=2, kept=3)
    ann, bob, zoe = store.sequences(["ann", "bob", "zoe"])
    assert (items(ann), items(bob), items(zoe)) == (list(range(13)), [3, 4], [20])
    assert ann is not None
    assert (ann.marks, ann.version) == ({SOURCE.key: 12}, Version(5_000, 13))
    assert set(store.users(b"", 10).users) == {"ann", "bob", "zoe"}


def test_stored_behaviors_from_the_cut_on_keep_their_order(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 30)], now_ms=1)
    feed(store, SOURCE, [append("ann", 12, 2, offset=40)], now_ms=2)
    feed(store, SOURCE, [append("ann", 4, 2, offset=50)], now_ms=3)
    merge(store, history("ann", 0, 3))
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2, 30, 12, 13]


def test_a_job_is_merged_once_and_another_takes_its_place(store: Store) -> None:
    merge(store, history("ann", 0, 3), job=1)
    again = merge(store, history("ann", 0, 9), job=1, now_ms=6_000)
    assert again == Merged(merged_before=1)
    assert items(store.sequences(["ann"])[0]) == [0, 1, 2]
    done = merge(store, history("ann", 1, 9), job=2, now_ms=4_000)
    assert (done.users, done.replaced) == (1, 3)
    (sequence,) = store.sequences(["ann"])
    assert items(sequence) == list(range(1, 10))
    assert sequence is not None
    assert sequence.version == Version(5_001, 9)


def test_late_events_from_before_the_cut_are_covered(store: Store) -> None:
    merge(store, history("ann", 0, 10))
    assert feed(store, SOURCE, [append("ann", 10, 3)], now_ms=6_000) == Appended(applied=3)
    late = feed(store, OTHER, [append("ann", 7, 10, offset=0)], now_ms=6_001)
    assert late == Appended(applied=4, covered=3, duplicates=3)
    assert items(store.sequences(["ann"])[0]) == list(range(17))
    again = feed(store, OTHER, [append("ann", 7, 10, offset=0)], now_ms=6_002)
    assert again == Appended(replayed=10)


def test_a_later_job_with_an_earlier_cut_leaves_the_later_cut(store: Store) -> None:
    merge(store, history("ann", 0, 10), job=1, cut=10)
    merge(store, history("ann", 0, 5), job=2, cut=5)
    assert items(store.sequences(["ann"])[0]) == list(range(10))
    assert feed(store, SOURCE, [append("ann", 9)], now_ms=6_000) == Appended(covered=1)


def test_what_was_applied_before_a_merge_is_recognised_after_it(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 8, 5)], now_ms=1)
    merge(store, history("ann", 0, 10))
    assert feed(store, SOURCE, [append("ann", 8, 5)], now_ms=6_000) == Appended(replayed=5)


def test_a_merged_history_makes_states_anew(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, SEGMENT + 6)], now_ms=1)
    put(store, BUNDLE, SEGMENT, b"old")
    old = version_of(store, "ann")
    merge(store, history("ann", 0, 3 * SEGMENT), cut=1000, now_ms=9_000)
    (profile,) = store.profiles(["ann"], BUNDLE)
    assert profile is not None
    assert (profile.interests, len(profile.recent)) == (None, 3 * SEGMENT)
    assert store.interests(["ann"], BUNDLE) == [None]
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    assert store.due(OTHER.owner, BUNDLE, 10) == [("ann", 9_000, 3 * SEGMENT)]
    late = InterestWrite("ann", BUNDLE, old, b"late")
    assert store.put_interests([late], 9_001) == [Written.STALE]
    new = InterestWrite("ann", BUNDLE, version_of(store, "ann"), b"new")
    assert store.put_interests([new], 9_002) == [Written.STORED]
    assert store.due(OTHER.owner, BUNDLE, 10) == []
    assert store.interests(["ann"], BUNDLE) == [b"new"]


def test_of_a_long_history_the_newest_behaviors_are_kept(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 1000, 3)], now_ms=1)
    done = merge(store, history("ann", 640, 300, older=640), cut=1000)
    assert (done.behaviors, done.kept) == (940, 3)
    (sequence,) = store.sequences(["ann"])
    assert items(sequence) == [*range(940 - LENGTH + 3, 940), 1000, 1001, 1002]
    assert sequence is not None
    assert sequence.version.count == 943
    feed(store, SOURCE, [append("ann", 1003, 100)], now_ms=6_000)
    assert items(store.sequences(["ann"])[0])[-103:] == list(range(1000, 1103))


def test_a_shorter_history_leaves_nothing_of_the_longer_one(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3 * SEGMENT)], now_ms=1)
    merge(store, history("ann", 0, 2), cut=1000)
    assert items(store.sequences(["ann"])[0]) == [0, 1]
    feed(store, SOURCE, [append("ann", 1000, 2 * SEGMENT, offset=1000)], now_ms=6_000)
    assert items(store.sequences(["ann"])[0]) == [0, 1, *range(1000, 1000 + 2 * SEGMENT)]


def test_a_deleted_user_stays_deleted_for_a_history_from_before(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    store.forget(["ann", "zoe"], now_ms=1_005)
    done = store.merge([history("ann", 2, 6), history("zoe", 0, 4)], Claim(1, 1010), 5_000)
    # Event i happened at 1,000 + i.
    assert done == Merged(users=1, behaviors=2, deleted=8)
    assert items(store.sequences(["ann"])[0]) == [6, 7]
    assert store.sequences(["zoe"]) == [None]
    assert feed(store, SOURCE, [append("zoe", 4, 3)], now_ms=6_000) == Appended(1, deleted=2)


def test_a_user_whose_head_is_damaged_begins_anew_with_a_history(
    open_store: OpenStore, heard: Heard
) -> None:
    store = open_store(damage=heard)
    feed(store, SOURCE, [append("ann", 0, 100)], now_ms=1)
    put_head(store, "ann", b"rubbish")
    assert merge(store, history("ann", 0, 5)) == Merged(users=1, behaviors=5)
    assert items(store.sequences(["ann"])[0]) == list(range(5))


def test_histories_are_merged_beside_appends_without_loss_or_doubling(store: Store) -> None:
    users = [f"u{number}" for number in range(4)]
    live = range(100, 260)
    fed = Appended()

    def stream() -> None:
        nonlocal fed
        for first in range(live.start, live.stop, 4):
            fed += feed(store, SOURCE, [append(user, first, 4) for user in users], now_ms=first)

    worker = threading.Thread(target=stream)
    worker.start()
    for job in range(1, 6):
        histories = [history(user, 0, 130) for user in users]
        merged = store.merge(histories, Claim(job, 1130), 5_000 + job, digest=BUNDLE)
        assert merged.users == len(users)
    worker.join()
    assert fed.applied + fed.covered == len(users) * len(live)
    for sequence in store.sequences(users):
        assert items(sequence) == list(range(260 - LENGTH, 260))


# Deletion


def test_a_deleted_user_is_unknown(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 2 * SEGMENT + 3), append("bob", 0)], now_ms=1)
    put(store, BUNDLE, SEGMENT, b"state")
    assert store.forget(["ann", "nobody"], now_ms=5_000) == 1
    assert store.sequences(["ann"]) == [None]
    assert store.profiles(["ann"], BUNDLE) == [None]
    assert store.interests(["ann"], BUNDLE) == [None]
    assert store.due(SOURCE.owner, BUNDLE, 10) == []
    assert store.users(b"", 10).users == ["bob"]
    write = InterestWrite("ann", BUNDLE, Version(1, 2 * SEGMENT), b"late")
    assert store.put_interests([write], 5_001) == [Written.GONE]
    assert store.mark_due(SOURCE.owner, BUNDLE, ["ann"], 5_002) == 0


def test_what_is_held_of_a_user_is_told_before_it_is_deleted(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 2 * SEGMENT + 3), append("bob", 0)], now_ms=1)
    put(store, BUNDLE, SEGMENT, b"state")
    ann, nobody, bob = store.held(["ann", "nobody", "bob"])
    assert ann is not None
    assert (ann.behaviors, ann.sources, ann.due) == (2 * SEGMENT + 3, 1, 1)
    assert ann.states == {BUNDLE[:8].hex(): 5}
    assert ann.bytes > (2 * SEGMENT + 3) * 2
    assert nobody is None
    assert bob is not None
    assert (bob.behaviors, bob.states) == (1, {})
    store.forget(["ann"], now_ms=5_000)
    assert store.held(["ann"]) == [None]


def test_a_store_is_empty_until_somebody_is_there_and_once_all_are_deleted(store: Store) -> None:
    assert store.empty()
    feed(store, SOURCE, [append("ann", 0), append("bob", 1)], now_ms=1)
    assert not store.empty()
    store.forget(["ann"], now_ms=5_000)
    assert not store.empty()
    store.forget(["bob"], now_ms=5_000)
    assert store.empty()


def test_what_happened_before_a_user_was_deleted_stays_out(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    store.forget(["ann", "zoe"], now_ms=1_010)
    done = feed(store, SOURCE, [append("ann", 9, 4), append("zoe", 10)], now_ms=2_000)
    # Event i happened at 1,000 + i.
    assert done == Appended(applied=2, deleted=3)
    assert items(store.sequences(["ann"])[0]) == [11, 12]
    assert store.sequences(["zoe"]) == [None]


def test_what_was_applied_before_a_user_was_deleted_is_not_applied_again(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    store.forget(["ann"], now_ms=900)
    assert feed(store, SOURCE, [append("ann", 0, 3)], now_ms=901) == Appended(replayed=3)


def test_a_deleted_user_who_comes_back_has_nothing_of_the_old_life(store: Store) -> None:
    feed(store, SOURCE, [append("ann", 0, 3 * SEGMENT)], now_ms=1)
    put(store, BUNDLE, 2 * SEGMENT, b"old")
    old = version_of(store, "ann")
    store.forget(["ann"], now_ms=1_500)
    feed(store, SOURCE, [append("ann", 1000, 70)], now_ms=1_501)
    new = version_of(store, "ann")
    assert new > old
    assert items(store.sequences(["ann"])[0]) == list(range(1000, 1070))
    (profile,) = store.profiles(["ann"], BUNDLE)
    assert profile is not None
    assert profile.interests is None


def test_a_deletion_is_remembered_as_long_as_a_sequence_would_be(open_store: OpenStore) -> None:
    now_ms = wall_clock_ms()
    store = open_store(ttl_s=3600, clock=lambda: now_ms)
    store.forget(["ann"], now_ms)
    assert feed(store, SOURCE, [append("ann", 0)], now_ms + 3_600_000).deleted == 1
    store.forget(["ann"], now_ms)
    assert feed(store, SOURCE, [append("ann", 1)], now_ms + 7_200_001).applied == 1


# Damage


SPOILED = {"missing": None, "rubbish": b"rubbish", "empty": b"", "of another length": bytes(1599)}


@pytest.mark.parametrize("what", SPOILED)
def test_a_damaged_segment_costs_what_it_held(watched: Store, heard: Heard, what: str) -> None:
    feed(watched, SOURCE, [append("ann", 0, 190)], now_ms=1)
    put_segment(watched, "ann", 1, SPOILED[what], epoch=1)
    (sequence,) = watched.sequences(["ann"])
    assert sequence is not None
    assert items(sequence) == [*range(64), *range(128, 190)]
    assert (sequence.version.count, sequence.lost) == (190, 64)
    (profile,) = watched.profiles(["ann"], BUNDLE)
    assert profile is not None
    assert (len(profile.recent), profile.lost) == (126, 64)
    assert heard.kinds == ["segment"]
    assert "segment 1 of user 'ann'" in heard.lines[0]


def test_a_damaged_segment_that_the_window_cuts_costs_what_of_it_was_inside(
    watched: Store, heard: Heard
) -> None:
    feed(watched, SOURCE, [append("ann", 0, LENGTH + 10)], now_ms=1)
    put_segment(watched, "ann", 0, b"rubbish", epoch=1)
    (sequence,) = watched.sequences(["ann"])
    assert sequence is not None
    assert items(sequence) == list(range(64, LENGTH + 10))
    assert sequence.lost == 54
    assert heard.kinds == ["segment"]


@pytest.mark.parametrize("write", ["append", "put_interests"])
@pytest.mark.parametrize("what", ["missing", "rubbish"])
def test_the_next_write_mends_a_damaged_segment(
    open_store: OpenStore, heard: Heard, write: str, what: str
) -> None:
    store = open_store(damage=heard)
    feed(store, SOURCE, [append("ann", 0, 190)], now_ms=1)
    put_segment(store, "ann", 1, SPOILED[what], epoch=1)
    store.sequences(["ann"])
    if write == "append":
        feed(store, SOURCE, [append("ann", 190)], now_ms=2)
    else:
        assert put(store, BUNDLE, 128, b"state") == Written.STORED
    heard.kinds.clear()
    (sequence,) = store.sequences(["ann"])
    assert sequence is not None
    assert sequence.lost == 64
    assert heard.kinds == []


def test_a_segment_that_was_written_anew_is_not_mended_away(watched: Store) -> None:
    feed(watched, SOURCE, [append("ann", 0, 190)], now_ms=1)
    put_segment(watched, "ann", 0, b"rubbish", epoch=1)
    watched.sequences(["ann"])
    # So many that the ring comes to the damaged segment's place.
    feed(watched, SOURCE, [append("ann", 190, 5 * SEGMENT)], now_ms=2)
    newest = 190 + 5 * SEGMENT
    (sequence,) = watched.sequences(["ann"])
    assert sequence is not None
    assert (items(sequence), sequence.lost) == (list(range(newest - LENGTH, newest)), 0)


@pytest.mark.parametrize("head", [b"", b"rubbish", b"\x01garbage", b"\x02garbage", bytes(400)])
def test_a_user_whose_head_is_damaged_begins_anew_with_the_next_event(
    watched: Store, heard: Heard, head: bytes
) -> None:
    feed(watched, SOURCE, [append("ann", 0, 100), append("bob", 0)], now_ms=1)
    put_head(watched, "ann", head)
    ann, bob = watched.sequences(["ann", "bob"])
    assert (ann, items(bob)) == (None, [0])
    assert heard.kinds == ["head"]
    feed(watched, SOURCE, [append("ann", 100, 3)], now_ms=500)
    assert items(watched.sequences(["ann"])[0]) == [100, 101, 102]
    feed(watched, SOURCE, [append("ann", 103, 70)], now_ms=501)
    assert watched.due(SOURCE.owner, BUNDLE, 10) == [("ann", 501, SEGMENT)]


@pytest.mark.parametrize("place", [9, 30, 60, -20, -1])
def test_a_byte_gone_wrong_in_a_head_is_noticed(watched: Store, heard: Heard, place: int) -> None:
    feed(watched, SOURCE, [append("ann", 0, 3)], now_ms=1)
    head = bytearray(get_head(watched, "ann"))
    head[place] ^= 4
    put_head(watched, "ann", bytes(head))
    assert watched.sequences(["ann"]) == [None]
    assert heard.kinds == ["head"]


def test_a_user_whose_head_is_damaged_can_be_deleted(watched: Store, heard: Heard) -> None:
    feed(watched, SOURCE, [append("ann", 0, 100)], now_ms=1)
    put_head(watched, "ann", b"rubbish")
    watched.forget(["ann"], now_ms=5_000)
    assert feed(watched, SOURCE, [append("ann", 200)], now_ms=6_000).deleted == 1
    assert "head" in heard.kinds


def test_a_damaged_head_is_told_once_until_it_is_mended(watched: Store, heard: Heard) -> None:
    feed(watched, SOURCE, [append("ann", 0, 3)], now_ms=1)
    put_head(watched, "ann", b"rubbish")
    for _ in range(3):
        watched.sequences(["ann"])
    feed(watched, SOURCE, [append("ann", 3)], now_ms=2)
    assert heard.kinds == ["head"]
    put_head(watched, "ann", b"rubbish")
    watched.sequences(["ann"])
    assert heard.kinds == ["head", "head"]


def test_a_head_of_a_later_format_is_refused_and_left_alone(watched: Store, heard: Heard) -> None:
    feed(watched, SOURCE, [append("ann", 0, 100)], now_ms=1)
    later = later_format(get_head(watched, "ann"))
    put_head(watched, "ann", later)
    for call in (
        lambda: watched.sequences(["ann"]),
        lambda: feed(watched, SOURCE, [append("ann", 100)], now_ms=2),
        lambda: watched.forget(["ann"], now_ms=3),
    ):
        with pytest.raises(StoreCorrupt, match="'ann' has format 9"):
            call()
    assert get_head(watched, "ann") == later
    assert heard.kinds == []


def test_a_head_of_a_later_format_keeps_nobody_else_from_being_due(store: Store) -> None:
    users = ["ann", "bob"]
    feed(store, SOURCE, [append(user, 0, 100) for user in users], now_ms=1)
    store.mark_due(SOURCE.owner, BUNDLE, users, now_ms=1)
    put_head(store, "ann", later_format(get_head(store, "ann")))
    due = [user.user for user in store.due(SOURCE.owner, BUNDLE, 10)]
    assert "bob" in due
    assert set(due) <= set(users)


def test_a_head_of_a_later_format_keeps_nobody_else_from_expiring(open_store: OpenStore) -> None:
    now_ms = wall_clock_ms()
    store = open_store(ttl_s=3600, clock=lambda: now_ms)
    feed(store, SOURCE, [append(user, 0, 3) for user in ("ann", "bob")], now_ms)
    later = later_format(get_head(store, "ann"))
    put_head(store, "ann", later)
    now_ms += 3_600_001
    for _ in range(2):
        store.sweep(now_ms, 10)
    assert store.sequences(["bob"]) == [None]
    assert get_head(store, "ann") == later


def test_a_head_of_format_1_is_read_and_rewritten_in_passing(store: Store) -> None:
    old = append("ann", 0, 40, event_ids=False)
    put_head(store, "ann", head_1(40, b"".join(old.behaviors), epoch=5, mark=(SOURCE.key, 39)))
    (sequence,) = store.sequences(["ann"])
    assert (items(sequence), sequence and sequence.marks) == (list(range(40)), {SOURCE.key: 39})
    (profile,) = store.profiles(["ann"], BUNDLE)
    assert profile is not None
    assert (profile.version, profile.interests) == (Version(5, 40), None)
    done = feed(store, SOURCE, [append("ann", 38, 30)], now_ms=9)
    assert done == Appended(applied=28, replayed=2)
    assert items(store.sequences(["ann"])[0]) == list(range(68))
    assert get_head(store, "ann")[0] == 2
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 9, SEGMENT)]


def test_a_quiet_user_of_format_1_can_be_made_due(store: Store) -> None:
    old = append("ann", 0, 70, event_ids=False)
    put_head(store, "ann", head_1(70, b"".join(old.behaviors), epoch=5, mark=(SOURCE.key, 69)))
    assert store.mark_due(SOURCE.owner, BUNDLE, ["ann"], now_ms=9) == 1
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 9, SEGMENT)]


# Identity


def identity_of(store: Store) -> Identity:
    assert store.identity is not None
    return store.identity


def test_a_new_store_says_what_it_was_made_with(open_store: OpenStore) -> None:
    store = open_store(name="shop", ttl_s=60, actions=("view", "buy"), clock=lambda: 1234)
    identity = identity_of(store)
    assert (identity.name, identity.length, identity.ttl_s) == ("shop", LENGTH, 60)
    assert (identity.layout, identity.created_ms) == (LAYOUT, 1234)
    assert identity.actions == ("view", "buy")
    assert len(identity.id) == 32


lasting = pytest.mark.parametrize("open_store", ["lmdb", "aerospike"], indirect=True)
"""Not the memory store, of which nothing outlives its process."""


@pytest.fixture
def reopen(open_store: OpenStore) -> Callable[..., Store]:
    """Opens the store again after the one before is closed, as LMDB asks of a process."""
    before: list[Store] = []

    def again(**options: Any) -> Store:
        for store in before:
            store.close()
        before.clear()
        before.append(open_store(**options))
        return before[0]

    return again


@lasting
def test_a_store_stays_the_one_it_is(reopen: OpenStore) -> None:
    first = identity_of(reopen(name="shop"))
    again = identity_of(reopen(name="another", ttl_s=60))
    assert (again.id, again.name, again.ttl_s) == (first.id, "shop", 60)
    assert identity_of(reopen(id=first.id, ttl_s=60)) == again


@lasting
def test_another_store_than_asked_for_is_refused(reopen: OpenStore) -> None:
    found = identity_of(reopen()).id
    with pytest.raises(StoreMismatch, match=f"is {found} .*store.id asks for {'0' * 32}"):
        reopen(id="0" * 32)


def test_no_store_is_made_where_a_certain_one_was_asked_for(open_store: OpenStore) -> None:
    with pytest.raises(StoreMismatch, match=f"has no id yet, store.id asks for {'0' * 32}"):
        open_store(id="0" * 32)


@lasting
def test_where_a_certain_store_was_asked_for_nothing_is_left(open_store: OpenStore) -> None:
    with pytest.raises(StoreMismatch):
        open_store(id="0" * 32)
    with pytest.raises(StoreUnavailable, match="there is no store"):
        open_store(read_only=True)


@lasting
def test_a_store_cannot_be_made_longer(reopen: OpenStore) -> None:
    reopen()
    with pytest.raises(StoreMismatch, match=f"keeps {LENGTH} behaviors per user"):
        reopen(length=LENGTH + 1)


@lasting
def test_of_a_longer_store_the_newest_behaviors_are_read(reopen: OpenStore) -> None:
    feed(reopen(), SOURCE, [append("ann", 0, 150)], now_ms=1)
    shorter = reopen(length=70)
    assert items(shorter.sequences(["ann"])[0]) == list(range(80, 150))
    feed(shorter, SOURCE, [append("ann", 150, 100)], now_ms=2)
    assert items(reopen().sequences(["ann"])[0]) == list(range(50, 250))


@lasting
def test_actions_are_only_added_at_the_end(reopen: OpenStore) -> None:
    reopen(actions=("view", "buy"))
    assert identity_of(reopen(actions=("view", "buy", "return"))).actions[-1] == "return"
    assert len(identity_of(reopen(actions=("view",))).actions) == 3
    with pytest.raises(StoreMismatch, match="'buy' under code 2, the settings name it 'sell'"):
        reopen(actions=("view", "sell"))


# Reading alone


@lasting
def test_opening_for_reading_makes_no_store(open_store: OpenStore) -> None:
    with pytest.raises(StoreUnavailable, match=r"there is no store at .* start a worker"):
        open_store(read_only=True)


@lasting
def test_a_store_opened_for_reading_reads(reopen: OpenStore) -> None:
    feed(reopen(), SOURCE, [append("ann", 0, 100)], now_ms=1)
    reader = reopen(read_only=True)
    reader.ping()
    assert items(reader.sequences(["ann"])[0]) == list(range(100))
    assert reader.due(SOURCE.owner, BUNDLE, 9) == [("ann", 1, SEGMENT)]


@lasting
def test_a_reader_checks_which_store_it_is(reopen: OpenStore) -> None:
    reopen()
    with pytest.raises(StoreMismatch):
        reopen(read_only=True, id="0" * 32)
