"""The store on Aerospike: sequences, interest states and due users in one namespace.

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
from typing import Final, NamedTuple

from aerospike_helpers.batch.records import Write

from infra import records
from infra.behaviors import Source
from infra.errors import SettingsError, StoreCorrupt, StoreError, StoreUnavailable
from infra.store import (
    OPEN_WAIT_S,
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
from infra.stores.aerospike.address import AerospikeAddress
from infra.stores.aerospike.client import (
    CONFLICT,
    MONOTONE,
    OK,
    PRESENT,
    TIMEOUT_S,
    AerospikeClient,
    IndexMissing,
    Key,
    Stored,
)
from infra.stores.aerospike.layout import (
    COUNT,
    DATA,
    DUE,
    DUE_BINS,
    EPOCH,
    HEAD,
    HEAD_BINS,
    INTEREST,
    KEEP_TTL,
    POSITION,
    PROFILE_BINS,
    RENEWED,
    SECONDS,
    SEGMENT,
    SEGMENT_BINS,
    SEQUENCE,
    USER,
    due_span,
    due_users,
    head_write,
    interests_in,
    monotone_write,
    touch,
    ttl_of,
)

SLICE: Final = 8192
"""Behaviors of one user applied in one write: 200 KB, far under the server's record limit of 1 MiB.
Only a backfill of one user has more, and a failure amid its slices leaves the first ones applied,
which the repeated call skips by their offsets."""

CONFLICTS: Final = 30
"""Times a head is read again because somebody else wrote it in between; more is unavailable."""

READ_ATTEMPTS: Final = 5
"""Times a user is read again because their segments moved on while they were read."""

_DUE_PAGE: Final = 1024
"""Fewest due users that the index is asked for at once."""


class _Rewritten(NamedTuple):
    """A head as it was written, and what is needed to write it again."""

    head: bytes
    generation: int
    """The record's, which a later write must find."""
    renewed: int
    """When its segments were last given a new TTL, ms since epoch; 0: never."""


Change = Callable[[int, "bytes | None"], "bytes | None"]
"""(place in the call, head or None) -> the new head, or None to leave the record alone."""


class AerospikeStore:
    """`infra.store.Store` on Aerospike, through the official client."""

    def __init__(
        self,
        client: AerospikeClient,
        *,
        length: int,
        ttl_s: float,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        """Use a connected client. `open` makes one and waits until the server is ready."""
        self._client = client
        self._length = length
        self._ring = records.ring_size(length)
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock
        # The client's 0 is the namespace's default; what is kept must say so, always: an update
        # without a TTL takes the record's own away.
        self._ttl = ttl_of(ttl_s)
        # Segments and interests are written less often than their head, and must not go first.
        self._long_ttl = ttl_of(2 * ttl_s)

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
        """Connect, wait until reads and writes are answered, and make the index of due users.

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
                client = AerospikeClient.connect(address, timeout_s)
                store = cls(client, length=length, ttl_s=ttl_s, clock=clock)
                store._prepare()
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
            keys = [self._client.key(SEQUENCE, user) for user in names]
            keys += [self._client.key(INTEREST, user) for user in names]
            stored = self._client.get(keys, PROFILE_BINS)
            read: list[tuple[int, records.Head, Version | None, bytes | None]] = []
            again: list[int] = []
            for i, place in enumerate(waiting):
                head = self._decode(stored[i], users[place])
                if head is None:
                    continue
                version, payload = interests_in(stored[len(waiting) + i], head.epoch)
                if version and version > head.version and attempt < READ_ATTEMPTS - 1:
                    # Written, with the events they cover, after the head was read.
                    again.append(place)
                    continue
                read.append((place, head, version, payload))
            newest = self._newest(
                [
                    (users[place], head, head.uncovered(version, self._length))
                    for place, head, version, _ in read
                ]
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
                    monotone_write(
                        self._client.key(INTEREST, write.user),
                        write.version.epoch,
                        write.version.count,
                        write.payload,
                        self._long_ttl,
                    )
                )
        codes, _ = self._client.put(puts, MONOTONE, [writes[place].user for place in places])
        stored = [place for place, code in zip(places, codes, strict=True) if code == OK]
        for place in stored:
            results[place] = Written.STORED

        # Only now, so that a crash in between leaves a user due for nothing, never clean
        # without their interests.
        def cover(i: int, head: bytes | None) -> bytes | None:
            write = writes[stored[i]]
            if head is None:
                return None
            counters = records.read_counters(head, write.user)
            if counters.epoch != write.version.epoch or counters.covered > write.version.count:
                return None
            return records.cover(head, counters, write.version.count, now_ms)

        self._rewrite([writes[place].user for place in stored], cover)
        return results

    def due(self, owner: int, limit: int) -> list[DueUser]:
        # The index finds ranges of time, unordered. A page that did not hold all of the range is
        # a sample of it; its quarter of longest due users gives the next, narrower range.
        page = max(_DUE_PAGE, 4 * limit)
        until = SECONDS
        while True:
            found, complete = self._due_until(owner, until, page)
            found.sort(key=lambda user: (user.since, user.user))
            if complete or not found:
                return found[:limit]
            narrower = found[len(found) // 4].since // 1000
            if narrower >= until:
                return found[:limit]
            until = narrower

    def mark_due(self, owner: int, users: Sequence[str], now_ms: int) -> None:
        def mark(place: int, head: bytes | None) -> bytes | None:
            if head is None:
                return None
            counters = records.read_counters(head, users[place])
            return records.set_due(head, counters, owner, now_ms)

        self._rewrite(users, mark)

    def users(self, after: str, limit: int) -> list[str]:
        start = after.encode()
        found = [
            bins[USER]
            for bins in self._client.query(SEQUENCE, [USER])[0]
            if USER in bins and bins[USER] > start
        ]
        return [user.decode() for user in sorted(found)[:limit]]

    def get_position(self, name: str) -> bytes | None:
        stored = self._client.get([self._client.key(POSITION, name)], [DATA])[0]
        return None if stored is None else bytes(stored.bins[DATA])

    def put_position(self, name: str, position: bytes | None) -> None:
        key = self._client.key(POSITION, name)
        if position is None:
            self._client.remove(key)
        else:
            self._client.put_one(key, {DATA: position}, ttl_of(0))

    def sweep(self, now_ms: int, limit: int) -> int:  # noqa: ARG002  the protocol's signature
        """Remove nobody: the server removes expired records by itself."""
        return 0

    def ping(self) -> None:
        key = self._client.key(POSITION, "ping")
        self._client.put_one(key, {DATA: b"ping"}, self._ttl)
        self._client.get_one(key)

    def close(self) -> None:
        self._client.close()

    # Opening

    def _prepare(self) -> None:
        """Prove that the namespace is served, and make the index of due users if need be."""
        self.ping()
        try:
            self._due_until(0, 0, 1)
        except IndexMissing:
            self._client.make_index(SEQUENCE, DUE)

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
                if rewritten and records.holds_segment(rewritten.head)
            ]
        )

    def _seal(self, long: Sequence[tuple[str, _Rewritten]]) -> None:
        """Move full segments out of committed heads; whoever has written one of them since, seals
        it instead.
        """
        segments: list[Write] = []
        trimmed: list[Write] = []
        users: list[str] = []
        for user, rewritten in long:
            head, full = records.seal(rewritten.head)
            epoch = records.read_counters(head, user).epoch
            for number, segment in full[-self._ring :]:
                key = self._segment_key(user, number)
                segments.append(monotone_write(key, epoch, number, segment, self._long_ttl))
                users.append(user)
            stored = Stored(rewritten.generation, {})
            key = self._client.key(SEQUENCE, user)
            trimmed.append(head_write(key, user, head, stored, rewritten.renewed, self._ttl))
        self._client.put(segments, MONOTONE, users)
        self._client.put(trimmed, CONFLICT, [user for user, _ in long])

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
            stored = self._client.get(
                [self._client.key(SEQUENCE, users[i]) for i in waiting], HEAD_BINS
            )
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
                ttl = KEEP_TTL
                renewed = record.bins.get(RENEWED, 0) if record else 0
                if events_ms is not None:
                    ttl = self._ttl
                    if self._ttl_ms and (old is None or events_ms - renewed > self._ttl_ms // 2):
                        renewed = events_ms
                        if old is not None:
                            due.append((user, old))
                key = self._client.key(SEQUENCE, user)
                puts.append(head_write(key, user, new, record, renewed, ttl))
                heads.append((i, new, renewed))
            self._renew(due)
            codes, generations = self._client.put(puts, CONFLICT, [users[i] for i, _, _ in heads])
            waiting = []
            for (i, head, renewed), code, generation in zip(heads, codes, generations, strict=True):
                if code == OK:
                    done[i] = _Rewritten(head, generation, renewed)
                else:
                    waiting.append(i)
            if not waiting:
                return done
        raise StoreUnavailable(
            f"user {users[waiting[0]]!r} is written by others at the Aerospike server at"
            f" {self._client.address} each time it is tried; retry"
        )

    def _renew(self, due: Sequence[tuple[str, bytes]]) -> None:
        """Give the segments of users, named with their heads, a new TTL.

        A segment is written with twice the TTL, and again given that when the user has events
        after half a TTL: it outlives the head by then, whenever the last event was.
        """
        touches: list[Write] = []
        users: list[str] = []
        for user, head in due:
            for number in records.decode_head(head, user).segments(self._length):
                key = self._segment_key(user, number)
                touches.append(touch(key, self._long_ttl))
                users.append(user)
        self._client.put(touches, PRESENT, users)

    # Reading

    def _heads(self, users: Sequence[str]) -> list[records.Head | None]:
        stored = self._client.get([self._client.key(SEQUENCE, user) for user in users], [HEAD])
        return [self._decode(record, user) for record, user in zip(stored, users, strict=True)]

    def _decode(self, record: Stored | None, user: str) -> records.Head | None:
        head = self._live(record, user, None)
        return None if head is None else records.decode_head(head, user)

    def _live(self, record: Stored | None, user: str, now_ms: int | None) -> bytes | None:
        """The head of a record; None: there is none, or it expired and the server still has it.

        ``now_ms`` None is the store's clock.
        """
        if record is None:
            return None
        head = record.bins.get(HEAD)
        if not isinstance(head, bytes):
            raise StoreCorrupt(
                f"the sequence record of user {user!r} at {self._client.address} has no head;"
                " remove the user's record or restore the store"
            )
        now_ms = self._clock() if now_ms is None else now_ms
        return None if records.expired(head, user, self._ttl_ms, now_ms) else head

    def _newest(self, wanted: Sequence[tuple[str, records.Head, int]]) -> list[Behaviors | None]:
        """The newest behaviors of each (user, head, how many); None: its segments do not fit its
        head, since they moved on or are lost.
        """
        spans: list[range] = []
        keys: list[Key] = []
        for user, head, length in wanted:
            span = head.segments(length)
            spans.append(span)
            keys += [self._segment_key(user, number) for number in span]
        stored = iter(self._client.get(keys, SEGMENT_BINS))
        newest: list[Behaviors | None] = []
        for (user, head, length), span in zip(wanted, spans, strict=True):
            parts: list[bytes] = []
            for number in span:
                record = next(stored)
                if record is None:
                    continue
                if (record.bins.get(EPOCH), record.bins.get(COUNT)) == (head.epoch, number):
                    parts.append(record.bins[DATA])
            if len(parts) < len(span):
                newest.append(None)
                continue
            newest.append(head.newest(parts, length, user))
        return newest

    def _incomplete(self, user: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"segments of user {user!r} are missing at the Aerospike server at"
            f" {self._client.address}; restore the store or remove the user's record"
        )

    def _due_until(self, owner: int, until_s: int, page: int) -> tuple[list[DueUser], bool]:
        """Up to about ``page`` of an owner's users due since a second up to ``until_s``, in no
        order, and whether those are all.
        """
        span = due_span(owner, until_s)
        rows, complete = self._client.query(SEQUENCE, DUE_BINS, span=span, page=page)
        return due_users(rows, owner), complete

    def _segment_key(self, user: str, number: int) -> Key:
        return self._client.key(SEGMENT, f"{user}:{number % self._ring}")


def _slices(appends: Sequence[Append]) -> Iterator[list[tuple[int, Append]]]:
    """Appends with their places in the call, in parts that hold no user twice and at most `SLICE`
    behaviors of one.
    """
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
