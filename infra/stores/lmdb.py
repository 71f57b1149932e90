"""The store on LMDB: one environment, embedded in the processes of one machine, which share it.

One writer at a time (LMDB's own lock, across processes), readers never wait. Each append call is
one transaction, synced to disk before it returns.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from infra import records
from infra.behaviors import Source
from infra.errors import StoreCorrupt, StoreError, StoreFull, StoreUnavailable, one_line
from infra.store import (
    Append,
    Appended,
    Behaviors,
    DueUser,
    InterestWrite,
    Profile,
    StoredSequence,
    Version,
    Written,
    wall_clock_ms,
)

DEFAULT_MAX_SIZE: Final = 256 << 30
"""Bytes of the memory map, and so of the data. It is address space, not disk: the file grows with
the data. Mapping it all at once spares resizing, which must not meet an open transaction."""

MAX_READERS: Final = 512
"""Reader slots: processes times threads that read at once."""

SWEEP_HEADS: Final = 100_000
"""Users looked at by one `LmdbStore.sweep`: a quarter of a second, in which its caller does nothing
else, and the pages that appends free meanwhile cannot be used again."""

SWEEP_BATCH: Final = 100
"""Expired users removed in one transaction: some 10 ms, for which appends wait."""

_SEGMENT_KEY: Final = struct.Struct(">I")
_DUE_KEY: Final = struct.Struct(">QQ")
_VERSION: Final = struct.Struct("<QQ")

T = TypeVar("T")


def _get(txn: lmdb.Transaction, key: bytes, db: lmdb._Database) -> bytes | None:
    """The value at a key, copied out of the map: transactions here are opened without buffers."""
    return txn.get(key, db=db)  # type: ignore[return-value]


class LmdbStore:
    """`infra.store.Store` on LMDB.

    Databases: ``heads`` (user), ``segments`` (user, NUL, place in the ring), ``interests`` (user:
    version, payload), ``due`` (owner, since, user: the longest due first), ``positions``.
    """

    def __init__(
        self,
        path: Path,
        *,
        length: int = 1000,
        ttl_s: float = 0,
        max_size: int = DEFAULT_MAX_SIZE,
        sync: bool = True,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """Open or create the environment at ``path`` (a directory).

        Args:
            length: behaviors kept per user.
            ttl_s: a user without events for so many seconds is forgotten; 0: never.
            max_size: bytes at which the store reports `StoreFull`.
            sync: whether a write is on disk before it is acknowledged.
            clock: the time in ms since epoch, by which records expire.
        """
        self._path = path
        self._length = length
        self._ring = records.ring_size(length)
        self._ttl_ms = int(ttl_s * 1000)
        self._max_size = max_size
        self._clock = clock
        self._sweep_from = b""
        """The user with whom the next `sweep` begins; empty: the first."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(
                str(path),
                map_size=max_size,
                max_dbs=8,
                max_readers=MAX_READERS,
                sync=sync,
                # Read-ahead only pays where the data fits in memory and is read in order.
                readahead=False,
                metasync=sync,
            )
            self._heads = self._env.open_db(b"heads")
            self._segments = self._env.open_db(b"segments")
            self._interests = self._env.open_db(b"interests")
            self._due = self._env.open_db(b"due")
            self._positions = self._env.open_db(b"positions")
        except (lmdb.Error, OSError) as error:
            raise StoreUnavailable(
                f"the LMDB store at {path} cannot be opened: {one_line(error)};"
                " check that the directory is writable and on a local disk"
            ) from error

    def append(self, source: Source, appends: Sequence[Append], now_ms: int) -> Appended:
        # A B-tree: neighbours written together share their pages.
        order = sorted(range(len(appends)), key=lambda i: appends[i].user)
        keys = [appends[i].user.encode() for i in order]

        def write(txn: lmdb.Transaction) -> Appended:
            counts = [0] * len(appends)
            applied = replayed = duplicates = 0
            put = txn.put
            heads, segments, due = self._heads, self._segments, self._due
            ttl_ms = self._ttl_ms
            for place, key in zip(order, keys, strict=True):
                new = appends[place]
                head = _get(txn, key, heads)
                if ttl_ms and head and records.expired(head, new.user, ttl_ms, now_ms):
                    self._forget(txn, key, head, new.user)
                    head = None
                grown = records.grow(head, source.key, source.owner, new, now_ms)
                replayed += grown.replayed
                counts[place] = grown.count
                if grown.head is None:
                    continue
                applied += grown.applied
                duplicates += grown.duplicates
                head = grown.head
                if records.holds_segment(head):
                    head, full = records.seal(head)
                    for number, segment in full[-self._ring :]:
                        put(self._segment_key(key, number), segment, db=segments)
                put(key, head, db=heads)
                if grown.was_due != grown.is_due:
                    if grown.was_due is not None:
                        txn.delete(_DUE_KEY.pack(*grown.was_due) + key, db=due)
                    if grown.is_due is not None:
                        put(_DUE_KEY.pack(*grown.is_due) + key, b"", db=due)
            return Appended(applied, replayed, duplicates, counts)

        return self._write(write)

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        def read(txn: lmdb.Transaction) -> list[StoredSequence | None]:
            return [self._sequence(txn, user) for user in users]

        return self._read(read)

    def profiles(self, users: Sequence[str]) -> list[Profile | None]:
        def read(txn: lmdb.Transaction) -> list[Profile | None]:
            return [self._profile(txn, user) for user in users]

        return self._read(read)

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        def write(txn: lmdb.Transaction) -> list[Written]:
            return [self._put_interest(txn, interest, now_ms) for interest in writes]

        return self._write(write)

    def due(self, owner: int, limit: int) -> list[DueUser]:
        def read(txn: lmdb.Transaction) -> list[DueUser]:
            found: list[DueUser] = []
            with txn.cursor(self._due) as cursor:
                more = cursor.set_range(_DUE_KEY.pack(owner, 0))
                while more and len(found) < limit:
                    key = bytes(cursor.key())
                    its_owner, since = _DUE_KEY.unpack_from(key)
                    if its_owner != owner:
                        break
                    name = key[_DUE_KEY.size :]
                    found.append(self._due_user(txn, name, since))
                    more = cursor.next()
            return found

        return self._read(read)

    def mark_due(self, owner: int, users: Sequence[str], now_ms: int) -> None:
        def write(txn: lmdb.Transaction) -> None:
            for user in users:
                key = user.encode()
                head = _get(txn, key, self._heads)
                if head is None:
                    continue
                counters = records.read_counters(head, user)
                head = records.set_due(head, counters, owner, now_ms)
                if head is None:
                    continue
                self._unlist(txn, key, counters)
                txn.put(key, head, db=self._heads)
                txn.put(_DUE_KEY.pack(owner, counters.since or now_ms) + key, b"", db=self._due)

        self._write(write)

    def users(self, after: str, limit: int) -> list[str]:
        def read(txn: lmdb.Transaction) -> list[str]:
            start = after.encode()
            found: list[str] = []
            with txn.cursor(self._heads) as cursor:
                more = cursor.set_range(start) if start else cursor.first()
                while more and len(found) < limit:
                    key = bytes(cursor.key())
                    if key != start:
                        found.append(key.decode())
                    more = cursor.next()
            return found

        return self._read(read)

    def get_position(self, name: str) -> bytes | None:
        return self._read(lambda txn: _get(txn, name.encode(), self._positions))

    def put_position(self, name: str, position: bytes | None) -> None:
        def write(txn: lmdb.Transaction) -> None:
            if position is None:
                txn.delete(name.encode(), db=self._positions)
            else:
                txn.put(name.encode(), position, db=self._positions)

        self._write(write)

    def sweep(self, now_ms: int, limit: int) -> int:
        """Remove expired users: a scan beside the writers, from where the last call ended, finds
        them, and only the removing makes writers wait.

        Raises:
            StoreCorrupt: a record met cannot be read; the others were removed all the same.
        """
        if not self._ttl_ms:
            return 0
        found, unreadable = self._read(lambda txn: self._find_expired(txn, now_ms, limit))
        removed = 0
        for start in range(0, len(found), SWEEP_BATCH):
            keys = found[start : start + SWEEP_BATCH]
            removed += self._write(partial(self._forget_expired, keys=keys, now_ms=now_ms))
        if unreadable is not None:
            raise unreadable
        return removed

    def ping(self) -> None:
        self._write(lambda txn: txn.put(b"ping", b"", db=self._positions))

    def close(self) -> None:
        self._env.close()

    def _find_expired(
        self, txn: lmdb.Transaction, now_ms: int, limit: int
    ) -> tuple[list[bytes], StoreCorrupt | None]:
        """Keys of up to ``limit`` expired users, and the error of the first unreadable one met."""
        found: list[bytes] = []
        unreadable: StoreCorrupt | None = None
        with txn.cursor(self._heads) as cursor:
            start = self._sweep_from
            more = cursor.set_range(start) if start else cursor.first()
            looked = 0
            while more and looked < SWEEP_HEADS and len(found) < limit:
                key = bytes(cursor.key())
                try:
                    head = bytes(cursor.value())
                    if records.expired(head, key.decode(), self._ttl_ms, now_ms):
                        found.append(key)
                except StoreCorrupt as error:
                    # It is reported, but the users beside it are removed all the same.
                    unreadable = unreadable or error
                looked += 1
                more = cursor.next()
            self._sweep_from = bytes(cursor.key()) if more else b""
        return found, unreadable

    def _forget_expired(self, txn: lmdb.Transaction, *, keys: list[bytes], now_ms: int) -> int:
        """Remove and count the users that are still expired: some may have come back since."""
        removed = 0
        for key in keys:
            user = key.decode()
            head = _get(txn, key, self._heads)
            if head is not None and records.expired(head, user, self._ttl_ms, now_ms):
                self._forget(txn, key, head, user)
                removed += 1
        return removed

    def _due_user(self, txn: lmdb.Transaction, key: bytes, since: int) -> DueUser:
        user = key.decode()
        head = _get(txn, key, self._heads)
        try:
            waiting = records.read_counters(head, user).waiting if head is not None else 0
        except StoreCorrupt:
            # Listed all the same: whoever reads this user finds out, and the others are served.
            waiting = 0
        return DueUser(user, since, waiting)

    def _sequence(self, txn: lmdb.Transaction, user: str) -> StoredSequence | None:
        key = user.encode()
        raw = self._live_head(txn, key, user)
        if raw is None:
            return None
        head = records.decode_head(raw, user)
        behaviors = self._newest(txn, key, user, head, self._length)
        return StoredSequence(head.version, behaviors, head.marks)

    def _profile(self, txn: lmdb.Transaction, user: str) -> Profile | None:
        key = user.encode()
        raw = self._live_head(txn, key, user)
        if raw is None:
            return None
        head = records.decode_head(raw, user)
        stored = _get(txn, key, self._interests)
        version = _version_of(stored, user) if stored is not None else None
        return Profile(
            version=head.version,
            recent=self._newest(txn, key, user, head, head.uncovered(version, self._length)),
            interests=stored[_VERSION.size :] if stored is not None else None,
            interests_version=version,
        )

    def _newest(
        self, txn: lmdb.Transaction, key: bytes, user: str, head: records.Head, length: int
    ) -> Behaviors:
        segments: list[bytes] = []
        for number in head.segments(length):
            segment = _get(txn, self._segment_key(key, number), self._segments)
            if segment is None:
                raise StoreCorrupt(
                    f"segment {number} of user {user!r} is missing in the LMDB store at"
                    f" {self._path}; restore the store or remove the user's record"
                )
            segments.append(segment)
        return head.newest(segments, length, user)

    def _put_interest(self, txn: lmdb.Transaction, write: InterestWrite, now_ms: int) -> Written:
        key = write.user.encode()
        head = self._live_head(txn, key, write.user)
        if head is None:
            return Written.GONE
        stored = _get(txn, key, self._interests)
        if stored is not None and _version_of(stored, write.user) > write.version:
            return Written.STALE
        counters = records.read_counters(head, write.user)
        if counters.epoch != write.version.epoch:
            return Written.STALE
        txn.put(
            key,
            _VERSION.pack(write.version.epoch, write.version.count) + write.payload,
            db=self._interests,
        )
        self._unlist(txn, key, counters)
        head = records.cover(head, counters, write.version.count, now_ms)
        counters = records.read_counters(head, write.user)
        if counters.since:
            txn.put(_DUE_KEY.pack(counters.owner, counters.since) + key, b"", db=self._due)
        txn.put(key, head, db=self._heads)
        return Written.STORED

    def _live_head(self, txn: lmdb.Transaction, key: bytes, user: str) -> bytes | None:
        head = _get(txn, key, self._heads)
        if head is None or records.expired(head, user, self._ttl_ms, self._clock()):
            return None
        return head

    def _forget(self, txn: lmdb.Transaction, key: bytes, head: bytes, user: str) -> None:
        counters = records.read_counters(head, user)
        txn.delete(key, db=self._heads)
        txn.delete(key, db=self._interests)
        for place in range(self._ring):
            txn.delete(key + b"\0" + _SEGMENT_KEY.pack(place), db=self._segments)
        self._unlist(txn, key, counters)

    def _unlist(self, txn: lmdb.Transaction, key: bytes, counters: records.Counters) -> None:
        """Take a user whose head has those counters off the list of due users."""
        if counters.since:
            txn.delete(_DUE_KEY.pack(counters.owner, counters.since) + key, db=self._due)

    def _segment_key(self, key: bytes, number: int) -> bytes:
        return key + b"\0" + _SEGMENT_KEY.pack(number % self._ring)

    def _read(self, read: Callable[[lmdb.Transaction], T]) -> T:
        with self._reported(), self._env.begin() as txn:
            return read(txn)

    def _write(self, write: Callable[[lmdb.Transaction], T]) -> T:
        with self._reported(), self._env.begin(write=True) as txn:
            return write(txn)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except lmdb.MapFullError as error:
            raise StoreFull(
                f"the LMDB store at {self._path} has reached its limit of {self._max_size} bytes:"
                " raise max_size in the store's URL, or set a TTL"
            ) from error
        except (lmdb.Error, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error):
                raise StoreFull(
                    f"the disk of the LMDB store at {self._path} is full: free some space"
                ) from error
            raise StoreUnavailable(
                f"the LMDB store at {self._path} failed: {one_line(error)};"
                " check the disk and the directory's permissions"
            ) from error


def _version_of(stored: bytes, user: str) -> Version:
    """The version in front of a stored interest state."""
    if len(stored) < _VERSION.size:
        raise StoreCorrupt(
            f"the interest record of user {user!r} has {len(stored)} bytes; remove the user's"
            " record or restore the store"
        )
    return Version(*_VERSION.unpack_from(stored))
