"""What only Redis does; tests/infra/stores/test_contract.py has the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from infra.behaviors import partition_source
from infra.errors import SettingsError, StoreCorrupt, StoreFull, StoreUnavailable
from infra.segments import SEGMENT
from infra.store import Group, InterestWrite, StoreOptions
from infra.stores.redis.durability import cautions
from infra.stores.redis.layout import BUCKETS, bucket_of
from infra.stores.redis.store import RedisStore
from tests.infra.stores.test_contract import BUNDLE, SOURCE, append, feed, items, version_of
from tests.redis_server import (
    RedisServer,
    open_redis,
    redis_cluster,
    redis_server,
    running,
    shared_redis,
)

__all__ = ["redis_cluster", "redis_server", "shared_redis"]

OPTIONS = StoreOptions(length=200)


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisStore]:
    store = open_redis(redis_server, OPTIONS)
    yield store
    store.close()


class Told:
    """Since when the store was away, each time that it said so."""

    def __init__(self) -> None:
        self.since: list[int] = []

    def __call__(self, since_ms: int) -> None:
        self.since.append(since_ms)


def everything(server: RedisServer) -> bytes:
    """Every byte that the server holds, names of keys included."""
    with redis.Redis(port=server.port) as client:
        keys = list(client.scan_iter(count=1000))
        return b"\n".join(key + (client.dump(key) or b"") for key in keys)


def test_workers_who_append_to_one_user_at_once_lose_nothing(redis_server: RedisServer) -> None:
    stores = [open_redis(redis_server, OPTIONS) for _ in range(4)]
    sources = [partition_source("behaviors", "topic-1", number) for number in range(4)]

    def work(store: RedisStore, place: int) -> None:
        for number in range(30):
            new = append("ann", 1000 * place + number, offset=number)
            store.append([Group(sources[place], [new])], 10)

    threads = [
        threading.Thread(target=work, args=(store, place)) for place, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (sequence,) = stores[0].sequences(["ann"])
    assert sequence is not None
    assert sequence.version.count == 120
    for place in range(4):
        of_it = [item for item in items(sequence) if item // 1000 == place]
        assert of_it == sorted(of_it)
        assert len(of_it) == 30
    for store in stores:
        store.close()


def test_a_user_who_was_deleted_is_found_in_no_byte(
    redis_server: RedisServer, store: RedisStore
) -> None:
    feed(store, SOURCE, [append("whoever-it-is", 0, 3 * SEGMENT)], now_ms=10)
    write = InterestWrite("whoever-it-is", BUNDLE, version_of(store, "whoever-it-is"), b"a state")
    store.put_interests([write], 11)
    assert b"a state" in everything(redis_server)
    store.forget(["whoever-it-is"], 20)
    left = everything(redis_server)
    assert b"a state" not in left
    # What keeps late events out: the name of the key, and the time.
    assert left.count(b"whoever-it-is") == 1


def test_files_that_are_written_anew_hold_nothing_of_who_was_deleted(tmp_path: Path) -> None:
    with running(tmp_path, "--appendonly", "yes", "--save", "3600 1") as server:
        store = open_redis(server, OPTIONS)
        feed(store, SOURCE, [append("whoever-it-is", 0, 3 * SEGMENT)], now_ms=10)
        write = InterestWrite(
            "whoever-it-is", BUNDLE, version_of(store, "whoever-it-is"), b"a state"
        )
        store.put_interests([write], 11)
        store.rewrite_files()  # an RDB file that knows the user
        store.forget(["whoever-it-is"], 20)

        def on_disk() -> bytes:
            files = [path for path in tmp_path.rglob("*") if path.suffix in {".aof", ".rdb"}]
            assert len(files) >= 2
            return b"".join(path.read_bytes() for path in files)

        assert b"a state" in on_disk()
        store.rewrite_files()
        assert b"a state" not in on_disk()
        store.close()


def test_nothing_of_a_user_who_expired_is_left(redis_server: RedisServer) -> None:
    now_ms = 1_700_000_000_000
    store = open_redis(redis_server, StoreOptions(length=200, ttl_s=60, clock=lambda: now_ms))
    feed(store, SOURCE, [append("old-user", 0, SEGMENT)], now_ms=now_ms)
    feed(store, SOURCE, [append("user-who-stays", 0)], now_ms=now_ms + 61_000)
    now_ms += 61_000
    assert store.sweep(now_ms, 100) == 1
    assert b"old-user" not in everything(redis_server)
    assert store.users(b"", 10).users == ["user-who-stays"]
    store.close()


def test_whom_the_server_removed_is_due_and_listed_no_more(
    redis_server: RedisServer, store: RedisStore
) -> None:
    feed(store, SOURCE, [append("gone", 0, SEGMENT), append("there", 0, SEGMENT)], now_ms=10)
    redis_server.ask("DEL", store._keys.user("gone").decode())
    assert [one.user for one in store.due(SOURCE.owner, BUNDLE, 10)] == ["there"]
    assert store.sweep(20, 100) == 1
    assert b"gone" not in everything(redis_server)


def test_the_longest_due_come_first_however_they_fall_into_buckets(store: RedisStore) -> None:
    crowded = [f"user-{n}" for n in range(8000) if bucket_of(f"user-{n}") == 0][:30]
    others = [f"other-{n}" for n in range(60)]
    for since, user in enumerate([*crowded, *others]):
        feed(store, SOURCE, [append(user, 0, SEGMENT)], now_ms=100 + since)
    found = store.due(SOURCE.owner, BUNDLE, 40)
    assert [one.user for one in found] == [*crowded, *others][:40]
    assert [one.since for one in found] == list(range(100, 140))


def test_users_are_listed_whole_by_pages_of_any_size(store: RedisStore) -> None:
    names = {f"user-{n}" for n in range(300)}
    feed(store, SOURCE, [append(name, 0) for name in names], now_ms=10)
    for limit in (1, 7, 299, 300, 1000):
        found, after, cursors = [], b"", []
        while True:
            page = store.users(after, limit)
            found += page.users
            assert len(page.users) <= limit
            if page.after is None:
                break
            after = page.after
            cursors.append(after)
        assert sorted(found) == sorted(names)
        assert cursors == sorted(cursors)


def test_two_stores_of_one_database_do_not_see_each_other(redis_server: RedisServer) -> None:
    one = RedisStore.open(f"redis://127.0.0.1:{redis_server.port}?prefix=one", OPTIONS)
    other = RedisStore.open(f"redis://127.0.0.1:{redis_server.port}?prefix=other", OPTIONS)
    feed(one, SOURCE, [append("ann", 0)], now_ms=10)
    assert other.empty()
    assert not one.empty()
    one.close()
    other.close()


def test_a_cluster_holds_what_one_server_does(redis_cluster: RedisServer) -> None:
    store = open_redis(redis_cluster, OPTIONS)
    users = [f"user-{n}" for n in range(200)]
    done = feed(store, SOURCE, [append(user, 0, SEGMENT) for user in users], now_ms=10)
    assert done.applied == 200 * SEGMENT
    assert all(sequence is not None for sequence in store.sequences(users))
    assert len(store.due(SOURCE.owner, BUNDLE, 500)) == 200
    writes = [InterestWrite(user, BUNDLE, version_of(store, user), b"s") for user in users]
    store.put_interests(writes, 11)
    assert store.due(SOURCE.owner, BUNDLE, 500) == []
    assert store.interests(users, BUNDLE) == [b"s"] * 200
    assert sorted(store.users(b"", 500).users) == sorted(users)
    assert store.forget(users, 20) == 200
    assert store.empty()
    store.ping()
    store.close()


def test_what_was_acknowledged_survives_a_kill_where_all_is_appended(tmp_path: Path) -> None:
    told = Told()
    with running(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        options = StoreOptions(length=200, interrupted=told)
        store = open_redis(server, options)
        feed(store, SOURCE, [append("ann", 0, 70)], now_ms=10)
        told.since.clear()  # the server had just been started
        server.kill()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            feed(store, SOURCE, [append("ann", 70)], now_ms=10)
        assert len(told.since) == 1
        server.start()
        assert feed(store, SOURCE, [append("ann", 60, 20)], now_ms=10).applied == 10
        assert items(store.sequences(["ann"])[0]) == list(range(80))
        store.close()


def test_a_restart_between_two_calls_is_told(tmp_path: Path) -> None:
    told = Told()
    with running(tmp_path, "--appendonly", "yes") as server:
        store = open_redis(server, StoreOptions(length=200, interrupted=told))
        store.ping()
        told.since.clear()
        server.kill()
        server.start()
        store.ping()
        assert len(told.since) == 1
        store.ping()
        assert len(told.since) == 1
        store.close()


def test_no_room_is_told_as_that_and_room_is_told_before(tmp_path: Path) -> None:
    with running(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = open_redis(server, OPTIONS)
        room = store.room()
        assert room is not None
        assert 0 < room.share < 1
        assert "maxmemory" in room.told

        def fill() -> None:
            for number in range(1000):
                appends = [append(f"user-{number}-{n}", 0, SEGMENT) for n in range(50)]
                feed(store, SOURCE, appends, now_ms=10)

        with pytest.raises(StoreFull, match="maxmemory"):
            fill()
        assert store.sequences(["user-0-0"])[0] is not None
        store.close()


def test_credentials_that_are_refused_are_told_as_that(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.ask("CONFIG", "SET", "requirepass", "right")
        with pytest.raises(SettingsError, match="refuses the user or password"):
            RedisStore.open(f"redis://:wrong@127.0.0.1:{server.port}", OPTIONS, wait_s=0)
        RedisStore.open(f"redis://:right@127.0.0.1:{server.port}", OPTIONS).close()


def test_a_database_that_is_not_there_is_told_as_that(redis_server: RedisServer) -> None:
    with pytest.raises(SettingsError, match="does not have that database"):
        RedisStore.open(f"redis://127.0.0.1:{redis_server.port}/999", OPTIONS, wait_s=0)


def test_a_replica_is_told_as_that(tmp_path: Path, redis_server: RedisServer) -> None:
    open_redis(redis_server, OPTIONS).close()
    with running(tmp_path, "--replicaof", "127.0.0.1", str(redis_server.port)) as replica:
        while link(replica) != "up":
            time.sleep(0.02)
        store = open_redis(replica, OPTIONS)
        with pytest.raises(StoreUnavailable, match="replica"):
            feed(store, SOURCE, [append("ann", 0)], now_ms=10)


def link(replica: RedisServer) -> str:
    with redis.Redis(port=replica.port) as client:
        return str(client.info("replication")["master_link_status"])


def test_something_else_under_a_key_is_told_as_that(
    redis_server: RedisServer, store: RedisStore
) -> None:
    redis_server.ask("SET", store._keys.user("ann").decode(), "something else")
    with pytest.raises(StoreCorrupt, match="prefix of its own"):
        feed(store, SOURCE, [append("ann", 0)], now_ms=10)


def test_what_its_configuration_may_lose_is_said(tmp_path: Path, redis_server: RedisServer) -> None:
    with running(tmp_path, "--maxmemory-policy", "allkeys-lru") as server:
        store = open_redis(server, OPTIONS)
        said = "\n".join(store.cautions())
        store.close()
    assert "appendonly is no" in said
    assert "allkeys-lru" in said
    store = open_redis(redis_server, OPTIONS)
    assert store.cautions() == []
    store.close()


def test_a_server_that_does_not_tell_its_configuration_is_said() -> None:
    (said,) = cautions(lambda _: [None])
    assert "cannot be asked" in said


def test_buckets_share_users_evenly() -> None:
    counts = [0] * BUCKETS
    for number in range(100 * BUCKETS):
        counts[bucket_of(f"user-{number}")] += 1
    assert min(counts) > 60
    assert max(counts) < 140
