"""How often a call waits for the servers, however many users it is about.

A `Gate` lets commands in by so many as are to be in flight together, so each of its sizes is a
round trip, and the number of batches in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from infra.store import Append, Group, InterestWrite, StoreOptions, Written
from infra.stores.aerospike.client import BATCH
from infra.stores.aerospike.store import FLUSHED_MS, AerospikeStore
from tests.aerospike_double import (
    INDEXES,
    AerospikeDouble,
    AerospikeServer,
    Gate,
    aerospike_server,
    double,
    open_aerospike,
)
from tests.aerospike_double.namespace import GENERATION, Record
from tests.aerospike_double.wire import Request
from tests.infra.stores.aerospike.test_store import OTHER, SOURCE, append, times
from tests.infra.stores.test_contract import BUNDLE

__all__ = ["aerospike_server", "double"]

SEALED_MS = 1
LATER = SEALED_MS + FLUSHED_MS


@pytest.fixture
def store(aerospike_server: AerospikeServer) -> Iterator[AerospikeStore]:
    store = open_aerospike(aerospike_server, StoreOptions(length=200))
    yield store
    store.close()


def of_each(users: int, first: int, number: int = 1) -> list[Append]:
    return [append(f"user-{i}", first, number) for i in range(users)]


def feed(store: AerospikeStore, appends: list[Append], now_ms: int) -> int:
    return store.append([Group(SOURCE, appends)], now_ms, digest=BUNDLE).applied


def states_of(store: AerospikeStore, users: int) -> list[InterestWrite]:
    names = [f"user-{i}" for i in range(users)]
    profiles = store.profiles(names, BUNDLE)
    return [
        InterestWrite(name, BUNDLE, profile.version, b"state")
        for name, profile in zip(names, profiles, strict=True)
        if profile is not None
    ]


def positions(double: AerospikeDouble) -> list[Record]:
    return [record for record in double.records("position") if "count" in record.bins]


def held(until: threading.Event) -> None:
    until.wait(20)


@pytest.mark.parametrize("known", [False, True])
def test_an_append_of_1000_users_takes_two_round_trips(
    store: AerospikeStore, double: AerospikeDouble, known: bool
) -> None:
    if known:
        feed(store, of_each(1000, 0, 10), 1)
    double.gate = Gate(1, 1)
    assert feed(store, of_each(1000, 10), 2) == 1000
    assert double.gate.passed == "2 round trips"


def test_an_append_of_5000_users_takes_two_round_trips(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.gate = Gate(5, 5)
    assert feed(store, of_each(5 * BATCH, 0), 1) == 5 * BATCH
    assert double.gate.passed == "2 round trips"


def test_the_servers_of_a_cluster_are_asked_at_once() -> None:
    with (
        AerospikeDouble(indexes=dict(INDEXES)) as one,
        AerospikeDouble(indexes=dict(INDEXES)) as other,
    ):
        one.join(other)
        store = AerospikeStore.open(f"aerospike://127.0.0.1:{one.port}/test")
        one.gate = other.gate = Gate(4, 4)  # two batches, of two servers each
        assert feed(store, of_each(2 * BATCH, 0), 1) == 2 * BATCH
        assert one.gate.passed == "2 round trips"
        assert min(len(node.records("sequence")) for node in (one, other)) > 0.4 * 2 * BATCH
        store.close()


def test_an_append_of_several_sources_takes_two_round_trips(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    groups = [Group(SOURCE, of_each(400, 0)), Group(OTHER, [append(f"b-{i}", 0) for i in range(9)])]
    double.gate = Gate(1, 1)
    store.append(groups, 1)
    assert double.gate.passed == "2 round trips"


def test_an_append_that_seals_takes_three_round_trips(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, of_each(1000, 0, 63), 1)
    double.gate = Gate(1, 1, 1)
    assert feed(store, of_each(1000, 63), 2) == 1000
    assert double.gate.passed == "3 round trips"
    assert len(double.records("segment")) == 1000


def test_an_append_that_trims_and_seals_1000_users_takes_four_round_trips(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, of_each(1000, 0, 127), SEALED_MS)
    double.gate = Gate(1, 1, 1, 1)
    assert feed(store, of_each(1000, 127), LATER) == 1000
    assert double.gate.passed == "4 round trips"
    assert len(double.records("segment")) == 2000


def test_segments_are_not_looked_for_before_they_can_be_flushed(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, of_each(1000, 0, 64), SEALED_MS)
    double.gate = Gate(1, 1)
    feed(store, of_each(1000, 64), LATER - 1)
    assert double.gate.passed == "2 round trips"


def test_an_append_that_gives_a_new_ttl_takes_three_round_trips(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    now_ms = 1_000_000
    options = StoreOptions(length=200, ttl_s=100, clock=lambda: now_ms)
    store = open_aerospike(aerospike_server, options)
    feed(store, of_each(100, 0, 70), now_ms)
    double.gate = Gate(1, 2, 1)  # segments are looked for and touched at once
    feed(store, of_each(100, 70), now_ms + 60_000)
    assert double.gate.passed == "3 round trips"
    store.close()


def test_appends_do_not_wait_for_the_positions_of_their_sources(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    free = threading.Event()
    double.fault = lambda request: held(free) if request.set == "position" else None
    store.append([Group(SOURCE, [append("ann", 0)], 0)], 1)
    assert positions(double) == []
    free.set()
    assert store.positions([SOURCE.key]) == [0]


def test_a_position_is_written_while_the_next_append_reads(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.gate = Gate(1, 1, 2, 1)  # the third of the position and the next append's heads
    store.append([Group(SOURCE, of_each(1000, 0), 0)], 1)
    store.append([Group(SOURCE, of_each(1000, 1))], 2)
    assert double.gate.passed == "4 round trips"


def test_who_was_written_meanwhile_is_read_and_written_again_alone(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, of_each(1000, 0), 1)
    heads: list[bytes] = []

    def refuse_one(request: Request) -> int | None:
        if request.writes and request.set == "sequence":
            heads.append(request.digest)
            if len(heads) == 500:
                return GENERATION
        return None

    double.fault = refuse_one
    double.gate = Gate(1, 1, 1, 1)
    assert feed(store, of_each(1000, 1), 2) == 1000
    assert double.gate.passed == "4 round trips"
    assert heads[1000:] == [heads[499]]


@pytest.mark.parametrize(("now_ms", "batches"), [(LATER - 1, 1), (LATER, 2)])
def test_interests_of_1000_users_take_three_round_trips(
    store: AerospikeStore, double: AerospikeDouble, now_ms: int, batches: int
) -> None:
    feed(store, of_each(1000, 0, 64), SEALED_MS)
    states = states_of(store, 1000)
    double.gate = Gate(1, batches, 1)  # where segments are looked for, with the states
    assert set(store.put_interests(states, now_ms)) == {Written.STORED}
    assert double.gate.passed == "3 round trips"
    assert store.due(SOURCE.owner, BUNDLE, 9) == []


def test_profiles_of_2500_users_take_one_round_trip(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, of_each(2500, 0), 1)
    double.gate = Gate(5)  # a head and a state each
    assert len(states_of(store, 2500)) == 2500
    assert double.gate.passed == "1 round trips"


def test_sequences_of_500_users_take_two_round_trips(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, of_each(500, 0, 200), SEALED_MS)
    feed(store, of_each(500, 200), LATER)
    double.gate = Gate(1, 2)  # three segments each
    found = store.sequences([f"user-{i}" for i in range(500)])
    assert [len(one.behaviors) for one in found if one is not None] == [200] * 500
    assert double.gate.passed == "2 round trips"


def test_a_sequence_of_10000_that_was_read_before_takes_one_round_trip(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    store = open_aerospike(aerospike_server, StoreOptions(length=10_000))
    feed(store, [append("ann", 0, 10_000)], SEALED_MS)
    feed(store, [append("ann", 10_000)], LATER)
    seen: list[Request] = []
    double.fault = seen.append
    for trips in ("2 round trips", "1 round trips"):
        double.gate = Gate(*[1] * int(trips[0]))
        seen.clear()
        assert times(store, "ann") == list(range(1, 10_001))
        assert (double.gate.passed, len(seen)) == (trips, 1 + 156)  # nothing beside what it needs
    store.close()


def test_a_segment_that_was_not_read_before_takes_another_round_trip(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, [append("ann", 0, 150)], SEALED_MS)
    feed(store, [append("ann", 150, 50)], LATER)
    assert times(store, "ann") == list(range(200))
    feed(store, [append("ann", 200)], 2 * LATER)
    double.gate = Gate(1, 1)
    assert times(store, "ann") == list(range(1, 201))
    assert double.gate.passed == "2 round trips"
