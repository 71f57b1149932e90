"""The store on LMDB: one environment, embedded in the processes of one machine, which share it.

One writer at a time (LMDB's own lock, across processes), readers never wait. Each append call is
one transaction, synced to disk before it returns.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import lmdb
import msgspec
import numpy as np

from infra import records
from infra.arrays import I64
from infra.behaviors import Source
from infra.errors import RecordDamaged, RecordNewer, StoreError, StoreUnavailable
from infra.segments import LOST, decode_each, decode_segments
from infra.store import (
    AS_IT_COMES,
    Append,
    Appended,
    Appends,
    Claim,
    DueUser,
    Group,
    Held,
    History,
    Identity,
    InterestWrite,
    Merged,
    Profile,
    StoredSequence,
    StoreOptions,
    UserPage,
    Version,
    Written,
)
from infra.stores.identity import (
    agree,
    decode_identity,
    encode_identity,
    new_identity,
    require_any_id,
)
from infra.stores.lmdb_faults import disk_free, lock_holder, readers_full, told
from infra.stores.lmdb_meta import check, read_meta
from infra.stores.mending import Mending

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

ORPHANS: Final = 10_000
"""Entries at most that `LmdbStore.due` takes off the list: where a worker was away for longer than
users live, the list may hold nobody else, and one transaction for all of it would keep appends
waiting."""

WALKED: Final = 4
"""From so many segments of a user on they are read in one walk over the ring, in which they lie
side by side, and not each by a search of its own."""

GROWN_TOGETHER: Final = 4_096
"""Appends whose heads are read, grown and written at once; what they take in memory is bounded, and
of light users stays in a processor's cache."""

TOGETHER: Final = 16
"""Users whose segments are decoded at once."""

PATIENCE_S: Final = 5.0
"""How long opening and pings wait for their turn at writing: a large group of appends takes one or
two seconds."""

TURN: Final = "lmdb-turn"
"""Name of the thread that waits for a turn at writing."""

DATA: Final = "data.mdb"
"""The file of an environment that holds the data."""

LOCK: Final = "lock.mdb"
"""The file of an environment by which its processes know of each other."""

_SEGMENT_KEY: Final = struct.Struct(">I")
_STATE_KEY: Final = struct.Struct(">Q")
_DUE_KEY: Final = struct.Struct(">QQQ")
_SOURCE_KEY: Final = struct.Struct(">Q")
_OFFSET: Final = struct.Struct("<q")
_IDENTITY: Final = b"identity"
_OF_LAYOUT_1: Final = (b"interests", b"due")
"""Databases of layout 1. Interests were kept by user alone: those of a bundle that does not name
them are made anew, as after any change of the bundle, and so are the lists of who is due."""

T = TypeVar("T")


class _Databases(NamedTuple):
    """The databases of an environment, each by its name."""

    heads: lmdb._Database
    """user -> head"""
    segments: lmdb._Database
    """user, NUL, place in the ring -> segment"""
    states: lmdb._Database
    """user, NUL, bundle -> payload"""
    queue: lmdb._Database
    """bundle, owner, since, user -> nothing: the longest due first"""
    sources: lmdb._Database
    """source -> offset reached"""
    positions: lmdb._Database
    """name of a job -> its bookmark"""
    identity: lmdb._Database
    """one record"""


@dataclass(frozen=True, slots=True)
class Room:
    """How much room an LMDB store has, in bytes."""

    used: int
    """In pages that hold something. Pages freed since are written over, unless somebody still reads
    what they held."""
    file: int
    """In all pages, free ones included: the file never becomes smaller."""
    limit: int
    """What the file may grow to: the largest max_size with which a process has written it."""
    disk_free: int
    """What the disk could still take."""
    readers: float
    """Share of the slots for readers that are taken, those of killed processes included until the
    next ping of anybody frees them."""

    @property
    def share(self) -> float:
        """How much is used of what the limit and the disk allow, from 0 to 1."""
        return self.used / max(1, min(self.limit, self.file + self.disk_free))

    @property
    def told(self) -> str:
        """The figures, and what to do to have more."""
        return (
            f"{self.used} bytes of {self.limit}, with {self.disk_free} free on the disk: raise"
            " max_size in store.url, make room on the disk, or set store.ttl_s"
        )


class LmdbStore:
    """`infra.store.Store` on LMDB.

    What another process or the disk may do to it is told by its cause (`infra.stores.lmdb_faults`).
    """

    local = True

    def __init__(
        self,
        path: Path,
        options: StoreOptions = AS_IT_COMES,
        *,
        max_size: int = DEFAULT_MAX_SIZE,
        sync: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Open the environment at ``path``, a directory; for writing, it is made where need be.

        Args:
            path: the directory.
            options: as of every store.
            max_size: bytes at which the store reports `StoreFull`, unless it was written with a
                larger one.
            sync: whether a write is on disk before it is acknowledged.
            patience_s: how long opening and `ping` wait for their turn at writing.

        Raises:
            StoreUnavailable: it cannot be opened; or, for reading, there is none; or, for writing,
                another process keeps it locked.
            StoreCorrupt: its data file is cut short, or none.
            StoreMismatch: it is another store than asked for (`infra.stores.identity`); nothing is
                made where none is.
        """
        self._path = path.absolute()
        self._data = self._path / DATA
        self._where = f"the LMDB store at {path}"
        self._options = options
        self._sync = sync
        self._length = options.length
        self._ttl_ms = int(options.ttl_s * 1000)
        self._states_kept = options.states
        self._read_only = options.read_only
        self._map_size = max_size
        self._clock = options.clock
        self._mending = Mending(options.damage)
        self._sweep_from = b""
        """The user with whom the next `sweep` begins; empty: the first."""
        self._patience_s = patience_s
        self._turns = _Turns()
        self._asking = threading.Lock()
        self._asked: Future[None] | None = None
        """A write that waits for its turn in a thread of its own (`_in_time`), or the last one."""
        self._asked_at = 0.0
        self._lock: int | None = None
        """The lock file, of a store that is written."""
        self._begin()

    def append(
        self, groups: Sequence[Group], now_ms: int, *, digest: bytes | None = None
    ) -> Appended:
        # With numba, which is slow to import, and who appends nothing does not need it.
        from infra.record_kernel import warm

        warm()  # not within the transaction, for whose end others wait
        bundle = records.bundle_key(digest) if digest else 0
        groups = records.in_pieces(groups)
        sources = [group.source for group in groups]
        columns = [Appends.of(group.appends) for group in groups]
        appends = Appends.joined(columns)
        # A B-tree: neighbours written together share their pages.
        unordered = [user.encode() for user in appends.users]
        order = np.array(sorted(range(len(unordered)), key=unordered.__getitem__), np.int64)
        appends = appends.ordered(order)
        keys = [unordered[place] for place in order.tolist()]
        places = np.repeat(np.arange(len(groups)), [len(one) for one in columns])[order]

        def write(txn: lmdb.Transaction) -> Appended:
            total = Appended()
            for start in range(0, len(keys), GROWN_TOGETHER):
                part = slice(start, start + GROWN_TOGETHER)
                news = appends.part(part.start, part.stop)
                total += self._append(txn, keys[part], news, places[part], sources, now_ms, bundle)
            for group in groups:
                if group.reached is not None:
                    self._reach(txn, group.source.key, group.reached)
            return total

        return self._write(write)

    def merge(
        self,
        histories: Sequence[History],
        claim: Claim,
        now_ms: int,
        *,
        digest: bytes | None = None,
    ) -> Merged:
        bundle = records.bundle_key(digest) if digest else 0
        # As appends are: neighbours share their pages.
        ordered = sorted(histories, key=lambda history: history.user.encode())

        def write(txn: lmdb.Transaction) -> Merged:
            total = Merged()
            for history in ordered:
                total.add(self._merge(txn, history, claim, now_ms, bundle))
            return total

        return self._write(write)

    def positions(self, sources: Sequence[int]) -> list[int | None]:
        def read(txn: lmdb.Transaction) -> list[int | None]:
            found = [_get(txn, _SOURCE_KEY.pack(key), self._dbs.sources) for key in sources]
            return [None if one is None else _OFFSET.unpack(one)[0] for one in found]

        return self._read(read)

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        if self.identity is None:
            self._brought_up_to_date()

        return self._read(lambda txn: self._sequences(txn, users))

    def profiles(self, users: Sequence[str], digest: bytes) -> list[Profile | None]:
        if self.identity is None:
            self._brought_up_to_date()
        bundle = records.bundle_key(digest)

        def read(txn: lmdb.Transaction) -> list[Profile | None]:
            return [self._profile(txn, user, bundle) for user in users]

        return self._read(read)

    def interests(self, users: Sequence[str], digest: bytes) -> list[bytes | None]:
        bundle = records.bundle_key(digest)

        def read(txn: lmdb.Transaction) -> list[bytes | None]:
            keys = [_state_key(user.encode(), bundle) for user in users]
            return [_get(txn, key, self._dbs.states) for key in keys]

        return self._read(read)

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        # As appends are: neighbours share their pages.
        order = sorted(range(len(writes)), key=lambda place: writes[place].user.encode())

        def write(txn: lmdb.Transaction) -> list[Written]:
            written = {place: self._put_interest(txn, writes[place], now_ms) for place in order}
            return [written[place] for place in range(len(writes))]

        return self._write(write)

    def due(self, owner: int, digest: bytes, limit: int) -> list[DueUser]:
        bundle = records.bundle_key(digest)
        orphans: list[bytes] = []

        def read(txn: lmdb.Transaction) -> list[DueUser]:
            found: list[DueUser] = []
            with txn.cursor(self._dbs.queue) as cursor:
                more = cursor.set_range(_DUE_KEY.pack(bundle, owner, 0))
                while more and len(found) < limit and len(orphans) < ORPHANS:
                    key = bytes(cursor.key())
                    *listed, since = _DUE_KEY.unpack_from(key)
                    if listed != [bundle, owner]:
                        break
                    user = self._due_user(txn, key[_DUE_KEY.size :], bundle, owner, since)
                    if user is None:
                        orphans.append(key)
                    else:
                        found.append(user)
                    more = cursor.next()
            return found

        found = self._read(read)
        if orphans and not self._read_only:
            self._write(partial(self._remove_orphans, orphans))
        return found

    def mark_due(self, owner: int, digest: bytes, users: Sequence[str], now_ms: int) -> int:
        bundle = records.bundle_key(digest)
        # Mostly few are to be marked, or nobody: no writer waits while the others are looked at.
        lacking = self._lacking(users, bundle)

        def write(txn: lmdb.Transaction) -> int:
            marked = 0
            for user in lacking:
                key = user.encode()
                head, counters = self._live(txn, key, user)
                if head is None or counters is None:
                    continue
                self._note_lost(txn, key, counters, bundle)
                changed = records.set_due(
                    head, counters, owner, bundle, now_ms, states=self._states_kept
                )
                if changed.head is not None:
                    self._put_changed(txn, key, changed)
                    marked += 1
            return marked

        return self._write(write) if lacking else 0

    def users(self, after: bytes, limit: int) -> UserPage:
        def read(txn: lmdb.Transaction) -> UserPage:
            found: list[bytes] = []
            with txn.cursor(self._dbs.heads) as cursor:
                more = cursor.set_range(after) if after else cursor.first()
                while more and len(found) <= limit:
                    key = bytes(cursor.key())
                    if key != after and not records.is_deleted(bytes(cursor.value())):
                        found.append(key)
                    more = cursor.next()
            names = [key.decode() for key in found[:limit]]
            return UserPage(names, found[limit - 1] if len(found) > limit else None)

        return self._read(read)

    def empty(self) -> bool:
        return not self.users(b"", 1).users

    def held(self, users: Sequence[str]) -> list[Held | None]:
        def read(txn: lmdb.Transaction) -> list[Held | None]:
            found = []
            for user in users:
                prefix = user.encode() + b"\0"
                segments = _sizes(txn, self._dbs.segments, prefix, _SEGMENT_KEY)
                states = dict(_sizes(txn, self._dbs.states, prefix, _STATE_KEY))
                head = _get(txn, user.encode(), self._dbs.heads)
                found.append(records.held(head, user, [size for _, size in segments], states))
            return found

        return self._read(read)

    def forget(self, users: Sequence[str], now_ms: int) -> int:
        def write(txn: lmdb.Transaction) -> int:
            known = 0
            for user in users:
                key = user.encode()
                known += self._live_head(txn, key, user) is not None
                old = _get(txn, key, self._dbs.heads)
                try:
                    if old and records.expired(old, user, self._ttl_ms, now_ms):
                        old = None
                    mark = records.delete(old, user, now_ms)
                except RecordDamaged as error:
                    self._mending.head(error)
                    mark = records.delete(None, user, now_ms)
                self._remove(txn, key)
                txn.put(key, mark, db=self._dbs.heads)
            return known

        return self._write(write)

    def get_bookmark(self, name: str) -> bytes | None:
        return self._read(lambda txn: _get(txn, name.encode(), self._dbs.positions))

    def put_bookmark(self, name: str, bookmark: bytes | None) -> None:
        def write(txn: lmdb.Transaction) -> None:
            if bookmark is None:
                txn.delete(name.encode(), db=self._dbs.positions)
            else:
                txn.put(name.encode(), bookmark, db=self._dbs.positions)

        self._write(write)

    def sweep(self, now_ms: int, limit: int) -> int:
        """Remove expired users: a scan beside the writers, from where the last call ended, finds
        them, and only the removing makes writers wait.
        """
        if not self._ttl_ms:
            return 0
        found = self._read(lambda txn: self._find_expired(txn, now_ms, limit))
        removed = 0
        for start in range(0, len(found), SWEEP_BATCH):
            keys = found[start : start + SWEEP_BATCH]
            removed += self._write(partial(self._remove_expired, keys=keys, now_ms=now_ms))
        return removed

    def ping(self) -> None:
        """As of every store; and free what readers held that are no more.

        Opened for reading, it goes over to what is in its place now, where the one that it read was
        deleted or replaced. Until there is one, reads raise `StoreUnavailable`.
        """
        if self._read_only:
            if self._file is None or self._found_file() != self._file:
                self._reopen()
            self._run(self._env.reader_check)
            self._read(lambda txn: txn.get(b"ping", db=self._dbs.positions))
        else:
            self._in_time(self._write_ping)

    def _write_ping(self) -> None:
        self._run(self._env.reader_check)
        self._write(lambda txn: txn.put(b"ping", b"", db=self._dbs.positions))

    def room(self) -> Room:
        """How much room there is.

        Raises:
            StoreUnavailable: it cannot be read.
        """

        def read(txn: lmdb.Transaction) -> Room:
            info = self._env.info()
            stats = [self._env.stat(), *(txn.stat(db) for db in set(self._dbs))]
            pages = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
            size = stats[0]["psize"]
            file = (info["last_pgno"] + 1) * size
            slots = len(self._env.readers().splitlines()[1:])
            return Room(
                pages * size,
                file,
                info["map_size"],
                disk_free(self._path),
                slots / info["max_readers"],
            )

        return self._read(read)

    def cautions(self) -> Sequence[str]:
        if self._sync:
            return ()
        lost = "a crash of the machine loses what the system had not written"
        return [f"sync=0 in store.url: {lost}, and may leave a file that cannot be read"]

    def close(self) -> None:
        """Release everything, at once or when the write that still waits has had its turn."""
        if self._asked is None:
            self._release()
        else:
            self._asked.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        self._env.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Opening

    def _begin(self) -> None:
        """Open what is there, and find everything in it."""
        self._env = self._open()
        self._map_size = self._env.info()["map_size"]
        self._file = self._found_file()
        try:
            if self._read_only:
                self._prepare()
            else:
                self._in_time(self._prepare)
        except BaseException:
            self._file = None
            self.close()
            raise
        self._keep(self.identity.length if self.identity else self._length)

    def _reopen(self) -> None:
        """Open what is there now: what was there before could be read on for ever, and nobody
        writes it any more.
        """
        with self._turns.alone(self._patience_s) as alone:
            if not alone:
                raise StoreUnavailable(
                    f"{self._where} was deleted or replaced, and a read of this process that does"
                    " not end keeps it from opening what is there now; restart the process"
                )
            self._file = None
            self.close()
            self._begin()

    def _open(self) -> lmdb.Environment:
        try:
            if self._data.exists():
                check(self._data)
            elif self._read_only:
                raise StoreUnavailable(
                    f"there is no store at {self._path}; correct store.url, or start a worker,"
                    " which makes it"
                )
            else:
                require_any_id(self._options, self._where)
                self._path.mkdir(parents=True, exist_ok=True)
            env = lmdb.open(
                str(self._path),
                map_size=self._map_size,
                max_dbs=16,
                max_readers=MAX_READERS,
                readonly=self._read_only,
                create=not self._read_only,
                sync=self._sync,
                # Read-ahead only pays where the data fits in memory and is read in order.
                readahead=False,
                metasync=self._sync,
            )
            env.reader_check()  # those that were killed keep their slots until somebody looks
            if not self._read_only:
                # As long as the environment is: closing it releases all locks of this process.
                self._lock = os.open(self._path / LOCK, os.O_RDONLY)
        except (lmdb.Error, OSError) as error:
            raise self._told(error) from error
        return env

    def _prepare(self) -> None:
        """Find the databases and the identity, written only where they are not as they should be: a
        store that is full, or written by another process just now, can still be opened.
        """
        self._dbs, self.identity = self._found()

    def _found(self) -> tuple[_Databases, Identity | None]:
        options = self._options
        try:
            dbs, found = self._databases()
        except lmdb.NotFoundError as error:
            require_any_id(options, self._where)
            if not self._read_only:
                return self._write(partial(self._lay_out, new_identity(options)))
            return self._of_layout_1(error), None
        wanted = agree(found, options, self._where)
        if self._read_only or wanted == found:
            return dbs, found
        return self._write(partial(self._lay_out, wanted))

    def _databases(self) -> tuple[_Databases, Identity]:
        """The databases of a store that is there, and its identity."""
        names = _Databases._fields
        if self._read_only:
            dbs = _Databases(*map(self._database, names))
        else:
            # Without a transaction LMDB begins one that writes, and waits for its turn with the
            # interpreter's lock held.
            dbs = self._write(lambda txn: _Databases(*(self._database(n, txn) for n in names)))
        record = self._read(lambda txn: _get(txn, _IDENTITY, dbs.identity))
        return dbs, decode_identity(record or b"", self._where)

    def _database(self, name: str, txn: lmdb.Transaction | None = None) -> lmdb._Database:
        """A database that is there. Not within a transaction that reads: the handle would end with
        it.
        """
        if txn is not None:
            return self._env.open_db(name.encode(), txn, create=False)
        return self._run(lambda: self._env.open_db(name.encode(), create=False))

    def _of_layout_1(self, missing: lmdb.NotFoundError) -> _Databases:
        """The databases that a reader needs of a store that no worker of this version has opened
        yet. In the others there would be nothing to find, and one that is there stands for them.
        """
        try:
            heads, segments, others = map(self._database, ("heads", "segments", "positions"))
        except lmdb.NotFoundError:
            raise StoreUnavailable(f"{self._where} is being made; ask again") from missing
        return _Databases(heads, segments, others, others, others, others, others)

    def _brought_up_to_date(self) -> None:
        """Look whether a worker has brought the store to this layout since it was opened."""
        with contextlib.suppress(lmdb.NotFoundError):
            self._dbs, self.identity = self._databases()
            self._keep(self.identity.length)

    def _keep(self, length: int) -> None:
        """Have a ring of segments for that many behaviors of each user."""
        self._ring = records.ring_size(length)
        self._places = [b"\0" + _SEGMENT_KEY.pack(place) for place in range(self._ring)]

    def _lay_out(self, wanted: Identity, txn: lmdb.Transaction) -> tuple[_Databases, Identity]:
        """Make what is missing, remove what layout 1 kept otherwise, write the identity."""
        for name in _OF_LAYOUT_1:
            with contextlib.suppress(lmdb.NotFoundError):
                txn.drop(self._env.open_db(name, txn, create=False))
        dbs = _Databases(*(self._env.open_db(name.encode(), txn) for name in _Databases._fields))
        record = _get(txn, _IDENTITY, dbs.identity)
        if record is not None:  # another process was faster
            found = decode_identity(record, self._where)
            wanted = msgspec.structs.replace(wanted, id=found.id, created_ms=found.created_ms)
        txn.put(_IDENTITY, encode_identity(wanted), db=dbs.identity)
        return dbs, wanted

    # Writing

    def _append(
        self,
        txn: lmdb.Transaction,
        keys: list[bytes],
        appends: Appends,
        places: I64,
        sources: Sequence[Source],
        now_ms: int,
        bundle: int,
    ) -> Appended:
        """Apply appends, of users in the order of their keys: at once where that can be."""
        from infra.record_kernel import grow_each

        with txn.cursor(self._dbs.heads) as cursor:
            read = dict.fromkeys(keys, records.new_head(now_ms))
            read.update(cursor.getmulti(keys))  # type: ignore[arg-type]  # without buffers, bytes
            # What comes after the first of a user waits for it: it finds no head to go onto.
            heads = [read.pop(key, b"") for key in keys]
            grown = grow_each(heads, appends, places, sources, now_ms, bundle, self._ttl_ms)
            cursor.putmulti([one for one in zip(keys, grown, strict=True) if one[1]])
        total = Appended(applied=len(appends.offsets))
        for at in [at for at, head in enumerate(grown) if not head]:
            new, source = appends[at], sources[places[at]]
            total.applied -= len(new.offsets)
            total += self._append_one(txn, keys[at], source, new, now_ms, bundle)
        if self._mending.waiting:
            for key, user in zip(keys, appends.users, strict=True):
                self._mend(txn, key, user)
        return total

    def _append_one(
        self,
        txn: lmdb.Transaction,
        key: bytes,
        source: Source,
        new: Append,
        now_ms: int,
        bundle: int,
    ) -> Appended:
        grown = self._grow(txn, key, source, new, now_ms, bundle)
        if grown.head is None:
            return grown.appended
        head, segments = records.seal(grown.head, self._ring)
        for number, segment in segments:
            txn.put(self._segment_key(key, number), segment, db=self._dbs.segments)
        txn.put(key, head, db=self._dbs.heads)
        for gone in grown.undue:
            txn.delete(_DUE_KEY.pack(*gone) + key, db=self._dbs.queue)
        for due in grown.due:
            txn.put(_DUE_KEY.pack(*due) + key, b"", db=self._dbs.queue)
        self._mend(txn, key, new.user)
        return grown.appended

    def _grow(
        self,
        txn: lmdb.Transaction,
        key: bytes,
        source: Source,
        new: Append,
        now_ms: int,
        bundle: int,
    ) -> records.Grown:
        states = self._states_kept
        head = _get(txn, key, self._dbs.heads)
        try:
            if self._ttl_ms and head and records.expired(head, new.user, self._ttl_ms, now_ms):
                self._remove(txn, key)
                head = None
            return records.grow(
                head, source.key, source.owner, new, now_ms, bundle, states, source.dead
            )
        except RecordDamaged as error:
            self._mending.head(error)
            self._remove(txn, key)
            return records.grow(None, source.key, source.owner, new, now_ms, bundle, states)

    def _merge(
        self, txn: lmdb.Transaction, history: History, claim: Claim, now_ms: int, bundle: int
    ) -> Merged:
        user = history.user
        key = user.encode()
        old = _get(txn, key, self._dbs.heads)
        head, stored = None, records.NOTHING
        if old is not None:
            try:
                if not records.expired(old, user, self._ttl_ms, now_ms):
                    head = records.decode_head(old, user)
                    stored = self._newest(txn, key, user, head, self._length).behaviors
            except RecordDamaged as error:
                self._mending.head(error)
            if head and head.claim and head.claim.job == claim.job:
                return Merged(merged_before=1)
        states = self._states_kept
        joined = records.merge(head, stored, history, claim, now_ms, self._ring, bundle, states)
        if not joined.count:
            return joined.merged
        if old is not None:
            self._remove(txn, key)
            self._mending.take(user)
        trimmed, segments = joined.sealed()
        for number, segment in segments:
            txn.put(self._segment_key(key, number), segment, db=self._dbs.segments)
        txn.put(key, trimmed, db=self._dbs.heads)
        for due in joined.due:
            txn.put(_DUE_KEY.pack(*due) + key, b"", db=self._dbs.queue)
        return joined.merged

    def _reach(self, txn: lmdb.Transaction, source: int, offset: int) -> None:
        """Keep how far a source was fed, unless it was further already."""
        key = _SOURCE_KEY.pack(source)
        old = _get(txn, key, self._dbs.sources)
        if old is None or _OFFSET.unpack(old)[0] < offset:
            txn.put(key, _OFFSET.pack(offset), db=self._dbs.sources)

    def _put_interest(self, txn: lmdb.Transaction, write: InterestWrite, now_ms: int) -> Written:
        key, bundle = write.user.encode(), records.bundle_key(write.digest)
        head, counters = self._live(txn, key, write.user)
        if head is None or counters is None:
            return Written.GONE
        covered = write.version.count
        if counters.epoch != write.version.epoch or counters.coverage(bundle).covered > covered:
            return Written.STALE
        txn.put(_state_key(key, bundle), write.payload, db=self._dbs.states)
        changed = records.cover(head, counters, bundle, covered, now_ms, states=self._states_kept)
        self._put_changed(txn, key, changed)
        self._mend(txn, key, write.user)
        return Written.STORED

    def _put_changed(self, txn: lmdb.Transaction, key: bytes, changed: records.Changed) -> None:
        assert changed.head is not None
        txn.put(key, changed.head, db=self._dbs.heads)
        for bundle in changed.dropped:
            txn.delete(_state_key(key, bundle), db=self._dbs.states)
        for gone in changed.undue:
            txn.delete(_DUE_KEY.pack(*gone) + key, db=self._dbs.queue)
        for due in changed.due:
            txn.put(_DUE_KEY.pack(*due) + key, b"", db=self._dbs.queue)

    def _mend(self, txn: lmdb.Transaction, key: bytes, user: str) -> None:
        for number in self._mending.take(user):
            place = self._segment_key(key, number)
            # Since it was read the ring may have moved on to a whole one.
            if decode_segments([_get(txn, place, self._dbs.segments)]).damaged:
                txn.put(place, LOST, db=self._dbs.segments)

    def _remove(self, txn: lmdb.Transaction, key: bytes) -> None:
        """Remove all that is kept of a user."""
        counters = self._counters(txn, key, live=False)
        for due in counters.due if counters else ():
            txn.delete(_DUE_KEY.pack(*due) + key, db=self._dbs.queue)
        txn.delete(key, db=self._dbs.heads)
        _delete_all(txn, self._dbs.segments, key + b"\0", _SEGMENT_KEY.size)
        _delete_all(txn, self._dbs.states, key + b"\0", _STATE_KEY.size)

    def _remove_expired(self, txn: lmdb.Transaction, *, keys: list[bytes], now_ms: int) -> int:
        """Remove and count the users that are still expired: some may have come back since."""
        removed = 0
        for key in keys:
            head = _get(txn, key, self._dbs.heads)
            if head is not None and self._expired(head, key, now_ms):
                self._remove(txn, key)
                removed += 1
        return removed

    def _remove_orphans(self, keys: list[bytes], txn: lmdb.Transaction) -> None:
        """Take those off the list of due users whose head says otherwise: a damaged head that was
        made anew does not know where it was listed.
        """
        for key in keys:
            counters = self._counters(txn, key[_DUE_KEY.size :])
            due = records.DueKey(*_DUE_KEY.unpack_from(key))
            if counters is None or due not in counters.due:
                txn.delete(key, db=self._dbs.queue)

    # Reading

    def _find_expired(self, txn: lmdb.Transaction, now_ms: int, limit: int) -> list[bytes]:
        """Keys of up to ``limit`` expired users."""
        found: list[bytes] = []
        with txn.cursor(self._dbs.heads) as cursor:
            start = self._sweep_from
            more = cursor.set_range(start) if start else cursor.first()
            looked = 0
            while more and looked < SWEEP_HEADS and len(found) < limit:
                key = bytes(cursor.key())
                if self._expired(bytes(cursor.value()), key, now_ms):
                    found.append(key)
                looked += 1
                more = cursor.next()
            self._sweep_from = bytes(cursor.key()) if more else b""
        return found

    def _expired(self, head: bytes, key: bytes, now_ms: int) -> bool:
        try:
            return records.expired(head, key.decode(), self._ttl_ms, now_ms)
        except RecordDamaged as error:
            self._mending.head(error)
            return True

    def _lacking(self, users: Sequence[str], bundle: int) -> list[str]:
        """Which of the users are to be made due for a bundle."""

        def read(txn: lmdb.Transaction) -> list[str]:
            lacking = []
            for user in users:
                head = self._live_head(txn, user.encode(), user)
                if head is None or not records.may_lack(head):
                    continue
                counters = self._numbers(head, user)
                if counters is not None:
                    self._note_lost(txn, user.encode(), counters, bundle)
                    if counters.lacks(bundle):
                        lacking.append(user)
            return lacking

        return self._read(read)

    def _note_lost(
        self, txn: lmdb.Transaction, key: bytes, counters: records.Counters, bundle: int
    ) -> None:
        """Note in a user's numbers that a bundle's state is not there, if it is not."""
        if _get(txn, _state_key(key, bundle), self._dbs.states) is None:
            counters.found(bundle, 0)

    def _sequences(
        self, txn: lmdb.Transaction, users: Sequence[str]
    ) -> list[StoredSequence | None]:
        sequences: list[StoredSequence | None] = []
        with txn.cursor(self._dbs.segments) as cursor:
            for start in range(0, len(users), TOGETHER):
                part = users[start : start + TOGETHER]
                heads = [self._decoded(txn, user.encode(), user) for user in part]
                segments = [
                    self._segments(cursor, user.encode(), head.segments(self._length))
                    for user, head in zip(part, heads, strict=True)
                    if head is not None
                ]
                decoded = iter(decode_each(segments))
                for user, head in zip(part, heads, strict=True):
                    if head is None:
                        sequences.append(None)
                        continue
                    newest = head.joined(next(decoded), self._length)
                    self._mending.segments(user, newest.damaged)
                    sequences.append(
                        StoredSequence(head.version, newest.behaviors, head.marks, newest.lost)
                    )
        return sequences

    def _profile(self, txn: lmdb.Transaction, user: str, bundle: int) -> Profile | None:
        key = user.encode()
        head = self._decoded(txn, key, user)
        if head is None:
            return None
        state, version = None, None
        covered = head.coverage(bundle).covered
        if covered:
            state = _get(txn, _state_key(key, bundle), self._dbs.states)
            version = None if state is None else Version(head.epoch, covered)
        newest = self._newest(txn, key, user, head, head.uncovered(version, self._length))
        return Profile(head.version, newest.behaviors, state, version, newest.lost)

    def _newest(
        self, txn: lmdb.Transaction, key: bytes, user: str, head: records.Head, length: int
    ) -> records.Newest:
        with txn.cursor(self._dbs.segments) as cursor:
            newest = head.newest(self._segments(cursor, key, head.segments(length)), length)
        self._mending.segments(user, newest.damaged)
        return newest

    def _segments(self, cursor: lmdb.Cursor, key: bytes, numbers: range) -> list[bytes | None]:
        """A user's segments, by their numbers; None: missing."""
        places = [key + self._places[number % self._ring] for number in numbers]
        walked: dict[bytes, bytes] = {}
        if len(places) >= WALKED and cursor.set_range(min(places)):
            walked.update(islice(cursor.iternext(keys=True, values=True), self._ring))  # type: ignore[arg-type]
        found = list(map(walked.get, places))
        if None in found:  # missing, or behind a user's whose id begins alike
            found = list(map(cursor.get, places))  # type: ignore[arg-type]
        return found

    def _live(
        self, txn: lmdb.Transaction, key: bytes, user: str
    ) -> tuple[bytes | None, records.Counters | None]:
        """The head of a user who is there, and its numbers; None: as by `_counters`."""
        head = self._live_head(txn, key, user)
        return head, self._numbers(head, user)

    def _counters(
        self, txn: lmdb.Transaction, key: bytes, *, live: bool = True
    ) -> records.Counters | None:
        """The numbers of a user's head; None: there is none that can be read, or, with ``live``,
        the user is expired or deleted.
        """
        user = key.decode()
        if live:
            return self._live(txn, key, user)[1]
        return self._numbers(_get(txn, key, self._dbs.heads), user)

    def _due_user(
        self, txn: lmdb.Transaction, key: bytes, bundle: int, owner: int, since: int
    ) -> DueUser | None:
        """A user who is listed as due; None: their head says otherwise. Of a head of a later format
        the listing is taken at its word: whoever reads the user tells.
        """
        try:
            counters = self._counters(txn, key)
        except RecordNewer:
            return DueUser(key.decode(), since, 0)
        if counters is None or not counters.is_due(bundle, owner, since):
            return None
        return counters.due_user(key.decode(), bundle)

    def _numbers(self, head: bytes | None, user: str) -> records.Counters | None:
        """The numbers of a head; None: there is none, or it cannot be read."""
        try:
            return None if head is None else records.read_counters(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _decoded(self, txn: lmdb.Transaction, key: bytes, user: str) -> records.Head | None:
        head = self._live_head(txn, key, user)
        try:
            return None if head is None else records.decode_head(head, user)
        except RecordDamaged as error:
            self._mending.head(error)
            return None

    def _live_head(self, txn: lmdb.Transaction, key: bytes, user: str) -> bytes | None:
        """The head of a user who is there: not expired, and not deleted."""
        head = _get(txn, key, self._dbs.heads)
        if head is None or records.is_deleted(head):
            return None
        if self._ttl_ms:
            with contextlib.suppress(RecordDamaged):  # whoever decodes it tells
                if records.expired(head, user, self._ttl_ms, self._clock()):
                    return None
        return head

    def _segment_key(self, key: bytes, number: int) -> bytes:
        return key + self._places[number % self._ring]

    # Transactions

    def _read(self, read: Callable[[lmdb.Transaction], T]) -> T:
        def run() -> T:
            with self._env.begin() as txn:
                return read(txn)

        return self._run(run)

    def _write(self, write: Callable[[lmdb.Transaction], T]) -> T:
        """What ``write`` returns, done in one transaction; tried anew where need be."""
        if self._read_only:
            raise StoreUnavailable(f"{self._where} was opened for reading alone")

        def run() -> T:
            with self._env.begin(write=True) as txn:
                return write(txn)

        written = self._run(run)
        # LMDB writes on into a file that was deleted. Looked at afterwards, so that nothing is
        # acknowledged that was gone before.
        self._check_place()
        return written

    def _run(self, transaction: Callable[[], T]) -> T:
        """What a transaction returns; once more where the store only had to be put right."""
        map_size = self._map_size
        try:
            try:
                return self._in_turn(transaction)
            except lmdb.ReadersFullError:
                self._env.reader_check()
            except lmdb.MapResizedError:
                self._follow()
            except lmdb.MapFullError:
                if read_meta(self._data).map_size <= map_size:
                    raise
                self._follow()
            return self._in_turn(transaction)
        except lmdb.NotFoundError:
            raise
        except lmdb.ReadersFullError as error:
            raise readers_full(self._where, self._env.readers()) from error
        except (lmdb.Error, OSError) as error:
            raise self._told(error) from error

    def _in_turn(self, transaction: Callable[[], T]) -> T:
        with self._turns:
            if self._file is None:
                raise StoreUnavailable(
                    f"{self._where} was deleted or replaced, and what is there now is not open"
                )
            return transaction()

    def _follow(self) -> None:
        """Map as much as the process with the largest map."""
        with self._turns.alone(self._patience_s) as alone:
            if not alone:
                raise StoreUnavailable(
                    f"{self._where} was enlarged by another process, and a transaction of this one"
                    " that does not end keeps it from following; restart the process"
                )
            wanted = read_meta(self._data).map_size
            if wanted > self._map_size:
                self._env.set_mapsize(wanted)
                self._map_size = self._env.info()["map_size"]

    def _in_time(self, work: Callable[[], None]) -> None:
        """Do a write, and give up on it when its turn does not come.

        Nobody can stop waiting for LMDB's lock: so it is a thread that waits, one at most. While it
        does, whoever comes waits for it and not for a write of their own.
        """
        with self._asking:
            if self._asked is None or self._asked.done():
                self._asked, self._asked_at = Future(), time.monotonic()
                work_on = (self._asked, work)
                threading.Thread(target=_settle, args=work_on, name=TURN, daemon=True).start()
            asked = self._asked
        try:
            asked.result(self._patience_s)
        except TimeoutError:
            assert self._lock is not None
            waited = time.monotonic() - self._asked_at
            raise StoreUnavailable(
                f"{self._where} takes no writes: one has waited {waited:.0f} s for the lock, held"
                f" by {lock_holder(self._lock)}"
            ) from None

    def _check_place(self) -> None:
        """Notice that the data file is no more where it was.

        Raises:
            StoreUnavailable: it is not.
        """
        now = self._found_file()
        if now != self._file:
            what = "was deleted" if now is None else "was replaced by another one"
            raise StoreUnavailable(
                f"{self._where} {what} under this process: restart it, so that it opens what is"
                " there now; the consumer group's offsets may be newer (docs/operations.md)"
            )

    def _found_file(self) -> tuple[int, int] | None:
        """The data file that is in its place now; None: none is."""
        try:
            return _file_id(self._data)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._told(error) from error

    def _told(self, error: lmdb.Error | OSError) -> StoreError:
        return told(error, self._where, self._path, limit=self._map_size)


class _Turns:
    """Transactions go side by side; a change of the map or of the environment goes alone, since it
    takes the map away from under all others. Whoever is alone may have transactions of its own.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._running = 0
        self._owner: int | None = None
        """The thread that is, or wants to be, alone."""

    def __enter__(self) -> None:
        with self._changed:
            while self._owner is not None and self._owner != threading.get_ident():
                self._changed.wait()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            if self._owner is not None:
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self, patience_s: float) -> Iterator[bool]:
        """Keep all others out; gives whether those that were under way ended in time."""
        with self._changed:
            while self._owner is not None and self._owner != threading.get_ident():
                self._changed.wait()
            before, self._owner = self._owner, threading.get_ident()
            ended = self._changed.wait_for(lambda: not self._running, patience_s)
        try:
            yield ended
        finally:
            with self._changed:
                self._owner = before
                self._changed.notify_all()


def _settle(asked: Future[None], work: Callable[[], None]) -> None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001  # it is raised again where it is waited for
        asked.set_exception(error)
    else:
        asked.set_result(None)


def _file_id(path: Path) -> tuple[int, int]:
    """What tells a file from every other as long as somebody has it open."""
    found = os.stat(path)  # noqa: PTH116  # at every write, and it takes half as long
    return found.st_dev, found.st_ino


def _get(txn: lmdb.Transaction, key: bytes, db: lmdb._Database) -> bytes | None:
    """The value at a key, copied out of the map: transactions here are opened without buffers."""
    return txn.get(key, db=db)  # type: ignore[return-value]


def _state_key(key: bytes, bundle: int) -> bytes:
    return key + b"\0" + _STATE_KEY.pack(bundle)


def _sizes(
    txn: lmdb.Transaction, db: lmdb._Database, prefix: bytes, form: struct.Struct
) -> list[tuple[int, int]]:
    """The number at the end of each key of a prefix, and the bytes of what lies there."""
    found = []
    with txn.cursor(db) as cursor:
        more = cursor.set_range(prefix)
        while more and (key := bytes(cursor.key())).startswith(prefix):
            if len(key) == len(prefix) + form.size:
                found.append((form.unpack_from(key, len(prefix))[0], len(cursor.value())))
            more = cursor.next()
    return found


def _delete_all(txn: lmdb.Transaction, db: lmdb._Database, prefix: bytes, size: int) -> None:
    """Delete every key of a prefix and ``size`` bytes; longer ones are of other users, whose ids
    begin alike.
    """
    with txn.cursor(db) as cursor:
        more = cursor.set_range(prefix)
        while more and bytes(cursor.key()).startswith(prefix):
            mine = len(cursor.key()) == len(prefix) + size
            more = cursor.delete() if mine else cursor.next()
