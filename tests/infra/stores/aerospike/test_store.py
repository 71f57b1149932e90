"""What only the Aerospike store has: outages, races, crashes between its writes, TTLs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

import aerospike
import pytest

from infra import records
from infra.behaviors import item_key, pack_behavior, partition_source
from infra.errors import (
    RecordTooLarge,
    SettingsError,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreUnavailable,
)
from infra.store import (
    Append,
    Claim,
    Group,
    History,
    InterestWrite,
    StoreOptions,
    Version,
    Written,
)
from infra.stores.aerospike.address import AerospikeAddress
from infra.stores.aerospike.client import AerospikeClient, IndexMissing
from infra.stores.aerospike.room import SLICE
from infra.stores.aerospike.store import FLUSHED_MS, AerospikeStore
from tests.aerospike_double import (
    INDEXES,
    AerospikeDouble,
    AerospikeServer,
    aerospike_server,
    double,
    open_aerospike,
    refuse_writes,
)
from tests.aerospike_double.wire import Request
from tests.infra.stores.spoiling import get_head
from tests.infra.stores.test_contract import BUNDLE, feed

__all__ = ["aerospike_server", "double"]

SOURCE = partition_source("behaviors", "topic-1", 0)
OTHER = partition_source("behaviors", "topic-1", 1)
LATER = 2 * FLUSHED_MS


Result = TypeVar("Result")


class Clock:
    """Time as the store and the double's server see it, moved by hand."""

    def __init__(self, server: AerospikeDouble) -> None:
        self._server = server
        self.now_ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: int) -> None:
        self.now_ms += seconds * 1000
        self._server.advance(seconds)


@pytest.fixture
def store(aerospike_server: AerospikeServer) -> Iterator[AerospikeStore]:
    store = open_aerospike(aerospike_server, StoreOptions(length=200))
    yield store
    store.close()


@pytest.fixture
def rival(aerospike_server: AerospikeServer) -> Iterator[AerospikeStore]:
    """Another worker's store on the same server."""
    store = open_aerospike(aerospike_server, StoreOptions(length=200))
    yield store
    store.close()


@pytest.fixture
def clock(double: AerospikeDouble) -> Clock:
    return Clock(double)


@pytest.fixture
def mortal(aerospike_server: AerospikeServer, clock: Clock) -> Iterator[AerospikeStore]:
    """A store that forgets users after 100 seconds without events."""
    store = open_aerospike(aerospike_server, StoreOptions(length=200, ttl_s=100, clock=clock))
    yield store
    store.close()


def append(user: str, first: int, number: int = 1) -> Append:
    """Events ``first`` to ``first + number``; event i has time i and offset i."""
    ids = range(first, first + number)
    behaviors = [pack_behavior(item_key(str(i)), i, 0, 0, 1) for i in ids]
    return Append(user, behaviors, [0] * number, list(ids))


def times(store: AerospikeStore, user: str) -> list[int]:
    sequence = store.sequences([user])[0]
    assert sequence is not None
    found: list[int] = sequence.behaviors["time"].tolist()
    return found


def version_of(store: AerospikeStore, user: str) -> Version:
    sequence = store.sequences([user])[0]
    assert sequence is not None
    return sequence.version


def put_state(store: AerospikeStore, payload: bytes, now_ms: int) -> Written:
    """Store a state of all that ann has."""
    write = InterestWrite("ann", BUNDLE, version_of(store, "ann"), payload)
    return store.put_interests([write], now_ms)[0]


def interests_of(store: AerospikeStore, user: str) -> bytes | None:
    profile = store.profiles([user], BUNDLE)[0]
    assert profile is not None
    return profile.interests


def eventually(call: Callable[[], Result]) -> Result:
    """What a call answers once the server is back."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return call()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def before(
    action: Callable[[], object], set_name: str, *, occurrence: int = 1
) -> Callable[[Request], int | None]:
    """A fault that does something behind the client's back before one write to a set."""
    seen = 0

    def fault(request: Request) -> int | None:
        nonlocal seen
        if request.writes and request.set == set_name:
            seen += 1
            if seen == occurrence:
                action()
        return None

    return fault


# Where it lies


def test_two_prefixes_share_a_namespace() -> None:
    shop = {f"shop-{name}": (f"shop-{of}", bin_name) for name, (of, bin_name) in INDEXES.items()}
    with AerospikeDouble(indexes={**INDEXES, **shop}) as server:
        url = f"aerospike://127.0.0.1:{server.port}/test"
        plain = AerospikeStore.open(url)
        other = AerospikeStore.open(f"{url}?set=shop-")
        feed(plain, SOURCE, [append("ann", 0)], now_ms=1)
        assert other.sequences(["ann"]) == [None]
        plain.close()
        other.close()


# Opening


@pytest.mark.parametrize("build", ["7.2.0.1", "8.1.2.0"])
def test_opening_makes_the_index_of_due_users(build: str) -> None:
    with AerospikeDouble(build=build) as server:
        store = AerospikeStore.open(f"aerospike://127.0.0.1:{server.port}/test")
        feed(store, SOURCE, [append("ann", 0, 64)], now_ms=5)
        assert store.due(SOURCE.owner, BUNDLE, 9) == [("ann", 5, 64)]
        store.close()


def test_no_server_is_one_line_that_names_it() -> None:
    with AerospikeDouble() as server:
        port = server.port
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port}/test") as caught:
        AerospikeStore.open(f"aerospike://127.0.0.1:{port}/test", wait_s=0)
    assert "\n" not in str(caught.value)


def test_a_server_that_listens_but_does_not_serve_is_waited_for() -> None:
    with AerospikeDouble(indexes=dict(INDEXES)) as server:
        server.refuses_data = True
        timer = threading.Timer(0.3, setattr, (server, "refuses_data", False))
        timer.start()
        store = AerospikeStore.open(f"aerospike://127.0.0.1:{server.port}/test", wait_s=30)
        timer.join()
        store.ping()
        store.close()


def test_a_server_that_never_serves_is_given_up() -> None:
    with AerospikeDouble(indexes=dict(INDEXES)) as server:
        server.refuses_data = True
        with pytest.raises(StoreUnavailable):
            AerospikeStore.open(f"aerospike://127.0.0.1:{server.port}/test", wait_s=0.1)


def test_a_namespace_that_is_not_there_is_a_setting_to_correct(
    aerospike_server: AerospikeServer,
) -> None:
    url = aerospike_server.url.removesuffix(aerospike_server.namespace) + "nowhere"
    with pytest.raises(SettingsError, match="'nowhere'"):
        AerospikeStore.open(url, wait_s=5)


def test_refused_credentials_are_a_setting_to_correct(double: AerospikeDouble) -> None:
    double.security_code = 65
    with pytest.raises(SettingsError, match="user or password") as caught:
        AerospikeStore.open(f"aerospike://ann:sesame@127.0.0.1:{double.port}/test", wait_s=5)
    assert "sesame" not in str(caught.value)


def test_credentials_do_no_harm_where_the_server_has_no_security(double: AerospikeDouble) -> None:
    store = AerospikeStore.open(f"aerospike://ann:sesame@127.0.0.1:{double.port}/test")
    store.ping()
    store.close()


# Opening to read


def test_a_scorer_starts_while_the_namespace_is_full(
    aerospike_server: AerospikeServer, double: AerospikeDouble, store: AerospikeStore
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    tried: list[str] = []

    def full(request: Request) -> int | None:
        if request.writes:
            tried.append(request.set)
        return 8 if request.writes else None

    double.fault = full
    double.drop_index("sequence-due")
    double.info_log.clear()
    reader = open_aerospike(aerospike_server, StoreOptions(length=200, read_only=True))
    reader.ping()
    assert times(reader, "ann") == list(range(64))
    assert reader.profiles(["ann"], BUNDLE) != [None]
    with pytest.raises(IndexMissing):
        reader.due(SOURCE.owner, BUNDLE, 9)
    reader.close()
    assert tried == []
    assert [command for command in double.info_log if "-create" in command] == []


def test_a_store_without_identity_is_opened_to_read_without_a_write(
    aerospike_server: AerospikeServer, store: AerospikeStore
) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    store.put_bookmark("identity", None)
    reader = open_aerospike(aerospike_server, StoreOptions(length=200, read_only=True))
    assert (reader.identity, times(reader, "ann")) == (None, [0])
    reader.close()
    assert store.get_bookmark("identity") is None


@pytest.mark.parametrize("read_only", [True, False])
def test_a_store_without_identity_is_not_the_one_that_is_asked_for(
    aerospike_server: AerospikeServer,
    double: AerospikeDouble,
    store: AerospikeStore,
    read_only: bool,
) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    store.put_bookmark("identity", None)
    double.fault = refuse_writes(8)
    options = StoreOptions(length=200, read_only=read_only, id="0" * 32)
    with pytest.raises(StoreMismatch, match="has no id yet"):
        open_aerospike(aerospike_server, options)


@pytest.mark.parametrize(
    "call", ["append", "put_interests", "mark_due", "put_bookmark", "remove_bookmark"]
)
def test_a_store_opened_to_read_refuses_to_write(
    aerospike_server: AerospikeServer, store: AerospikeStore, call: str
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    put_state(store, b"state", 2)
    feed(store, SOURCE, [append("ann", 64, 64)], now_ms=3, digest=b"other" * 4)
    put_state(store, b"state", 4)
    reader = open_aerospike(aerospike_server, StoreOptions(length=200, read_only=True))
    calls = CALLS | {
        "append": lambda store: feed(store, SOURCE, [append("ann", 200)], now_ms=5),
        "put_interests": lambda store: put_state(store, b"new", 5),
        "mark_due": lambda store: store.mark_due(SOURCE.owner, b"third" * 4, ["ann"], 5),
    }
    with pytest.raises(StoreUnavailable, match="opened for reading alone"):
        calls[call](reader)
    reader.close()


# Indexes that vanish


@pytest.mark.parametrize("name", list(INDEXES))
def test_an_index_that_vanished_is_made_again(
    store: AerospikeStore, aerospike_server: AerospikeServer, name: str
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=5)
    store._client._client.index_remove(aerospike_server.namespace, name)
    deadline = time.monotonic() + 30
    missing = False
    while not missing and time.monotonic() < deadline:  # a server may take a moment to drop it
        try:
            store.due(SOURCE.owner, BUNDLE, 9)
        except IndexMissing:
            missing = True
    assert missing
    assert eventually(lambda: store.due(SOURCE.owner, BUNDLE, 9)) == [("ann", 5, 64)]


def test_due_users_are_unknown_until_an_index_is_built(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=5)
    double.builds = True
    double.drop_index("sequence-due2")
    double.info_log.clear()
    for _ in range(5):
        with pytest.raises(IndexMissing):
            store.due(SOURCE.owner, BUNDLE, 9)
        with pytest.raises(IndexMissing):
            store.ping()
    assert sum(command.startswith("sindex-create") for command in double.info_log) == 1
    feed(store, SOURCE, [append("ann", 64)], now_ms=6)
    double.finish_indexes()
    store.ping()
    assert store.due(SOURCE.owner, BUNDLE, 9) == [("ann", 5, 64)]


def test_a_ping_has_an_index_made_again(store: AerospikeStore, double: AerospikeDouble) -> None:
    double.drop_index("sequence-due")
    with pytest.raises(IndexMissing):
        store.ping()
    assert "sequence-due" in double.data.indexes
    store.ping()


def test_events_are_taken_while_an_index_is_built(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    double.data.building.add("sequence-due")
    store = open_aerospike(aerospike_server)
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=5)
    with pytest.raises(IndexMissing):
        store.due(SOURCE.owner, BUNDLE, 9)
    double.finish_indexes()
    assert store.due(SOURCE.owner, BUNDLE, 9) == [("ann", 5, 64)]
    store.close()


# Away and back


CALLS: dict[str, Callable[[AerospikeStore], object]] = {
    "append": lambda store: feed(store, SOURCE, [append("ann", 0)], now_ms=1),
    "sequences": lambda store: store.sequences(["ann"]),
    "profiles": lambda store: store.profiles(["ann"], BUNDLE),
    "put_interests": lambda store: store.put_interests(
        [InterestWrite("ann", BUNDLE, Version(1, 1), b"")], 2
    ),
    "due": lambda store: store.due(SOURCE.owner, BUNDLE, 10),
    "mark_due": lambda store: store.mark_due(SOURCE.owner, BUNDLE, ["ann"], 2),
    "users": lambda store: store.users(b"", 10),
    "empty": lambda store: store.empty(),
    "get_bookmark": lambda store: store.get_bookmark("x"),
    "put_bookmark": lambda store: store.put_bookmark("x", b"1"),
    "remove_bookmark": lambda store: store.put_bookmark("x", None),
    "ping": lambda store: store.ping(),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_call_reports_a_server_that_went_away(
    store: AerospikeStore, double: AerospikeDouble, call: str
) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    double.go_away()
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{double.port}") as caught:
        CALLS[call](store)
    assert "\n" not in str(caught.value)


def test_no_write_is_believed_once_the_client_has_given_the_server_up(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    """The client then reports success for each record of a batch."""
    config = {"hosts": [(double.host, double.port)], "tend_interval": 250}
    client = aerospike.client(config).connect()
    address = AerospikeAddress.parse(aerospike_server.url)
    store = AerospikeStore(AerospikeClient(client, address), StoreOptions(length=200))
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    double.go_away()
    deadline = time.monotonic() + 30
    while client.get_nodes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not client.get_nodes()
    for call in CALLS.values():
        with pytest.raises(StoreUnavailable):
            call(store)
    store.close()


def test_work_goes_on_when_the_server_comes_back(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 3)], now_ms=1)
    double.go_away()
    with pytest.raises(StoreUnavailable):
        feed(store, SOURCE, [append("ann", 0, 5)], now_ms=2)
    double.come_back()
    eventually(lambda: feed(store, SOURCE, [append("ann", 0, 5)], now_ms=3))
    assert times(store, "ann") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_hangs_did_not_answer_in_time(
    aerospike_server: AerospikeServer, double: AerospikeDouble, call: str
) -> None:
    store = open_aerospike(aerospike_server, timeout_s=0.1)
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    double.delay_s = 0.3
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.1 s"):
        CALLS[call](store)
    store.close()


def test_a_connection_may_take_longer_than_a_call(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    double.info_delay_s = 0.2

    store = open_aerospike(aerospike_server, timeout_s=0.1)

    assert feed(store, SOURCE, [append("ann", 0)], now_ms=1).applied == 1
    store.close()


def test_a_write_in_a_batch_has_the_time_of_any_call(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = before(lambda: time.sleep(1.5), "sequence")
    assert feed(store, SOURCE, [append("ann", 0)], now_ms=1).applied == 1


def test_a_server_that_hangs_at_the_start_did_not_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=r"did not answer within 1 s"):
            AerospikeStore.open(f"aerospike://127.0.0.1:{port}/test", wait_s=0, timeout_s=0.2)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        AerospikeStore.open(f"aerospike://127.0.0.1:{port}/test", wait_s=0, timeout_s=0.2)


class Told:
    """An `Interrupted` that remembers, and the time by which a store tells."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.since: list[int] = []

    def clock(self) -> int:
        return self.now_ms

    def __call__(self, since_ms: int) -> None:
        self.since.append(since_ms)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def telling(aerospike_server: AerospikeServer, told: Told) -> Iterator[AerospikeStore]:
    options = StoreOptions(length=200, interrupted=told, clock=told.clock)
    store = open_aerospike(aerospike_server, options)
    yield store
    store.close()


def test_an_interruption_is_told_before_the_call_fails(
    telling: AerospikeStore, double: AerospikeDouble, told: Told
) -> None:
    feed(telling, SOURCE, [append("ann", 0)], now_ms=1)
    told.now_ms += 500
    double.go_away()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            feed(telling, SOURCE, [append("ann", 1)], now_ms=2)
        told.now_ms += 5000
    assert told.since == [1_000_000]
    double.come_back()
    eventually(lambda: feed(telling, SOURCE, [append("ann", 1)], now_ms=3))
    assert told.since == [1_000_000]
    double.go_away()
    with pytest.raises(StoreUnavailable):
        telling.ping()
    assert told.since == [1_000_000, 1_015_500]


def test_a_restart_between_two_calls_is_found_by_the_next_ping(
    telling: AerospikeStore, double: AerospikeDouble, told: Told
) -> None:
    told.now_ms += 500
    telling.ping()
    told.now_ms += 3000
    double.go_away()
    double.come_back()
    eventually(telling.ping)
    telling.ping()
    assert told.since[-1] == 1_000_500


@pytest.mark.parametrize("code", [3, 8, 18, 22])
def test_a_refusal_is_no_interruption(
    telling: AerospikeStore, double: AerospikeDouble, told: Told, code: int
) -> None:
    double.fault = refuse_writes(code)
    with pytest.raises(StoreError):
        feed(telling, SOURCE, [append("ann", 0)], now_ms=1)
    assert told.since == []


def test_what_a_killed_server_lost_comes_in_again(
    telling: AerospikeStore, double: AerospikeDouble, told: Told
) -> None:
    """A feed that goes back before it goes on, as `Interrupted` asks for."""
    feed(telling, SOURCE, [append("ann", 0, 60), append("bob", 0)], now_ms=1)
    double.data.flush()
    feed(telling, SOURCE, [append("ann", 60, 10)], now_ms=2)
    double.kill("sequence")
    with pytest.raises(StoreUnavailable):
        feed(telling, SOURCE, [append("ann", 70)], now_ms=3)
    double.come_back()
    assert told.since
    again = [append("ann", 50, 21), append("bob", 0)]
    done = eventually(lambda: feed(telling, SOURCE, again, now_ms=4))
    assert (done.applied, done.replayed) == (11, 11)
    assert times(telling, "ann") == list(range(71))


def test_an_outage_is_two_lines_of_the_log(
    telling: AerospikeStore,
    double: AerospikeDouble,
    told: Told,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("INFO")
    capfd.readouterr()
    double.go_away()
    for call in CALLS.values():
        with pytest.raises(StoreUnavailable):
            call(telling)
    # The client's own thread notices, too.
    time.sleep(1.5)
    double.come_back()
    eventually(lambda: telling.sequences(["ann"]))
    told.now_ms += 10_000
    telling.sequences(["ann"])
    lines = [str(record.msg) for record in caplog.records]
    assert [("does not answer" in line, "answers again" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (8, StoreFull, "no room"),
        (18, StoreUnavailable, "overloaded"),
        (13, RecordTooLarge, "'ann'"),
        (22, StoreUnavailable, "nsup-period"),
        (9, StoreUnavailable, "did not answer within 30 s"),
        (14, StoreUnavailable, "code 14"),
    ],
)
def test_a_refused_append_says_why(
    store: AerospikeStore, double: AerospikeDouble, code: int, error: type[StoreError], words: str
) -> None:
    double.fault = refuse_writes(code)
    with pytest.raises(error, match=words) as caught:
        feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    assert caught.value.code == code


def test_a_full_server_fails_the_ping(store: AerospikeStore, double: AerospikeDouble) -> None:
    double.fault = refuse_writes(8)
    with pytest.raises(StoreFull):
        store.ping()


def test_interests_too_large_for_a_record_name_the_user(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    with pytest.raises(RecordTooLarge, match="'ann'"):
        store.put_interests(
            [InterestWrite("ann", BUNDLE, version_of(store, "ann"), bytes(9 << 20))], 2
        )


# Crashes between writes


def test_a_crash_before_the_segments_loses_nothing(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = refuse_writes(8, "segment")
    with pytest.raises(StoreFull):
        feed(store, SOURCE, [append("ann", 0, 150)], now_ms=1)
    assert times(store, "ann") == list(range(150))
    double.fault = None
    assert feed(store, SOURCE, [append("ann", 0, 150)], now_ms=2).replayed == 150
    assert double.records("segment") == []
    feed(store, SOURCE, [append("ann", 150)], now_ms=LATER)
    assert len(double.records("segment")) == 2
    assert times(store, "ann") == list(range(151))


def test_a_crash_before_the_head_is_trimmed_loses_nothing(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 150)], now_ms=1)
    double.fault = refuse_writes(8, "sequence")
    with pytest.raises(StoreFull):
        feed(store, SOURCE, [append("ann", 150)], now_ms=LATER)
    double.fault = None
    assert times(store, "ann") == list(range(150))
    feed(store, SOURCE, [append("ann", 150, 100)], now_ms=LATER)
    assert times(store, "ann") == list(range(50, 250))


# Servers that are killed


def tail_of(store: AerospikeStore, user: str) -> int:
    """Behaviors in the tail of a user's head."""
    return records.tail_length(get_head(store, user))


def test_a_head_is_trimmed_once_its_segments_are_flushed(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append("ann", 0, 150)], now_ms=1)
    assert tail_of(store, "ann") == 150
    feed(store, SOURCE, [append("ann", 150)], now_ms=FLUSHED_MS)
    assert tail_of(store, "ann") == 151
    feed(store, SOURCE, [append("ann", 151)], now_ms=FLUSHED_MS + 1)
    assert tail_of(store, "ann") == 24
    assert times(store, "ann") == list(range(152))


def test_a_head_waits_however_many_segments_it_has(store: AerospikeStore) -> None:
    for i in range(8):  # more than the ring of five, beyond which nothing need be kept
        feed(store, SOURCE, [append("ann", 64 * i, 64)], now_ms=i)
        assert tail_of(store, "ann") == min(64 * (i + 1), 5 * 64)
    assert times(store, "ann") == list(range(8 * 64 - 200, 8 * 64))


def test_who_has_no_more_events_is_trimmed_when_they_are_clustered(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append("ann", 0, 150)], now_ms=1)
    put_state(store, b"soon", 2)
    assert tail_of(store, "ann") == 150
    put_state(store, b"state", LATER)
    assert (tail_of(store, "ann"), times(store, "ann")) == (22, list(range(150)))
    assert store.due(SOURCE.owner, BUNDLE, 9) == []


def test_a_user_with_many_events_is_trimmed_as_segments_are_flushed(store: AerospikeStore) -> None:
    for second in range(40):
        feed(store, SOURCE, [append("ann", second * 10, 10)], now_ms=second * 1000)
        assert times(store, "ann") == list(range(second * 10 + 10))[-200:]
        assert tail_of(store, "ann") < 64 + 110 + 10


def test_a_segment_is_written_once_while_its_head_waits(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    for i in range(5):
        feed(store, SOURCE, [append("ann", 64 * i, 64)], now_ms=i)
    assert [record.generation for record in double.records("segment")] == [1] * 5


def test_segments_that_a_killed_server_lost_are_in_the_head(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.data.flush()
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    put_state(store, b"state", 2)
    double.kill("segment")
    double.come_back()
    assert eventually(lambda: times(store, "ann")) == list(range(64))
    # They are written again, and have their time before the head is trimmed.
    feed(store, SOURCE, [append("ann", 64)], now_ms=LATER)
    assert (tail_of(store, "ann"), len(double.records("segment"))) == (65, 1)
    feed(store, SOURCE, [append("ann", 65)], now_ms=2 * LATER)
    assert (tail_of(store, "ann"), times(store, "ann")) == (2, list(range(66)))


def test_a_head_that_a_killed_server_lost_begins_where_its_segments_end(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 100)], now_ms=1)
    double.data.flush()
    feed(store, SOURCE, [append("ann", 100)], now_ms=LATER)
    double.kill("sequence")
    double.come_back()
    assert eventually(lambda: times(store, "ann")) == list(range(100))
    done = feed(store, SOURCE, [append("ann", 90, 40)], now_ms=2 * LATER)
    assert (done.replayed, times(store, "ann")) == (10, list(range(130)))


def test_a_merged_head_that_a_killed_server_lost_leaves_the_earlier_sequence(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 130)], now_ms=1)
    feed(store, SOURCE, [append("ann", 130)], now_ms=LATER)
    double.data.flush()
    told = append("ann", 0, 192)
    history = History("ann", SOURCE.owner, b"".join(told.behaviors))
    assert store.merge([history], Claim(1, 500), 2 * LATER).users == 1
    assert times(store, "ann") == list(range(192))
    double.kill("sequence")
    double.come_back()
    assert eventually(lambda: times(store, "ann")) == list(range(131))
    assert store.merge([history], Claim(1, 500), 3 * LATER).users == 1
    for number in range(3):
        feed(store, SOURCE, [append("ann", 1000 + number)], now_ms=(4 + number) * LATER)
    assert times(store, "ann") == [*range(192), 1000, 1001, 1002]
    assert tail_of(store, "ann") == 3


def test_who_has_older_interests_again_after_a_server_was_killed_can_be_made_due(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    put_state(store, b"old", 2)
    double.data.flush()
    feed(store, SOURCE, [append("ann", 64, 64)], now_ms=3)
    put_state(store, b"new", 4)
    double.kill("state")
    double.come_back()
    assert eventually(lambda: store.mark_due(SOURCE.owner, BUNDLE, ["ann"], 5)) == 1
    assert store.due(SOURCE.owner, BUNDLE, 10) == [("ann", 5, 64)]


def test_another_segment_in_its_place_trims_no_head(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    """The server lost the head, kept the segment, and events come again in another order."""
    feed(store, SOURCE, [append("ann", 0, 50)], now_ms=1)
    double.data.flush()
    feed(store, SOURCE, [append("ann", 50, 20)], now_ms=2)
    double.kill("sequence")
    double.come_back()
    eventually(lambda: times(store, "ann"))
    double.fault = refuse_writes(8, "segment")
    with pytest.raises(StoreFull):
        feed(store, OTHER, [append("ann", 1000, 20)], now_ms=3)
    double.fault = None
    feed(store, SOURCE, [append("ann", 50, 20)], now_ms=LATER)
    feed(store, SOURCE, [append("ann", 70)], now_ms=2 * LATER)
    assert tail_of(store, "ann") < 64
    assert times(store, "ann") == [*range(50), *range(1000, 1020), *range(50, 71)]


def test_a_crash_before_a_user_is_clean_leaves_them_due(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=7)
    double.fault = refuse_writes(8, "sequence")
    with pytest.raises(StoreFull):
        put_state(store, b"state", 8)
    double.fault = None
    assert interests_of(store, "ann") == b"state"
    assert store.due(SOURCE.owner, BUNDLE, 9) == [("ann", 7, 64)]


# Others at work


def test_an_append_in_between_is_kept(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0)], now_ms=1)
    double.fault = before(lambda: feed(rival, OTHER, [append("ann", 100, 5)], now_ms=2), "sequence")
    done = feed(store, SOURCE, [append("ann", 1)], now_ms=3)
    assert done.applied == 1
    assert times(store, "ann") == [0, 100, 101, 102, 103, 104, 1]


def test_two_who_create_a_user_at_once_both_count(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = before(lambda: feed(rival, OTHER, [append("ann", 9)], now_ms=2), "sequence")
    assert feed(store, SOURCE, [append("ann", 0)], now_ms=3).applied == 1
    assert times(store, "ann") == [9, 0]


def test_workers_on_one_user_lose_and_double_nothing(
    store: AerospikeStore, rival: AerospikeStore
) -> None:
    """Also on a real server, where the races are real."""

    def work(mine: AerospikeStore, partition: int) -> None:
        source = partition_source("behaviors", "topic-1", partition)
        for start in range(0, 100, 5):
            feed(mine, source, [append("ann", start, 5), append("zoe", start, 5)], now_ms=1)

    threads = [
        threading.Thread(target=work, args=(mine, partition))
        for partition, mine in enumerate([store, rival])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for user in ("ann", "zoe"):
        assert sorted(times(store, user)) == sorted([*range(100)] * 2)


def test_a_stale_worker_cannot_put_a_segment_back(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = before(
        lambda: feed(rival, OTHER, [append("ann", 1000, 400)], now_ms=2), "segment"
    )
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    double.fault = None
    assert times(store, "ann") == list(range(1200, 1400))


def test_newer_interests_that_came_in_between_stay(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    old = version_of(store, "ann")
    feed(store, SOURCE, [append("ann", 64, 64)], now_ms=2)
    new = version_of(store, "ann")
    double.fault = before(
        lambda: rival.put_interests([InterestWrite("ann", BUNDLE, new, b"new")], 3), "state"
    )
    assert store.put_interests([InterestWrite("ann", BUNDLE, old, b"old")], 4) == [Written.STALE]
    assert interests_of(store, "ann") == b"new"
    assert store.due(SOURCE.owner, BUNDLE, 9) == []


def test_an_append_while_a_user_is_cleaned_keeps_them_due(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 64)], now_ms=1)
    more = append("ann", 64, 64)
    double.fault = before(lambda: feed(rival, SOURCE, [more], now_ms=2), "sequence")
    put_state(store, b"state", 3)
    assert store.due(SOURCE.owner, BUNDLE, 9) == [("ann", 3, 64)]


def test_a_read_while_segments_move_on_is_made_again(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    feed(store, SOURCE, [append("ann", 0, 199)], now_ms=1)
    feed(store, SOURCE, [append("ann", 199)], now_ms=LATER)
    moved = False

    def move(request: Request) -> None:
        nonlocal moved
        if request.set == "segment" and not request.writes and not moved:
            moved = True
            feed(rival, SOURCE, [append("ann", 200, 300)], now_ms=LATER)

    double.fault = move
    assert times(store, "ann") == list(range(300, 500))


def test_a_user_written_by_others_all_the_time_is_unavailable(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = refuse_writes(3)
    with pytest.raises(StoreUnavailable, match="'ann'"):
        feed(store, SOURCE, [append("ann", 0)], now_ms=1)


# Many


def test_the_longest_due_of_many_come_first(store: AerospikeStore) -> None:
    for second in range(60, 0, -1):
        users = [append(f"{second}-{i}", 0, 64) for i in range(50)]
        feed(store, SOURCE, users, now_ms=second * 1000 + 7)
    found = store.due(SOURCE.owner, BUNDLE, 120)
    assert [user.since for user in found] == [1007] * 50 + [2007] * 50 + [3007] * 20


def test_all_due_users_are_found_where_that_many_are_asked_for(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append(str(i), 0, 64) for i in range(3000)], now_ms=1)
    assert len(store.due(SOURCE.owner, BUNDLE, 5000)) == 3000


def test_a_few_of_many_records_tell_that_a_store_is_not_empty(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append(str(i), 0) for i in range(300)], now_ms=1)
    client = Asked(store._client)
    assert not AerospikeStore(cast("AerospikeClient", client)).empty()
    assert client.pages == [100]


def test_one_user_among_many_deleted_is_found(store: AerospikeStore) -> None:
    users = [str(i) for i in range(300)]
    feed(store, SOURCE, [append(user, 0) for user in users], now_ms=1)
    store.forget(users[1:], now_ms=5_000)
    assert not store.empty()


class Asked:
    """A client that remembers how many records it was asked for at once; 0: all."""

    def __init__(self, client: AerospikeClient) -> None:
        self.address = client.address
        self.pages: list[int] = []
        self._client = client

    def query(self, *args: Any, page: int = 0, **options: Any) -> Any:
        self.pages.append(page)
        return self._client.query(*args, page=page, **options)


def test_one_user_s_backfill_fits_though_no_record_holds_it(store: AerospikeStore) -> None:
    number = 2 * SLICE + 100
    done = feed(store, SOURCE, [append("ann", 0, number), append("zoe", 0, 3)], now_ms=1)
    assert done.applied == number + 3
    assert times(store, "ann") == list(range(number - 200, number))


@pytest.mark.parametrize("length", [1000, 10_000])
@pytest.mark.parametrize("limit", [1 << 20, 128 << 10, 16 << 10])
def test_many_events_at_once_fit_whatever_the_server_takes_in_a_record(
    aerospike_server: AerospikeServer, double: AerospikeDouble, length: int, limit: int
) -> None:
    double.data.max_record = limit
    store = open_aerospike(aerospike_server, StoreOptions(length=length))
    for start in range(0, 2 * 5300, 5300):
        done = feed(store, SOURCE, [append("ann", start, 5300)], now_ms=1)
        assert done.applied == 5300
        assert times(store, "ann") == list(range(start + 5300))[-length:]
    store.close()


def test_a_head_too_long_for_a_record_is_trimmed_at_once(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    double.data.max_record = 16 << 10
    store = open_aerospike(aerospike_server, StoreOptions(length=10_000))
    for i in range(50):
        feed(store, SOURCE, [append("ann", 100 * i, 100)], now_ms=i)
    assert tail_of(store, "ann") < 16 * 1024 / 25
    assert times(store, "ann") == list(range(5000))
    store.close()


def test_a_server_that_tells_no_limit_has_the_usual_one(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    double.tells_config = False
    store = open_aerospike(aerospike_server)
    assert store._client.record_limit() == 1 << 20
    store.close()


def test_ids_that_differ_after_a_nul_are_two_users(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append("a\0b", 0, 64), append("a\0c", 1, 64)], now_ms=1)
    assert (times(store, "a\0b")[0], times(store, "a\0c")[0]) == (0, 1)
    assert sorted(store.users(b"", 9).users) == ["a\0b", "a\0c"]
    assert [user.user for user in store.due(SOURCE.owner, BUNDLE, 9)] == ["a\0b", "a\0c"]


def test_a_crash_before_a_source_s_position_leaves_it_behind(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    store.append([Group(SOURCE, [append("ann", 0)], 0)], now_ms=1)
    assert store.positions([SOURCE.key]) == [0]
    double.fault = refuse_writes(8, "position")
    store.append([Group(SOURCE, [append("ann", 1)], 1)], now_ms=2)
    with pytest.raises(StoreFull):
        store.positions([SOURCE.key])
    double.fault = None
    assert rival.positions([SOURCE.key]) == [0]
    assert times(store, "ann") == [0, 1]


def test_a_position_that_was_refused_is_written_by_the_next_ping(
    store: AerospikeStore, rival: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = refuse_writes(8, "position")
    store.append([Group(SOURCE, [append("ann", 0)], 0)], now_ms=1)
    with pytest.raises(StoreFull):
        store.ping()
    double.fault = None
    store.ping()
    assert rival.positions([SOURCE.key]) == [0]


def test_nothing_newer_is_written_before_a_position_that_was_refused(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = refuse_writes(8, "position")
    store.append([Group(SOURCE, [append("ann", 0)], 0)], now_ms=1)
    with pytest.raises(StoreFull):
        store.append([Group(SOURCE, [append("ann", 1)], 1)], now_ms=2)
    assert times(store, "ann") == [0]
    double.fault = None
    assert store.append([Group(SOURCE, [append("ann", 1)], 1)], now_ms=3).applied == 1
    assert store.positions([SOURCE.key]) == [1]


def test_who_applies_nothing_waits_for_the_position(
    store: AerospikeStore, double: AerospikeDouble
) -> None:
    double.fault = refuse_writes(8, "position")
    with pytest.raises(StoreFull):
        store.append([Group(SOURCE, [], 7)], now_ms=1)


def test_a_store_that_is_closed_has_written_its_positions(
    aerospike_server: AerospikeServer, store: AerospikeStore
) -> None:
    writer = open_aerospike(aerospike_server, StoreOptions(length=200))
    writer.append([Group(SOURCE, [append("ann", 0)], 0)], now_ms=1)
    writer.close()
    assert store.positions([SOURCE.key]) == [0]


def test_a_user_of_two_sources_is_fed_in_their_order(store: AerospikeStore) -> None:
    groups = [Group(SOURCE, [append("ann", 0, 3)]), Group(OTHER, [append("ann", 3, 3)])]
    assert store.append(groups, now_ms=1).applied == 6
    assert times(store, "ann") == list(range(6))


def test_users_are_listed_by_whole_partitions_of_the_server(store: AerospikeStore) -> None:
    feed(store, SOURCE, [append(f"user-{i}", 0) for i in range(500)], now_ms=1)
    found: list[str] = []
    pages = 0
    after: bytes | None = b""
    while after is not None:
        page = store.users(after, 100)
        found += page.users
        pages += 1
        after = page.after
    assert sorted(found) == sorted(f"user-{i}" for i in range(500))
    assert 3 <= pages <= 12


def test_a_deleted_user_leaves_one_record(store: AerospikeStore, double: AerospikeDouble) -> None:
    feed(store, SOURCE, [append("ann", 0, 150)], now_ms=1)
    put_state(store, b"state", 2)
    store.forget(["ann"], 3)
    left = [len(double.records(name)) for name in ("sequence", "segment", "state")]
    assert left == [1, 0, 0]


def test_two_who_make_a_store_at_once_make_one(
    aerospike_server: AerospikeServer, double: AerospikeDouble
) -> None:
    opened: list[AerospikeStore] = []

    def overtake(request: Request) -> None:
        if request.writes and request.set == "position" and len(double.records("position")) == 1:
            double.fault = None
            opened.append(open_aerospike(aerospike_server))

    double.fault = overtake
    opened.append(open_aerospike(aerospike_server))
    rival, mine = opened
    assert mine.identity == rival.identity
    for store in opened:
        store.close()


# Time


def test_without_a_ttl_no_record_expires(store: AerospikeStore, double: AerospikeDouble) -> None:
    double.data.default_ttl = 10
    feed(store, SOURCE, [append("ann", 0, 100)], now_ms=1)
    put_state(store, b"state", 2)
    store.put_bookmark("x", b"1")
    records = [
        r for name in ("sequence", "segment", "state", "position") for r in double.records(name)
    ]
    assert len(records) == 6
    assert {record.void_time for record in records} == {0}


def test_the_server_forgets_a_user_without_events(
    mortal: AerospikeStore, double: AerospikeDouble, clock: Clock
) -> None:
    feed(mortal, SOURCE, [append("ann", 0, 100)], now_ms=clock())
    mortal.put_interests(
        [InterestWrite("ann", BUNDLE, version_of(mortal, "ann"), b"state")], clock()
    )
    clock.advance(98)
    assert len(times(mortal, "ann")) == 100
    clock.advance(3)
    assert mortal.sequences(["ann"]) == [None]
    assert double.records("sequence") == []
    clock.advance(100)
    assert double.records("segment") + double.records("state") == []


def test_clustering_does_not_prolong_a_user_s_life(
    mortal: AerospikeStore, double: AerospikeDouble, clock: Clock
) -> None:
    feed(mortal, SOURCE, [append("ann", 0, 64)], now_ms=clock())
    clock.advance(60)
    mortal.put_interests(
        [InterestWrite("ann", BUNDLE, version_of(mortal, "ann"), b"state")], clock()
    )
    mortal.mark_due(OTHER.owner, BUNDLE, ["ann"], clock())
    clock.advance(60)
    assert double.records("sequence") == []


def test_the_segments_of_a_slow_user_live_as_long_as_they_do(
    mortal: AerospikeStore, clock: Clock
) -> None:
    feed(mortal, SOURCE, [append("ann", 0, 150)], now_ms=clock())
    for i in range(150, 160):
        clock.advance(90)
        feed(mortal, SOURCE, [append("ann", i)], now_ms=clock())
        clock.advance(8)
        assert times(mortal, "ann") == list(range(i + 1))


def test_the_state_of_a_slow_user_lives_as_long_as_they_do(
    mortal: AerospikeStore, clock: Clock
) -> None:
    feed(mortal, SOURCE, [append("ann", 0, 64)], now_ms=clock())
    put_state(mortal, b"state", clock())
    for i in range(64, 70):
        clock.advance(90)
        feed(mortal, SOURCE, [append("ann", i)], now_ms=clock())
    assert interests_of(mortal, "ann") == b"state"


@pytest.mark.parametrize(("first", "then"), [(0, 100), (100, 0), (100, 1000)])
def test_segments_and_states_follow_their_head_to_another_ttl(
    aerospike_server: AerospikeServer, double: AerospikeDouble, clock: Clock, first: int, then: int
) -> None:
    options = StoreOptions(length=200, ttl_s=first, clock=clock)
    before = open_aerospike(aerospike_server, options)
    feed(before, SOURCE, [append("ann", 0, 150)], now_ms=clock())
    put_state(before, b"state", clock())
    before.close()
    after = open_aerospike(aerospike_server, replace(options, ttl_s=then))
    feed(after, SOURCE, [append("ann", 150)], now_ms=clock())
    after.close()
    found = {r.void_time for name in ("segment", "state") for r in double.records(name)}
    if then == 0:
        assert found == {0}
    else:
        (void_time,) = found
        (head,) = double.records("sequence")
        assert void_time - head.void_time == then


def test_a_user_who_comes_back_begins_anew(mortal: AerospikeStore, clock: Clock) -> None:
    feed(mortal, SOURCE, [append("ann", 0, 150)], now_ms=clock())
    put_state(mortal, b"old", clock())
    clock.advance(120)
    feed(mortal, SOURCE, [append("ann", 150, 70)], now_ms=clock())
    assert version_of(mortal, "ann") == Version(clock(), 70)
    assert times(mortal, "ann") == list(range(150, 220))
    assert interests_of(mortal, "ann") is None
