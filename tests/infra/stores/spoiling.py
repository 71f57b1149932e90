"""Records written behind a store's back, as a failing disk or an earlier version leaves them."""

from __future__ import annotations

import struct

import xxhash

from infra import records
from infra.behaviors import BEHAVIOR
from infra.store import Store
from infra.stores.aerospike.layout import COUNT, DATA, EPOCH, HEAD, SEQUENCE, USER, ttl_of
from infra.stores.aerospike.store import AerospikeStore
from infra.stores.lmdb import LmdbStore, _state_key
from infra.stores.memory import MemoryStore
from infra.stores.redis.layout import HEAD as HEAD_FIELD
from infra.stores.redis.layout import Command, segment_field, state_field
from infra.stores.redis.store import RedisStore


def put_head(store: Store, user: str, head: bytes) -> None:
    """Put these bytes in the place of a user's head."""
    if isinstance(store, MemoryStore):
        store._heads[user] = head
    elif isinstance(store, LmdbStore):
        with store._env.begin(write=True) as txn:
            txn.put(user.encode(), head, db=store._dbs.heads)
    elif isinstance(store, RedisStore):
        store._client.run([("HSET", store._keys.user(user), HEAD_FIELD, head)], writing=True)
    else:
        assert isinstance(store, AerospikeStore)
        key = store._client.key(SEQUENCE, user)
        store._client.put_one(key, {HEAD: head, USER: user.encode()}, ttl_of(0))


def get_head(store: Store, user: str) -> bytes:
    """The bytes of a user's head."""
    head: bytes | None
    if isinstance(store, MemoryStore):
        head = store._heads[user]
    elif isinstance(store, LmdbStore):
        with store._env.begin() as txn:
            found = txn.get(user.encode(), db=store._dbs.heads)
            head = None if found is None else bytes(found)
    elif isinstance(store, RedisStore):
        (head,) = store._client.run([("HGET", store._keys.user(user), HEAD_FIELD)])
    else:
        assert isinstance(store, AerospikeStore)
        (record,) = store._client.get([store._client.key(SEQUENCE, user)], [HEAD])
        head = None if record is None else record.bins[HEAD]
    assert head is not None
    return head


def later_format(head: bytes) -> bytes:
    """A head as a later version might write it, whole."""
    body = bytes([9]) + head[1:-8]
    return body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")


def put_segment(store: Store, user: str, number: int, segment: bytes | None, epoch: int) -> None:
    """Put these bytes in the place of a segment, or, with None, take it away."""
    if isinstance(store, MemoryStore):
        ring = store._segments[user]
        ring.pop(number % store._ring)
        if segment is not None:
            ring[number % store._ring] = segment
    elif isinstance(store, LmdbStore):
        key = store._segment_key(user.encode(), number)
        with store._env.begin(write=True) as txn:
            if segment is None:
                txn.delete(key, db=store._dbs.segments)
            else:
                txn.put(key, segment, db=store._dbs.segments)
    elif isinstance(store, RedisStore):
        whose, place = store._keys.user(user), segment_field(number % store._ring)
        gone: Command = ("HDEL", whose, place)
        store._client.run([gone if segment is None else ("HSET", whose, place, segment)])
    else:
        assert isinstance(store, AerospikeStore)
        # Until a later write trims it, the head holds the segment, too.
        store._rewrite([user], lambda _, head: records.seal(head or b"")[0], now_ms=0)
        key_of_it = store._segment_key(user, number)
        if segment is None:
            store._client.remove(key_of_it)
        else:
            bins = {EPOCH: epoch, COUNT: number, DATA: segment}
            store._client.put_one(key_of_it, bins, ttl_of(0))


def lose_state(store: Store, user: str, digest: bytes) -> None:
    """Take a user's interest state away, of which the head goes on telling."""
    bundle = records.bundle_key(digest)
    if isinstance(store, MemoryStore):
        del store._states[user][bundle]
    elif isinstance(store, LmdbStore):
        with store._env.begin(write=True) as txn:
            assert txn.delete(_state_key(user.encode(), bundle), db=store._dbs.states)
    elif isinstance(store, RedisStore):
        store._client.run([("HDEL", store._keys.user(user), state_field(bundle))])
    else:
        assert isinstance(store, AerospikeStore)
        store._client.remove(store._state_key(user, bundle))


def head_1(count: int, behaviors: bytes, *, epoch: int, mark: tuple[int, int]) -> bytes:
    """A head of format 1, with these behaviors in its tail, of a user who is due."""
    number = len(behaviors) // BEHAVIOR.itemsize
    header = struct.pack("<BBBBHxxQQQQQQ", 1, 1, 0, 0, number, count, epoch, epoch, 64, 77, 5)
    return header + struct.pack("<Qq", *mark) + behaviors
