from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from infra.behaviors import DEFAULT_ACTIONS, Source, item_key, pack_behavior
from infra.errors import StoreUnavailable
from infra.segments import SEGMENT
from infra.store import Append, Group, InterestWrite, Profile, Version
from infra.stores.memory import MemoryStore
from lifelong.demo.freshness import FreshnessProbe

NOW_MS = 1_700_000_000_000
ENOUGH_S = 10.0
DIGEST = b"b" * 16


@pytest.fixture
def store() -> MemoryStore:
    """A store that holds a segment of "ann" and three behaviors more, and no interests yet."""
    store = MemoryStore()
    behavior = pack_behavior(item_key("a"), NOW_MS, 0, 0, DEFAULT_ACTIONS.codes["click"])
    number = SEGMENT + 3
    append = Append("ann", [behavior] * number, [0] * number, list(range(number)))
    store.append([Group(Source(1, 1), [append])], NOW_MS, digest=DIGEST)
    return store


def cover(store: MemoryStore, count: int) -> None:
    """Store interests of "ann" that cover ``count`` behaviors."""
    profile = store.profiles(["ann"], DIGEST)[0]
    assert profile is not None
    version = Version(profile.version.epoch, count)
    store.put_interests([InterestWrite("ann", DIGEST, version, b"interests")], NOW_MS)


def test_an_event_counts_once_it_is_in_the_sequence(store: MemoryStore) -> None:
    probe = FreshnessProbe(store, DIGEST)
    probe.sent("ann", SEGMENT + 3)
    probe.sent("ann", 1)

    measured = probe.finish(ENOUGH_S)

    assert len(measured.rankings) == 2
    assert max(measured.rankings) < ENOUGH_S
    assert measured.clusters == []


def test_an_event_that_is_not_there_counts_with_the_time_waited(store: MemoryStore) -> None:
    probe = FreshnessProbe(store, DIGEST)
    probe.sent("ann", SEGMENT + 4)

    [seconds] = probe.finish(0.2).rankings

    assert seconds >= 0.2


def test_an_event_that_fills_a_segment_is_followed_into_the_interests(store: MemoryStore) -> None:
    probe = FreshnessProbe(store, DIGEST)
    probe.sent("ann", SEGMENT)
    cover(store, SEGMENT)

    [seconds] = probe.finish(ENOUGH_S).clusters

    assert 0 <= seconds < ENOUGH_S


def test_a_segment_that_no_interests_cover_counts_with_the_time_waited(store: MemoryStore) -> None:
    probe = FreshnessProbe(store, DIGEST)
    probe.sent("ann", SEGMENT)
    cover(store, SEGMENT - 1)

    [seconds] = probe.finish(0.3).clusters

    assert seconds > 0.1


def test_an_event_of_an_unknown_user_is_waited_for(store: MemoryStore) -> None:
    probe = FreshnessProbe(store, DIGEST)
    probe.sent("nobody", 1)

    [seconds] = probe.finish(0.1).rankings

    assert seconds >= 0.1


def test_without_events_there_is_nothing_to_wait_for(store: MemoryStore) -> None:
    assert FreshnessProbe(store, DIGEST).finish(ENOUGH_S) == ([], [])


def test_a_store_that_goes_away_is_told_and_not_measured(store: MemoryStore) -> None:
    class Away(MemoryStore):
        def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
            raise StoreUnavailable("the store at 127.0.0.1:1 cannot be reached; is it running?")

    probe = FreshnessProbe(Away(), DIGEST)
    probe.sent("ann", 1)

    with pytest.raises(StoreUnavailable):
        probe.finish(ENOUGH_S)


def test_its_thread_ends_with_it(store: MemoryStore) -> None:
    before = set(threading.enumerate())
    FreshnessProbe(store, DIGEST).finish(ENOUGH_S)

    assert set(threading.enumerate()) <= before
