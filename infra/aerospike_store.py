"""The distributed store: sequences, interest states and dirty users in one Aerospike namespace.

Four sets. ``sequence`` (key: user) holds the head, and beside it the few numbers by which dirty
users are found, so that applying events and marking their user dirty is one write of one record.
``segment`` (key: user and place in the ring) holds sealed segments, ``interest`` (key: user) the
interest states, ``position`` the bookmarks.

A head is only ever replaced where its generation is still the one that was read; who comes second
reads again and applies again, which the marks make harmless. A full tail is sealed in three
writes: the head with the long tail, then the segments, then the head without them. So segments
hold only what a committed head has held, and a crash in between leaves a head with a long tail,
which every reader understands and the next append seals.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import aerospike
import numpy as np
from aerospike import exception, predicates
from aerospike_helpers import expressions
from aerospike_helpers.batch.records import BatchRecords, Write
from aerospike_helpers.operations import operations

from infra import records
from infra.behaviors import BEHAVIOR, Source
from infra.errors import (
    RecordTooLarge,
    SettingsError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from infra.store import (
    Append,
    Appended,
    Behaviors,
    DirtyUser,
    InterestWrite,
    Profile,
    StoredSequence,
    Version,
    Written,
    wall_clock_ms,
)

OPEN_WAIT_S: Final = 10.0
"""How long `AerospikeStore.open` waits for a server: one that listens may not serve yet."""

TIMEOUT_S: Final = 5.0
"""How long one call to the servers may take, retries included."""

WALK_TIMEOUT_S: Final = 60.0
"""How long a walk over all users may take; for tools only."""

BATCH: Final = 1000
"""Records in one request; more make the server hold a larger answer without being faster."""

SLICE: Final = 8192
"""Behaviors of one user applied in one write: 200 KB, far under the server's record limit of 1 MiB.
Only a backfill of one user has more, and a failure amid its slices leaves the first ones applied,
which the repeated call skips by their offsets."""

CONFLICTS: Final = 30
"""Times a head is read again because somebody else wrote it in between."""

READ_ATTEMPTS: Final = 5
"""Times a user is read again because their segments moved on while they were read."""

MAX_TTL_S: Final = 10 * 365 * 24 * 3600
"""The longest TTL that a server takes: ten years."""

_SEQUENCE: Final = "sequence"
_SEGMENT: Final = "segment"
_INTEREST: Final = "interest"
_POSITION: Final = "position"

# Bins. A name may have 15 characters.
_HEAD: Final = "head"
_USER: Final = "user"  # the server keeps a hash of the key, not the key
_DIRTY: Final = "dirty"  # indexed; absent when clean
_OWNER: Final = "owner"
_SINCE: Final = "since"
_PENDING: Final = "pending"
_RENEWED: Final = "renewed"
_EPOCH: Final = "epoch"
_COUNT: Final = "count"
_DATA: Final = "data"

_HEAD_BINS: Final = [_HEAD, _RENEWED]
_PROFILE_BINS: Final = [_HEAD, _EPOCH, _COUNT, _DATA]
_SEGMENT_BINS: Final = [_EPOCH, _COUNT, _DATA]
_DIRTY_BINS: Final = [_USER, _OWNER, _SINCE, _PENDING]

# Result codes of the server (its proto.h), as they come back per record of a batch.
_OK: Final = 0
_NOT_FOUND: Final = 2
_GENERATION: Final = 3
_EXISTS: Final = 5
_FULL: Final = 8
_RECORD_TOO_BIG: Final = 13
_OVERLOADED: Final = 18
_NO_NAMESPACE: Final = 20
_FORBIDDEN: Final = 22
_FILTERED_OUT: Final = 27
_SECURITY: Final = range(50, 100)
_INDEX_NOT_FOUND: Final = 201
_INDEX_NOT_READABLE: Final = 203
_BATCH_FAILED: Final = -16  # the client's: some of the records have a code of their own

_WRITTEN: Final = frozenset((_OK,))
_CONFLICT: Final = frozenset((_OK, _NOT_FOUND, _GENERATION, _EXISTS))
_MONOTONE: Final = frozenset((_OK, _FILTERED_OUT))
_PRESENT: Final = frozenset((_OK, _NOT_FOUND))

_OWNER_BITS: Final = 31
_SECONDS: Final = (1 << 32) - 1
_DIRTY_PAGE: Final = 1024
"""Fewest dirty users asked for at once."""


@dataclass(frozen=True, slots=True)
class AerospikeAddress:
    """Where a store lies, from ``aerospike://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/NAMESPACE``."""

    hosts: tuple[tuple[str, int], ...]
    namespace: str
    prefix: str = ""
    """Put before the names of the sets (``?set=PREFIX``), so that two share a namespace."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.namespace}"

    @classmethod
    def parse(cls, url: str) -> AerospikeAddress:
        """Raises `SettingsError` where the URL is not of that form."""
        parts = urlsplit(url)
        credentials, _, places = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        prefix = query.pop("set", "")
        hosts: list[tuple[str, int]] = []
        for place in places.split(","):
            host, _, port = place.rpartition(":")
            if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
                raise _bad_url(f"{place!r} is not HOST:PORT")
            hosts.append((host.strip("[]"), int(port)))
        namespace = parts.path.strip("/")
        if parts.scheme != "aerospike" or not namespace or "/" in namespace:
            raise _bad_url("the namespace is missing" if not namespace else "it has another form")
        if query:
            raise _bad_url(f"{next(iter(query))!r} is not an option of it")
        return cls(
            hosts=tuple(hosts),
            namespace=namespace,
            prefix=prefix,
            user=unquote(user) if credentials else None,
            password=unquote(password) if credentials else None,
        )


class _Stored(NamedTuple):
    """A record as read."""

    generation: int
    bins: dict[str, Any]


class _Rewritten(NamedTuple):
    """A head as written."""

    head: bytes
    generation: int
    renewed: int


Change = Callable[[int, "bytes | None"], "bytes | None"]
"""(place in the call, head or None) -> the new head, or None to leave the record alone."""


class AerospikeStore:
    """`infra.store.Store` on Aerospike, through the official client."""

    def __init__(
        self,
        client: aerospike.Client,
        address: AerospikeAddress,
        *,
        length: int,
        ttl_s: float,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """Use a connected client. `open` makes one and waits until the server is ready."""
        self._client = client
        self._address = address
        self._length = length
        self._ring = records.ring_size(length)
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock
        # The client's 0 is the namespace's default; what is kept must say so, always: an update
        # without a TTL takes the record's own away.
        self._ttl: int = _ttl(ttl_s)
        # Segments and interests are written less often than their head, and must not go first.
        self._long_ttl: int = _ttl(2 * ttl_s)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        length: int = 1000,
        ttl_s: float = 0,
        wait_s: float = OPEN_WAIT_S,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> AerospikeStore:
        """Connect, wait until reads and writes are answered, and make the index of dirty users.

        Call it after any fork: the client's threads do not survive one.

        Args:
            url: see `AerospikeAddress`.
            length: behaviors kept per user.
            ttl_s: a user without events for so many seconds is forgotten; 0: never. The namespace
                needs ``nsup-period`` above 0 for it.
            wait_s: how long to wait for a server that is starting.
            timeout_s: how long one call may take.
            clock: the time in ms since epoch, by which records expire besides the server's own.

        Raises:
            SettingsError: the URL is malformed, names no namespace of the server, or carries
                credentials that the server refuses.
            StoreUnavailable: no server was ready within ``wait_s``.
        """
        address = AerospikeAddress.parse(url)
        deadline = time.monotonic() + wait_s
        while True:
            client = None
            try:
                client = aerospike.client(_config(address, timeout_s))
                client.connect()
                store = cls(client, address, length=length, ttl_s=ttl_s, clock=clock)
                store._prepare()
            except exception.AerospikeError as error:
                failure = _failure(address, error.code, error.msg)
            except (StoreError, SettingsError) as error:
                failure = error
            else:
                return store
            if client is not None:
                client.close()
            if not isinstance(failure, StoreUnavailable) or time.monotonic() >= deadline:
                raise failure
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))

    def append(self, source: Source, appends: Sequence[Append], now_ms: int) -> Appended:
        done = Appended(0, 0, 0, [0] * len(appends))
        for part in _slices(appends):
            self._append(source, part, now_ms, done)
        return done

    def sequences(self, users: Sequence[str]) -> list[StoredSequence | None]:
        found: list[StoredSequence | None] = [None] * len(users)
        waiting = list(range(len(users)))
        for _ in range(READ_ATTEMPTS):
            heads = self._heads([users[place] for place in waiting])
            read = [(place, head) for place, head in zip(waiting, heads, strict=True) if head]
            newest = self._newest([(users[place], head, self._length) for place, head in read])
            waiting = []
            for (place, head), behaviors in zip(read, newest, strict=True):
                if behaviors is None:
                    waiting.append(place)
                else:
                    found[place] = StoredSequence(head.version, behaviors, head.marks)
            if not waiting:
                return found
        raise self._incomplete(users[waiting[0]])

    def profiles(self, users: Sequence[str]) -> list[Profile | None]:
        found: list[Profile | None] = [None] * len(users)
        waiting = list(range(len(users)))
        for attempt in range(READ_ATTEMPTS):
            names = [users[place] for place in waiting]
            keys = [self._key(_SEQUENCE, user) for user in names]
            keys += [self._key(_INTEREST, user) for user in names]
            stored = self._get(keys, _PROFILE_BINS)
            read: list[tuple[int, records.Head, Version | None, bytes | None]] = []
            again: list[int] = []
            for i, place in enumerate(waiting):
                head = self._decode(stored[i], users[place])
                if head is None:
                    continue
                version, payload = _interests(stored[len(waiting) + i], head.epoch)
                if version and version > head.version and attempt < READ_ATTEMPTS - 1:
                    # Written, with the events they cover, after the head was read.
                    again.append(place)
                    continue
                read.append((place, head, version, payload))
            newest = self._newest(
                [(users[place], head, self._uncovered(head, v)) for place, head, v, _ in read]
            )
            for (place, head, version, payload), recent in zip(read, newest, strict=True):
                if recent is None:
                    again.append(place)
                else:
                    found[place] = Profile(head.version, recent, payload, version)
            if not again:
                return found
            waiting = again
        raise self._incomplete(users[waiting[0]])

    def put_interests(self, writes: Sequence[InterestWrite], now_ms: int) -> list[Written]:
        heads = self._heads([write.user for write in writes])
        results: list[Written] = []
        puts: list[Write] = []
        places: list[int] = []
        for place, (write, head) in enumerate(zip(writes, heads, strict=True)):
            if head is None:
                results.append(Written.GONE)
                continue
            # Until proven otherwise; so is what belongs to a sequence that began anew since.
            results.append(Written.STALE)
            if head.epoch == write.version.epoch:
                places.append(place)
                puts.append(
                    self._monotone(
                        self._key(_INTEREST, write.user),
                        write.version.epoch,
                        write.version.count,
                        write.payload,
                    )
                )
        codes, _ = self._put(puts, _MONOTONE, [writes[place].user for place in places])
        stored = [place for place, code in zip(places, codes, strict=True) if code == _OK]
        for place in stored:
            results[place] = Written.STORED

        # Only now, so that a crash in between leaves a user dirty for nothing, never clean
        # without their interests.
        def cover(i: int, head: bytes | None) -> bytes | None:
            write = writes[stored[i]]
            if head is None:
                return None
            summary = records.summarize(head, write.user)
            if summary.epoch != write.version.epoch or summary.covered > write.version.count:
                return None
            if summary.since and summary.count > write.version.count:
                return records.set_dirty(head, summary.owner, now_ms, write.version.count)
            return records.set_clean(head, write.version.count)

        self._rewrite([writes[place].user for place in stored], cover)
        return results

    def dirty(self, owner: int, limit: int) -> list[DirtyUser]:
        # The index finds ranges of time, unordered. A page that did not hold all of the range is
        # a sample of it; its quarter of longest dirty users gives the next, narrower range.
        page = max(_DIRTY_PAGE, 4 * limit)
        until = _SECONDS
        while True:
            found, complete = self._dirty_until(owner, until, page)
            found.sort(key=lambda user: (user.since, user.user))
            if complete or not found:
                return found[:limit]
            narrower = found[len(found) // 4].since // 1000
            if narrower >= until:
                return found[:limit]
            until = narrower

    def mark_dirty(self, owner: int, users: Sequence[str], now_ms: int) -> None:
        def mark(place: int, head: bytes | None) -> bytes | None:
            if head is None:
                return None
            since = records.summarize(head, users[place]).since
            return records.set_dirty(head, owner, since or now_ms)

        self._rewrite(users, mark)

    def users(self, after: str, limit: int) -> list[str]:
        start = after.encode()
        found = [
            bins[_USER] for bins in self._query([_USER])[0] if _USER in bins and bins[_USER] > start
        ]
        return [user.decode() for user in sorted(found)[:limit]]

    def get_position(self, name: str) -> bytes | None:
        stored = self._get([self._key(_POSITION, name)], [_DATA])[0]
        return None if stored is None else bytes(stored.bins[_DATA])

    def put_position(self, name: str, position: bytes | None) -> None:
        key = self._key(_POSITION, name)
        try:
            if position is None:
                self._client.remove(key)
            else:
                policy = {"ttl": aerospike.TTL_NEVER_EXPIRE}
                self._client.put(key, {_DATA: position}, policy=policy)
        except exception.RecordNotFound:
            return
        except exception.AerospikeError as error:
            raise self._failed(error) from error

    def sweep(self, now_ms: int, limit: int) -> int:  # noqa: ARG002  the protocol's signature
        """0: the server removes expired records by itself."""
        return 0

    def ping(self) -> None:
        key = self._key(_POSITION, "ping")
        try:
            self._client.put(key, {_DATA: b"ping"}, policy={"ttl": self._ttl})
            self._client.get(key)
        except exception.AerospikeError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._client.close()

    # Opening

    def _prepare(self) -> None:
        """Prove that the namespace is served, and have the index of dirty users made."""
        self.ping()
        try:
            try:
                self._dirty_until(0, 0, 1)
            except _IndexMissing:
                self._client.index_single_value_create(
                    self._address.namespace,
                    self._set(_SEQUENCE),
                    _DIRTY,
                    aerospike.INDEX_NUMERIC,
                    f"{self._set(_SEQUENCE)}-{_DIRTY}",
                )
        except exception.IndexFoundError:
            pass  # another process was faster
        except exception.AerospikeError as error:
            raise self._failed(error) from error

    # Appending

    def _append(
        self, source: Source, part: Sequence[tuple[int, Append]], now_ms: int, done: Appended
    ) -> None:
        users = [new.user for _, new in part]
        outcomes: dict[int, records.Grown] = {}

        def grow(i: int, head: bytes | None) -> bytes | None:
            outcome = records.grow(head, source.key, source.owner, part[i][1], now_ms)
            outcomes[i] = outcome
            return outcome.head

        written = self._rewrite(users, grow, events_ms=now_ms)
        for i, (place, _) in enumerate(part):
            outcome = outcomes[i]
            done.applied += outcome.applied
            done.replayed += outcome.replayed
            done.duplicates += outcome.duplicates
            done.counts[place] = outcome.count
        self._seal(
            [
                (user, rewritten)
                for user, rewritten in zip(users, written, strict=True)
                if rewritten and records.tail_length(rewritten.head) >= records.SEGMENT
            ]
        )

    def _seal(self, long: Sequence[tuple[str, _Rewritten]]) -> None:
        """Move full segments out of committed heads; who wrote a head since seals it instead."""
        segments: list[Write] = []
        trimmed: list[Write] = []
        users: list[str] = []
        for user, rewritten in long:
            head, full = records.seal(rewritten.head)
            epoch = records.summarize(head, user).epoch
            for number, segment in full[-self._ring :]:
                key = self._segment_key(user, number)
                segments.append(self._monotone(key, epoch, number, segment))
                users.append(user)
            stored = _Stored(rewritten.generation, {})
            trimmed.append(self._head(user, head, stored, rewritten.renewed, self._ttl))
        self._put(segments, _MONOTONE, users)
        self._put(trimmed, _CONFLICT, [user for user, _ in long])

    def _rewrite(
        self, users: Sequence[str], change: Change, *, events_ms: int | None = None
    ) -> list[_Rewritten | None]:
        """Replace heads by what ``change`` makes of them, each atomically; None: left alone.

        ``events_ms`` is the time of an append: it makes heads that are not there, and lets the
        user live on; any other change leaves them the time they have.
        """
        done: list[_Rewritten | None] = [None] * len(users)
        waiting = list(range(len(users)))
        for attempt in range(CONFLICTS):
            if attempt > 1:
                time.sleep(random.uniform(0, 0.001 * min(attempt * attempt, 50)))
            stored = self._get([self._key(_SEQUENCE, users[i]) for i in waiting], _HEAD_BINS)
            puts: list[Write] = []
            heads: list[tuple[int, bytes, int]] = []
            due: list[tuple[str, bytes]] = []
            for i, record in zip(waiting, stored, strict=True):
                user = users[i]
                old = self._live(record, user, events_ms)
                if old is None and events_ms is None:
                    continue
                new = change(i, old)
                if new is None:
                    continue
                ttl: int = aerospike.TTL_DONT_UPDATE
                renewed = record.bins.get(_RENEWED, 0) if record else 0
                if events_ms is not None:
                    ttl = self._ttl
                    if self._ttl_ms and (old is None or events_ms - renewed > self._ttl_ms // 2):
                        renewed = events_ms
                        if old is not None:
                            due.append((user, old))
                puts.append(self._head(user, new, record, renewed, ttl))
                heads.append((i, new, renewed))
            self._renew(due)
            codes, generations = self._put(puts, _CONFLICT, [users[i] for i, _, _ in heads])
            waiting = []
            for (i, head, renewed), code, generation in zip(heads, codes, generations, strict=True):
                if code == _OK:
                    done[i] = _Rewritten(head, generation, renewed)
                else:
                    waiting.append(i)
            if not waiting:
                return done
        raise StoreUnavailable(
            f"user {users[waiting[0]]!r} is written by others at the Aerospike server at"
            f" {self._address} each time it is tried; retry"
        )

    def _renew(self, due: Sequence[tuple[str, bytes]]) -> None:
        """Let the segments of users who go on live as long as their heads.

        A segment is written with twice the TTL, and again given that when the user has events
        after half a TTL: it outlives the head by then, whenever the last event was.
        """
        touches: list[Write] = []
        users: list[str] = []
        for user, head in due:
            count = records.summarize(head, user).count
            tail = records.tail_length(head)
            for number in records.sealed_range(count, tail, self._length):
                key = self._segment_key(user, number)
                policy = {"ttl": self._long_ttl}
                touches.append(Write(key, [operations.touch()], policy=policy))
                users.append(user)
        self._put(touches, _PRESENT, users)

    def _head(self, user: str, head: bytes, old: _Stored | None, renewed: int, ttl: int) -> Write:
        """The write of a whole sequence record, made only where it is still as it was read."""
        summary = records.summarize(head, user)
        bins: dict[str, object] = {_HEAD: head, _USER: user.encode()}
        if renewed:
            bins[_RENEWED] = renewed
        if summary.since:
            bins[_DIRTY] = _dirty_key(summary.owner, summary.since // 1000)
            bins[_OWNER] = _signed(summary.owner)
            bins[_SINCE] = summary.since
            bins[_PENDING] = summary.count - summary.covered
        policy: dict[str, object] = {"ttl": ttl}
        meta: dict[str, int] | None = None
        if old is None:
            policy["exists"] = aerospike.POLICY_EXISTS_CREATE
        else:
            # Replaced as a whole, so that the bins of a dirty user go with the dirt.
            policy["exists"] = aerospike.POLICY_EXISTS_REPLACE
            policy["gen"] = aerospike.POLICY_GEN_EQ
            meta = {"gen": old.generation}
        return Write(self._key(_SEQUENCE, user), _writes(bins), meta=meta, policy=policy)

    def _monotone(
        self, key: tuple[str, str, bytearray], epoch: int, count: int, data: bytes
    ) -> Write:
        """A write that the server refuses where it holds a newer (epoch, count) already."""
        not_newer = expressions.Or(
            expressions.LT(expressions.IntBin(_EPOCH), epoch),
            expressions.And(
                expressions.Eq(expressions.IntBin(_EPOCH), epoch),
                expressions.LE(expressions.IntBin(_COUNT), count),
            ),
        ).compile()
        return Write(
            key,
            _writes({_EPOCH: epoch, _COUNT: count, _DATA: data}),
            policy={"ttl": self._long_ttl, "expressions": not_newer},
        )

    # Reading

    def _heads(self, users: Sequence[str]) -> list[records.Head | None]:
        stored = self._get([self._key(_SEQUENCE, user) for user in users], [_HEAD])
        return [self._decode(record, user) for record, user in zip(stored, users, strict=True)]

    def _decode(self, record: _Stored | None, user: str) -> records.Head | None:
        head = self._live(record, user, None)
        return None if head is None else records.decode_head(head, user)

    def _live(self, record: _Stored | None, user: str, now_ms: int | None) -> bytes | None:
        """The head of a record, unless its time is over though the server still has it."""
        if record is None:
            return None
        head = record.bins.get(_HEAD)
        if not isinstance(head, bytes):
            raise StoreCorrupt(
                f"the sequence record of user {user!r} at {self._address} has no head;"
                " remove the user's record or restore the store"
            )
        if self._ttl_ms:
            now_ms = self._clock() if now_ms is None else now_ms
            if records.summarize(head, user).updated + self._ttl_ms < now_ms:
                return None
        return head

    def _uncovered(self, head: records.Head, version: Version | None) -> int:
        covered = version.count if version else 0
        return max(len(head.tail), min(head.count - covered, self._length))

    def _newest(self, wanted: Sequence[tuple[str, records.Head, int]]) -> list[Behaviors | None]:
        """The newest behaviors, so many per (user, head); None: segments do not fit the head."""
        spans: list[range] = []
        keys: list[tuple[str, str, bytearray]] = []
        for user, head, length in wanted:
            span = range(0)
            if length > len(head.tail):
                span = records.sealed_range(head.count, len(head.tail), length)
            spans.append(span)
            keys += [self._segment_key(user, number) for number in span]
        stored = iter(self._get(keys, _SEGMENT_BINS))
        newest: list[Behaviors | None] = []
        for (user, head, length), span in zip(wanted, spans, strict=True):
            parts: list[Behaviors] = []
            for number in span:
                record = next(stored)
                if record is None:
                    continue
                if (record.bins.get(_EPOCH), record.bins.get(_COUNT)) == (head.epoch, number):
                    parts.append(records.decode_segment(record.bins[_DATA], user))
            if len(parts) < len(span):
                newest.append(None)
                continue
            behaviors = np.concatenate([*parts, head.tail]) if parts else head.tail
            newest.append(behaviors[-length:] if length else np.empty(0, BEHAVIOR))
        return newest

    def _incomplete(self, user: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"segments of user {user!r} are missing at the Aerospike server at {self._address};"
            " restore the store or remove the user's record"
        )

    def _dirty_until(self, owner: int, until_s: int, page: int) -> tuple[list[DirtyUser], bool]:
        """(some dirty users of an owner since a time up to ``until_s``, whether that is all)."""
        span = predicates.between(_DIRTY, _dirty_key(owner, 0), _dirty_key(owner, until_s))
        rows, complete = self._query(_DIRTY_BINS, span=span, page=page)
        mine = _signed(owner)
        return [
            DirtyUser(bins[_USER].decode(), bins[_SINCE], bins[_PENDING])
            for bins in rows
            # The index knows 31 bits of the owner; and a record may have become clean meanwhile.
            if bins.get(_OWNER) == mine and _USER in bins and _SINCE in bins
        ], complete

    # Talking to the server

    def _set(self, name: str) -> str:
        return self._address.prefix + name

    def _key(self, set_name: str, key: str) -> tuple[str, str, bytearray]:
        # The client hashes no more than the first byte of bytes, and a str only up to a NUL.
        return self._address.namespace, self._set(set_name), bytearray(key.encode())

    def _segment_key(self, user: str, number: int) -> tuple[str, str, bytearray]:
        return self._key(_SEGMENT, f"{user}:{number % self._ring}")

    def _get(
        self, keys: Sequence[tuple[str, str, bytearray]], bins: list[str]
    ) -> list[_Stored | None]:
        """Records in the order of the keys; None: there is none."""
        found: list[_Stored | None] = []
        for start in range(0, len(keys), BATCH):
            try:
                batch = self._client.batch_read(list(keys[start : start + BATCH]), bins)
            except exception.AerospikeError as error:
                raise self._failed(error) from error
            self._check(batch)
            for answer in batch.batch_records:
                if answer.result == _OK:
                    _, meta, values = answer.record
                    found.append(_Stored(meta["gen"], values))
                elif answer.result == _NOT_FOUND:
                    found.append(None)
                else:
                    raise _failure(self._address, answer.result, answer.message)
        return found

    def _put(
        self, writes: Sequence[Write], answers: frozenset[int], users: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        """(result code, generation) per write; a code not in ``answers`` raises."""
        codes: list[int] = []
        generations: list[int] = []
        failure: StoreError | SettingsError | None = None
        for start in range(0, len(writes), BATCH):
            batch = BatchRecords(list(writes[start : start + BATCH]))
            try:
                self._client.batch_write(batch)
            except exception.AerospikeError as error:
                raise self._failed(error) from error
            self._check(batch)
            for answer in batch.batch_records:
                if answer.result not in answers:
                    failure = failure or _failure(
                        self._address, answer.result, answer.message, users[len(codes)]
                    )
                codes.append(answer.result)
                generations.append(answer.record[1]["gen"] if answer.result == _OK else 0)
        if failure:
            raise failure
        return codes, generations

    def _check(self, batch: BatchRecords) -> None:
        """Raise where a batch did not take place.

        The client does not when the server is away, and then its records cannot be believed: once
        it has given a node up, reads come back without any, and writes with the code of success.
        """
        if batch.result not in (_OK, _BATCH_FAILED):
            detail = next((r.message for r in batch.batch_records if r.message), None)
            raise _failure(self._address, batch.result, detail)

    def _query(
        self, bins: list[str], *, span: tuple[Any, ...] | None = None, page: int = 0
    ) -> tuple[list[dict[str, Any]], bool]:
        """(sequence records' bins, whether that is all); without a page it takes as long as
        a walk over all users may.
        """
        query = self._client.query(self._address.namespace, self._set(_SEQUENCE))
        query.select(*bins)
        if span is not None:
            query.where(span)
        policy = {} if page else {"total_timeout": int(WALK_TIMEOUT_S * 1000)}
        if page:
            query.max_records = page
            query.paginate()
        try:
            rows = query.results(policy)
        except exception.AerospikeError as error:
            if error.code in (_INDEX_NOT_FOUND, _INDEX_NOT_READABLE):
                raise _IndexMissing(
                    f"the index of dirty users at the Aerospike server at {self._address}"
                    " is missing or being built; restart to have it made, or wait"
                ) from error
            raise self._failed(error) from error
        return [row[2] for row in rows], not page or query.is_done()

    def _failed(self, error: exception.AerospikeError) -> StoreError | SettingsError:
        return _failure(self._address, error.code, error.msg)


class _IndexMissing(StoreUnavailable):
    """The index of dirty users cannot be asked."""


def _config(address: AerospikeAddress, timeout_s: float) -> dict[str, Any]:
    total = int(timeout_s * 1000)
    # Every write is conditional or idempotent, so that repeating one in doubt does no harm.
    timeouts = {"total_timeout": total, "socket_timeout": total, "max_retries": 2}
    config: dict[str, Any] = {
        "hosts": list(address.hosts),
        "policies": {
            "read": timeouts,
            "write": timeouts,
            "remove": timeouts,
            "batch": timeouts,
            "query": timeouts,
            "info": {"timeout": total},
        },
        "connect_timeout": total,
    }
    if address.user is not None:
        config["user"] = address.user
        config["password"] = address.password or ""
    return config


def _failure(
    address: AerospikeAddress, code: int | None, detail: str | None, user: str | None = None
) -> StoreError | SettingsError:
    """What a result code means to the caller, in one line."""
    server = f"the Aerospike server at {address}"
    if code == _FULL:
        return StoreFull(
            f"{server} has no room left: add memory or disk to the namespace, or set store.ttl_s"
        )
    if code == _RECORD_TOO_BIG:
        whose = f"the record of user {user!r}" if user is not None else "a record"
        return RecordTooLarge(f"{whose} is larger than {server} takes: raise its max-record-size")
    if code == _OVERLOADED:
        return StoreUnavailable(f"{server} is overloaded, its disks lag behind the writes; retry")
    if code == _FORBIDDEN:
        return StoreUnavailable(
            f"{server} forbids the write: with store.ttl_s set the namespace needs nsup-period"
            " above 0, and a set may have reached its stop-writes-count"
        )
    if code == _NO_NAMESPACE:
        return SettingsError(
            f"store.url names namespace {address.namespace!r}, which {server} does not have:"
            " configure it there or name another"
        )
    if code in _SECURITY:
        return SettingsError(
            f"{server} refuses the user or password in store.url (code {code}): {_line(detail)}"
        )
    return StoreUnavailable(
        f"{server} did not carry out the request (code {code}): {_line(detail)};"
        " check that it runs and can be reached"
    )


def _line(detail: str | None) -> str:
    """The first line of what the client says, which lists the same error per try after it."""
    lines = (detail or "").strip().splitlines()
    return lines[0] if lines else "no node of the cluster answers"


def _ttl(seconds: float) -> int:
    return min(max(1, round(seconds)), MAX_TTL_S) if seconds else aerospike.TTL_NEVER_EXPIRE


def _bad_url(why: str) -> SettingsError:
    return SettingsError(
        f"store.url: {why}; write aerospike://[USER:PASSWORD@]HOST:PORT[,HOST:PORT]/NAMESPACE"
    )


def _writes(bins: dict[str, object]) -> list[dict[str, Any]]:
    return [operations.write(name, value) for name, value in bins.items()]


def _slices(appends: Sequence[Append]) -> Iterator[list[tuple[int, Append]]]:
    """The appends with their places, in parts that hold no user twice nor too much of one."""
    part = list(enumerate(appends))
    while part:
        yield [(place, _cut(new, 0, SLICE)) for place, new in part]
        part = [
            (place, _cut(new, SLICE, len(new.offsets)))
            for place, new in part
            if len(new.offsets) > SLICE
        ]


def _cut(new: Append, start: int, stop: int) -> Append:
    if start == 0 and stop >= len(new.offsets):
        return new
    return Append(
        new.user, new.behaviors[start:stop], new.event_keys[start:stop], new.offsets[start:stop]
    )


def _interests(record: _Stored | None, epoch: int) -> tuple[Version | None, bytes | None]:
    """A user's interest state, unless it is of an earlier sequence, which has expired."""
    if record is None:
        return None, None
    version = Version(record.bins[_EPOCH], record.bins[_COUNT])
    if version.epoch != epoch:
        return None, None
    return version, bytes(record.bins[_DATA])


def _dirty_key(owner: int, since_s: int) -> int:
    """What the index orders by: 31 bits of the owner, then the second since when."""
    return (owner >> 64 - _OWNER_BITS) << 32 | min(since_s, _SECONDS)


def _signed(value: int) -> int:
    """A u64 as the server's integer."""
    return value - (1 << 64) if value >= 1 << 63 else value
